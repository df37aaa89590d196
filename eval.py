"""Evaluation of LangAlign (arXiv 2503.18603): heads on target-language test data, labels for new text.

    python eval.py --lang ko                                     # the heads of one language; without: of all
    python eval.py --lang ko --predict reviews.txt > labels.tsv  # --predict - reads standard input

Reads   <out>/ of steps 1 to 3 and <data>/<task>/<lang>/test.tsv.
Writes  <out>/results.json, the table as a list of objects. With --predict only standard output: each line of
        text (in a pair task text, tab, text_b) becomes `label <tab> probability`, the mean over the heads.
Expect  TODO
"""

import itertools
import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import torch

from common import (
    PAIRS,
    ROWS,
    Cache,
    UserError,
    add_choice,
    build_aligner,
    encode,
    find,
    head_name,
    load,
    load_encoder,
    load_task,
    logits,
    make_parser,
    pick_device,
    read_tsv,
    run,
    say,
    warn,
    write_whole,
)

BOOTSTRAP = 10_000  # resamples behind a 95% interval
CHUNK = 1_024  # lines that --predict labels at once: constant memory, order kept
ORDER = (
    "majority",
    "english",
    "centred",
    "langalign",
    "rev",
    "mixed",
    "translated",
    "native",
)  # of the table
FIELDS = "method", "arch", "n", "residuals", "variant"  # of a head, in results.json


def logits_of(head, encoder, embed, texts):
    """Texts -> logits (S, N, C) of a head's seeds. embed(texts) -> (N, D) is e(.); Rev-LangAlign puts A
    behind it, `inside` puts A into it (paper, inference: LM and head, no A, unless reversed)."""
    if head["method"] != "rev":
        return logits(head["heads"], embed(texts))
    aligner = build_aligner(head, encoder.lm)
    if head["arch"] != "inside":
        return logits(head["heads"], aligner.map(embed(texts)))
    with aligner.to(encoder.device).on(encoder):
        return logits(head["heads"], embed(texts))


def macro_f1(guess, y, classes):
    """Mean of the classes' F1; guess, y (N,)."""
    confusion = torch.bincount(y * classes + guess, minlength=classes**2).view(classes, classes)
    return (2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp_min(1)).mean().item()


def calibration_error(probabilities, y, bins=10):
    """Expected calibration error of probabilities (N, C), y (N,): mean |confidence - accuracy| over bins."""
    confidence, guess = probabilities.max(1)
    bin_of = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins).index_add(0, bin_of, confidence - (guess == y).float())
    return (gap.abs().sum() / len(y)).item()


