"""Step 3 of LangAlign (arXiv 2503.18603), task tuning: train the task head, LM and aligner frozen.

    python step3_head.py --lang ko                       # LangAlign: head on A(e(d_en))
    python step3_head.py --lang ko --residuals           # ours: head on A(e(d_en)) + r
    python step3_head.py --lang ko --method rev          # Rev-LangAlign: A at inference, of --reverse

Baselines (--method): english; native: labelled target rows; translated: translations and their labels;
mixed: these, and English rows that have none; centred: English moved onto the mean of --unlabelled text.
Reads   <out>/ of step 1, for langalign and rev an aligner of step 2, and <data>/<task>/.
Writes  <out>/head-<lang>-....pt: what inference needs besides encoder/, embed.pt; head-english.pt anew.
Expect  on the toy world 97% of English dev rows right through A, 99% without.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from common import UserError, bar, build_aligner, cached, file_name, find, load_encoder
from common import load_english, load_task, load_translated, logits, make_parser, pick_device
from common import read_lines, read_texts, run, save, say, warn_if


def train_heads(x, y, classes, residuals=None, seeds=range(5), l2=0.05, lr=1e-3, steps=2_000):
    """S linear heads at once, one a seed: cross-entropy + l2 |w|^2 on embeddings x (N, D), int64 labels y (N,).
    residuals (M, D): to a row of x a random one of them is added, drawn anew in each epoch.
    Batches of 64, at least ten epochs and `steps` steps (ours).
    Returns {"weight": (S, C, D), "bias": (S, 1, C), "mean": (D,), "scale": (D,)} for common.logits."""
    if not 1 < len(x) == len(y):
        raise ValueError(f"{len(x)} rows of x, {len(y)} labels: give as many, two or more")
    generators, x = [torch.Generator().manual_seed(seed) for seed in seeds], x.detach().float()
    spread = x.var(0) if residuals is None else x.var(0) + residuals.var(0).to(x.device)
    mean, scale = x.mean(0), spread.sqrt().clamp_min(1e-6)  # the inputs are standardised
    x, y = (x - mean) / scale, y.to(x.device)
    r = None if residuals is None else residuals.to(x) / scale  # (M, D)
    weight = torch.stack([0.02 * torch.randn(classes, x.shape[1], generator=g) for g in generators])
    weight = weight.to(x.device).requires_grad_()  # (S, C, D)
    bias = torch.zeros(len(weight), 1, classes, device=x.device, requires_grad=True)
    parts = torch.arange(len(x)).split(64)  # an epoch's batches
    epochs = max(10, -(-steps // len(parts)))
    optimizer = torch.optim.Adam([weight, bias], lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(parts))

    for _ in bar(range(epochs), desc="heads", unit="epoch"):
        order = torch.stack([torch.randperm(len(x), generator=g) for g in generators])  # (S, N)
        if r is not None:
            drawn = torch.stack([torch.randint(len(r), (len(x),), generator=g) for g in generators])
        for part in parts:
            i = order[:, part].to(x.device)  # (S, B)
            inputs = x[i] if r is None else x[i] + r[drawn[:, part].to(x.device)]  # (S, B, D)
            out = torch.baddbmm(bias, inputs, weight.mT)  # (S, B, C)
            # mean over the batch, sum over the seeds: each head learns as if it were alone
            loss = F.cross_entropy(out.mT, y[i]) * len(weight) + l2 * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not loss.isfinite():
        raise UserError(f"the heads' loss is {loss.item()}; lower --l2 {l2:g}, or look for NaN")
    heads = {"weight": weight.detach(), "bias": bias.detach(), "mean": mean, "scale": scale}
    return {name: tensor.cpu() for name, tensor in heads.items()}


def training_rows(method, args, info):
    """(texts, y (N,), number of translations) that the head of a method learns from."""
    texts, y, *_ = load_english(info)
    if method == "native":
        return *load_task(info, args.lang, "train"), None
    if method not in ("translated", "mixed"):
        return texts, y, None
    source, target, target_y = load_translated(info, args.lang, args.n, labelled=True)
    if method == "translated":
        return target, target_y, len(target)
    translated = set(source)
    rest = [i for i, text in enumerate(texts) if text not in translated]
    return target + [texts[i] for i in rest], torch.cat([target_y, y[rest]]), len(target)


def make_head(method, args, encoder, info, heads=None):
    """Train the heads of one method, or take `heads`; report them, write their file, return them."""
    cache = partial(cached, encoder, args.out)
    texts, y, n = training_rows(method, args, info)
    _, _, dev_texts, dev_y = load_english(info)
    x, dev_x, arch, residuals = cache(texts), cache(dev_texts, "encode dev"), None, None
    if method == "centred":
        lines = read_lines(args.unlabelled)
        unlabelled = list(read_texts(lines, args.unlabelled, 1 + info["two_texts"]))
        shift = cache(unlabelled, "encode unlabelled").mean(0) - x.mean(0)  # (D,)
        x, dev_x = x + shift, dev_x + shift
    if method in ("langalign", "rev"):
        name = {"lang": args.lang, "method": method, "arch": args.arch, "seed": args.seed}
        art = find(args.out, "align", encoder.digest, args.n or "*", **name)
        arch, n = art["arch"], art["n"]
    if method == "langalign":
        aligner = build_aligner(art, encoder.lm)
        if args.residuals:  # r = e(T(d)) - A(e(d)) of every pair, (n, D)
            source, target, _ = load_translated(info, args.lang, n)
            residuals = cache(target) - aligner.map(cache(source))
        x, dev_x = aligner.map(x), aligner.map(dev_x)  # A(e(d_en))
    if heads is None:
        seeds = range(1000 * args.seed, 1000 * args.seed + args.seeds)
        x, classes = x.to(encoder.lm.device), len(info["labels"])
        heads = train_heads(x, y, classes, residuals, seeds, args.l2)
    dev = (logits(heads, dev_x).argmax(2) == dev_y).double().mean(1)  # (S,)
    majority = (dev_y.bincount().max() / len(dev_y)).item()
    told = {"method": method, "arch": arch, "n": n, "residuals": residuals is not None}
    told |= {"lang": "" if method == "english" else args.lang, "seed": args.seed}
    told |= {"l2": args.l2, "seeds": args.seeds}
    path = Path(args.out, file_name("head", **told))
    accuracy = f"{dev.mean():.2%} +- {dev.std(correction=0):.2%}, majority class {majority:.2%}"
    say(f"{method}: {len(x)} rows; English dev accuracy {accuracy} -> {path}")
    warn_if(dev.mean() <= majority, "on English dev rows no better than the majority class")
    if method == "rev":  # A goes along, for inference
        told |= {"aligner": art["aligner"], "state": art["state"]}
    save(path, "head", lm=encoder.digest, heads=heads, labels=info["labels"], **told)
    return heads


def main():
    p = make_parser(__doc__, step=3)
    p.add_argument("--unlabelled", metavar="FILE", help="for centred: target text, a line each")
    args = p.parse_args()
    if (args.method == "centred") != bool(args.unlabelled):
        raise UserError("--method centred needs --unlabelled FILE, target text; no other has it")
    forward = args.method == "langalign"
    if args.residuals and not forward or args.arch == "inside" and forward:
        raise UserError("--residuals goes with --method langalign, --arch inside with --method rev")

    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data, args.batch_tokens)
    say(f"step 3 | {machine} | {args.seeds} linear heads, LM and A frozen")
    english = make_head("english", args, encoder, info)
    if args.method != "english":
        make_head(args.method, args, encoder, info, english if args.method == "rev" else None)


if __name__ == "__main__":
    run(main)
