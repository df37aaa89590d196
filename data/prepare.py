"""Turn public data sets into the format of data/README.md.

    python data/prepare.py nli --lang ko
    python data/prepare.py sentiment --lang zh --raw downloads      # source files already there, no network

Reads    the sources below: downloaded once into --cache, or lying in --raw under the names they have.
Writes   <root>/<task>/en/{train,dev,test}.tsv and <root>/<task>/<lang>/{train,dev,test,translated}.tsv, as
         far as the sources give them, and only after every check has passed.
Expect   the row counts of SOURCES in this file, which are checked, less the rows dropped, which are printed.

                  English                       target language                     translated.tsv
sentiment ko      SST-2 train, dev              NSMC train (a dev cut off), test    none: data/translate.py
sentiment ja      SST-2 train, dev              JRTE train, dev, test               none
sentiment zh      SST-2 train, dev              waimai + ChnSentiCorp, cut in 3     none
nli ko            MNLI train, XNLI dev, test    KorNLI dev, test                    KorNLI's MNLI, by row
nli zh, sw, ur    MNLI train, XNLI dev, test    XNLI dev, test                      XNLI-MT, by row
nli ja            MNLI train, XNLI dev, test    JNLI train, dev, test               JSICK train, trial

Labels get the names of the English ones. A row is dropped, and counted, if its label is none of them ("-",
neutral reviews), a text is empty, it has too few or too many cells, or its texts stand in test or dev too
(test keeps them, then dev). English files are the same whatever --lang is. SST-2 has no public test labels,
and many of its train rows are phrases of one sentence, so no English test is cut off them. XNLI-MT is joined
with the English inside it, KorNLI with MNLI: both by row, labels and counts checked. JSICK labels its
languages apart; the Japanese labels are kept, since what is trained on a pair's label reads its translation.
JSICK's test rows stay unused.
"""
import argparse
import contextlib
import csv
import json
import os
import re
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, fixed_order, run, write_whole  # noqa: E402

SHARE, AT_MOST = 0.1, 2_000    # of the rows, for a dev or test that a source lacks
BROKEN = 0.001                 # share of rows with a wrong number of cells above which a file is refused
BLOCK = 1 << 20                # bytes between two moves of the progress bar
ON = "run the same command again, it goes on from there"
CHANGED = "the file is cut or another edition, get it again from"
PARALLEL = "they must be the same rows in the same order: get both again"

BINARY = {"1": "positive", "0": "negative"}
THREE = {"1": "positive", "0": None, "-1": "negative"}                      # None: rows that are dropped
NLI = {name: name for name in ("entailment", "neutral", "contradiction")}
NLI |= {"contradictory": "contradiction", "-": None}

class Source(NamedTuple):
    url: str          # a zip, or the folder in which the files lie
    licence: str
    labels: dict      # spelling in the source -> name here
    columns: str      # label, texts, and last the column `by`, if there is one
    files: dict       # name (in the zip: path) -> rows without the header; None: printed, not checked
    by: str = ""      # column that tells a row's language or split
    header: str = ""  # for files that have none

GLUE, FBAI = "https://dl.fbaipublicfiles.com/glue/data/", "https://dl.fbaipublicfiles.com/XNLI/"
GITHUB = "https://raw.githubusercontent.com/"
CHINESE = GITHUB + "SophonPlus/ChineseNlpCorpus/master/datasets/"
MT = "XNLI-MT-1.0/multinli/multinli.train.{}.tsv"

