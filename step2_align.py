"""Step 2 of LangAlign (arXiv 2503.18603): train the aligner A on n pairs, a tenth held out, the LM frozen (Eq. 1).

    python step2_align.py --lang ko --n 20000                    # FC; --arch ae: the autoencoder
    python step2_align.py --lang ko --method rev                 # Rev-LangAlign: A maps target to English
    python step2_align.py --lang ko --arch inside                # ours: A inside the frozen LM, minutes
    python step2_align.py --lang jv su min ban --arch inside     # ours: one A for several languages

Reads   <out>/ of step 1 and <data>/<task>/<lang>/translated.tsv (formats: data/README.md).
Writes  <out>/align-<langs>-[rev-]<arch>-n<n>.pt (n: the most pairs of a language), and embeddings in <out>/cache/.
Expect  no warning; on the toy data R^2 0.67 and P@1 27% (identity: 0%) for Korean."""

import copy
import math
from collections import Counter
from itertools import chain, product
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from common import CLOSED, WORLD, Aligner, Inside, UserError, as_rows, bar, cached, check_flags
from common import describe, digest_of, encode, fixed_order, hold_out, load_encoder, load_pairs
from common import load_task, load_translated, make_optimizer, make_parser, path_of, pick_device
from common import run, save, say, shuffled, warn


# The paper: FC or AE, trained by Eq. 1 ----------------------------------------------------------
@torch.random.fork_rng(devices=[])  # dropout draws from the CPU's global generator
def fit(aligner, x, y, held_x, held_y, epochs=None, lr=2e-3, batch=128, weight_decay=0.3, seed=0):
    """Train `aligner` in place to minimise Eq. 1, the squared error between A(x) and y: x = e(d_en), y = e(T(d_en)),
    both (N, D); swap them for Rev-LangAlign. Default: at least 10 epochs and 400 steps. Returns the held-out MSE per
    epoch, keeps the best. seed sets batches and dropout. A's initial weights were drawn by its constructor."""
    torch.manual_seed(seed)
    dim, device = len(aligner.mean_x), aligner.mean_x.device
    x, y = as_rows(x, dim).to(device), as_rows(y, dim, len(x)).to(device)
    held_x, held_y = as_rows(held_x, dim), as_rows(held_y, dim, len(held_x)).cpu()
    spread = x.std(0)  # a column that is constant in the pairs need not be so elsewhere
    aligner.mean_x, aligner.scale_x = x.mean(0), torch.where(spread > 1e-6, spread, 1.0)
    aligner.mean_y, aligner.scale_y = y.mean(0), y.var(0).mean().sqrt()
    steps = math.ceil(len(x) / batch)  # per epoch
    epochs = max(10, math.ceil(400 / steps)) if epochs is None else epochs
    optimizer, schedule = make_optimizer(aligner.parameters(), lr, epochs * steps, weight_decay)

    history, kept = [], aligner.state_dict()
    for _ in bar(range(epochs), desc="align", unit="epoch"):
        aligner.train()
        for i in torch.randperm(len(x)).to(x.device).split(batch):
            loss = F.mse_loss(aligner(x[i]), y[i])  # Eq. 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        history.append(F.mse_loss(aligner.map(held_x), held_y).item())
        if not history[-1] < float("inf"):
            found = f"the MSE of {len(held_x)} held-out pairs is {history[-1]}"
            raise UserError(f"{found}; use more pairs, or a lower lr than {lr:g}")
        if history[-1] == min(history):
            kept = copy.deepcopy(aligner.state_dict())
    aligner.load_state_dict(kept)
    return history


