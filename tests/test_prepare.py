"""data/prepare.py on tiny source files that are made by the tests."""

import csv
import io
import json
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import error_line, read_table

import prepare

SPLITS = ("train", "dev", "test")
NLI = ("entailment", "neutral", "contradiction")
GOLD = "gold_label sentence1 sentence2"
ANLI = prepare.TASKS["anli"][1].split()


def pairs(lang, numbers, *more):
    """Rows of label, premise, hypothesis. Three rows share a premise; the label follows from i."""
    return [[NLI[i % 3], f'"{lang} {i // 3}" a', f"{lang} {i} b", *more] for i in numbers]


def reviews(lang, numbers, labels):
    """Rows of id, label, text."""
    return [[f"{i}", labels[i % len(labels)], f'"{lang}", {i}'] for i in numbers]


class World:
    """A folder `raw` of tiny source files, whose row counts replace those of sources.txt."""

    def __init__(self, tmp_path, monkeypatch):
        self.raw, self.root = tmp_path / "raw", tmp_path / "real"
        self.sources = {name: {**s, "rows": ""} for name, s in prepare.SOURCES.items()}
        monkeypatch.setattr(prepare, "SOURCES", self.sources)
        for i, split in enumerate(SPLITS):
            self.sentiment(split, range(20 * i, 20 * i + 9))
            file = split.replace("dev", "valid") + "-v1.3.json"
            self.put("JNLI", file, "label sentence1 sentence2", pairs("ja", [900 + i]))
        rows = [[f"{i}", f"{1 - i % 3}", f"部屋{i}", "{}", SPLITS[i // 6]] for i in range(18)]
        self.put("JRTE", "pn.tsv", "", rows)
        rows = [[str(i % 2), f"房间\n{i}"] for i in range(20)]
        self.put("waimai", "waimai_10k.csv", "label review", rows)
        self.put("ChnSentiCorp", "ChnSentiCorp_htl_all.csv", "label review", rows[:1])
        for split, code, first in (("dev", 12_451, 300), ("test", 25_051, 600)):
            numbers = range(first, first + 30)
            rows = [row for lang in ("sw", "en") for row in pairs(lang, numbers, lang)]
            rows += [["-", "no", "label", "en"], ["neutral", "no", "", "en"]]
            self.put("XNLI", f"XNLI-1.0/xnli.{split}.tsv", GOLD + " language", rows)
            self.put("KorNLI", f"xnli.{split}.ko.tsv", GOLD, pairs("영", numbers))
            for i, lang in enumerate(ANLI):
                rows = pairs(lang, numbers[: 24 if split == "dev" else 3 + i])
                rows = [[str(code + n), *row] for n, row in enumerate(rows)]
                self.put("AmericasNLI", f"{split}/{lang}.tsv", "id label premise hypothesis", rows)
        self.put("MNLI", "MNLI/train.tsv", GOLD, pairs("en", [*range(10), 300, 11]))
        self.put("KorNLI", "multinli.train.ko.tsv", GOLD, pairs("영", [*range(10), 300, 602]))
        rows = [pairs("en", [i])[0] + pairs("ja", [i])[0][1:] + [SPLITS[i % 3]] for i in range(12)]
        self.put("JSICK", "jsick.tsv", self.sources["JSICK"]["columns"] + " data", rows)

    def sentiment(self, split, numbers):
        for lang in ("english", "javanese"):
            numbers = numbers[::-1]  # the id joins them, not the order
            file = f"{lang}/{split.replace('dev', 'valid')}.csv"
            rows = reviews(lang, numbers, ("positive", "neutral"))
            self.put("NusaX", file, "id label text", rows)
        for lang in ("eng_Latn", "quy_Latn"):
            rows = reviews(lang, numbers, ("travel", "science/technology"))
            self.put("SIB-200", f"{lang}/{split}.tsv", "index_id category text", rows)
        for lang, n in (("en", 9), ("en_400", 4), ("ha", 4), ("yo_400", 4), ("mt_en_yo", 4)):
            rows = reviews(lang.replace("_400", ""), numbers[:n], ("positive", "negative"))
            rows = [[text, label] for _, label, text in rows]
            self.put("NollySenti", f"{lang}/{split}.tsv", f"{lang}_review sentiment", rows)
        rows = [[f"film {i // 5}", str(i % 2)] for i in numbers]  # train and dev share no text
        self.put("SST-2", f"SST-2/{split}.tsv", "sentence label", rows)

    def put(self, name, file, header, rows):
        """Write a source file in its form and set its row count."""
        source, columns, out = self.sources[name], header.split(), io.StringIO()
        lines = [columns, *rows] if columns else rows
        if file.endswith(".json"):
            out.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        elif source["quoted"] == "yes":
            csv.writer(out, delimiter="," if file.endswith(".csv") else "\t").writerows(lines)
        else:
            out.writelines("\t".join(row) + "\n" for row in lines)
        zipped = source["url"].endswith(".zip")
        path = self.raw / (Path(source["url"]).name if zipped else file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if zipped:
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(file, out.getvalue())
        else:
            path.write_text(unicodedata.normalize("NFD", out.getvalue()), encoding="utf-8")
        source["rows"] += f" {file}={len(rows)}"

    def prepare(self, task, lang, *more):
        args = [task, "--lang", lang, "--root", self.root, *(more or ["--raw", self.raw])]
        prepare.main([str(arg) for arg in args])

    def refuse(self, *args, match):
        """Expect an error line that matches, and that nothing is written."""
        line = error_line(lambda: self.prepare(*args))
        assert re.search(match, line) and len(line) < 450 and not self.root.exists(), line


@pytest.fixture
def sources(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "task, lang, english, counts",
    [
        ("nusax", "jv", 9, {"train": 9, "dev": 9, "test": 9, "translated": 9}),
        ("sib200", "quy_Latn", 9, {"train": 9, "dev": 9, "test": 9, "translated": 9}),
        ("nolly", "ha", 9, {"train": 4, "dev": 4, "test": 4, "translated": 4}),
        ("nolly", "yo-mt", 9, {"train": 4, "dev": 4, "test": 4, "translated": 4}),
        ("xnli", "ko", 33, {"dev": 3, "test": 24, "translated": 33}),
        ("anli", "quy", 42, {"dev": 6, "test": 10, "translated": 18}),
        ("nli", "ko", 11, {"dev": 30, "test": 30, "translated": 10}),
        ("nli", "ja", 11, {"train": 1, "dev": 1, "test": 1, "translated": 4}),
        ("sentiment", "ja", 9, {"train": 4, "dev": 4, "test": 4}),
        ("sentiment", "zh", 9, {"train": 18, "dev": 1, "test": 2}),
    ],
)
def test_each_kind_of_source(sources, capsys, task, lang, english, counts):
    sources.prepare(task, lang)
    out, folder = capsys.readouterr().out, sources.root / task
    assert {path.stem: len(read_table(path)) - 1 for path in (folder / lang).iterdir()} == counts
    assert len(read_table(folder / "en/train.tsv")) - 1 == english
    assert "licence: " in out and "step1_embed.py --model intfloat/multilingual-e5-small" in out
    leaks = "translated.tsv: 10 rows, 2 in dev or test dropped" in out
    assert leaks == ((task, lang) == ("nli", "ko"))
    dropped = "62 rows, dropped 1 with an empty or an extra cell, dropped 1 with the label '-'"
    assert (dropped in out) == ("nli" in task)
    text = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.tsv"))
    assert unicodedata.is_normalized("NFC", text)
    pairs = read_table(folder / lang / "translated.tsv")[1:] if "translated" in counts else ()
    for _, *row in pairs:
        half = len(row) // 2
        numbers = [re.findall(r"\d+", " ".join(side)) for side in (row[:half], row[half:])]
        assert numbers[0] == numbers[1] and row[:half] != row[half:]  # side by side
        assert row[0].count('"') == row[half].count('"') == 2
    if lang == "yo-mt":
        assert row[1].startswith('"mt_en_yo"')


def test_anli_has_each_premise_in_one_split_and_the_same_english_for_each_language(sources):
    english = []
    for lang in (ANLI[0], ANLI[-1]):
        sources.prepare("anli", lang)
        files = [read_table(sources.root / f"anli/en/{s}.tsv")[1:] for s in SPLITS]
        assert sum(map(len, files)) == 60
        assert sum(len({row[1] for row in rows}) for rows in files) == 20
        english.append(files)
    assert english[0] == english[1]


@pytest.mark.parametrize(
    "file, old, new, match",
    [
        ("train.csv", b"positive", b"good", "train.csv: unknown label 'good' .*; get the file"),
        ("test.csv", b"id,label", b"id,name", "test.csv: no column 'label' in id name text"),
        ("train.csv", b"neutral", b"positive", "row 1: English .* 'neutral', its .* 'positive'"),
        ("train.csv", b"\n", b"\n9,neutral,more\n", "train.csv: 10 rows instead of 9"),
        ("train.csv", b"neutral", b"\xff", "train.csv: .*utf-8.* can't decode byte 0xff"),
    ],
)
def test_a_changed_source_is_one_line(sources, file, old, new, match):
    path = sources.raw / "javanese" / file
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    sources.refuse("nusax", "jv", match=match)
    assert path.exists()


def test_mistakes(sources):
    sources.refuse("nusax", "ko", match="nusax has no --lang ko; it has ace ban")
    sources.refuse("nusax", "jv", "--by", "machine", match="nusax has no --lang jv-mt")
    match = "nowhere/english/train.csv.*get the file from https://raw"
    sources.refuse("nusax", "jv", "--raw", "nowhere", match=match)


def test_downloads_are_kept_and_a_bad_one_is_deleted(sources, tmp_path, monkeypatch):
    names, cache, good = [], tmp_path / "cache", (sources.raw / "pn.tsv").read_bytes()

    def fetch(url, path, progress):
        names.append(Path(url).name)
        shutil.copy(sources.raw / names[-1], path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    (sources.raw / "pn.tsv").write_bytes(good * 2)
    match = "pn.tsv: 36 rows instead of 18; run the command again, or get the file from https"
    sources.refuse("sentiment", "ja", "--cache", cache, match=match)
    assert not (cache / "pn.tsv").exists()
    (sources.raw / "pn.tsv").write_bytes(good)
    for _ in range(2):
        sources.prepare("sentiment", "ja", "--cache", cache)
    assert names == ["SST-2.zip", "pn.tsv", "pn.tsv"]
