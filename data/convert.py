"""Convert your own CSV, TSV or JSON file to the format of data/README.md, by column names.

    python data/convert.py reviews.csv --text review --label stars --rename 1=negative,5=positive \\
        --split 0.1 --out data/mine/reviews/en/train.tsv

Reads    CSV (comma, semicolon, tab or bar, quoted or not, as Excel saves it) with column names in the
         first line, or JSON (one object per line, or one list of objects).
Writes   --out, and with --split also dev.tsv next to train.tsv. After an error it writes nothing.
Expect   the number of rows read, dropped and written, and each label with its count: check them.
"""

import argparse
import contextlib
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
# What JSON, pandas, databases and Excel write for a missing value
MISSING = ["", "null", "NULL", "Null", "(null)", "None", "NaN", "nan", "-NaN", "-nan", "NaT", "NA"]
MISSING += ["N/A", "n/a", "<NA>", "\\N", "undefined", "#NA", "#N/A", "#N/A N/A", "#NV", "#NAME?"]
MISSING += ["#VALUE!", "#REF!", "#DIV/0!", "#NULL!", "#NUM!", "#ERROR!", "#WERT!", "Loading..."]
LIST_OF_ONE = r"""\[ *(?:'([^']*)'|"([^"]*)"|([^][{}()'" ,;|]*)) *\]"""  # ['a, b'] and [1]


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
        how = "save the table as CSV UTF-8, or set --encoding, such as cp949 or utf-16-le"
        raise UserError(f"{path}:{line}: not {encoding} text; {how}")


def read_json(text, path):
    """Return (columns, [{column: value}]). Numbers stay as the file writes them."""
    if not text.lstrip().startswith("["):  # one object per line
        text = "[" + re.sub(r"\s*\n", r",\g<0>", text.rstrip()) + "]"
    try:
        records = json.loads(text, parse_int=str, parse_float=str)
        return list(dict.fromkeys(name for record in records for name in {**record})), records
    except (TypeError, ValueError) as err:
        what = getattr(err, "msg", "not all are objects") + "; expected JSON objects, one per line"
        raise UserError(f"{path}:{getattr(err, 'lineno', 1)}: {what} or in one list")


def hold_rows(lines, mark, columns, name, labels):
    """Return whether two of the lines look like rows, by a label in column `name` or by their width."""
    own = [line.rstrip("\r\n").replace(mark + " ", "").split(mark) for line in lines]  # a, b: prose
    if not labels:
        return [len(cells) for cells in own].count(len(columns)) > 1
    left = columns.index(name)
    right = left - len(columns)  # the column from the end: a text may hold delimiters
    wide = [cells for cells in own if len(cells) >= len(columns)]
    return sum(cells[left] in labels or cells[right] in labels for cells in wide) > 1


def read_as(lines, mark, quoting, names):
    """Return (columns, rows, end, swallows): the rows up to the first that does not fit, and its line.

    A row fits if it is as wide as the header, which holds `names`, and its quotes end. `swallows` is
    the line of a row that holds several lines that look like rows, or 0.
    """
    reader = csv.reader(lines, delimiter=mark, quoting=quoting, strict=True)
    columns, rows, start, spans = [], [], 1, []
    with contextlib.suppress(csv.Error):
        for cells in reader:
            if any(map(str.strip, cells)):
                columns = columns or [" ".join(cell.split()) for cell in cells]
                if len(cells) != len(columns) or not {*names} <= {*columns, None}:
                    break
                rows.append(cells)
                spans.append((start, lines[start - 1 : reader.line_num]))
            start = reader.line_num + 1
    labels = {dict(zip(columns, row)).get(names[0]) for row in rows[1:]} - {None, ""}
    swallows = [line for line, own in spans if hold_rows(own, mark, columns, names[0], labels)]
    return columns, rows[1:], start, min(swallows, default=0)


def read_csv(text, path, names):
    """Return (columns, [{column: cell}]).

    Each delimiter and each way of quoting is a reading of the file. The best finds the most names in the
    header, gets furthest before a row does not fit, and swallows no rows: a text that begins with a
    lone " would swallow all rows up to the next ".
    """
    csv.field_size_limit(max(131_072, len(text)))  # a text may be longer than Python's limit
    lines, marks = list(io.StringIO(text, newline="")), ",\t;|"
    if sep := re.match(r"sep=(.)\s", text):  # a line that Excel writes and hides
        lines[0], marks = "\n", sep[1]
    # A quote inside quotes is "" (Excel) or \" (databases), or each " is an ordinary character
    doubled = [line.replace('\\"', '""') for line in lines]
    ways = (lines, csv.QUOTE_MINIMAL), (doubled, csv.QUOTE_MINIMAL), (lines, csv.QUOTE_NONE)
    readings = [(way, *read_as(way[0], mark, way[1], names)) for mark, way in product(marks, ways)]
    score = lambda r: (len({*names} & {*r[1]}), r[3], not r[4])
    way, columns, rows, end, swallows = max(readings, key=score)
    if end <= len(lines) and {*names} <= {*columns, None}:
        what = f"not the {len(columns)} cells of the header, or a quote that does not end"
        raise UserError(f"{path}:{end}: {what}; correct that line")
    if swallows:
        warn(f"{path}:{swallows}: quoted text holds lines that look like rows; check its quotes")
    elif way is not ways[0]:
        print(f"note: the quotes in {path} are not CSV's; check how texts with quotes came out")
    return columns, [dict(zip(columns, cells)) for cells in rows]


