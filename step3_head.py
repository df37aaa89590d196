"""Step 3 of LangAlign (arXiv 2503.18603), task tuning: train the task head, LM and aligner frozen.

    python step3_head.py --lang ko                               # LangAlign: head on A(e(d_en))
    python step3_head.py --lang ko --method english              # the baseline: head on e(d_en)
    python step3_head.py --lang ko --method rev                  # A at inference, of step2_align.py --reverse

Reads   <out>/embed.pt of step 1, for langalign and rev an aligner of step 2, and <data>/<task>/.
Writes  <out>/head-<method>....pt: what inference needs besides embed.pt; head-english.pt too, if missing.
Expect  on toy Korean 79 to 80 +- 0.3% of English dev right through A, 92 to 94% without it, 2 s on two cores.
"""
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import (ARCHES, UserError, amount, file_name, load, load_aligner, load_train_dev,
                    load_translated, logits, make_parser, open_run, positive, require, run, save, volume)

EPOCHS, STEPS = 10, 2_000   # both at least, so that few rows get enough steps
BATCH = 64             # rows a step: ours
LR = 1e-3              # peak learning rate of Adam, linear decay to 0: ours
METHODS = {"langalign": "English through A", "english": "English, the floor",
           "native": "target rows, the usual ceiling", "translated": "the translations and their labels",
           "rev": "English, with A in front at inference"}

def find_aligner(args, cache):
    """(path, artifact with "A", the aligner) of the newest one for --lang, --n, --arch and the direction."""
    reverse = args.method == "rev"
    make = f"python step2_align.py --out {args.out} --lang {args.lang}{' --reverse' * reverse}"
    make += "".join(f" --{flag} {getattr(args, flag)}" for flag in ("n", "arch") if getattr(args, flag))

    def build(art):
        told = (art["reverse"], art["report"]["held_out"], *art["report"]["A"].values(),
                *art["seconds"].values(), *art["cost"].values())
        require(len(told) == 11 and all(isinstance(value, (int, float)) for value in told))
        require(isinstance(art["lang"], str) and art["residuals"].shape[1:] == (cache.encoder.dim,))
        return {**art, "A": load_aligner(art, cache.encoder.dim), "residuals": art["residuals"].float()}
    paths = Path(args.out).glob(f"align-{args.lang}-{args.arch or '*'}-n{args.n or ''}*.pt")
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime_ns):
        art = load(path, "align", make, cache.encoder.fingerprint, build)
        if art["reverse"] == reverse and art["lang"] == args.lang and args.n in (None, art["n"]):
            return path, art
    raise UserError(f"{args.out}: no aligner like that for {args.lang}; make it with: {make}")

