"""Step 2 of LangAlign (arXiv 2503.18603): train the aligner A on n translated pairs, the LM frozen (Eq. 1).

    python step2_align.py --lang ko --n 20000
    python step2_align.py --lang ko --reverse                    # Rev-LangAlign: A maps target to English

Reads   <out>/embed.pt of step 1 and <data>/<task>/<lang>/translated.tsv (formats: data/README.md).
Writes  <out>/align-<lang>-<arch>-n<n>....pt, one file a variant, and embeddings under <out>/cache/.
Expect  no warning; on toy Korean R^2 0.81 to 0.83, P@1 68% (identity 14 to 27%), 11 to 23 s on two CPU cores.
"""
import copy
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from common import (ARCHES, HELD_OUT, Aligner, UserError, file_name, fixed_order, load_task, load_translated,
                    make_parser, open_run, positive, run, save, share, volume)

RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)      # shares of the mean input variance
TOLERANCE = 1.02       # the strongest ridge within 2% of the best held-out MSE: task text lies elsewhere
DEPTH = {"fc": 2, "ae": 3}     # ae's is the paper's, fc's is ours: readings differ
DROPOUT = 0.1          # ours
EPOCHS = 30            # ours; the best on held-out pairs is kept
LR = 1e-3              # peak learning rate of AdamW, cosine decay, ours
BATCH = 128            # pairs a step, ours
WEIGHT_DECAY = 3.0     # of AdamW, ours: little of it wins on held-out pairs and loses on other text
POOL = 2_000           # at most: held-out pairs, residuals kept, rows for the domain gap
WARN_R2, WARN_COLLAPSE, WARN_P1 = 0.05, 0.1, 0.02     # below: R^2, share of the targets' variance, P@1
WARN_GAP = 0.15        # above: pairs of another domain; measured: the task's own 0.02, others 0.16 and more

def shuffle_share(y, noise, seed):
    """y (N, D) with a share `noise` of its rows moved among themselves, each away from its place."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:round(noise * len(y))]
    return y.index_copy(0, order, y[order.roll(1)])

def covariance(x, y, block=8_192):
    """Centred x^T y / N in fp64, summed in blocks so that no fp64 copy of all rows is made: (D, D)."""
    products = sum(a.double().T @ b.double() for a, b in zip(x.split(block), y.split(block)))
    return products / len(x) - torch.outer(x.mean(0).double(), y.mean(0).double())

def closed_form(arch, x, y, held_x, held_y):
    """W (D, D) by least squares over the pairs x, y (N, D), their means subtracted.

    shift       W = I, so A(x) = x - mean_x + mean_y
    procrustes  W orthogonal, from the SVD of X^T Y (Schonemann 1966; as in vecmap and MUSE)
    linear      W = (X^T X + r I)^-1 X^T Y, ridge r by held-out MSE and TOLERANCE (Mikolov et al. 2013)"""
    if arch == "shift":
        return torch.eye(x.shape[1])
    if arch == "procrustes":
        u, _, vt = torch.linalg.svd(covariance(x, y))
        return (u @ vt).float()
    values, vectors = torch.linalg.eigh(covariance(x, x))
    cross, ridge = vectors.T @ covariance(x, y), values.mean().clamp_min(1e-12)
    maps = [(vectors @ (cross / (values.clamp_min(0) + r * ridge)[:, None])).float() for r in RIDGES]
    held_x, held_y = held_x - x.mean(0), held_y - y.mean(0)
    errors = [F.mse_loss(held_x @ w, held_y).item() for w in maps]
    return maps[max(i for i, error in enumerate(errors) if error <= TOLERANCE * min(errors))]

def eq1(predicted, y):
    """Eq. 1: the mean squared error between A(e(d_en)) and e(T(d_en)), both (B, D)."""
    return F.mse_loss(predicted, y)

def train(aligner, x, y, held_x, held_y, args, device):
    """Minimise Eq. 1 over the pairs x, y (N, D): W at once, f in epochs, kept where held-out MSE is best."""
    aligner.mean_x, aligner.scale_x = x.mean(0), x.std(0).clamp_min(1e-6)          # (D,): per dimension
    aligner.mean_y, aligner.scale_y = y.mean(0), y.var(0).mean().sqrt()            # one scale: Eq. 1 stays
    if not args.plain:
        aligner.W = closed_form(args.arch if aligner.f is None else "linear", x, y, held_x, held_y)
    if aligner.f is None:
        return
    if not args.plain:                                       # f starts at zero
        nn.init.zeros_(aligner.f[-1].weight), nn.init.zeros_(aligner.f[-1].bias)
    aligner.to(device)
    x, left = x.to(device), y.to(device, copy=True)          # left (N, D): what W leaves to f
    for part, rows in zip(left.split(8_192), x.split(8_192)):
        part -= aligner.affine(rows)
    optimizer = torch.optim.AdamW(aligner.f.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(x) // BATCH))
    generator = torch.Generator().manual_seed(args.seed)
    best, kept = F.mse_loss(aligner.map(held_x), held_y).item(), copy.deepcopy(aligner.state_dict())
    for epoch in tqdm(range(1, EPOCHS + 1), desc=f"align {args.arch}", unit="epoch", delay=2, leave=False):
        aligner.train()
        for index in torch.randperm(len(x), generator=generator).to(device).split(BATCH):
            loss = eq1(aligner.learned(x[index]), left[index])        # W's part is off both
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        error = F.mse_loss(aligner.map(held_x), held_y).item()
        if not error < float("inf"):
            raise UserError(f"loss is not finite in epoch {epoch}: look at the embeddings, or try --seed")
        if error < best:
            best, kept = error, copy.deepcopy(aligner.state_dict())
    aligner.load_state_dict(kept)
    aligner.cpu()

def precision_at_1(a, b):
    """Share of rows of a (N, D) whose nearest row of b (N, D) by cosine is their own; a tie counts."""
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T                   # (N, N)
    return (similarity.diagonal() >= similarity.max(1).values - 1e-6).float().mean().item()

def measure(predicted, y, mean):
    """MSE, cosine, R^2, P@1 both ways of predicted (N, D) for y (N, D); mean (D,) of the training targets."""
    mse = F.mse_loss(predicted, y)
    return {"mse": mse.item(), "cosine": F.cosine_similarity(predicted, y).mean().item(),
            "r2": (1 - mse / F.mse_loss(mean.expand_as(y), y)).item(),
            "p1": precision_at_1(predicted, y), "p1_back": precision_at_1(y, predicted)}

def domain_gap(pairs, task):
    """Distance of the means of pairs (N, D) and task text (M, D), in spreads of the task's: 0 if alike."""
    return ((pairs.mean(0) - task.mean(0)).norm() / task.var(0).sum().sqrt()).item()

