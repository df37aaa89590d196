"""Step 3 of LangAlign (arXiv 2503.18603), task tuning: train the task head, LM and aligner frozen.

    python step3_head.py --lang ko                               # LangAlign: head on A(e(d_en))
    python step3_head.py --lang ko --method english              # the baseline: head on e(d_en)
    python step3_head.py --lang ko --method rev                  # A at inference, of step2_align.py --reverse

Reads   <out>/embed.pt of step 1, for langalign and rev an aligner of step 2, and <data>/<task>/.
Writes  <out>/head-<method>....pt: what inference needs besides embed.pt. The head of method english, with
        which every table compares, is trained along where it is missing.
Expect  a dev accuracy well above the majority class's. The dev text of langalign, english and rev is English,
        since no target labels are assumed: it tells that the head learned, eval.py how well it transfers.
"""
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import (UserError, file_name, load, load_aligner, load_train_dev, load_translated, logits,
                    make_parser, of_form, open_run, positive, require, run, save,
                    volume, wait)

EPOCHS, STEPS = 10, 2_000   # both at least, so that few rows get enough steps
BATCH = 64             # rows a step: ours
LR = 1e-3              # peak learning rate of Adam, linear decay to 0: ours
INIT = 0.02            # standard deviation of the first weights
METHODS = {"langalign": "English through A", "english": "English, the floor",
           "native": "target-language rows, the ceiling", "translated": "the translations and their labels",
           "rev": "English, with A in front at inference"}

def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language, e.g. ko; --method english needs none")
    p.add_argument("--method", choices=METHODS, default="langalign",
                   help="what the head learns from: " + "; ".join(f"{k}: {v}" for k, v in METHODS.items()))
    p.add_argument("--n", type=positive, help="langalign, rev: the aligner of n pairs, else the newest; "
                   "translated: rows, else 20000, or all if fewer")
    p.add_argument("--arch", choices=("fc", "ae", "linear", "procrustes", "shift"),
                   help="langalign, rev: the aligner of this arch, else the newest")
    p.add_argument("--seeds", type=positive, default=5, help="heads, each with its own start and batch order")
    p.add_argument("--l2", type=float, default=0.05, help="weight of |w|^2 in the loss, on standardised "
                   "inputs: keeps the head off directions that the languages do not share (ours)")
    args = p.parse_args(argv)
    if not args.lang and args.method != "english":
        raise UserError(f"--lang is missing: python step3_head.py --lang ko --method {args.method}")
    return args

def find_aligner(args, reverse, fingerprint):
    """(path, artifact) of the run folder's newest aligner for --lang, --n, --arch and the direction."""
    make = f"python step2_align.py --out {args.out} --lang {args.lang}" + " --reverse" * reverse + \
        (f" --n {args.n}" if args.n else "") + (f" --arch {args.arch}" if args.arch else "")
    pattern = f"align-{args.lang}-{args.arch or '*'}-n{args.n or '*'}.pt"
    paths = [*Path(args.out).glob(pattern), *Path(args.out).glob(pattern.replace(".pt", "-*.pt"))]
    for path in sorted(set(paths), key=lambda path: -path.stat().st_mtime_ns):
        art = load(path, "align", make, fingerprint)
        if (art.get("reverse"), art.get("lang")) == (reverse, args.lang):
            return path, art
    raise UserError(f"{args.out}: no aligner {pattern}{' of --reverse' * reverse}; make it with: {make}")

