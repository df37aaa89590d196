"""Silent failures, each provoked: the scripts must name them, and stay quiet where nothing is wrong."""
import random
import shutil
from pathlib import Path

import eval as evaluation
import pytest
import torch
from conftest import TARGET, WORDS, go, sentence, step1, write

import common
from common import UserError, load_encoder

HEADER = ["label", "text", "translation"]


def bag_of_words(encoder, texts, *_, **__):
    """In common.encode's place: the sum of a text's word vectors, for the words of xx rotated and shifted."""
    def normal(*shape, seed):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def vector(word):
        english = normal(16, seed=WORDS.index(word.removeprefix("x")))
        turn = torch.linalg.qr(normal(16, 16, seed=99))[0]
        return english @ turn + 0.5 if word.startswith("x") else english

    return torch.stack([sum(vector(word) for word in text[0].split()) for text in texts])


@pytest.fixture
def pairs(tiny, tmp_path):
    """(data root, rows of 600 pairs) of a task whose run folder is tmp_path/run, after step 1."""
    rng, data = random.Random(1), tmp_path / "data"
    shutil.copytree(tiny[1], data)
    rows = [["good", text, " ".join("x" + word for word in text.split())]
            for text in (sentence(rng, WORDS) for _ in range(600))]
    step1((tiny[0], data), tmp_path / "run")
    return data, rows


def align(pairs, capsys, rows, *flags):
    """What step 2 prints on translated.tsv of these rows."""
    write(pairs[0] / "mood" / "xx" / "translated.tsv", HEADER, rows)
    capsys.readouterr()
    go(pairs[0].parent / "run", " ".join(["step2_align --lang xx --arch linear", *flags]))
    return capsys.readouterr().out


def test_translations_misaligned_by_one_row(pairs, capsys, monkeypatch):
    monkeypatch.setattr(common, "encode", bag_of_words)
    rows = pairs[1]
    assert "warning" not in align(pairs, capsys, rows)
    shifted = [[*row[:2], other[2]] for row, other in zip(rows, rows[1:] + rows[:1])]
    said = align(pairs, capsys, shifted)
    assert "chance: is translated.tsv shifted by a row?" in said and "no better than the mean" in said


@pytest.mark.parametrize("flags", ["", "--reverse"])
def test_english_and_translation_swapped(pairs, capsys, monkeypatch, flags):
    monkeypatch.setattr(common, "encode", bag_of_words)
    assert "swapped" not in align(pairs, capsys, pairs[1], flags)
    assert "are the columns swapped?" in align(pairs, capsys, [[a, c, b] for a, b, c in pairs[1]], flags)


def test_all_embeddings_equal(pairs, capsys, monkeypatch):
    """A LM that says the same of every text: each step that can see it says so."""
    monkeypatch.setattr(common, "encode", lambda encoder, texts, *_, **__: torch.ones(len(texts), 16))
    assert "warning: A collapsed" in align(pairs, capsys, pairs[1])
    out = pairs[0].parent / "run"
    go(out, "step3_head --lang xx --l2 0.01")
    assert "warning: the head learned nothing" in capsys.readouterr().out


def test_embeddings_that_are_not_finite(pairs, capsys, monkeypatch):
    nan = torch.nan
    monkeypatch.setattr(common, "encode", lambda encoder, texts, *_, **__: torch.full((len(texts), 16), nan))
    with pytest.raises(UserError, match="not finite: try --amp off"):
        align(pairs, capsys, pairs[1])
    assert sorted(p.name for p in (pairs[0].parent / "run").rglob("*.pt")) == ["embed.pt"]


def test_loss_of_a_head_that_is_not_finite(folder):
    with pytest.raises(UserError, match="loss is (inf|nan) in epoch 1 of the heads; lower --l2"):
        go(folder, "step3_head --method english --l2 1e300")
    assert not list(folder.glob("head-*"))


@pytest.mark.parametrize("fault", ["requires_grad", "train"])
def test_lm_left_trainable(folder, monkeypatch, fault):
    def thawed(out):
        encoder, info = load_encoder(out)
        return (encoder.requires_grad_() if fault == "requires_grad" else encoder.train()), info

    monkeypatch.setattr(common, "load_encoder", thawed)
    with pytest.raises(UserError, match="the LM is not frozen"):
        go(folder, "step2_align --lang xx")


