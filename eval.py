"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, and predictions on new text.

    python eval.py --lang ko                                           # the heads of one language
    python eval.py                                                     # every head in the run folder
    python eval.py --lang ko --predict reviews.txt > labels.tsv        # or --predict - for standard input

Reads   <out>/embed*.pt, <out>/head-*.pt and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results.json, the table as a list of objects. With --predict only standard output: for each line of text
        (a pair task: text, tab, text_b) one line `label <tab> probability`, averaged over the head seeds.
Expect  langalign above english by a point or so on real text, with an interval that a small test set makes wide.
"""
import contextlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

from common import (Cache, UserError, banner, encode, load, load_aligner, load_encoder, load_task, make_parser,
                    pick_device, run, write_whole)

BOOTSTRAP = 10_000         # resamples of the test items behind each 95% interval
CHUNK = 1_024              # lines of --predict labelled at once: memory stays constant, order is kept
METHODS = ("english", "langalign", "rev", "translated", "native")                  # the table's order


def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language; without it every language that has a head")
    p.add_argument("--predict", metavar="FILE", help="label the lines of FILE (- for standard input), no table")
    p.add_argument("--method", choices=METHODS, help="--predict with the newest head of this method; without it "
                   "langalign, else whatever is newest")
    return p.parse_args(argv)


def load_heads(out):
    """[(path, artifact)] of every head in the run folder, oldest first."""
    make = f"python step3_head.py --out {out} --lang ko"
    paths = sorted(Path(out).glob("head-*.pt"), key=lambda p: p.stat().st_mtime_ns)
    if not paths:
        raise UserError(f"{out}: no head in this run folder; make one with: {make}")
    return [(path, load(path, "head", f"python step3_head.py --out {out}")) for path in paths]


def load_lms(out, heads, device):
    """{fingerprint: (Encoder, run info)} of the LMs that the heads were trained on."""
    found = {}
    for path in sorted(Path(out).glob("embed*.pt")):
        encoder, info = load_encoder(out, path.name)
        found[encoder.fingerprint] = encoder.to(device), info
    for path, head in heads:
        if head["lm"] not in found:
            raise UserError(f"{path}: of an LM that is not in {out} (step 1 ran again?); make it again with: "
                            f"python step3_head.py --out {out} --lang {head['lang']} --method {head['method']}")
    return found


def logits_of(head, x):
    """Test embeddings e(x) (N, D) -> logits (S, N, C) of the head's seeds; a Rev-LangAlign head maps x by A first."""
    if head["aligner"]:
        x = load_aligner(head["aligner"], head["state"]).map(x)
    weight, bias, mean, scale = (head["heads"][name] for name in ("weight", "bias", "mean", "scale"))
    return (x - mean) / scale @ weight + bias


def macro_f1(predicted, y, classes):
    """Mean over the classes of F1; predicted, y (N,)."""
    confusion = torch.bincount(y * classes + predicted, minlength=classes ** 2).view(classes, classes).double()
    return (2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp_min(1)).mean().item()


def bootstrap(difference, seed):
    """95% interval of the mean of a per-item difference (N,), resampling test items with replacement."""
    rng, n = np.random.default_rng(seed), len(difference)
    means = [difference[rng.integers(0, n, n)].mean() for _ in range(BOOTSTRAP)]
    return np.percentile(means, [2.5, 97.5])


def evaluate(lang, heads, lms, args, device, dtype):
    """One record a head on the test split of `lang`, and the majority class's share."""
    caches = {key: Cache(encoder, args.out, device, dtype) for key, (encoder, _) in lms.items()}
    records, correct = [], {}
    for path, head in heads:
        info = lms[head["lm"]][1]
        texts, y, labels = load_task(info["data"], info["task"], lang, "test", info["labels"])
        if labels != head["labels"]:
            raise UserError(f"{path}: labels {head['labels']}, the run folder's are {labels}; train it again")
        predicted = logits_of(head, caches[head["lm"]](texts, f"encode {lang} test")).argmax(2)      # (S, N)
        hits = (predicted == y).double()                                                             # (S, N)
        accuracy = hits.mean(1)
        correct[path.name] = hits.mean(0).numpy()                                                    # (N,)
        records.append({"method": head["method"], "lang": lang, "arch": head["arch"], "n": head["n"],
                        "seeds": len(accuracy), "accuracy": accuracy.mean().item(),
                        "accuracy_std": accuracy.std(correction=0).item(),
                        "macro_f1": sum(macro_f1(p, y, len(labels)) for p in predicted) / len(predicted),
                        "delta": None, "delta_low": None, "delta_high": None, "head": path.name})
    for record in records:
        if record["method"] != "english" and "head-english.pt" in correct:
            difference = correct[record["head"]] - correct["head-english.pt"]
            record["delta"] = difference.mean()
            record["delta_low"], record["delta_high"] = bootstrap(difference, args.seed)
    return records, y.bincount().max().item() / len(y), len(y)


