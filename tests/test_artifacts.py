"""Files of a stranger: nothing in them runs; mutated artifacts give a one-line error or a right result.

    MUTATIONS=2000 pytest -q tests/test_artifacts.py             # without it fewer, the same first ones

A mutation changes the bytes of a file, or its content with the digest made anew, as a stranger can.
"""
import contextlib
import copy
import io
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import eval as evaluation
import pytest
import step1_embed
import step2_align
import step3_head
import torch
import transformers
from conftest import TARGET, go, script, step1

import common
from common import UserError

MUTATIONS = int(os.environ.get("MUTATIONS", 80))
SECONDS = 10                        # longer is a hang
MEBIBYTES = 200                     # more than before is too much: the good files take a tenth of it
ADDRESSES = 4 << 30                 # bytes of address space more than before: a guard for the machine
FILES = {"embed": "embed.pt", "align": "align-xx-fc-n90.pt", "rev": "align-xx-shift-n90-rev.pt",
         "head": "head-langalign-xx-fc-n90.pt", "english": "head-english.pt", "back": "head-rev-xx-shift-n90-rev.pt",
         "cache": None}
READERS = {"embed": ("step2", "predict", "eval"), "align": ("step3",), "rev": ("step3 rev",),
           "head": ("eval", "predict", "plot"), "english": ("eval", "step3"), "back": ("predict rev", "eval"),
           "cache": ("eval", "step2", "step3")}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Run folder of the tiny world with an artifact of every kind, and lines to label, one too long."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        out = step1(tiny, tmp_path_factory.mktemp("finished") / "run")
        go(out, *(f"{line} --lang xx --device cpu --amp off" for line in (
            "step2_align", "step2_align --arch shift --reverse", "step3_head", "step3_head --method rev")))
    (out / "lines.txt").write_text("xfilm xwas xgood\nunknown words\n" + " ".join(TARGET * 9) + "\n")
    return out


def quick(patch):
    patch.setattr(step3_head, "STEPS", 4)
    patch.setattr(step3_head, "EPOCHS", 2)
    patch.setattr(step2_align, "EPOCHS", 2)
    patch.setattr(evaluation, "BOOTSTRAP", 100)


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of `finished`, to spoil."""
    quick(monkeypatch)
    return shutil.copytree(finished, tmp_path / "run")


def file_of(out, kind):
    return out / FILES[kind] if FILES[kind] else sorted(out.glob("cache/*/*.pt"))[0]


def read(reader, out):
    """Run the script that reads a file; returns what it made, without times. UserError if it refuses."""
    for old in ("results.json", "ko.svg"):
        (out / old).unlink(missing_ok=True)
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")           # refuses what a terminal would
    common_args = ["--lang", "xx", "--out", str(out), "--device", "cpu", "--amp", "off"]
    lines = ["--predict", str(out / "lines.txt")]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        if reader == "step2":
            step2_align.main([*common_args, "--arch", "shift"])
            made = common.load(out / "align-xx-shift-n90.pt", "align", "")
            return {name: made[name] for name in ("state", "report", "aligner", "lang")}
        if reader.startswith("step3"):
            rev = ["--method", "rev"] if "rev" in reader else []
            step3_head.main([*common_args, *rev, "--arch", "shift" if rev else "fc"])
            made = common.load(file_of(out, "back" if rev else "head"), "head", "")
            return {name: made[name] for name in ("heads", "dev", "labels", "state")}
        if reader.startswith("predict"):
            os.utime(file_of(out, "back" if "rev" in reader else "head"))        # the newest is taken
            evaluation.main([*common_args, *lines])
            printed.flush()
            return printed.buffer.getvalue().decode()
        evaluation.main([*common_args, *(["--plot", str(out / "ko.svg")] if reader == "plot" else [])])
    table = json.loads((out / "results.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    return [{key: value for key, value in row.items() if key not in ("seconds",)} for row in table]


def check_result(reader, result):
    """Numbers finite and in range, labels the task's."""
    if reader.startswith("predict"):
        lines = result.split("\n")
        assert len(lines) == 4 and lines[-1] == ""
        for line in lines[:-1]:
            label, probability = line.split("\t")
            assert label in ("bad", "good") and 0.4999 <= float(probability) <= 1, line
    elif reader in ("eval", "plot"):
        assert result[0]["method"] == "majority" and len(result) > 1
        for row in result:
            assert row["items"] == 40 and row["lang"] == "xx"
            for name in ("accuracy", "macro_f1"):
                assert 0 <= row[name] <= 1 and round(40 * row["accuracy"] * row["seeds"], 6) % 1 == 0
    else:
        kept = ("state",) if reader == "step2" else ("heads",)
        for name in kept:
            assert all(math.isfinite(t.float().sum()) for t in result[name].values())
        assert reader == "step2" or all(0 <= share <= 1 for share in result["dev"])


