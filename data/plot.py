"""Draw gain over English against the number of translations, as in README.

    python data/plot.py runs/nusax0 runs/nusax1 --below runs/nli0 --out data/langalign.svg
    python data/plot.py --pooled runs/nusax0 runs/nusax1 --out data/pooled.svg

Reads   experiments.json of each run folder, as data/experiments.py writes it.
Writes  an SVG with one line per method: the mean over the languages with most points in the first folder, and
        over the run folders with all points of the line. Bars are Student's 95% interval over folders.
        --pooled: data/experiments.py --pool ... --own 0 25 50 against --inside --n 25 50.
"""

import argparse
import html
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, one_line_error, run, write_atomic
from experiments import collect, mean_gain, read_records

GREY = "#868e96"  # this and the colours below stand out on white and on black
PLAIN = {"inside": "#d9480f", "fc residuals": "#1c7ed6", "translated": "#2f9e44"}
PLAIN |= {"mixed": "#9c36b5", "fc": GREY}
POOLED = {"own pairs + relatives": "#d9480f", "own pairs alone": "#1c7ed6"}
LEVELS = {"native": "native rows", "centred": "centred, no translation"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 330, 60, 220, 36, 50


def pooled_line(r):
    """Return (line, number of own pairs) of a record for --pooled; line "" is not drawn."""
    if r["method"] == "inside":
        return "own pairs alone", r["n"]
    name = f"inside of {' '.join(r.get('pool', []))}, {'own' if r.get('own') else 'unseen'}"
    return ("own pairs + relatives" if r["method"] == name else ""), r.get("own")


def means(folders, pooled):
    """Return (languages, {(line, n): (mean gain, half its interval, folders)}), gains in points."""
    line = pooled_line if pooled else lambda r: (r["method"], r.get("n"))
    counted = [*POOLED][:1] if pooled else PLAIN
    numbers = {}  # language: numbers of pairs
    for r in read_records(folders[0]):
        if line(r)[0] in counted and line(r)[1] is not None:
            numbers.setdefault(r["lang"], set()).add(line(r)[1])
    most = max(map(len, numbers.values()), default=0)
    if most < 2:
        flags = "--pool ... --own 0 25 50" if pooled else "--n 25 50 100"
        raise UserError(f"{folders[0]}: too few points; run data/experiments.py with {flags}")
    langs = [lang for lang, ns in numbers.items() if len(ns) == most]
    gains, points = collect(folders, langs, line), {}
    for name, n in gains:
        of_line = [{f for f, _ in runs} for (other, _), runs in gains.items() if other == name]
        whole = set.intersection(*of_line)  # the folders that have every point of the line
        if runs := {place: rows for place, rows in gains[name, n].items() if place[0] in whole}:
            mean, half, count = mean_gain(runs)
            points[name, n] = 100 * mean, 100 * half, count
    return langs, points | ({("own pairs alone", 0): (0, 0, len(folders))} if pooled else {})


def text(x, y, words, anchor="start", colour=GREY):
    style = f'font-family="sans-serif" font-size="13" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{html.escape(words)}</text>'


def rule(x1, y1, x2, y2, more, colour=GREY):
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" {more}/>'


def draw(langs, points, pooled):
    """Return the SVG elements of one panel."""
    shown = POOLED if pooled else PLAIN
    ns = sorted({n for name, n in points if n is not None and name in shown})
    places = {n: i if pooled else math.log(n / ns[0]) for i, n in enumerate(ns)}
    drawn = [point for (name, _), point in points.items() if name in (*shown, *LEVELS)]
    ends = [mean + sign * half for mean, half, _ in drawn for sign in (-1, 1)]  # of the bars
    step = 5 if max(ends) > 10 else 1
    low, high = min(0, math.floor(min(ends) / step) * step), math.ceil(max(ends) / step) * step
    left, right = LEFT, WIDTH - RIGHT

    def at(n, gain):
        x = left + (right - left) * places[n] / places[ns[-1]]
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - gain) / (high - low)

    title = "points over english" + ", with and without relatives" * pooled
    parts = [text(left, 16, f"{title}, {', '.join(langs)}")]
    for gain in range(low, high + 1, step):
        y = at(ns[0], gain)[1]
        parts += [rule(left, y, right, y, 'stroke-opacity="0.3"')]
        parts += [text(left - 8, y + 4, f"{gain:+d}" if gain else "0", "end")]
    parts += [text(at(n, low)[0], HEIGHT - BOTTOM + 18, f"{n:,}", "middle") for n in ns]
    below = "own " * pooled + "translations of the task's own rows"
    parts += [text((left + right) / 2, HEIGHT - 10, below, "middle")]

    labels = []
    for i, (name, colour) in enumerate(shown.items()):
        if not (line := [(n, *points[name, n]) for n in ns if (name, n) in points]):
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(n, mean) for n, mean, *_ in line))
        parts += [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>']
        for n, mean, half, _ in line:
            (x, y), top, bottom = at(n, mean), at(n, mean + half)[1], at(n, mean - half)[1]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>']
            x += 3 * i - 6  # bars side by side
            parts += [rule(x, top, x, bottom, 'stroke-opacity="0.5"', colour)] if half else []
        words = f"{name} {mean:+.1f}" + (" (one run)" if line[-1][3] == 1 else "")
        labels.append([at(n, mean)[1], words, colour])
    for name, words in LEVELS.items():
        if (name, None) in points and not pooled:
            mean = points[name, None][0]
            y = at(ns[0], mean)[1]
            parts += [rule(left, y, right, y, 'stroke-dasharray="5 4"')]
            labels.append([y, f"{words} {mean:+.1f}", GREY])
    lowest = 0
    for y, words, colour in sorted(labels):
        lowest = max(y, lowest + 16)  # labels do not overlap
        parts += [text(right + 10, lowest + 4, words, colour=colour)]
    return parts


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    p.error, flag = one_line_error, p.add_argument
    flag("folders", nargs="*", metavar="OUT", help="run folders with experiments.json")
    flag("--below", nargs="+", metavar="OUT", help="run folders of a second panel")
    flag(
        "--pooled", nargs="+", metavar="OUT", help="run folders of a panel with and without --pool"
    )
    flag("--out", default="data/langalign.svg", help="the picture (default: %(default)s)")
    args = p.parse_args(argv)
    chosen = (args.folders, False), (args.below, False), (args.pooled, True)
    panels = [draw(*means(folders, kind), kind) for folders, kind in chosen if folders]
    if not panels or not args.out.endswith(".svg"):
        p.error("run folders are needed, and a name for --out that ends in .svg")
    size = f'width="{WIDTH}" height="{HEIGHT * len(panels)}"'
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}">'
    ]
    for i, panel in enumerate(panels):
        svg += [f'<g transform="translate(0, {i * HEIGHT})">', *panel, "</g>"]
    write_atomic(args.out, "\n".join([*svg, "</svg>\n"]).encode())
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)
