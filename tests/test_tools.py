"""The data tools: convert.py, prepare.py on sources made here, translate.py on tiny random models."""

import contextlib
import csv
import http.server
import io
import json
import os
import random
import re
import sys
import threading
import time
import unicodedata
import zipfile
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from conftest import ROOT, WORDS, make_tokenizer
from tokenizers import processors

sys.path.insert(1, str(ROOT / "data"))

import common
from data import convert, prepare, translate


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


# convert.py
@pytest.fixture
def go(tmp_path):
    """Write bytes to a file, convert it, return the rows of train.tsv without the header."""

    def run(content, *args, columns=("--text", "text", "--label", "stars")):
        (tmp_path / "a.txt").write_bytes(content)
        out = tmp_path / "mine/reviews/en/train.tsv"
        convert.main([str(tmp_path / "a.txt"), *columns, "--out", str(out), *args])
        return table(out)[1:]

    return run


@pytest.mark.parametrize(
    "content",
    [
        'id,stars,text\r\n1,5,"""good"", he said;\r\n\ttwice"\r\n2,1,bad\r\n',
        'sep=;\r\nid;stars;text\r\n1;5;"""good"", he said; twice"\r\n2;1;bad\r\n;;\r\n',  # Excel
        'stars\ttext\n5\t"""good"", he said; twice"\n1\tbad\n',  # Excel's tab export
        'stars\ttext\n5\t"good", he said; twice\n1\tbad\n',  # quotes are quotes
        'stars,text\n5,"\\"good\\", he said; twice"\n1,bad\n',
    ],
)
def test_any_delimiter_and_quoting(go, content):
    assert go(content.encode()) == [["5", '"good", he said; twice'], ["1", "bad"]]


def test_encodings_and_composed_text(go):
    for encoding, args in (("utf-8-sig", ()), ("utf-16", ()), ("cp949", ("--encoding", "cp949"))):
        text = "stars,text\n좋음,새 영화\n나쁨,옛 영화\n"
        written = text if args else unicodedata.normalize("NFD", text)
        rows = go(written.encode(encoding), "--force", *args)
        assert rows == [["좋음", "새 영화"], ["나쁨", "옛 영화"]]


def test_rows_are_renamed_dropped_and_counted(go, capsys):
    content = b"stars,text\n5,good\n5 ,good\n1,bad\nstars,text\n3,so so\n1,\n,lost\n"
    assert go(content, "--rename", "1=neg,5=pos") == [["pos", "good"], ["neg", "bad"]]
    out = capsys.readouterr().out
    for told in ("the same", "the header again", "label --rename", "without a text or label"):
        assert re.search(f"dropped {1 + ('without' in told)} .*{told}", out)
    assert "labels: 'pos' 1, 'neg' 1" in out
    assert re.search("next: python step1_embed.py .*/mine --task reviews", out)


def test_split_keeps_rows_of_one_premise_on_one_side(go, tmp_path):
    rows = [f"n,premise {i // 3},hypothesis {i}" for i in range(60)]
    columns = ("--text", "a", "--text-b", "b", "--label", "l")
    train = go("\n".join(["l,a,b", *rows]).encode(), "--split", "0.2", columns=columns)
    dev = table(tmp_path / "mine/reviews/en/dev.tsv")[1:]
    assert len(train) == 48 and len(dev) == 12 and len({tuple(row) for row in train + dev}) == 60
    assert not {row[1] for row in train} & {row[1] for row in dev}


def test_pairs_without_labels_become_translated_tsv(tmp_path, capsys):
    source, out = tmp_path / "a.tsv", tmp_path / "mine/t/ko/translated.tsv"
    write(source, ["en", "ko"], ["a", "가"], ["b", "나"])
    convert.main([str(source), "--text", "en", "--translation", "ko", "--out", str(out)])
    assert table(out) == [["label", "text", "translation"], ["", "a", "가"], ["", "b", "나"]]
    assert "next: python step2_align.py --lang ko --out runs/t" in capsys.readouterr().out


