"""Turn public data sets into the format of data/README.md, which describes them.

    python data/prepare.py nusax --lang jv
    python data/prepare.py sib200 --lang quy_Latn --raw sib-200/data/annotated    # no network

Reads    the files of data/sources.txt, downloaded into --cache or found in --raw by the same names.
Writes   <root>/<task>/<en or lang>/{train,dev,test}.tsv, <root>/<task>/<lang>/translated.tsv, as far as
         the sources go, once every check has passed. English files do not depend on --lang.
Expect   the row counts of data/sources.txt and data/README.md; it counts what it drops.
"""

import argparse
import csv
import io
import json
import sys
import unicodedata
import zipfile
from collections import Counter
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import PAIRS, ROWS, UserError, fixed_order, run, write_atomic

# A new source needs a line in sources.txt (data/README.md explains its columns) and a task below.
with open(Path(__file__).with_name("sources.txt"), encoding="utf-8") as table:
    SOURCES = {source["name"]: source for source in csv.DictReader(table, delimiter="\t")}
LABELS = """positive neutral negative entailment contradiction
    entertainment geography health politics science/technology sports travel"""
LABELS = {name: name for name in LABELS.split()}  # label in a source -> label in our files
LABELS |= {"1": "positive", "0": "negative", "-1": "negative", "contradictory": "contradiction"}


# Tasks: each returns {(language, split): rows}, where rows are {key: (label, text, ...)} ------------
SPLITS = {"train": "train", "dev": "dev", "test": "test"}  # split -> its name in a source
VALID = SPLITS | {"dev": "valid"}
FOLDERS = """ace:acehnese ban:balinese bbc:toba_batak bjn:banjarese bug:buginese id:indonesian
    jv:javanese mad:madurese min:minangkabau nij:ngaju su:sundanese"""
FOLDERS = dict(pair.split(":") for pair in FOLDERS.split())  # language -> folder in NusaX


def parallel(read, lang, source, english, target, names=SPLITS, pairs=None):
    """Return the files of a source with the same rows in all languages. pairs: its files to join."""
    files = {}
    for split, name in names.items():
        files["en", split] = read(source, english.format(name))
        files[lang, split] = read(source, target.format(name))
    pairs = pairs or (english.format("train"), target.format("train"))
    return files | {(lang, "translated"): join(*(read(source, file) for file in pairs))}


def nusax(read, lang):
    return parallel(read, lang, "NusaX", "english/{}.csv", FOLDERS[lang] + "/{}.csv", VALID)


def sib200(read, lang):
    return parallel(read, lang, "SIB-200", "eng_Latn/{}.tsv", lang + "/{}.tsv")


def nolly(read, lang):
    """Only 410 of the 1,302 English rows are translated: by people, for <lang>-mt by a machine."""
    code = lang.removesuffix("-mt")
    path = "yo_400/{}.tsv" if code == "yo" else code + "/{}.tsv"
    pairs = "en_400/train.tsv", path.format("train") if lang == code else f"mt_en_{code}/train.tsv"
    return parallel(read, lang, "NollySenti", "en/{}.tsv", path, pairs=pairs)


def xnli_rows(read, lang):
    """Return XNLI's dev and test in one language: {(split, row number): row}."""
    rows = {}
    for split in ("dev", "test"):
        if lang == "ko":
            part = read("KorNLI", f"xnli.{split}.ko.tsv")
        else:
            part = read("XNLI", f"XNLI-1.0/xnli.{split}.tsv", (lang,))
        rows |= {(split, number): row for number, row in part.items()}
    return rows


def xnli(read, lang, target=None, tested=None):
    """Divide by premise: test has those of `tested` (default: 40%), dev a ninth of the others."""
    english = xnli_rows(read, "en")
    target = target or xnli_rows(read, lang)
    premises = list(dict.fromkeys(row[1] for row in english.values()))
    premises = [premises[i] for i in fixed_order(len(premises))]
    test = set(premises[: round(0.4 * len(premises))])
    if tested:
        test = {english[key][1] for key in tested if key in english}
    others = [premise for premise in premises if premise not in test]
    split_of = dict.fromkeys(others, "train") | dict.fromkeys(test, "test")
    split_of |= dict.fromkeys(others[: max(1, round(len(others) / 9))], "dev")

    def chosen(rows, split):
        return {k: rows[k] for k, row in english.items() if k in rows and split_of[row[1]] == split}

    files = {("en", split): chosen(english, split) for split in SPLITS}
    files |= {(lang, split): chosen(target, split) for split in ("dev", "test")}
    return files | {(lang, "translated"): chosen(join(english, target), "train")}


