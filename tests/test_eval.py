"""Check eval.py: numbers by hand on planted heads, the table and its file, labels for new text."""

import json
import os
import subprocess
import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import BAD, GOOD, ROOT, cipher, few_steps, main, make_task, step1, write

import common
import eval as evaluation
from common import UserError


def heads_of(method, guesses):
    """Return the content of a head file. Head s guesses guesses[s][i] on row i, whose embedding is one-hot."""
    weight = F.one_hot(torch.tensor(guesses), 2).mT.float()  # (S, C, N)
    heads = {"weight": weight, "bias": torch.zeros(len(guesses), 1, 2)}
    heads |= {"mean": torch.zeros(len(guesses[0])), "scale": torch.ones(len(guesses[0]))}
    return common.describe("ko", method) | {"heads": heads}


def test_accuracy_and_gain_by_hand(tmp_path, capsys):
    rows = [(label, f"text {i}") for i, label in enumerate("abaa")]
    write(tmp_path / "task/ko/test.tsv", "label text", rows)
    info = {"data": tmp_path, "task": "task", "labels": ["a", "b"], "two_texts": False}
    heads = [heads_of("english", [[0, 1, 1, 1], [0, 1, 0, 1]])]
    heads.append(heads_of("langalign", [[0, 1, 0, 0], [0, 1, 0, 1]]))
    heads.append(heads_of("native", [[1, 0, 1, 1]]))
    embed = lambda texts: torch.eye(len(texts))
    other = [head | {"seed": 1} for head in (heads_of("english", [[0, 1, 0, 0]]), heads[1])]
    english, langalign, wrong, *other = evaluation.evaluate("ko", heads + other, None, embed, info)
    assert [r["gain"] for r in other] == [0, -1 / 8]  # over the English head of the same seed
    assert english["accuracy"] == (2 / 4 + 3 / 4) / 2 and english["gain"] == 0
    assert langalign["accuracy"] == (4 / 4 + 3 / 4) / 2
    assert langalign["accuracy_std"] == pytest.approx(1 / 8)  # over heads, of the population
    assert langalign["gain"] == pytest.approx(2 / 8)
    assert langalign["macro_f1"] == pytest.approx((1 + 1 + 4 / 5 + 2 / 3) / 4)  # 2 heads, 2 classes
    assert langalign["majority"] == 3 / 4 and langalign["rows"] == 4 and langalign["heads"] == 2
    assert langalign["interval"][0] <= langalign["gain"] <= langalign["interval"][1]
    assert wrong["accuracy"] == 0 and "do the labels mean the same" in capsys.readouterr().err


@pytest.mark.parametrize("order, odd", [((0, 1, 2), False), ((0, 2, 1), True), ((1, 2, 0), True)])
def test_swapped_labels_are_found(order, odd):
    """The head is right on 70% of the rows, and guesses the next class on the others."""
    y = torch.arange(300) % 3
    guesses = torch.where(torch.arange(300) % 10 < 7, y, (y + 1) % 3).expand(2, -1)
    assert evaluation.swapped(guesses, torch.tensor(order)[y]) == odd
    noise = torch.randint(3, (2, 300), generator=torch.Generator().manual_seed(0))
    assert not evaluation.swapped(noise, y) and not evaluation.swapped(0 * noise, y)


def test_bootstrap_draws_premises_whole():
    two = np.array([[1.0, 0.0], [2.0, 0.0]])  # two premises of a row: the mean is 0, 1/2 or 1
    assert evaluation.bootstrap(two, np.array([0, 1])) == [[0, 1], [0, 2]]
    pairs = np.array([[1.0, -1.0, 1.0, -1.0]])  # each premise's rows cancel, rows alone do not
    assert evaluation.bootstrap(pairs, np.array([0, 0, 1, 1])) == [[0, 0]]
    assert evaluation.bootstrap(pairs, np.arange(4)) == [[-1, 1]]