def bootstrap(gains, groups, seed=0):
    """95% interval (low, high) of the mean of gains (N,): groups (N,) of rows that share a premise are
    resampled whole."""
    sums, counts = np.bincount(groups, gains), np.bincount(groups)
    rng, g = np.random.default_rng(seed), len(counts)
    means = []
    for _ in range(BOOTSTRAP // 100):
        drawn = rng.multinomial(g, np.full(g, 1 / g), 100)  # (100, G)
        means.append(drawn @ sums / (drawn @ counts))
    return np.percentile(np.concatenate(means), [2.5, 97.5]).tolist()


def load_heads(out, encoder, lang=None):
    """Heads of `lang` and English, or of all languages; what another LM made is left out with a warning."""
    heads = []
    for path in sorted(Path(out).glob("head-*.pt")):
        head = load(path, "head", None, "python step3_head.py")
        if head["lm"] != encoder.digest:
            warn(
                f"{path} is of another LM or task: left out; make it again with step 3, or delete it"
            )
        elif head["lang"] in ("en", lang or head["lang"]):
            heads.append(head)
    if not any(head["lang"] == "en" for head in heads):
        make = f"python step3_head.py --out {out} --lang {lang or 'ko'}"
        raise UserError(f"{out}: no heads that can be compared; make them with: {make}")
    return heads


def count_leaks(texts, info, lang, split):
    """{file: number of test texts that stand in it, too}, with a warning for each."""
    leaks, width = {}, len(texts[0])
    for name, headers in (
        (f"{lang}/train", ROWS),
        (f"{lang}/translated", PAIRS),
        ("en/train", ROWS),
    ):
        path = Path(info["data"], info["task"], f"{name}.tsv")
        rows = read_tsv(path, *headers) if path.exists() else []
        seen = {row[1 : 1 + width] for row in rows} | {row[-width:] for row in rows}
        leaks[name] = sum(text in seen for text in texts)
        if leaks[name]:
            share = leaks[name] / len(texts)
            warn(
                f"{leaks[name]} of {len(texts)} {split} rows ({share:.1%}) are in {path}, too: they flatter"
            )
    return leaks


def evaluate(lang, heads, encoder, embed, info, split="test"):
    """One record a variant on a split of `lang`, in the table's order; the seeds of a variant are pooled."""
    texts, y, _ = load_task(info["data"], info["task"], lang, split, info["labels"], info["pair"])
    leaks = count_leaks(texts, info, lang, split)
    groups = np.unique([text[0] for text in texts], return_inverse=True)[1]  # (N,) premise of a row
    variants = {}
    for head in heads:
        variants.setdefault(head_name({**head, "seed": 0}), []).append(head)

    majority = y.bincount(minlength=len(info["labels"])) / len(y)  # (C,)
    outs = {"majority": majority.log().expand(1, len(y), -1)}
    for name, group in variants.items():
        outs[name] = torch.cat(
            [logits_of(head, encoder, embed, texts) for head in group]
        )  # (S, N, C)
    hits = {name: (out.argmax(2) == y).double() for name, out in outs.items()}  # (S, N)

    records = []
    for name, out in outs.items():
        head = variants.get(name, [dict.fromkeys(FIELDS) | {"method": "majority"}])[0]
        gains = (hits[name].mean(0) - hits["head-english.pt"].mean(0)).numpy()  # (N,)
        f1 = [macro_f1(guess, y, len(info["labels"])) for guess in out.argmax(2)]
        record = {
            "lang": lang,
            "split": split,
            **{key: head[key] for key in FIELDS},
            "seeds": len(out),
        }
        record |= {
            "accuracy": hits[name].mean().item(),
            "items": len(y),
            "macro_f1": float(np.mean(f1)),
        }
        record |= {"accuracy_std": hits[name].mean(1).std(correction=0).item()}
        record |= {"ece": calibration_error(out.softmax(2).mean(0), y), "leaks": leaks}
        record |= {"delta": gains.mean(), "delta_interval": bootstrap(gains, groups)}
        records.append(record)
    return sorted(records, key=lambda r: (ORDER.index(r["method"]), str(r["arch"]), r["n"] or 0))


def label_of(record):
    """majority, english, langalign fc residuals ..."""
    parts = record["method"], record["arch"], record["residuals"] and "residuals", record["variant"]
    return " ".join(part for part in parts if part)


def show(records):
    """Print the table of one language."""
    wide = max(len(label_of(r)) for r in records)
    top = {r["method"]: r["delta"] for r in records}  # of the largest n
    top = top.get("native") or top.get("translated")
    r = records[0]
    say(
        f"\n{r['lang']}, {r['items']} {r['split']} rows: accuracy +- over seeds, macro F1, calibration error (ECE),\n"
        "points over english with their 95% interval, share of native's (else translated's) gain"
    )
    say(f"  {'':{wide}} {'n':>6} seeds  accuracy   +-     F1    ECE  over english           share")
    for r in records:
        line = f"  {label_of(r):{wide}} {r['n'] or '-':>6} {r['seeds']:5} {r['accuracy']:9.2%} {100 * r['accuracy_std']:4.2f} {100 * r['macro_f1']:6.2f} {100 * r['ece']:6.2f}"
        if r["method"] != "english":
            low, high = r["delta_interval"]
            line += f"  {100 * r['delta']:+6.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
        if top and r["method"] not in ("majority", "english"):
            line = f"{line:{wide + 72}}{r['delta'] / top:6.0%}"
        say(line)


def find_head(
    out, encoder, lang, method="langalign", arch="fc", n=None, residuals=False, variant="", seed=0
):
    """The head of step 3 that these flags name; UserError that lists those that are there."""
    make = (
        f"python step3_head.py --out {out} --lang {lang} --method {method}"
        + " --residuals" * residuals
    )
    want = dict(
        lang="en" if method == "english" else lang, method=method, variant=variant, seed=seed
    )
    if method in ("langalign", "rev"):
        want |= dict(arch=arch, residuals=residuals)
    return find(out, "head", encoder.digest, make, n, **want)


def classify(out, texts, lang, device="cpu", dtype=None, head=None, **flags):
    """(labels, probabilities (N, C)) of texts, or pairs, by a run folder's head; flags: those of
    `find_head`, or head, a file. The probabilities are the mean over the head's seeds."""
    encoder, _ = load_encoder(out, device, dtype)
    if head is None:
        head = find_head(out, encoder, lang, **flags)
    out = logits_of(head, encoder, lambda texts: encode(encoder, texts), texts)
    probabilities = out.softmax(2).mean(0)
    return [head["labels"][i] for i in probabilities.argmax(1)], probabilities


def predict(file, head, encoder, args):
    """Label a file or standard input (-), in order: `label <tab> probability` a line; --all: a column a
    label and a header; --text: the text last."""
    source = sys.stdin.buffer if file == "-" else open(file, "rb")
    embed = lambda texts: encode(encoder, texts, args.batch_tokens)
    columns = head["labels"] if args.all else ["probability"]
    if args.all:
        print("label", *columns, *["text"] * args.text, sep="\t")
    done = 0
    try:
        while lines := list(itertools.islice(source, CHUNK)):
            texts = []
            for number, line in enumerate(lines, done + 1):
                try:
                    line = unicodedata.normalize(
                        "NFC", line.decode("utf-8-sig" if number == 1 else "utf-8")
                    )
                except UnicodeDecodeError:
                    raise UserError(f"{file}:{number}: not UTF-8; save it as UTF-8")
                text = tuple(line.rstrip("\r\n").split("\t"))
                if len(text) != 1 + head["pair"] or not all(part.strip() for part in text):
                    raise UserError(
                        f"{file}:{number}: give {1 + head['pair']} tab-separated, filled columns, no labels"
                    )
                texts.append(text)
            try:
                probabilities = logits_of(head, encoder, embed, texts).softmax(2).mean(0)  # (N, C)
            except UserError as err:
                raise UserError(f"{file}, after line {done}: {err}")
            for text, row in zip(texts, probabilities):
                shown = row if args.all else row.max().unsqueeze(0)
                line = [head["labels"][row.argmax()], *(f"{p:.4f}" for p in shown.tolist())]
                print(*line, *text * args.text, sep="\t")
            sys.stdout.flush()
            done += len(lines)
    except KeyboardInterrupt:
        raise UserError(f"stopped after {done} lines")


def main():
    p = make_parser(__doc__)
    add_choice(p)
    p.add_argument(
        "--split",
        choices=("test", "dev"),
        default="test",
        help="rows to measure on (default: test)",
    )
    p.add_argument("--data", help="root of the data, if it moved since step 1")
    p.add_argument(
        "--predict",
        metavar="FILE",
        help="label FILE's lines (-: standard input) with the head that the flags above name",
    )
    p.add_argument("--head", metavar="FILE.pt", help="with --predict: take this head")
    p.add_argument(
        "--all",
        action="store_true",
        help="with --predict: a column for each label, and a header line",
    )
    p.add_argument(
        "--text", action="store_true", help="with --predict: repeat the text as the last column"
    )
    args = p.parse_args()

    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data)
    if args.predict:
        if args.head:
            head = load(args.head, "head", encoder.digest, "python step3_head.py") | {"path": args.head}
        else:
            flags = {
                name: getattr(args, name)
                for name in ("method", "arch", "n", "residuals", "variant", "seed")
            }
            head = find_head(args.out, encoder, args.lang, **flags)
        print(f"labelling with {head['path']}", file=sys.stderr)
        sys.stdout.reconfigure(encoding="utf-8")
        return predict(args.predict, head, encoder, args)

    heads = load_heads(args.out, encoder, args.lang)
    langs = [args.lang] if args.lang else sorted({head["lang"] for head in heads} - {"en"})
    say(f"eval | {machine} | {len(heads)} heads | languages {' '.join(langs)}")
    embed = lambda texts: Cache(encoder, args.out, args.batch_tokens)(texts, f"encode {args.split}")
    results = []
    for lang in langs:
        mine = [head for head in heads if head["lang"] in (lang, "en")]
        records = evaluate(lang, mine, encoder, embed, info, args.split)
        show(records)
        results += records
    path = Path(args.out, "results.json" if args.split == "test" else f"results-{args.split}.json")
    write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
    say(f"\n-> {path}")


if __name__ == "__main__":
    run(main)
