"""Step 2 of LangAlign (arXiv 2503.18603): train the aligner A on n translated pairs, the LM frozen (Eq. 1).

    python step2_align.py --lang ko --n 20000
    python step2_align.py --lang ko --n 5000 --arch ae
    python step2_align.py --lang ko --reverse                          # Rev-LangAlign: target -> English

Reads   <out>/embed.pt of step 1 and <data>/<task>/<lang>/translated.tsv (formats: data/README.md).
Writes  <out>/align-<lang>-<arch>-n<n>....pt, one file a variant, and the embeddings under <out>/cache/.
Expect  on the held-out pairs a cosine and a retrieval P@1 above identity's and an R^2 well above 0. A warning names
        the number when A collapsed, is no better than the mean, or the pairs are of another domain than the task.
"""
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from common import (HELD_OUT, Aligner, Cache, UserError, banner, file_name, fixed_order, load_encoder,
                    load_train_dev, load_translated, make_parser, pick_device, positive, run, save, share)

PATIENCE = 5               # epochs without a better held-out MSE before training stops
WEIGHT_DECAY = 0.01
WARN_R2 = 0.05             # below: A explains less of the targets' variance than this
WARN_COLLAPSE = 0.1        # below: A's outputs vary less than this share of the targets' variance
WARN_GAP = 0.5             # above: mean of the pairs' English this far from the task's, in spreads of the task's
RETRIEVAL = 2_000          # held-out pairs at most; P@1 falls as the pool grows, so the size is printed


def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", required=True, help="target language: a folder beside en/, e.g. ko")
    p.add_argument("--n", type=positive, help="translated pairs; without it 20000, or all if fewer (paper: 5K-50K)")
    p.add_argument("--arch", choices=("fc", "ae", "linear", "procrustes", "shift"), default="fc",
                   help="fc and ae: the paper's two; the others are closed-form baselines, solved at once")
    p.add_argument("--depth", type=positive, help="fc: Linear layers, default 2 (ours); ae: layers down and up, 3 (paper)")
    p.add_argument("--hidden", type=positive, help="width; fc: of the inner layers, default D; ae: bottleneck, D/2 (ours)")
    p.add_argument("--dropout", type=share, help="between the layers, default 0.1 for fc, 0 for ae (ours); "
                   "too much hurts FC (paper)")
    p.add_argument("--reverse", action="store_true", help="Rev-LangAlign: A maps target to English, used at inference")
    p.add_argument("--noise", type=share, default=0.0, help="share of the training translations shuffled among themselves")
    p.add_argument("--ridge", type=float, help="linear: L2 strength, in shares of the mean input variance; "
                   "without it the best of 7 on the held-out pairs")
    p.add_argument("--epochs", type=positive, default=30, help="passes at most; the epoch of best held-out MSE is kept")
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW, cosine decay (ours)")
    p.add_argument("--batch", type=positive, default=256, help="pairs a step (ours)")
    return p.parse_args(argv)


def shuffle_share(y, noise, seed):
    """Rows of y (N, D) with a share `noise` of them moved among themselves, each away from its place."""
    order = np.random.default_rng(seed).permutation(len(y))[:int(noise * len(y))]
    y = y.clone()
    y[order] = y[np.roll(order, 1)]
    return y


def standardise(aligner, x, y):
    """Put the training pairs' statistics into A's buffers: inputs per dimension, targets by one number, so that the
    loss stays Eq. 1 up to a constant factor."""
    aligner.mean_x, aligner.mean_y = x.mean(0), y.mean(0)                          # (D,)
    aligner.scale_x = x.std(0).clamp_min(1e-6)                                     # (D,)
    aligner.scale_y = y.var(0).mean().sqrt().clamp_min(1e-6)                       # ()


def covariance(x, y, block=65_536):
    """x^T y / N in fp64, in blocks, so that no fp64 copy of all rows is made. (N, D), (N, D) -> (D, D)"""
    return sum(a.double().T @ b.double() for a, b in zip(x.split(block), y.split(block))) / len(x)


