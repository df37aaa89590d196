"""Step 1 of LangAlign (arXiv 2503.18603), tuning for embedding: fine-tune the LM on the English task data.

    python step1_embed.py                                              # the toy world of data/toy.py, sentiment
    python step1_embed.py --model xlm-roberta-base --data data/real --task nli --out runs/nli
    python step1_embed.py --epochs 0                                   # skip the tuning: keep the pretrained LM

Reads   <data>/<task>/en/{train,dev}.tsv (formats: data/README.md) and a Hugging Face encoder.
Writes  <out>/embed.pt: LM, tokenizer, labels, where the data is. Steps 2, 3 and eval need no hub and no repeated flags.
        With --train-on native or translated: <out>/embed-native-<lang>.pt, for the baselines of step 3.
Expect  a dev accuracy well above the majority class's; the best epoch by dev accuracy is the one kept.
"""
import copy

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from common import (UserError, autocast, banner, encode, file_name, label_ids, load_pretrained, load_task,
                    load_train_dev, load_translated, make_parser, pad, pick_device, positive, run, save_encoder,
                    split_rows)

POOL_OF_BATCHES = 50       # batches whose rows are sorted by length together: little padding, still random order
WARMUP = 0.06              # share of the steps with rising learning rate
WEIGHT_DECAY = 0.01        # on weight matrices only, never on embeddings: see UsedRows
CLIP = 1.0                 # of the gradient's norm
DROPOUT = 0.1              # in front of the classifier, as in RoBERTa's


def get_args(argv=None):
    p = make_parser(__doc__)
    p.add_argument("--model", default="data/toy/encoder", help="Hugging Face encoder, hub name or folder; "
                   "paper: xlm-roberta-base")
    p.add_argument("--data", default="data/toy", help="data root, holds <task>/<lang>/*.tsv")
    p.add_argument("--task", default="sentiment", help="folder below --data")
    p.add_argument("--pool", choices=("mean", "cls"), default="mean",
                   help="embedding of a text: mean over its tokens or its first token (the paper does not say)")
    p.add_argument("--max-len", type=positive, default=256, help="tokens a text is cut to, if the encoder has as many")
    p.add_argument("--train-on", choices=("english", "native", "translated"), default="english",
                   help="rows to tune on; native and translated (with labels) are baselines and need --lang")
    p.add_argument("--lang", help="target language of --train-on native or translated, e.g. ko")
    p.add_argument("--n", type=positive, help="rows of --train-on translated; without it 20000, or all if fewer")
    p.add_argument("--epochs", type=int, default=3, help="passes over the rows, 0 keeps the pretrained LM (ours)")
    p.add_argument("--lr", type=float, default=5e-5, help="peak learning rate of AdamW (ours)")
    p.add_argument("--batch", type=positive, default=32, help="texts a step (ours)")
    args = p.parse_args(argv)
    if (args.train_on == "english") != (args.lang is None):
        raise UserError("--lang goes with --train-on native or translated, and they with it: "
                        "python step1_embed.py --train-on native --lang ko")
    return args


def load_rows(args):
    """((texts, y) train, (texts, y) dev, labels). Labels are the sorted set of the English training labels."""
    _, _, labels = load_task(args.data, args.task, "en", "train")
    if args.train_on != "translated":
        train, dev = load_train_dev(args.data, args.task, args.lang or "en", labels)
    else:
        _, texts, names = load_translated(args.data, args.task, args.lang, args.n)
        path = Path(args.data, args.task, args.lang, "translated.tsv")
        train, dev = split_rows(texts, label_ids(path, names, labels))
    return train, dev, labels


class UsedRows(nn.Module):
    """Word embeddings cut to the rows that the data uses: XLM-R has 250,000, a task a few thousand.

    Exact: an unused row gets no gradient, and embeddings get no weight decay, so AdamW would leave it as it is.
    """

    def __init__(self, full, used):
        super().__init__()
        self.full, self.used = [full], used                  # in a list: not a submodule, so not trained
        self.weight = nn.Parameter(full.weight.detach()[used].clone())            # (U, D)
        slot = torch.zeros(full.num_embeddings, dtype=torch.int64)
        slot[used] = torch.arange(len(used))
        self.register_buffer("slot", slot)                                        # (V,) id -> row of weight
        self.padding_idx = None if full.padding_idx is None else int(slot[full.padding_idx])

    def forward(self, input_ids):
        return F.embedding(self.slot[input_ids], self.weight, self.padding_idx)   # (B, T, D)

    @torch.no_grad()
    def restore(self):
        """The full table again, with the trained rows in it."""
        self.full[0].weight[self.used.to(self.full[0].weight.device)] = self.weight.to(self.full[0].weight.device)
        return self.full[0]


def use_rows(encoder, rows):
    """Swap the LM's word embeddings for those that the tokenised `rows` (and padding) use."""
    full = encoder.lm.get_input_embeddings()
    ids = {encoder.tokenizer.pad_token_id}.union(*(row["input_ids"] for row in rows))
    if full.padding_idx is not None:
        ids.add(full.padding_idx)
    encoder.lm.set_input_embeddings(UsedRows(full, torch.tensor(sorted(ids))))