def test_labels_in_another_order_than_embed_pt(sweep):
    path = sweep / "head-english.pt"
    art = dict(torch.load(path, weights_only=True))
    content = {key: art[key] for key in art.keys() - {"kind", "format", "torch", "transformers", "digest"}}
    common.save(path, "head", **{**content, "labels": art["labels"][::-1]})
    with pytest.raises(UserError, match="head-english.pt: labels .*good"):
        go(sweep, "eval --lang xx")


def leaky(tiny, tmp_path, where):
    """A run folder with an english head, and a test row of xx that is also in the file `where`."""
    data = shutil.copytree(tiny[1], tmp_path / "data")
    test = (data / "mood" / "xx" / "test.tsv").read_text().splitlines()
    file, column = data / "mood" / where[0], where[1]
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    lines[7][column] = test[3].split("\t")[1]
    write(file, lines[0], lines[1:])
    out = step1((tiny[0], data), tmp_path / "run")
    go(out, "step3_head --method english")
    return out, test[3].split("\t")[1]


@pytest.mark.parametrize("where", [("xx/train.tsv", 1), ("xx/translated.tsv", 2), ("xx/translated.tsv", 1),
                                   ("en/train.tsv", 1)])
def test_test_rows_among_the_training_rows(tiny, tmp_path, capsys, monkeypatch, where):
    monkeypatch.setattr("step3_head.STEPS", 20)
    out, text = leaky(tiny, tmp_path, where)
    words = f"test.tsv: 1 of its 40 rows are in .*{where[0]}.*--allow-leak"
    with pytest.raises(UserError, match=words) as caught:
        go(out, "eval --lang xx")
    assert text[:30] in str(caught.value) and not (out / "results.json").exists()
    capsys.readouterr()
    go(out, "eval --lang xx --allow-leak")
    assert f"warning: {tmp_path / 'data'}" in capsys.readouterr().out and (out / "results.json").exists()


def test_pairs_are_compared_whole(tiny, tmp_path):
    """In a pair task a premise alone may come twice: no leak; premise and hypothesis together are one."""
    data = shutil.copytree(tiny[1], tmp_path / "data")
    info = {"data": data, "task": "pair"}
    rows = [row[1:] for row in common.read_tsv(data / "pair" / "xx" / "train.tsv", *common.ROWS)]
    fresh = [(rows[0][0], TARGET[0])]
    evaluation.check_leak("test.tsv", fresh, info, "xx", False)
    with pytest.raises(UserError, match="1 of its 2 rows are in"):
        evaluation.check_leak("test.tsv", [*fresh, rows[0]], info, "xx", False)


def test_single_texts_as_test_rows_of_a_pair_task(tiny, tmp_path):
    data = shutil.copytree(tiny[1], tmp_path / "data")
    out = step1((tiny[0], data), tmp_path / "run", "--task", "pair")
    go(out, "step3_head --method english")
    path = Path(data, "pair", "xx", "test.tsv")
    write(path, ["label", "text"], [row[:2] for row in common.read_tsv(path, *common.ROWS)])
    with pytest.raises(UserError, match="test.tsv:1: the header is .* not, between tabs: label text text_b$"):
        go(out, "eval --lang xx")


def test_a_text_that_is_cut_is_counted(folder, capfd):
    encoder, _ = load_encoder(folder)
    texts = [(" ".join(WORDS),), (" ".join(WORDS * 9),), (" ".join(WORDS * 3),)]
    encoder.tokenize(texts)
    assert "2 of 3 texts reach or pass 48 tokens" in capfd.readouterr().err
    encoder.tokenize(texts[:1])
    assert capfd.readouterr().err == ""


def test_training_texts_that_are_cut_are_counted(tiny, tmp_path, capsys):
    data = shutil.copytree(tiny[1], tmp_path / "data")
    path = data / "mood" / "en" / "train.tsv"
    rows = common.read_tsv(path, *common.ROWS)
    write(path, HEADER[:2], [*rows, *[("good", " ".join(WORDS * 9))] * 3])
    step1((tiny[0], data), tmp_path / "run")
    assert f"3 of {len(rows) + 3} texts reach or pass 48 tokens" in capsys.readouterr().err