# Counts and licences are what the authors' pages, or else the Hugging Face cards of the data, state. JSICK's
# branch could not be looked up (HEAD is the default one), and its pages do not agree on the licence.
SOURCES = {
    "SST-2": Source(GLUE + "SST-2.zip", "none stated (nlp.stanford.edu/sentiment)", BINARY, "label sentence",
                    {"SST-2/train.tsv": 67_349, "SST-2/dev.tsv": 872}),
    "MNLI": Source(GLUE + "MNLI.zip", "mostly OANC, parts CC BY 3.0, CC BY-SA 3.0 and MIT", NLI,
                   "gold_label sentence1 sentence2", {"MNLI/train.tsv": 392_702}),
    "XNLI": Source(FBAI + "XNLI-1.0.zip", "CC BY-NC 4.0", NLI, "gold_label sentence1 sentence2 language",
                   {"XNLI-1.0/xnli.dev.tsv": 15 * 2_490, "XNLI-1.0/xnli.test.tsv": 15 * 5_010}, "language"),
    "XNLI-MT": Source(FBAI + "XNLI-MT-1.0.zip", "CC BY-NC 4.0", NLI, "label premise hypo",
                      {MT.format(lang): 392_702 for lang in ("en", "zh", "sw", "ur")}),
    "KorNLI": Source(GITHUB + "kakaobrain/kor-nlu-datasets/master/KorNLI/", "CC BY-SA 4.0", NLI,
                     "gold_label sentence1 sentence2",
                     {"multinli.train.ko.tsv": 392_702, "xnli.dev.ko.tsv": 2_490, "xnli.test.ko.tsv": 5_010}),
    "JNLI": Source(GITHUB + "yahoojapan/JGLUE/main/datasets/jnli-v1.3/", "CC BY-SA 4.0", NLI,
                   "label sentence1 sentence2",
                   {"train-v1.3.json": 20_073, "valid-v1.3.json": 2_434, "test-v1.3.json": 2_508}),
    "JSICK": Source(GITHUB + "verypluming/JSICK/HEAD/jsick/", "CC BY-SA 4.0 (its README: CC BY 4.0)", NLI,
                    "entailment_label_Ja sentence_A_En sentence_B_En sentence_A_Ja sentence_B_Ja data",
                    {"jsick.tsv": 9_927}, "data"),
    "JRTE": Source(GITHUB + "megagonlabs/jrte-corpus/master/data/", "CC BY-NC-SA 4.0", THREE,
                   "label text usage", {"pn.tsv": 5_553}, "usage", "id label text judges usage"),
    "NSMC": Source(GITHUB + "e9t/nsmc/master/", "CC0 1.0", BINARY, "label document",
                   {"ratings_train.txt": 150_000, "ratings_test.txt": 50_000}),
    "waimai": Source(CHINESE + "waimai_10k/", "none stated", BINARY, "label review",
                     {"waimai_10k.csv": 11_987}),
    "ChnSentiCorp": Source(CHINESE + "ChnSentiCorp_htl_all/", "none stated", BINARY, "label review",
                           {"ChnSentiCorp_htl_all.csv": 7_766}),
}
NEEDS = {("sentiment", "ko"): "SST-2 NSMC", ("sentiment", "ja"): "SST-2 JRTE",
         ("sentiment", "zh"): "SST-2 waimai ChnSentiCorp", ("nli", "ko"): "MNLI XNLI KorNLI",
         ("nli", "ja"): "MNLI XNLI JNLI JSICK",
         **{("nli", lang): "MNLI XNLI XNLI-MT" for lang in ("zh", "sw", "ur")}}

# Getting the files
def urls(source):
    """{file: the URL that holds it}; a zip holds them all."""
    return {file: source.url + ("" if source.url.endswith(".zip") else file) for file in source.files}