def make_optimizer(model, lr, steps):
    """AdamW and its schedule: linear warm-up to `lr`, linear decay to 0. Decay on weight matrices only."""
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                                   {"params": others, "weight_decay": 0.0}], lr=lr, fused=True)
    warmup = max(1, int(WARMUP * steps))

    def factor(step):
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def bucketed(lengths, batch, generator):
    """Batches of row numbers for one epoch: random, but rows of a batch are of similar length."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pools = [order[i:i + batch * POOL_OF_BATCHES] for i in range(0, len(order), batch * POOL_OF_BATCHES)]
    pools = [sorted(pool, key=lengths.__getitem__) for pool in pools]
    cut = [pool[i:i + batch] for pool in pools for i in range(0, len(pool), batch)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]


def train_epoch(model, rows, y, optimizer, schedule, scaler, args, generator, epoch):
    """One pass of cross-entropy over the tokenised rows; returns the mean loss. UserError when it is not finite."""
    encoder, classifier = model
    model.train()
    device, dtype = args.device, args.dtype
    total, seen, shown = torch.zeros((), device=device), 0, 0
    cut = bucketed([len(row["input_ids"]) for row in rows], args.batch, generator)
    bar = tqdm(cut, desc=f"epoch {epoch}/{args.epochs}", unit="step", delay=2, leave=False)
    for step, index in enumerate(bar, 1):
        batch = pad([rows[i] for i in index], encoder.tokenizer.pad_token_id, device)
        with autocast(device, dtype):
            pooled = encoder(batch)                                              # (B, D)
        logits = classifier(F.dropout(pooled, DROPOUT))                          # (B, C), fp32
        loss = F.cross_entropy(logits, y[index].to(device))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        total, seen = total + loss.detach(), seen + 1
        if step % 20 == 0 or step == len(cut):                                   # the loop's only host sync
            mean = total.item() / seen
            if not np.isfinite(mean):
                raise UserError(f"loss is {mean} in epoch {epoch}, steps {shown + 1}-{step}; lower --lr {args.lr:g} "
                                f"or use --amp off")
            shown = step
            bar.set_postfix(loss=f"{mean:.3f}")
    return mean


def accuracy(model, texts, y, device, dtype):
    """Share of rows whose highest logit is the label's."""
    encoder, classifier = model
    with torch.no_grad():
        logits = classifier.cpu()(encode(encoder, texts, device, dtype, progress="dev"))       # (N, C)
    classifier.to(device)
    return (logits.argmax(1) == y).float().mean().item()


def tune(model, train, dev, args):
    """Fine-tune for args.epochs; leaves the best epoch by dev accuracy in `model`. Returns one record an epoch."""
    encoder, _ = model
    rows, (dev_texts, dev_y) = encoder.tokenize(train[0]), dev
    use_rows(encoder, rows + encoder.tokenize(dev_texts))
    model.to(args.device)
    steps = -(-len(rows) // args.batch) * args.epochs
    optimizer, schedule = make_optimizer(model, args.lr, steps)
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == torch.float16)
    generator, history, best = torch.Generator().manual_seed(args.seed), [], -1.0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(model, rows, train[1], optimizer, schedule, scaler, args, generator, epoch)
        acc = accuracy(model, dev_texts, dev_y, args.device, args.dtype)
        history.append({"epoch": epoch, "loss": loss, "dev": acc, "seconds": time.perf_counter() - start})
        print(f"epoch {epoch}: loss {loss:.3f}, dev accuracy {acc:.2%}, {history[-1]['seconds']:.0f} s")
        if acc > best:
            best, kept = acc, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    encoder.lm.set_input_embeddings(encoder.lm.get_input_embeddings().restore())
    return history


def main(argv=None):
    args = get_args(argv)
    args.device, args.dtype = pick_device(args)
    train, dev, labels = load_rows(args)
    seed_all(args.seed)
    encoder = load_pretrained(args.model, args.pool, args.max_len)
    model = nn.ModuleList([encoder, nn.Linear(encoder.dim, len(labels))])

    count = sum(p.numel() for p in encoder.parameters())
    banner("step 1", args.device, args.dtype, f"{args.model}: {count / 1e6:.1f}M parameters, {encoder.pool} of "
           f"{encoder.max_len} tokens", f"{args.task}: {len(train[0])} {args.train_on} rows, {len(dev[0])} dev, labels "
           f"{' '.join(labels)}", f"{args.epochs} epochs of {-(-len(train[0]) // args.batch)} steps")
    start = time.perf_counter()
    history = tune(model, train, dev, args) if args.epochs else []

    best = max(history, key=lambda record: record["dev"], default=None)
    majority = dev[1].bincount().max().item() / len(dev[1])
    config = {key: str(value) for key, value in vars(args).items()}
    name = file_name("embed", args.train_on if args.lang else "", args.lang, n=args.n)
    path = Path(args.out, name)
    save_encoder(path, encoder, data=args.data, task=args.task, labels=labels, pair=len(train[0][0]) == 2,
                 config=config, history=history, seed=args.seed, seconds=time.perf_counter() - start)
    told = f"best dev accuracy {best['dev']:.2%} (epoch {best['epoch']}), " if best else "pretrained LM kept, "
    print(f"{told}majority class {majority:.2%} -> {path} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run(main)