def same(a, b):
    """Equal, floats and tensors up to rounding: an SVG or JSON of the same numbers."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return math.isclose(a, b, abs_tol=1e-5) if isinstance(a, float) else a == b


class Hang(BaseException):
    """Of the alarm: not an Exception, so that no `except Exception` takes it for a damaged file."""


def ring(*_):
    raise Hang(f"no end after {SECONDS} s")


def memory(name):
    """A field of /proc/self/status in MiB, 0 where there is none."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0


@contextlib.contextmanager
def guarded():
    """Hang after SECONDS, MemoryError or the like beyond ADDRESSES, AssertionError beyond MEBIBYTES."""
    before, hard = memory("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)[1]
    if before:
        Path("/proc/self/clear_refs").write_text("5")        # the peak, VmHWM, starts anew from here
        resource.setrlimit(resource.RLIMIT_AS, (int(memory("VmSize") * 2 ** 20) + ADDRESSES, hard))
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert memory("VmHWM") - before < MEBIBYTES, f"{memory('VmHWM') - before:.0f} MiB more memory"


def judge(reader, out):
    """("refused", message) or ("done", result); anything but a one-line error or a sound result raises."""
    with guarded():
        try:
            result = read(reader, out)
        except UserError as err:
            told = str(err)
            assert len(told.splitlines()) == 1 and len(told) < 5000, told[:5000]
            return "refused", told
    check_result(reader, result)
    return "done", result


@pytest.fixture(scope="module")
def good(finished, tmp_path_factory):
    """What each reader makes of the good files."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        out = tmp_path_factory.mktemp("good")
        return {reader: judge(reader, shutil.copytree(finished, out / reader.replace(" ", "")))[1]
                for reader in {name for names in READERS.values() for name in names}}


# Code: a pickle, a module beside a config, a name that leaves the folder
class Boom:
    """Unpickled without care, makes a folder."""
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def write_pickle(path, form, canary):
    """A file that makes the canary when unpickled; checked to do so."""
    content = {"digest": "0" * 40, "kind": "head", "x": Boom(canary)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert canary.exists(), "the file must be able to do harm for this to test anything"
    canary.rmdir()


def status_of(main, args, capsys):
    """Exit status of a script run in this process; 2 goes with one line and no output."""
    capsys.readouterr()
    try:
        common.run(lambda: main([str(a) for a in args]))
    except SystemExit as stop:
        told = capsys.readouterr()
        assert stop.code == 2 and told.err.startswith("error: ") and len(told.err.splitlines()) == 1, told.err
        return 2
    return 0


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind, main, status", [
    ("embed", step2_align.main, 2), ("embed", step3_head.main, 2), ("embed", evaluation.main, 2),
    ("align", step3_head.main, 2), ("head", evaluation.main, 2), ("english", evaluation.main, 2),
    ("english", step3_head.main, 0), ("cache", step2_align.main, 2), ("cache", step3_head.main, 2),
    ("cache", evaluation.main, 2)])
def test_a_pickled_artifact_runs_nothing(place, tmp_path, capsys, kind, main, status, form):
    """Step 3 does not read an english head that is there; all else is refused."""
    write_pickle(file_of(place, kind), form, tmp_path / "canary")
    args = ["--lang", "xx", "--out", place, "--device", "cpu", "--amp", "off"]
    assert status_of(main, args, capsys) == status
    assert not (tmp_path / "canary").exists()


def test_a_pickled_artifact_ends_a_script_with_one_line(place, tmp_path):
    write_pickle(place / "embed.pt", "zip", tmp_path / "canary")
    done = script("eval.py", "--out", place)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == "" and not (tmp_path / "canary").exists()


def edit_json(path, **entries):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **entries}))


def spoil_hub(folder, how, canary):
    """Put code beside an encoder's files, and in its configs all that asks for it."""
    code = (f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\n"
            "from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel\n"
            "class Config(XLMRobertaConfig):\n    pass\n"
            "class Model(XLMRobertaModel):\n    config_class = Config\n"
            "class Words(PreTrainedTokenizerFast):\n    pass\n")
    (folder / "stranger.py").write_text(code)
    ask = {"trust_remote_code": True, "auto_map": {"AutoConfig": "stranger.Config", "AutoModel": "stranger.Model",
                                                  "AutoTokenizer": ["stranger.Words", "stranger.Words"]}}
    if how in ("config", "both", "unknown"):
        edit_json(folder / "config.json", **ask, architectures=["Model"])
    if how in ("tokenizer", "both", "unknown"):
        edit_json(folder / "tokenizer_config.json", **ask, tokenizer_class="Words")
    if how == "unknown":                                     # no class of the library to fall back on
        edit_json(folder / "config.json", model_type="stranger")
    if how == "kernel":
        edit_json(folder / "config.json", attn_implementation="stranger/kernel", trust_remote_code=True)


@pytest.mark.parametrize("how", ["config", "tokenizer", "both", "unknown", "kernel"])
def test_code_beside_a_hub_folder_does_not_run(tiny, tmp_path, capsys, monkeypatch, how):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, canary = shutil.copytree(tiny[0], tmp_path / "model"), tmp_path / "canary"
    spoil_hub(model, how, canary)
    args = ["--model", model, "--data", tiny[1], "--task", "mood", "--epochs", "0", "--out", tmp_path / "run"]
    status = status_of(step1_embed.main, args, capsys)
    assert not canary.exists() and (tmp_path / "run").exists() == (status == 0)
    if how not in ("tokenizer", "kernel"):
        transformers.AutoConfig.from_pretrained(model, trust_remote_code=True)
        assert canary.exists(), "the folder must be able to do harm for this to test anything"


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "index"])
def test_pickled_weights_of_a_hub_folder_run_nothing(tiny, tmp_path, capsys, form):
    model, canary = shutil.copytree(tiny[0], tmp_path / "model"), tmp_path / "canary"
    (model / "model.safetensors").unlink()
    if form == "index":
        write_pickle(tmp_path / "weights.bin", "zip", canary)
        edit_json(model / "pytorch_model.bin.index.json", metadata={}, weight_map={"x": "../weights.bin"})
    else:
        write_pickle(model / "pytorch_model.bin", form, canary)
    args = ["--model", model, "--data", tiny[1], "--task", "mood", "--epochs", "0", "--out", tmp_path / "run"]
    assert status_of(step1_embed.main, args, capsys) == 2
    assert not canary.exists() and not (tmp_path / "run").exists()