def report(predicted, x, y, mean, gaps):
    """Print the held-out table of A's output (N, D) and its warnings; returns the numbers.
    mean (D,) of the training targets; gaps: of the English and the translations to the task."""
    rows = {"A": measure(predicted, y, mean), "identity": measure(x, y, mean),
            "mean": measure(mean.expand_as(y), y, mean)}
    print(f"{len(y):5d} held-out pairs       MSE   cosine      R^2      P@1   P@1 back")
    for name, r in rows.items():
        print(f"  {name:18s} {r['mse']:9.3g} {r['cosine']:8.3f} {r['r2']:8.3f}" +
              ("" if name == "mean" else f" {r['p1']:8.1%}   {r['p1_back']:8.1%}"))
    spread, (gap, gap_target) = (predicted.var(0).sum() / y.var(0).sum()).item(), gaps
    print(f"  A's outputs have {spread:.2f} of the targets' variance; domain gap of pairs to task {gap:.2f}")
    (r2, cosine, p1), same = (rows["A"][key] for key in ("r2", "cosine", "p1")), rows["identity"]["cosine"]
    for fired, what in (                                     # `not`: what is nan fires, too
            (not spread >= WARN_COLLAPSE, f"A collapsed, its outputs have {spread:.3f} of targets' variance"),
            (not r2 >= WARN_R2, f"A is no better than the mean, R^2 {r2:.3f}: do columns belong together?"),
            (p1 < max(WARN_P1, 2 / len(y)), f"P@1 is {p1:.1%}, chance: is translated.tsv shifted by a row?"),
            (gap_target < 0.8 * gap, f"the translations are nearer to the task's English, gap "
             f"{gap_target:.2f}, than the English, {gap:.2f}: are the columns swapped?"),
            (not cosine > same, f"A is no better than identity, cosine {cosine:.3f} to {same:.3f}"),
            (gap > WARN_GAP, f"the pairs are far from the task's text, domain gap {gap:.2f}: less gain")):
        if fired:
            print(f"warning: {what}")
    return {**rows, "output_variance": spread, "domain_gap": gap, "held_out": len(y)}

