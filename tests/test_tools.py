"""The data tools: experiments.py, plot.py and translate.py on tiny random models."""

import contextlib
import io
import json
import os
import random
import re
import sys
import unicodedata
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from conftest import ROOT, WORDS, make_tokenizer
from tokenizers import processors

sys.path.insert(1, str(ROOT / "data"))

import common
from data import convert, experiments, plot, translate


def refuse(main, *args, match):
    """One line on stderr that matches, exit status 2."""
    err = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(err):
        common.run(lambda: main([str(a) for a in args]))
    line = err.getvalue().rstrip("\n").split("\n")[-1].split("\r")[-1].strip()
    assert caught.value.code == 2 and err.getvalue().count("error: ") == 1, err.getvalue()
    assert re.search(match, line) and len(line) < 450, line


def table(path):
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


# What a user does wrong with these tools, and experiments.py, plot.py, toy.py
RUN = "--out r --lang ko "


@pytest.mark.parametrize(
    "tool, args, content, match",
    [
        (experiments, "", b"", "give --out, .* and --lang"),
        (experiments, RUN + "ko/", b"", "--lang 'ko/': give a language code"),
        (experiments, RUN + "--n 20 0", b"", "--n 0: give 1 or more"),
        (experiments, "--table" + 11 * " r", b"[]", "11 run folders: give 10 at most"),
        (experiments, "--table r", b"[{", "r/experiments.json: damaged; delete it"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, tool, args, content, match):
    monkeypatch.chdir(tmp_path)
    Path("r").mkdir()
    for name in ("in.csv", "r/experiments.json"):
        Path(name).write_bytes(content)
    refuse(tool.main, *args.split(), match=match)
    assert len([*tmp_path.rglob("*")]) == 3  # nothing was written


def test_means_over_ten_runs_and_their_interval(tmp_path, capsys):
    record = {"lang": "ko", "method": "fc", "accuracy": 0.5, "interval": [0, 1], "ece": 0}
    for i in range(10):
        rows = [{**record, "n": n, "gain": i / 100, "ece_tempered": 0} for n in (25, 50)]
        write(tmp_path / f"{i}/experiments.json", [json.dumps(rows)])
    folders = [str(tmp_path / str(i)) for i in range(10)]
    experiments.main(["--table", *folders])
    half = 2.262 * 3.0277 / 10**0.5  # Student's t, and the standard deviation of 0 ... 9
    assert f"50   10     50.00  +4.50       +- {half:.2f}" in capsys.readouterr().out
    plot.main([*folders, "--out", str(tmp_path / "a.svg")])
    assert "fc +4.5<" in (tmp_path / "a.svg").read_text()


# translate.py
FAST = ["--device", "cpu", "--amp", "off", "--beams", "2", "--max-new-tokens", "8"]


def make_model(folder, tokenizer, config, model):
    """A random model of 16 dimensions that answers a sentence with words, different for each."""
    torch.manual_seed(1)
    size = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
    size = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in size.items()}
    ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "bos_token_id": 0}
    size |= {"max_position_embeddings": 40, "init_std": 1.0, "tie_word_embeddings": False}
    net = model(config(vocab_size=len(tokenizer), d_model=16, **size, **ids))
    with torch.no_grad():  # special tokens and codes are no words
        words = tokenizer.get_vocab().items()
        net.lm_head.weight[[i for t, i in words if not t.isalpha()]] = 0
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def word_tokenizer(*codes, source="", special=True):
    """Words to tokens, language tokens `codes`, in front of each sentence the token `source`."""
    tokenizer = make_tokenizer([*WORDS, *codes], max_len=40)
    tokenizer.add_tokens(list(codes), special_tokens=special)
    ends = [(token, tokenizer.get_vocab()[token]) for token in (source, "</s>") if token]
    form = f"{source} $A </s>".strip()
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single=form, special_tokens=ends)
    return tokenizer


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """{family: folder of a tiny model}."""
    base, m2m = tmp_path_factory.mktemp("hub"), (hf.M2M100Config, hf.M2M100ForConditionalGeneration)
    codes = word_tokenizer("__en__", "__ko__", source="__en__", special=False)
    letters = {
        t: i
        for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *map(chr, range(97, 123))])
    }
    nllb = hf.NllbTokenizer(vocab=letters, merges=[], src_lang="fra_Latn")
    many = word_tokenizer(">>kor<<", ">>cmn_Hans<<", ">>cmn_Hant<<")
    return {
        "m2m": make_model(base / "m2m", codes, *m2m),
        "nllb": make_model(base / "nllb", nllb, *m2m),
        "marian": make_model(base / "marian", many, hf.MarianConfig, hf.MarianMTModel),
    }


