"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, labels for new text.

    python eval.py --lang ko                                     # the heads of one language
    python eval.py --lang ko --predict reviews.txt > labels.tsv  # --predict - reads standard input

Reads   <out>/ of steps 1 to 3 and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results-<lang>.json, the table as a list of objects. --predict writes to standard output only:
        `label<TAB>probability` per input line (pairs: text<TAB>text_b), the mean of the heads, 1,024 lines at a time.
Expect  on toy Korean english 50%, langalign fc +24 points, with residuals +27 (last digits differ by CPU)."""

import json
import math
import sys
import threading
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from common import METHODS, PAIRS, ROWS, WORLD, UserError, as_texts, build_aligner, cached
from common import check_flags, describe, digest_of, encode, find, load, load_encoder, load_task
from common import logits, make_parser, path_of, pick_device, read_texts, read_tsv, run, say, warn
from common import write_atomic

BOOTSTRAP = 10_000  # resamples behind a 95% interval
CHUNK = 1_024  # lines that --predict labels at once: constant memory, order kept


def logits_of(head, encoder, embed, texts):
    """Return the logits (S, N, C) of a head (from load_head). embed(texts) -> (N, D) must use this `encoder`.
    Only Rev-LangAlign needs A at inference: after e(.), or inside the LM (paper, Rev-LangAlign)."""
    if head["method"] != "rev":
        return logits(head["heads"], embed(texts))
    aligner = build_aligner(head, encoder.lm)
    if head["arch"] != "inside":
        return logits(head["heads"], aligner.map(embed(texts)))
    with aligner.to(encoder.lm.device).on(encoder):
        return logits(head["heads"], embed(texts))


def bootstrap(gains, premises):
    """Return the 95% interval of each mean of gains (H, N); rows of one premise (N,) are resampled together."""
    counts = np.bincount(premises)  # (P,)
    sums = np.stack([np.bincount(premises, row) for row in gains], axis=1)  # (P, H)
    rng, even = np.random.default_rng(0), np.full(len(counts), 1 / len(counts))
    draws = (rng.multinomial(len(counts), even, 100) for _ in range(BOOTSTRAP // 100))  # (100, P)
    means = np.concatenate([draw @ sums / (draw @ counts)[:, None] for draw in draws])
    return np.percentile(means, [2.5, 97.5], axis=0).T.tolist()


def squeeze(texts):
    """Return texts for comparison, ignoring case and spacing."""
    return tuple(" ".join(text.casefold().split()) for text in texts)


def macro_f1(guesses, y):
    """Return the F1 of guesses (S, N), averaged over the classes that y (N,) has, and over S."""
    classes = y.unique()  # (K,)
    guessed, actual = guesses[..., None] == classes, y[:, None] == classes  # (S, N, K), (N, K)
    f1 = 2 * (guessed & actual).sum(1) / (guessed.sum(1) + actual.sum(0))  # (S, K)
    return f1.mean().item()


def check_texts(lang, split, texts, embed, info):
    """Warn if rows of a split are also training rows (return how many), or if its mean is far from the translations."""
    width, seen = len(texts[0]), set()  # seen: all texts of the training files
    for name in f"{lang}/train.tsv", f"{lang}/translated.tsv", "en/train.tsv":
        path = Path(info["data"], info["task"], name)
        rows = read_tsv(path, *ROWS, *PAIRS) if path.exists() else []
        half = 1 + len(rows[0]) // 2 if rows and path.name == "translated.tsv" else None
        seen |= {squeeze(side) for row in rows for side in (row[1:half], row[half or 1 :])}
        if half == 1 + width:
            spaced = rows[:: math.ceil(len(rows) / 500)]
            x, y = embed(texts), embed([row[-width:] for row in spaced])  # (N, D), (500, D)
            gap = (x.mean(0) - y.mean(0)).norm() / y.var(0).sum().sqrt()
            if gap > 0.2 + len(x) ** -0.5 + len(y) ** -0.5:  # data/RESULTS.md, Signs of trouble
                finding = f"{split} texts are {gap:.1f} standard deviations from the translations"
                warn(f"the {finding}; another language or domain?")
    if leaks := sum(squeeze(text) in seen for text in texts):
        warn(f"{leaks} of {len(texts)} {split} rows in {lang} are also training rows")
    return leaks


def swapped(guesses, y):
    """Return whether guesses (S, N) would fit y (N,) much better with the labels in another order."""
    C = 1 + int(max(y.max(), guesses.max()))
    counts = torch.bincount((C * y + guesses).flatten(), minlength=C * C).view(C, C)
    better = (counts.max(1).values.sum() - counts.trace()) / counts.sum()
    return len(counts.argmax(1).unique()) == C and better > 0.15 + len(y) ** -0.5


def evaluate(lang, heads, encoder, embed, info, split="test"):
    """Return one record per head on a split of `lang`. Gains are over the English head of the same seed, or heads[0],
    which must be an English head."""
    texts, y = load_task(info, lang, split)
    leaks = check_texts(lang, split, texts, embed, info)
    majority = (y.bincount().max() / len(y)).item()
    shared = {"lang": lang, "split": split, "rows": len(y), "leaks": leaks, "majority": majority}
    premises = np.unique([text[0] for text in texts], return_inverse=True)[1]  # (N,)
    guesses = [logits_of(head, encoder, embed, texts).argmax(2) for head in heads]  # (S, N) each
    if any(swapped(guess, y) for guess in guesses):
        warn("a head fits swapped labels better; do the labels mean the same as in English?")
    records, means = [], []
    for head, guess in zip(heads, guesses):
        hits = (guess == y).double()
        means.append(hits.mean(0).numpy())  # (N,)
        std = hits.mean(1).std(correction=0).item()
        record = {field: head[field] for field in describe(lang)} | shared
        record |= {"heads": len(hits), "accuracy": hits.mean().item(), "accuracy_std": std}
        record |= {"macro_f1": macro_f1(guess, y), "weights": digest_of_weights(head)}
        records.append(record)
    english = {h["seed"]: mean for h, mean in zip(heads, means) if h["method"] == "english"}
    gains = np.stack([m - english.get(h["seed"], means[0]) for h, m in zip(heads, means)])  # (H, N)
    results = zip(records, gains.mean(1).tolist(), bootstrap(gains, premises))
    return [record | {"gain": gain, "interval": interval} for record, gain, interval in results]


def digest_of_weights(head):
    """Return a digest of a head's weights and its A, by which data/export.py finds its results."""
    tensors = [*head["heads"].values(), *head.get("state", {}).values()]
    return digest_of(*(tensor.cpu().numpy().tobytes() for tensor in tensors))


