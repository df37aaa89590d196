"""Draw gain over English against the number of translations, as in README.

    python data/plot.py runs/nusax0 runs/nusax1 --below runs/nli0 --out data/langalign.svg
    python data/plot.py --pooled runs/nusax0 --lang ace    # inside, with and without relatives

Reads   experiments.json of each run folder, as data/experiments.py writes it.
Writes  an SVG with one line per method: the mean over the languages with most points in the first folder, and
        over the run folders with all points of the line. Bars are Student's 95% interval over folders.
        --pooled draws --pool ... --own 0 25 50 --lang ace and --inside --n 25 50 --lang ace of experiments.py.
"""

import argparse
import html
import math
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, one_line_error, run, write_atomic
from experiments import collect, mean_gain, read_records

GREY = "#868e96"  # this and the next stand out on white and on black
COLOURS = {"inside": "#d9480f", "fc residuals": "#1c7ed6", "translated": "#2f9e44"}
COLOURS |= {"mixed": "#9c36b5", "fc": GREY}
POOLED = "with relatives", "own pairs alone"  # of inside
COLOURS |= dict(zip(POOLED, ("#d9480f", "#1c7ed6")))
LEVELS = {"native": "native rows", "centred": "centred, no translation"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 330, 60, 580, 36, 280


def means(folders):
    """Return (languages, points as of `average`)."""
    first = read_records(folders[0])
    places = {(r["lang"], r.get("n")) for r in first if r["method"] in COLOURS}
    numbers = Counter(lang for lang, _ in places)  # of points
    most = max(numbers.values(), default=0)
    if most < 2:
        command = "data/experiments.py with --n 25 50 100"
        raise UserError(f"{folders[0]}: too few points; run {command}")
    langs = [lang for lang in dict.fromkeys(r["lang"] for r in first) if numbers[lang] == most]
    return langs, average(collect(folders, langs))


def pooled_means(folders, lang):
    """Return (title, points as of `means`) of *inside*: own pairs alone, and with the pool of most records."""
    jobs = [r["job"] for r in read_records(folders[0]) if r["job"]["owner"] == lang]
    if not jobs:
        flags = f"--pool ... --own 25 50 --lang {lang}"
        raise UserError(f"{folders[0]}: no own pairs; run data/experiments.py with {flags}")
    [(pool, _)] = Counter(" ".join(job["pool"]) for job in jobs).most_common(1)
    names = f"inside of {pool}, own", f"inside of {pool}, unseen"

    def line_of(r):
        if r["method"] in names:
            return POOLED[0], r["job"]["own"]
        if r["method"] == "inside":
            return POOLED[1], r["n"]
        return r["method"] if r["method"] in LEVELS else "", None

    points = average(collect(folders, [lang], line_of))
    points[POOLED[1], 0] = 0, 0, len(folders)  # without pairs: English
    return ["inside", lang], points


def average(gains):
    """Return {(line, n): (mean gain, half its interval, folders)}, in points, of the result of `collect`."""
    points = {}
    for name, n in gains:
        of_line = [{f for f, _ in runs} for (other, _), runs in gains.items() if other == name]
        whole = set.intersection(*of_line)  # the folders that have every point of the line
        if runs := {place: rows for place, rows in gains[name, n].items() if place[0] in whole}:
            mean, half, count = mean_gain(runs)
            points[name, n] = 100 * mean, 100 * half, count
    return points


def text(x, y, words, more=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{html.escape(words)}</text>'


def line(points, colour, more):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" {more}/>'


def draw(langs, points):
    """Return the SVG elements of one panel."""
    ns = sorted({n for name, n in points if name in COLOURS})
    # 0 has no logarithm, so that a panel with it has equal steps
    places = {n: math.log(n / ns[0]) if ns[0] else i for i, n in enumerate(ns)}
    drawn = [point for (name, _), point in points.items() if name in (*COLOURS, *LEVELS)]
    ends = [mean + sign * half for mean, half, _ in drawn for sign in (-1, 1)]  # of the bars
    step = 5 if max(ends) > 10 else 1
    low, high = min(0, math.floor(min(ends) / step) * step), math.ceil(max(ends) / step) * step

    def at(n, gain):
        x = LEFT + (RIGHT - LEFT) * places[n] / places[ns[-1]]
        return x, TOP + (BOTTOM - TOP) * (high - gain) / (high - low)

    parts = [text(LEFT, 16, f"points over english, {', '.join(langs)}")]
    for gain in range(low, high + 1, step):
        ends = at(ns[0], gain), at(ns[-1], gain)
        parts += [line(ends, GREY, 'stroke-opacity="0.3"')]
        words = f"{gain:+d}" if gain else "0"
        parts += [text(LEFT - 8, ends[0][1] + 4, words, 'text-anchor="end"')]
    parts += [text(at(n, low)[0], BOTTOM + 18, f"{n:,}", 'text-anchor="middle"') for n in ns]
    below = "translations of the task's own rows"
    parts += [text((LEFT + RIGHT) / 2, HEIGHT - 10, below, 'text-anchor="middle"')]

    labels = []  # (y, words, colour) of each line
    for i, (name, colour) in enumerate(COLOURS.items()):
        if own := [(n, *points[name, n]) for n in ns if (name, n) in points]:
            parts += [line([at(n, mean) for n, mean, *_ in own], colour, 'stroke-width="2.5"')]
            for n, mean, half, count in own:
                x, y = at(n, mean)
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>']
                bar = [(x + 3 * (i % 5) - 6, at(n, mean + sign * half)[1]) for sign in (-1, 1)]
                parts += [line(bar, colour, 'stroke-opacity="0.5"')] if half else []
            labels.append([y, f"{name} {mean:+.1f}" + " (one run)" * (count == 1), colour])
    for name, words in LEVELS.items():
        if (name, None) in points:
            mean = points[name, None][0]
            ends = at(ns[0], mean), at(ns[-1], mean)
            parts += [line(ends, GREY, 'stroke-dasharray="5 4"')]
            labels.append([ends[0][1], f"{words} {mean:+.1f}", GREY])
    lowest = 0
    for y, words, colour in sorted(labels):
        lowest = max(y, lowest + 16)  # so that labels do not overlap
        parts += [text(RIGHT + 10, lowest + 4, words, f'fill="{colour}"')]
    return parts


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    p.error, flag = one_line_error, p.add_argument
    flag("folders", nargs="+", metavar="OUT", help="run folders with experiments.json")
    flag("--below", nargs="+", metavar="OUT", help="run folders of a second panel")
    pooled = "draw inside of the pairs of --lang, with and without those of relatives"
    flag("--pooled", action="store_true", help=pooled)
    flag("--lang", help="language of --pooled, such as ace")
    flag("--out", default="data/langalign.svg", help="the picture (default: data/langalign.svg)")
    args = p.parse_args(argv)
    if args.pooled != bool(args.lang):
        p.error("--pooled and --lang need each other")
    read = partial(pooled_means, lang=args.lang) if args.pooled else means
    panels = [draw(*read(folders)) for folders in (args.folders, args.below) if folders]
    height = HEIGHT * len(panels)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    style = f'font-family="sans-serif" font-size="13" fill="{GREY}"'
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>']
    for i, panel in enumerate(panels):
        svg += [f'<g transform="translate(0, {i * HEIGHT})">', *panel, "</g>"]
    write_atomic(args.out, "\n".join([*svg, "</svg>\n"]).encode())
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)
