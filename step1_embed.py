"""Step 1 of LangAlign (arXiv 2503.18603), tuning for embedding: fine-tune the LM on the English task data.

    python step1_embed.py                                        # the toy world of data/toy.py, sentiment
    python step1_embed.py --model xlm-roberta-base --data data/real --task nli --out runs/nli
    python step1_embed.py --epochs 0                             # skip the tuning: keep the pretrained LM
    torchrun --nproc_per_node=8 step1_embed.py --model ...       # one process a GPU, --batch over all

Reads   <data>/<task>/en/{train,dev}.tsv (formats: data/README.md) and a Hugging Face encoder.
Writes  <out>/embed.pt: LM, tokenizer, labels and where the data is, so that the later steps need no hub and
        no repeated flags. For a baseline LM (--train-on) give a run folder of its own: --out runs/native-ko.
Expect  a dev accuracy well above the majority class's; the epoch with the best is the one kept.
"""
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common import (RANK, WORLD, UserError, encode, load_pretrained, load_task, load_train_dev, make_parser,
                    move, number, pad, pick_device, positive, run, save_encoder)

POOL_OF_BATCHES = 50   # batches whose rows are sorted by length together: little padding, still random order
WARMUP = 0.06          # share of the steps with rising learning rate
WEIGHT_DECAY = 0.01    # on weight matrices only, never on embeddings: see use_rows
CLIP = 1.0             # of the gradient's norm
DROPOUT = 0.1          # in front of the classifier

def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--model", default="data/toy/encoder",
                   help="Hugging Face encoder, hub name or folder; paper: xlm-roberta-base")
    p.add_argument("--data", default="data/toy", help="data root, holds <task>/<lang>/*.tsv")
    p.add_argument("--task", default="sentiment", help="folder below --data")
    p.add_argument("--pool", choices=("mean", "cls"), default="mean",
                   help="embedding of a text: mean over its tokens or its first token (paper: not known)")
    p.add_argument("--max-len", type=positive, default=256, help="tokens a text is cut to (ours)")
    p.add_argument("--train-on", choices=("english", "native", "translated"), default="english",
                   help="rows to tune on; native and translated (with labels) are baselines and need --lang")
    p.add_argument("--lang", help="target language of --train-on native or translated, e.g. ko")
    p.add_argument("--n", type=positive, help="rows of --train-on translated, else 20000, or all if fewer")
    p.add_argument("--epochs", type=number(int, 0, float("inf"), "a whole number from 0"), default=3,
                   help="passes over the rows (ours); 0: LM as it is")
    p.add_argument("--lr", type=float, default=5e-5,
                   help="peak learning rate of AdamW (ours); less if loss jumps")
    p.add_argument("--batch", type=positive, default=32, help="texts a step (ours); less if memory runs out")
    args = p.parse_args(argv)
    if (args.train_on == "english") == bool(args.lang) or args.n and args.train_on != "translated":
        raise UserError("--lang goes with --train-on native or translated and they with it, --n with the "
                        "last, for example: python step1_embed.py --train-on native --lang ko")
    return args

class Classifier(nn.Module):
    """What step 1 tunes: e(.) and a linear layer to the labels. A batch of `pad` -> logits (B, C)."""
    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder, self.linear = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, batch):
        return self.linear(F.dropout(self.encoder(batch), DROPOUT, self.training))

def use_rows(encoder, rows):
    """Cut the LM's word embeddings to the rows that tokenised `rows` use: a few thousand of XLM-R's 250,000.

    Exact: an unused row gets no gradient, and embeddings get no weight decay, so AdamW leaves it as it is.
    Returns a function that puts the full table back, with the trained rows in it.
    """
    full = encoder.lm.get_input_embeddings()
    used = {encoder.tokenizer.pad_token_id, full.padding_idx or 0}
    used = sorted(used.union(*(row["input_ids"] for row in rows)))
    slot = torch.zeros(full.num_embeddings, dtype=torch.int64)                     # (V,): id -> row of cut
    slot[used] = torch.arange(len(used))
    padding = None if full.padding_idx is None else int(slot[full.padding_idx])
    cut = nn.Embedding.from_pretrained(full.weight.detach()[used], freeze=False, padding_idx=padding)
    cut.register_buffer("slot", slot)
    cut.register_forward_pre_hook(lambda module, inputs: module.slot[inputs[0]])
    encoder.lm.set_input_embeddings(cut)

    def restore():
        full.weight.data[used] = cut.weight.detach().cpu()
        encoder.lm.set_input_embeddings(full)
    return restore

def make_optimizer(model, lr, steps):
    """AdamW and its schedule: linear warm-up to `lr`, then linear decay to 0."""
    groups = {True: [], False: []}
    for name, p in model.named_parameters():
        groups[p.ndim > 1 and "embed" not in name].append(p)
    optimizer = torch.optim.AdamW([{"params": groups[True], "weight_decay": WEIGHT_DECAY},
                                   {"params": groups[False], "weight_decay": 0.0}], lr=lr, fused=True)
    warmup = max(1, int(WARMUP * steps))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))