def show(lang, records, majority, items):
    """Print the table of one language."""
    print(f"\n{lang}: {items} test rows, majority class {majority:.2%}; difference to english in points, "
          f"95% interval over test rows")
    print(f"  {'method':11s}{'arch':11s}{'n':>7s} {'seeds':>5s}  {'accuracy':>8s} {'+-':>5s}  {'macro F1':>8s}   difference")
    for r in sorted(records, key=lambda r: (METHODS.index(r["method"]), r["arch"], r["n"] or 0)):
        difference = "" if r["delta"] is None else \
            f"{100 * r['delta']:+6.2f}  [{100 * r['delta_low']:+.2f}, {100 * r['delta_high']:+.2f}]"
        print(f"  {r['method']:11s}{r['arch'] or '-':11s}{r['n'] or '-':>7} {r['seeds']:5d}  {100 * r['accuracy']:8.2f} "
              f"{100 * r['accuracy_std']:5.2f}  {100 * r['macro_f1']:8.2f}  {difference}")


def read_lines(stream, pair, name):
    """Texts of a binary stream, one a line; UserError with the line number."""
    for number, line in enumerate(stream, 1):
        try:
            text = tuple(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t"))
        except UnicodeDecodeError:
            raise UserError(f"{name}:{number}: not UTF-8; save the file as UTF-8")
        if len(text) != 1 + pair:
            raise UserError(f"{name}:{number}: {len(text)} tab-separated columns, this task has {1 + pair}")
        yield text


def predict(path, head, encoder, device, dtype):
    """Label a file or standard input line by line: `label <tab> probability`, in order, in constant memory."""
    if path != "-" and not Path(path).is_file():
        raise UserError(f"--predict {path}: no such file; give a text file, one text a line, or - for standard input")
    with (contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")) as stream:
        lines = read_lines(stream, head["pair"], "standard input" if path == "-" else path)
        while chunk := list(itertools.islice(lines, CHUNK)):
            x = encode(encoder, chunk, device, dtype)
            probability = logits_of(head, x).softmax(2).mean(0)                                      # (N, C)
            for value, label in zip(*(t.tolist() for t in probability.max(1))):
                print(f"{head['labels'][label]}\t{value:.4f}")
            sys.stdout.flush()


def pick_head(heads, args):
    """The head that --predict uses: of --lang and --method, newest; langalign first where no method is named."""
    langs = sorted({head["lang"] for _, head in heads} - {"en"})
    lang = args.lang or (langs[0] if len(langs) == 1 else None)
    fits = [(path, head) for path, head in heads if head["lang"] in (lang, "en") and
            (args.method or head["method"]) == head["method"]]
    if lang is None or (lang not in langs and args.method != "english") or not fits:
        there = "; ".join(f"--lang {head['lang']} --method {head['method']}" for _, head in heads)
        raise UserError(f"{args.out}: no head for --lang {args.lang} --method {args.method}; there are: {there}")
    return max(fits, key=lambda item: (item[1]["lang"] == lang, item[1]["method"] == "langalign"))


def main(argv=None):
    args = get_args(argv)
    device, dtype = pick_device(args)
    heads = load_heads(args.out)
    if args.predict:
        path, head = pick_head(heads, args)
        lms = load_lms(args.out, [(path, head)], device)
        print(f"labelling with {path}", file=sys.stderr)
        return predict(args.predict, head, lms[head["lm"]][0], device, dtype)

    langs = [args.lang] if args.lang else sorted({head["lang"] for _, head in heads} - {"en"})
    heads = [item for item in heads if item[1]["lang"] in (*langs, "en")]
    lms = load_lms(args.out, heads, device)
    banner("eval", device, dtype, f"{len(heads)} heads", f"languages {' '.join(langs)}")
    results = []
    for lang in langs:
        mine = [(path, head) for path, head in heads if head["lang"] in (lang, "en")]
        records, majority, items = evaluate(lang, mine, lms, args, device, dtype)
        show(lang, records, majority, items)
        results += records
    write_json(Path(args.out, "results.json"), results)
    print(f"\n-> {Path(args.out, 'results.json')}")


if __name__ == "__main__":
    run(main)
