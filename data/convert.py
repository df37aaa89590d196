"""Convert your own CSV, TSV or JSON file to the format of data/README.md, by column names.

    python data/convert.py reviews.csv --text review --label stars --rename 1=negative,5=positive \\
        --split 0.1 --out data/mine/reviews/en/train.tsv

Reads    CSV (comma, semicolon, tab or bar, quoted or not, as Excel saves it) with column names in the
         first line, or JSON (one object per line, or one list of objects).
Writes   --out, and with --split also dev.tsv next to train.tsv. After an error it writes nothing.
Expect   the number of rows read, dropped and written, and each label with its count: check them.
"""

import argparse
import csv
import io
import json
import re
import shlex
import sys
import unicodedata
from collections import Counter, defaultdict
from decimal import Decimal
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import PAIRS, ROWS, UserError, fixed_order, run, warn, write_atomic

COLUMNS = "label", "text", "text_b", "translation", "translation_b"  # flags, and names written
QUOTING = (
    {"strict": True},  # "" inside quotes, as Excel writes it
    {"strict": True, "doublequote": False, "escapechar": "\\"},  # \" inside quotes
    {"quoting": csv.QUOTE_NONE},  # a " is an ordinary character, as in most TSV files
)
# What JSON, pandas, databases and Excel write for a missing value
MISSING = ["", "null", "NULL", "None", "NaN", "nan", "NaT", "NA", "N/A", "n/a", "<NA>", "\\N"]
MISSING += ["#NA", "#N/A", "#NAME?", "#VALUE!", "#REF!", "#DIV/0!", "#NULL!", "#NUM!"]


