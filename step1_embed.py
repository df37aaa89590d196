"""Step 1 of LangAlign (arXiv 2503.18603), tuning for embedding: fine-tune the LM on the English task data.

    python step1_embed.py                                        # the toy world of data/toy.py, sentiment
    python step1_embed.py --model xlm-roberta-base --data data/real --task nli --out runs/nli
    python step1_embed.py --epochs 0                             # skip the tuning: keep the pretrained LM

Reads   <data>/<task>/en/{train,dev}.tsv (formats: data/README.md) and a Hugging Face encoder.
Writes  <out>/embed.pt: LM, tokenizer, labels, place of the data: later steps need no hub and no such flags.
Expect  on the toy world 92 to 94% of dev right (majority 50%) in 30 to 50 s on two cores of a Xeon or EPYC.
"""
import copy
import time
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from common import (RANK, WORLD, UserError, amount, encode, load_pretrained, load_task, load_train_dev,
                    make_parser, number, pad, pick_device, positive, run, save_encoder)

POOL_OF_BATCHES = 50   # batches whose rows are sorted by length together: little padding, still random order
DROPOUT = 0.1          # between embedding and labels

def use_rows(encoder, rows):
    """Cut the LM's word embeddings to the rows that tokenised `rows` use: a few thousand of XLM-R's 250,000.
    Exact: without decay AdamW leaves a row without gradient as it is. Returns what restores the table."""
    table = encoder.lm.get_input_embeddings()                # stays: its class may do more than look up
    full, padding = table.weight.detach(), table.padding_idx
    used = sorted(set().union(*(row["input_ids"] for row in rows)))                # the padding's is masked
    slot = torch.zeros(len(full), dtype=torch.int64)         # (V,): id -> row of the cut table
    slot[used] = torch.arange(len(used))
    table.weight, table.padding_idx = nn.Parameter(full[used]), None
    table.register_buffer("slot", slot, persistent=False)
    hook = table.register_forward_pre_hook(lambda module, inputs: module.slot[inputs[0]])

    def restore():
        full[used] = table.weight.detach().cpu()
        table.weight, table.padding_idx = nn.Parameter(full), padding
        hook.remove()
    return restore

def byte_dropout(x, p=0.5, training=True, inplace=False):
    """F.dropout with a random byte a unit, so p to 1/256: on a CPU torch's own takes a fifth of step 1."""
    bits = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(-2 ** 63, None)       # 8 bytes each
    kept = bits.view(torch.uint8)[:x.numel()].view(x.shape) >= round(256 * p)
    return x * (kept / (1 - round(256 * p) / 256)).to(x.dtype) if training else x

