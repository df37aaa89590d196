"""Turn public data sets into the format of data/README.md.

    python data/prepare.py nusax --lang jv
    python data/prepare.py sentiment --lang zh --raw downloads    # source files already there

Reads    the sources below: downloaded once into --cache, or lying in --raw under their own names.
Writes   <root>/<task>/en/{train,dev,test}.tsv, <root>/<task>/<lang>/{train,dev,test,translated}.tsv,
         as far as the sources give them, and only after every check has passed.
Expect   the row counts of SOURCES in this file, which are checked, less the rows dropped.

                  English                    target language                  translated.tsv
nusax, 11 langs   NusaX train, valid, test   NusaX train, valid, test         NusaX train, by people
xnli, 15 langs    XNLI dev + test, cut in 3  the same rows, dev and test      XNLI's, by people
sentiment ko      SST-2 train, dev           NSMC train (dev cut off), test   none: data/translate.py
sentiment ja      SST-2 train, dev           JRTE train, dev, test            none
sentiment zh      SST-2 train, dev           waimai + ChnSentiCorp, cut in 3  none
nli ko            MNLI train, XNLI dev, test KorNLI dev, test                 KorNLI's MNLI, by row
nli zh, sw, ur    MNLI train, XNLI dev, test XNLI dev, test                   XNLI-MT, by row
nli ja            MNLI train, XNLI dev, test JNLI train, dev, test            JSICK train, trial
NusaX: ace ban bbc bjn bug id jv mad min nij su. XNLI: ar bg de el es fr hi ko ru sw th tr ur vi zh.

Labels get the names of the English ones. A row is dropped, and counted, if its label is none of
them ("-", neutral reviews), a text is empty, it has too few or too many cells, or its texts stand in
test or dev too (test keeps them, then dev). English files are the same whatever --lang is. xnli
divides anew, by whole premises, the 7,500 rows that people translated (4,000 train, 500 dev, 3,000
test), so that the task's own rows have translations; the Korean ones are KorNLI's. SST-2 has
no public test labels, and many of its train rows are phrases of one sentence, so no English test is
cut off them. NusaX is joined by id, XNLI-MT with the English inside it and KorNLI with MNLI by row,
labels and counts checked. JSICK labels its languages apart; the Japanese labels are kept, since what
is trained on a pair's label reads its translation. JSICK's test rows stay unused.
"""

import argparse
import contextlib
import csv
import json
import lzma
import struct
import sys
import time
import unicodedata
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: two commands at once must not share --cache
    fcntl = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, fixed_order, run, write_atomic

SHARE, AT_MOST = 0.1, 2_000  # of the rows, for a dev or test that a source lacks
BROKEN = 0.001  # share of rows with a wrong number of cells above which a file is refused
BLOCK = 1 << 20  # bytes read at once, at most
PATIENCE, PACE = 60, 1_000  # a download ends that brings fewer than PACE bytes/s for PATIENCE s
LOOPBACK = ("127.0.0.1", "localhost")  # the only hosts that plain http is spoken with: tests
ON = "run the same command again, it goes on from there"
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, csv.Error, struct.error)
UNREADABLE += (zipfile.BadZipFile, zlib.error, lzma.LZMAError)  # RuntimeError: encrypted

BINARY = {"1": "positive", "0": "negative"}
THREE = {"1": "positive", "0": None, "-1": "negative"}  # None: rows that are dropped
NAMED = {name: name for name in ("positive", "neutral", "negative")}
NLI = {name: name for name in ("entailment", "neutral", "contradiction")}
NLI |= {"contradictory": "contradiction", "-": None}


class Source(NamedTuple):
    url: str  # a zip, or the folder in which the files lie
    labels: dict  # spelling in the source -> name here
    columns: str  # label, texts, and last the column `by`, if there is one
    files: dict  # name (in the zip: path) -> rows without the header
    by: str = ""  # column that tells a row's language or split
    header: str = ""  # for files that have none


