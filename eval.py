"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, predictions on new text.

    python eval.py --lang ko                                     # the heads of one language
    python eval.py                                               # every head in the run folder
    python eval.py --lang ko --predict reviews.txt > labels.tsv  # --predict - reads standard input

Reads   <out>/embed*.pt, <out>/head-*.pt and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results.json, the table as a list of objects. With --predict only standard output, for each line
        of text (in a pair task text, tab, text_b) a line `label <tab> probability`, averaged over head seeds.
Expect  a clear gain of langalign over english on the toy world; on real text often none: see README.md.
"""
import contextlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

from common import (Cache, UserError, encode, load, load_aligner, load_encoder, load_task, make_parser,
                    pick_device, run, write_whole)

BOOTSTRAP = 10_000     # resamples of the test items behind a 95% interval
CHUNK = 1_024          # lines that --predict labels at once: constant memory, order kept
METHODS = ("english", "langalign", "rev", "translated", "native")                  # the table's order

def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language; without it every language that has a head")
    p.add_argument("--predict", metavar="FILE", help="label the lines of FILE, or of standard input: -")
    return p.parse_args(argv)

def load_heads(out, lang):
    """([(path, artifact)] of the heads for `lang`, None: all, and of english, newest first; languages)."""
    make = f"python step3_head.py --out {out} --lang {lang or 'ko'}"
    heads = [(path, load(path, "head", make)) for path in Path(out).glob("head-*.pt")]
    heads.sort(key=lambda item: -item[0].stat().st_mtime_ns)
    langs = sorted({head["lang"] for _, head in heads} - {"en"})
    if not heads or not (lang or langs) or lang and lang not in (langs or [lang]):   # english serves any
        there = f"no head for {lang or 'a target language'}, only for: {' '.join(langs or ['en'])}"
        raise UserError(f"{out}: {there if heads else 'no head in this run folder'}; make one with: {make}")
    heads = [(path, head) for path, head in heads if head["lang"] in (lang or head["lang"], "en")]
    return heads, [lang] if lang else langs

def load_lms(out, heads, device):
    """{fingerprint: (Encoder, run info)} of the LMs that the heads stand on; UserError for a head without."""
    lms = {}
    for path in sorted(Path(out).glob("embed*.pt")):
        encoder, info = load_encoder(out, path.name)
        lms[encoder.fingerprint] = encoder.to(device), info
    for path, head in heads:
        shape = head["heads"]["weight"].shape[1:]                                                    # (D, C)
        if head["lm"] not in lms or shape != (lms[head["lm"]][0].dim, len(head["labels"])):
            make = f"python step3_head.py --out {out} --lang {head['lang']} --method {head['method']}"
            raise UserError(f"{path}: of another LM or width than {out}; delete it, or make it with: {make}")
    return lms

def logits_of(head, x):
    """Embeddings e(x) (N, D) -> logits (S, N, C) of a head's seeds; Rev-LangAlign maps x by A first."""
    if head["aligner"]:
        x = load_aligner(head).map(x)
    weight, bias, mean, scale = (head["heads"][name] for name in ("weight", "bias", "mean", "scale"))
    return (x - mean) / scale @ weight + bias

def macro_f1(predicted, y, classes):
    """Mean of the classes' F1; predicted, y (N,)."""
    confusion = torch.bincount(y * classes + predicted, minlength=classes ** 2).view(classes, classes)
    return (2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp_min(1)).mean().item()

def bootstrap(difference, seed):
    """95% interval of the mean of a per-item difference (N,), test items resampled with replacement."""
    rng, n = np.random.default_rng(seed), len(difference)
    return np.percentile([difference[rng.integers(0, n, n)].mean() for _ in range(BOOTSTRAP)], [2.5, 97.5])