def bytes_of(tensor):
    return tensor.numpy().tobytes()


def tensor_of(raw):
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def sign(path, content):
    """Write a content as an artifact with the digest that fits, as a stranger can."""
    content.pop("digest", None)
    content["digest"] = digest(content) or "0" * 40
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)                            # for the nested ones
    try:
        torch.save(content, path)
    finally:
        sys.setrecursionlimit(limit)


def digest(content):
    """The digest, or None where there is none, or none within two seconds: see `doubling`."""
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(2)
    try:
        return common.digest(content)
    except (Exception, Hang):
        return None
    finally:
        signal.alarm(0)


def identify(content):
    """Give an embed.pt the fingerprint of what it now holds."""
    with contextlib.suppress(KeyError):
        content["lm"] = digest({name: content[name] for name in common.IDENTITY}) or content["lm"]


@pytest.mark.parametrize("how", ["config", "tokenizer", "both", "unknown", "kernel"])
def test_code_in_the_files_of_embed_does_not_run(place, tmp_path, capsys, monkeypatch, how):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    art, model, canary = torch.load(place / "embed.pt"), tmp_path / "model", tmp_path / "canary"
    model.mkdir()
    for name, content in art["files"].items():
        (model / name).write_bytes(bytes_of(content))
    spoil_hub(model, how, canary)
    art["files"] = {path.name: tensor_of(path.read_bytes()) for path in model.iterdir()}
    identify(art)
    sign(place / "embed.pt", art)
    for reader in (step2_align.main, evaluation.main, step3_head.main):
        status_of(reader, ["--lang", "xx", "--out", place], capsys)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../evil.py", "../../evil.py", "{out}/evil.py", "a/../../evil.py", "..", "", ".",
                                  "config.json/../../evil.py", "evil\0.py", "x" * 300, "sub/config.json", "/"])