def test_an_interval_covers_95_percent():
    gains = np.random.default_rng(0).normal(0.2, 1, 60)
    [(low, high)] = evaluation.bootstrap(gains[None], np.arange(60))
    assert low < gains.mean() < high
    assert high - low == pytest.approx(4 / 60**0.5, rel=0.15)  # 2 x 1.96 sigma / sqrt(N)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_table_and_results_agree(split, folder, capsys):
    main("eval.py", "--lang", "ko", "--out", folder, "--split", split)
    out = capsys.readouterr().out
    name = "results-ko.json" if split == "test" else "results-ko-dev.json"
    assert out.endswith(f"-> {folder / name}\n") and len([*folder.glob("results*.json")]) == 1
    records = json.loads((folder / name).read_text())
    assert len(records) == len([*folder.glob("head-*.pt")]) > 5 and records[0]["arch"] is None
    _, first, _, *rows, _ = out.splitlines()
    assert first.startswith(f"ko, {records[0]['rows']} {split} rows, majority class")
    for row, record in zip(rows, records, strict=True):
        assert record["lang"] == "ko" and record["split"] == split
        words = [record["method"], record["arch"], record["residuals"] and "residuals"]
        numbers = [str(record["n"] or "-"), str(record["heads"]), f"{record['accuracy']:.2%}"]
        numbers += [f"{100 * record['accuracy_std']:.2f}", f"{record['macro_f1']:.3f}"]
        if record["method"] != "english":
            points = [100 * value for value in (record["gain"], *record["interval"])]
            numbers += "{:+.2f} [{:+.2f}, {:+.2f}]".format(*points).split()
        assert row.split() == [word for word in words if word] + numbers


def test_leaked_rows_are_counted(world, folder, tmp_path, capsys):
    root = make_task(tmp_path / "data", rows=100)
    test = common.read_tsv(root / "reviews/ko/test.tsv", *common.ROWS)
    leaked = [unicodedata.normalize("NFD", f" {text} ").replace(" ", "  ") for _, text in test[:3]]
    for lang, text in zip(("en", "ko"), leaked):
        rows = [("positive", text), ("negative", "b")]
        write(root / f"reviews/{lang}/train.tsv", "label text", rows)
    rows = [("positive", "a", leaked[2]), ("negative", "b", "c")]
    write(root / "reviews/ko/translated.tsv", "label text translation", rows)
    main("eval.py", "--lang", "ko", "--out", folder, "--data", root, "--all")
    err = capsys.readouterr().err
    assert " of 50 test rows in ko are also training rows" in err
    assert "--all without --predict has no effect" in err
    records = json.loads((folder / "results-ko.json").read_text())
    assert {record["leaks"] for record in records} == {3} and len(records) > 5


# --predict
TEXTS = [cipher(text) for text in (f"the {w} {v} room" for w, v in zip(GOOD + BAD, BAD + GOOD))]


@pytest.fixture
def label(tmp_path, capsys):
    """Return a function: bytes -> rows that --predict prints, split at tabs. Its .err is the stderr."""

    def run(out, content, *flags, lang="ko"):
        if isinstance(content, list):
            content = "".join(f"{line}\n" for line in content).encode()
        (tmp_path / "text.txt").write_bytes(content)
        capsys.readouterr()  # forget what was printed before
        main("eval.py", "--lang", lang, "--out", out, "--predict", tmp_path / "text.txt", *flags)
        shown = capsys.readouterr()
        run.err = shown.err
        return [line.split("\t") for line in shown.out.splitlines()]

    return run


def test_predict_agrees_with_classify(runs, label):
    flags = "--method", "rev", "--arch", "inside"
    labels, probabilities = evaluation.classify(runs, TEXTS, lang="ko", method="rev", arch="inside")
    plain = [[y, f"{p:.4f}"] for y, p in zip(labels, probabilities.amax(1).tolist())]
    assert len(set(labels)) == 2 and label(runs, TEXTS, *flags) == plain
    texts = label(runs, TEXTS[:2], *flags, "--text")
    assert texts == [[*row, text] for row, text in zip(plain, TEXTS[:2])]
    header, *rows = label(runs, TEXTS, *flags, "--all", "--text")
    assert header == ["label", "negative", "positive", "text"]
    for y, p, text, row in zip(labels, probabilities.tolist(), TEXTS, rows, strict=True):
        assert row == [y, *(f"{number:.4f}" for number in p), text]


def test_form_of_the_file_does_not_matter(runs, label):
    expected, text = label(runs, TEXTS, "--text"), "\n".join(TEXTS)
    windows, mac = text.replace("\n", "\r\n"), text.replace("\n", "\r")
    for same in unicodedata.normalize("NFD", text), "\ufeff" + text, windows, mac:
        assert label(runs, same.encode(), "--text") == expected