GLUE, FBAI = "https://dl.fbaipublicfiles.com/glue/data/", "https://dl.fbaipublicfiles.com/XNLI/"
GITHUB = "https://raw.githubusercontent.com/"
NUSAX_URL = GITHUB + "IndoNLP/nusax/main/datasets/sentiment/"
WAIMAI = GITHUB + "SophonPlus/ChineseNlpCorpus/master/datasets/waimai_10k/"
HOTELS = GITHUB + "SophonPlus/ChineseNlpCorpus/master/datasets/ChnSentiCorp_htl_all/"
MT = "XNLI-MT-1.0/multinli/multinli.train.{}.tsv"
PAIR = "gold_label sentence1 sentence2"

# Counts and licences are what the authors' pages, or else the data's Hugging Face cards, state.
# JSICK's branch could not be looked up (HEAD is the default one).
SOURCES = {
    "SST-2": Source(
        GLUE + "SST-2.zip",
        BINARY,
        "label sentence",
        {"SST-2/train.tsv": 67_349, "SST-2/dev.tsv": 872},
    ),
    "MNLI": Source(GLUE + "MNLI.zip", NLI, PAIR, {"MNLI/train.tsv": 392_702}),
    "XNLI": Source(
        FBAI + "XNLI-1.0.zip",
        NLI,
        PAIR + " language",
        {"XNLI-1.0/xnli.dev.tsv": 15 * 2_490, "XNLI-1.0/xnli.test.tsv": 15 * 5_010},
        by="language",
    ),
    "XNLI-MT": Source(
        FBAI + "XNLI-MT-1.0.zip",
        NLI,
        "label premise hypo",
        {MT.format(lang): 392_702 for lang in ("en", "zh", "sw", "ur")},
    ),
    "KorNLI": Source(
        GITHUB + "kakaobrain/kor-nlu-datasets/master/KorNLI/",
        NLI,
        PAIR,
        {"multinli.train.ko.tsv": 392_702},
    ),
    "KorXNLI": Source(
        GITHUB + "kakaobrain/kor-nlu-datasets/master/KorNLI/",
        NLI,
        PAIR,
        {"xnli.dev.ko.tsv": 2_490, "xnli.test.ko.tsv": 5_010},
    ),
    "JNLI": Source(
        GITHUB + "yahoojapan/JGLUE/main/datasets/jnli-v1.3/",
        NLI,
        "label sentence1 sentence2",
        {"train-v1.3.json": 20_073, "valid-v1.3.json": 2_434, "test-v1.3.json": 2_508},
    ),
    "JSICK": Source(
        GITHUB + "verypluming/JSICK/HEAD/jsick/",
        NLI,
        "entailment_label_Ja sentence_A_En sentence_B_En sentence_A_Ja sentence_B_Ja data",
        {"jsick.tsv": 9_927},
        by="data",
    ),
    "JRTE": Source(
        GITHUB + "megagonlabs/jrte-corpus/master/data/",
        THREE,
        "label text usage",
        {"pn.tsv": 5_553},
        by="usage",
        header="id label text judges usage",
    ),
    "NSMC": Source(
        GITHUB + "e9t/nsmc/master/",
        BINARY,
        "label document",
        {"ratings_train.txt": 150_000, "ratings_test.txt": 50_000},
    ),
    "waimai": Source(WAIMAI, BINARY, "label review", {"waimai_10k.csv": 11_987}),
    "ChnSentiCorp": Source(HOTELS, BINARY, "label review", {"ChnSentiCorp_htl_all.csv": 7_766}),
}
LICENCES = {
    "SST-2": "none stated (nlp.stanford.edu/sentiment)",
    "MNLI": "mostly OANC, parts CC BY 3.0, CC BY-SA 3.0 and MIT",
    "XNLI": "CC BY-NC 4.0",
    "XNLI-MT": "CC BY-NC 4.0",
    "KorNLI": "CC BY-SA 4.0",
    "KorXNLI": "CC BY-SA 4.0",
    "JNLI": "CC BY-SA 4.0",
    "JSICK": "CC BY-SA 4.0 (its README: CC BY 4.0)",
    "JRTE": "CC BY-NC-SA 4.0",
    "NSMC": "CC0 1.0",
    "waimai": "none stated",
    "ChnSentiCorp": "none stated",
}
FOLDERS = """
ace:acehnese ban:balinese bbc:toba_batak bjn:banjarese bug:buginese en:english id:indonesian
jv:javanese mad:madurese min:minangkabau nij:ngaju su:sundanese
"""
XNLI = "ar bg de el es fr hi ru sw th tr ur vi zh"  # languages by people; Korean is KorNLI's
NUSAX = dict(pair.split(":") for pair in FOLDERS.split())  # language code -> folder in the source
for folder in NUSAX.values():
    counts = {f"{folder}/train.csv": 500, f"{folder}/valid.csv": 100, f"{folder}/test.csv": 400}
    SOURCES[f"NusaX {folder}"] = Source(NUSAX_URL, NAMED, "label id text", counts)
    LICENCES[f"NusaX {folder}"] = "CC BY-SA 4.0"
