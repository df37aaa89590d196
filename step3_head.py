"""Step 3 of LangAlign (arXiv 2503.18603), task tuning: train the task head, LM and aligner frozen.

    python step3_head.py --lang ko                                     # LangAlign: head on A(e(d_en))
    python step3_head.py --lang ko --method english                    # the baseline: head on e(d_en)
    python step3_head.py --lang ko --method rev                        # A at inference; after step2_align.py --reverse

Reads   <out>/embed.pt of step 1, an aligner of step 2 (langalign and rev), <data>/<task>/.
Writes  <out>/head-<method>....pt: all that inference needs besides embed.pt. The head of method english, which every
        table compares with, is trained along when it is missing.
Expect  a dev accuracy well above the majority class's. Dev text is English (through A) for langalign, as no target
        labels are assumed; it says that the head learned, not how well it transfers: that is eval.py's.
"""
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from common import (Cache, UserError, banner, file_name, label_ids, load, load_aligner, load_encoder,
                    load_train_dev, load_translated, make_parser, pick_device, positive, run, save, split_rows)

METHODS = {"langalign": "English through A, as in the paper", "english": "English, the floor",
           "native": "target-language rows, the ceiling", "translated": "the n translations with their labels",
           "rev": "English; A maps the target text at inference"}


def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language, e.g. ko; not needed for --method english")
    p.add_argument("--method", choices=METHODS, default="langalign",
                   help="what the head is trained on: " + "; ".join(f"{k}: {v}" for k, v in METHODS.items()))
    p.add_argument("--n", type=positive, help="langalign, rev: take the aligner of n pairs, else the newest; "
                   "translated: rows to use, else 20000, or all if fewer")
    p.add_argument("--arch", choices=("fc", "ae", "linear", "procrustes", "shift"), help="take the aligner of this "
                   "arch, else the newest")
    p.add_argument("--lm", choices=("english", "native", "translated"), default="english",
                   help="LM tuned on these rows in step 1 (--train-on); native and translated only for baselines")
    p.add_argument("--seeds", type=positive, default=5, help="heads that differ in initial weights and batch order")
    p.add_argument("--epochs", type=positive, default=20, help="passes over the rows; each seed keeps its best on dev")
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW, linear decay (ours)")
    p.add_argument("--decay", type=float, default=0.01, help="weight decay of AdamW (ours)")
    p.add_argument("--batch", type=positive, default=64, help="rows a step (ours)")
    args = p.parse_args(argv)
    if not args.lang and args.method != "english":
        raise UserError(f"--lang is missing: python step3_head.py --lang ko --method {args.method}")
    return args


def find_aligner(args, fingerprint):
    """(path, artifact) of the newest aligner in the run folder for --lang, --n, --arch and the method's direction."""
    reverse = args.method == "rev"
    make = f"python step2_align.py --lang {args.lang}" + (f" --n {args.n}" if args.n else "") + \
        (f" --arch {args.arch}" if args.arch else "") + (" --reverse" if reverse else "") + f" --out {args.out}"
    pattern = f"align-{args.lang}-{args.arch or '*'}-n{args.n or '*'}*.pt"
    paths = sorted(Path(args.out).glob(pattern), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for path in paths:
        art = load(path, "align", make, lm=fingerprint)
        if art["reverse"] == reverse and art["lang"] == args.lang and art["n"] == (args.n or art["n"]):
            return path, art
    raise UserError(f"{args.out}: no aligner {pattern}{' of --reverse' if reverse else ''}; make it with: {make}")


class Heads(nn.Module):
    """S independent linear heads as one tensor: (B, D) or (S, B, D) embeddings -> (S, B, C) logits.

    Inputs are standardised by the training rows' statistics, kept as buffers (D,).
    """

    def __init__(self, seeds, dim, classes):
        super().__init__()
        draws = [torch.randn(dim, classes, generator=torch.Generator().manual_seed(s)) for s in range(seeds)]
        self.weight = nn.Parameter(torch.stack(draws) / dim ** 0.5)                # (S, D, C)
        self.bias = nn.Parameter(torch.zeros(seeds, 1, classes))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, x):
        return (x - self.mean) / self.scale @ self.weight + self.bias


