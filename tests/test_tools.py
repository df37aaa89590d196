"""The data tools: convert.py, prepare.py on sources made here, experiments.py and plot.py."""

import contextlib
import csv
import http.server
import io
import json
import re
import sys
import threading
import time
import unicodedata
import zipfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(1, str(ROOT / "data"))

import common
from data import convert, experiments, plot, prepare


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


# What a user does wrong with these tools, and experiments.py, plot.py, toy.py
CONVERT = "in.csv --text text --label stars --out mine/t/en/train.tsv "
RUN = "--out r --lang ko "


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
        (experiments, "", b"", "give --out, .* and --lang"),
        (experiments, RUN + "ko/", b"", "--lang 'ko/': give a language code"),
        (experiments, RUN + "--n 20 0", b"", "--n 0: give 1 or more"),
        (experiments, "--table" + 11 * " r", b"[]", "11 run folders: give 10 at most"),
        (experiments, "--table r", b"[{", "r/experiments.json: damaged; delete it"),
        (prepare, "nusax --lang jv --root in.csv", b"", "--root in.csv: a file; give a folder"),
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