NEEDS = {
    ("sentiment", "ko"): ["SST-2", "NSMC"],
    ("sentiment", "ja"): ["SST-2", "JRTE"],
    ("sentiment", "zh"): ["SST-2", "waimai", "ChnSentiCorp"],
    ("nli", "ko"): ["MNLI", "XNLI", "KorNLI", "KorXNLI"],
    ("xnli", "ko"): ["XNLI", "KorXNLI"],
    ("nli", "ja"): ["MNLI", "XNLI", "JNLI", "JSICK"],
}
NEEDS |= {("nli", lang): ["MNLI", "XNLI", "XNLI-MT"] for lang in ("zh", "sw", "ur")}
NEEDS |= {("xnli", lang): ["XNLI"] for lang in XNLI.split()}
NEEDS |= {
    ("nusax", lang): ["NusaX english", f"NusaX {NUSAX[lang]}"] for lang in set(NUSAX) - {"en"}
}


# Getting the files
class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only; to plain http only from a loopback host to another."""

    def redirect_request(self, request, reply, code, message, headers, url):
        hosts = urlsplit(request.full_url).hostname, urlsplit(url).hostname
        if not url.startswith("https://") and not all(host in LOOPBACK for host in hosts):
            raise urllib.error.URLError(f"redirects to {url[:100]}, which is not https")
        return super().redirect_request(request, reply, code, message, headers, url)


def receive(url, part):
    """Add to the file `part` what it lacks of url; HTTPError 416 if nothing follows it.

    Halves of two editions are no danger: they fail the zip's checksum or the row count.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.build_opener(HttpsOnly).open(request, timeout=PATIENCE) as reply:
        if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the whole file comes, not the rest
        size = reply.headers.get("Content-Length")
        total = have + int(size) if size else None
        bar = tqdm(None, part.stem, total, False, initial=have, unit="B", unit_scale=True, delay=2)
        with open(part, "ab" if have else "wb") as file, bar:
            start, brought = time.monotonic(), 0
            while block := reply.read1(BLOCK):
                file.write(block)
                bar.update(len(block))
                brought += len(block)
                if time.monotonic() - start > PATIENCE:
                    if brought < PACE * PATIENCE:
                        raise TimeoutError(f"fewer than {PACE:,} bytes a second")
                    start, brought = time.monotonic(), 0
    if total not in (None, part.stat().st_size):
        raise OSError(f"cut at {part.stat().st_size:,} of {total:,} bytes, kept in {part}")