def closed_form(aligner, x, y, held, ridge):
    """Fill the one Linear layer of `aligner` by least squares over the pairs. x, y (N, D) -> the aligner.

    shift       A(x) = x - mean_x + mean_y
    procrustes  A(x) = (x - mean_x) Q + mean_y, Q orthogonal (Schonemann 1966; Xing et al. 2015; MUSE, vecmap)
    linear      A(x) = (x - mean_x) W + mean_y, W = (X^T X + r I)^-1 X^T Y (ridge; Mikolov et al. 2013)
    """
    arch, mean_x, mean_y = aligner.config["arch"], x.mean(0), y.mean(0)
    aligner.mean_x, aligner.mean_y = mean_x, mean_y
    nn.init.zeros_(aligner.f.bias)
    if arch == "shift":
        nn.init.eye_(aligner.f.weight)
        return aligner
    cross = covariance(x, y) - torch.outer(mean_x.double(), mean_y.double())       # (D, D)
    if arch == "procrustes":
        u, _, vt = torch.linalg.svd(cross)
        weights = [u @ vt]
    else:
        values, vectors = torch.linalg.eigh(covariance(x, x) - torch.outer(mean_x.double(), mean_x.double()))
        strengths = [ridge] if ridge is not None else [1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]
        weights = [vectors @ ((vectors.T @ cross) / (values + r * values.mean())[:, None]) for r in strengths]
    best = np.inf
    for weight in weights:                                                         # Linear stores W transposed
        aligner.f.weight.data = weight.T.float().contiguous()
        error = F.mse_loss(aligner.map(held[0]), held[1]).item()
        if error < best:
            best, kept = error, aligner.f.weight.data
    aligner.f.weight.data = kept
    return aligner


def train(aligner, x, y, held, args, device):
    """Minimise Eq. 1, the MSE between A(e(d_en)) and e(T(d_en)); keeps the epoch of best held-out MSE.

    x, y: (N, D) training pairs; held: the same for the held-out pairs. Returns one record an epoch.
    """
    standardise(aligner, x, y)
    aligner.to(device)
    x, y = x.to(device), y.to(device)
    steps = -(-len(x) // args.batch)
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=args.lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * args.epochs)
    generator, history, best, bad = torch.Generator().manual_seed(args.seed), [], np.inf, 0
    bar = tqdm(range(1, args.epochs + 1), desc=f"align {args.arch}", unit="epoch", delay=2, leave=False)
    for epoch in bar:
        aligner.train()
        total = torch.zeros((), device=device)
        for index in torch.randperm(len(x), generator=generator).to(device).split(args.batch):
            loss = F.mse_loss(aligner(x[index]), y[index])                         # Eq. 1
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        error = F.mse_loss(aligner.map(held[0]), held[1]).item()
        history.append({"epoch": epoch, "loss": total.item() / steps, "held_out": error})
        if not np.isfinite(history[-1]["loss"] + error):
            raise UserError(f"loss is not finite in epoch {epoch}; lower --lr {args.lr:g}")
        bar.set_postfix(held_out=f"{error:.4g}")
        if error < best:
            best, bad, kept = error, 0, {k: v.clone() for k, v in aligner.state_dict().items()}
        else:
            bad += 1
        if bad == PATIENCE:
            break
    aligner.load_state_dict(kept)
    aligner.cpu()
    return history


def precision_at_1(a, b):
    """Share of rows of a (N, D) whose nearest row of b (N, D) by cosine is their own; a tie with it counts."""
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T                   # (N, N)
    return (similarity.diagonal() >= similarity.max(1).values - 1e-6).float().mean().item()


def measure(predicted, y, mean):
    """MSE, cosine, R^2 and P@1 both ways of predicted (N, D) against y (N, D); `mean` (D,) of the training targets."""
    mse = F.mse_loss(predicted, y).item()
    return {"mse": mse, "cosine": F.cosine_similarity(predicted, y).mean().item(),
            "r2": 1 - mse / F.mse_loss(mean.expand_as(y), y).item(),
            "p1": precision_at_1(predicted[:RETRIEVAL], y[:RETRIEVAL]),
            "p1_back": precision_at_1(y[:RETRIEVAL], predicted[:RETRIEVAL])}


def domain_gap(pairs, task):
    """Distance of the means of two sets of English embeddings (N, D), (M, D), in root-mean-square spreads of the
    second: near 0 when the pairs are task text."""
    return ((pairs.mean(0) - task.mean(0)).norm() / task.var(0).sum().sqrt()).item()


