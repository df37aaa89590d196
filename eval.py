"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, predictions on new text.

    python eval.py --lang ko                                     # the heads of one language; without: of all
    python eval.py --lang ko --plot ko.svg                       # a picture of the same
    python eval.py --lang ko --predict reviews.txt > labels.tsv  # --predict - reads standard input

Reads   <out>/embed.pt, <out>/head-*.pt and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results.json, the table as a list of objects. With --predict only standard output: each line of
        text (in a pair task text, tab, text_b) becomes `label <tab> probability`, the mean over head seeds.
Expect  langalign 2.9 to 3.6 points over english on toy Korean; on real text 1.6 +- 0.4 (README), or nothing.
"""
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import (ARCHES, PAIRS, ROWS, UserError, encode, load, load_aligner, load_task, logits,
                    make_parser, open_run, read_tsv, require, run, volume, write_whole)

BOOTSTRAP = 10_000     # resamples of the test items behind a 95% interval
CHUNK = 1_024          # lines that --predict labels at once: constant memory, order kept
METHODS = ("majority", "english", "langalign", "rev", "translated", "native")      # the table, top-down
DELTA = ("delta", "delta_low", "delta_high")       # difference to english and its interval

def check(head, name, encoder, info):
    """`head`, if it fits file name, LM and task: it may be a stranger's, so it is tried on two embeddings."""
    require(head["labels"] == info["labels"], f"labels {head['labels']}, not {info['labels']}")
    require(head["pair"] == info["pair"] and head["method"] in METHODS and isinstance(head["lang"], str))
    require((head["lang"] == "en") == (head["method"] == "english") >= (name == "head-english"))
    require((head["method"] in ("langalign", "rev")) == bool(head["arch"]) and (head["n"] or 0) >= 0)
    require(not head["arch"] or load_aligner(head, encoder.dim) and head["alignment"]["held_out"] + 0 > 0)
    out = logits_of(head, torch.zeros(2, encoder.dim))
    require(len(out) and out.shape[1:] == (2, len(info["labels"])) and out.isfinite().all())
    require(head["heads"]["mean"].shape == head["heads"]["scale"].shape == (encoder.dim,))
    require(head["heads"]["bias"].shape == out[:, :1].shape)
    line_of(record_of("", [head], out.argmax(2), torch.zeros(2, dtype=torch.int64)), 0)
    return head

def load_heads(out, lang, encoder, info, only=None):
    """([(path, artifact)], newest first, of the heads for `lang` or all, or of file `only`; languages)."""
    paths = [Path(only)] if only else sorted(Path(out).glob("head-*.pt"), key=lambda p: -p.stat().st_mtime_ns)
    heads = [(path, load(path, "head", f"python step3_head.py --out {out} and its other flags, or rm {path}",
                         encoder.fingerprint, lambda head: check(head, path.stem, encoder, info)))
             for path in paths]
    known = {head["lang"] for _, head in heads}
    langs = [lang] if lang else sorted(known if only else known - {"en"})
    served = langs and (known & {*langs} or known == {"en"})             # english alone serves any language
    if not (served and (only or Path(out, "head-english.pt") in dict(heads))):
        raise UserError(f"{out}: heads for {' '.join(sorted(known)) or 'no language'}, not for en and "
                        f"{lang or 'another'}; make: python step3_head.py --out {out} --lang {lang or 'ko'}")
    return [(path, head) for path, head in heads if head["lang"] in (*langs, "en")], langs

def logits_of(head, x):
    """Embeddings e(x) (N, D) -> logits (S, N, C) of a head's seeds; Rev-LangAlign maps x by A first."""
    return logits(head["heads"], load_aligner(head, x.shape[1]).map(x) if head["method"] == "rev" else x)

def macro_f1(predicted, y, classes):
    """Mean of the classes' F1; predicted, y (N,)."""
    confusion = torch.bincount(y * classes + predicted, minlength=classes ** 2).view(classes, classes)
    return (2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp_min(1)).mean().item()