def download(url, path):
    """Fetch url to path by way of path.part, from where an earlier try was cut if it was."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            receive(url, part)
        except urllib.error.HTTPError as err:
            if err.code != 416 or not part.exists():
                raise
            part.unlink()  # it is longer than the file: none of its
            receive(url, part)
        part.replace(path)
    except urllib.error.HTTPError as err:
        mend = f"try later, or get {path.name} elsewhere and give its folder by --raw"
        raise UserError(f"{url}: HTTP {err.code} {err.reason}; {mend}")
    except (OSError, HTTPException, ValueError) as err:  # ValueError: a length that is no number
        why = str(getattr(err, "reason", err) or type(err).__name__).splitlines()[0]
        raise UserError(f"{url}: {why}; once network and disk ({part}) are well, {ON}")


def locate(source, file):
    """(URL, name under --raw or --cache) of a source's file, or of the zip that holds it."""
    if source.url.endswith(".zip"):
        return source.url, source.url.rsplit("/", 1)[1]
    return source.url + file, file


def fetch(names, raw, cache):
    """See that all files of the sources are in --raw, or download into --cache what it lacks."""
    found = [locate(SOURCES[name], file) for name in names for file in SOURCES[name].files]
    missing = {Path(raw or cache, name): url for url, name in found}
    missing = {path: url for path, url in missing.items() if not path.is_file()}
    if raw and missing:
        path, url = next(iter(missing.items()))
        needs = " ".join(dict.fromkeys(name for _, name in found))
        raise UserError(f"{path}: no such file; --raw needs {needs}; this one is from {url}")
    if missing:
        with alone(Path(cache)):
            for path, url in missing.items():
                if not path.exists():
                    download(url, path)


@contextlib.contextmanager
def alone(folder):
    """Of commands that download into one folder, all but one wait; a killed one holds up nobody."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another command that downloads into {folder}", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# Reading them
@contextlib.contextmanager
def opened(path, member):
    """The file at `path` or, if that is a zip, its member, in binary."""
    if path.suffix != ".zip":
        with open(path, "rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        if member not in archive.namelist():
            raise UserError(f"{path}: holds no {member}")
        with archive.open(member) as file:
            yield file


def text_lines(file, where):
    """Lines of a binary UTF-8 file as text, line ends kept; a BOM is taken off."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as err:
            raise UserError(f"{where}:{number}: byte {line[err.start]:#04x} is not UTF-8")


def json_records(lines, where, wanted):
    """(line, cells in the order of `wanted`) of a file with one JSON object a line."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
                yield number, [str(record[name]) for name in wanted]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{where}:{number}: no JSON object with {' '.join(wanted)}")


def table_records(lines, where, wanted, header):
    """(line, cells in the order of `wanted`) of a row; (line, None) if it is too short or long."""
    if where.endswith(".csv"):
        reader = csv.reader(lines)  # texts may hold commas, quotes and line breaks
        rows = ((reader.line_num, cells) for cells in reader)
    else:  # never quoted: a " is an ordinary character
        rows = ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(lines, 1))
    header = header or next(rows, (1, []))[1]
    for name in wanted:
        if name not in header:
            there = " ".join(header)[:150]
            raise UserError(f"{where}:1: no column {name!r} in the header {there!r}")
    order = [header.index(name) for name in wanted]
    for number, cells in rows:
        if cells not in ([], [""]):  # blank lines are no rows
            yield number, [cells[i] for i in order] if len(cells) == len(header) else None


def clean(text):
    """Composed (NFC), each run of spaces, tabs and line breaks as one space."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