# Not in the paper: closed forms, as in MUSE and vecmap ------------------------------------------
def solve(arch, x, y, held_x, held_y, ridges=(1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)):
    """Return the Aligner A(x) = (x - mean_x) W + mean_y of the pairs x, y (N, D), in closed form, on the CPU.
    shift       W = I: the difference of the means
    procrustes  W orthogonal, from the SVD of X^T Y (Schonemann 1966), near I where pairs do not determine it
    linear      W = I + (X^T X + r I)^-1 X^T (Y - X), ridge toward I: directions without data stay as they are;
                r is the multiple (from `ridges`) of X^T X's mean eigenvalue with the lowest held-out MSE"""
    if arch not in CLOSED:
        raise ValueError(f"arch {arch!r} is none of {', '.join(CLOSED)}")
    x, held_x = as_rows(x), as_rows(held_x, x.shape[1])
    y, held_y = as_rows(y, x.shape[1], len(x)), as_rows(held_y, x.shape[1], len(held_x))
    x, y, held_x, held_y = (rows.cpu() for rows in (x, y, held_x, held_y))
    aligner = Aligner(arch, x.shape[1])
    aligner.mean_x, aligner.mean_y = x.mean(0), y.mean(0)
    X, Y = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    if arch == "procrustes":
        cross = X.T @ Y
        u, _, vt = torch.linalg.svd(cross + 1e-6 * cross.norm() * torch.eye(len(cross)))
        aligner.f.weight.data = (u @ vt).T.float().contiguous()
    if arch == "linear":
        values, V = torch.linalg.eigh(X.T @ X)  # X^T X = V diag(values) V^T
        values = values.clamp_min(1e-12)  # if all rows are the same, W = I
        right, best = V.T @ X.T @ (Y - X), float("inf")
        for share in ridges:
            W = torch.eye(len(V)) + V @ (right / (values + share * values.mean())[:, None])
            mse = F.mse_loss((held_x - x.mean(0)) @ W.float() + y.mean(0), held_y).item()
            if not mse < float("inf"):
                raise UserError(f"the MSE of {len(held_x)} held-out pairs is {mse}; use more pairs")
            if mse < best:
                best, aligner.f.weight.data = mse, W.T.float().contiguous()
    return aligner


# Ours: A inside the frozen LM -------------------------------------------------------------------
def fit_inside(inside, encoder, texts, y, held, held_y, epochs=None, lr=3e-3, batch=32, seed=0):
    """Minimise Eq. 1 reversed, |e_A(T(d)) - e(d)|^2: e_A is the frozen encoder with A active, `texts` are T(d),
    y = e(d) (N, D). Default: at least 4 epochs and 180 steps. Keeps the last epoch, returns the held-out MSEs."""
    y, held_y = as_rows(y, encoder.dim, len(texts)), as_rows(held_y, encoder.dim, len(held))
    encoder.eval()  # no dropout in the LM
    model = inside.to(encoder.lm.device)
    model = torch.nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
    steps = math.ceil(len(texts) / batch)  # per epoch
    epochs = max(4, math.ceil(180 / steps)) if epochs is None else epochs
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
        with torch.no_grad(), inside.on(encoder):
            history.append(F.mse_loss(encode(encoder, held, progress=""), held_y).item())
    return history


# Report -----------------------------------------------------------------------------------------
def doubts_of(sources, translations):
    """Return warnings about translations that are copied, the same, of odd length, or that begin or end alike
    although their sources do not, as with an LLM's preamble."""
    pairs = list(dict.fromkeys(zip(sources, translations)))
    sources, translations = {a for a, _ in pairs}, {b for _, b in pairs}
    text, count = Counter(b for _, b in pairs).most_common(1)[0]
    ratio = median(len(b) / len(a) for a, b in pairs)
    odd = [b for a, b in pairs if not 1 / 3 < (len(b) + 20) / (ratio * len(a) + 20) < 3]
    counts = {
        "hold \ufffd, a character lost in a conversion": sum("\ufffd" in b for _, b in pairs),
        "repeat their source": sum(a.casefold() in b.casefold() for a, b in pairs),
        f"are the same, {text[:50]!r}": count,
        f"are three times too long or short, such as {' '.join(odd)[:50]!r}": len(odd),
    }
    begin, end = ("begin", slice(8)), ("end", slice(-8, None))
    edges = [(*begin, 1, 0.2), (*end, 1, 0.2), (*begin, 10, 0.6), (*end, 10, 0.6)]
    for place, part, top, share in [*edges, ("start", slice(1), 1, 0.7)]:
        common = Counter(b[part] for b in translations).most_common(top)
        usual = Counter(side for a in sources for side in {a[part], a[:8]}).most_common(top)
        count, alike = (sum(n for _, n in found) for found in (common, usual))
        # natural texts: the commonest edge in at most 8%, the ten commonest in at most 28%
        if count > max(share * len(pairs), 2.5 * alike):
            counts[f"{place} with {common[0][0]!r}{' or alike' * (top > 1)}"] = count
    many = max(2, 0.02 * len(pairs))  # fewer are normal
    return [f"{n} of {len(pairs)} translations {words}" for words, n in counts.items() if n > many]