def train_epoch(model, rows, tokenizer, optimizer, schedule, scaler, generator, args, epoch):
    """One pass of cross-entropy in random batches of similar length; returns the mean loss, UserError if not
    finite. Under torchrun a rank takes its share of a batch, DistributedDataParallel averages gradients."""
    model.train()
    total = torch.zeros((), device=args.device)
    order = torch.randperm(len(rows), generator=generator).split(args.batch * POOL_OF_BATCHES)
    pools = [sorted(pool.tolist(), key=lambda i: len(rows[i]["input_ids"])) for pool in order]
    cut = [pool[i:i + args.batch] for pool in pools for i in range(0, len(pool), args.batch)]
    cut = [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
    bar = tqdm(cut, desc=f"epoch {epoch}/{args.epochs}", unit="step", delay=2, leave=False)
    for step, index in enumerate(bar, 1):
        mine = index[RANK::WORLD] or index[:1]               # a last batch may have fewer rows than ranks
        batch = pad([rows[i] for i in mine], tokenizer, args.device)
        labels = batch.pop("labels")                         # (B,)
        loss = F.cross_entropy(model(batch), labels)         # of logits (B, C)
        loss = loss * (len(index[RANK::WORLD]) * WORLD / len(index))     # the ranks' mean is the batch's
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        total += loss.detach()
        if step % 20 == 0 or step == len(cut):               # the loop's only host sync
            mean = total.item() / step
            if not mean < float("inf"):
                raise UserError(f"loss is {mean} by step {step}: lower --lr {args.lr:g}, or try --amp off")
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
    return mean

def tune(model, train, dev, args):
    """Fine-tune Sequential(e(.), dropout, linear to labels), a batch of `pad` -> logits (B, C), on tokenised
    rows, and leave the epoch of best accuracy on dev texts in it; returns one record an epoch."""
    encoder, (dev_texts, dev_y) = model[0], dev
    rows = [{**row, "labels": label} for row, label in zip(train[0], train[1].tolist())]
    restore = use_rows(encoder, rows + encoder.tokenize(dev_texts))
    model.to(args.device)
    encoder.amp, cpu = args.dtype, args.device.type == "cpu"
    if cpu:                                                  # SDPA's own dropout is slow there
        encoder.lm.set_attn_implementation("eager")
    trained = model if WORLD == 1 else nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(args.seed + RANK)                      # of dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, fused=True)
    steps = args.epochs * -(-len(rows) // args.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)       # then down to 0
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == torch.float16)
    parts = optimizer, schedule, scaler, torch.Generator().manual_seed(args.seed)
    history = []
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        with mock.patch.object(F, "dropout", byte_dropout if cpu else F.dropout):     # the LM's own, too
            loss = train_epoch(trained, rows, encoder.tokenizer, *parts, args, epoch)
        dev_x = encode(encoder, dev_texts, args.device, progress="dev")            # (M, D)
        guess = model[-1](dev_x.to(args.device)).argmax(1).cpu()
        accuracy, seconds = (guess == dev_y).double().mean().item(), time.perf_counter() - start
        print(f"epoch {epoch}: loss {loss:.3f}, dev accuracy {accuracy:.2%}, {seconds:.0f} s", flush=True)
        if accuracy > max((record["dev"] for record in history), default=-1):
            kept = copy.deepcopy(model.state_dict())
        history.append({"epoch": epoch, "loss": loss, "dev": accuracy, "seconds": seconds})
    model.load_state_dict(kept)
    model.cpu()
    restore()
    return history

def main(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--model", default="data/toy/encoder",
                   help="hub name or folder of an encoder (default: %(default)s; paper: xlm-roberta-base)")
    p.add_argument("--data", default="data/toy", help="root of <task>/<lang>/*.tsv (default: %(default)s)")
    p.add_argument("--task", default="sentiment", help="folder below --data (default: %(default)s)")
    p.add_argument("--pool", choices=("mean", "cls"), default="mean",
                   help="embedding of a text: mean over tokens (default) or first token (paper: unknown)")
    p.add_argument("--max-len", type=positive, default=256, help="most tokens of a text (ours: 256)")
    p.add_argument("--train-on", choices=("english", "native", "translated"), default="english",
                   help="rows to tune on; native, translated: baselines, with --lang, in their own --out")
    p.add_argument("--lang", help="target language of --train-on native or translated, e.g. ko")
    p.add_argument("--n", type=positive, help="rows for --train-on translated, else 20000, or all if fewer")
    p.add_argument("--epochs", type=number(0), default=3, help="passes (ours: 3); 0: the LM as it is")
    p.add_argument("--lr", type=amount, default=5e-5, help="peak learning rate (ours: 5e-5; small LM: 1e-4)")
    p.add_argument("--batch", type=positive, default=32, help="texts a step (ours: 32); memory grows with it")
    args = p.parse_args(argv)
    if (args.train_on == "english") == bool(args.lang) or args.n and args.train_on != "translated":
        raise UserError("--lang goes with --train-on native or translated, they need it; --n with the last")

    args.device, args.dtype, machine = pick_device(args)
    english, _, labels = load_task(args.data, args.task, "en", "train")
    train, dev = load_train_dev(args.data, args.task, args.lang or "en", labels, len(english[0]) == 2,
                                args.train_on == "translated", args.n)
    torch.manual_seed(args.seed)
    encoder = load_pretrained(args.model, args.pool, args.max_len)
    model = nn.Sequential(encoder, nn.Dropout(DROPOUT), nn.Linear(encoder.dim, len(labels)))
    rows = encoder.tokenize(train[0])
    print(f"step 1 | {machine} | {args.model}: {sum(p.numel() for p in encoder.parameters()) / 1e6:.1f}M "
          f"parameters, {encoder.pool} over at most {encoder.max_len} tokens | {args.task}: {len(rows)} "
          f"{args.train_on} rows, {len(dev[0])} dev, labels {' '.join(labels)} | "
          f"{args.epochs} epochs of {-(-len(rows) // args.batch)} steps", flush=True)
    start = time.perf_counter()
    history = tune(model, (rows, train[1]), dev, args) if args.epochs else []
    seconds, path = time.perf_counter() - start, Path(args.out, "embed.pt")
    save_encoder(path, encoder, args, data=args.data, task=args.task, labels=labels, history=history,
                 pair=len(english[0]) == 2, seconds=seconds)
    told = f"best dev accuracy {max(r['dev'] for r in history):.2%}" if history else "the LM as it is"
    print(f"{told}, majority class {dev[1].bincount().max() / len(dev[1]):.2%} -> {path} in {seconds:.0f} s")

if __name__ == "__main__":
    run(main)
