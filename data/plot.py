"""Draw gain over English against the number of translations, as in README.

    python data/plot.py runs/nusax0 runs/nusax1 --out data/langalign.svg

Reads   experiments.json of each run folder, as data/experiments.py writes it.
Writes  an SVG: a line a method, the mean over run folders and languages; with two or more folders, bars are Student's 95% interval
        over the run folders. Readable on light and dark pages.
"""

import argparse
import html
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, run, write_whole
from experiments import collect, mean_gain

SHOWN = {  # method: colour that stands out on white and on black
    "inside": "#d9480f",
    "fc residuals": "#1c7ed6",
    "translated": "#2f9e44",
    "mixed": "#9c36b5",
    "fc": "#868e96",
}
LEVELS = {"native": "native rows", "centred": "centred, no translation"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 380, 60, 220, 20, 50


def means(folders):
    """{(method, n): (mean gain, half interval)} in points over run folders."""
    points = {key: mean_gain(runs) for key, runs in collect(folders).items()}
    return {key: (100 * mean, 100 * half) for key, (mean, half) in points.items()}


def text(x, y, words, anchor="start", colour="#868e96"):
    style = f'font-family="sans-serif" font-size="13" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{html.escape(words)}</text>'


def line(x1, y1, x2, y2, colour, more=""):
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" {more}/>'


def draw(points):
    """The SVG of {(method, n): (mean, half)}."""
    ns = sorted({n for (method, n) in points if n and method in SHOWN})
    values = [mean for (method, _), (mean, _) in points.items() if method in (*SHOWN, *LEVELS)]
    if len(ns) < 2:
        raise UserError(
            "fewer than two numbers of pairs: python data/experiments.py --n ... adds some"
        )
    low, high = min(0, math.floor(min(values) / 5) * 5), math.ceil((max(values) + 1) / 5) * 5
    span = math.log(ns[-1] / ns[0])

    def at(n, gain):
        x = LEFT + (WIDTH - LEFT - RIGHT) * math.log(n / ns[0]) / span
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - gain) / (high - low)

    parts = []
    for gain in range(low, high + 1, 5):
        (left, y), (right, _) = at(ns[0], gain), at(ns[-1], gain)
        parts += [line(left, y, right, y, "#868e96", 'stroke-opacity="0.3"')]
        parts += [text(left - 8, y + 4, f"{gain:+d}" if gain else "0", "end")]
    parts += [text(at(n, low)[0], HEIGHT - BOTTOM + 18, f"{n:,}", "middle") for n in ns]
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts += [text(middle, HEIGHT - 10, "translations of the task's own rows", "middle")]

    labels = []
    for method, colour in SHOWN.items():
        own = [(n, *points[method, n]) for n in ns if (method, n) in points]
        if not own:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(n, mean) for n, mean, _ in own))
        parts += [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>']
        for n, mean, half in own:
            parts.append(
                f'<circle cx="{at(n, mean)[0]:.1f}" cy="{at(n, mean)[1]:.1f}" r="3" fill="{colour}"/>'
            )
            (x, top), (_, bottom) = at(n, mean + half), at(n, max(low, mean - half))
            parts += [line(x, max(TOP, top), x, bottom, colour, 'stroke-opacity="0.5"')]
        labels.append([at(own[-1][0], own[-1][1])[1], f"{method} {own[-1][1]:+.1f}", colour])
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
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n' + "\n".join(parts) + "\n</svg>\n"


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, formatter_class=raw)
    p.add_argument("folders", nargs="+", metavar="OUT", help="run folders with experiments.json")
    p.add_argument("--out", default="data/langalign.svg", help="the picture (default: %(default)s)")
    args = p.parse_args(argv)
    if not args.out.endswith(".svg"):
        raise UserError(f"--out {args.out}: give a name that ends in .svg")
    write_whole(args.out, draw(means(args.folders)).encode())
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)