@pytest.mark.parametrize("first", ['{"text": "good film"}', '"good"', "review\r"])
def test_a_file_of_another_kind_is_named(first, runs, label):
    label(runs, [first, TEXTS[0]])
    assert "text.txt:1: looks like JSON, CSV or a header" in label.err
    label(runs, TEXTS)
    assert "looks like" not in label.err


@pytest.mark.parametrize(
    "content, place",
    [
        ("positive\t{0}\n", "1: expected 1 non-empty column"),
        ("{0}\nnegative\t{1}\n", "2: expected 1 non-empty column"),
        ("{0}\n\u3000\n{1}\n", "2: expected 1 non-empty column"),
        ("{0}\n{1}\r{2}\n", "2: a carriage return"),
        ("{0}\r{1}\n{2}\n", "2: a carriage return"),
    ],
)
def test_line_that_is_no_text_is_named(content, place, runs, label):
    with pytest.raises(UserError, match=f"text.txt:{place}"):
        label(runs, content.format(*TEXTS).encode())
    assert len(label(runs, [*TEXTS, "", " "])) == len(TEXTS)  # blank lines at the end


def test_line_that_is_not_utf8_is_named(runs, label, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK", 2)
    content = "\n".join([*TEXTS[:4], ""]).encode() + "방이 좋았다".encode("cp949")
    with pytest.raises(UserError, match="text.txt:5: not UTF-8.*; 4 lines were labelled"):
        label(runs, content)


def test_pair_task_takes_two_columns(world, tmp_path, label, monkeypatch):
    few_steps(monkeypatch, 20)
    out = tmp_path / "runs"
    step1(world.encoder, world.data, out, task="nli")
    main("step3_head.py", "--lang", "ko", "--method", "english", "--out", out)

    texts = [(TEXTS[i], TEXTS[-i - 1]) for i in range(6)]
    lines = ["\t".join(text) for text in texts]
    header, *rows = label(out, lines, "--method", "english", "--text", "--all")
    width = len(header) - 2
    labels, _ = evaluation.classify(out, texts, lang="ko", method="english")
    assert header[width:] == ["text", "text_b"] and [row[0] for row in rows] == labels
    assert [tuple(row[width:]) for row in rows] == texts
    with pytest.raises(UserError, match="text.txt:2: expected 2 non-empty column"):
        label(out, ["a\tb", "a"], "--method", "english")
    with pytest.raises(ValueError, match="this head labels pairs"):
        evaluation.classify(out, ["a", "b"], lang="ko", method="english")


def test_lines_are_read_as_they_are_labelled(runs, capsys, monkeypatch):
    """At most CHUNK lines are in memory, so a generator is not read ahead of what is printed. One warning is enough."""
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    shown, ahead, texts = [], [], [*TEXTS, *(f"{text} Ж Ж" for text in TEXTS)]

    def lines():
        for i in range(50):
            shown.append(capsys.readouterr())
            ahead.append(i - "".join(part.out for part in shown).count("\n"))
            yield f"{texts[i % len(texts)]}\n"

    args = SimpleNamespace(all=False, text=True)
    evaluation.predict(lines(), "-", evaluation.load_classifier(runs, "ko"), args)
    out, err = map("".join, zip(*shown, capsys.readouterr()))
    assert max(ahead) == 3
    assert [line.split("\t")[2] for line in out.splitlines()] == [*texts * 50][:50]
    assert err.count("tokens are unknown") == 1


def test_predict_is_a_filter(runs, tmp_path):
    """`eval.py --predict - < text | head -1`, with cp1252 output and RANK, which some clusters set alone."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS * 500), encoding="utf-8")
    flags = "--lang", "ko", "--out", str(runs), "--predict", "-", "--text"
    command = [sys.executable, "eval.py", *flags, "--device", "cpu", "--amp", "off"]
    env = {**os.environ, "RANK": "1", "PYTHONIOENCODING": "cp1252"}
    with open(path, "rb") as stdin:
        process = subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=-1, stderr=-1, env=env)
    first = process.stdout.readline().decode("utf-8")
    process.stdout.close()  # as head does
    err = process.communicate(timeout=60)[1].decode()

    labels, probabilities = evaluation.classify(runs, TEXTS[:1], lang="ko")
    row = [labels[0], f"{probabilities.max():.4f}", TEXTS[0]]
    assert first.rstrip("\n").split("\t") == row and process.returncode == 141
    assert err.startswith("labelling with") and err.count("\n") == 1