def download(url, path):
    """Fetch url to path by way of path.part, from where an earlier try was cut, if the server lets us.

    Halves of two editions are no danger: they fail the zip's checksum or the row count.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as reply:
            if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0                                     # the whole file comes, not the rest
            size = reply.headers.get("Content-Length")
            total = have + int(size) if size else None
            bar = tqdm(desc=path.name, total=total, initial=have, unit="B", unit_scale=True, leave=False)
            with open(part, "ab" if have else "wb") as file, bar:
                while block := reply.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
        if total not in (None, part.stat().st_size):
            raise UserError(f"{url}: cut at {part.stat().st_size:,} of {total:,} bytes, kept in {part}; {ON}")
        os.replace(part, path)
    except urllib.error.HTTPError as err:
        if err.code == 416 and part.exists():                # nothing follows: the part is none of this file
            part.unlink()
            return download(url, path)
        raise UserError(f"{url}: HTTP {err.code} {err.reason}; try later, or get {path.name} elsewhere and "
                        "give its folder by --raw")
    except (OSError, HTTPException) as err:
        why = str(getattr(err, "reason", err) or type(err).__name__).splitlines()[0]
        raise UserError(f"{url}: {why}; once network and disk ({part}) are well, {ON}")

def fetch(names, raw, cache):
    """{url: path} of all that the sources need; UserError, before any work, if --raw lacks one."""
    paths = {url: Path(raw or cache, url.rsplit("/", 1)[1])
             for name in names for url in urls(SOURCES[name]).values()}
    for url, path in paths.items():
        if raw and not path.is_file():
            needs = " ".join(path.name for path in paths.values())
            raise UserError(f"{path}: no such file; --raw needs {needs}; this one is from {url}")
        if not path.exists():
            download(url, path)
    return paths

# Reading them
def text_lines(file, where):
    """Lines of a binary UTF-8 file as text, line ends kept; a BOM is taken off."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as err:
            raise UserError(f"{where}:{number}: byte {line[err.start]:#04x} is not UTF-8; get the file again")

def records(lines, where, source):
    """(line, cells in the order of source.columns) of each row; (line, None) if it is too short or long."""
    wanted = source.columns.split()
    if where.endswith(".json"):
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                    cells = [str(record[name]) for name in wanted]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{where}:{number}: no JSON object with {' '.join(wanted)}; "
                                    f"{CHANGED} {source.url}")
                yield number, cells
        return
    if where.endswith(".csv"):
        reader = csv.reader(lines)                           # texts may hold commas, quotes and line breaks
        rows = ((reader.line_num, cells) for cells in reader)
    else:                                                    # never quoted: a " is an ordinary character
        rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(lines, 1))
    header = source.header.split() or next(rows, (1, []))[1]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise UserError(f"{where}:1: no column {missing[0]!r} in the header {' '.join(header)[:150]!r}; "
                        f"{CHANGED} {source.url}")
    places = [header.index(name) for name in wanted]
    for number, cells in rows:
        if cells not in ([], [""]):                          # blank lines are no rows
            yield number, [cells[p] for p in places] if len(cells) == len(header) else None

@contextlib.contextmanager
def opened(path, member, url):
    """The file at `path` or, if that is a zip, its member, binary; errors of file and zip in one line."""
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix != ".zip":
                yield stack.enter_context(open(path, "rb"))
                return
            archive = stack.enter_context(zipfile.ZipFile(path))
            if member not in archive.namelist():
                raise UserError(f"{path}: holds no {member}; {CHANGED} {url}")
            yield stack.enter_context(archive.open(member))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, csv.Error) as err:
        raise UserError(f"{path}: unreadable ({err}); delete it and get it again from {url}")

def clean(text):
    """Tabs and line breaks of every kind become one space."""
    return re.sub("[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", text).strip()

class Reader:
    """Reads the sources' files; `report` holds a line for each, with its count and what was dropped."""
    def __init__(self, paths):
        self.paths, self.report = paths, {}

    def __call__(self, name, file, only=()):
        """[(label, text, ...)] of one file, None for a dropped row: rows of two files stay side by side.

        only: values of the column source.by; rows with others are left out without a trace.
        """
        source = SOURCES[name]
        url = urls(source)[file]
        path = self.paths[url]
        where = str(path if path.name == file else path / file)
        rows, count, dropped, broken = [], 0, Counter(), []
        with opened(path, file, url) as binary:
            for line, cells in records(text_lines(binary, where), where, source):
                count += 1
                if cells is None:
                    broken.append(line)
                    rows.append(None)
                elif not source.by or cells.pop() in only:
                    rows.append(make_row(cells, source.labels, f"{where}:{line}", dropped))
        self.check(name, file, where, count, broken, url)
        if broken:
            dropped["of another width"] = len(broken)
        told = [f"{count:,} rows, {'as expected' if source.files[file] else 'not checked'}"]
        told += [f"of {' and '.join(only)} {len(rows):,}"] if only else []
        told += [f"dropped {n:,} {why}" for why, n in sorted(dropped.items())]
        self.report[name, file, only] = f"{name} {file}: " + ", ".join(told)
        return rows

    def check(self, name, file, where, count, broken, url):
        expected = SOURCES[name].files[file]
        if expected not in (None, count):
            raise UserError(f"{where}: {count:,} rows, not the {expected:,} of {name}; {CHANGED} {url} "
                            "(if the source itself has changed, so must its count in data/prepare.py)")
        if len(broken) > BROKEN * count:
            raise UserError(f"{where}:{broken[0]}: not as many cells as the header, the first of "
                            f"{len(broken):,} such rows; {CHANGED} {url}")

