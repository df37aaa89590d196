"""Step 2 of LangAlign (arXiv 2503.18603): train the aligner A on n translated pairs, the LM frozen (Eq. 1).

    python step2_align.py --lang ko --n 20000                    # FC; --arch ae: the autoencoder
    python step2_align.py --lang ko --reverse                    # Rev-LangAlign: A maps target to English
    python step2_align.py --lang ko --arch inside                # ours: A inside the frozen LM, minutes

Reads   <out>/ of step 1 and <data>/<task>/<lang>/translated.tsv (formats: data/README.md).
Writes  <out>/align-<lang>-<arch>-n<n>.pt and embeddings under <out>/cache/.
Expect  no warning; TODO
"""

import copy
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from common import (
    ARCHES,
    CLOSED,
    DEFAULT_N,
    ORDER_SEED,
    RANK,
    WORLD,
    Aligner,
    Cache,
    Inside,
    UserError,
    encode,
    file_name,
    fixed_order,
    hold_out,
    language,
    load_encoder,
    load_task,
    load_translated,
    make_parser,
    number,
    pad,
    parallel,
    pick_device,
    positive,
    random_batches,
    run,
    save,
    say,
    share,
    warn,
)

MOST = 2_000  # task rows for the domain gap, pairs for P@1: enough to tell, quick to compare
RIDGES = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # shares of the inputs' mean variance
WARN_GAP = (
    0.15  # above: the pairs are of another domain; the task's own have 0.02, others 0.16 and more
)


# ------------------------------------------------------------------------------------------------
# The paper: FC or AE, trained by Eq. 1
# ------------------------------------------------------------------------------------------------
def fit(aligner, x, y, held_x, held_y, epochs=30, lr=1e-3, batch=128, weight_decay=1.0, seed=0):
    """Minimise Eq. 1, the mean squared error between A(e(d_en)) and e(T(d_en)).

    x = e(d_en), y = e(T(d_en)), both (N, D); swapped for Rev-LangAlign. Leaves the epoch of the best
    held-out MSE in the aligner and returns the held-out MSE after each epoch (paper, Step 2)."""
    torch.manual_seed(seed)  # of dropout
    device = aligner.mean_x.device
    x, y = x.to(device), y.to(device)
    aligner.mean_x, aligner.scale_x = x.mean(0), x.std(0).clamp_min(1e-6)
    aligner.mean_y, aligner.scale_y = y.mean(0), y.var(0).mean().sqrt()
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // batch))
    generator = torch.Generator().manual_seed(seed)

    history = []
    for _ in tqdm(
        range(epochs), desc="align", unit="epoch", delay=2, leave=False, disable=RANK > 0
    ):
        aligner.train()
        for i in torch.randperm(len(x), generator=generator).to(device).split(batch):
            loss = F.mse_loss(aligner(x[i]), y[i])  # Eq. 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        history.append(F.mse_loss(aligner.map(held_x), held_y).item())
        if history[-1] == min(history):
            kept = copy.deepcopy(aligner.state_dict())
    if not history[-1] < float("inf"):
        raise UserError(
            f"the loss is {history[-1]}: look at the embeddings, or lower the learning rate"
        )
    aligner.load_state_dict(kept)
    return history


# ------------------------------------------------------------------------------------------------
# Not in the paper: closed forms, as in MUSE and vecmap
# ------------------------------------------------------------------------------------------------
def covariance(a, b):
    """Centred a^T b / N in fp64, summed in blocks so that no fp64 copy of all rows is made: (D, D)."""
    blocks = zip(a.split(8_192), b.split(8_192))
    products = sum(x.double().T @ y.double() for x, y in blocks)
    return products / len(a) - torch.outer(a.mean(0).double(), b.mean(0).double())


