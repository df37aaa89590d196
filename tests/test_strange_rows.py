"""2,000 generated TSV files: the right rows, or a one-line error that names the file and the line to blame.

A file is made from a table of cells, so what it means is known without reading it: see `verdict`.
"""
import json
import random
import shutil
from dataclasses import dataclass, field

import eval as evaluation
import pytest
import step1_embed
import step2_align
import step3_head
from conftest import step1, write

from common import UserError, load_task, load_train_dev, load_translated

FILES, BLOCK = 2000, 200
PLAIN = ["a film", "not good", "the room was dark", "\"quoted", "it's 5\" wide", "x", "label", "text", "0", "#",
         "\\t\\n"]
STRANGE = [                         # all of it is text: only "\n" and CRLF end a row, only a tab ends a cell
    "one\u2028two", "one\u2029two", "one\u0085two", "a\u00a0b", "a\u3000b\u2003c", "a\x0bb\x0cc", "a\x1cb\x1db\x1ec",
    "a\rb", "\rstart", "a\0b", "\0", "\ufeffmark", "zero\u200bwidth", "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c",
    "\u0645\u0631\u062d\u0628\u0627", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301\u0327",
    "\uffff", "\U0010ffff", "\u1100\u1161\u11a8", " before and after ", "a\\tb",
    "\ud55c\uad6d\uc5b4 \uc601\ud654", "\x7f\x1b[31m"]
BLANK = ["", " ", "   ", "\u00a0", "\u3000\u2003", "\u2028", "\u0085", "\x0b\x0c", " \r "]
LABELS = [["bad", "good"], ["e", "c", "n"], ["very good", "not so good"], ["0", "1"], ["\u597d", "\u574f"],
          ["a\u2028b", "a b"], ["\U0001f600", "\U0001f622"], ["label", "text"], ["x", "X", "x "]]
BAD_BYTES = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\x80", b"\xf5\x80\x80\x80", b"\xe2\x80"]
COLUMNS = {"train": (["label", "text"], ["label", "text", "text_b"]),
           "translated": (["label", "text", "translation"], ["label", "text", "text_b", "translation", "translation_b"])}


@dataclass
class Sheet:
    """Lines of cells and how they are written: what a generated file is made from."""
    lines: list                     # [[cell]]: the header is the first, if there is one
    labels: list
    ends: list = field(default_factory=list)                 # line end of each line
    mark: bytes = b""               # a byte order mark
    tail: bytes = b""               # behind the last line
    broken: dict = field(default_factory=dict)               # line number -> bytes that are no UTF-8

    def raw(self):
        out = self.mark
        for number, (cells, end) in enumerate(zip(self.lines, self.ends), 1):
            before, after = self.broken.get(number, (b"", b""))
            out += before + "\t".join(cells).encode() + after + end
        return out + self.tail


def verdict(sheet, kind, labels):
    """What a reader must make of a sheet: (the line to blame or None, True) or (rows as dicts, False)."""
    if sheet.broken:
        return min(sheet.broken), True
    header, *rows = sheet.lines
    if header not in COLUMNS[kind]:
        return 1, True
    dicts = []
    for number, cells in enumerate(rows, 2):
        row = dict(zip(header, cells))
        if len(cells) != len(header) or cells == header:
            return number, True
        if any(row[name] in BLANK for name in header if name != "label"):
            return number, True
        dicts.append(row)
    if len(rows) < 2:
        return None, True
    given = [row["label"] for row in dicts]
    if labels:
        unknown = [number for number, label in enumerate(given, 2) if label not in labels]
        return (unknown[0], True) if unknown else (dicts, False)
    if kind == "train" and "" in given:
        return given.index("") + 2, True
    if kind == "train" and len(set(given)) < 2:
        return None, True
    return dicts, False


def text(rng, wild):
    return rng.choice(STRANGE) + rng.choice(["", " " + rng.choice(STRANGE) + "."]) if rng.random() < wild else \
        " ".join(rng.choices(PLAIN, k=rng.randrange(1, 4)))