def check_pairs(lang, english, target, x, y, task_x, total):
    """Warn of unusable pairs by their texts and embeddings x, y (n, D), the first n of `total` in fixed_order. Print
    the domain gap: the distance of the means of x and task_x (M, D), the task's English, in its standard deviations."""
    for doubt in doubts_of(chain(*english), chain(*target)):
        warn(f"{lang}: {doubt}; translate these rows again, or leave them out")
    spread = task_x.var(0).sum().sqrt()  # total standard deviation
    gap, gap_y = ((t.mean(0) - task_x.mean(0)).norm().div(spread).item() for t in (x, y))
    say(f"{lang}: domain gap of the pairs' English to the task's: {gap:.2f} standard deviations")
    # n rows of the task itself have a gap of 1 / sqrt(n) by chance; 0.1: data/RESULTS.md
    if gap > 0.1 + len(x) ** -0.5:
        warn(f"{lang}: far from the task's text; expect no gain, or harm from --arch inside")
    # Do translations fit their neighbour's English better than their own, in the order of the file or of an export?
    # Also after a linear A, for languages that the LM hardly knows
    held, excess = len(x) // 10, []
    mapped = solve("linear", y[held:], x[held:], y[:held], x[:held]).map(y) if held else y
    orders = np.argsort(fixed_order(total)[: len(x)]), np.arange(len(x))
    for order, z in product(orders, (y, mapped)):
        a, b = (F.normalize((t - t.mean(0))[order], dim=1) for t in (z, x))
        better = [((a * b.roll(k, 0)).sum(1) > (a * b).sum(1)).float().mean() for k in (1, -1, 7)]
        excess.append(max(better[:2]) - better[2])  # right files: at most 0.04
    if max(excess) > 0.03 + len(x) ** -0.5:
        warn(f"{lang}: translations fit neighbouring rows; is a part shifted by a row?")
    if gap_y < 0.8 * gap:
        warn(f"{lang}: the translations are nearer to the task's text; are the columns swapped?")


def measure(predicted, y, mean, most=2_000):
    """Return MSE, mean cosine, R^2 and P@1 (for `most` rows) of predicted and y (N, D), training mean (D,)."""
    mse, cosine = F.mse_loss(predicted, y).item(), F.cosine_similarity(predicted, y).mean().item()
    r2 = 1 - mse / max(F.mse_loss(mean.expand_as(y), y).item(), 1e-12)
    # evenly spaced, as rows are sorted by language
    i = torch.linspace(0, len(y) - 1, min(most, len(y))).long()
    predicted, y = predicted[i], y[i]
    similarity = F.normalize(predicted, dim=1) @ F.normalize(y, dim=1).T  # (N, N)
    nearest = y[similarity.argmax(1)]  # compared by value: a row may recur in several languages
    p1 = (nearest == y).all(1).float().mean().item()
    return {"mse": mse, "cosine": cosine, "r2": r2, "p1": p1}


