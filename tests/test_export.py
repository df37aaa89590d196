"""data/export.py: the folder it writes labels as the product does, on tiny models."""

import json
import re
import shutil
import sys
import threading
import unicodedata
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, few_steps, main, make_encoder, step1

import export
from common import UserError, encode, find, load_encoder, load_task
from eval import classify, logits_of

KO = "--lang", "ko"
UNSEEN = "--lang", "xx", "--via", "ko", "--arch", "inside"
README = (ROOT / "data/README.md").read_text(encoding="utf-8")
SINGLE, PAIRS, ONNX, SERVICE, ELSEWHERE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def ship(out, to, *flags):
    """Run export.py for Korean in this process. Return the folder."""
    argv = ["export.py", *KO, "--out", str(out), "--to", str(to), *map(str, flags)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        export.main()
    return to


@pytest.fixture(scope="module")
def heads(runs, tmp_path_factory):
    """Return a run folder with every kind of aligner: that of `runs`, closed forms, AE and a pooled one."""
    out = shutil.copytree(runs, tmp_path_factory.mktemp("heads") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch, 50)
        for arch in ("ae", "linear", "procrustes", "shift"):
            for script in ("step2_align.py", "step3_head.py"):
                main(script, *KO, "--out", out, "--arch", arch, "--method", "rev")
        main("step3_head.py", *UNSEEN, "--out", out)
        main("step3_head.py", *KO, "--out", out, "--method", "mixed")
        (out / "unlabelled.txt").write_text("the film\nthe food\n", encoding="utf-8")
        centred = "--method", "centred", "--unlabelled", out / "unlabelled.txt"
        main("step3_head.py", *KO, "--out", out, *centred)
    return out


KINDS = [{"method": method} for method in ("english", "centred", "native", "translated", "mixed")]
KINDS += [{"arch": "fc"}, {"residuals": True}, {"arch": "inside"}]
KINDS += [{"method": "rev", "arch": a} for a in ("fc", "ae", "linear", "procrustes", "shift")]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_head_round_trips(heads, tmp_path, kind, capsys):
    flags = [part for name, value in kind.items() for part in (f"--{name}", value)]
    folder = ship(heads, tmp_path / "shipped", *[flag for flag in flags if flag is not True])
    assert "differ: 0 of 200 ko rows, with torch.float" in capsys.readouterr().out
    texts, _ = load_task(load_encoder(heads)[1], "ko", "test")
    labels, _ = classify(heads, texts, "ko", **kind)
    encoder, _ = load_encoder(heads)
    head = find(heads, "head", encoder.digest, "ko", **kind)
    wanted = logits_of(head, encoder, partial(encode, encoder), texts).mean(0).softmax(1)
    # the folder's tokenizer composes text, as the product does
    found = export.Shipped(folder).label([(unicodedata.normalize("NFD", t),) for (t,) in texts])
    assert torch.allclose(found, wanted, atol=0.01)
    names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert [names[i] for i in found.argmax(1)] == labels
    assert [path.name for path in tmp_path.iterdir()] == ["shipped"]
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1


def read_card(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pair(world, tmp_path_factory):
    """Return the folder shipped from a BERT of a pair task, with cls pooling, an aligner and two-text tokens."""
    path = tmp_path_factory.mktemp("pair")
    make_encoder(path / "bert", "bert")
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch, 50)
        step1(path / "bert", world.data, path / "runs", "--pool", "cls", task="nli")
        main("step2_align.py", *KO, "--method", "rev", "--out", path / "runs")
        main("step3_head.py", *KO, "--method", "rev", "--out", path / "runs")
        patch.chdir(path)
        ship("runs", path / "shipped", "--method", "rev", "--license", "mit")
    return path / "shipped"


def test_cards(heads, pair, tmp_path):
    card = read_card(pair)
    assert card.startswith('---\nlanguage: ["ko"]\nlicense: mit\npipeline_tag: text-class')
    assert "python step2_align.py --lang ko --method rev --arch fc --n" in card
    before = read_card(ship(heads, tmp_path / "before", "--arch", "inside"))
    main("eval.py", *KO, "--out", heads)
    card = read_card(ship(heads, tmp_path / "s", "--arch", "inside"))
    assert "license: unknown" in card
    assert re.search(r"\| ko \| 200 test rows \| \d+\.\d\d% \|", card)
    assert "test rows |" not in before  # eval.py had not judged these weights
    assert 'language: ["ko", "xx"]' in read_card(ship(heads, tmp_path / "x", *UNSEEN))


def test_sentence_transformers_as_documents_show(heads, pair, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sentence_transformers")
    ship(heads, tmp_path / "shipped", "--arch", "inside")
    monkeypatch.chdir(tmp_path)
    exec(SINGLE, scope := {})  # noqa: S102
    texts = ["the food was good", "the room was dark"]
    labels, _ = classify(heads, texts, "ko", arch="inside")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == labels
    wanted = export.Shipped("shipped").label([(text,) for text in texts])
    assert torch.allclose(torch.tensor(scope["probabilities"]), wanted, atol=1e-5)

    monkeypatch.chdir(pair.parent)
    [block] = re.findall(r"```python\n(.*?)```", read_card(pair), re.DOTALL)
    shown = ("a text", "its text_b"), ("the film was good", "the film was bad")
    for code, texts in zip((block, PAIRS), shown):
        exec(code, scope := {})  # noqa: S102
        wanted = export.Shipped(pair).label([texts])
        assert torch.allclose(torch.tensor(scope["probabilities"]), wanted, atol=1e-5)


def test_onnx(heads, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ship(heads, tmp_path / "shipped", "--method", "rev", "--onnx")
    monkeypatch.chdir(tmp_path)
    exec(ONNX, scope := {})  # noqa: S102
    shipped, session = export.Shipped("shipped"), scope["session"]
    wanted = shipped.label([("the food was good",), ("the room",)])
    assert torch.allclose(torch.tensor(scope["probabilities"]), wanted, atol=1e-4)
    one = {name: value.numpy() for name, value in shipped.tokenize([("the",)]).items()}
    assert session.run(None, one)[0].shape == (1, 2)  # another batch size and length


def test_refusals_leave_nothing(heads, tmp_path, monkeypatch):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        ship(heads, full)
    with pytest.raises(UserError, match="step2_align|step3_head"):
        ship(heads, tmp_path / "new", "--n", 7)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        ship(heads, tmp_path / "new", "--onnx")
    monkeypatch.setattr(export.Shipped, "label", lambda self, texts: torch.zeros(len(texts), 2))
    with pytest.raises(UserError, match="does not label"):
        ship(heads, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and len(list(full.iterdir())) == 1


def test_readme_serve_it(heads, monkeypatch):
    monkeypatch.chdir(heads.parent)
    code = SERVICE.replace("8000", "0").replace(".serve_forever()", "")
    exec(code.replace("\nThreadingHTTP", "\nserver = ThreadingHTTP"), scope := {})  # noqa: S102
    server = scope["server"]
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(content):
        url = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(url, json.dumps(content).encode()) as answer:
            return json.load(answer)

    parts = [["the food was good", "the room was dark"], ["the room was dark"]] * 8
    with ThreadPoolExecutor(4) as pool:  # the classifier serves several threads
        answers = list(pool.map(ask, parts))
    for texts, answer in zip(parts, answers, strict=True):
        labels, probabilities = classify(heads, texts, "ko", arch="inside")
        assert answer["labels"] == labels
        assert torch.allclose(torch.tensor(answer["probabilities"]), probabilities)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask([["a", "pair"]])
    server.shutdown()
    server.server_close()


def test_readme_embeddings_from_elsewhere():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    task = rng.normal(size=(300, 16)) + 2 * y[:, None]  # float64, as an API's numbers are
    y = np.where(y, "positive", "negative")
    pairs = {"english": task[:200], "target": 3 - task[:200]}
    scope = pairs | {"task": task, "y": y, "test": 3 - task}
    exec(ELSEWHERE, scope)  # noqa: S102
    assert (np.array(scope["labels"]) == y).mean() > 0.95