def anli(read, lang):
    """Join by id. English test rows are those that AmericasNLI tests in any language."""
    target, tested = {}, set()
    for key, row in read("AmericasNLI", f"dev/{lang}.tsv").items():
        target["dev", int(key) - 12_451] = row
    for other in TASKS["anli"][1].split():
        rows = read("AmericasNLI", f"test/{other}.tsv")
        rows = {("test", int(key) - 25_051): row for key, row in rows.items()}
        tested |= rows.keys()
        target |= rows if other == lang else {}
    return xnli(read, lang, target, tested)


def nli(read, lang):
    files = {("en", "train"): read("MNLI", "MNLI/train.tsv")}
    for place in ["en"] if lang == "ja" else ["en", lang]:
        for (split, number), row in xnli_rows(read, place).items():
            files.setdefault((place, split), {})[number] = row
    if lang == "ja":
        for split, file in VALID.items():
            files[lang, split] = read("JNLI", f"{file}-v1.3.json")
        pairs = read("JSICK", "jsick.tsv", ("train", "trial"))
    elif lang == "ko":
        pairs = join(files["en", "train"], read("KorNLI", "multinli.train.ko.tsv"))
    else:
        path = "XNLI-MT-1.0/multinli/multinli.train.{}.tsv"
        pairs = join(*(read("XNLI-MT", path.format(code)) for code in ("en", lang)))
    return files | {(lang, "translated"): pairs}


def sentiment(read, lang):
    """Cut Korean dev, Chinese dev and test off the train rows: a tenth each, at most 2,000 rows."""
    files = {("en", split): read("SST-2", f"SST-2/{split}.tsv") for split in ("train", "dev")}
    if lang == "ja":
        return files | {(lang, split): read("JRTE", "pn.tsv", (split,)) for split in SPLITS}
    if lang == "ko":
        rows, test = read("NSMC", "ratings_train.txt"), read("NSMC", "ratings_test.txt")
    else:
        hotels = read("ChnSentiCorp", "ChnSentiCorp_htl_all.csv")
        rows = [*read("waimai", "waimai_10k.csv").values(), *hotels.values()]
        rows, test = cut(dict(enumerate(rows)))
    train, dev = cut(rows)
    return files | {(lang, "train"): train, (lang, "dev"): dev, (lang, "test"): test}


TASKS = {  # function, languages as patterns
    "nusax": (nusax, " ".join(FOLDERS)),
    "nolly": (nolly, "ha ha-mt ig ig-mt pcm pcm-mt yo yo-mt"),
    "sib200": (sib200, "???_????"),
    "xnli": (xnli, "ar bg de el es fr hi ko ru sw th tr ur vi zh"),
    "anli": (anli, "aym bzd cni gn hch nah oto quy shp tar"),
    "nli": (nli, "ja ko sw ur zh"),
    "sentiment": (sentiment, "ja ko zh"),
}