def make_row(cells, labels, where, dropped):
    """(label, text, ...), or None and a count in `dropped`; UserError for a label that no source has."""
    label, *texts = cells[0].strip(), *map(clean, cells[1:])
    if label not in labels:
        raise UserError(f"{where}: label {label!r}, not one of {' '.join(labels)}; the file has changed")
    if labels[label] and all(texts):
        return labels[label], *texts
    dropped["with an empty text" if labels[label] else "without a label of the task"] += 1

# Making the splits
def whole(rows):
    return [row for row in rows if row]

def cut(rows):
    """(the rest, a tenth of the rows, 2,000 at most), both in the one fixed shuffle."""
    order = fixed_order(len(rows))
    size = min(int(SHARE * len(rows)), AT_MOST)
    return [rows[i] for i in order[size:]], [rows[i] for i in order[:size]]

def join(english, target, names):
    """Rows of two files side by side: label, English texts, translations. UserError where labels differ."""
    if len(english) != len(target):
        raise UserError(f"{names[0]} has {len(english):,} rows, {names[1]} {len(target):,}; {PARALLEL}")
    for number, (a, b) in enumerate(zip(english, target), 1):
        if a and b and a[0] != b[0]:
            raise UserError(f"row {number:,}: {names[0]} says {a[0]}, {names[1]} says {b[0]}; {PARALLEL}")
    return [(*a, *b[1:]) for a, b in zip(english, target) if a and b]

def sentiment(read, lang):
    """({(language, split): rows}, notes for the user)."""
    files = {("en", split): whole(read("SST-2", f"SST-2/{split}.tsv")) for split in ("train", "dev")}
    notes = ["en has no test.tsv: the labels of SST-2's test are not public"]
    how = "by a fixed shuffle, a tenth of the rows, 2,000 at most"
    if lang == "ko":
        files["ko", "test"] = whole(read("NSMC", "ratings_test.txt"))
        files["ko", "train"], files["ko", "dev"] = cut(whole(read("NSMC", "ratings_train.txt")))
        notes.append(f"ko dev: NSMC has none; cut off its train {how}")
    elif lang == "ja":
        for split in ("train", "dev", "test"):
            files["ja", split] = whole(read("JRTE", "pn.tsv", (split,)))
    else:
        rows = whole(read("waimai", "waimai_10k.csv") + read("ChnSentiCorp", "ChnSentiCorp_htl_all.csv"))
        rows, files["zh", "test"] = cut(rows)
        files["zh", "train"], files["zh", "dev"] = cut(rows)
        notes.append(f"zh test, dev: the sources have none; cut off both together {how}")
    notes.append(f"no {lang}/translated.tsv: there are no in-domain translations of SST-2; "
                 "data/translate.py makes one")
    return files, notes

def nli(read, lang):
    """({(language, split): rows}, notes for the user)."""
    train = read("MNLI", "MNLI/train.tsv")
    files = {("en", "train"): whole(train)}
    for split in ("dev", "test"):
        files["en", split] = whole(read("XNLI", f"XNLI-1.0/xnli.{split}.tsv", ("en",)))
        if lang == "ko":
            files["ko", split] = whole(read("KorNLI", f"xnli.{split}.ko.tsv"))
        elif lang != "ja":
            files[lang, split] = whole(read("XNLI", f"XNLI-1.0/xnli.{split}.tsv", (lang,)))
    if lang == "ja":
        files |= {("ja", split): whole(read("JNLI", f"{name}-v1.3.json"))
                  for split, name in (("train", "train"), ("dev", "valid"), ("test", "test"))}
        files["ja", "translated"] = whole(read("JSICK", "jsick.tsv", ("train", "trial")))
    elif lang == "ko":
        names = "MNLI/train.tsv", "multinli.train.ko.tsv"
        files["ko", "translated"] = join(train, read("KorNLI", names[1]), names)
    else:
        names = MT.format("en"), MT.format(lang)
        files[lang, "translated"] = join(*(read("XNLI-MT", name) for name in names), names)
    return files, [] if lang == "ja" else [f"no {lang}/train.tsv: the sources have translated rows only"]