def make_sheet(rng, kind):
    """A sheet with some strange features and at most a few faults."""
    pair = rng.random() < 0.3
    labels, wild = rng.choice(LABELS), rng.choice([0, 0.3, 0.9])
    header = COLUMNS[kind][pair] + rng.sample(["id", "source", "", "Text", "note "], rng.choice([0] * 12 + [1, 2]))
    if rng.random() < 0.1:
        rng.shuffle(header)
    count = rng.choice([1, 2, 3, 7, 20, 40])
    lines = [header]
    for _ in range(count):
        known = {"label": rng.choice(labels)}
        lines.append([known.get(name) or (text(rng, wild) if name in COLUMNS[kind][1]
                                          else rng.choice(["", "1", "x y"])) for name in header])
    for _ in range(rng.choice([0, 0, 0, 2])):                # duplicate rows are rows
        lines.insert(rng.randrange(1, len(lines) + 1), list(rng.choice(lines[1:])))
    sheet = Sheet(lines, labels)
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        spoil(rng, sheet, COLUMNS[kind][1])
    finish(rng, sheet)
    return sheet


def spoil(rng, sheet, known):
    """One fault, or what looks like one."""
    lines, fault = sheet.lines, rng.choice([
        "blank", "blank", "cells", "gap", "again", "no header", "column", "twice", "half a pair", "no label",
        "strange label", "one class", "no rows", "bytes", "bytes"])
    number = rng.randrange(1, len(lines)) if len(lines) > 1 else 0
    seen = [i for i, name in enumerate(lines[0]) if name in known and name != "label"]
    where = lines[0].index("label") if "label" in lines[0] else None
    if fault == "blank" and number and seen:
        place = rng.choice(seen)
        if place < len(lines[number]):
            lines[number][place] = rng.choice(BLANK)
    elif fault == "cells" and number:
        lines[number] = rng.choice([lines[number] + ["more"], lines[number][:-1] or ["x"], [*lines[number], ""]])
    elif fault == "gap" and number:
        lines.insert(number, [""])                           # a row must follow: empty lines at the end are none
    elif fault == "again":
        lines.insert(rng.randrange(1, len(lines) + 1), list(lines[0]))
    elif fault == "no header" and len(lines) > 1:
        del lines[0]
    elif fault == "column" and len(lines[0]) > 1:
        place = rng.randrange(len(lines[0]))
        sheet.lines = [[cell for i, cell in enumerate(cells) if i != place] or [""] for cells in lines]
    elif fault == "twice" and lines[0]:
        name = rng.choice(lines[0])
        sheet.lines = [[*cells, name if i == 0 else "x"] for i, cells in enumerate(lines)]
    elif fault == "half a pair" and "text_b" in lines[0] and len({len(cells) for cells in lines}) == 1:
        place = lines[0].index("text_b")
        sheet.lines = [[cell for i, cell in enumerate(cells) if i != place] or [""] for cells in lines]
    elif fault in ("no label", "strange label", "one class") and where is not None:
        some = range(1, len(lines)) if fault == "one class" else [number] * bool(number)
        for i in some:
            if where < len(lines[i]):
                lines[i][where] = {"no label": "", "strange label": "meh\u2028 "}.get(fault, sheet.labels[0])
    elif fault == "no rows":
        del lines[1:]
    elif fault == "bytes":
        spot = rng.choice(BAD_BYTES)
        sheet.broken[rng.randrange(1, len(lines) + 1)] = rng.choice([(spot, b""), (b"", spot), (b"ok " + spot, spot)])


def finish(rng, sheet):
    """Line ends, mark and what follows the last line. Broken lines were numbered before: keep those there are."""
    count = len(sheet.lines)
    sheet.broken = {number: spot for number, spot in sheet.broken.items() if number <= count}
    style = rng.choice([[b"\n"], [b"\n"], [b"\r\n"], [b"\n", b"\r\n"]])
    sheet.ends = [rng.choice(style) for _ in range(count)]
    for cells in sheet.lines:                                # a CR before "\n" would be the line's end
        cells[-1] = cells[-1].rstrip("\r")
    if rng.random() < 0.3:
        sheet.ends[-1] = b""
    else:
        sheet.tail = rng.choice([b"", b"", b"\n", b"\r\n\r\n", b"\n\n\n"])
    sheet.mark = b"\xef\xbb\xbf" if rng.random() < 0.3 else b""