def report(aligner, x, y, mean, gap):
    """Print the held-out table and its warnings; returns its numbers."""
    predicted = aligner.map(x)
    rows = {"A": measure(predicted, y, mean), "identity": measure(x, y, mean),
            "mean": measure(mean.expand_as(y), y, mean)}
    print(f"{len(y)} held-out pairs   MSE       cosine   R^2      P@1     P@1 back  (of {min(len(y), RETRIEVAL)})")
    for name, r in rows.items():
        tail = f"{r['p1']:6.1%}  {r['p1_back']:6.1%}" if name != "mean" else "     -       -"
        print(f"  {name:18s} {r['mse']:9.3g} {r['cosine']:8.3f} {r['r2']:8.3f}  {tail}")
    spread = (predicted.var(0).sum() / y.var(0).sum()).item()
    print(f"  output variance {spread:.2f} of the targets'; domain gap of the pairs to the task text {gap:.2f}")
    if spread < WARN_COLLAPSE:
        print(f"warning: A collapses: its outputs have {spread:.3f} of the targets' variance")
    if rows["A"]["r2"] < WARN_R2:
        print(f"warning: A is hardly better than the mean: R^2 {rows['A']['r2']:.3f}; do the columns belong together?")
    if rows["A"]["cosine"] <= rows["identity"]["cosine"]:
        print(f"warning: A does not beat identity: cosine {rows['A']['cosine']:.3f} <= {rows['identity']['cosine']:.3f}")
    if gap > WARN_GAP:
        print(f"warning: the pairs are of another domain than the task text: gap {gap:.2f} > {WARN_GAP}; expect less gain")
    return {**rows, "output_variance": spread, "domain_gap": gap, "held_out": len(y)}


def main(argv=None):
    args = get_args(argv)
    device, dtype = pick_device(args)
    encoder, run_info = load_encoder(args.out)
    english, target, _ = load_translated(run_info["data"], run_info["task"], args.lang, args.n)
    n = len(english)
    held = max(1, min(RETRIEVAL, int(HELD_OUT * n)))
    if n < 20:
        raise UserError(f"{n} pairs are too few to train and hold out; give 20 or more, the paper uses 5000 to 50000")
    (task_texts, _), _ = load_train_dev(run_info["data"], run_info["task"], "en", run_info["labels"])
    if run_info["pair"] and len(english[0]) == 1:
        print("warning: single texts for a pair task: this translated.tsv is general text, see the domain gap below")

    torch.manual_seed(args.seed)
    args.depth = args.depth or {"fc": 2, "ae": 3}.get(args.arch)
    dropout = args.dropout if args.dropout is not None else {"fc": 0.1}.get(args.arch, 0.0)
    aligner = Aligner(args.arch, encoder.dim, args.depth or 1, args.hidden or 0, dropout)
    count = sum(p.numel() for p in aligner.f.parameters())
    banner("step 2", device, dtype, f"A: {args.arch}{' reversed' if args.reverse else ''}, {count:,} parameters, LM frozen",
           f"en-{args.lang}: {n - held} pairs + {held} held out" + ("" if args.n else " (--n not given)"),
           f"at most {args.epochs} epochs of {-(-(n - held) // args.batch)} steps" if args.depth else "closed form")

    start = time.perf_counter()
    cache = Cache(encoder.to(device), args.out, device, dtype)
    x, y = cache(english, "encode en"), cache(target, f"encode {args.lang}")       # (n, D): e(d_en), e(T(d_en))
    gap = domain_gap(x, cache([task_texts[i] for i in fixed_order(len(task_texts))[:RETRIEVAL]], "encode task"))
    encoded = time.perf_counter() - start
    if args.reverse:
        x, y = y, x
    (x, held_x), (y, held_y) = (t.split([n - held, held]) for t in (x, y))
    y = shuffle_share(y, args.noise, args.seed) if args.noise else y
    if args.depth:
        history = train(aligner, x, y, (held_x, held_y), args, device)
    else:
        history = closed_form(aligner, x, y, (held_x, held_y), args.ridge) and []
    seconds = time.perf_counter() - start

    numbers = report(aligner, held_x, held_y, y.mean(0), gap)
    options = {key: getattr(args, key) for key in ("hidden", "dropout", "ridge")}
    path = Path(args.out, file_name("align", args.lang, args.arch, f"n{n}", "rev" if args.reverse else "",
                                    depth=args.depth if args.depth not in (None, 2, 3) else None, **options,
                                    noise=args.noise or None, seed=args.seed or None))
    save(path, "align", lm=encoder.fingerprint, lang=args.lang, arch=args.arch, n=n, reverse=args.reverse,
         noise=args.noise, aligner=aligner.config, state=aligner.state_dict(), report=numbers, history=history,
         config={key: str(value) for key, value in vars(args).items()}, seed=args.seed, seconds=seconds)
    print(f"{cache.encoded} texts encoded in {encoded:.1f} s, A made in {seconds - encoded:.1f} s -> {path}")


if __name__ == "__main__":
    run(main)