def report(predicted, x, y, mean, langs):
    """Print and return measures of A(x), identity and mean on held-out pairs (N, D), and of A per language."""
    guesses = {"A": predicted, "identity": x, "mean": mean.expand_as(y)}
    rows = {name: measure(guess, y, mean) for name, guess in guesses.items()}
    for lang in sorted(set(langs)) if len(set(langs)) > 1 else ():
        i = [k for k, other in enumerate(langs) if other == lang]
        rows[f"A, {lang}"] = measure(predicted[i], y[i], mean)
    say(f"{len(y):5d} held-out pairs       MSE   cosine      R^2      P@1")
    for name, r in rows.items():
        say(f"  {name:18s} {r['mse']:9.3g} {r['cosine']:8.3f} {r['r2']:8.3f} {r['p1']:8.1%}")
    a = rows["A"]
    if a["r2"] < 0.05:
        warn("A is no better than the mean; too few pairs, columns misaligned, or did A collapse?")
    p1 = max(a["p1"], rows["identity"]["p1"])
    if p1 < min(0.5, max(0.02, 2 / len(y))):  # near chance
        warn(f"P@1 is {p1:.1%} at best; too few pairs, or is translated.tsv shifted by a row?")
    if len(y) < 10:
        warn(f"{len(y)} held-out pairs are too few to judge A")
    if a["cosine"] <= rows["identity"]["cosine"]:
        warn("A is no better than identity; use more pairs, or another --arch")
    return rows


def main():
    args = make_parser(__doc__, step=2).parse_args()
    check_flags(args)
    fields = describe(args.lang, args.method, args.arch, seed=args.seed)

    # e(.), frozen, and e(d_en), e(T(d_en)) of the pairs, (n, D)
    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data, args.batch_tokens)
    english, target, langs = load_pairs(info, dict.fromkeys(sorted(args.lang), args.n))
    train, held = hold_out(english)
    counts = dict(Counter(langs))
    say(f"step 2 | {machine} | pairs {counts}: {len(train)} train, {len(held)} held out")
    task, _ = load_task(info, "en", "train")
    task = [task[i] for i in fixed_order(len(task))[:2_000]]
    x, y = cached(encoder, args.out, [*english, *target]).split(len(english))
    task_x = cached(encoder, args.out, task)  # a separate call, since pairs may be single texts
    for lang in counts:
        i = [k for k, other in enumerate(langs) if other == lang]
        whole, _, _ = load_translated(info, lang)  # of which --n takes a part
        own = [[part[k] for k in i] for part in (english, target)]
        check_pairs(lang, *own, x[i], y[i], task_x, len(whole))

    if fields["method"] == "rev":
        x, y = y, x
    parts = x[train], y[train], x[held], y[held]
    torch.manual_seed(args.seed)
    if args.arch == "inside":
        aligner = Inside(encoder.lm)
        texts, held_texts = [target[i] for i in train], [target[i] for i in held]
        fit_inside(aligner, encoder, texts, y[train], held_texts, y[held], seed=args.seed)
        with aligner.on(encoder):
            predicted = encode(encoder, held_texts)
    elif args.arch in CLOSED:
        aligner = solve(args.arch, *parts)
        predicted = aligner.map(x[held])
    else:
        aligner = Aligner(args.arch, encoder.dim).to(device)
        fit(aligner, *parts, seed=args.seed)
        predicted = aligner.map(x[held])
    say(f"A: {args.arch}, {sum(p.numel() for p in aligner.parameters()):,} parameters")
    rows = report(predicted, x[held], y[held], y[train].mean(0), [langs[i] for i in held])

    fields["n"] = max(counts.values())
    path = path_of(args.out, "align", **fields)
    content = {"lm": encoder.digest, "aligner": aligner.config, "state": aligner.cpu().state_dict()}
    content |= {"pairs": counts, "texts": digest_of(repr([english, target]).encode())}
    save(path, "align", **fields, **content, report=rows)
    say(f"-> {path}")


if __name__ == "__main__":
    run(main)
