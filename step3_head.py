"""Step 3 of LangAlign (arXiv 2503.18603), task tuning: train the task head, LM and aligner frozen.

    python step3_head.py --lang ko                       # LangAlign: head on A(e(d_en))
    python step3_head.py --lang ko --residuals           # ours: head on A(e(d_en)) + r
    python step3_head.py --lang ko --method rev          # Rev-LangAlign: A at inference, of --reverse
    python step3_head.py --lang ko --method translated   # a baseline

Reads   <out>/ of step 1, for langalign and rev an aligner of step 2, and <data>/<task>/.
Writes  <out>/head-<lang>-....pt: what inference needs besides encoder/ and embed.pt, and head-english.pt.
Expect  TODO
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import (
    METHODS,
    ORDER_SEED,
    RANK,
    Cache,
    UserError,
    add_choice,
    build_aligner,
    find,
    head_name,
    load_encoder,
    load_task,
    load_train_dev,
    load_translated,
    logits,
    make_parser,
    number,
    pick_device,
    positive,
    read_lines,
    run,
    save,
    say,
    warn,
)

EPOCHS, STEPS = 10, 2_000  # both at least, so that few rows get enough steps; ours
BATCH = 64  # rows a step; ours
SEEDS, L2 = 5, 0.05  # heads, weight decay; ours


def train_heads(x, y, classes, residuals=None, seeds=range(5), l2=0.05, lr=1e-3):
    """S linear heads at once, one a seed, by cross-entropy + l2 |w|^2 on embeddings x (N, D), labels y (N,).

    residuals (M, D): to a row of x a random one is added, drawn anew each epoch. Adam, linear decay.
    Returns {"weight": (S, C, D), "bias": (S, 1, C), "mean": (D,), "scale": (D,)} for common.logits."""
    device, seeds = x.device, list(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    spread = x.var(0) if residuals is None else x.var(0) + residuals.var(0)
    heads = {"mean": x.mean(0), "scale": spread.sqrt().clamp_min(1e-6)}  # inputs are standardised
    weight = torch.stack([0.02 * torch.randn(classes, x.shape[1], generator=g) for g in generators])
    weight = weight.to(device).requires_grad_()  # (S, C, D)
    bias = torch.zeros(len(seeds), 1, classes, device=device, requires_grad=True)
    x, y = (x - heads["mean"]) / heads["scale"], y.to(device)
    if residuals is not None:
        residuals = residuals.to(device) / heads["scale"]

    steps = -(-len(x) // BATCH)
    epochs = max(EPOCHS, -(-STEPS // steps))
    optimizer = torch.optim.Adam([weight, bias], lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * steps)
    for _ in tqdm(
        range(epochs), desc="heads", unit="epoch", delay=2, leave=False, disable=RANK > 0
    ):
        order = torch.stack([torch.randperm(len(x), generator=g) for g in generators]).to(device)
        if residuals is not None:  # (S, N), which residual a row gets in this epoch
            drawn = [torch.randint(len(residuals), (len(x),), generator=g) for g in generators]
            drawn = torch.stack(drawn).to(device)
        for start in range(0, len(x), BATCH):
            i = order[:, start : start + BATCH]  # (S, B)
            inputs = x[i]  # (S, B, D)
            if residuals is not None:
                inputs = inputs + residuals[drawn[:, start : start + BATCH]]
            out = torch.baddbmm(bias, inputs, weight.mT)  # (S, B, C)
            # mean over the batch, sum over the seeds: each head learns as if alone
            loss = F.cross_entropy(out.mT, y[i]) * len(seeds) + l2 * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not torch.isfinite(loss):
        raise UserError(f"the heads' loss is {loss.item()}; lower --l2 {l2:g}")
    return {name: t.detach().cpu() for name, t in dict(heads, weight=weight, bias=bias).items()}


def training_rows(method, args, info, cache):
    """(x (N, D), y (N,), n translations used or None) of a method, before A; a block a method."""
    task = info["data"], info["task"]
    english, y, *_ = load_train_dev(*task, "en", info["labels"], info["pair"])

    if method == "native":
        texts, y, _ = load_task(*task, args.lang, "train", info["labels"], info["pair"])
        return cache(texts, f"encode {args.lang}"), y, None

    if method in ("translated", "mixed"):
        labels = info["labels"]
        source, texts, y_translated = load_translated(
            *task, args.lang, args.n, labels, info["pair"], args.subset_seed
        )
        x = cache(texts, f"encode {args.lang}")
        if method == "translated":
            return x, y_translated, len(texts)
        translated = set(source)
        rest = [i for i, text in enumerate(english) if text not in translated]
        if rest:
            x = torch.cat([x, cache([english[i] for i in rest], "encode train")])
        return x, torch.cat([y_translated, y[rest]]), len(texts)

    x = cache(english, "encode train")
    if method == "centred":
        texts = [tuple(line.split("\t")) for line in read_lines(args.unlabelled)]
        x = x - x.mean(0) + cache(texts, "encode unlabelled").mean(0)
    return x, y, None


def find_aligner(args, encoder):
    """The file of step 2 that --lang, --arch, --n, --seed and --variant name."""
    reverse = args.method == "rev"
    make = f"python step2_align.py --out {args.out} --lang {args.lang} --arch {args.arch}"
    make += " --reverse" * reverse
    want = dict(
        lang=args.lang, arch=args.arch, reverse=reverse, seed=args.seed, variant=args.variant
    )
    return find(args.out, "align", encoder.digest, make, args.n, **want)


def make_head(method, args, encoder, info, heads=None):
    """Train the heads of one method, or take `heads`, report them and write their file; returns them."""
    cache = Cache(encoder, args.out, args.batch_tokens)
    *_, dev_texts, dev_y, _ = load_train_dev(
        info["data"], info["task"], "en", info["labels"], info["pair"]
    )
    dev_x = cache(dev_texts, "encode dev")
    x, y, n = training_rows(method, args, info, cache)
    head = dict(
        method=method, lang=args.lang, n=n, arch=None, residuals=False, aligner=None, state=None
    )
    head |= dict(seed=args.seed, labels=info["labels"], pair=info["pair"], lm=encoder.digest)
    variant, residuals = [], None

    if method == "langalign":
        art = find_aligner(args, encoder)
        aligner = build_aligner(art, encoder.lm)
        if args.residuals:
            pairs, translations, _ = load_translated(
                info["data"],
                info["task"],
                args.lang,
                art["n"],
                None,
                info["pair"],
                art["subset_seed"],
            )
            residuals = cache(translations) - aligner.map(
                cache(pairs)
            )  # r = e(T(d)) - A(e(d)): (n, D)
        x, dev_x = aligner.map(x), aligner.map(dev_x)  # A(e(d_en)): (N, D)
        head |= dict(n=art["n"], arch=art["arch"], residuals=args.residuals)
        variant = [art["variant"]]
    if method == "rev":  # the head is the plain English one; A goes along, for inference
        art = find_aligner(args, encoder)
        head |= {name: art[name] for name in ("n", "arch", "aligner", "state")}
        variant = [art["variant"]]
    if method == "english":
        head["lang"] = "en"

    device = encoder.device
    seeds = [1000 * args.seed + s for s in range(args.seeds)]
    if heads is None:
        heads = train_heads(x.to(device), y, len(info["labels"]), residuals, seeds, args.l2)
    head["heads"] = heads
    dev = (logits(heads, dev_x).argmax(2) == dev_y).double().mean(1)  # (S,)
    majority = (dev_y.bincount().max() / len(dev_y)).item()
    variant += [f"l2{args.l2}"] * (args.l2 != L2) + [f"seeds{args.seeds}"] * (args.seeds != SEEDS)
    head |= dict(variant="-".join(filter(None, variant)), dev=dev.tolist())
    path = Path(args.out, head_name(head))
    say(
        f"{path.stem}: {METHODS[method]}{' + residuals' * head['residuals']}, {len(x)} rows; English dev "
        f"accuracy {dev.mean():.2%} +- {dev.std(correction=0):.2%}, majority class {majority:.2%} -> {path}"
    )
    if dev.mean() <= majority:
        warn(f"{path.stem}: on English dev rows no better than the majority class, {majority:.2%}")
    save(path, "head", **head)
    return heads


def main():
    p = make_parser(__doc__)
    add_choice(p)
    p.add_argument("--unlabelled", metavar="FILE", help="for centred: target text, a line each")
    p.add_argument(
        "--subset-seed",
        type=number(int, 0),
        default=ORDER_SEED,
        help="translated, mixed: other n pairs than the fixed ones",
    )
    p.add_argument(
        "--seeds", type=positive, default=SEEDS, help="heads, each of own start and order (ours: 5)"
    )
    p.add_argument(
        "--l2",
        type=number(float, 0),
        default=L2,
        help="weight of |w|^2 in the loss: keeps the head off directions that the languages do not share (ours: %(default)s)",
    )
    p.add_argument("--data", help="root of the data, if it moved since step 1")
    args = p.parse_args()
    if not args.lang and args.method != "english":
        raise UserError(f"--lang is missing: python step3_head.py --lang ko --method {args.method}")
    if args.method == "centred" and not args.unlabelled:
        raise UserError(
            "--method centred needs --unlabelled FILE: target text without labels, a line each"
        )
    if args.residuals and args.method != "langalign":
        raise UserError(f"--residuals goes with --method langalign, not with {args.method}")

    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data)
    say(
        f"step 3 | {machine} | {args.seeds} linear heads of {encoder.dim} x {len(info['labels'])}, LM and A frozen"
    )
    english = make_head("english", args, encoder, info)
    if args.method != "english":
        make_head(args.method, args, encoder, info, english if args.method == "rev" else None)


if __name__ == "__main__":
    run(main)