def test_file_names_of_embed_stay_in_their_folder(place, tmp_path, capsys, monkeypatch, name):
    (tmp_path / "deep" / "temp").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "deep" / "temp"))
    art = torch.load(place / "embed.pt")
    art["files"] = {name.format(out=tmp_path): tensor_of(b"evil"), **art["files"]}
    identify(art)
    sign(place / "embed.pt", art)
    before = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    status_of(step2_align.main, ["--lang", "xx", "--out", place], capsys)
    assert {path for path in tmp_path.rglob("*") if "run" not in path.parts} == before


# Content with a right digest that is wrong all the same: what, in which file, must be refused
def put(*keys, value):
    """A change of content: the entry under `keys` becomes `value`, or value(old) of a function."""
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value(content[keys[-1]]) if callable(value) else value
    return change


def drop(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]
    return change


def poison(value):
    """One element of a tensor becomes `value`."""
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor
    return change


def config_entry(file="config.json", **entries):
    """Change of a JSON file inside embed.pt."""
    def change(content):
        old = json.loads(bytes_of(content["files"][file]))
        content["files"][file] = tensor_of(json.dumps({**old, **entries}).encode())
    return change


def bulge(tensor):
    """The same few bytes under a huge shape."""
    return torch.zeros(1, dtype=tensor.dtype).expand(10 ** 8)


def deep(_, levels=1000):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def doubling(_):
    """Two references to two references to ...: 2^40 items when walked."""
    value = ["x"]
    for _ in range(40):
        value = [value, value]
    return value


def swap(a, b):
    def change(state):
        state[a], state[b] = state[b], state[a]
        return state
    return change


