"""Draw gain over English against the number of translations, as in README.

    python data/plot.py runs/nusax0 runs/nusax1 --below runs/nli0 --out data/langalign.svg

Reads   experiments.json of each run folder, as data/experiments.py writes it.
Writes  an SVG: a line a method, the mean over languages and over the run folders that have all its points;
        with two or more of these, bars are Student's 95% interval over them. Only languages of which the
        first folder has several numbers of pairs are in it. Readable on light and dark pages.
"""

import argparse
import html
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, run, write_atomic
from experiments import collect, mean_gain, read_records

SHOWN = {  # method: colour that stands out on white and on black
    "inside": "#d9480f",
    "fc residuals": "#1c7ed6",
    "translated": "#2f9e44",
    "mixed": "#9c36b5",
    "fc": "#868e96",
}
LEVELS = {"native": "native rows", "centred": "centred, no translation"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 330, 60, 220, 36, 50


def means(folders):
    """(languages, {(method, n): (mean gain, half its interval, folders)} in points) of run folders."""
    counts = {}  # language: numbers of pairs
    for r in read_records(folders[0]):
        counts.setdefault(r["lang"], set()).add(r.get("n"))
    langs = [lang for lang, ns in counts.items() if len(ns - {None}) > 1]
    if not langs:
        raise UserError(f"{folders[0]}: one number of pairs; data/experiments.py --n ... adds some")
    gains, points = collect(folders, langs), {}
    for method, n in gains:
        of_method = [set(runs) for (other, _), runs in gains.items() if other == method]
        whole = set.intersection(*of_method)  # the folders that have every point of the line
        runs = {folder: rows for folder, rows in gains[method, n].items() if folder in whole}
        if runs:
            mean, half = mean_gain(runs)
            points[method, n] = 100 * mean, 100 * half, len(runs)
    return langs, points


def text(x, y, words, anchor="start", colour="#868e96"):
    style = f'font-family="sans-serif" font-size="13" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{html.escape(words)}</text>'


def line(x1, y1, x2, y2, colour, more=""):
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" {more}/>'


def draw(langs, points):
    """The SVG elements of one panel."""
    ns = sorted({n for (method, n) in points if n and method in SHOWN})
    shown = [value for (method, _), value in points.items() if method in (*SHOWN, *LEVELS)]
    values = [mean + sign * half for mean, half, _ in shown for sign in (-1, 1)]  # of the bars, too
    step = 5 if max(values) > 10 else 1
    low, high = min(0, math.floor(min(values) / step) * step), math.ceil(max(values) / step) * step
    span = math.log(ns[-1] / ns[0])

    def at(n, gain):
        x = LEFT + (WIDTH - LEFT - RIGHT) * math.log(n / ns[0]) / span
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - gain) / (high - low)

    parts = [text(LEFT, 16, f"points over english, {', '.join(langs)}")]
    for gain in range(low, high + 1, step):
        (left, y), (right, _) = at(ns[0], gain), at(ns[-1], gain)
        parts += [line(left, y, right, y, "#868e96", 'stroke-opacity="0.3"')]
        parts += [text(left - 8, y + 4, f"{gain:+d}" if gain else "0", "end")]
    parts += [text(at(n, low)[0], HEIGHT - BOTTOM + 18, f"{n:,}", "middle") for n in ns]
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts += [text(middle, HEIGHT - 10, "translations of the task's own rows", "middle")]

    labels = []
    for i, (method, colour) in enumerate(SHOWN.items()):
        own = [(n, *points[method, n]) for n in ns if (method, n) in points]
        if not own:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(n, mean) for n, mean, *_ in own))
        parts += [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>']
        for n, mean, half, _ in own:
            x, y = at(n, mean)
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>']
            top, bottom = at(n, mean + half)[1], at(n, mean - half)[1]
            x += 3 * i - 6  # bars beside each other
            parts += [line(x, top, x, bottom, colour, 'stroke-opacity="0.5"')] if half else []
        words = f"{method} {own[-1][1]:+.1f}" + (" (one run)" if own[-1][3] == 1 else "")
        labels.append([at(own[-1][0], own[-1][1])[1], words, colour])
    for method, name in LEVELS.items():
        if (method, None) in points:
            mean = points[method, None][0]
            (left, y), (right, _) = at(ns[0], mean), at(ns[-1], mean)
            parts += [line(left, y, right, y, "#868e96", 'stroke-dasharray="5 4"')]
            labels.append([y, f"{name} {mean:+.1f}", "#868e96"])
    labels.sort()
    for i, (y, words, colour) in enumerate(labels):
        y = labels[i][0] = max(y, labels[i - 1][0] + 16) if i else y
        parts += [text(WIDTH - RIGHT + 10, y + 4, words, colour=colour)]
    return parts


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, formatter_class=raw)
    p.add_argument("folders", nargs="+", metavar="OUT", help="run folders with experiments.json")
    p.add_argument("--below", nargs="+", metavar="OUT", help="run folders of a second panel")
    p.add_argument("--out", default="data/langalign.svg", help="the picture (default: %(default)s)")
    args = p.parse_args(argv)
    if not args.out.endswith(".svg"):
        raise UserError(f"--out {args.out}: give a name that ends in .svg")
    panels = [means(folders) for folders in (args.folders, args.below) if folders]
    size = f'width="{WIDTH}" height="{HEIGHT * len(panels)}"'
    size += f' viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}"'
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>']
    for i, panel in enumerate(panels):
        svg += [f'<g transform="translate(0, {i * HEIGHT})">', *draw(*panel), "</g>"]
    write_atomic(args.out, "\n".join([*svg, "</svg>\n"]).encode())
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)