def main(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--lang", required=True, help="required: target language, a folder beside en, e.g. ko")
    p.add_argument("--n", type=positive, help="pairs to use, else 20000, or all if fewer (paper: 5K-50K)")
    p.add_argument("--arch", choices=ARCHES, default="fc",
                   help="fc (the default), ae: the paper's two; the others: closed-form baselines")
    p.add_argument("--depth", type=positive, help="layers of fc (ours: 2), of ae down and up (paper: 3)")
    p.add_argument("--hidden", type=positive, help="inner width of fc, else D; ae's bottleneck, else D/2")
    p.add_argument("--dropout", type=share, help=f"share of units, else {DROPOUT}; too much hurts fc (paper)")
    p.add_argument("--reverse", action="store_true", help="Rev-LangAlign: A maps target to English")
    p.add_argument("--plain", action="store_true", help="fc, ae as in the paper: A(x) = f(x), no residuals "
                   "kept; without it A(x) = W x + f(x), W the closed form linear: lower held-out MSE (ours)")
    p.add_argument("--noise", type=share, help="share of the training translations to shuffle, as if bad")
    args = p.parse_args(argv)
    if args.arch not in DEPTH and (args.plain or args.depth or args.hidden or args.dropout is not None):
        raise UserError(f"--plain, --depth, --hidden, --dropout are of fc and ae, not of --arch {args.arch}")

    cache, info, machine = open_run(args)
    english, target, _ = load_translated(info["data"], info["task"], args.lang, args.n)
    task_texts = load_task(info["data"], info["task"], "en", "train", info["labels"], info["pair"])[0]
    task_texts = [task_texts[i] for i in fixed_order(len(task_texts))[:POOL]]
    n, held = len(english), min(POOL, int(HELD_OUT * len(english)))
    if held < 2:
        raise UserError(f"{n} pairs are too few to train on and hold out: 20 at least, 5000 in the paper")
    torch.manual_seed(args.seed)
    aligner = Aligner(args.arch, cache.encoder.dim, args.depth or DEPTH.get(args.arch), args.hidden,
                      DROPOUT if args.dropout is None else args.dropout)
    size = sum(p.numel() for p in aligner.parameters()) or aligner.W.numel()       # closed form: no parameter
    print(f"step 2 | {machine} | A: {args.arch}{' reversed' * args.reverse}, {size:,} parameters, LM "
          f"frozen | en-{args.lang}: {n - held} pairs + {held} held out |",
          f"{EPOCHS} epochs of {-(-(n - held) // BATCH)} steps" if aligner.f else "closed form", flush=True)
    if info["pair"] and len(english[0]) == 1:
        print("warning: single texts for a pair task: general text, look at the domain gap")

    x, cost = cache(english, "encode en"), cache.seconds                           # e(d_en): (n, D)
    y, cost = cache(target, f"encode {args.lang}"), cost + cache.seconds           # e(T(d_en)): (n, D)
    task = cache(task_texts, "encode task")
    gaps, start = (domain_gap(x, task), domain_gap(y, task)), time.perf_counter()
    (x, held_x), (y, held_y) = (t.split([n - held, held]) for t in ((y, x) if args.reverse else (x, y)))
    y = shuffle_share(y, args.noise, args.seed) if args.noise else y
    train(aligner, x, y, held_x, held_y, args, cache.device)
    seconds = {"encode": cost, "align": time.perf_counter() - start}

    predicted, seen = aligner.map(held_x), slice(max(0, n - POOL), None)           # POOL with those held out
    residuals = torch.cat([y[seen] - aligner.map(x[seen]), held_y - predicted])    # what A does not foretell
    numbers = report(predicted, held_x, held_y, y.mean(0), gaps)
    near = gaps[0] <= WARN_GAP and not (args.plain or args.reverse)        # far: not what task text leaves
    path = Path(args.out, file_name("align", args.lang, args.arch, f"n{n}", "rev" if args.reverse else "",
                                    "plain" if args.plain else "", depth=args.depth, hidden=args.hidden,
                                    dropout=args.dropout, noise=args.noise or None, seed=args.seed or None))
    save(path, "align", args, lm=cache.encoder.fingerprint, lang=args.lang, arch=args.arch, n=n,
         reverse=args.reverse, aligner=aligner.config, state=aligner.state_dict(), report=numbers,
         residuals=residuals[:near * POOL], seconds=seconds, cost=volume(english))
    print(f"encoding the pairs took {cost:.1f} s, now or in earlier runs, making A {seconds['align']:.1f} s "
          f"-> {path}")

if __name__ == "__main__":
    run(main)
