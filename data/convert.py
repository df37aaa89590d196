"""Convert your own CSV, TSV or JSON file to the format of data/README.md, by column names.

    python data/convert.py reviews.csv --text review --label stars --rename 1=negative,5=positive \\
        --split 0.1 --out data/mine/reviews/en/train.tsv

Reads    one file with column names in its first line: CSV (comma, semicolon, tab or bar, quoted or
         not, as Excel saves it), or .json and .jsonl (one object a line, or one list of objects).
Writes   --out, <root>/<task>/<lang>/{train,dev,test}.tsv, or translated.tsv with --translation;
         with --split also dev.tsv beside train.tsv. Nothing before the whole file has been read.
Expect   the rows read, dropped and written, and each label with its count: are they yours?

The delimiter is the one for which the header has the columns you name. White space inside a text
becomes one space, and text is composed (NFC). Dropped, and counted: the header again, rows without a
text or a label, whose label --rename does not name, and all but the first of rows that are the same.
"""

import argparse
import codecs
import csv
import io
import json
import re
import shlex
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, fixed_order, run, warn_if, write_atomic

COLUMNS = ["label", "text", "text_b", "translation", "translation_b"]  # flags, and names written
QUOTING = (
    {"strict": True},  # "" inside quotes, as Excel writes it
    {"strict": True, "doublequote": False, "escapechar": "\\"},  # \" inside quotes
    {"quoting": csv.QUOTE_NONE},  # a " is an ordinary character, as in most TSV files
)
SHOWN = 12  # labels that are printed
MAGIC = {  # first bytes of files that are no text
    b"PK\x03\x04": "an Excel workbook or another zip",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a parquet file",
    b"\x1f\x8b": "a gzip",
}


def decode(raw, path, encoding):
    """Bytes -> text: of `encoding`, else of its byte order mark, else UTF-8."""
    for magic, kind in MAGIC.items():
        if raw.startswith(magic):
            raise UserError(f"{path}: {kind}, not text; save the table as CSV UTF-8")
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = encoding or ("utf-16" if utf16 else "utf-8")
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise UserError(f"--encoding {encoding}: unknown; for example cp949, cp1252 or utf-16-le")
    except UnicodeError as err:
        line = raw.count(b"\n", 0, getattr(err, "start", 0)) + 1
        raise UserError(
            f"{path}:{line}: not {encoding}; give --encoding, such as cp949 (Korean Windows), "
            "cp932 (Japanese), gb18030 (Chinese), cp1252 (Western)"
        )
    if "\0" in text:
        raise UserError(f"{path}: has NUL characters; give --encoding utf-16-le or utf-16-be")
    return text


def read_json(text, path, wanted):
    """(columns, [{column: value}]) of a list of objects, or of one object a line."""
    is_list = text.lstrip().startswith("[")
    lines = [text] if is_list else text.split("\n")
    try:
        is_one = not is_list and json.loads(text) is not None
    except ValueError:  # an object a line
        is_one = False
    if is_one:
        raise UserError(f"{path}: one object; give the list inside it, or one object a line")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line.strip() or "[]")
        except ValueError as err:
            raise UserError(f"{path}:{number}: not JSON ({err}); give one object a line, or a list")
        records += found if isinstance(found, list) else [found]
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: not all of it are objects; give one object a line, or a list")
    for number, record in enumerate(records, 1):
        for name in wanted:
            if isinstance(record.get(name), (dict, list)):
                what = f"{name!r} holds an object or a list"
                raise UserError(f"{path}: object {number}: {what}; put the text itself there")
    return list(dict.fromkeys(name for record in records for name in record)), records