def bucketed(lengths, batch, generator):
    """Row numbers in batches for one epoch: in random order, but rows of one batch of similar length."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pools = [order[i:i + batch * POOL_OF_BATCHES] for i in range(0, len(order), batch * POOL_OF_BATCHES)]
    pools = [sorted(pool, key=lengths.__getitem__) for pool in pools]
    cut = [pool[i:i + batch] for pool in pools for i in range(0, len(pool), batch)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]

def train_epoch(model, rows, y, optimizer, schedule, scaler, generator, args, epoch):
    """One pass of cross-entropy over the tokenised rows; returns the mean loss, UserError if not finite.
    Under torchrun a rank takes its share of each batch, and DistributedDataParallel averages gradients."""
    model.train()
    total = torch.zeros((), device=args.device)
    cut = bucketed([len(row["input_ids"]) for row in rows], args.batch, generator)
    bar = tqdm(cut, desc=f"epoch {epoch}/{args.epochs}", unit="step", delay=2, leave=False)
    for step, index in enumerate(bar, 1):
        mine = index[RANK::WORLD] or index[:1]               # a last batch may have fewer rows than ranks
        logits = model(pad([rows[i] for i in mine], args.pad_id, args.device))     # (B, C)
        loss = F.cross_entropy(logits, move(y[mine], args.device))
        loss = loss * (len(index[RANK::WORLD]) * WORLD / len(index))     # the ranks' mean is the batch's
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        total += loss.detach()
        if step % 20 == 0 or step == len(cut):               # the loop's only host sync
            mean = total.item() / step
            if not np.isfinite(mean):
                raise UserError(f"loss is {mean} by step {step} of epoch {epoch}; lower --lr {args.lr:g}, "
                                "or try --amp off")
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
    return mean

def tune(model, train, dev, args):
    """Fine-tune a Classifier and leave the epoch of best dev accuracy in it; returns one record an epoch."""
    encoder, (texts, y), (dev_texts, dev_y) = model.encoder, train, dev
    rows = encoder.tokenize(texts)
    restore = use_rows(encoder, rows + encoder.tokenize(dev_texts))
    model.to(args.device)
    encoder.amp, args.pad_id = args.dtype, encoder.tokenizer.pad_token_id
    trained = model if WORLD == 1 else DistributedDataParallel(model)
    if RANK:
        torch.manual_seed(args.seed + RANK)                  # other dropout than rank 0's
    optimizer, schedule = make_optimizer(model, args.lr, args.epochs * -(-len(rows) // args.batch))
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == torch.float16)
    generator, history, best = torch.Generator().manual_seed(args.seed), [], -1.0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(trained, rows, y, optimizer, schedule, scaler, generator, args, epoch)
        with torch.no_grad():
            dev_x = encode(encoder, dev_texts, args.device, progress="dev")        # (M, D)
            accuracy = (model.linear(dev_x.to(args.device)).argmax(1).cpu() == dev_y).double().mean().item()
        seconds = time.perf_counter() - start
        history.append({"epoch": epoch, "loss": loss, "dev": accuracy, "seconds": seconds})
        print(f"epoch {epoch}: loss {loss:.3f}, dev accuracy {accuracy:.2%}, {seconds:.0f} s", flush=True)
        if accuracy > best:
            best, kept = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    model.cpu()
    restore()
    return history

def main(argv=None):
    args = get_args(argv)
    args.device, args.dtype, machine = pick_device(args)
    english, _, labels = load_task(args.data, args.task, "en", "train")
    train, dev = load_train_dev(args.data, args.task, args.lang or "en", labels, len(english[0]) == 2,
                                args.train_on == "translated", args.n)
    torch.manual_seed(args.seed)
    encoder = load_pretrained(args.model, args.pool, args.max_len)
    model = Classifier(encoder, len(labels))
    print(f"step 1 | {machine} | {args.model}: {sum(p.numel() for p in encoder.parameters()) / 1e6:.1f}M "
          f"parameters, {encoder.pool} over at most {encoder.max_len} tokens | {args.task}: {len(train[0])} "
          f"{args.train_on} rows, {len(dev[0])} dev, labels {' '.join(labels)} | {args.epochs} epochs of "
          f"{-(-len(train[0]) // args.batch)} steps", flush=True)

    start = time.perf_counter()
    history = tune(model, train, dev, args) if args.epochs else []
    path = Path(args.out, "embed.pt")
    save_encoder(path, encoder, args, data=args.data, task=args.task, labels=labels, history=history,
                 pair=len(train[0][0]) == 2, seconds=time.perf_counter() - start)
    best = max((record["dev"] for record in history), default=None)
    told = "the pretrained LM as it is" if best is None else f"best dev accuracy {best:.2%}"
    majority = dev[1].bincount().max().item() / len(dev[1])
    print(f"{told}, majority class {majority:.2%} -> {path} in {time.perf_counter() - start:.0f} s")
    if best is not None and best <= majority:
        print("warning: the LM learned nothing, dev accuracy is the majority's or less; give more rows")

if __name__ == "__main__":
    run(main)