def train_heads(x, y, dev_x, dev_y, classes, args, device):
    """Cross-entropy on cached embeddings x (N, D), y (N,); each seed keeps its epoch of best dev accuracy.

    Returns (Heads, dev accuracies (S,)).
    """
    heads = Heads(args.seeds, x.shape[1], classes)
    heads.mean, heads.scale = x.mean(0), x.std(0).clamp_min(1e-6)
    heads.to(device)
    x, y, dev_x, dev_y = (t.to(device) for t in (x, y, dev_x, dev_y))
    steps = -(-len(x) // args.batch) * args.epochs
    optimizer = torch.optim.AdamW(heads.parameters(), lr=args.lr, weight_decay=args.decay, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    orders = [torch.Generator().manual_seed(args.seed * 1000 + s) for s in range(args.seeds)]
    best = torch.full((args.seeds,), -1.0, device=device)
    kept = {name: p.detach().clone() for name, p in heads.named_parameters()}
    for epoch in tqdm(range(args.epochs), desc="heads", unit="epoch", delay=2, leave=False):
        order = torch.stack([torch.randperm(len(x), generator=g) for g in orders]).to(device)      # (S, N)
        for index in order.split(args.batch, dim=1):                                               # (S, B)
            logits = heads(x[index])                                                               # (S, B, C)
            loss = F.cross_entropy(logits.flatten(0, 1), y[index].flatten()) * args.seeds          # sum over seeds
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not torch.isfinite(loss):
            raise UserError(f"loss is {loss.item()} in epoch {epoch + 1} of the heads; lower --lr {args.lr:g}")
        with torch.no_grad():
            accuracy = (heads(dev_x).argmax(2) == dev_y).float().mean(1)                           # (S,)
            better = accuracy > best
            best = torch.where(better, accuracy, best)
            for name, p in heads.named_parameters():
                kept[name][better] = p[better]
    heads.load_state_dict({**heads.state_dict(), **kept})
    return heads.cpu(), best.cpu()


def rows_of(method, run_info, args):
    """((texts, y) train, (texts, y) dev) of a method, before A."""
    data, task, labels = run_info["data"], run_info["task"], run_info["labels"]
    if method != "translated":
        return load_train_dev(data, task, args.lang if method == "native" else "en", labels)
    _, texts, names = load_translated(data, task, args.lang, args.n)
    if "" in names:
        raise UserError(f"{Path(data, task, args.lang, 'translated.tsv')}: {names.count('')} of {len(names)} rows have "
                        f"no label, which --method translated trains on; use --method langalign, which needs none")
    return split_rows(texts, label_ids("translated.tsv", names, labels))


def make_head(method, args, cache, run_info, device):
    """Train the heads of one method, report them and write their artifact."""
    start = time.perf_counter()
    encoder, labels = cache.encoder, run_info["labels"]
    source, art = find_aligner(args, encoder.fingerprint) if method in ("langalign", "rev") else (None, {})
    (texts, y), (dev_texts, dev_y) = rows_of(method, run_info, args)
    x, dev_x = cache(texts, "encode train"), cache(dev_texts, "encode dev")        # (N, D), (M, D)
    if method == "langalign":
        aligner = load_aligner(art["aligner"], art["state"])
        x, dev_x = aligner.map(x), aligner.map(dev_x)                              # A(e(d_en))
    encoded = time.perf_counter() - start
    heads, dev = train_heads(x, y, dev_x, dev_y, len(labels), args, device)

    n = {"translated": len(texts) + len(dev_texts)}.get(method, art.get("n"))
    variant = source.stem.split("-", 2)[2] if source else f"n{n}" if n else ""
    path = Path(args.out, file_name("head", method, args.lang if method != "english" else "", variant,
                                    lm=args.lm if args.lm != "english" else None))
    majority = dev_y.bincount().max().item() / len(dev_y)
    print(f"{method}{f' with {source}' if source else ''}: dev accuracy {dev.mean():.2%} +- {dev.std(correction=0):.2%}, "
          f"majority class {majority:.2%} -> {path}")
    if dev.mean() <= majority:
        print(f"warning: the head learned nothing: dev accuracy is at the majority class's, {majority:.2%}")
    save(path, "head", lm=encoder.fingerprint, method=method, lang=args.lang if method != "english" else "en",
         arch=art.get("arch", ""), n=n, noise=art.get("noise", 0.0), labels=labels, pair=run_info["pair"],
         heads=heads.state_dict(), aligner=art.get("aligner") if method == "rev" else None,
         state=art.get("state") if method == "rev" else None, alignment=art.get("report"), dev=dev.tolist(),
         config={key: str(value) for key, value in vars(args).items()}, seed=args.seed, encode_seconds=encoded,
         seconds=time.perf_counter() - start)


def main(argv=None):
    args = get_args(argv)
    device, dtype = pick_device(args)
    lm = file_name("embed", *((args.lm, args.lang) if args.lm != "english" else ()))
    encoder, run_info = load_encoder(args.out, lm)
    banner("step 3", device, dtype, f"{args.method}: {METHODS[args.method]}", f"{args.seeds} linear heads of "
           f"{encoder.dim} x {len(run_info['labels'])}, LM and aligner frozen", f"at most {args.epochs} epochs")
    cache = Cache(encoder.to(device), args.out, device, dtype)
    if args.method != "english" and args.lm == "english" and not Path(args.out, "head-english.pt").exists():
        make_head("english", args, cache, run_info, device)
    make_head(args.method, args, cache, run_info, device)
    if args.method in ("langalign", "rev", "english"):
        print(f"how well it transfers: python eval.py --out {args.out}" + (f" --lang {args.lang}" if args.lang else ""))


if __name__ == "__main__":
    run(main)