def read_csv(text, path, wanted):
    """(columns, [{column: cell}]): the header tells the delimiter, the rows' width the quoting."""
    csv.field_size_limit(max(131_072, len(text)))  # texts over 128 KiB are texts, too
    sep = re.match(r"sep=(.)\r?\n", text)  # a first line that Excel writes and hides
    text = text[sep.end() :] if sep else text
    headers = {}
    for mark in sep[1] if sep else ",\t;|":
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), [])
        headers[mark] = [" ".join(cell.split()) for cell in cells]
    mark = max(
        headers, key=lambda mark: (len(set(wanted) & set(headers[mark])), len(headers[mark]))
    )
    columns, wrong = headers[mark], None
    for quoting in QUOTING:
        if "escapechar" in quoting and '\\"' not in text:
            continue
        reader, rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark, **quoting), []
        try:
            for row in reader:
                if any(map(str.strip, row)):
                    rows.append(dict(zip(columns, row, strict=True)))
        except (csv.Error, ValueError):  # ValueError: another number of cells than the header
            wrong = wrong or reader.line_num
            continue
        if wrong:
            print(f"note: {path}:{wrong}: its quotes are not CSV's; check how such texts came out")
        return columns, rows[1:]
    raise UserError(
        f"{path}:{wrong}: not the {len(columns)} cells of the header, or a quote that does not "
        "end; mend that line, or save the file as CSV again"
    )


def read(path, encoding, wanted):
    """The rows of a file as dicts; UserError that lists its columns if one is missing."""
    text = decode(path.read_bytes(), path, encoding)
    is_json = re.match(r'\s*(\[\s*)?\{\s*"', text)  # whatever its name
    if is_json or path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        columns, records = read_json(text, path, wanted)
    else:
        columns, records = read_csv(text, path, wanted)
    for name in wanted:
        if columns.count(name) != 1:
            what = "no column" if name not in columns else "more than one column"
            there = ", ".join(columns)[:200] or "none, the file is empty"
            raise UserError(f"{path}: {what} {name!r}; its columns are: {there}")
    return records


def clean(value):
    """A cell as the files here hold it: composed (NFC), any run of white space as one space."""
    text = unicodedata.normalize("NFC", "" if value is None else str(value))
    return " ".join(text.split()).strip("\u200b\ufeff")


def select(records, names, rename):
    """([(label, text, ...)], Counter of labels in the file, Counter of why rows were dropped)."""
    rows, labels, dropped = {}, Counter(), Counter()
    for record in tqdm(records, desc="convert", unit="row", delay=2, leave=False):
        label, *texts = cells = [clean(record.get(name)) for name in names]
        if cells == [clean(name) for name in names]:
            dropped["that are the header again"] += 1
            continue
        row = (rename.get(label, label), *texts)
        labels[label] += 1
        if not all(texts) or (names[0] and not label):
            dropped["without a text or label"] += 1
        elif rename and label not in rename:
            dropped["whose label --rename does not name"] += 1
        elif row in rows:
            dropped["that are the same as another"] += 1
        else:
            rows[row] = None
    return list(rows), labels, dropped


def split(rows, part):
    """(train, dev): dev has about `part` of the rows; rows that share the first text stay together."""
    groups = {}
    for row in rows:
        groups.setdefault("".join(row[1].casefold().split()), []).append(row)
    groups, dev = list(groups.values()), set()
    for i in fixed_order(len(groups)):
        if len(dev) + len(groups[i]) <= part * len(rows):
            dev.update(groups[i])
    return [row for row in rows if row not in dev], [row for row in rows if row in dev]


def quoted(counts):
    """Labels quoted with their counts, the most frequent first."""
    words = [f"{label!r} {count:,}" for label, count in counts.most_common(SHOWN)]
    return ", ".join(words) + (f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else "")


def doubts(rows, labels, rename):
    """What step 1 warns of or refuses in the labels of the rows, and the mend; "" if nothing."""
    names, looks = {row[0] for row in rows}, {}  # looks: a label as step 1 compares it -> label
    if len(names) > max(2, len(rows) / 10):
        return f"{len(names):,} classes in {len(rows):,} rows; is --label the label's column?"

    mend, alike = [], ""
    for old, _ in labels.most_common():
        if (new := rename.get(old, old)) in names:
            look = unicodedata.normalize("NFKC", new).casefold()
            look = re.sub(r"[\s\u00ad\u200b-\u200d\ufeff]", "", look)
            mend.append(f"{old}={looks.setdefault(look, new)}")
            alike = f"{looks[look]!r} and {new!r}" if looks[look] != new else alike
    if alike:
        mend = shlex.quote(",".join(mend))
        return f"labels {alike} look alike; mend them by --force --rename {mend}"
    return "one label only; a task has two or more" if len(names) < 2 else ""