@pytest.fixture
def data(tmp_path):
    """Task `mood` of 60 rows, task `pair` of 12 rows on 4 premises, one of which stands there twice."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 12))) for _ in range(64)]
    write(tmp_path / "data/mood/en/train.tsv", ["label", "text"], *(["x", t] for t in texts[:60]))
    rows = [["e", texts[60 + i % 4], texts[i]] for i in range(12)]
    write(tmp_path / "data/pair/en/train.tsv", ["label", "text", "text_b"], rows[3], *rows)
    return tmp_path / "data"


def run(data, *args, task="mood"):
    """Run the script on Korean; returns the rows of translated.tsv in the order of --n, no labels."""
    translate.main(["--data", str(data), "--task", task, "--lang", "ko", *map(str, args)])
    rows = table(data / task / "ko/translated.tsv")[1:]
    return [rows[i][1:] for i in common.fixed_order(len(rows))]


def english(data, n, task="mood"):
    """The first n rows of train.tsv in the fixed order, without their labels."""
    rows = list(dict.fromkeys(tuple(row[1:]) for row in table(data / task / "en/train.tsv")[1:]))
    return [list(rows[i]) for i in common.fixed_order(len(rows))[:n]]


def work(data, task="mood"):
    """The sentences that models have translated for a task, as the files beside translated.tsv tell."""
    lines = [line for path in (data / task / "ko").glob("*.jsonl") for line in path.open("rb")]
    return [source for line in lines for source, *_ in json.loads(line).get("chunk", [])]


@pytest.mark.parametrize("family", ["m2m", "nllb", "marian"])
def test_a_larger_n_translates_the_rest_and_begins_with_the_smaller(hub, data, family):
    small = run(data, "--model", hub[family], "--n", 10, *FAST)
    large = run(data, "--model", hub[family], "--n", 20, *FAST)
    assert large[:10] == small and len({row[1] for row in large}) >= 10
    assert [row[:1] for row in large] == english(data, 20) == [[text] for text in work(data)]
    pairs = run(data, "--model", hub[family], *FAST, task="pair")
    assert len(work(data, "pair")) == 4 + 12  # a premise is translated once
    assert [row[:2] for row in pairs] == english(data, 12, "pair")


def test_a_run_killed_in_the_middle_of_a_line_goes_on_to_the_same(hub, data, monkeypatch):
    args, calls, fsync = ["--model", hub["m2m"], "--n", 40, *FAST], [], os.fsync
    monkeypatch.setitem(translate.CHUNK, "cpu", 8)
    whole = run(data, *args)
    for path in (data / "mood/ko").iterdir():
        path.unlink()

    def kill(file):
        calls.append(file)
        if len(calls) == 3:  # the third chunk is on disk but for its end
            os.ftruncate(file, os.fstat(file).st_size - 40)
            raise KeyboardInterrupt
        fsync(file)

    monkeypatch.setattr(translate.os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        run(data, *args)
    [path] = (data / "mood/ko").iterdir()
    assert path.suffix == ".jsonl" and len(path.read_bytes().split(b"\n")) == 4
    assert run(data, *args) == whole and len(calls) == 3 + 3 + 1  # the rest, and what was written
    assert run(data, *args) == whole and len(calls) == 8  # no record was glued to the half line


def exchange(data, task, n, change=lambda rows: rows):
    """Export n rows, translate them as an agency would, `change` the rows, return the merging call."""
    out, back = data / f"{task}{n}.tsv", data / "back.tsv"
    translate.main(["--data", str(data), "--task", task, "--n", str(n), "--export", str(out)])
    header, *rows = table(out)
    names = [name.replace("text", "translation") for name in header[2:]]
    rows = [[*row, *(f"영화 {text}" for text in row[2:])] for row in rows]
    write(back, [*header, *names], *change(rows))
    return lambda *args: run(data, "--n", n, "--merge", back, *args, task=task)


def test_export_and_merge_keep_order_and_compose(data):
    nfd = partial(unicodedata.normalize, "NFD")
    merge = exchange(data, "pair", 12, lambda rows: [[*map(nfd, row)] for row in rows[::-1]])
    expected = [[*row, *(f"영화 {text}" for text in row)] for row in english(data, 12, "pair")]
    assert merge() == expected and merge() == expected  # its own file may be replaced
    (data / "back.tsv").write_bytes("영화".encode("utf-16"))
    refuse(lambda _: merge(), match="back.tsv:1: not UTF-8; give the export .*as UTF-8")


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda rows: [*rows, rows[1]], "back.tsv:12: id .* again, as on line 3"),
        (lambda rows: [["2.0", *row[1:]] for row in rows], "id '2.0' is .*the ids as exported"),
        (lambda rows: [[*row[:3], ""] for row in rows], "no translation on line 2 3 .*--skip"),
    ],
)
def test_merge_names_what_is_wrong(data, change, match):
    merge = exchange(data, "mood", 10, change)
    refuse(lambda _: merge(), match=match)
    assert not (data / "mood/ko").exists()


def test_one_translation_for_many_and_copies_are_counted(data, capsys):
    def spoil(rows):
        alike = [[*row[:3], "#NAME?"] for row in rows[:4]]
        return [*alike, *([*row[:3], row[2].upper()] for row in rows[4:7]), *rows[7:]]

    exchange(data, "mood", 20, spoil)()
    out = capsys.readouterr().out
    assert "warning: 4 of 20 sentences have the translation '#NAME?'" in out
    assert "warning: 3 of 20 translations are the source itself" in out
    assert "17 different translations of 20 different sentences" in out
    exchange(data, "mood", 19)("--force")
    assert "warning" not in capsys.readouterr().out


def test_a_checkpoint_without_some_weights_is_refused(hub, data, tmp_path):
    folder = Path(make_model(tmp_path / "m", word_tokenizer(), hf.MarianConfig, hf.MarianMTModel))
    weights = load_file(folder / "model.safetensors")
    weights = {name: w for name, w in weights.items() if "decoder.layers.1" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    args = ["--data", data, "--task", "mood", "--lang", "ko", "--model", folder, *FAST]
    refuse(translate.main, *args, match="lacks 26 of the model's weights, .*model.decoder.layers.1")
    assert not (data / "mood/ko").exists()
