"""Step 1 of LangAlign (arXiv 2503.18603), tuning for embedding: fine-tune the LM on English task data.

    python step1_embed.py --lr 5e-4                              # the toy data and LM of data/toy.py
    python step1_embed.py --model intfloat/multilingual-e5-small --data data/real --task nusax
    python step1_embed.py --epochs 0                             # skip fine-tuning, use the LM unchanged

Reads   <data>/<task>/en/{train,dev}.tsv (formats: data/README.md) and a Hugging Face encoder.
Writes  <out>/encoder/, a plain Hugging Face folder, and <out>/embed.pt: labels, task and data root.
Expect  96 to 98% English dev accuracy on the toy data (majority class 50%), run times: tests/README.md."""

import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common import WORLD, UserError, as_labels, check_flags, describe_task, encode, load_english
from common import load_pretrained, make_optimizer, make_parser, pick_device, run, save_encoder, say
from common import shuffled, warn


@torch.random.fork_rng(devices=[])  # leave the CPU's random state as it was
def tune(encoder, texts, y, dev_texts, dev_y, epochs=3, lr=1e-4, batch=32, seed=0, dropout=0.1):
    """Fine-tune e(.) with a linear classifier on top, labels y (N,) (paper, Step 1). Keeps the best dev epoch,
    discards the classifier. Returns loss and dev accuracy per epoch. Word embeddings (English has few) stay frozen."""
    torch.manual_seed(seed)
    sizes = [len(texts), len(dev_texts)]  # together, so that both have the same classes
    y, dev_y = as_labels(np.concatenate([y, dev_y]), sum(sizes)).split(sizes)
    encoder.requires_grad_(True).lm.get_input_embeddings().requires_grad_(False)
    head = nn.Linear(encoder.dim, 1 + int(max(y.max(), dev_y.max())))
    model = nn.Sequential(encoder, nn.Dropout(dropout), head).to(encoder.lm.device)
    optimizer, schedule = make_optimizer(model.parameters(), lr, epochs * math.ceil(len(y) / batch))
    scaler = torch.amp.GradScaler(encoder.lm.device.type, enabled=encoder.autocast == torch.float16)
    generator, rows = torch.Generator().manual_seed(seed), encoder.tokenize(texts)
    model = nn.parallel.DistributedDataParallel(model, static_graph=True) if WORLD > 1 else model

    history, best, kept, encoder.digest = [], -1.0, encoder.state_dict(), ""  # "": a new LM
    for epoch in range(1, epochs + 1):
        model.train()
        encoder.eval()  # no dropout inside the LM: faster, and no worse on dev
        losses = []
        for i, inputs in shuffled(encoder, rows, batch, generator, f"epoch {epoch}/{epochs}"):
            loss = nn.functional.cross_entropy(model(inputs), y[i].to(encoder.lm.device))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        if not mean < float("inf"):
            raise UserError(f"the loss is {mean}; use a lower --lr than {lr:g}, or --amp off")
        dev_x = encode(encoder, dev_texts, progress="").to(encoder.lm.device)  # (M, D)
        accuracy = (head(dev_x).argmax(1).cpu() == dev_y).double().mean().item()
        history.append({"loss": mean, "dev": accuracy})
        if accuracy > best:
            best, kept = accuracy, copy.deepcopy(encoder.state_dict())
    encoder.load_state_dict(kept)
    return history


def main():
    p = make_parser(__doc__, step=1)
    flag = p.add_argument
    flag("--model", default="data/toy/encoder", help="hub name or folder (default: %(default)s)")
    flag("--data", default="data/toy", help="root of <task>/<lang>/*.tsv (default: data/toy)")
    flag("--task", default="sentiment", help="folder below --data (default: sentiment)")
    flag("--pool", choices=("mean", "cls"), default="mean", help="mean over tokens or first token")
    flag("--max-len", type=int, default=256, help="maximum tokens per text (default: 256)")
    flag("--epochs", type=int, default=3, help="training epochs (default: 3); 0 skips fine-tuning")
    flag("--lr", type=float, default=1e-4, help="peak learning rate (default: 1e-4)")
    flag("--batch", type=int, default=32, help="batch size (default: 32)")
    args = p.parse_args()

    check_flags(args)
    device, dtype, machine = pick_device(args)
    info = describe_task(args.data, args.task)
    texts, y, dev_texts, dev_y = load_english(info)
    encoder = load_pretrained(args.model, args.pool, args.max_len, texts).to(device)
    encoder.autocast, encoder.batch_tokens = dtype, args.batch_tokens
    try:
        encode(encoder, texts[:1], progress="")
    except RuntimeError as err:  # some models lack operators in 16 bits
        raise UserError(f"--model {args.model}: {err}; try --amp off")
    folder = Path(args.out, "encoder")
    if folder.exists() and not Path(args.out, "embed.pt").exists():
        raise UserError(f"{folder}: exists without embed.pt; delete it, or choose another --out")
    Path(args.out).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=args.out).close()  # fail now rather than after training

    counts = dict(zip(info["labels"], y.bincount().tolist()))
    say(f"step 1 | {machine} | {args.model}, {encoder.lm.num_parameters():,} parameters")
    say(f"{args.task}: {len(y)} English rows, labels {counts!s:.300}")
    overlap = len(set(texts) & set(dev_texts))
    say(f"{len(dev_y)} dev rows ({overlap} also in train)")
    if overlap > len(dev_y) / 10:
        warn("many dev rows are training rows; dev accuracy cannot choose the epoch")
    options = {"epochs": args.epochs, "lr": args.lr, "batch": args.batch, "seed": args.seed}
    history = tune(encoder, texts, y, dev_texts, dev_y, **options) if args.epochs else []
    save_encoder(encoder, args.out, info | options | {"history": history})

    majority = dev_y.bincount().max().item() / len(dev_y)
    for epoch, record in enumerate(history, 1):
        say("epoch {}: loss {loss:.3f}, English dev accuracy {dev:.2%}".format(epoch, **record))
    say(f"majority class {majority:.2%} -> {folder}")
    if history and max(record["dev"] for record in history) <= majority:
        warn("dev accuracy is not above the majority class; try another --lr or more rows")


if __name__ == "__main__":
    run(main)