def solve(arch, x, y, held_x, held_y):
    """The Aligner A(x) = W (x - mean_x) + mean_y of the pairs x, y (N, D), in closed form.

    shift       W = I: the difference of the means
    procrustes  W orthogonal, from the SVD of X^T Y (Schonemann 1966)
    linear      W = I + (X^T X + r I)^-1 X^T (Y - X), ridge toward the identity: what few pairs cannot
                tell stays as it is; r by held-out MSE"""
    if arch not in CLOSED:
        raise ValueError(f"arch {arch!r} is none of {', '.join(CLOSED)}")
    aligner = Aligner(arch, x.shape[1])
    aligner.mean_x, aligner.mean_y = x.mean(0), y.mean(0)
    if arch == "procrustes":
        u, _, vt = torch.linalg.svd(covariance(x, y))
        aligner.f.weight.data = (u @ vt).T.float()
    if arch == "linear":
        values, vectors = torch.linalg.eigh(covariance(x, x))  # X^T X = V diag(values) V^T
        right = vectors.T @ covariance(x, y - x)
        best = float("inf")
        for r in RIDGES:
            W = torch.eye(len(values)) + vectors @ (right / (values + r * values.mean())[:, None])
            error = F.mse_loss(
                (held_x - aligner.mean_x) @ W.float() + aligner.mean_y, held_y
            ).item()
            if error < best:
                best, aligner.f.weight.data = error, W.T.float().contiguous()
    return aligner