class Reader:
    """Reads the sources' files; `report` has a line for each: its count and what was dropped.

    folder: where they lie; downloaded: they are ours, so that a bad one is deleted.
    """

    def __init__(self, folder, downloaded):
        self.folder, self.downloaded, self.report = Path(folder), downloaded, {}

    def __call__(self, name, file, only=()):
        """[(label, text, ...)] of one file, without the dropped rows."""
        return [row for row in self.aligned(name, file, only) if row]

    def aligned(self, name, file, only=()):
        """The same with None for a dropped row: the rows of two parallel files stay side by side.

        only: values of the column source.by; rows with others are left out without a trace.
        """
        url, local = locate(SOURCES[name], file)
        path = self.folder / local
        try:
            return self.read(name, file, only, path)
        except UserError as err:
            why = str(err)
        except UNREADABLE as err:
            why = f"{path}: unreadable ({str(err) or type(err).__name__})"
        mend = f"get it again from {url}"
        if self.downloaded:
            path.unlink(missing_ok=True)
            mend = f"{path.name} is deleted, the same command gets it again from {url}"
        raise UserError(f"{why}; {mend} (once more so: the source has changed, see SOURCES)")

    def read(self, name, file, only, path):
        source, rows, dropped, broken, count = SOURCES[name], [], Counter(), [], 0
        wanted, expected = source.columns.split(), source.files[file]
        where = str(path / file if path.suffix == ".zip" else path)
        with opened(path, file) as binary:
            lines = text_lines(binary, where)
            if file.endswith(".json"):
                found = json_records(lines, where, wanted)
            else:
                found = table_records(lines, where, wanted, source.header.split())
            for line, cells in tqdm(found, file, expected, unit="row", delay=2, leave=False):
                count += 1
                if cells is None:
                    broken.append(line)
                    rows.append(None)
                elif not source.by or cells.pop() in only:
                    rows.append(make_row(cells, source.labels, f"{where}:{line}", dropped))
        if count != expected:
            raise UserError(f"{where}: {count:,} rows, not the {expected:,} of {name}")
        if len(broken) > BROKEN * count:
            why = f"not as many cells as the header, the first of {len(broken):,} such rows"
            raise UserError(f"{where}:{broken[0]}: {why}")
        if broken:
            dropped["of another width"] = len(broken)
        told = [f"{name} {file}: {count:,} rows, as expected"]
        told += [f"of {' and '.join(only)} {len(rows):,}"] if only else []
        told += [f"dropped {n:,} {why}" for why, n in sorted(dropped.items())]
        self.report[name, file, only] = ", ".join(told)
        return rows


def make_row(cells, labels, where, dropped):
    """(label, text, ...), or None and a count in `dropped`; UserError for an unknown label."""
    label, *texts = cells[0].strip(), *map(clean, cells[1:])
    if label not in labels:
        raise UserError(f"{where}: label {label!r}, not one of {' '.join(labels)}")
    if labels[label] and all(texts):
        return labels[label], *texts
    dropped["with an empty text" if labels[label] else "without a label of the task"] += 1
    return None


# Making the splits
def cut(rows):
    """(the rest, a tenth of the rows, 2,000 at most), both in the one fixed shuffle."""
    order = fixed_order(len(rows))
    size = min(int(SHARE * len(rows)), AT_MOST)
    return [rows[i] for i in order[size:]], [rows[i] for i in order[:size]]


def join(english, target, names):
    """Rows of two files side by side: label, English texts, translations. Labels must agree."""
    mend = "they must be the same rows in the same order: delete both and get them again"
    if len(english) != len(target):
        raise UserError(f"{names[0]} has {len(english):,} rows, {names[1]} {len(target):,}; {mend}")
    for number, (a, b) in enumerate(zip(english, target), 1):
        if a and b and a[0] != b[0]:
            says = f"{names[0]} says {a[0]}, {names[1]} says {b[0]}"
            raise UserError(f"row {number:,}: {says}; {mend}")
    return [(*a, *b[1:]) for a, b in zip(english, target) if a and b]


def nusax(read, lang):
    """({(language, split): rows}, notes for the user); rows of two languages share an id."""
    files, notes = {}, []
    for split, name in (("train", "train"), ("dev", "valid"), ("test", "test")):
        for place in ("en", lang):
            files[place, split] = read(f"NusaX {NUSAX[place]}", f"{NUSAX[place]}/{name}.csv")
    english = files["en", "train"]
    by_id = {row[1]: row for row in files[lang, "train"]}
    names = [f"{NUSAX[place]}/train.csv" for place in ("en", lang)]
    both = join(english, [by_id.get(row[1]) for row in english], names)
    if len(both) < len(english):
        notes.append(f"{lang} translated: {len(english) - len(both)} ids of en are not there")
    files = {place: [(label, text) for label, _, text in rows] for place, rows in files.items()}
    files[lang, "translated"] = [(label, text, other) for label, _, text, _, other in both]
    return files, notes


