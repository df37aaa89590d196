"""Measure how easily the documents read: README.md, data/*.md and tests/README.md. test_prose.py runs it.

    python tests/prose.py                    # all documents
    python tests/prose.py data/RESULTS.md    # one of them

Prints  a table per document; where a limit is exceeded, the line numbers of the worst places.
        The exit status is 1 if any limit is exceeded.
Prose   is what remains without code blocks, tables and link targets. Inline code counts as one word.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", *sorted(f"data/{path.name}" for path in (ROOT / "data").glob("*.md"))]
FILES += ["tests/README.md"]
COUNTED = r"rows|texts|lines|examples|pairs|tokens|minutes|seconds|ms|[KMG]B|one|\d+"
UNIT = "language|seed|method|run|row|text|line|pair|sentence|step|batch|epoch|second|minute"
BANNED = (  # in running text and in tables
    r"\b(told|mend(s|ed|ing)?|anew|besides|as it is|clear of zero|give \S+ or more)\b"
    r"|\bbeside\b"  # write "compared with" or "next to"
    r"|,\s+too\b(?=\W*([.;:,!?)]|$))"  # write "also", or leave it out
    rf"|\b({COUNTED}) an? ({UNIT})\b"  # "3 MB a language": write "per"
)


def prose_lines(text, tables=False):
    """Return the lines of a document, empty where they hold code (or a table)."""
    lines, fenced = [], False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        indented = line.startswith("    ") and not (lines and lines[-1])
        table = line.lstrip().startswith("|") and not tables
        lines.append("" if fence or fenced or indented or table else line)
    text = re.sub(r"`[^`]+`", lambda code: "CODE" + "\n" * code[0].count("\n"), "\n".join(lines))
    return re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text).split("\n")


def sentences(lines):
    """Yield (line number, words) of each sentence; a heading, list item or paragraph ends one."""
    start, words = 1, []
    for number, line in enumerate([*lines, ""], 1):
        if words and (not line.strip() or re.match(r"\s*(#|>|[-*+] |\d+\. )", line)):
            yield start, words
            words = []
        for word in re.sub(r"^\s*(#+|>|[-*+]|\d+\.) ", "", line).split():
            if not re.search(r"\w", word):
                continue  # a lone dash or arrow is no word
            start = start if words else number
            words.append(word)
            if re.search(r"[.!?]\W*$", word) and word not in ("e.g.", "i.e.", "vs.", "cf."):
                yield start, words
                words = []


def line_of(match):
    return 1 + match.string.count("\n", 0, match.start())


def measure(name, text):
    """Return [(what, value, limit, places), ...] of a document; the worst places come first."""
    lines = prose_lines(text)
    parts = sorted(sentences(lines), key=lambda part: -len(part[1]))
    words = sum(len(part) for _, part in parts)
    semicolons = [f"line {i}" for i, line in enumerate(lines, 1) for _ in range(line.count(";"))]
    long = [f"line {i}: {len(part)} words" for i, part in parts]
    whole = "\n".join(prose_lines(text, tables=True))
    hits = list(re.finditer(BANNED, whole, re.IGNORECASE | re.MULTILINE))
    banned = [f"line {line_of(hit)}: {hit[0]!r}" for hit in hits]
    rows = [
        ("semicolons per 1,000 words", 1000 * len(semicolons) / max(1, words), 3, semicolons),
        ("words of the longest sentence", len(parts[0][1]), 35, long),
        ("banned words", len(banned), 0, banned),
    ]
    if name == "README.md":
        opening = " ".join([word for _, part in sorted(parts) for word in part][:350])
        numbers = re.findall(r"(?<!\w)\d[\d.,]*", opening)
        first = line_of(re.search(r"^(git|pip|python) |\Z", text, re.MULTILINE))
        rows.append(("numbers in the first 350 words", len(numbers), 15, numbers))
        rows.append(("line of the first command", first, 24, []))
        rows.append(("words, as wc -w counts them", len(text.split()), 1800, []))
    return rows


def main(names):
    """Print a table per document; return 1 if any limit is exceeded, else 0."""
    exceeded = False
    for name in names or FILES:
        print(f"{name:34}{'value':>8}{'limit':>7}")
        for what, value, limit, places in measure(name, (ROOT / name).read_text(encoding="utf-8")):
            print(f"  {what:32}{value:8.4g}{limit:7}{'  exceeded' if value > limit else ''}")
            if value > limit:
                exceeded = True
                print("    " + ", ".join(places[:8]))
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