def bootstrap(differences, seed):
    """95% intervals (2, H) of the column means of differences (N, H): items resampled, alike for all."""
    rng, n = np.random.default_rng(seed), len(differences)
    blocks = tqdm(range(BOOTSTRAP // 100), desc="bootstrap", delay=2, leave=False)
    means = [rng.multinomial(n, np.full(n, 1 / n), 100) @ differences / n for _ in blocks]
    return np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)

def rank_correlation(a, b):
    """Spearman's, of two lists of numbers, ties averaged; nan where all of one are equal."""
    ranks = [(np.less.outer(v, v).sum(0) + np.less_equal.outer(v, v).sum(0)) for v in (a, b)]
    return np.corrcoef(ranks)[0, 1] if min(map(np.ptp, ranks)) > 0 else float("nan")

def record_of(name, heads, predicted, y):
    """Numbers of one variant: heads that differ in seeds only, predicted (S, N) over all their seeds."""
    first, hits = heads[0], (predicted == y).double()
    label = re.sub(rf"^head-|-({first['lang']}|n\d+|rev)(?=-|$)", "", name).replace("-", " ")
    measured = [head["alignment"]["A"] for head in heads if first["arch"]]
    return {**{key: first[key] for key in ("method", "arch", "n")}, "head": name, "label": label,
            "seeds": len(hits), "accuracy": hits.mean().item(),
            "accuracy_std": hits.mean(1).std(correction=0).item(),
            "macro_f1": float(np.mean([macro_f1(p, y, len(first["labels"])) for p in predicted])),
            **{key: float(np.mean([m[key] for m in measured])) for key in ("r2", "p1") if measured},
            **{key: int(first["cost"][key]) for key in ("sentences", "characters")},
            "seconds": {key: float(value) for key, value in first["seconds"].items()}}

def check_leak(path, texts, info, lang, allow):
    """UserError, or with `allow` a warning, if test texts stand in training or translated rows, too."""
    wide = len(texts[0])
    for other, headers in ((f"{lang}/train", ROWS), (f"{lang}/translated", PAIRS), ("en/train", ROWS)):
        file = Path(info["data"], info["task"], f"{other}.tsv")
        rows = read_tsv(file, *headers) if file.exists() else []
        found = sorted(set(texts) & {part for row in rows for part in (row[1:1 + wide], row[-wide:])})
        told = f"{path}: {len(found)} of its {len(texts)} rows are in {file}, too, and flatter the numbers"
        if found and not allow:
            raise UserError(f"{told}, e.g. {found[0][0][:30]!r}; delete them, or go on with --allow-leak")
        if found:
            print(f"warning: {told}")

def evaluate(lang, heads, cache, info, args):
    """One record a variant on a split of `lang`, in the table's order; aligner seeds are pooled."""
    path = Path(info["data"], info["task"], lang, f"{args.split}.tsv")
    texts, y, _ = load_task(info["data"], info["task"], lang, args.split, info["labels"], info["pair"])
    check_leak(path, texts, info, lang, args.allow_leak)
    x, groups = cache(texts, f"encode {args.split}"), {}
    for path, head in heads:
        groups.setdefault(re.sub(r"-seed\d+(?=-|$)", "", path.stem), []).append(head)
    votes = {name: torch.cat([logits_of(head, x).argmax(2) for head in of]) for name, of in groups.items()}
    groups["majority"] = [groups["head-english"][0] | dict(method="majority", seconds={}, cost=volume([]))]
    votes["majority"] = y.bincount().argmax().expand(1, len(y))                                      # (S, N)
    records = [record_of(name, groups[name], votes[name], y) for name in votes]
    hits = torch.stack([(predicted == y).double().mean(0) for predicted in votes.values()], 1)       # (N, H)
    gains = (hits - hits[:, [list(votes).index("head-english")]]).numpy()
    for r, *delta in zip(records, gains.mean(0), *bootstrap(gains, args.seed)):
        r |= {"lang": lang, "split": args.split, "items": len(y), **dict(zip(DELTA, delta))}
    tops = [r for r in records if r["method"] in ("native", "translated") and r["delta_low"] > 0]
    top = min(tops, key=lambda r: (r["method"], -(r["n"] or 0)), default=None)        # native, else largest n
    for r in records:
        if top and r["method"] in METHODS[2:]:               # share of the gap, where there is one
            r |= {"recovered": r["delta"] / top["delta"], "ceiling": top["method"]}
    return sorted(records, key=lambda r: (METHODS.index(r["method"]), (None, *ARCHES).index(r["arch"]),
                                          r["label"], r["n"] or 0))

def line_of(r, wide):
    """A record as a line of the table, its label `wide` letters."""
    line = f"  {r['label']:{wide}s}{r['n'] or '-':>7}{r['seeds']:6d}{r['accuracy']:10.2%}" \
           f"{100 * r['accuracy_std']:6.2f}{r['macro_f1']:10.2%}"
    if r["head"] != "head-english" and "delta" in r:
        line += "  {:+6.2f} [{:+.2f}, {:+.2f}]".format(*(100 * r[key] for key in DELTA))
    line = line.ljust(wide + 67) + (f"{r['recovered']:5.0%}" if "recovered" in r else "")
    line = line.ljust(wide + 72) + (f"{r['r2']:6.3f}{r['p1']:7.1%}" if r["arch"] else "")
    line = line.ljust(wide + 85) + (f"{r['sentences']:12}{r['characters']:12}" if r["sentences"] else "")
    return line.ljust(wide + 112) + " / ".join(f"{seconds:.0f}" for seconds in r["seconds"].values())

def show(lang, records):
    """Print the table of one language, and how far alignment foretells accuracy."""
    wide = max(len(r["label"]) for r in records) + 1
    items, split, top = records[0]["items"], records[0]["split"], records[-1].get("ceiling", "native")
    print(f"\n{lang}, {items} {split} rows: +- over seeds, difference to english in points, 95% interval,\n"
          f"share of {top}'s difference, R^2 and P@1 of A on held-out pairs, text translated, seconds to\n"
          "encode, align, train\n" + "  method".ljust(wide + 2) + "      n seeds  accuracy    +-  macro F1"
          "  difference                share   R^2    P@1   sentences  characters  seconds")
    print(*(line_of(r, wide) for r in records), sep="\n")
    mapped = [r for r in records if r["method"] == "langalign"]
    if len(mapped) > 2:
        r2, p1 = (rank_correlation([r[key] for r in mapped], [r["accuracy"] for r in mapped])
                  for key in ("r2", "p1"))
        print(f"  rank correlation with accuracy, {len(mapped)} langalign rows: R^2 {r2:+.2f}, P@1 {p1:+.2f}")

def predict(path, name, head, cache):
    """Label a file or standard input (-): a line `label <tab> probability` for each line, in order."""
    source = open(0 if path == "-" else path, encoding="utf-8-sig", errors="surrogateescape", newline="\n",
                  closefd=path != "-")
    print(f"labelling with {name}", file=sys.stderr)
    done, wide = 0, 1 + head["pair"]                         # surrogates: what is not UTF-8
    while texts := [tuple(line.rstrip("\r\n").split("\t")) for line in itertools.islice(source, CHUNK)]:
        for done, text in enumerate(texts, done + 1):
            if len(text) != wide or re.search("[\udc80-\udcff]", "".join(text)):
                raise UserError(f"{path}:{done}: not UTF-8, or not {wide} tab-separated columns")
        out = logits_of(head, encode(cache.encoder, texts, cache.device))           # (S, N, C)
        for value, label in zip(*(column.tolist() for column in out.softmax(2).mean(0).max(1))):
            print(f"{head['labels'][label]}\t{value:.4f}")
        sys.stdout.flush()

def main(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language; without it every language that has a head")
    p.add_argument("--split", choices=("test", "dev"), default="test", help="rows to judge on, else test")
    p.add_argument("--predict", metavar="FILE", help="label FILE's lines (-: stdin): newest head or --head")
    p.add_argument("--head", metavar="FILE.pt", help="with --predict: use this head; --out has embed.pt")
    p.add_argument("--allow-leak", action="store_true", help="go on though test rows are training rows, too")
    p.add_argument("--plot", metavar="FILE.svg", help="draw pairs and accuracies of --lang as SVG")
    args = p.parse_args(argv)

    cache, info, machine = open_run(args)
    heads, langs = load_heads(args.out, args.lang, cache.encoder, info, args.predict and args.head)
    if args.predict:
        if len(langs) > 1:
            raise UserError(f"--predict needs --lang; {args.out} has heads for: {' '.join(langs)}")
        return predict(args.predict, *max(heads, key=lambda item: item[1]["lang"] in langs), cache)

    print(f"eval | {machine} | {len(heads)} heads | languages {' '.join(langs)}", flush=True)
    results = []
    for lang in langs:
        records = evaluate(lang, [h for h in heads if h[1]["lang"] in (lang, "en")], cache, info, args)
        show(lang, records)
        results += records
    path = Path(args.out, "results.json" if args.split == "test" else "results-dev.json")
    write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
    if args.plot:
        from data import plot                                # only here: else common.py is enough
        plot.draw(args.plot, args.lang, results, heads, cache, info)
    print(f"\n-> {path} {args.plot or ''}")

if __name__ == "__main__":
    run(main)
