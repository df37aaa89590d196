"""Step 2 of LangAlign (arXiv 2503.18603): train the aligner A on n translated pairs, the LM frozen (Eq. 1).

    python step2_align.py --lang ko --n 20000                    # FC; --arch ae: the autoencoder
    python step2_align.py --lang ko --reverse                    # Rev-LangAlign: A maps target to English
    python step2_align.py --lang ko --arch inside                # ours: A inside the frozen LM, minutes

Reads   <out>/ of step 1 and <data>/<task>/<lang>/translated.tsv (formats: data/README.md).
Writes  <out>/align-<lang>-<arch>-n<n>.pt, reversed align-<lang>-rev-..., and embeddings under <out>/cache/.
Expect  no warning; on the toy world R^2 0.82, P@1 36% (identity: 0%) for Korean.
"""

import copy
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from common import CLOSED, Aligner, Inside, UserError, average_gradients, bar, cached, encode
from common import file_name, fixed_order, hold_out, load_encoder, load_task, load_translated
from common import make_optimizer, make_parser, pick_device, run, save, say, shuffled, warn_if


# The paper: FC or AE, trained by Eq. 1 ----------------------------------------------------------
def fit(aligner, x, y, held_x, held_y, epochs=30, lr=1e-3, batch=128, weight_decay=1.0, seed=0):
    """Minimise Eq. 1, the squared error between A(x) and y (paper, Step 2): x = e(d_en), y = e(T(d_en)),
    both (N, D); swapped for Rev-LangAlign. In place, best epoch kept; returns held-out MSEs."""
    torch.manual_seed(seed)  # of dropout
    if not 1 < len(x) == len(y):
        raise ValueError(f"{len(x)} rows of x, {len(y)} of y: give as many, two or more")
    x, y = x.detach().to(aligner.mean_x), y.detach().to(aligner.mean_x)  # device, fp32
    aligner.mean_x, aligner.scale_x = x.mean(0), x.std(0).clamp_min(1e-6)
    aligner.mean_y, aligner.scale_y = y.mean(0), y.var(0).mean().sqrt()
    steps = epochs * -(-len(x) // batch)
    optimizer, schedule = make_optimizer(aligner.parameters(), lr, steps, weight_decay)
    generator = torch.Generator().manual_seed(seed)

    history, kept = [], aligner.state_dict()
    for _ in bar(range(epochs), desc="align", unit="epoch"):
        aligner.train()
        for i in torch.randperm(len(x), generator=generator).to(x.device).split(batch):
            loss = F.mse_loss(aligner(x[i]), y[i])  # Eq. 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        history.append(F.mse_loss(aligner.map(held_x), held_y).item())
        if not history[-1] < float("inf"):
            raise UserError(f"the held-out MSE is {history[-1]}: lower lr {lr:g}, or look for NaN")
        if history[-1] == min(history):
            kept = copy.deepcopy(aligner.state_dict())
    aligner.load_state_dict(kept)
    return history


# Not in the paper: closed forms, as in MUSE and vecmap ------------------------------------------
def solve(arch, x, y, held_x, held_y, ridges=(1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)):
    """The Aligner A(x) = (x - mean_x) W + mean_y of the pairs x, y (N, D), in closed form, on the CPU.
    shift       W = I: the difference of the means
    procrustes  W orthogonal, from the SVD of X^T Y (Schonemann 1966)
    linear      W = I + (X^T X + r I)^-1 X^T (Y - X), ridge toward the identity: what few pairs cannot
                tell stays as it is; r: the share in `ridges` of the mean eigenvalue with least held-out MSE"""
    if arch not in CLOSED:
        raise ValueError(f"arch {arch!r} is none of {', '.join(CLOSED)}")
    aligner = Aligner(arch, x.shape[1])
    aligner.mean_x, aligner.mean_y = x.mean(0), y.mean(0)
    X, Y = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    if arch == "procrustes":
        u, _, vt = torch.linalg.svd(X.T @ Y)
        aligner.f.weight.data = (u @ vt).T.float().contiguous()
    if arch == "linear":
        values, V = torch.linalg.eigh(X.T @ X)  # X^T X = V diag(values) V^T
        right, best = V.T @ X.T @ (Y - X), float("inf")
        for share in ridges:
            W = torch.eye(len(V)) + V @ (right / (values + share * values.mean())[:, None])
            mse = F.mse_loss((held_x - x.mean(0)) @ W.float() + y.mean(0), held_y).item()
            if not mse >= best:  # so that NaN shows
                best, aligner.f.weight.data = mse, W.T.float().contiguous()
    return aligner


# Ours: A inside the frozen LM -------------------------------------------------------------------
def fit_inside(inside, encoder, texts, y, held, held_y, epochs=None, lr=3e-3, batch=32, seed=0):
    """Minimise Eq. 1 reversed, |e_A(T(d)) - e(d)|^2; e_A: load_encoder's frozen LM with A in it, texts T(d),
    y = e(d) (N, D). epochs None: at least 4 and 180 steps (ours). Keeps the last; returns held-out MSEs."""
    encoder.eval()  # no dropout in it
    model = average_gradients(inside.to(encoder.lm.device))  # of several GPUs
    steps = -(-len(texts) // batch)  # an epoch
    epochs = max(4, -(-180 // steps)) if epochs is None else epochs
    optimizer, schedule = make_optimizer(inside.parameters(), lr, epochs * steps, 0.01)
    scaler = torch.amp.GradScaler(encoder.lm.device.type, enabled=encoder.lm.dtype == torch.float16)
    generator, rows = torch.Generator().manual_seed(seed), encoder.tokenize(texts)
    history = []
    for epoch in range(1, epochs + 1):
        for i, inputs in shuffled(encoder, rows, batch, generator, f"inside {epoch}/{epochs}"):
            predicted = model(encoder, inputs)  # e_A(T(d)), (B, D)
            loss = F.mse_loss(predicted, y[i].to(predicted.device))  # Eq. 1, reversed
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        with inside.on(encoder):
            history.append(F.mse_loss(encode(encoder, held, progress=""), held_y).item())
    return history


# Report -----------------------------------------------------------------------------------------
def measure(predicted, y, mean, most=2_000):
    """predicted, y (N, D), mean (D,) of training -> how near; p1: share of `most` rows nearest to their own y."""
    mse, cosine = F.mse_loss(predicted, y).item(), F.cosine_similarity(predicted, y).mean().item()
    r2 = 1 - mse / F.mse_loss(mean.expand_as(y), y).item()
    similarity = F.normalize(predicted[:most], dim=1) @ F.normalize(y[:most], dim=1).T  # (N, N)
    p1 = (similarity.argmax(1) == torch.arange(len(similarity))).float().mean().item()
    return {"mse": mse, "cosine": cosine, "r2": r2, "p1": p1}


def report(predicted, x, y, mean):
    """Print measures of A's output (N, D) on held-out pairs x, y, beside their floors; returns them."""
    rows = {"A": measure(predicted, y, mean), "identity": measure(x, y, mean)}
    rows["mean"] = measure(mean.expand_as(y), y, mean)
    say(f"{len(y):5d} held-out pairs       MSE   cosine      R^2      P@1")
    for name, r in rows.items():
        say(f"  {name:18s} {r['mse']:9.3g} {r['cosine']:8.3f} {r['r2']:8.3f} {r['p1']:8.1%}")
    a, identity = rows["A"], rows["identity"]
    worse = a["cosine"] <= identity["cosine"] or (a["r2"] < 0.5 and a["p1"] < identity["p1"])
    told = "did A collapse, or do the columns not belong together?"
    warn_if(a["r2"] < 0.05, f"A is no better than the mean: {told}")
    low = a["p1"] < min(0.5, max(0.02, 2 / len(y)))  # near chance
    warn_if(low, f"P@1 is {a['p1']:.1%}: is translated.tsv shifted by a row?")
    warn_if(worse, "A is no better than identity: do many rows share a translation?")
    return rows


def main():
    p = make_parser(__doc__, step=2)
    p.add_argument("--reverse", action="store_true", help="A: target to English; inside always is")
    args = p.parse_args()
    reverse = args.reverse or args.arch == "inside"

    # e(.), frozen, and e(d_en), e(T(d_en)) of the pairs, (n, D)
    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data, args.batch_tokens)
    cache = partial(cached, encoder, args.out)
    english, target, _ = load_translated(info, args.lang, args.n)
    train, held = hold_out(english)
    say(f"step 2 | {machine} | en-{args.lang}: {len(train)} pairs + {len(held)} held out")
    x, y = cache(english, "encode en"), cache(target, f"encode {args.lang}")
    texts, _ = load_task(info, "en", "train")
    task_x = cache([texts[i] for i in fixed_order(len(texts))[:2_000]], "encode task")

    text, count = Counter(target).most_common(1)[0]
    shared = f"{count} rows share a translation, {text[0][:30]!r}; {len(set(target))} are different"
    warn_if(count > max(2, len(target) / 100), shared)
    same = sum(source == translation for source, translation in zip(english, target))
    warn_if(same > len(target) / 10, f"{same} of {len(target)} translations are the source itself")
    spread = task_x.var(0).sum().sqrt()  # one standard deviation, and so the gaps' unit
    gap, gap_y = ((t.mean(0) - task_x.mean(0)).norm().div(spread).item() for t in (x, y))
    say(f"domain gap of the pairs' English to the task's: {gap:.2f}")
    far = "the pairs are far from the task's text: expect no gain; inside can do harm"
    warn_if(gap > 0.1 + len(x) ** -0.5, far)  # 1 / sqrt(n) is chance; 0.1: data/RESULTS.md
    warn_if(gap_y < 0.8 * gap, "the translations are nearer to the task's text: columns swapped?")

    if reverse:
        x, y = y, x
    parts = x[train], y[train], x[held], y[held]
    torch.manual_seed(args.seed)
    if args.arch == "inside":
        aligner = Inside(encoder.lm)
        texts, held_texts = [target[i] for i in train], [target[i] for i in held]
        fit_inside(aligner, encoder, texts, y[train], held_texts, y[held], seed=args.seed)
        with aligner.on(encoder):
            predicted = encode(encoder, held_texts)
    else:
        if args.arch in CLOSED:
            aligner = solve(args.arch, *parts)
        else:
            aligner = Aligner(args.arch, encoder.dim).to(device)
            fit(aligner, *parts, seed=args.seed)
        predicted = aligner.map(x[held])
    say(f"A: {args.arch}, {sum(p.numel() for p in aligner.parameters()):,} parameters")
    numbers = report(predicted, x[held], y[held], y[train].mean(0))

    told = {"lang": args.lang, "method": "rev" if reverse else "langalign", "arch": args.arch}
    told |= {"n": len(english), "seed": args.seed}
    path = Path(args.out, file_name("align", **told))
    told |= {"aligner": aligner.config, "report": numbers, "gap": gap}
    state = {name: tensor.cpu() for name, tensor in aligner.state_dict().items()}
    save(path, "align", lm=encoder.digest, state=state, **told)
    say(f"-> {path}")


if __name__ == "__main__":
    run(main)