def test_labels_that_a_task_cannot_have_are_a_warning(go, tmp_path, capsys):
    for labels, told in (
        (["5"], "one label only"),
        (range(30), "30 classes in 30 rows; is --label the label's column"),
        (["Good", "good", "1"], "'Good' and 'good' look alike; .* Good=Good,good=Good,1=1"),
    ):
        rows = [{"stars": labels[i % len(labels)], "text": f"film {i}"} for i in range(30)]
        content = "\n".join(map(json.dumps, rows)).encode()
        rows = go(content, "--force")
        out, err = capsys.readouterr()
        assert len(rows) == 30 and re.search(told, err) and "next:" not in out
    refuse(lambda _: go(content), match="is there already; .*--force")
    assert table(tmp_path / "mine/reviews/en/train.tsv")[1:] == rows
    assert {row[0] for row in go(content, *err.split(" by ")[1].split())} == {"Good", "1"}
    assert "next:" in capsys.readouterr().out


# What a user does wrong with these tools
CONVERT = "in.csv --text text --label stars --out mine/t/en/train.tsv "


@pytest.mark.parametrize(
    "tool, args, content, match",
    [
        (convert, CONVERT, b"id,review\n1,a\n", "no column 'stars'; its columns are: id, review"),
        (convert, CONVERT, b"stars,text\n1,\xbf\xb5\n", "csv:2: not utf-8; .*, such as cp949"),
        (convert, CONVERT, b"stars,text\n1,a,b\n5,c\n", "csv:2: not the 2 cells of the header"),
        (convert, CONVERT, b"stars,text\n1,\n", "no row of 1 is left; labels: '1' 1"),
        (convert, CONVERT + "--rename 1=a", b"stars,text\n2,a\n", "no label '1' .* has '2' 1"),
        (convert, CONVERT + "--out train.tsv", b"", "train.tsv: give <root>/<task>/<lang>"),
        (convert, CONVERT, b"PAR1\x15", "a parquet file, not text; save the table as CSV"),
        (convert, CONVERT, b"\xd0\xcf\x11\xe0\0", "an old Excel workbook, not text"),
        (convert, CONVERT, b'{"a": [{"stars": 1, "text": "a"}]}', "one object; give the list"),
        (convert, CONVERT, b'[{"stars": 1, "text": {}}]', "object 1: 'text' holds an object"),
        (prepare, "nusax --lang jv --root in.csv", b"", "--root in.csv: a file; give a folder"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, tool, args, content, match):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_bytes(content)
    refuse(tool.main, *args.split(), match=match)
    assert len([*tmp_path.rglob("*")]) == 1  # nothing was written


# prepare.py
KINDS = ("entailment", "neutral", "contradiction")
GOLD = "gold_label sentence1 sentence2"


def pairs(lang, numbers, *more):
    """Rows label, premise, hypothesis: row i says i, and its label follows from i."""
    return [[KINDS[i % 3], f'{lang} {i} "a"', f"{lang} {i} b", *more] for i in numbers]


class World:
    """A folder `raw` of tiny source files, whose counts take the place of the real ones in SOURCES."""

    def __init__(self, tmp_path, monkeypatch):
        self.tmp, self.raw, self.patch = tmp_path, tmp_path / "raw", monkeypatch
        for name, source in prepare.SOURCES.items():
            monkeypatch.setitem(prepare.SOURCES, name, source._replace(files={}))
        for split, n in (("train", 0), ("valid", 60), ("test", 80)):
            for lang, ids in (("english", range(n, n + 9)), ("javanese", range(n + 8, n - 1, -1))):
                rows = [[str(i), f'{lang}, "{i}"', ("positive", "neutral")[i % 2]] for i in ids]
                self.put(f"NusaX {lang}", f"{lang}/{split}.csv", "id text label", rows)
        for split, n in (("dev", 100), ("test", 200)):
            rows = [*pairs("en", range(n, n + 3), "en"), ["-", "no", "label", "en"], ["-"] * 4]
            self.put("XNLI", f"XNLI-1.0/xnli.{split}.tsv", GOLD + " language", rows)
            rows = [*pairs("영", range(n, n + 3)), "---"]
            self.put("KorXNLI", f"xnli.{split}.ko.tsv", GOLD, rows)
        self.put("MNLI", "MNLI/train.tsv", GOLD, pairs("en", [*range(10), 100, 11]))
        self.put("KorNLI", "multinli.train.ko.tsv", GOLD, pairs("영", [*range(11), 200]))
        for split, n in (("train", 300), ("valid", 400), ("test", 500)):
            columns, rows = "label sentence1 sentence2", pairs("ja", range(n, n + 3))
            self.put("JNLI", f"{split}-v1.3.json", columns, rows)
        both = enumerate(zip(pairs("en", range(12)), pairs("ja", range(12))))
        rows = [[*en, *ja[1:], ("train", "test")[i // 9]] for i, (en, ja) in both]
        self.put("JSICK", "jsick.tsv", prepare.SOURCES["JSICK"].columns, rows)
        use = ("train", "dev", "test")
        rows = [[f"{i}", f"{1 - i % 3}", f"部屋{i}", "{}", use[i // 6]] for i in range(18)]
        self.put("JRTE", "pn.tsv", "", rows)
        for split, numbers in (("train", range(9)), ("dev", range(8, 12))):
            rows = [[f"film {i}", str(i % 2)] for i in numbers]
            self.put("SST-2", f"SST-2/{split}.tsv", "sentence label", rows)

    def put(self, name, file, header, rows):
        """Write a source file in the form that its name tells, and set its count."""
        source, columns, out = prepare.SOURCES[name], header.split(), io.StringIO()
        if file.endswith(".json"):
            out.writelines(json.dumps(dict(zip(columns, row))) + "\n" for row in rows)
        elif file.endswith(".csv"):
            csv.writer(out).writerows([columns, *rows])
        else:
            out.writelines("\t".join(row) + "\n" for row in [columns, *rows] if row)
        path = self.raw / (Path(source.url).name if source.url.endswith(".zip") else file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(file, out.getvalue())
        else:
            path.write_text(unicodedata.normalize("NFD", out.getvalue()), encoding="utf-8")
        files = {**source.files, file: len(rows)}
        self.patch.setitem(prepare.SOURCES, name, source._replace(files=files))

    def args(self, task, lang, *more):
        return [task, "--lang", lang, "--root", str(self.tmp / "real"), *map(str, more)]


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "task, lang, counts",
    [
        ("nusax", "jv", {"train": 9, "dev": 9, "test": 9, "translated": 9}),
        ("nli", "ko", {"dev": 3, "test": 3, "translated": 10}),
        ("xnli", "ko", {"dev": 1, "test": 2, "translated": 3}),
        ("nli", "ja", {"train": 3, "dev": 3, "test": 3, "translated": 9}),
        ("sentiment", "ja", {"train": 4, "dev": 4, "test": 4}),
    ],
)
def test_each_kind_of_source(world, capsys, task, lang, counts):
    prepare.main(world.args(task, lang, "--raw", world.raw))
    out, folder = capsys.readouterr().out, world.tmp / "real" / task
    assert {path.stem: len(table(path)) - 1 for path in (folder / lang).iterdir()} == counts
    assert len(table(folder / "en/train.tsv")) == {"nusax": 10, "nli": 12, "xnli": 4}.get(task, 9)
    assert "licence of" in out and "next: python step1_embed.py" in out
    text = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.tsv"))
    assert unicodedata.is_normalized("NFC", text)
    kinds = ("positive", "neutral") if task == "nusax" else KINDS
    for label, *texts in table(folder / lang / "translated.tsv")[1:] if task != "sentiment" else ():
        numbers = {int(re.search(r"\d+", text)[0]) for text in texts}
        assert len(numbers) == 1 and len(texts) == (2 if task == "nusax" else 4)  # side by side
        assert label == kinds[numbers.pop() % len(kinds)]
    assert ("translated.tsv: 10 rows, less 2" in out) == ((task, lang) == ("nli", "ko"))


@pytest.mark.parametrize(
    "file, old, new, match",
    [
        ("train.csv", b"3,", b"3,3,", r"train.csv:\d+: not as many cells as the header"),
        ("train.csv", b"positive", b"good", "label 'good', not one of positive neutral"),
        ("test.csv", b"id,", b"no,", "test.csv:1: no column 'id' in the header"),
        ("train.csv", b"neutral", b"positive", "row 8: english.* says neutral, .*says positive"),
    ],
)
def test_a_changed_source_is_one_line_and_nothing_is_written(world, file, old, new, match):
    path = world.raw / "javanese" / file
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    refuse(prepare.main, *world.args("nusax", "jv", "--raw", world.raw), match=match)
    assert path.exists() and not (world.tmp / "real").exists()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files; cut: sends only so many bytes; pause: seconds a byte; location: redirects."""

    def do_GET(self):
        body, server = self.server.files[self.path], self.server
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        server.log.append((self.path, start))
        self.send_response(302 if server.location else 206 if start else 200)
        self.send_header("Location", server.location)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for i in range(start, len(body[: server.cut])):
                self.wfile.write(body[i : i + 1])
                time.sleep(server.pause)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(world):
    """The files of `world`, at the URLs of SOURCES."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.log, server.cut, server.pause, server.location = [], None, 0, ""
    server.files = {f"/{p.relative_to(world.raw)}": p.read_bytes() for p in world.raw.rglob("*.*")}
    for name, source in prepare.SOURCES.items():
        last = Path(source.url).name if source.url.endswith(".zip") else ""
        url = f"http://127.0.0.1:{server.server_port}/{last}"
        world.patch.setitem(prepare.SOURCES, name, source._replace(url=url))
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_cut_download_goes_on_and_a_whole_one_is_kept(world, server):
    args = world.args("sentiment", "ja", "--cache", world.tmp / "c")
    whole, server.cut = server.files["/SST-2.zip"], 40
    refuse(prepare.main, *args, match=rf"zip: cut at 40 of {len(whole)} .*the same command again")
    assert (world.tmp / "c/SST-2.zip.part").read_bytes() == whole[:40]
    server.cut = None
    prepare.main(args)
    assert server.log[:2] == [("/SST-2.zip", 0), ("/SST-2.zip", 40)]
    assert (world.tmp / "c/SST-2.zip").read_bytes() == whole
    prepare.main(args)
    assert len(server.log) == 3


@pytest.mark.parametrize(
    "name, spoil, match",
    [
        ("SST-2.zip", lambda good: b"<html>sign in first</html>", "unreadable .File is not a zip"),
        ("SST-2.zip", lambda good: good.replace(b"\x14\0\0", b"\x14\0\1"), "unread.*encrypted"),
        ("pn.tsv", lambda good: good * 2, "36 rows, not the 18 of JRTE"),
    ],
)
def test_a_bad_download_is_named_and_deleted(world, server, name, spoil, match):
    good, args = server.files, world.args("sentiment", "ja", "--cache", world.tmp / "c")
    server.files = {**good, f"/{name}": spoil(good[f"/{name}"])}
    told = f"{name}: {match}.*{name} is deleted, the same command gets it again"
    refuse(prepare.main, *args, match=told)
    assert not (world.tmp / "c" / name).exists() and not (world.tmp / "real").exists()
    server.files = good
    prepare.main(args)


def test_a_server_that_trickles_or_leaves_https_is_an_error(world, server):
    args = world.args("nusax", "jv", "--cache", world.tmp / "c")
    server.location = "http://example.com/train.csv"
    refuse(prepare.main, *args, match="redirects to http://example.com/.* which is not https")
    server.location, server.pause = "", 0.05
    world.patch.setattr(prepare, "PATIENCE", 0.2)
    refuse(prepare.main, *args, match="train.csv: fewer than 1,000 bytes a second")


def test_of_two_commands_at_once_one_downloads(world, server):
    server.pause, roots = 0.0001, [str(world.tmp / name) for name in ("one", "two")]
    args = world.args("nusax", "jv", "--cache", world.tmp / "c", "--root")
    with ThreadPool(2) as pool:
        pool.map(lambda root: prepare.main([*args, root]), roots)
    assert [len(table(Path(root, "nusax/jv/translated.tsv"))) for root in roots] == [10, 10]
    assert len(server.log) == 6


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