def check_head(out, head):
    """Warn if step 2 was repeated with other pairs since step 3 trained a head."""
    fields = {name: head[name] for name in describe("")} | {"residuals": False}
    path = path_of(out, "align", **fields | {"lang": "+".join(head["via"] or ())})
    if "texts" in head and path.exists() and load(path, "align")["texts"] != head["texts"]:
        warn(f"{path.name} has other pairs than {head['path'].name} was trained with; rerun step 3")


def load_head(out, encoder, lang, **flags):
    """Load the head that `flags` select, named as step 3's: method, arch, via, n, residuals, seed."""
    head = find(out, "head", encoder.digest, lang, **flags)
    check_head(out, head)
    return head


def load_classifier(out, lang, device="cpu", dtype=None, batch_tokens=None, **flags):
    """Return classifier(texts) -> (labels, probabilities (N, C) of classifier.head["labels"], means over seeds),
    which several threads may call. flags: as for load_head."""
    encoder, _ = load_encoder(out, device, dtype, batch_tokens=batch_tokens)
    head = load_head(out, encoder, lang, **flags)
    embed = partial(encode, encoder)
    score = partial(logits_of, head, encoder, embed)  # texts -> (S, N, C)
    if head["arch"] == "inside":  # A is merged into this LM for good
        for weight, value in build_aligner(head, encoder.lm).merged(encoder.lm):
            weight.data = value
        score = lambda texts: logits(head["heads"], embed(texts))
    lock = threading.Lock()  # tokenizers change state while they work

    def classifier(texts):
        """Return (labels, probabilities (N, C)) of texts or pairs."""
        texts = as_texts(texts)
        if texts and len(texts[0]) != (2 if head["two_texts"] else 1):
            raise ValueError(f"this head labels {'pairs' if head['two_texts'] else 'single texts'}")
        with lock:
            rows = score(texts).softmax(2).mean(0)
        return [head["labels"][i] for i in rows.argmax(1)], rows

    classifier.head = head
    return classifier


def classify(out, texts, lang, **flags):
    """Return (labels, probabilities (N, C)) of texts or pairs; loads the LM each time, see load_classifier."""
    return load_classifier(out, lang, **flags)(texts)