NAN, INF, HUGE = float("nan"), float("inf"), 10 ** 9
KEY = "encoder.layer.0.output.dense.weight"
REFUSED = {
    "embed": [
        *(drop(name) for name in ("kind", "format", "lm", "state", "files", "pool", "max_len", "data", "task",
                                  "labels", "pair")),
        drop("state", KEY), drop("files", "config.json"), drop("files", "tokenizer.json"),
        put("kind", value=torch.zeros(3)), put("format", value=99), put("lm", value=None), put("pool", value="max"),
        put("max_len", value=-1), put("max_len", value=0), put("max_len", value="48"), put("max_len", value=2.5),
        put("data", value=3), put("data", value=None), put("data", value="a\0b"), put("data", value="\ud800"),
        put("data", value="x" * 300), put("task", value=["mood"]),
        put("labels", value=None), put("labels", value="good"), put("labels", value=["good"]),
        put("labels", value=["good", "good"]), put("labels", value=[0, 1]), put("labels", value=["bad", "go\nod"]),
        put("labels", value=["a"] * 3), put("labels", value={"bad": 0, "good": 1}), put("pair", value="no"),
        put("files", "tokenizer.json", value=lambda t: t[:100]), put("files", "config.json", value="{}"),
        put("files", "config.json", value=lambda t: t.float()), put("files", value=[1]), put("files", 7, value=1),
        put("state", KEY, value=lambda t: t.T), put("state", KEY, value=lambda t: t[:1]),
        put("state", KEY, value=lambda t: t.to(torch.complex64)), put("state", KEY, value=poison(NAN)),
        put("state", KEY, value=poison(INF)), put("state", KEY, value=bulge), put("state", KEY, value=None),
        put("state", KEY, value=lambda t: t.to_sparse()), put("state", KEY, value=lambda t: t.to("meta")),
        put("state", KEY, value=lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
        put("state", "more", value=torch.zeros(3)), put("state", 5, value=torch.zeros(3)),
        put("state", value=deep), put("history", value=doubling), put("history", value=deep),
        *(config_entry(**entry) for entry in (
            {"vocab_size": HUGE}, {"hidden_size": HUGE}, {"num_hidden_layers": HUGE}, {"intermediate_size": HUGE},
            {"max_position_embeddings": HUGE}, {"hidden_size": 0}, {"model_type": "t5"}, {"model_type": "gpt9"},
            {"num_hidden_layers": 1}, {"layer_norm_eps": -1e9}, {"hidden_act": "boom"}, {"return_dict": False},
            {"pad_token_id": HUGE}, {"vocab_size": 3})),
        config_entry("tokenizer_config.json", pad_token=None),
    ],
    "align": [
        *(drop(name) for name in ("kind", "lm", "lang", "arch", "n", "reverse", "aligner", "state", "report",
                                  "residuals", "seconds", "cost")),
        put("residuals", value=None), put("residuals", value=lambda t: t[:, :8]), put("residuals", value=poison(NAN)),
        put("residuals", value=lambda t: t[0]), put("residuals", value=bulge),
        *(put("aligner", name, value=value) for name in ("dim", "depth", "hidden")
          for value in (HUGE, -1, "16", 2.5, [16], 8, 30_000)),
        put("aligner", "arch", value="cnn"), put("aligner", "dropout", value=7.0), put("aligner", value=[1]),
        put("aligner", "more", value=1), put("arch", value="cnn"),
        put("n", value="90"), put("n", value=-5), put("lang", value=None), put("seconds", value=[1.0]),
        put("seconds", "encode", value="soon"), put("cost", value={"accuracy": 1.0}), put("cost", value=3),
        put("report", value=None), put("report", "A", value=1), drop("report", "A", "r2"),
        put("reverse", value=torch.zeros(2)), put("state", value=None), drop("state", "mean_x"),
        put("state", "f.0.weight", value=poison(NAN)), put("state", "f.0.weight", value=poison(INF)),
        put("state", "mean_x", value=poison(NAN)), put("state", "scale_x", value=lambda t: 0 * t),
        put("state", "f.0.weight", value=bulge), put("state", "f.0.weight", value=lambda t: t[:8]),
        put("state", "mean_x", value=lambda t: t.to_sparse()), put("state", "mean_x", value=lambda t: t[None]),
        put("state", value=swap("f.0.weight", "mean_x")), put("state", 3, value=torch.zeros(2)),
    ],
    "head": [
        *(drop(name) for name in ("kind", "format", "lm", "method", "lang", "arch", "n", "labels", "pair", "heads",
                                  "aligner", "state", "alignment", "seconds", "cost")),
        *(drop("heads", name) for name in ("weight", "bias", "mean", "scale")),
        *(put("heads", name, value=value) for name in ("weight", "bias", "mean", "scale") for value in (
            None, bulge, poison(NAN), poison(INF), lambda t: t[..., :1], lambda t: t[:0], lambda t: t[None],
            lambda t: t.to(torch.complex64), lambda t: t.to_sparse(), lambda t: t.tolist())),
        put("heads", "scale", value=lambda t: 0 * t), put("heads", "weight", value=lambda t: t.mT),
        put("heads", value=None), put("heads", "weight", value=lambda t: t + 3e38), put("labels", value=None),
        put("labels", value=["bad", "good", "x" * 3000]), put("labels", value=["good", "bad"]),
        put("method", value="magic"), put("method", value=7), put("lang", value=3), put("lang", value="en"),
        put("arch", value="cnn"), put("n", value="90"), put("n", value=-3), put("pair", value=1.5),
        put("alignment", value=None), put("alignment", "A", "r2", value="high"), drop("alignment", "held_out"),
        put("alignment", "held_out", value="9"), put("cost", value={"accuracy": 1.0}), put("cost", value=[1]),
        put("cost", "sentences", value=[1]), put("seconds", value={"head": "soon"}), put("seconds", value=9),
        put("dev", value=doubling), put("dev", value=deep),
    ],
    "english": [put("lang", value="yy"), put("method", value="native")],
    "back": [
        put("aligner", value=None), put("state", value=None), put("state", "W", value=poison(NAN)),
        put("aligner", "dim", value=HUGE), put("aligner", "dim", value=30_000), drop("aligner", "arch"),
        put("method", value="langalign2"),
    ],
    "cache": [
        *(drop(name) for name in ("kind", "lm", "keys", "embeddings", "seconds")),
        put("keys", value=lambda t: t[:-16]), put("keys", value=lambda t: t[:-1]), put("keys", value=lambda t: t[:0]),
        put("keys", value=lambda t: t.float()), put("keys", value="0" * 32), put("keys", value=bulge),
        *(put("embeddings", value=value) for value in (
            None, bulge, poison(NAN), poison(INF), lambda t: t[:-1], lambda t: t[:, :1], lambda t: t[:, :8],
            lambda t: t[..., None], lambda t: t.flatten(), lambda t: t.to(torch.complex64), lambda t: t.to_sparse(),
            lambda t: t.to("meta"), lambda t: t.T, lambda t: t[:0])),
        put("seconds", value="1"), put("seconds", value=None), put("seconds", value=[1.0]),
    ]}
CASES = [(kind, number) for kind, changes in REFUSED.items() for number in range(len(changes))]


@pytest.mark.parametrize("kind, number", CASES)
def test_a_strangers_content_of_wrong_form_is_refused(place, good, kind, number):
    """By the first reader; a second may not need what is wrong, then its result is right."""
    art = torch.load(file_of(place, kind))
    REFUSED[kind][number](art)
    if kind == "embed" and "lm" in art and art["lm"]:
        identify(art)
        follow(place, art["lm"])
    sign(file_of(place, kind), art)
    assert judge(READERS[kind][0], place)[0] == "refused", "taken for good"
    if number % 4 == 0 and len(READERS[kind]) > 1:           # of every fourth: time
        status, found = judge(READERS[kind][1], place)
        assert status == "refused" or same(found, good[READERS[kind][1]])


HARMLESS = {
    "embed": [put("more", value=3), put("max_len", value=HUGE), put("config", value={}), put("seconds", value=1e9),
              put("state", KEY, value=lambda t: t.clone().requires_grad_())],
    "align": [put("more", value="x"), put("seconds", "encode", value=0), put("format_note", value=[None])],
    "head": [put("more", value=torch.zeros(2)), put("dev", value=[0.5]), put("torch", value="9.9"),
             put("heads", "weight", value=lambda t: t.mT.contiguous().mT)],
    "cache": [put("more", value=None), put("seconds", value=5)]}


@pytest.mark.parametrize("kind, number", [(kind, i) for kind, them in HARMLESS.items() for i in range(len(them))])
def test_a_harmless_change_changes_nothing(place, good, kind, number):
    art = torch.load(file_of(place, kind))
    HARMLESS[kind][number](art)
    if kind == "embed":
        identify(art)
        follow(place, art["lm"])
    sign(file_of(place, kind), art)
    for reader in READERS[kind][:2]:
        outcome, result = judge(reader, place)
        assert outcome == "done" and same(result, good[reader]), result


@pytest.mark.parametrize("opcodes", [b"cbuiltins\nbytearray\nJ\x00\x00\x00\x20\x85R.",       # 512 MiB each
                                     b"ctorch\nFloatStorage\nJ\x00\x00\x00\x08\x85R.",
                                     b"ctorch\nFloatTensor\nJ\x00\x00\x00\x08\x85R."],
                         ids=lambda code: code.split()[1].decode())
def test_a_pickle_that_asks_for_memory_is_refused(place, opcodes):
    """Also where the call is one of those that torch allows."""
    rewrite(place / "embed.pt", b"\x80\x02" + opcodes)
    assert judge("step2", place)[0] == "refused"


def test_a_compressed_archive_is_refused(place):
    """A file of half a megabyte would take half a gigabyte."""
    pickled = b"\x80\x02}X\x06\x00\x00\x00digestX" + (500 << 20).to_bytes(4, "little") + bytes(500 << 20) + b"s."
    rewrite(place / "embed.pt", pickled, zipfile.ZIP_DEFLATED)
    assert (place / "embed.pt").stat().st_size < 1 << 20
    del pickled
    assert judge("step2", place)[0] == "refused"


def rewrite(path, pickled, compression=zipfile.ZIP_STORED):
    """An archive as of torch.save, with another pickle in it."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, raw in parts.items():
            new.writestr(name, pickled if name.endswith("/data.pkl") else raw)


# 2,000 mutations at random
def mutated_bytes(rng, raw):
    """Bits flipped, a part cut off, removed, doubled, overwritten or put elsewhere."""
    how, raw = rng.choice(["flip", "flips", "cut", "remove", "double", "overwrite", "move"]), bytearray(raw)
    start = rng.choice([rng.randrange(len(raw)), rng.randrange(min(2000, len(raw))),
                        max(0, len(raw) - 1 - rng.randrange(2000))])     # also where the archive's tables are
    size = rng.choice([1, 4, 16, 64, 1000])
    if how.startswith("flip"):
        for place in [start] + [rng.randrange(len(raw)) for _ in range(20 if how == "flips" else 0)]:
            raw[place] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del raw[start:]
    elif how == "remove":
        del raw[start:start + size]
    elif how == "double":
        raw[start:start] = raw[start:start + size]
    elif how == "overwrite":
        raw[start:start + size] = rng.randbytes(len(raw[start:start + size]))
    else:
        part = raw[start:start + size]
        del raw[start:start + size]
        raw[rng.randrange(len(raw) + 1):0] = part
    return bytes(raw)


ODD = [None, True, False, -1, 0, 1, 2, 7, HUGE, 10 ** 18, 2 ** 70, 0.5, -0.0, NAN, INF, 1e308, "", "x", "16", "fc",
       "a\nb", "a\0b", "\ud800", "x" * 3000, [], {}, [None], ["bad", "good"], {"A": 1}, (1, 2), b"raw", 1j,
       torch.zeros(0), torch.zeros(()), torch.zeros(3), torch.tensor(NAN), torch.ones(16, 16), torch.ones(16),
       torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(3).to_sparse(), torch.zeros(3, device="meta"),
       torch.zeros(1).expand(10 ** 8), torch.arange(5), torch.tensor([True]), torch.Size([3]), torch.float16]
TENSORS = [lambda t: t.half(), lambda t: t.double(), lambda t: t.long(), lambda t: t.bool(), lambda t: t[:0],
           lambda t: t[None], lambda t: t[..., None], lambda t: t.flatten(), lambda t: t.T if t.ndim == 2 else -t,
           lambda t: t[:-1] if t.ndim else t + 1, lambda t: torch.cat([t, t]) if t.ndim else t * 0, lambda t: t * 0,
           lambda t: t * 1e38 if t.is_floating_point() else t, lambda t: t.flip(0) if t.ndim else -t, bulge,
           lambda t: t.to(torch.complex64), poison(NAN), poison(INF), lambda t: t.to_sparse(), lambda t: t.to("meta"),
           lambda t: t[:1].expand_as(t) if t.ndim else t, torch.nn.Parameter, lambda t: t.tolist()]


def places(value, path=()):
    """Paths of all entries of nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


def mutate(rng, content):
    """One change somewhere in nested dicts and lists: in place."""
    paths = places(content)
    near, remote = rng.choice(paths), rng.choice(paths)
    (*path, key), (*other, far) = near, remote
    home, away = content, content
    for step in path:
        home = home[step]
    for step in other:
        away = away[step]
    how = rng.choice(["odd", "odd", "drop", "swap", "more", "copy", "tensor", "tensor", "tensor"])
    if how == "drop":
        del home[key]
    elif how == "swap" and near[:len(remote)] != remote and remote[:len(near)] != near:      # nothing into itself
        home[key], away[far] = away[far], home[key]
    elif how == "copy":
        home[key] = copy.deepcopy(away[far])
    elif how == "more" and isinstance(home, dict):
        home[rng.choice(["more", 5, "", None, "kind"])] = copy.deepcopy(rng.choice(ODD))
    elif how == "tensor" and isinstance(home[key], torch.Tensor) and home[key].dtype != torch.uint8:
        with contextlib.suppress(RuntimeError, IndexError):  # one that torch has not for it, or it is empty
            home[key] = rng.choice(TENSORS)(home[key])
    else:
        home[key] = copy.deepcopy(rng.choice(ODD))


def mutate_files(rng, files):
    """A change in a JSON file or in the bytes of a file inside embed.pt."""
    name = rng.choice(sorted(files))
    raw = bytes_of(files[name])
    if rng.random() < 0.8 and name.endswith(".json"):
        content = json.loads(raw)
        plain = [odd for odd in ODD if isinstance(odd, (str, int, float, list, dict, type(None)))]
        for _ in range(rng.choice([1, 1, 2])):
            *path, key = rng.choice([place for place in places(content) if "vocab" not in place] or [()])
            home = content
            for step in path:
                home = home[step]
            home[key] = copy.deepcopy(rng.choice(plain))
        raw = json.dumps(content).encode()
    else:
        raw = mutated_bytes(rng, raw)
    files[name] = tensor_of(raw or b" ")


def mutation(number, out):
    """Spoil one file of a run folder, always the same way for a number; returns (kind, only its bytes?)."""
    rng = random.Random(number)
    kind, raw = rng.choice(list(FILES)), rng.random() < 0.4
    path = file_of(out, kind)
    if raw:
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
        return kind, True
    art = torch.load(path)
    if kind == "embed" and rng.random() < 0.5:
        mutate_files(rng, art["files"])
    else:
        for _ in range(rng.choice([1, 1, 1, 3])):
            mutate(rng, art)
    if kind == "embed" and rng.random() < 0.8:
        identify(art)
        follow(out, art.get("lm"))
    sign(path, art)
    return kind, False


def follow(out, lm):
    """Give the other artifacts of a run folder the fingerprint of a spoilt LM."""
    for kind in ("align", "rev", "head", "english", "back"):
        art = torch.load(file_of(out, kind))
        sign(file_of(out, kind), {**art, "lm": lm})


@pytest.mark.parametrize("block", range(-(-MUTATIONS // 40)))
def test_mutated_artifacts_give_an_error_or_a_sound_result(finished, good, tmp_path, monkeypatch, block):
    quick(monkeypatch)
    wrong, refused = [], 0
    for number in range(40 * block, min(40 * block + 40, MUTATIONS)):
        out = shutil.copytree(finished, tmp_path / "run")
        kind, raw = mutation(number, out)
        reader = random.Random(number).choice(READERS[kind])
        try:
            outcome, result = judge(reader, out)
            refused += outcome == "refused"
            if raw and outcome == "done":
                assert same(result, good[reader]), "another result from damaged bytes"
        except KeyboardInterrupt:
            raise
        except BaseException as err:                         # Rust's panics and the alarm are no Exception
            wrong.append(f"mutation {number}, {kind} read by {reader}: {type(err).__name__}: {str(err)[:200]}")
        shutil.rmtree(out)
    assert not wrong, "\n".join(wrong)
    assert refused > 10, "the mutations must do harm for this to test anything"