# ------------------------------------------------------------------------------------------------
# Ours: A inside the frozen LM
# ------------------------------------------------------------------------------------------------
def fit_inside(inside, encoder, texts, y, held_texts, held_y, epochs=4, lr=1e-3, batch=32, seed=0):
    """Eq. 1 reversed and moved into the LM: |e_A(T(d)) - e(d)|^2, e_A the LM with `inside` on.

    texts: N translations T(d); y (N, D) = e(d) of the frozen LM. Leaves the epoch of the best held-out
    MSE in `inside` and returns the held-out MSE after each epoch."""
    torch.manual_seed(seed)
    model = parallel(inside.to(encoder.device))
    optimizer = torch.optim.AdamW(inside.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * -(-len(texts) // batch)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    scaler = torch.amp.GradScaler(encoder.device.type, enabled=encoder.lm.dtype == torch.float16)
    generator = torch.Generator().manual_seed(seed)
    rows = encoder.tokenize(texts)

    history = []
    for epoch in range(1, epochs + 1):
        cut = random_batches([len(row["input_ids"]) for row in rows], batch, generator)
        for index in tqdm(cut, desc=f"inside {epoch}/{epochs}", leave=False, disable=RANK > 0):
            mine = index[RANK::WORLD] or index[:1]
            inputs = pad([rows[i] for i in mine], encoder.tokenizer, encoder.device)
            loss = F.mse_loss(model(encoder, inputs), y[mine].to(encoder.device))  # Eq. 1, reversed
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        with inside.on(encoder):
            history.append(
                F.mse_loss(encode(encoder, held_texts, progress="held out"), held_y).item()
            )
        if history[-1] == min(history):
            kept = copy.deepcopy(inside.state_dict())
    inside.load_state_dict(kept)
    return history


# ------------------------------------------------------------------------------------------------
# Report
# ------------------------------------------------------------------------------------------------
def precision_at_1(a, b):
    """Share of rows of a (N, D) whose nearest row of b (N, D) by cosine is their own; a tie counts."""
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T  # (N, N)
    return (similarity.diagonal() >= similarity.max(1).values - 1e-6).float().mean().item()


def measure(predicted, y, mean):
    """MSE, cosine, R^2 and P@1 of predicted (N, D) for y (N, D); mean (D,) of the training targets."""
    mse = F.mse_loss(predicted, y).item()
    return {
        "mse": mse,
        "cosine": F.cosine_similarity(predicted, y).mean().item(),
        "r2": 1 - mse / F.mse_loss(mean.expand_as(y), y).item(),
        "p1": precision_at_1(predicted[:MOST], y[:MOST]),
    }


def domain_gap(pairs, task):
    """Distance of the means of pairs (N, D) and task text (M, D), in spreads of the task's: 0 if alike."""
    return ((pairs.mean(0) - task.mean(0)).norm() / task.var(0).sum().sqrt()).item()


def report(predicted, x, y, mean):
    """Print the table of A's output (N, D) on held-out pairs x, y, with its warnings; returns the numbers."""
    rows = {"A": measure(predicted, y, mean), "identity": measure(x, y, mean)}
    rows["mean"] = measure(mean.expand_as(y), y, mean)
    say(f"{len(y):5d} held-out pairs       MSE   cosine      R^2      P@1")
    for name, r in rows.items():
        p1 = "" if name == "mean" else f" {r['p1']:8.1%}"
        say(f"  {name:18s} {r['mse']:9.3g} {r['cosine']:8.3f} {r['r2']:8.3f}{p1}")
    a, identity = rows["A"], rows["identity"]
    a["variance"] = (predicted.var(0).sum() / y.var(0).sum()).item()
    say(f"  A's outputs have {a['variance']:.2f} of the targets' variance")
    if not a["variance"] >= 0.1:
        warn(f"A collapsed: its outputs have {a['variance']:.3f} of the targets' variance")
    if not a["r2"] >= 0.05:
        warn(f"A is no better than the mean, R^2 {a['r2']:.3f}: do the columns belong together?")
    if a["p1"] < max(0.02, 2 / len(y)):
        warn(f"P@1 is {a['p1']:.1%}, chance: is translated.tsv shifted by a row?")
    if a["p1"] < identity["p1"] and a["r2"] < 0.5:
        warn(
            f"P@1 {a['p1']:.1%} is below identity's {identity['p1']:.1%}: do many rows share a translation?"
        )
    if not a["cosine"] > identity["cosine"]:
        warn(f"A is no better than identity: cosine {a['cosine']:.3f} to {identity['cosine']:.3f}")
    return rows


def check_pairs(english, target):
    """Warn of translations that stand for many sources and of rows that were not translated."""
    text, count = Counter(target).most_common(1)[0]
    sources = len({e for e, t in zip(english, target) if t == text})
    if sources > max(2, len(target) / 100):
        warn(
            f"one translation stands for {sources} sources, {' '.join(text)[:40]!r}: refusals, errors? {len(set(target))} of {len(target)} are different"
        )
    same = sum(e == t for e, t in zip(english, target))
    if same > len(target) / 10:
        warn(
            f"{same} of {len(target)} rows are not translated: translation and source are the same"
        )


def main():
    p = make_parser(__doc__)
    p.add_argument(
        "--lang",
        required=True,
        type=language,
        help="required: target language, a folder beside en, e.g. ko",
    )
    p.add_argument(
        "--n",
        type=positive,
        help=f"pairs to use, else {DEFAULT_N}, or all if fewer (paper: 5K-50K)",
    )
    p.add_argument(
        "--arch",
        choices=ARCHES,
        default="fc",
        help="fc (default), ae: the paper's; linear, procrustes, shift: closed forms; inside: in the LM, target to English",
    )
    p.add_argument("--reverse", action="store_true", help="Rev-LangAlign: A maps target to English")
    p.add_argument(
        "--depth", type=positive, help="layers of fc (ours: 2), of ae down and up (paper: 3)"
    )
    p.add_argument(
        "--width", type=positive, help="inner width of fc, else D; ae's bottleneck, else D/2"
    )
    p.add_argument(
        "--dropout",
        type=share,
        default=0.1,
        help="of fc and ae (ours: 0.1); too much hurts fc (paper)",
    )
    p.add_argument("--epochs", type=positive, help="passes (ours: 30, inside 4)")
    p.add_argument(
        "--noise",
        type=share,
        default=0.0,
        help="share of the training translations to shuffle, as if bad",
    )
    p.add_argument(
        "--subset-seed",
        type=number(int, 0),
        default=ORDER_SEED,
        help="draw another n pairs than the fixed ones",
    )
    p.add_argument("--data", help="root of the data, if it moved since step 1")
    p.add_argument(
        "--merge",
        metavar="DIR",
        help="inside: also write the LM with A merged in, for this language",
    )
    args = p.parse_args()
    args.reverse = args.reverse or args.arch == "inside"

    # e(.), frozen, and the pairs
    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data)
    english, target, _ = load_translated(
        info["data"], info["task"], args.lang, args.n, None, info["pair"], args.subset_seed
    )
    train, held = hold_out(english)
    torch.manual_seed(args.seed)
    inside = args.arch == "inside"
    aligner = (
        Inside(encoder.lm)
        if inside
        else Aligner(args.arch, encoder.dim, args.depth, args.width, args.dropout)
    )
    size = sum(p.numel() for p in aligner.parameters())
    say(
        f"step 2 | {machine} | A: {args.arch}{', target to English' if args.reverse else ''}, {size:,} parameters, LM frozen | en-{args.lang}: {len(train)} pairs + {len(held)} held out, {sum(len(part) for text in english for part in text):,} characters translated"
    )
    check_pairs(english, target)

    # Embeddings, (n, D)
    cache = Cache(encoder, args.out, args.batch_tokens)
    x, y = cache(english, "encode en"), cache(target, f"encode {args.lang}")  # e(d_en), e(T(d_en))
    task = load_task(info["data"], info["task"], "en", "train", info["labels"], info["pair"])[0]
    task = cache([task[i] for i in fixed_order(len(task))[:MOST]], "encode task")
    gap, gap_target = domain_gap(x, task), domain_gap(y, task)
    if args.reverse:
        x, y = y, x
    mean, train_y = y[train].mean(0), y[train].clone()
    moved = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed))
    moved = moved[: round(args.noise * len(train))]
    train_y[moved] = train_y[moved.roll(1)]

    # A
    pick = lambda texts, rows: [texts[i] for i in rows]
    if inside:
        fit_inside(
            aligner,
            encoder,
            pick(target, train),
            train_y,
            pick(target, held),
            y[held],
            epochs=args.epochs or 4,
            seed=args.seed,
        )
        with aligner.on(encoder):
            predicted = encode(encoder, pick(target, held), args.batch_tokens)
    elif args.arch in CLOSED:
        aligner = solve(args.arch, x[train], train_y, x[held], y[held])
        predicted = aligner.map(x[held])
    else:
        fit(
            aligner.to(device),
            x[train],
            train_y,
            x[held],
            y[held],
            epochs=args.epochs or 30,
            seed=args.seed,
        )
        predicted = aligner.map(x[held])

    numbers = report(predicted, x[held], y[held], mean)
    say(f"  domain gap of pairs to task {gap:.2f}")
    if gap > WARN_GAP:
        warn(
            f"the pairs are far from the task's text, domain gap {gap:.2f}: expect little or no gain"
        )
    if gap_target < 0.8 * gap:
        warn(
            f"the translations are nearer to the task's English, gap {gap_target:.2f}, than the English, {gap:.2f}: are the columns swapped?"
        )

    options = dict(
        depth=args.depth,
        width=args.width,
        dropout=args.dropout if args.dropout != 0.1 else None,
        epochs=args.epochs,
        noise=args.noise or None,
        subset=args.subset_seed if args.subset_seed != ORDER_SEED else None,
    )
    variant = "-".join(f"{name}{value}" for name, value in options.items() if value is not None)
    direction = "rev" if args.reverse and not inside else ""
    path = Path(
        args.out,
        file_name(
            "align", args.lang, direction, args.arch, f"n{len(english)}", variant, seed=args.seed
        ),
    )
    save(
        path,
        "align",
        lm=encoder.digest,
        lang=args.lang,
        arch=args.arch,
        reverse=args.reverse,
        n=len(english),
        seed=args.seed,
        variant=variant,
        subset_seed=args.subset_seed,
        aligner=aligner.config,
        state={name: t.cpu() for name, t in aligner.state_dict().items()},
        report=numbers,
        gap=gap,
    )
    say(f"-> {path}")
    if args.merge:
        encoder, _ = load_encoder(args.out)  # fp32
        aligner.cpu().merge(encoder.lm)
        encoder.lm.save_pretrained(args.merge)
        encoder.tokenizer.save_pretrained(args.merge)
        say(f"-> {args.merge}: the LM with A merged in; it takes {args.lang} text as it is")


if __name__ == "__main__":
    run(main)