def sentiment(read, lang):
    """({(language, split): rows}, notes for the user)."""
    files = {("en", split): read("SST-2", f"SST-2/{split}.tsv") for split in ("train", "dev")}
    notes = ["en has no test.tsv: the labels of SST-2's test are not public"]
    how = "by a fixed shuffle, a tenth of the rows, 2,000 at most"
    if lang == "ko":
        files["ko", "test"] = read("NSMC", "ratings_test.txt")
        files["ko", "train"], files["ko", "dev"] = cut(read("NSMC", "ratings_train.txt"))
        notes.append(f"ko dev: NSMC has none; cut off its train {how}")
    elif lang == "ja":
        for split in ("train", "dev", "test"):
            files["ja", split] = read("JRTE", "pn.tsv", (split,))
    else:
        rows = read("waimai", "waimai_10k.csv")
        rows += read("ChnSentiCorp", "ChnSentiCorp_htl_all.csv")
        rows, files["zh", "test"] = cut(rows)
        files["zh", "train"], files["zh", "dev"] = cut(rows)
        notes.append(f"zh test, dev: the sources have none; cut off both together {how}")
    notes.append(f"no {lang}/translated.tsv: SST-2 has none; data/translate.py makes one")
    return files, notes


def nli(read, lang):
    """({(language, split): rows}, notes for the user)."""
    files = {("en", "train"): read("MNLI", "MNLI/train.tsv")}
    notes = [] if lang == "ja" else [f"no {lang}/train.tsv: the sources have translated rows only"]
    for split in ("dev", "test"):
        files["en", split] = read("XNLI", f"XNLI-1.0/xnli.{split}.tsv", ("en",))
        if lang == "ko":
            files["ko", split] = read("KorXNLI", f"xnli.{split}.ko.tsv")
        elif lang != "ja":
            files[lang, split] = read("XNLI", f"XNLI-1.0/xnli.{split}.tsv", (lang,))
    if lang == "ja":
        files |= {
            ("ja", split): read("JNLI", f"{name}-v1.3.json")
            for split, name in (("train", "train"), ("dev", "valid"), ("test", "test"))
        }
        files["ja", "translated"] = read("JSICK", "jsick.tsv", ("train", "trial"))
    else:
        sources = [("XNLI-MT", MT.format("en")), ("XNLI-MT", MT.format(lang))]
        if lang == "ko":
            sources = [("MNLI", "MNLI/train.tsv"), ("KorNLI", "multinli.train.ko.tsv")]
        english, target = (read.aligned(*source) for source in sources)
        files[lang, "translated"] = join(english, target, [file for _, file in sources])
    return files, notes


def xnli(read, lang):
    """({(language, split): rows}, notes for the user): rows by people, divided by premise."""
    both = []
    for split in ("dev", "test"):
        name = f"XNLI-1.0/xnli.{split}.tsv"
        other = ("KorXNLI", f"xnli.{split}.ko.tsv") if lang == "ko" else ("XNLI", name, (lang,))
        both += join(read.aligned("XNLI", name, ("en",)), read.aligned(*other), [name, other[1]])
    premises = list(dict.fromkeys(row[1] for row in both))
    order = [premises[i] for i in fixed_order(len(premises))]
    test, dev = round(0.4 * len(order)), max(1, round(len(order) / 15))
    split_of = dict.fromkeys(order, "train") | dict.fromkeys(order[: test + dev], "dev")
    split_of |= dict.fromkeys(order[:test], "test")
    files = {}
    for row in both:
        split, english, other = split_of[row[1]], row[:3], (row[0], *row[3:])
        files.setdefault(("en", split), []).append(english)
        place, target = (split, other) if split != "train" else ("translated", row)
        files.setdefault((lang, place), []).append(target)
    return files, [f"no {lang}/train.tsv: its rows would be those of translated.tsv"]


