"""Fixtures: a tiny random encoder with tiny data (milliseconds); one toy world and, on it, the README's commands,
made by chain.py beside the other tests."""
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")        # for torch, here and in scripts: chain.py has the other core
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data")]

import eval as evaluation  # noqa: E402
import step1_embed  # noqa: E402
import step2_align  # noqa: E402
import step3_head  # noqa: E402

SCRIPTS = {"step1_embed.py": step1_embed, "step2_align.py": step2_align, "step3_head.py": step3_head,
           "eval.py": evaluation}
ELSEWHERE = ("data/real", "data/mine", "runs/reviews", "runs/nli", "runs/sentiment", "runs/cls", "runs/native-ko", "$")
WORDS = "the a film food room was is not very good bad slow fast kind dark warm old new long short".split()
TARGET = [f"x{word}" for word in WORDS]


def write(path, header, rows):
    """Write a tab-separated file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def script(name, *args, cwd=ROOT, text=None):
    """Run a script as a user does; returns the finished process."""
    return subprocess.run([sys.executable, name, *map(str, args)], cwd=cwd, input=text, capture_output=True,
                          text=True, timeout=300)


def make_encoder(folder, words, seed=0):
    """A random XLM-R of 16 dimensions over a word vocabulary, saved in fp16 as real files often are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
                            unk_token="<unk>", mask_token="<mask>", model_max_length=48,
                            model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)
    torch.manual_seed(seed)
    XLMRobertaModel(XLMRobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, bos_token_id=0,
        pad_token_id=1, eos_token_id=2, intermediate_size=32, max_position_embeddings=50, type_vocab_size=1,
        initializer_range=0.3), add_pooling_layer=False).half().save_pretrained(folder)
    return folder


def sentence(rng, words):
    return " ".join(rng.choice(words) for _ in range(rng.randrange(3, 12)))


def make_data(root, rng):
    """Task `mood`: good and bad; task `pair`: three labels. Languages en and xx (each word with an x in front)."""
    def mirror(text):
        return " ".join("x" + word for word in text.split())

    for task, labels, width in (("mood", ["bad", "good"], 1), ("pair", ["e", "c", "n"], 2)):
        columns = ["text", "text_b"][:width]
        for split, count in (("train", 90), ("dev", 30), ("test", 40)):
            rows = [[rng.choice(labels), *(sentence(rng, WORDS) for _ in columns)] for _ in range(count)]
            write(root / task / "en" / f"{split}.tsv", ["label", *columns], rows)
            if split == "train":
                write(root / task / "xx" / "translated.tsv",
                      ["label", *columns, *(c.replace("text", "translation") for c in columns)],
                      [[*row, *map(mirror, row[1:])] for row in rows])
            rows = [[rng.choice(labels), *(sentence(rng, TARGET) for _ in columns)] for _ in range(count)]
            write(root / task / "xx" / f"{split}.tsv", ["label", *columns], rows)
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(encoder folder, data root) of the tiny random world."""
    base = tmp_path_factory.mktemp("tiny")
    return make_encoder(base / "encoder", WORDS + TARGET), make_data(base / "data", random.Random(0))


def step1(tiny, out, *args):
    """Step 1 on the tiny world in fp32 on the CPU; returns the run folder."""
    step1_embed.main(["--model", str(tiny[0]), "--data", str(tiny[1]), "--task", "mood", "--epochs", "0",
                      "--out", str(out), "--device", "cpu", "--amp", "off", *map(str, args)])
    return out


def go(out, *lines):
    """Run commands such as "step2_align --lang xx --arch ae" in a run folder."""
    for line in lines:
        name, *args = line.split()
        SCRIPTS[f"{name}.py"].main([*args, "--out", str(out)])


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    """Run folder of the tiny world after step 1 (no tuning); heads get few steps, which is enough here."""
    monkeypatch.setattr(step3_head, "STEPS", 40)
    return step1(tiny, tmp_path / "run")


@pytest.fixture(scope="session")
def swept(tiny, tmp_path_factory):
    """Run folder with every method for xx, two n, variants and three aligner seeds; for yy langalign only."""
    base = tmp_path_factory.mktemp("sweep")
    shutil.copytree(tiny[1], base / "data")
    (base / "data" / "mood" / "yy").mkdir()
    for file in ("test.tsv", "translated.tsv"):
        shutil.copy(base / "data" / "mood" / "xx" / file, base / "data" / "mood" / "yy")
    out = step1((tiny[0], base / "data"), base / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step3_head, "STEPS", 40)
        go(out, "step2_align --lang yy", "step3_head --lang yy", "step3_head --lang xx --method native",
           "step3_head --lang xx --method translated",
           "step2_align --lang xx --reverse", "step3_head --lang xx --method rev")
        for variant in ("--arch shift", "--n 40", "", "--seed 1", "--seed 2", "--arch ae",
                        "--plain --noise 0.3"):
            go(out, f"step2_align --lang xx {variant}", "step3_head --lang xx")    # the newest, this one
    return out


@pytest.fixture
def sweep(swept, tmp_path, monkeypatch):
    """A copy of `swept`, to change."""
    monkeypatch.setattr(step3_head, "STEPS", 40)
    return shutil.copytree(swept, tmp_path / "sweep")


BESIDE = pytest.StashKey()


def pytest_collection_finish(session):
    """Start chain.py beside the tests if one of them needs what it makes."""
    wanted = {name for item in session.items for name in item.fixturenames}
    if "toy_world" in wanted and not session.config.option.collectonly:
        place = tempfile.TemporaryDirectory()
        with open(f"{place.name}/log", "w") as log:
            child = subprocess.Popen([sys.executable, ROOT / "tests" / "chain.py", place.name,
                                      *["--toy-only"] * ("chain" not in wanted)],
                                     stdout=log, stderr=log)
        session.config.stash[BESIDE] = child, place


def pytest_sessionfinish(session):
    child, place = session.config.stash.get(BESIDE, (None, None))
    if child:
        child.kill()
        child.wait()
        place.cleanup()


@pytest.fixture(scope="session")
def toy_world(pytestconfig):
    """data/toy.py's world, as chain.py makes it."""
    child, place = pytestconfig.stash[BESIDE]
    assert child.wait() == 0, Path(place.name, "log").read_text()[-3_000:]
    return Path(place.name, "data", "toy")


@pytest.fixture(scope="session")
def chain(toy_world):
    """Run folder after all of README.md's commands on the toy world, run as printed in a folder of their own."""
    return toy_world.parent.parent / "runs"


def readme_blocks(kind):
    """The fenced blocks of README.md in one language."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


def commands(text):
    """[(script, arguments)] of the `python` commands in shell text, cut at && and redirections."""
    found = re.findall(r"(?:^|&& )python (\S+\.py)([^&>\n#]*)", text, re.M)
    return [(script, shlex.split(rest)) for script, rest in found]


def toy_commands(text):
    """Those of `commands` that run the four scripts on the toy world."""
    return [(name, args) for name, args in commands(text)
            if name in SCRIPTS and not any(word in " ".join(args) for word in ELSEWHERE)]