def train_heads(x, y, classes, seeds, l2, device, residuals=()):
    """S linear heads at once, one a seed, by cross-entropy + l2 |w|^2 on embeddings x (N, D), labels y (N,).
    To a row a random one of `residuals` (M, D), if any, is added: target text varies as A does not foretell.
    Returns {"weight": (S, C, D), "bias": (S, 1, C), "mean": (D,), "scale": (D,)}, what `logits` takes."""
    residuals = residuals if len(residuals) else torch.zeros(1, x.shape[1])
    start = [torch.randn(x.shape[1], classes, generator=torch.Generator().manual_seed(s)).T for s in seeds]
    scale = (x.var(0) + residuals.var(0, correction=0)).sqrt().clamp_min(1e-6)     # (D,): inputs standardised
    heads = {"weight": 0.02 * torch.stack(start), "bias": torch.zeros(len(seeds), 1, classes),
             "mean": x.mean(0), "scale": scale}
    heads = {name: tensor.to(device) for name, tensor in heads.items()}
    weight, bias = heads["weight"].requires_grad_(), heads["bias"].requires_grad_()
    x, y, batches = (x.to(device) - heads["mean"]) / heads["scale"], y.to(device), -(-len(x) // BATCH)
    residuals = residuals.to(device) / heads["scale"]        # (M, D)
    epochs = max(EPOCHS, -(-STEPS // batches))
    optimizer = torch.optim.Adam([weight, bias], lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * batches)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    places = torch.arange(len(x)) % len(residuals)           # along the shuffled rows: new pairs each epoch
    for epoch in tqdm(range(epochs), desc="heads", unit="epoch", delay=2, leave=False):
        order = torch.stack([torch.randperm(len(x), generator=g) for g in generators]).to(device)    # (S, N)
        for index, place in zip(order.split(BATCH, dim=1), places.split(BATCH)):                # (S, B), (B,)
            rows = x.index_select(0, index.flatten()).view(*index.shape, -1)                    # (S, B, D)
            rows = rows.add_(residuals[place]) if len(residuals) > 1 else rows
            out = torch.baddbmm(bias.mT, weight, rows.mT)                                          # (S, C, B)
            loss = F.cross_entropy(out, y[index]) * len(seeds)         # mean over the batch, sum over seeds
            loss = loss + l2 * weight.square().sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not torch.isfinite(loss):
            raise UserError(f"loss is {loss.item()} in epoch {epoch + 1} of the heads; lower --l2 {l2:g}")
    return {name: tensor.detach().cpu() for name, tensor in heads.items()}

def make_head(args, cache, info):
    """Train the heads of one method, report them and write their artifact."""
    method, lang = args.method, "en" if args.method == "english" else args.lang
    residuals, english = (), []
    source, art = find_aligner(args, cache) if method in ("langalign", "rev") else (None, {})
    (texts, y), (dev_texts, dev_y) = load_train_dev(
        info["data"], info["task"], lang if method in ("native", "translated") else "en", info["labels"],
        info["pair"], method == "translated", args.n)
    dev_x, x = cache(dev_texts, "encode dev"), cache(texts, "encode train")        # (M, D), (N, D)
    seconds = {"encode": cache.seconds, "align": 0.0, **art.get("seconds", {})}    # of its own texts
    n, variant = art.get("n"), source and source.stem.removeprefix(f"align-{lang}-")
    if method == "langalign":
        x, dev_x, residuals = art["A"].map(x), art["A"].map(dev_x), art["residuals"]         # A(e(d_en))
    if method == "translated":
        n = len(texts) + len(dev_texts)
        english, variant = load_translated(info["data"], info["task"], lang, n)[0], f"n{n}"
    start = time.perf_counter()
    heads = train_heads(x, y, len(info["labels"]), [1000 * args.seed + s for s in range(args.seeds)], args.l2,
                        cache.device, residuals)
    seconds["head"] = time.perf_counter() - start
    dev = (logits(heads, dev_x).argmax(2) == dev_y).float().mean(1)                # (S,)
    majority = dev_y.bincount().max().item() / len(dev_y)

    path = Path(args.out, file_name("head", method, lang if lang != "en" else "", variant,
                                    l2=args.l2 if args.l2 != 0.05 else None, seed=args.seed or None,
                                    seeds=args.seeds if args.seeds != 5 else None))
    made = f"{method}{f' by {source}' if source else ''}{' with its residuals' if len(residuals) else ''}"
    print(f"{made}: dev accuracy {dev.mean():.2%} +- {dev.std(correction=0):.2%}, majority class "
          f"{majority:.2%} -> {path}")
    if dev.mean() <= majority:
        print(f"warning: the head learned nothing, dev accuracy {dev.mean():.2%}, the majority's or less")
    save(path, "head", args, lm=cache.encoder.fingerprint, method=method, lang=lang, n=n, seconds=seconds,
         labels=info["labels"], pair=info["pair"], heads=heads, dev=dev.tolist(), arch=art.get("arch"),
         aligner=art.get("aligner"), state=art.get("state"), alignment=art.get("report"),
         cost=art.get("cost") or volume(english))

def main(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", help="target language, e.g. ko; --method english needs none")
    p.add_argument("--method", choices=METHODS, default="langalign", help="what the head learns from: " +
                   "; ".join(f"{name}: {what}" for name, what in METHODS.items()) + " (default: %(default)s)")
    p.add_argument("--n", type=positive, help="pairs of the aligner, else of the newest; rows of translated")
    p.add_argument("--arch", choices=ARCHES, help="langalign, rev: the aligner of this arch, else the newest")
    p.add_argument("--seeds", type=positive, default=5, help="heads, each of own start and order (ours: 5)")
    p.add_argument("--l2", type=amount, default=0.05, help="weight of |w|^2 in the loss: keeps the head off "
                   "directions that the languages do not share (ours: %(default)s)")
    args = p.parse_args(argv)
    if not args.lang and args.method != "english":
        raise UserError(f"--lang is missing: python step3_head.py --lang ko --method {args.method}")

    cache, info, machine = open_run(args)
    print(f"step 3 | {machine} | {args.method}: {METHODS[args.method]} | {args.seeds} linear heads of "
          f"{cache.encoder.dim} x {len(info['labels'])}, LM and aligner frozen", flush=True)
    if args.method != "english" and not Path(args.out, "head-english.pt").is_file():
        make_head(p.parse_args(["--out", args.out, "--method", "english"]), cache, info)
    make_head(args, cache, info)

if __name__ == "__main__":
    run(main)