def refused(call, path, line):
    """Does `call` raise one line that begins with the file and, if one is to blame, its line?"""
    with pytest.raises(UserError) as caught:
        call()
    told = str(caught.value)
    assert told.startswith(f"{path}:{line}: " if line else f"{path}: "), told
    assert len(told.splitlines()) == 1 and len(told) < 1500, told


def sheets(block, kind):
    """(number, sheet) of one block of the generated files."""
    for number in range(block * BLOCK, (block + 1) * BLOCK):
        yield number, make_sheet(random.Random(f"{kind} {number}"), kind)


def check_train(root, sheet):
    path = root / "t" / "xx" / "train.tsv"
    path.write_bytes(sheet.raw())
    for labels in (None, sheet.labels):
        told, wrong = verdict(sheet, "train", labels)
        if wrong:
            refused(lambda: load_task(root, "t", "xx", "train", labels), path, told)
            continue
        texts, y, names = load_task(root, "t", "xx", "train", labels)
        assert names == (labels or sorted({row["label"] for row in told}))
        rows = [tuple(row[name] for name in ("text", "text_b") if name in row) for row in told]
        assert texts == rows and [names[i] for i in y] == [row["label"] for row in told]
        if labels:
            (train, train_y), (dev, dev_y) = load_train_dev(root, "t", "xx", labels)
            assert len(dev) == len(dev_y) == max(1, len(rows) // 10)
            parts = zip(train + dev, [labels[i] for i in [*train_y, *dev_y]])
            assert sorted(parts) == sorted(zip(rows, [row["label"] for row in told]))


def check_translated(rng, root, sheet):
    path = root / "t" / "xx" / "translated.tsv"
    path.write_bytes(sheet.raw())
    for labels in (None, sheet.labels):
        told, wrong = verdict(sheet, "translated", labels)
        if wrong:
            refused(lambda: load_translated(root, "t", "xx", None, labels), path, told)
            continue
        rows = sorted((tuple(row[name] for name in ("text", "text_b") if name in row),
                       tuple(row[name] for name in ("translation", "translation_b") if name in row),
                       row["label"] if labels else "") for row in told)
        n = rng.choice([None, len(rows), rng.randrange(1, len(rows) + 1)])
        english, target, y = load_translated(root, "t", "xx", n, labels)
        assert (y is None) == (labels is None)
        found = list(zip(english, target, [labels[i] for i in y] if labels else [""] * len(english)))
        assert len(found) == (n or len(rows)) and not set(found) - set(rows)
        assert n is not None and n < len(rows) or sorted(found) == rows
        with pytest.raises(UserError, match="--n .* has"):
            load_translated(root, "t", "xx", len(rows) + 1, labels)


def run_block(block, kind, check):
    wrong, taken = [], 0
    for number, sheet in sheets(block, kind):
        try:
            check(sheet)
            taken += not verdict(sheet, kind, sheet.labels)[1]
        except (Exception, pytest.fail.Exception) as err:
            wrong.append(f"{kind} file {number}: {type(err).__name__}: {err}")
    assert not wrong, f"{len(wrong)} files\n" + "\n".join(line[:300] for line in wrong[:9])
    assert BLOCK / 5 < taken < BLOCK * 0.8, "both kinds, files to take and to refuse, must be there"


@pytest.mark.parametrize("block", range(FILES // BLOCK // 2))
def test_strange_training_files(tmp_path, block):
    (tmp_path / "t" / "xx").mkdir(parents=True)
    run_block(block, "train", lambda sheet: check_train(tmp_path, sheet))


@pytest.mark.parametrize("block", range(FILES // BLOCK // 2))
def test_strange_translated_files(tmp_path, block):
    (tmp_path / "t" / "xx").mkdir(parents=True)
    rng = random.Random(block)
    run_block(block, "translated", lambda sheet: check_translated(rng, tmp_path, sheet))


def test_a_bad_byte_right_after_a_byte_order_mark_and_a_line_end(tmp_path):
    """The mark's three bytes count for nothing."""
    path = tmp_path / "t" / "xx" / "train.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xef\xbb\xbflabel\ttext\n\xffgood\tx\n")
    refused(lambda: load_task(tmp_path, "t", "xx", "train"), path, 2)
    with pytest.raises(UserError, match="byte 0xff"):
        load_task(tmp_path, "t", "xx", "train")


@pytest.mark.parametrize("raw, line", [(b"", 1), (b"\n", 1), (b"\xef\xbb\xbf", 1), (b"\r\n\r\n", 1),
                                       (b"\xff\xfel\0a\0", 1), (b"label\ttext", None), (b"label\ttext\n\n\n", None),
                                       (b"label text\ngood x\n", 1), (b"label,text\ngood,x\n", 1),
                                       (b"\xef\xbb\xbf\xef\xbb\xbflabel\ttext\ngood\tx\n", 1),
                                       (b"label\ttext\rgood\tx\rbad\ty\r", 1),
                                       (b"label\ttext\n\ngood\tx\n", 2), (b"LABEL\ttext\ngood\tx\n", 1)])
def test_files_that_are_no_table(tmp_path, raw, line):
    path = tmp_path / "t" / "xx" / "train.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    refused(lambda: load_task(tmp_path, "t", "xx", "train"), path, line)
    refused(lambda: load_task(tmp_path, "t", "xx", "train", ["good", "bad"]), path, line)


def test_a_line_of_ten_megabytes_is_a_row(tmp_path):
    long = "word \u2028" * 1_250_000
    write(tmp_path / "t" / "xx" / "train.tsv", ["label", "text"], [["good", long], ["bad", "x"]])
    assert load_task(tmp_path, "t", "xx", "train")[0] == [(long,), ("x",)]
    (tmp_path / "t" / "xx" / "train.tsv").write_bytes(b"label\ttext\ngood\t" + b"y" * 10 ** 7 + b"\xff\n")
    refused(lambda: load_task(tmp_path, "t", "xx", "train"), tmp_path / "t" / "xx" / "train.tsv", 2)


# The same through whole scripts
@pytest.fixture(scope="module")
def ready(tiny, tmp_path_factory):
    """(encoder folder, data root, run folder with an aligner and heads): read, never changed."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        out = step1(tiny, tmp_path_factory.mktemp("ready") / "run")
        step2_align.main(["--lang", "xx", "--arch", "shift", "--out", str(out)])
        step3_head.main(["--lang", "xx", "--out", str(out)])
    return *tiny, out


def quick(patch):
    patch.setattr(step3_head, "STEPS", 4)
    patch.setattr(step3_head, "EPOCHS", 2)
    patch.setattr(evaluation, "BOOTSTRAP", 100)


@pytest.fixture
def world(ready, tmp_path, monkeypatch):
    """A run folder of its own over data of its own: (data root, run folder, what runs a script)."""
    quick(monkeypatch)
    data, out = shutil.copytree(ready[1], tmp_path / "data"), shutil.copytree(ready[2], tmp_path / "run")
    load_encoder = step2_align.open_run.__globals__["load_encoder"]

    def moved(place):
        encoder, art = load_encoder(place)
        return encoder, {**art, "data": str(data)}
    monkeypatch.setitem(step2_align.open_run.__globals__, "load_encoder", moved)

    def start(name):
        if name.startswith("step1"):
            mode = ["--train-on", "native", "--lang", "xx"] if "native" in name else []
            step1_embed.main(["--model", str(ready[0]), "--data", str(data), "--task", "mood", "--epochs", "1",
                              "--device", "cpu", "--out", str(tmp_path / "new"), *mode])
        elif name == "step2":
            step2_align.main(["--lang", "xx", "--arch", "shift", "--out", str(out), "--device", "cpu"])
        elif name.startswith("step3"):
            step3_head.main(["--lang", "xx", "--method", name.split()[1], "--out", str(out), "--device", "cpu"])
        else:
            evaluation.main(["--lang", "xx", "--out", str(out), "--device", "cpu"])
            return json.loads((out / "results.json").read_text())
    return data / "mood", out, start


SPOTS = {"step1": ("en", "train"), "step2": ("xx", "translated"), "step3 native": ("xx", "train"),
         "step3 translated": ("xx", "translated"), "eval": ("xx", "test")}


@pytest.mark.parametrize("name", SPOTS)
@pytest.mark.parametrize("number", range(8))
def test_strange_files_through_whole_scripts(world, name, number, capsys):
    data, out, start = world
    lang, split = SPOTS[name]
    kind, path = "translated" if split == "translated" else "train", data / lang / f"{split}.tsv"
    rng = random.Random(f"{name} {number}")
    sheet = make_sheet(rng, kind)
    while "text_b" in sheet.lines[0] or sheet.labels != ["bad", "good"] or len(sheet.lines) < 22 or \
            number % 2 != verdict(sheet, kind, sheet.labels)[1]:         # half of them have a fault
        sheet = make_sheet(rng, kind)
    path.write_bytes(sheet.raw())
    if name == "step3 native":
        (data / "xx" / "dev.tsv").unlink()
    labels = None if name in ("step1", "step2") else sheet.labels
    told, wrong = verdict(sheet, kind, labels)
    before = {p: p.read_bytes() for p in out.rglob("*.pt") if "english" not in p.name and "cache" not in p.parts}
    if wrong:
        refused(lambda: start(name), path, told)
        after = {p: p.read_bytes() for p in out.rglob("*.pt") if "english" not in p.name and "cache" not in p.parts}
        assert after == before and not (out.parent / "new").exists()
    else:
        result = start(name)
        printed = capsys.readouterr().out
        assert name != "step1" or f" {len(told)} english rows" in printed
        assert name != "eval" or {row["items"] for row in result} == {len(told)}
        assert name != "step2" or f"{len(told) - len(told) // 10} pairs + {len(told) // 10} held" in printed


@pytest.mark.parametrize("name, lang, split, header, rows, line", [
    ("eval", "xx", "test", ["label", "text", "text_b"], [["good", "a", "b"], ["bad", "c", "d"]], 1),
    ("step1", "en", "dev", ["label", "text", "text_b"], [["good", "a", "b"], ["bad", "c", "d"]], 1),
    ("step3 native", "xx", "train", ["label", "text", "text_b"], [["good", "a", "b"], ["bad", "c", "d"]] * 9, 1),
    ("step1 native", "xx", "train", ["label", "text"], [["good", "a"]], None),
    ("step3 native", "xx", "train", ["label", "text"], [["good", "a"]], None),
    ("step3 translated", "xx", "translated", ["label", "text", "translation"], [["good", "a", "xa"]], None),
    ("eval", "xx", "test", ["label", "text"], [["good", "a"], ["meh", "b"]], 3),
    ("step1", "en", "train", ["label", "text"], [["good", "a"], ["good", "b"]], None)])
def test_rows_that_do_not_fit_the_task_are_refused(world, name, lang, split, header, rows, line):
    """Pairs for a task of single texts, one row where two are needed, a label only in test, one class."""
    data, _, start = world
    write(data / lang / f"{split}.tsv", header, rows)
    for dev in data.glob("xx/dev.tsv"):
        dev.unlink()
    refused(lambda: start(name), data / lang / f"{split}.tsv", line)


@pytest.mark.parametrize("arch", ["shift", "linear", "procrustes", "fc"])
def test_the_same_pair_over_and_over(world, arch):
    """Nothing to learn from, but no traceback: a table with warnings or one line."""
    data, out, _ = world
    write(data / "xx" / "translated.tsv", ["label", "text", "translation"], [["good", "a film", "xa xfilm"]] * 40)
    try:
        step2_align.main(["--lang", "xx", "--arch", arch, "--out", str(out), "--device", "cpu"])
    except UserError as err:
        assert len(str(err).splitlines()) == 1


def test_a_line_of_ten_megabytes_through_whole_scripts(world):
    data, _, start = world
    path = data / "xx" / "test.tsv"
    write(path, ["label", "text"], [["good", "xfilm " * 1_700_000], ["bad", "xwas"]])
    assert {row["items"] for row in start("eval")} == {2}