def cut(rows):
    """Return (the others, a tenth of the rows but at most 2,000), in a fixed shuffle."""
    keys, size = list(rows), min(len(rows) // 10, 2_000)
    keys = [keys[i] for i in fixed_order(len(keys))]
    return {key: rows[key] for key in keys[size:]}, {key: rows[key] for key in keys[:size]}


def join(english, target):
    """Return {key: (label, English texts, translations)} of the keys in both; labels must agree."""
    pairs = {key: (*row, *target[key][1:]) for key, row in english.items() if key in target}
    for key, (label, *_) in pairs.items():
        if label != target[key][0]:
            other = f"English has the label {label!r}, its translation {target[key][0]!r}"
            raise UserError(f"row {key}: {other}; delete the two source files and get them again")
    return pairs


def hold_out(files, lang):
    """Drop rows whose texts also occur in test or dev; test keeps its rows. Return the counts."""
    held, dropped = set(), {}
    for place, split in sorted(files, key=lambda file: "test dev train translated".index(file[1])):
        rows, sides = files[place, split], {}
        for key, (_, *texts) in rows.items():
            texts = ["".join(text.lower().split()) for text in texts]  # XNLI-MT is tokenised
            half = len(texts) // 2
            sides[key] = {(place, *texts)}
            if split == "translated":
                sides[key] = {("en", *texts[:half]), (lang, *texts[half:])}
        kept = {key: row for key, row in rows.items() if not sides[key] & held}
        if split in ("test", "dev"):
            held.update(*(sides[key] for key in kept))
        if not kept:
            raise UserError(f"no rows are left for {place}/{split}.tsv; check the source files")
        files[place, split], dropped[place, split] = kept, len(rows) - len(kept)
    return dropped


def read_source(folder, download, name, file, only=()):
    """Return {key: (label, text, ...)} of a file, only of rows with a `by` in `only` if that is given.

    Raises UserError if the file is not what sources.txt says, and deletes it if it was downloaded.
    """
    source = SOURCES[name]
    zipped = source["url"].endswith(".zip")
    url = source["url"] if zipped else source["url"] + file
    path = Path(folder, Path(url).name if zipped else file)
    try:
        if download and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            print(f"downloading {url}", flush=True)
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        content = zipfile.ZipFile(path).read(file) if zipped else path.read_bytes()
        rows, count, dropped = parse(source, file, content.decode("utf-8-sig"), only)
        expected = (pair.split("=") for pair in source["rows"].split())
        expected = next(int(n) for pattern, n in expected if fnmatch(file, pattern))
        if count != expected:
            raise ValueError(f"{count:,} rows instead of {expected:,}")
    except Exception as err:  # whatever network, disk, zip, UTF-8, CSV and JSON raise
        if download:
            path.unlink(missing_ok=True)
        again = "run the command again, or " if download else ""
        raise UserError(f"{path}: {err or type(err).__name__}; {again}get the file from {url}")
    counts = "".join(f", dropped {n:,} {kind}" for kind, n in sorted(dropped.items()))
    print(f"{name} {file}: {count:,} rows{counts} (licence: {source['licence']})", flush=True)
    return rows


def parse(source, file, text, only):
    """Return {key: (label, text, ...)}, the number of rows, and a Counter of dropped ones."""
    columns, header = source["columns"].split(), source["header"].split() or None
    lines = io.StringIO(text.replace("\r\n", "\n").replace("\r", " "))
    tab = "," if file.endswith(".csv") else "\t"
    quoting = csv.QUOTE_MINIMAL if source["quoted"] == "yes" else csv.QUOTE_NONE
    records = csv.DictReader(lines, header, delimiter=tab, quoting=quoting)
    if file.endswith(".json"):
        records = map(json.loads, lines)
    # a file can have a header in spite of source["header"]
    records = [record for record in records if record.get(columns[0]) != columns[0]]
    chosen = [record for record in records if not only or record[source["by"]] in only]
    rows, dropped = {}, Counter()
    for number, record in enumerate(chosen):
        if lost := [column for column in columns if column not in record]:
            raise ValueError(f"no column {lost[0]!r} in {' '.join(record)}")
        texts = (unicodedata.normalize("NFC", record[column] or "") for column in columns)
        label, *texts = (" ".join(text.split()) for text in texts)
        if None in record or not label or not all(texts):
            dropped["with an empty or an extra cell"] += 1
        elif label == source["drop"]:
            dropped[f"with the label {label!r}"] += 1
        elif label not in LABELS:
            raise ValueError(f"unknown label {label!r} of {texts[0][:60]!r}")
        else:
            rows[record[source["key"]] if source["key"] else number] = (LABELS[label], *texts)
    return rows, len(records), dropped


def main(argv=None):
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("data/prepare.py", description=__doc__, formatter_class=form)
    flag = p.add_argument
    flag("task", choices=TASKS, help="task to prepare")
    languages = "; ".join(f"{task}: {listed}" for task, (_, listed) in TASKS.items())
    flag("--lang", required=True, help=f"target language ({languages}; ? is any letter)")
    flag("--by", choices=["people", "machine"], help="who translated nolly (default: people)")
    flag("--raw", help="folder with the source files (default: download them)")
    flag("--root", default="data/real", help="folder to write to (default: %(default)s)")
    flag("--cache", default="data/cache", help="folder of the downloads (default: %(default)s)")
    args = p.parse_args(argv)
    make, languages = TASKS[args.task]
    lang = args.lang + "-mt" if args.by == "machine" else args.lang
    if not any(fnmatch(lang, pattern) for pattern in languages.split()):
        p.error(f"{args.task} has no --lang {lang}; it has {languages}")

    files = make(cache(partial(read_source, args.raw or args.cache, not args.raw)), lang)
    dropped = hold_out(files, lang)
    for (place, split), rows in files.items():
        path = Path(args.root, args.task, place, f"{split}.tsv")
        width = len(next(iter(rows.values())))
        header = PAIRS[width > 3] if split == "translated" else ROWS[width > 2]
        table = [header.split(), *rows.values()]
        write_atomic(path, "".join("\t".join(row) + "\n" for row in table).encode())
        leaks = dropped[place, split]
        leaks = f", {leaks:,} in dev or test dropped" if leaks else ""
        print(f"-> {path}: {len(rows):,} rows{leaks}")
    print("next: python step1_embed.py --model intfloat/multilingual-e5-small", end=" ")
    print(f"--data {args.root} --task {args.task} --out runs/{args.task}")


if __name__ == "__main__":
    run(main)
