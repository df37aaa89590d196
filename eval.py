"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, predictions on new text.

    python eval.py --lang ko                                     # the heads of one language
    python eval.py                                               # every head in the run folder
    python eval.py --lang ko --plot ko.svg                       # a picture of the same
    python eval.py --lang ko --predict reviews.txt > labels.tsv  # --predict - reads standard input

Reads   <out>/embed.pt, <out>/head-*.pt and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results.json, the table as a list of objects. With --predict only standard output, for each line
        of text (in a pair task text, tab, text_b) a line `label <tab> probability`, averaged over head seeds.
Expect  a clear gain of langalign over english on the toy world; on real text about a point: see README.md.
"""
import contextlib
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import (UserError, encode, file_name, load, load_aligner, load_task, load_translated, logits,
                    make_parser, open_run, run, write_whole)

BOOTSTRAP = 10_000     # resamples of the test items behind a 95% interval
CHUNK = 1_024          # lines that --predict labels at once: constant memory, order kept
METHODS = ("majority", "english", "langalign", "rev", "translated", "native")      # the table, top-down
ARCHES = (None, "fc", "ae", "linear", "procrustes", "shift")
GREY = "#808080"       # legible on white and on black, as the colours are
ENDS = ("", "_low", "_high")         # of a record's "delta": the difference to english and its interval
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="900" height="520" style="font:13px sans-serif">
<text x="430" y="16" fill="#808080">accuracy against n, 95% interval of the difference to english</text>"""
COLORS = ("#3b82c4", "#d9822b", "#2a9d62", "#a05eb5", "#c94f4f", "#8a7a20", "#2f9c9c", "#c2569b",
          "#7a6ff0", "#5a9e1f", "#b86a4b", "#7f8fa9")

def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language; without it every language that has a head")
    p.add_argument("--split", choices=("test", "dev"), default="test", help="rows to judge on")
    p.add_argument("--predict", metavar="FILE", help="label the lines of FILE, or of standard input: -")
    p.add_argument("--head", metavar="FILE", help="--predict with this head, else the newest of langalign")
    p.add_argument("--plot", metavar="FILE.svg", help="draw pairs and accuracies of --lang as SVG")
    args = p.parse_args(argv)
    if args.plot and not args.lang:
        raise UserError("--plot draws one language: python eval.py --lang ko --plot FILE.svg")
    return args

def load_heads(out, lang, encoder, info):
    """([(path, artifact)] of the heads for `lang`, None: all, and of english, newest first; languages)."""
    make = f"python step3_head.py --out {out} --lang {lang or 'ko'}"
    heads = [(path, load(path, "head", f"{make} --method {path.stem.split('-')[1]}, or delete it",
                         encoder.fingerprint)) for path in Path(out).glob("head-*.pt")]
    heads.sort(key=lambda item: -item[0].stat().st_mtime_ns)
    langs = sorted({head["lang"] for _, head in heads} - {"en"})
    if not heads or not (lang or langs) or lang and lang not in (langs or [lang]):   # english serves any
        there = f"no head for {lang or 'a target language'}, only for: {' '.join(langs or ['en'])}"
        raise UserError(f"{out}: {there if heads else 'no head in this run folder'}; make one with: {make}")
    for path, head in heads:
        if head["heads"]["weight"].shape[1:] != (encoder.dim, len(info["labels"])) or \
                head["labels"] != info["labels"]:
            raise UserError(f"{path}: labels {head['labels']} of another width or order than embed.pt's "
                            f"{info['labels']}; delete it, or make it again with: {make}")
    heads = [(path, head) for path, head in heads if head["lang"] in (lang or head["lang"], "en")]
    return heads, [lang] if lang else langs

def logits_of(head, x):
    """Embeddings e(x) (N, D) -> logits (S, N, C) of a head's seeds; Rev-LangAlign maps x by A first."""
    return logits(head["heads"], load_aligner(head).map(x) if head["method"] == "rev" else x)

def macro_f1(predicted, y, classes):
    """Mean of the classes' F1; predicted, y (N,)."""
    confusion = torch.bincount(y * classes + predicted, minlength=classes ** 2).view(classes, classes)
    return (2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp_min(1)).mean().item()