def train_heads(x, y, classes, seeds, l2, device):
    """S linear heads at once, one a seed, by cross-entropy + l2 |w|^2 on embeddings x (N, D), labels y (N,).

    Returns {"weight": (S, D, C), "bias": (S, 1, C), "mean": (D,), "scale": (D,)}, what `logits` takes.
    """
    start = [torch.randn(x.shape[1], classes, generator=torch.Generator().manual_seed(s)) for s in seeds]
    heads = {"weight": INIT * torch.stack(start), "bias": torch.zeros(len(seeds), 1, classes),
             "mean": x.mean(0), "scale": x.std(0).clamp_min(1e-6)}                 # inputs are standardised
    heads = {name: tensor.to(device) for name, tensor in heads.items()}
    weight, bias = heads["weight"].mT.contiguous().requires_grad_(), heads["bias"].requires_grad_()
    x, y, batches = ((x.to(device) - heads["mean"]) / heads["scale"]), y.to(device), -(-len(x) // BATCH)
    epochs = max(EPOCHS, -(-STEPS // batches))
    optimizer = torch.optim.Adam([weight, bias], lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * batches)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for epoch in tqdm(range(epochs), desc="heads", unit="epoch", delay=2, leave=False):
        order = torch.stack([torch.randperm(len(x), generator=g) for g in generators]).to(device)    # (S, N)
        for index in order.split(BATCH, dim=1):                                                      # (S, B)
            flat = index.flatten()                                                               # (S B,)
            rows = x.index_select(0, flat).view(*index.shape, -1)                                # (S, B, D)
            out = (weight @ rows.mT).mT + bias               # (S, B, C): faster than x @ w
            loss = F.cross_entropy(out.flatten(0, 1), y.index_select(0, flat)) * len(seeds)   # the seeds' sum
            loss = loss + l2 * weight.square().sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not torch.isfinite(loss):
            raise UserError(f"loss is {loss.item()} in epoch {epoch + 1} of the heads; lower --l2 {l2:g}")
    heads["weight"] = weight.mT.contiguous()
    return {name: tensor.detach().cpu() for name, tensor in heads.items()}

def make_head(method, args, cache, info):
    """Train the heads of one method, report them and write their artifact."""
    fingerprint, lang = cache.encoder.fingerprint, "en" if method == "english" else args.lang
    source, art = None, {}
    if method in ("langalign", "rev"):
        source, art = find_aligner(args, method == "rev", fingerprint)
    (texts, y), (dev_texts, dev_y) = load_train_dev(
        info["data"], info["task"], args.lang if method in ("native", "translated") else "en", info["labels"],
        info["pair"], method == "translated", args.n)
    dev_x, x = cache(dev_texts, "encode dev"), cache(texts, "encode train")        # (M, D), (N, D)
    seconds = {"encode": cache.seconds, "align": 0.0, **art.get("seconds", {})}    # of its own texts
    if method == "langalign":
        with of_form(source, "python step2_align.py"):
            aligner = load_aligner(art)
            x, dev_x = aligner.map(x), aligner.map(dev_x)                          # A(e(d_en))
            require(x.shape[1] == cache.encoder.dim and x.isfinite().all())
            require(art["arch"] == art["aligner"]["arch"] and art["n"] > 0)
    seeds = [1000 * args.seed + s for s in range(args.seeds)]
    start = time.perf_counter()
    heads = train_heads(x, y, len(info["labels"]), seeds, args.l2, cache.device)
    seconds["head"] = time.perf_counter() - start
    dev = (logits(heads, dev_x).argmax(2) == dev_y).float().mean(1)                # (S,)

    n = len(texts) + len(dev_texts) if method == "translated" else art.get("n")
    variant = source.stem.split("-", 2)[2] if source else f"n{n}" if n else None
    path = Path(args.out, file_name("head", method, args.lang if lang != "en" else None, variant,
                                    l2=args.l2 if args.l2 != 0.05 else None, seed=args.seed or None,
                                    seeds=args.seeds if args.seeds != 5 else None))
    majority = dev_y.bincount().max().item() / len(dev_y)
    print(f"{method}{f' by {source}' if source else ''}: dev accuracy {dev.mean():.2%} +- "
          f"{dev.std(correction=0):.2%}, majority class {majority:.2%} -> {path}")
    if dev.mean() <= majority:
        print(f"warning: the head learned nothing, dev accuracy {dev.mean():.2%}, the majority's or less")
    english = load_translated(info["data"], info["task"], args.lang, n)[0] if method == "translated" else []
    save(path, "head", args, lm=fingerprint, method=method, lang=lang, arch=art.get("arch"), n=n,
         labels=info["labels"], pair=info["pair"], heads=heads, dev=dev.tolist(),
         aligner=art.get("aligner"), state=art.get("state"), alignment=art.get("report"), seconds=seconds,
         cost=art.get("cost") or volume(english))

def main(argv=None):
    args = get_args(argv)
    cache, info, machine = open_run(args)
    print(f"step 3 | {machine} | {args.method}: {METHODS[args.method]} | {args.seeds} linear heads of "
          f"{cache.encoder.dim} x {len(info['labels'])}, LM and aligner frozen", flush=True)
    if args.method != "english":
        try:
            floor = load(Path(args.out, "head-english.pt"), "head", "", cache.encoder.fingerprint)
        except UserError:                                    # none yet, or one of an earlier LM
            floor = None
        wait()                                               # all ranks have looked, before one writes
        if not floor:
            make_head("english", get_args(["--out", args.out, "--method", "english"]), cache, info)
    make_head(args.method, args, cache, info)

if __name__ == "__main__":
    run(main)
