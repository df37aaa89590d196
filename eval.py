"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, labels for new text.

    python eval.py --lang ko                                     # the heads of one language
    python eval.py --lang ko --predict reviews.txt > labels.tsv  # --predict - reads standard input

Reads   <out>/ of steps 1 to 3 and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results-<lang>.json, the table as a list of objects. --predict: only standard output, for each
        line of text (in a pair task text, tab, text_b) `label <tab> probability`, the heads' mean.
Expect  on toy Korean english 57%, langalign fc 23 points more, with residuals 28; other processors differ.
"""

import itertools
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common import HEAD_DEFAULTS, METHODS, PAIRS, ROWS, UserError, build_aligner, cached, encode
from common import find, load, load_encoder, load_task, logits, make_parser, pick_device
from common import read_texts, read_tsv, run, say, warn_if, write_atomic

BOOTSTRAP = 10_000  # resamples behind a 95% interval
CHUNK = 1_024  # lines that --predict labels at once: constant memory, order kept
FIELDS = "lang", "method", "arch", "n", "residuals", "l2", "seeds"  # what a variant is


def logits_of(head, encoder, embed, texts):
    """Texts -> logits (S, N, C) of load_head's dict, S seeds; embed(texts) -> (N, D) is e(.), by `encoder`.
    Only Rev-LangAlign needs A at inference: behind e(.), or in the LM (paper, Rev-LangAlign)."""
    if head["method"] != "rev":
        return logits(head["heads"], embed(texts))
    aligner = build_aligner(head, encoder.lm)
    if head["arch"] != "inside":
        return logits(head["heads"], aligner.map(embed(texts)))
    with aligner.to(encoder.lm.device).on(encoder):
        return logits(head["heads"], embed(texts))


def bootstrap(gains, premises):
    """95% interval (low, high) of the mean of gains (N,); rows of one premise (N,) are drawn together."""
    sums, counts = np.bincount(premises, gains), np.bincount(premises)  # (P,)
    rng, even = np.random.default_rng(0), np.full(len(counts), 1 / len(counts))
    draws = (rng.multinomial(len(counts), even, 100) for _ in range(BOOTSTRAP // 100))  # (100, P)
    means = np.concatenate([draw @ sums / (draw @ counts) for draw in draws])
    return np.percentile(means, [2.5, 97.5]).tolist()


def evaluate(lang, heads, encoder, embed, info, split="test"):
    """One record per variant on a split of `lang`; heads that differ only in seed are one variant."""
    texts, y = load_task(info, lang, split)
    width, seen = len(texts[0]), set()  # seen: all texts of the training files
    for name in f"{lang}/train.tsv", f"{lang}/translated.tsv", "en/train.tsv":
        path = Path(info["data"], info["task"], name)
        rows = read_tsv(path, *ROWS, *PAIRS) if path.exists() else []
        seen |= {row[1 : 1 + width] for row in rows} | {row[-width:] for row in rows}
    leaks = sum(text in seen for text in texts)
    warn_if(leaks, f"{leaks} of the {lang} rows ({leaks / len(y):.1%}) are training rows, too")
    shared = {"lang": lang, "split": split, "rows": len(y), "leaks": leaks}
    shared["majority"] = (y.bincount().max() / len(y)).item()
    premises = np.unique([text[0] for text in texts], return_inverse=True)[1]  # (N,)
    hits = {}  # variant: (S, N), 1.0 where the head of a seed is right
    for head in heads:
        variant = tuple(head[field] for field in FIELDS)
        hit = (logits_of(head, encoder, embed, texts).argmax(2) == y).double()
        hits[variant] = torch.cat([hits[variant], hit]) if variant in hits else hit
    records, english = [], next(iter(hits.values())).mean(0)  # (N,), of heads[0]
    for variant, hit in hits.items():
        gains = (hit.mean(0) - english).numpy()  # (N,)
        record = dict(zip(FIELDS, variant)) | shared | {"heads": len(hit), "gain": gains.mean()}
        record |= {"accuracy": hit.mean().item(), "interval": bootstrap(gains, premises)}
        records.append(record | {"accuracy_std": hit.mean(1).std(correction=0).item()})
    return records


def load_head(out, encoder, lang, method="langalign", arch="fc", n=None, **options):
    """The head of step 3 that method, arch, n, residuals, seed, seeds and l2 name, as its flags do."""
    name = {"lang": lang if method != "english" else "", "method": method, **options}
    name["arch"] = arch if method in ("langalign", "rev") else None
    n = None if method in ("english", "native", "centred") else n or "*"
    return find(out, "head", encoder.digest, n, **name)


def classify(out, texts, lang, device="cpu", dtype=None, **flags):
    """(labels, probabilities (N, C), mean over seeds) of texts, or pairs, by the head of load_head."""
    encoder, _ = load_encoder(out, device, dtype)
    head = load_head(out, encoder, lang, **flags)
    rows = logits_of(head, encoder, partial(encode, encoder), texts).softmax(2).mean(0)
    return [head["labels"][i] for i in rows.argmax(1)], rows


def predict(source, file, head, encoder, width, args):
    """For each line of an open file print label, probability (--all: of each label), text (--text)."""
    if args.all:
        say("label", *head["labels"], *(ROWS[1].split()[1:][:width] if args.text else []), sep="\t")
    rows, done = read_texts(source, file, width), 0
    try:
        while texts := list(itertools.islice(rows, CHUNK)):
            embed = partial(encode, encoder, place=f"{file}:", first=done + 1)
            out = logits_of(head, encoder, embed, texts)
            for text, row in zip(texts, out.softmax(2).mean(0).tolist()):  # (N, C)
                numbers = [f"{p:.4f}" for p in (row if args.all else [max(row)])]
                line = [head["labels"][row.index(max(row))], *numbers]
                say(*line, *(text if args.text else []), sep="\t")
            done += len(texts)
    except (KeyboardInterrupt, UserError) as err:
        raise type(err)(f"{str(err) or 'stopped'}; {done} lines are labelled")


def main():
    p = make_parser(__doc__, step=4)
    flag = p.add_argument
    flag("--split", choices=("test", "dev"), default="test", help="rows to judge on, else test.tsv")
    flag("--predict", metavar="FILE", help="label its lines (-: stdin) by the head that flags name")
    flag("--all", action="store_true", help="with --predict: a column for each label, and a header")
    flag("--text", action="store_true", help="with --predict: repeat the text in the last columns")
    args = p.parse_args()
    flags = {k: vars(args)[k] for k in ("method", "arch", "n", "residuals", *HEAD_DEFAULTS)}
    given = [k for k in (*flags, "all", "text") if vars(args)[k] != p.get_default(k)]
    warn_if(given and not args.predict, f"{given} go with --predict: every head is judged here")
    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data, args.batch_tokens)
    if args.predict:
        head = load_head(args.out, encoder, args.lang, **flags)
        say(f"labelling with {head['path']}", file=sys.stderr)
        file = sys.stdin.fileno() if args.predict == "-" else args.predict
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as source:
            return predict(source, args.predict, head, encoder, 1 + info["two_texts"], args)

    embed = partial(cached, encoder, args.out)
    paths = sorted(Path(args.out).glob("head-*.pt"), key=lambda path: len(path.name))
    there = [load(path, "head") for path in paths]  # defaults first
    heads = [head for head in there if head["lm"] == encoder.digest]
    warn_if(len(heads) < len(there), "heads of another LM or task are left out: make them again")
    heads.sort(key=lambda head: (METHODS.index(head["method"]), head["n"] or 0))
    mine = [head for head in heads if head["lang"] in (args.lang, "")]
    if not mine or mine[0]["method"] != "english":
        raise UserError(f"{args.out}: no heads; python step3_head.py --lang {args.lang} makes them")
    say(f"eval | {machine} | {len(mine)} heads")
    records = evaluate(args.lang, mine, encoder, embed, info, args.split)
    say("{lang}, {rows} {split} rows, majority class {majority:.2%}".format(**records[0]))
    say(f"{'':32}     n  heads  accuracy    +-  points over english [95%]")
    for r in records:
        name = f"{r['method']} {r['arch'] or ''}".strip()
        name += " residuals" if r["residuals"] else ""
        name += f" l2 {r['l2']:g}" if r["l2"] != HEAD_DEFAULTS["l2"] else ""
        std, gain, low, high = (100 * v for v in (r["accuracy_std"], r["gain"], *r["interval"]))
        line = f"  {name:28}{r['n'] or '-':>7}{r['heads']:7}{r['accuracy']:10.2%}{std:6.2f}"
        say(line + (f"  {gain:+6.2f} [{low:+.2f}, {high:+.2f}]" if r is not records[0] else ""))
    path = Path(args.out, f"results-{args.lang}{'-dev' if args.split == 'dev' else ''}.json")
    write_atomic(path, json.dumps(records, indent=1).encode())
    say(f"-> {path}")


if __name__ == "__main__":
    run(main)