def key(texts):
    """What equal rows share: the texts but for case and spaces (XNLI-MT is tokenised)."""
    return tuple("".join(text.lower().split()) for text in texts)


def hold_out(files, lang):
    """Drop what stands in test from dev, what stands in either from the rest; {place: dropped}."""
    held, before = {}, {place: len(rows) for place, rows in files.items()}
    for place in ("en", lang):
        seen = held[place] = set()
        for split in ("test", "dev", "train"):
            if rows := files.get((place, split)):
                files[place, split] = [row for row in rows if key(row[1:]) not in seen]
                seen |= {key(row[1:]) for row in rows} if split != "train" else set()
    if rows := files.get((lang, "translated")):
        half = (len(rows[0]) + 1) // 2  # label, English texts | translations
        files[lang, "translated"] = [
            row
            for row in rows
            if key(row[1:half]) not in held["en"] and key(row[half:]) not in held[lang]
        ]
    return {place: before[place] - len(rows) for place, rows in files.items()}


def write(path, rows):
    header = ["label", "text", "text_b"]
    if path.name == "translated.tsv":
        header = [*header[: (len(rows[0]) + 1) // 2], "translation", "translation_b"]
    table = [header[: len(rows[0])], *rows]
    try:
        write_atomic(path, "".join("\t".join(row) + "\n" for row in table).encode())
    except UserError as err:
        raise UserError(str(err).replace("--out", "--root"))


def get_args(argv=None):
    p = argparse.ArgumentParser(
        prog="data/prepare.py",
        description=__doc__,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "task", choices=("nusax", "sentiment", "nli", "xnli"), help="whose data to prepare"
    )
    p.add_argument(
        "--lang", required=True, help="target language, as in the table above, such as jv"
    )
    p.add_argument("--raw", help="folder with the source files under their own names: no network")
    p.add_argument("--root", default="data/real", help="folder to write (default: %(default)s)")
    p.add_argument("--cache", default="data/cache", help="of downloads (default: %(default)s)")
    args = p.parse_args(argv)
    if (args.task, args.lang) not in NEEDS:
        has = " ".join(sorted(lang for task, lang in NEEDS if task == args.task))
        p.error(f"{args.task} --lang {args.lang}: no such data here; {args.task} has {has}")
    for flag, folder in (("--root", args.root), ("--cache", args.cache)):
        if Path(folder).is_file():
            p.error(f"{flag} {folder}: a file; give a folder")
    return args


def main(argv=None):
    args = get_args(argv)
    names = NEEDS[args.task, args.lang]
    folders = f"{args.raw or args.cache} -> {args.root}"
    print(f"prepare | {args.task} {args.lang} | {', '.join(names)} | {folders}", flush=True)
    fetch(names, args.raw, args.cache)
    read = Reader(args.raw or args.cache, downloaded=not args.raw)
    make = {"nusax": nusax, "sentiment": sentiment, "nli": nli, "xnli": xnli}[args.task]
    files, notes = make(read, args.lang)
    lost = hold_out(files, args.lang)

    paths = {place: Path(args.root, args.task, place[0], f"{place[1]}.tsv") for place in files}
    for place, rows in files.items():
        if not rows:
            raise UserError(f"{paths[place]}: no rows are left for it; look at the source files")
    for place, rows in files.items():
        write(paths[place], rows)

    print(*read.report.values(), *notes, sep="\n")
    for place, rows in sorted(files.items()):
        held = f", less {lost[place]:,} that stand in test or dev too" if lost[place] else ""
        print(f"-> {paths[place]}: {len(rows):,} rows{held}")
    for name in names:
        print(f"licence of {name}: {LICENCES[name]} | {SOURCES[name].url}")
    print(
        f"next: python step1_embed.py --model xlm-roberta-base --data {args.root} "
        f"--task {args.task} --out runs/{args.task}"
    )


if __name__ == "__main__":
    run(main)