def bootstrap(differences, seed):
    """95% intervals (2, H) of the column means of differences (N, H): test items resampled with replacement,
    the same resamples for every column."""
    rng, n = np.random.default_rng(seed), len(differences)
    blocks = tqdm(range(BOOTSTRAP // 100), desc="bootstrap", delay=2, leave=False)
    means = [rng.multinomial(n, np.full(n, 1 / n), 100) @ differences / n for _ in blocks]
    return np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)

def rank_correlation(a, b):
    """Spearman's, of two lists of numbers, ties averaged; nan for fewer than three or where all are equal."""
    ranks = []
    for values in (a, b):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return np.corrcoef(ranks)[0, 1] if len(a) > 2 and min(map(np.ptp, ranks)) > 0 else float("nan")

def record_of(name, heads, predicted, y):
    """Numbers of one variant: heads that differ in seeds only, predicted (S, N) over all their seeds."""
    first, hits = heads[0], (predicted == y).double()
    method, arch, n = first["method"], first["arch"], first["n"]
    plain = file_name("head", method, first["lang"] if first["lang"] != "en" else None, arch, n=n)[:-3]
    variant = name[len(plain):].replace("-rev", "").replace("-", " ").strip()
    measured = [head["alignment"]["A"] for head in heads if arch]
    return {"method": method, "arch": arch, "n": n, "variant": variant, "head": name, "seeds": len(hits),
            "label": " ".join(filter(None, (method, arch, variant))), "accuracy": hits.mean().item(),
            "accuracy_std": hits.mean(1).std(correction=0).item(),
            "macro_f1": float(np.mean([macro_f1(p, y, len(first["labels"])) for p in predicted])),
            **{key: float(np.mean([m[key] for m in measured])) for key in ("r2", "p1") if arch},
            **first["cost"], "seconds": first["seconds"]}

def evaluate(lang, heads, cache, info, args):
    """One record a variant on a split of `lang`, in the table's order; aligner seeds are pooled."""
    texts, y, _ = load_task(info["data"], info["task"], lang, args.split, info["labels"])
    x, groups = cache(texts, f"encode {args.split}"), {}
    for path, head in heads:
        groups.setdefault(re.sub(r"-seed\d+(?=-|$)", "", path.stem), []).append(head)
    votes = {name: torch.cat([logits_of(head, x).argmax(2) for head in of]) for name, of in groups.items()}
    empty = dict(lang="en", arch=None, n=None, cost={}, seconds={})
    groups["majority"] = [{**heads[0][1], **empty, "method": "majority"}]
    votes["majority"] = y.bincount().argmax().expand(1, len(y))                                      # (S, N)
    records = [record_of(name, groups[name], votes[name], y) for name in votes]
    if "head-english" in votes:
        correct = {name: (predicted == y).double().mean(0) for name, predicted in votes.items()}
        gains = torch.stack([hits - correct["head-english"] for hits in correct.values()], 1).numpy()
        for r, *delta in zip(records, gains.mean(0), *bootstrap(gains, args.seed)):
            r |= zip(("delta", "delta_low", "delta_high"), delta)
        tops = [r for r in records if r["method"] in ("native", "translated") and r["delta_low"] > 0]
        top = min(tops, key=lambda r: (r["method"], -(r["n"] or 0)), default=None)    # native, else largest n
        for r in records:
            if top and r["method"] in METHODS[2:]:           # share of the gap, where there is one
                r |= {"recovered": r["delta"] / top["delta"], "ceiling": top["method"]}
    order = {name: i for i, name in enumerate(METHODS)}
    records.sort(key=lambda r: (order[r["method"]], ARCHES.index(r["arch"]), r["variant"], r["n"] or 0))
    return [{"lang": lang, "split": args.split, "items": len(y), **r} for r in records]

def show(lang, records):
    """Print the table of one language, and how far alignment foretells accuracy."""
    ceiling, wide = records[-1].get("ceiling", "native"), max(len(r["label"]) for r in records) + 1
    print(f"\n{lang}: {records[0]['items']} {records[0]['split']} rows; +- over seeds of aligners and heads; "
          "difference to english in points with its\n95% interval over the rows; gap: its share of "
          f"{ceiling}'s; R^2, P@1: A on held-out pairs; text\ntranslated; seconds to encode the method's own "
          f"text, make A, train the heads\n  {'method':{wide}s}      n seeds  accuracy    +-  macro F1  "
          "difference                gap   R^2    P@1   sentences  characters  seconds")
    for r in records:
        line = f"  {r['label']:{wide}s}{r['n'] or '-':>7}{r['seeds']:6d}{r['accuracy']:10.2%}"
        line += f"{100 * r['accuracy_std']:6.2f}{r['macro_f1']:10.2%}"
        if "delta" in r and r["method"] != "english":
            line += "  {:+6.2f} [{:+.2f}, {:+.2f}]".format(*(100 * r["delta" + end] for end in ENDS))
        line = line.ljust(wide + 65) + (f"{r['recovered']:5.0%}" if "recovered" in r else "")
        line = line.ljust(wide + 70) + (f"{r['r2']:6.3f}{r['p1']:7.1%}" if r["arch"] else "")
        line = line.ljust(wide + 83)
        line += f"{r['sentences']:12}{r['characters']:12}" if r.get("sentences") else ""
        print(line.ljust(wide + 110) + " / ".join(f"{seconds:.0f}" for seconds in r["seconds"].values()))
    mapped = [r for r in records if r["method"] == "langalign" and "delta" in r]
    if len(mapped) > 2:
        told = [f"{title} {rank_correlation([r[key] for r in mapped], [r['accuracy'] for r in mapped]):+.2f}"
                for key, title in (("r2", "R^2"), ("p1", "P@1"))]
        print(f"  rank correlation with accuracy over {len(mapped)} langalign rows: {', '.join(told)}")

def plot(path, lang, records, heads, cache, info):
    """Write a standalone SVG: held-out pairs on two principal components, and accuracy against n."""
    head = next(head for _, head in heads if head["method"] == "langalign")        # the newest
    count, svg = min(head["alignment"]["held_out"], 200), [SVG]
    x, y = (cache(t[-count:]) for t in load_translated(info["data"], info["task"], lang, head["n"])[:2])
    clouds = torch.stack([x, load_aligner(head).map(x), y])                        # (3, N, D)
    flat = (clouds - clouds.mean((0, 1))).flatten(0, 1)
    flat = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:2].T             # (3 N, 2)
    flat = (flat - flat.amin(0)) / (flat.amax(0) - flat.amin(0)) * 330 + 30        # pixels
    spots = flat.round().view(3, count, 2).tolist()

    def draw(kind, words="", **attributes):
        given = " ".join(f'{key.replace("_", "-")}="{value}"' for key, value in attributes.items())
        svg.append(f"<{kind} {given}>{words}</{kind}>")

    for i, words in enumerate(("English e(d)", f"A(e(d)), {head['arch']}", f"{lang} e(T(d))")):
        draw("text", words, x=30 + 145 * i, y=16, fill=COLORS[i])
        for j, (u, v) in enumerate(spots[i]):
            draw("circle", cx=u, cy=v, r=4 if j < 10 else 2, fill=COLORS[i])
            if i and j < 10:                                 # ten pairs joined: d, A(d), T(d)
                draw("path", d=f"M{spots[i - 1][j][0]} {spots[i - 1][j][1]} L{u} {v}", stroke=GREY)
    shown, level = ([r for r in records if bool(r["n"]) == b and r["method"] != "majority"] for b in (1, 0))
    kinds, sizes = list(dict.fromkeys(r["label"] for r in shown)), sorted({r["n"] for r in shown})
    low, high = (pick(r["delta" + end] for r in shown + level for end in ENDS) for pick in (min, max))
    for r in records:                                        # heights of the value and of its interval
        r["y"] = [360 - 330 * (r["delta" + end] - low) / ((high - low) or 1) for end in ENDS]
    for words, v in ((f"{100 * low:+.1f}", 364), (f"{100 * high:+.1f}", 34)):
        draw("text", words, x=424, y=v, fill=GREY, text_anchor="end")
    for k, r in enumerate(sorted(level, key=lambda r: r["y"])):
        draw("path", d=f"M430 {r['y'][0]:.0f} H770", stroke=GREY, stroke_dasharray=4)
        draw("text", f"{r['method']} {r['accuracy']:.1%}", x=774, y=r["y"][0] - 4 + 14 * k, fill=GREY)
    for r in shown:
        k, place = kinds.index(r["label"]), sizes.index(r["n"])
        u, color = 430 + 340 * (place + (k + 1) / (len(kinds) + 1)) / len(sizes), COLORS[k % len(COLORS)]
        draw("text", f"n={r['n']:,}", x=430 + 340 * place / len(sizes), y=380, fill=GREY)
        draw("text", r["label"], x=30 + 290 * (k % 3), y=404 + 18 * (k // 3), fill=color)
        draw("path", d=f"M{u:.0f} {r['y'][1]:.0f} V{r['y'][2]:.0f}", stroke=color, stroke_width=2)
        draw("circle", cx=round(u), cy=round(r["y"][0]), r=4, fill=color)
    write_whole(path, lambda file: file.write("\n".join([*dict.fromkeys(svg), "</svg>\n"]).encode()))

def read_texts(stream, pair, name):
    """Texts of a binary stream, one a line; UserError with the line's number."""
    for number, line in enumerate(stream, 1):
        try:
            text = tuple(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t"))
        except UnicodeDecodeError:
            raise UserError(f"{name}:{number}: not UTF-8; save the file as UTF-8")
        if len(text) != 1 + pair:
            raise UserError(f"{name}:{number}: {len(text)} tab-separated columns; this task reads {1 + pair}")
        yield text

def predict(path, name, head, cache):
    """Label a file or standard input: a line `label <tab> probability` for each line, in order."""
    try:
        source = contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")
    except OSError as err:
        raise UserError(f"--predict {path}: {err.strerror}; give a text file, or - for standard input")
    print(f"labelling with {name}", file=sys.stderr)
    with source as stream:
        texts = read_texts(stream, head["pair"], "standard input" if path == "-" else path)
        while chunk := list(itertools.islice(texts, CHUNK)):
            x = encode(cache.encoder, chunk, cache.device)
            probability = logits_of(head, x).softmax(2).mean(0)                                      # (N, C)
            for value, label in zip(*(column.tolist() for column in probability.max(1))):
                print(f"{head['labels'][label]}\t{value:.4f}")
            sys.stdout.flush()

def main(argv=None):
    args = get_args(argv)
    cache, info, machine = open_run(args)
    heads, langs = load_heads(args.out, args.lang, cache.encoder, info)
    if args.predict:
        if not args.lang and len(langs) > 1:
            raise UserError(f"--predict needs --lang; {args.out} has heads for: {' '.join(langs)}")
        named = [item for item in heads if args.head in (None, item[0].name, str(item[0]))]
        if not named:
            raise UserError(f"--head {args.head}: {args.out} has {' '.join(path.name for path, _ in heads)}")
        best = max(named, key=lambda item: (item[1]["method"] == "langalign", item[1]["lang"] != "en"))
        return predict(args.predict, *best, cache)
    methods = {head["method"] for _, head in heads}
    if args.plot and not {"english", "langalign"} <= methods:
        raise UserError(f"--plot needs a langalign and an english head, {args.out} has: {' '.join(methods)}; "
                        f"make both: python step3_head.py --out {args.out} --lang {args.lang}")

    print(f"eval | {machine} | {len(heads)} heads | languages {' '.join(langs)}", flush=True)
    results = []
    for lang in langs:
        mine = [item for item in heads if item[1]["lang"] in (lang, "en")]
        results += evaluate(lang, mine, cache, info, args)
        show(lang, [r for r in results if r["lang"] == lang])
    path = Path(args.out, "results.json" if args.split == "test" else "results-dev.json")
    write_whole(path, lambda file: file.write((json.dumps(results, indent=1) + "\n").encode()))
    if args.plot:
        plot(args.plot, args.lang, results, heads, cache, info)
    print(f"\n-> {path} {args.plot or ''}")

if __name__ == "__main__":
    run(main)
