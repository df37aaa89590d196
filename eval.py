"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, predictions on new text.

    python eval.py --lang ko                                     # the heads of one language
    python eval.py                                               # every head in the run folder
    python eval.py --lang ko --plot ko.svg                       # a picture of the same
    python eval.py --lang ko --predict reviews.txt > labels.tsv  # --predict - reads standard input

Reads   <out>/embed.pt, <out>/head-*.pt and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results.json, the table as a list of objects. With --predict only standard output, for each line
        of text (in a pair task text, tab, text_b) a line `label <tab> probability`, averaged over head seeds.
Expect  a gain of langalign over english of about three points on toy Korean, of about one on real text.
"""
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import (REPORT, UserError, encode, fits, load, load_aligner, load_task, logits, make_parser,
                    open_run, read_tsv, require, run, write_whole)

BOOTSTRAP = 10_000     # resamples of the test items behind a 95% interval
CHUNK = 1_024          # lines that --predict labels at once: constant memory, order kept
METHODS = ("majority", "english", "langalign", "rev", "translated", "native")      # the table, top-down
ARCHES = (None, "fc", "ae", "linear", "procrustes", "shift")
DELTA = ("delta", "delta_low", "delta_high")       # difference to english and its interval

def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language; without it every language that has a head")
    p.add_argument("--split", choices=("test", "dev"), default="test", help="rows to judge on")
    p.add_argument("--predict", metavar="FILE", help="label the lines of FILE, or of standard input: -, with "
                   "the newest head of --lang")
    p.add_argument("--allow-leak", action="store_true", help="go on though test rows are training rows, too")
    p.add_argument("--plot", metavar="FILE.svg", help="draw pairs and accuracies of --lang as SVG")
    return p.parse_args(argv)

def check(head, encoder, info):
    """`head`, if it fits the LM and the task: it may be a stranger's, so it is tried on two embeddings."""
    require(head["labels"] == info["labels"], f"labels {head['labels']}, not {info['labels']}")
    require(head["pair"] == info["pair"] and head["method"] in METHODS and head["arch"] in ARCHES)
    require((head["lang"] == "en") == (head["method"] == "english"))
    x, classes, seeds = torch.zeros(2, encoder.dim), len(info["labels"]), len(head["heads"]["weight"])
    require([*map(tuple, (head["heads"][k].shape for k in ("weight", "bias", "mean", "scale")))] ==
            [(seeds, classes, encoder.dim), (seeds, 1, classes), (encoder.dim,), (encoder.dim,)])
    out, mapped = logits_of(head, x), head["method"] in ("langalign", "rev")       # (S, 2, C)
    require(seeds and out.isfinite().all() and (head["n"] or 0) >= 0)
    require(mapped == bool(head["arch"]) == fits(head["alignment"], REPORT))
    require(not mapped or load_aligner(head, encoder.dim))
    line_of(record_of("", [head], out.argmax(2), torch.zeros(2, dtype=torch.int64)), 0)
    return head

def load_heads(out, lang, encoder, info):
    """([(path, artifact)] of the heads for `lang`, None: all, and of english, newest first; languages)."""
    make = f"python step3_head.py --out {out} --lang {lang or 'ko'}"
    paths = sorted(Path(out).glob("head-*.pt"), key=lambda path: -path.stat().st_mtime_ns)
    heads = [(path, load(path, "head", f"{make} --method {path.stem.split('-')[1]}, or delete it",
                         encoder.fingerprint, lambda head: check(head, encoder, info))) for path in paths]
    known = sorted({head["lang"] for _, head in heads} - {"en"})
    langs, english = [lang] if lang else known, (Path(out, "head-english.pt"), "english") in (
        (path, head["method"]) for path, head in heads)
    if not (langs and english and set(langs) <= set(known or langs)):              # english alone serves any
        there = " ".join(["en"] * english + known) or "no language"
        raise UserError(f"{out}: heads for {there}, not for en and {lang or 'another'}; make them: {make}")
    return [(path, head) for path, head in heads if head["lang"] in (*langs, "en")], langs