def renames(text):
    """argparse type: "1=negative,5=positive" -> dict."""
    items = [item.split("=") for item in text.split(",")]
    if any(len(item) != 2 for item in items):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1=negative,5=positive")
    return {clean(old): clean(new) for old, new in items}


def get_args(argv=None):
    p = argparse.ArgumentParser(
        prog="data/convert.py",
        description=__doc__,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("file", type=Path, help="your file, with column names in its first line")
    p.add_argument("--text", required=True, help="column of the text; of a pair's first text")
    p.add_argument("--text-b", help="column of a pair's second text, such as NLI's hypothesis")
    p.add_argument("--label", help="column of the label; only --translation can do without")
    p.add_argument("--translation", help="column of the text's translation; for translated.tsv")
    p.add_argument("--translation-b", help="column of the second text's translation")
    p.add_argument("--rename", type=renames, default={}, help="labels: 1=negative,5=positive")
    p.add_argument("--out", type=Path, required=True, help="<root>/<task>/<lang>/train.tsv, ...")
    p.add_argument("--split", type=float, default=0, help="share of the rows for dev.tsv: 0.1")
    p.add_argument("--encoding", help="if neither UTF-8 nor UTF-16 with its mark: cp949, ...")
    p.add_argument("--force", action="store_true", help="replace files that are there already")
    args = p.parse_args(argv)

    if not args.file.is_file():
        p.error(f"{args.file}: no such file")
    names = ["translated.tsv"] if args.translation else ["train.tsv", "dev.tsv", "test.tsv"]
    if len(args.out.parts) < 3 or args.out.name not in names:
        p.error(f"--out {args.out}: give <root>/<task>/<lang>/{' or '.join(names)}")
    if not args.label and (args.rename or not args.translation):
        p.error("--label: name its column; only pairs for an aligner (--translation) need none")
    if bool(args.translation_b) != bool(args.translation and args.text_b):
        p.error("--translation-b: goes with --text-b and --translation, and they with it")
    if args.split and (args.out.name != "train.tsv" or not 0 < args.split < 1):
        p.error(f"--split {args.split:g}: a share such as 0.1, to cut dev.tsv off train.tsv")
    return args


def next_command(out):
    root, task, lang = out.parents[2], out.parents[1].name, out.parent.name
    if lang == "en":
        return (
            f"python step1_embed.py --model xlm-roberta-base --data {root} --task {task} "
            f"--out runs/{task}"
        )
    script = "step2_align.py" if out.name == "translated.tsv" else "eval.py"
    return f"python {script} --lang {lang} --out runs/{task}"


def main(argv=None):
    args = get_args(argv)
    header = [name for name in COLUMNS if name == "label" or getattr(args, name)]
    names = [getattr(args, name) for name in header]  # the file's names of them
    paths = [args.out, args.out.with_name("dev.tsv")] if args.split else [args.out]
    for path in paths:
        if path.exists() and not args.force:
            raise UserError(f"{path} is there already; change --out, or replace it with --force")

    records = read(args.file, args.encoding, [name for name in names if name])
    rows, labels, dropped = select(records, names, args.rename)
    if lost := [old for old in args.rename if old not in labels]:
        raise UserError(f"--rename: no label {lost[0]!r} in {args.file}; it has {quoted(labels)}")
    if not rows:
        found = f"no row of {len(records):,} is left; labels: {quoted(labels)}"
        raise UserError(f"{args.file}: {found}")
    parts = split(rows, args.split) if args.split else [rows]
    if not all(parts):
        raise UserError(f"--split {args.split}: {len(rows)} rows are too few; leave it out")

    for path, part in zip(paths, parts):
        write_atomic(path, "".join("\t".join(row) + "\n" for row in [header, *part]).encode())
    print(f"convert | {args.file}: {len(records):,} rows")
    for why, count in dropped.items():
        print(f"dropped {count:,} {why}")
    if args.label:
        print(f"labels: {quoted(Counter(row[0] for row in rows))}")
    for path, part in zip(paths, parts):
        print(f"-> {path}: {len(part):,} rows")
    doubt = doubts(rows, labels, args.rename) if args.label else ""
    warn_if(doubt, doubt)
    if not doubt:
        print(f"next: {next_command(args.out)}")


if __name__ == "__main__":
    run(main)