def key(texts):
    """What two rows share that are the same: the texts but for case and spaces (XNLI-MT is tokenised)."""
    return tuple("".join(text.lower().split()) for text in texts)

def hold_out(files, lang):
    """Drop what stands in test from dev, and what stands in either from the others; {place: dropped}."""
    held, before = {}, {place: len(rows) for place, rows in files.items()}
    for place in ("en", lang):
        seen = held[place] = set()
        for split in ("test", "dev", "train"):
            if rows := files.get((place, split)):
                files[place, split] = [row for row in rows if key(row[1:]) not in seen]
                seen |= {key(row[1:]) for row in rows} if split != "train" else set()
    if rows := files.get((lang, "translated")):
        half = (len(rows[0]) + 1) // 2                       # label, English texts | translations
        files[lang, "translated"] = [row for row in rows if key(row[1:half]) not in held["en"]
                                     and key(row[half:]) not in held[lang]]
    return {place: before[place] - len(rows) for place, rows in files.items()}

def write(path, rows):
    header = {2: "label text", 3: "label text text_b", 5: "label text text_b translation translation_b"}
    table = [header[len(rows[0])].split(), *rows]
    try:
        write_whole(path, "".join("\t".join(row) + "\n" for row in table).encode())
    except UserError as err:
        raise UserError(str(err).replace("--out", "--root"))

def get_args(argv=None):
    p = argparse.ArgumentParser(prog="data/prepare.py", description=__doc__, usage=argparse.SUPPRESS,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("task", choices=("sentiment", "nli"), help="which task's data to prepare")
    p.add_argument("--lang", required=True, choices=("ko", "ja", "zh", "sw", "ur"),
                   help="target language; sw and ur for nli only")
    p.add_argument("--raw", help="folder with the source files under their own names; nothing is downloaded")
    p.add_argument("--root", default="data/real", help="folder to write (default: %(default)s)")
    p.add_argument("--cache", default="data/cache", help="folder of downloads (default: %(default)s)")
    args = p.parse_args(argv)
    if (args.task, args.lang) not in NEEDS:
        has = " ".join(lang for task, lang in NEEDS if task == args.task)
        p.error(f"{args.task} --lang {args.lang}: no public data here; {args.task} has {has}")
    return args

def main(argv=None):
    args = get_args(argv)
    names = NEEDS[args.task, args.lang].split()
    print(f"prepare | {args.task} {args.lang} | {', '.join(names)} | {args.raw or args.cache} -> {args.root}",
          flush=True)
    read = Reader(fetch(names, args.raw, args.cache))
    files, notes = (sentiment if args.task == "sentiment" else nli)(read, args.lang)
    lost = hold_out(files, args.lang)
    paths = {place: Path(args.root, args.task, place[0], f"{place[1]}.tsv") for place in files}
    for place, rows in files.items():
        if not rows:
            raise UserError(f"{paths[place]}: no rows are left for it; look at the source files")
    for place, rows in files.items():
        write(paths[place], rows)
    print(*read.report.values(), *notes, sep="\n")
    for place, rows in sorted(files.items()):
        held = f", less {lost[place]:,} dropped that stand in test or dev too" if lost[place] else ""
        print(f"-> {paths[place]}: {len(rows):,} rows{held}")
    for name in names:
        print(f"licence of {name}: {SOURCES[name].licence} | {SOURCES[name].url}")
    print(f"next: python step1_embed.py --model xlm-roberta-base --data {args.root} --task {args.task} "
          f"--out runs/{args.task}")

if __name__ == "__main__":
    run(main)