def logits_of(head, x):
    """Embeddings e(x) (N, D) -> logits (S, N, C) of a head's seeds; Rev-LangAlign maps x by A first."""
    return logits(head["heads"], load_aligner(head, x.shape[1]).map(x) if head["method"] == "rev" else x)

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
    label = re.sub(rf"^head-|-({first['lang']}|n\d+|rev)(?=-|$)", "", name).replace("-", " ")
    measured = [head["alignment"]["A"] for head in heads if first["arch"]]
    return {**first["cost"], **{key: first[key] for key in ("method", "arch", "n")}, "head": name,
            "label": label, "seeds": len(hits), "accuracy": hits.mean().item(),
            "accuracy_std": hits.mean(1).std(correction=0).item(),
            "macro_f1": float(np.mean([macro_f1(p, y, len(first["labels"])) for p in predicted])),
            **{key: float(np.mean([m[key] for m in measured])) for key in ("r2", "p1") if measured},
            "seconds": first["seconds"]}

def check_leak(path, texts, info, lang, allow):
    """UserError, or with `allow` a warning, if texts of the file `path` are also training or translated rows
    of `lang`, or English training rows: they would flatter every number."""
    leaks, wide = [], len(texts[0])
    for other in (Path(lang, "train.tsv"), Path(lang, "translated.tsv"), Path("en", "train.tsv")):
        file = Path(info["data"], info["task"], other)
        if file.exists():
            rows = read_tsv(file, ("text",), ("text_b", "translation", "translation_b"))[1]
            found = set(texts) & {part for row in rows for part in (row[:wide], row[-wide:])}
            leaks += [f"{len(found)} in {file} ({sorted(found)[0][0][:30]!r})"] if found else []
    told = f"{path}: of its {len(texts)} rows {', '.join(leaks)}: they flatter the numbers"
    if leaks and not allow:
        raise UserError(f"{told}; delete them there and run all steps again, or go on with --allow-leak")
    if leaks:
        print(f"warning: {told}")

def evaluate(lang, heads, cache, info, args):
    """One record a variant on a split of `lang`, in the table's order; aligner seeds are pooled."""
    texts, y, _ = load_task(info["data"], info["task"], lang, args.split, info["labels"], info["pair"])
    path = Path(info["data"], info["task"], lang, f"{args.split}.tsv")
    check_leak(path, texts, info, lang, args.allow_leak)
    x, groups = cache(texts, f"encode {args.split}"), {}
    for path, head in heads:
        groups.setdefault(re.sub(r"-seed\d+(?=-|$)", "", path.stem), []).append(head)
    votes = {name: torch.cat([logits_of(head, x).argmax(2) for head in of]) for name, of in groups.items()}
    groups["majority"] = [{**groups["head-english"][0], "method": "majority", "seconds": {}, "cost": {}}]
    votes["majority"] = y.bincount().argmax().expand(1, len(y))                                      # (S, N)
    records = [record_of(name, groups[name], votes[name], y) for name in votes]
    hits = torch.stack([(predicted == y).double().mean(0) for predicted in votes.values()], 1)       # (N, H)
    gains = (hits - hits[:, [list(votes).index("head-english")]]).numpy()
    for r, *delta in zip(records, gains.mean(0), *bootstrap(gains, args.seed)):
        r |= zip(DELTA, delta)
    tops = [r for r in records if r["method"] in ("native", "translated") and r["delta_low"] > 0]
    top = min(tops, key=lambda r: (r["method"], -(r["n"] or 0)), default=None)        # native, else largest n
    for r in records:
        if top and r["method"] in METHODS[2:]:               # share of the gap, where there is one
            r |= {"recovered": r["delta"] / top["delta"], "ceiling": top["method"]}
    records.sort(key=lambda r: (METHODS.index(r["method"]), ARCHES.index(r["arch"]), r["label"], r["n"] or 0))
    return [{"lang": lang, "split": args.split, "items": len(y), **r} for r in records]

