"""data/export.py: the folder it writes labels as the product does, on tiny models."""

import importlib.util
import json
import re
import shutil
import sys
import unicodedata
from functools import partial

import pytest
import torch
from conftest import ROOT, few_steps, main, make_encoder

spec = importlib.util.spec_from_file_location("export", ROOT / "data/export.py")
export = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export)
from common import UserError, encode, find, load_encoder, load_task
from eval import classify, logits_of

KO = "--lang", "ko"


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
        where = "--lang", "xx", "--via", "ko", "--out", out, "--arch", "inside"
        main("step3_head.py", *where)
        main("step3_head.py", *KO, "--out", out, "--method", "mixed")
        (out / "unlabelled.txt").write_text("the film\nthe food\n", encoding="utf-8")
        main(
            "step3_head.py",
            *KO,
            "--out",
            out,
            "--method",
            "centred",
            "--unlabelled",
            out / "unlabelled.txt",
        )
    return out


KINDS = [{"method": method} for method in ("english", "centred", "native", "translated", "mixed")]
KINDS += [{"arch": "fc"}, {"residuals": True}, {"arch": "inside"}]
KINDS += [{"method": "rev", "arch": a} for a in ("fc", "ae", "linear", "procrustes", "shift")]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_head_round_trips(heads, tmp_path, kind, capsys):
    flags = [part for name, value in kind.items() for part in (f"--{name}", value)]
    folder = ship(heads, tmp_path / "shipped", *[flag for flag in flags if flag is not True])
    assert "differ: 0 of 200 ko test rows" in capsys.readouterr().out
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


def blocks(folder):
    """Return the python blocks of the card, to run in the folder's parent: sentence-transformers, transformers."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def pair(world, tmp_path_factory):
    """Return the folder shipped from a BERT of a pair task, with cls pooling, an aligner and two-text tokens."""
    path = tmp_path_factory.mktemp("pair")
    make_encoder(path / "bert", "bert")
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch, 50)
        where = "--data", world.data, "--task", "nli", "--out", path / "runs"
        main("step1_embed.py", *where, "--model", path / "bert", "--epochs", 0, "--pool", "cls")
        main("step2_align.py", *KO, "--method", "rev", "--out", path / "runs")
        main("step3_head.py", *KO, "--method", "rev", "--out", path / "runs")
        patch.chdir(path)
        ship("runs", path / "shipped", "--method", "rev", "--license", "mit")
    return path / "shipped"


def test_card_of_a_pair_task(pair, monkeypatch):
    text = (pair / "README.md").read_text(encoding="utf-8")
    assert text.startswith(
        '---\nlanguage: ["ko"]\nlicense: mit\npipeline_tag: text-classification\n'
    )
    assert "# nli: contradiction, entailment, neutral" in text and "| ko | yes | - | - |" in text
    assert "python step2_align.py --lang ko --method rev --arch fc --n" in text
    monkeypatch.chdir(pair.parent)
    scope = {}
    exec(blocks(pair)[1], scope)  # noqa: S102  # the card's lines for transformers alone
    assert torch.allclose(
        scope["probabilities"], export.Shipped(pair).label([("a text", "its text_b")])
    )


def test_card_lists_languages_and_figures(heads, tmp_path):
    main("eval.py", *KO, "--out", heads)
    text = (ship(heads, tmp_path / "s", "--arch", "inside") / "README.md").read_text(
        encoding="utf-8"
    )
    assert re.search(r"\| ko \| yes \| 200 \| \d+\.\d\d% \(", text) and "# license" in text
    text = (
        ship(heads, tmp_path / "x", "--lang", "xx", "--via", "ko", "--arch", "inside") / "README.md"
    ).read_text()
    assert 'language: ["ko", "xx"]' in text and "| xx | no | - | - |" in text


def test_sentence_transformers(heads, pair, tmp_path, monkeypatch):
    st = pytest.importorskip("sentence_transformers")
    folder = ship(heads, tmp_path / "shipped", "--arch", "inside")
    texts = [text for (text,) in load_task(load_encoder(heads)[1], "ko", "test")[0]]
    found = torch.tensor(st.SentenceTransformer(str(folder)).encode(texts))
    assert torch.allclose(
        found, export.Shipped(folder).label([(text,) for text in texts]), atol=1e-5
    )
    monkeypatch.chdir(pair.parent)
    exec(blocks(pair)[0], scope := {})  # noqa: S102
    wanted = export.Shipped(pair).label([("a text", "its text_b")])
    assert torch.allclose(torch.tensor(scope["probabilities"]), wanted, atol=1e-5)


def test_onnx(heads, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = ship(heads, tmp_path / "shipped", "--method", "rev", "--onnx")
    shipped, session = export.Shipped(folder), ort.InferenceSession(folder / "onnx/model.onnx")
    for count in (1, 5):
        texts = load_task(load_encoder(heads)[1], "ko", "test")[0][:count]
        inputs = {name: value.numpy() for name, value in shipped.tokenize(texts).items()}
        found = torch.tensor(session.run(None, inputs)[0])
        assert torch.allclose(found, shipped.label(texts), atol=1e-4)


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