def clean(value):
    """Return a cell as our files hold it: composed (NFC), each run of white space as one space."""
    text = unicodedata.normalize("NFC", "" if value is None else str(value))
    return " ".join(text.split()).strip(" \u200b\ufeff")


def read(path, encoding, names):
    """Return [[label, text, ...]]. A list of one label, as JSON or pandas write it, is that label."""
    text = decode(path.read_bytes(), path, encoding)
    is_json = re.match(r'\s*(\[\s*)?\{\s*"', text) or "json" in path.suffix.lower()
    columns, records = read_json(text, path) if is_json else read_csv(text, path, names)
    for name in filter(None, names):
        if columns.count(name) != 1:
            what = f"{'two columns' if name in columns else 'no column'} {name!r}"
            listed = ", ".join(columns)[:200] or "none"
            raise UserError(f"{path}: {what}; its columns are: {listed}")
    rows = []
    for number, record in enumerate(records, 1):
        if "answer" not in names and str(record.get("answer")).lower() in ("reject", "ignore"):
            continue
        values = [record.get(name) for name in names]
        label, *texts = map(clean, values)
        nested = isinstance(values[0], dict) or any(isinstance(v, (dict, list)) for v in values[1:])
        if nested or re.search("[\0\ud800-\udfff]", "".join([label, *texts])):
            what = "an object, a list, a NUL or half an emoji (\\ud800 to \\udfff)"
            where = f"{path}: {'object' if is_json else 'row'} {number}"
            raise UserError(f"{where} holds {what}; replace it by plain text")
        if one := re.fullmatch(LIST_OF_ONE, label):
            label = clean(one[1] or one[2] or one[3])
        rows.append([label, *texts])
    if rejected := len(records) - len(rows):
        warn(
            f"{path}: rows that Prodigy's annotators rejected or ignored are left out: {rejected:,}"
        )
    return rows


def canonical(label):
    """Return the one spelling of a label: 1, 1.0, +1 and 1e0 are '1', True is 'true'. Words stay."""
    if re.fullmatch(r"[+\u2212-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d\d?)?", label):  # U+2212: a minus
        return f"{(Decimal(label.replace('−', '-')) + 0).normalize():f}"
    return label.casefold() if label.casefold() in ("true", "false") else label


def check_labels(labels, path):
    """Warn of labels that look alike. Raises UserError if the labels look like several in one."""
    looks = Counter(canonical(label).casefold() for label in labels)
    if "-" in labels and "+" not in labels:
        warn("rows with the label '-' have no agreed label in SNLI and MNLI; --rename the others")
    if alike := [look for look, count in looks.items() if count > 1]:
        how = "numbers, true and false become one; --rename Good=good,good=good joins words"
        warn(f"labels look alike: {alike[:12]}; {how}")
    parts = {label: re.split(r"\s*[,;|#，、；]+\s*", label) for label in labels}
    counts = Counter(part for found in parts.values() for part in {*found})
    for label, found in parts.items():
        joined = all(found) and (any(map(labels.get, found)) or min(map(counts.get, found)) > 1)
        words = re.split(r"[\s/&+]+", label)  # one label may hold these: politics/us, arts & crafts
        spaced = len(words) > 1 and all(map(labels.get, words))
        is_list = re.fullmatch(r"\[.*\]|\{.*\}|\(.*,.*\)", label)
        if len(found) > 1 and joined or spaced or is_list:
            what = f"several labels or a list per row, such as {label!r}"
            raise UserError(f"{path}: {what}; keep one label per row, or name all with --rename")


def select(cells, names, rename, path):
    """Return ([(label, text, ...)], {reason: Counter of what was dropped})."""
    labels = Counter(label for label, *_ in cells if label in rename or label not in MISSING)
    if lost := {*rename} - {*map(canonical, labels)}:
        raise UserError(f"--rename: no label {min(lost)!r} in {path}; it has {quoted(labels)}")
    if not rename:
        check_labels(labels, path)
    rows, dropped = {}, defaultdict(Counter)
    for label, *texts in cells:
        name = canonical(label)
        row = rename.get(name, name), *texts
        needed = [label, *texts] if names[0] and label not in rename else texts
        lost = [cell for cell in needed if cell in MISSING]
        if [label, *texts] == [clean(name) for name in names]:
            dropped["repeating the header"]["header"] += 1
        elif lost:
            dropped["without a text or label"][lost[0]] += 1
        elif rename and name not in rename:
            dropped["with a label that --rename does not name"][label] += 1
        elif row in rows:
            dropped["equal to an earlier row"][texts[0]] += 1
        else:
            rows[row] = None
    return list(rows), dropped