def evaluate(lang, heads, lms, args, device, dtype):
    """(one record a head on the test split of `lang`, majority class's share, test rows)."""
    caches = {key: Cache(encoder, args.out, device, dtype) for key, (encoder, _) in lms.items()}
    records, correct = [], {}
    for path, head in heads:
        info, labels = lms[head["lm"]][1], head["labels"]
        texts, y, _ = load_task(info["data"], info["task"], lang, "test", labels)
        predicted = logits_of(head, caches[head["lm"]](texts, "encode test")).argmax(2)              # (S, N)
        hits = (predicted == y).double()                                                             # (S, N)
        correct[path.name] = hits.mean(0).numpy()                                                    # (N,)
        own = f" ({head['tuned_on']} LM)" if head["tuned_on"] != "english" else ""
        records.append({"method": head["method"] + own, "lang": lang, "arch": head["arch"], "n": head["n"],
                        "seeds": len(hits), "accuracy": hits.mean().item(),
                        "accuracy_std": hits.mean(1).std(correction=0).item(),
                        "macro_f1": float(np.mean([macro_f1(p, y, len(labels)) for p in predicted])),
                        "delta": None, "delta_low": None, "delta_high": None, "head": path.name})
    for record in records:
        if record["method"] != "english" and "head-english.pt" in correct:
            difference = correct[record["head"]] - correct["head-english.pt"]
            record["delta"] = difference.mean()
            record["delta_low"], record["delta_high"] = bootstrap(difference, args.seed)
    return records, y.bincount().max().item() / len(y), len(y)

def show(lang, records, majority, items):
    """Print the table of one language."""
    print(f"\n{lang}: {items} test rows, majority class {majority:.2%}; +- over head seeds; difference to "
          f"english with its 95% interval over test rows, in points")
    print("  method                 aligner             n  seeds  accuracy    +-  macro F1  difference")
    for r in sorted(records, key=lambda r: (METHODS.index(r["method"].split()[0]), r["head"])):
        variant = (r["arch"] or "-") + r["head"][:-3].partition(f"-n{r['n']}")[2].replace("-", " ")
        line = (f"  {r['method']:22s} {variant:14s} {r['n'] or '-':>6} {r['seeds']:6d}  "
                f"{100 * r['accuracy']:8.2f} {100 * r['accuracy_std']:5.2f}  {100 * r['macro_f1']:8.2f}")
        delta = [100 * (r[key] or 0) for key in ("delta", "delta_low", "delta_high")]
        print(line + ("" if r["delta"] is None else "  {:+.2f} [{:+.2f}, {:+.2f}]".format(*delta)))

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

def predict(path, head, encoder, device, dtype):
    """Label a file or standard input: a line `label <tab> probability` for each line, in order."""
    try:
        source = contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")
    except OSError as err:
        raise UserError(f"--predict {path}: {err.strerror}; give a text file, or - for standard input")
    print(f"labelling with {head['method']} {head['arch'] or ''} {head['lang']}", file=sys.stderr)
    with source as stream:
        texts = read_texts(stream, head["pair"], "standard input" if path == "-" else path)
        while chunk := list(itertools.islice(texts, CHUNK)):
            probability = logits_of(head, encode(encoder, chunk, device, dtype)).softmax(2).mean(0)  # (N, C)
            for value, label in zip(*(column.tolist() for column in probability.max(1))):
                print(f"{head['labels'][label]}\t{value:.4f}")
            sys.stdout.flush()

def main(argv=None):
    args = get_args(argv)
    device, dtype, machine = pick_device(args)
    heads, langs = load_heads(args.out, args.lang)
    if args.predict:
        if not args.lang and len(langs) > 1:
            raise UserError(f"--predict needs --lang; {args.out} has heads for: {' '.join(langs)}")
        best = max(heads, key=lambda item: (item[1]["method"] == "langalign", item[1]["lang"] != "en"))
        encoder, _ = load_lms(args.out, [best], device)[best[1]["lm"]]
        return predict(args.predict, best[1], encoder, device, dtype)

    lms = load_lms(args.out, heads, device)
    print(f"eval | {machine} | {len(heads)} heads | languages {' '.join(langs)}", flush=True)
    results = []
    for lang in langs:
        mine = [item for item in heads if item[1]["lang"] in (lang, "en")]
        records, majority, items = evaluate(lang, mine, lms, args, device, dtype)
        show(lang, records, majority, items)
        results += records
    path = Path(args.out, "results.json")
    write_whole(path, lambda file: file.write((json.dumps(results, indent=1) + "\n").encode()))
    print(f"\n-> {path}")

if __name__ == "__main__":
    run(main)
