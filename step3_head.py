"""Step 3 of LangAlign (arXiv 2503.18603), task tuning: train the task head, LM and aligner frozen.

    python step3_head.py --lang ko                       # LangAlign: head on A(e(d_en))
    python step3_head.py --lang ko --residuals           # ours: head on A(e(d_en)) + a random error of A
    python step3_head.py --lang ko --method rev          # Rev-LangAlign: A is applied at inference
    python step3_head.py --lang ace --via jv su min ban --arch inside     # with the aligner of other languages

Baselines (--method): english, centred, translated, mixed, native; --help explains them.
Reads   <out>/ of step 1, for langalign and rev an aligner of step 2, and <data>/<task>/.
Writes  <out>/head-<lang>-....pt, and always <out>/head-english.pt, the baseline of eval.py.
Expect  on the toy data 94% English dev accuracy through A, 96% without."""

import math
from functools import partial

import torch
import torch.nn.functional as F

from common import UserError, as_labels, as_rows, bar, build_aligner, cached, check_flags, describe
from common import digest_of, find, load_encoder, load_english, load_pairs, load_task
from common import load_translated, logits, make_parser, path_of, pick_device, read_lines
from common import read_texts, run, save, say, warn


def train_heads(x, y, classes, residuals=None, seeds=range(5), l2=0.05, lr=1e-3, steps=2_000):
    """Train S linear heads at once, one per seed: cross-entropy + l2 |w|^2 on embeddings x (N, D), labels y (N,),
    for at least ten epochs and `steps` steps (our choice). residuals (M, D): one is added to each row of x, drawn
    again every epoch. Returns weight (S, C, D), bias (S, 1, C), mean (D,) and scale (D,) for common.logits."""
    x = as_rows(x)
    r = None if residuals is None else as_rows(residuals, x.shape[1]).to(x)  # (M, D)
    y = as_labels(y, len(x), classes).to(x.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    spread = x.var(0) if r is None else x.var(0) + r.var(0)
    mean, scale = x.mean(0), spread.sqrt().clamp_min(1e-6)  # the inputs are standardised
    x, r = (x - mean) / scale, None if r is None else r / scale
    weight = torch.stack([0.02 * torch.randn(classes, x.shape[1], generator=g) for g in generators])
    weight = weight.to(x.device).requires_grad_()  # (S, C, D)
    bias = torch.zeros(len(weight), 1, classes, device=x.device, requires_grad=True)
    parts = torch.arange(len(x)).split(64)  # batches of one epoch
    epochs = max(10, math.ceil(steps / len(parts)))
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
        found = f"the heads' loss on {len(x)} rows is {loss.item()}"
        raise UserError(f"{found}; use more rows, or a lower --l2 than {l2:g}")
    heads = {"weight": weight.detach(), "bias": bias.detach(), "mean": mean, "scale": scale}
    return {name: tensor.cpu() for name, tensor in heads.items()}


def save_heads(out, fields, heads, dev_x, dev_y, rows, **more):
    """Report the accuracy on English dev rows (M, D) of heads trained on `rows` rows, and write their file."""
    path = path_of(out, "head", **fields)
    dev = (logits(heads, dev_x).argmax(2) == dev_y).double().mean(1)  # (S,)
    majority = dev_y.bincount().max().item() / len(dev_y)
    accuracy = f"{dev.mean():.2%} +- {dev.std(correction=0):.2%}, majority class {majority:.2%}"
    say(f"{fields['method']}: {rows} rows; English dev accuracy {accuracy} -> {path}")
    if dev.mean() <= majority + 1e-9 and fields["method"] not in ("translated", "native"):
        warn("English dev accuracy is not above the majority class")
    save(path, "head", heads=heads, **fields, **more)


def main():
    p = make_parser(__doc__, step=3)
    flag = p.add_argument
    flag("--unlabelled", metavar="FILE", help="for centred: target texts, one per line")
    flag("--seeds", type=int, default=5, help="number of heads (default: 5)")
    flag("--l2", type=float, default=0.05, help="L2 penalty weight (default: 0.05)")
    args = p.parse_args()
    check_flags(args)
    options = args.method, args.arch, args.via, args.n, args.residuals, args.seed
    fields = describe(args.lang, *options)
    method = fields["method"]
    if (method == "centred") != bool(args.unlabelled):
        raise UserError("--method centred needs --unlabelled FILE; no other method takes it")

    # e(.) and A, frozen, and e(d_en) of the English rows
    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data, args.batch_tokens)
    cache = partial(cached, encoder, args.out)
    texts, y, dev_texts, dev_y = load_english(info)
    more = {name: info[name] for name in ("lm", "labels", "two_texts")} | {"l2": args.l2}
    more["english"] = digest_of(repr([texts, y.tolist()]).encode())
    stored = {}  # what only heads with an aligner store
    if method in ("langalign", "rev"):
        wanted = fields | {"lang": "+".join(fields["via"]), "residuals": False}
        art = find(args.out, "align", info["lm"], **wanted)
        fields["n"], stored = art["n"], {"texts": art["texts"], "pairs": art["pairs"]}
        source, target, _ = load_pairs(info, art["pairs"])
        if digest_of(repr([source, target]).encode()) != art["texts"]:
            raise UserError("translated.tsv changed since step 2; rerun step 2")
    say(f"step 3 | {machine} | {args.seeds} linear heads, LM and A frozen")
    x, dev_x = cache([*texts, *dev_texts]).split([len(texts), len(dev_texts)])
    seeds = range(1000 * args.seed, 1000 * args.seed + args.seeds)
    train = partial(train_heads, classes=len(info["labels"]), seeds=seeds, l2=args.l2)

    x_en, y_en, dev_en, residuals = x, y, dev_x, None  # English: the baseline of every table
    if method == "rev":  # the head is the English one, and A is stored for inference
        stored |= {"aligner": art["aligner"], "state": art["state"]}
    elif method == "langalign":  # the head learns from A(e(d_en))
        aligner = build_aligner(art, encoder.lm)
        if args.residuals:  # r = e(T(d)) - A(e(d)) of every pair, (n, D)
            residuals = cache(target) - aligner.map(cache(source))
        x, dev_x = aligner.map(x), aligner.map(dev_x)
    elif method == "centred":  # English moved onto the mean of unlabelled text
        unlabelled = list(read_texts(read_lines(args.unlabelled), args.unlabelled, len(texts[0])))
        if not unlabelled:
            raise UserError(f"{args.unlabelled}: no text; give one per line")
        shift = cache(unlabelled).mean(0) - x.mean(0)  # (D,)
        x, dev_x = x + shift, dev_x + shift
    elif method == "native":
        texts, y = load_task(info, args.lang, "train")
        x = cache(texts)
    elif method in ("translated", "mixed"):  # mixed: plus the untranslated English rows
        source, target, target_y = load_translated(info, args.lang, args.n, labelled=True)
        fields["n"] = len(target)
        used, held = {*source}, {*dev_texts}  # dev rows stay held out, also without a dev.tsv
        own = [i for i, text in enumerate(source) if text not in held]
        rest = [i for i, text in enumerate(texts) if method == "mixed" and text not in used]
        x, y = torch.cat([cache(target)[own], x[rest]]), torch.cat([target_y[own], y[rest]])

    baseline = describe("", "english", seed=args.seed)
    heads = train(x_en.to(device), y_en)
    save_heads(args.out, baseline, heads, dev_en, dev_y, len(x_en), **more)
    if method not in ("english", "rev"):
        heads = train(x.to(device), y, residuals=residuals)
    if method != "english":
        save_heads(args.out, fields, heads, dev_x, dev_y, len(x), **more, **stored)


if __name__ == "__main__":
    run(main)