def predict(source, file, classifier, args):
    """Print label, probability (--all: of each label) and text (--text) for each line of an open file."""
    columns = ["text", "text_b"] if classifier.head["two_texts"] else ["text"]
    if args.all:
        say("label", *classifier.head["labels"], *(columns if args.text else ()), sep="\t")
    rows, done = read_texts(source, file, len(columns)), 0
    try:
        while texts := list(islice(rows, CHUNK)):
            for text, label, row in zip(texts, *classifier(texts)):
                numbers = [f"{p:.4f}" for p in (row if args.all else [row.max()])]
                say(label, *numbers, *(text if args.text else ()), sep="\t")
            done += len(texts)
    except (KeyboardInterrupt, UserError) as err:
        raise type(err)(f"{str(err) or 'interrupted'}; {done} lines were labelled")


def main():
    p = make_parser(__doc__, step=4)
    flag = p.add_argument
    flag("--split", choices=("test", "dev"), default="test", help="rows to use (default: test)")
    flag("--predict", metavar="FILE", help="label each line (-: stdin) with the selected head")
    flag("--all", action="store_true", help="with --predict: a header, and a column per label")
    flag("--text", action="store_true", help="with --predict: repeat the text in the last columns")
    args = p.parse_args()
    check_flags(args)
    flags = {name: vars(args)[name] for name in describe(args.lang) if name != "lang"}
    given = [name for name in (*flags, "all", "text") if vars(args)[name] != p.get_default(name)]
    if given and args.predict is None:
        warn(f"--{' --'.join(given)} without --predict has no effect: all heads are evaluated")
    device, dtype, machine = pick_device(args)
    if args.predict == "-" and WORLD > 1:
        raise UserError("--predict - cannot be shared by several processes; give a file")
    if args.predict is not None:
        classifier = load_classifier(args.out, args.lang, device, dtype, args.batch_tokens, **flags)
        say(f"labelling with {classifier.head['path']}", file=sys.stderr)
        file = sys.stdin.fileno() if args.predict == "-" else args.predict
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as source:
            return predict(source, args.predict, classifier, args)

    encoder, info = load_encoder(args.out, device, dtype, args.data, args.batch_tokens)
    found = [load(p, "head") | {"path": p} for p in sorted(Path(args.out).glob("head-*.pt"))]
    heads = [head for head in found if head["lm"] == encoder.digest]
    if len(heads) < len(found):
        warn("heads of another LM or task are ignored; rerun step 3")
    heads = [head for head in heads if head["lang"] in (args.lang, "")]  # "": the English head
    if len({(head["l2"], head.get("english")) for head in heads}) > 1:
        warn("heads have other English rows or --l2; rerun step 3 so that gains can be compared")
    for head in heads:
        check_head(args.out, head)
    order = list(METHODS)
    heads.sort(key=lambda h: (order.index(h["method"]), h["n"] or 0, h["residuals"], h["seed"]))
    if not heads or heads[0]["method"] != "english":
        find(args.out, "head", encoder.digest, args.lang, method="english")  # raises: run step 3
    say(f"eval | {machine} | head files: {len(heads)}")
    embed = partial(cached, encoder, args.out)
    records = evaluate(args.lang, heads, encoder, embed, info, args.split)
    say("{lang}, {rows} {split} rows, majority class {majority:.2%}".format(**records[0]))
    say(f"{'':38}n  heads  accuracy    +-      F1  points over english [95%]")
    for r in records:
        name = f"{r['method']} {r['arch'] or ''}{' residuals' if r['residuals'] else ''}"
        name += f" seed {r['seed']}" if r["seed"] else ""
        std, gain, low, high = (100 * v for v in (r["accuracy_std"], r["gain"], *r["interval"]))
        line = f"  {name:30}{r['n'] or '-':>7}{r['heads']:7}{r['accuracy']:10.2%}{std:6.2f}{r['macro_f1']:8.3f}"
        line += f"  {gain:+6.2f} [{low:+.2f}, {high:+.2f}]" if r["method"] != "english" else ""
        if r["via"] not in (None, [args.lang]):
            line += f"  A of {' '.join(r['via'])}{', unseen' * (args.lang not in r['via'])}"
        say(line)
    path = Path(args.out, f"results-{args.lang}{'-dev' if args.split == 'dev' else ''}.json")
    write_atomic(path, json.dumps(records, indent=1).encode())
    say(f"-> {path}")


if __name__ == "__main__":
    run(main)