def decode(raw, path, encoding):
    """Return the text in the bytes of a file. Raises UserError if they are no text of `encoding`."""
    encoding = encoding or ("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
        if "\0" in text:  # UTF-16 without its mark, or no text at all
            raise UnicodeError
        return text
    except (LookupError, UnicodeError) as err:
        line = raw.count(b"\n", 0, getattr(err, "start", 0)) + 1
        known = "utf-16-le, cp949 (Korean), cp932 (Japanese), gb18030 (Chinese), cp1252 (Western)"
        how = f"save the table as CSV UTF-8, or set --encoding: {known}"
        raise UserError(f"{path}:{line}: not {encoding} text; {how}")


def read_json(text, path):
    """Return (columns, [{column: value}]). Numbers stay as the file writes them."""
    if not text.lstrip().startswith("["):  # one object per line
        text = "[" + re.sub(r"\s*\n", r",\g<0>", text.rstrip()) + "]"
    try:
        records = json.loads(text, parse_int=str, parse_float=str)
        return list(dict.fromkeys(name for record in records for name in dict(record))), records
    except ValueError as err:
        what = f"no objects with column names, one per line or in one list ({err})"
        raise UserError(f"{path}:{getattr(err, 'lineno', 1)}: {what}")


def csv_rows(lines, mark, quoting):
    """Return [(first line, cells)] of the rows that are not empty. A broken row, the last, has no cells."""
    reader, rows, start = csv.reader(lines, delimiter=mark, **quoting), [], 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows.append((start, cells))
            start = reader.line_num + 1
    except csv.Error:
        rows.append((start, []))
    return rows


def read_csv(text, path, names):
    """Return (columns, [{column: cell}]) by the delimiter and the quoting that fit best.

    They find the most names in the header, have no row of another width or the latest, and lose the
    fewest rows: a text that begins with a lone " would swallow all rows up to the next ". Rows are lost
    if more lines than rows are rows by themselves: as wide as the header, with a label of the file.
    """
    csv.field_size_limit(max(131_072, len(text)))  # a text may be longer than Python's limit
    lines, marks, fits = list(io.StringIO(text, newline="")), ",\t;|", []
    if sep := re.match(r"sep=(.)\s", text):  # a line that Excel writes and hides
        lines[0], marks = "\n", sep[1]
    for mark, quoting in product(marks, QUOTING):
        (_, header), *rows = csv_rows(lines, mark, quoting) or [(1, [])]
        columns = [" ".join(cell.split()) for cell in header]
        bad = [start for start, cells in rows if len(cells) != len(columns)] + [len(lines) + 1]
        lost = 0
        if {*names} <= {*columns, None} and len(bad) == 1:
            place = columns.index(names[0]) if names[0] else 0
            labels = {cells[place] for _, cells in rows} - {""}
            parts = [line.strip("\r\n").split(mark) for line in lines]
            parts = [cells[place].strip('"') for cells in parts if len(cells) == len(columns)]
            lost = max(0, sum(label in labels or not names[0] for label in parts) - len(rows) - 1)
        score = len({*names} & {*columns}), bad[0], -lost, len(columns), -len(fits)
        fits.append((score, columns, rows, quoting))
    (found, bad, lost, *_), columns, rows, quoting = max(fits, key=lambda fit: fit[0])
    if bad <= len(lines):
        what = f"not the {len(columns)} cells of the header, or a quote that does not end"
        raise UserError(f"{path}:{bad}: {what}; correct that line")
    if lost:
        start, _ = max(rows, key=lambda row: "".join(row[1]).count("\n"))
        warn(f"{path}:{start}: a quoted cell holds lines that look like rows; check its quotes")
    elif quoting is not QUOTING[0]:
        print(f"note: the quotes in {path} are not CSV's; check how texts with quotes came out")
    return columns, [dict(zip(columns, cells)) for _, cells in rows]


def clean(value):
    """Return a cell as our files hold it: composed (NFC), each run of white space as one space."""
    text = unicodedata.normalize("NFC", "" if value is None else str(value))
    return " ".join(text.split()).strip(" \u200b\ufeff")


def read(path, encoding, names):
    """Return [[label, text, ...]]. A label in a list of one, in JSON or as pandas writes it, is that label."""
    text = decode(path.read_bytes(), path, encoding)
    is_json = re.match(r'\s*(\[\s*)?\{\s*"', text) or path.suffix in (".json", ".jsonl", ".ndjson")
    columns, records = read_json(text, path) if is_json else read_csv(text, path, names)
    for name in filter(None, names):
        if columns.count(name) != 1:
            what = f"{'two columns' if name in columns else 'no column'} {name!r}"
            raise UserError(f"{path}: {what}; its columns are: {', '.join(columns)[:200]}")
    rows = []
    for number, record in enumerate(records, 1):
        where = f"{path}: {'object' if is_json else 'row'} {number}"
        values = [record.get(name) for name in names]
        cells = [clean(value) for value in values]
        kinds = [dict] + [(dict, list)] * (len(names) - 1)
        if any(map(isinstance, values, kinds)) or re.search("[\0\ud800-\udfff]", "".join(cells)):
            what = "holds an object, a list, a NUL or half an emoji (\\ud800 to \\udfff)"
            raise UserError(f"{where} {what}; put whole text there")
        if re.fullmatch(r"\[.*\]", cells[0]):
            parts = re.findall(r"""'[^']*'|"[^"]*"|[^\s,;|]+""", cells[0][1:-1]) or [""]
            if len(parts) > 1:
                raise UserError(f"{where}: several labels per row: {cells[0][:60]}; keep one")
            cells[0] = clean(parts[0].strip("'\""))
        rows.append(cells)
    return rows


def canonical(label):
    """Return one spelling of labels that are the same number or truth value, None for another label.

    1, 1.0, +1 and 01 are '1', True is 'true'. `select` uses it if it spells all labels of the file.
    """
    if re.fullmatch(r"[+-]?\d+\.?\d*", label):
        return f"{(Decimal(label) + 0).normalize():f}"
    return label.casefold() if label.casefold() in ("true", "false") else None


def check_labels(names, path):
    """Raises UserError if `names`, {label: its new name}, hold several labels in one, or look-alikes."""
    parts = {label: {part.strip() for part in re.split("[,;|/]", label)} for label in names}
    seen = Counter(part for found in parts.values() for part in found)
    for label, found in parts.items():
        if len(found) > 1 and min(seen[part] for part in found) > 1:
            raise UserError(f"{path}: several labels per row, such as {label!r}; keep one per row")
    first = {}
    looks = {
        name: "".join(unicodedata.normalize("NFKC", name).casefold().split())
        for name in names.values()
    }
    alike = {label: first.setdefault(looks[name], name) for label, name in names.items()}
    if alike != names:
        flag = shlex.quote(",".join(f"{label}={name}" for label, name in alike.items()))
        raise UserError(f"{path}: labels look alike; make them one by --rename {flag}")


def select(rows, names, rename, path):
    """Return ([(label, text, ...)], {reason: Counter of what was dropped})."""
    header, kept, dropped = [clean(name) for name in names], [], defaultdict(Counter)
    for cells in rows:
        needed = cells if names[0] and cells[0] not in rename else cells[1:]
        if cells == header:
            dropped["that repeat the header"]["header"] += 1
        elif lost := [cell for cell in needed if cell in MISSING]:
            dropped["without a text or label"][lost[0]] += 1
        else:
            kept.append(cells)
    labels = Counter(label for label, *_ in kept)
    if all(map(canonical, labels)):
        if changed := [label for label in labels if canonical(label) != label]:
            warn(f"labels of the same number are one: {changed[0]!r} is {canonical(changed[0])!r}")
        kept = [(canonical(label), *texts) for label, *texts in kept]
        labels = Counter(label for label, *_ in kept)
        rename = {canonical(old) or old: new for old, new in rename.items()}
    if lost := [old for old in rename if old not in labels]:
        raise UserError(f"--rename: no label {lost[0]!r} in {path}; it has {quoted(labels)}")
    names = rename or {label: label for label, _ in labels.most_common()}
    check_labels(names, path)

    done = {}
    for label, *texts in kept:
        row = (names.get(label), *texts)
        if label not in names:
            dropped["whose label --rename does not name"][label] += 1
        elif row in done:
            dropped["that equal an earlier row"][texts[0]] += 1
        else:
            done[row] = None
    return list(done), dropped


def split(rows, share):
    """Return (train, dev): about `share` of the texts are in dev, with all rows of a first text."""
    first = list(dict.fromkeys(row[1].casefold() for row in rows))
    held = {first[i] for i in fixed_order(len(first))[: round(share * len(first))]}
    train = [row for row in rows if row[1].casefold() not in held]
    return train, [row for row in rows if row[1].casefold() in held]


def quoted(counts):
    """Return labels or texts in quotes with their counts, the most frequent first."""
    words = [f"{name[:40]!r} {count:,}" for name, count in counts.most_common(12)]
    return ", ".join(words) + (f" and {len(counts) - 12:,} more" if len(counts) > 12 else "")


def renames(text):
    """Return "1=negative,5=positive" as a dict, for argparse."""
    return {clean(old): clean(new) for old, new in (item.split("=") for item in text.split(","))}


def get_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("data/convert.py", description=__doc__, formatter_class=raw)
    flag = p.add_argument
    flag("file", type=Path, help="your file, with column names in its first line")
    flag("--text", required=True, help="column of the text, or of a pair's first text")
    flag("--text-b", help="column of a pair's second text, such as NLI's hypothesis")
    flag("--label", help="column of the label; only --translation works without it")
    flag("--translation", help="column of the text's translation, for translated.tsv")
    flag("--translation-b", help="column of the second text's translation")
    flag("--rename", type=renames, default={}, help="labels to keep: --rename=-1=bad,1=good")
    flag("--out", type=Path, required=True, help="<root>/<task>/<lang>/train.tsv, ...")
    flag("--split", type=float, default=0, help="share of the texts for dev.tsv (default: 0)")
    flag("--encoding", help="such as cp949 (default: UTF-8, or UTF-16 by its byte order mark)")
    flag("--force", action="store_true", help="replace existing files")
    return p.parse_args(argv)


def main(argv=None):
    args = get_args(argv)
    header = [name for name in COLUMNS if name == "label" or getattr(args, name)]
    names = [getattr(args, name) for name in header]  # their names in the file
    files, forms = ("train.tsv", "dev.tsv", "test.tsv"), ROWS
    if args.translation or args.translation_b:
        files, forms = ("translated.tsv",), PAIRS
    paths = [args.out, args.out.with_name("dev.tsv")] if args.split else [args.out]
    out, task, lang = args.out, args.out.parent.parent.name, args.out.parent.name
    if not args.file.is_file():
        raise UserError(f"{args.file}: no such file")
    if (
        " ".join(header) not in forms
        or not (args.label or args.translation)
        or len({*names}) < len(names)
    ):
        raise UserError(
            "the flags must name different columns: --label --text, with --text-b for pairs, --translation of each"
        )
    if (
        not task
        or out.name not in files
        or (args.split and out.name != "train.tsv")
        or not 0 <= args.split < 1
    ):
        raise UserError(
            f"--out {out}: expected <root>/<task>/<lang>/{' or '.join(files)}; --split 0.1 goes with train.tsv"
        )
    for path in paths:
        if path.exists() and not args.force:
            raise UserError(f"{path} exists; change --out, or replace it with --force")

    cells = read(args.file, args.encoding, names)
    rows, dropped = select(cells, names, args.rename, args.file)
    reasons = [f"{sum(c.values()):,} {why} ({quoted(c)})" for why, c in dropped.items()]
    parts = split(rows, args.split) if args.split else [rows]
    if not all(parts):
        why = f"{len(rows):,} of {len(cells):,} rows are left, dropped " + "; ".join(reasons)
        raise UserError(f"{args.file}: too few rows: {why}")
    for path, part in zip(paths, parts):
        write_atomic(path, "".join("\t".join(row) + "\n" for row in [header, *part]).encode())

    print(f"convert | {args.file}: {len(cells):,} rows")
    for reason in reasons:
        print(f"dropped {reason}")
    labels = Counter(row[0] for row in rows)
    print(f"labels: {quoted(labels)}")
    for path, part in zip(paths, parts):
        print(f"-> {path}: {len(part):,} rows")
    scores = len(labels) > 10 and all(map(canonical, labels)) and "." in "".join(labels)
    if args.label and (
        scores or len(labels) > max(2, len(rows) / 10) or len(max(labels, key=len)) > 60
    ):
        warn(
            f"{len(labels):,} classes in {len(rows):,} rows; is --label the label's column? scores and free text are no classes"
        )
    step = (
        f"step2_align.py --lang {lang}"
        if out.name == "translated.tsv"
        else f"eval.py --lang {lang}"
    )
    if lang == "en":
        model = "--model intfloat/multilingual-e5-small --lr 1e-4"
        step = f"step1_embed.py {model} --data {shlex.quote(str(out.parents[2]))} --task {task}"
    print(f"next: python {step} --out runs/{task}")


if __name__ == "__main__":
    run(main)