def line_of(r, wide):
    """A record as a line of the table, its label `wide` letters."""
    line = f"  {r['label']:{wide}s}{r['n'] or '-':>7}{r['seeds']:6d}{r['accuracy']:10.2%}"
    line += f"{100 * r['accuracy_std']:6.2f}{r['macro_f1']:10.2%}"
    if r["method"] != "english" and "delta" in r:
        line += "  {:+6.2f} [{:+.2f}, {:+.2f}]".format(*(100 * r[key] for key in DELTA))
    line = line.ljust(wide + 67) + (f"{r['recovered']:5.0%}" if "recovered" in r else "")
    line = line.ljust(wide + 72) + (f"{r['r2']:6.3f}{r['p1']:7.1%}" if r["arch"] else "")
    line = line.ljust(wide + 85) + (f"{r['sentences']:12}{r['characters']:12}" if r.get("sentences") else "")
    return line.ljust(wide + 112) + " / ".join(f"{seconds:.0f}" for seconds in r["seconds"].values())

def show(lang, records):
    """Print the table of one language, and how far alignment foretells accuracy."""
    ceiling, wide = records[-1].get("ceiling", "native"), max(len(r["label"]) for r in records) + 1
    print(f"\n{lang}: {records[0]['items']} {records[0]['split']} rows; +- over seeds of aligners and heads; "
          "difference to english in points with its\n95% interval over the rows; gap: its share of "
          f"{ceiling}'s; R^2, P@1: A on held-out pairs; text\ntranslated; seconds to encode the method's own "
          f"text, make A, train the heads\n  {'method':{wide}s}      n seeds  accuracy    +-  macro F1  "
          "difference                  gap   R^2    P@1   sentences  characters  seconds")
    for r in records:
        print(line_of(r, wide))
    low = [r["label"] for r in records[1:] if r["accuracy"] <= records[0]["accuracy"]]
    if low:
        print(f"  warning: no better than the majority class: {', '.join(dict.fromkeys(low))}")
    mapped = [r for r in records if r["method"] == "langalign"]
    if len(mapped) > 2:
        told = [f"{title} {rank_correlation([r[key] for r in mapped], [r['accuracy'] for r in mapped]):+.2f}"
                for key, title in (("r2", "R^2"), ("p1", "P@1"))]
        print(f"  rank correlation with accuracy over {len(mapped)} langalign rows: {', '.join(told)}")

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
        source = sys.stdin.buffer if path == "-" else open(path, "rb")
    except OSError as err:
        raise UserError(f"--predict {path}: {err.strerror}; give a text file, or - for standard input")
    print(f"labelling with {name}", file=sys.stderr)
    with source as stream:
        texts = read_texts(stream, head["pair"], "standard input" if path == "-" else path)
        while chunk := list(itertools.islice(texts, CHUNK)):
            logits = logits_of(head, encode(cache.encoder, chunk, cache.device))       # (S, N, C)
            for value, label in zip(*(column.tolist() for column in logits.softmax(2).mean(0).max(1))):
                print(f"{head['labels'][label]}\t{value:.4f}")
            sys.stdout.flush()

def main(argv=None):
    args = get_args(argv)
    cache, info, machine = open_run(args)
    heads, langs = load_heads(args.out, args.lang, cache.encoder, info)
    if args.predict:
        if len(langs) > 1:
            raise UserError(f"--predict needs --lang; {args.out} has heads for: {' '.join(langs)}")
        newest = max(heads, key=lambda item: item[1]["lang"] in langs)
        return predict(args.predict, *newest, cache)
    if args.plot:
        from data import plot                                # only here: else common.py is enough
        plot.check(args.plot, args.lang, heads, args.out)

    print(f"eval | {machine} | {len(heads)} heads | languages {' '.join(langs)}", flush=True)
    results = []
    for lang in langs:
        mine = [item for item in heads if item[1]["lang"] in (lang, "en")]
        results += evaluate(lang, mine, cache, info, args)
        show(lang, [r for r in results if r["lang"] == lang])
    path = Path(args.out, "results.json" if args.split == "test" else "results-dev.json")
    write_whole(path, lambda file: file.write((json.dumps(results, indent=1) + "\n").encode()))
    if args.plot:
        plot.draw(args.plot, args.lang, results, heads, cache, info)
    print(f"\n-> {path} {args.plot or ''}")

if __name__ == "__main__":
    run(main)