def quoted(counts):
    """Return labels or texts in quotes with their counts, the most frequent first."""
    words = [f"{name[:40]!r} {count:,}" for name, count in counts.most_common(12)]
    return ", ".join(words) + (f" and {len(counts) - 12:,} more" if len(counts) > 12 else "")


def renames(text):
    r"""Return "1=negative,5=positive" as a dict, for argparse. In a label \, and \= are , and =."""
    name = r"((?:\\[,=]|[^,=])+)"
    items = re.findall(f"{name}={name}", text)
    whole = ",".join(map("=".join, items)) == text
    items = [[clean(re.sub(r"\\([,=])", r"\1", label)) for label in item] for item in items]
    new_names = {canonical(old): new for old, new in items}
    if not whole or len(new_names) < len(items):
        form = r"1=negative,5=positive, where \, and \= stand for , and = in a label"
        raise argparse.ArgumentTypeError(f"{text!r} is not like {form}")
    return new_names


def main(argv=None):
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
    args = p.parse_args(argv)

    header = [name for name in COLUMNS if name == "label" or getattr(args, name)]
    names = [getattr(args, name) for name in header]  # their names in the file
    forms = {"train.tsv": ROWS, "dev.tsv": ROWS, "test.tsv": ROWS, "translated.tsv": PAIRS}
    out, folder, lang = args.out, args.out.parent.parent, args.out.parent.name
    fits = " ".join(header) in forms.get(out.name, ()) and not (args.translation and lang == "en")
    if not fits or not folder.name:
        files = "{train,dev,test}.tsv; for --translation (pairs: and -b) <target>/translated.tsv"
        raise UserError(f"--out {out}: expected <root>/<task>/<lang>/{files}")
    if len({*names}) < len(names) or not (args.label or args.translation and not args.rename):
        raise UserError("each flag needs its own column; only --translation works without --label")
    if not 0 <= args.split < 1 or args.split and out.name != "train.tsv":
        raise UserError(f"--split {args.split:g}: expected a share such as 0.1, for train.tsv")
    cells = read(args.file, args.encoding, names)
    rows, dropped = select(cells, names, args.rename, args.file)
    first = list(dict.fromkeys(row[1].casefold() for row in rows))  # its rows stay in one file
    held = {first[i] for i in fixed_order(len(first))[: round(args.split * len(first))]}
    files = {out: [row for row in rows if row[1].casefold() not in held]}
    if args.split:
        files[out.with_name("dev.tsv")] = [row for row in rows if row[1].casefold() in held]
    reasons = [f"dropped {sum(c.values()):,} {why}: {quoted(c)}" for why, c in dropped.items()]
    for path, part in files.items():
        if path.exists() and not args.force:
            raise UserError(f"{path} exists; change --out, or replace it with --force")
        if not part:
            left = "; ".join([f"{len(rows):,} of {len(cells):,} rows are left", *reasons])
            raise UserError(f"{args.file}: too few rows: {left}")

    labels = Counter(row[0] for row in rows)
    print(f"convert | {args.file}: {len(cells):,} rows", *reasons, sep="\n")
    if args.label:
        print(f"labels: {quoted(labels)}")
    for path, part in files.items():
        write_atomic(path, "".join("\t".join(row) + "\n" for row in [header, *part]).encode())
        print(f"-> {path}: {len(part):,} rows")
    scores = len(labels) > 4 and any(re.fullmatch(r"-?\d*\.\d+", label) for label in labels)
    if args.label and (scores or not 1 < len(labels) <= len(rows) / 10 + 2):
        what = f"number of classes in {len(rows):,} rows: {len(labels):,}"
        warn(f"{what}; is --label the label's column? Scores, ids and free text are no classes")
    if broken := sum("\ufffd" in "".join(row) for row in rows):
        warn(f"rows with the character \ufffd, lost in an earlier conversion: {broken:,}")
    if several := len(rows) - len({row[1:] for row in rows}):
        warn(f"rows whose text also has another label: {several:,}; each row should have one label")
    task, step = shlex.quote(folder.name), f"eval.py --lang {lang}"
    if args.translation:
        step = f"step2_align.py --lang {lang}"
    elif lang == "en":
        step = "step1_embed.py --model intfloat/multilingual-e5-small"
        step += f" --data {shlex.quote(str(folder.parent))} --task {task}"
    print(f"next: python {step} --out runs/{task}")


if __name__ == "__main__":
    run(main)
