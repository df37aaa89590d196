"""Step 1 of LangAlign (arXiv 2503.18603), tuning for embedding: fine-tune the LM on English task data.

    python step1_embed.py                                        # the toy world of data/toy.py
    python step1_embed.py --model xlm-roberta-base --data data/real --task nli --out runs/nli
    python step1_embed.py --epochs 0                             # skip the tuning: the LM as it is

Reads   <data>/<task>/en/{train,dev}.tsv (formats: data/README.md) and a Hugging Face encoder.
Writes  <out>/encoder/, a plain Hugging Face folder, and <out>/embed.pt: labels, task, place of data.
Expect  98 to 99% of the toy world's English dev rows right, majority class 50%; seconds: tests/README.md.
"""

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from common import RANK, UserError, average_gradients, describe_task, encode, encoder_digest
from common import load_english, load_pretrained, make_optimizer, make_parser, pick_device, run
from common import save, say, shuffled, warn_if


def tune(encoder, texts, y, dev_texts, dev_y, epochs=3, lr=5e-5, batch=32, seed=0, dropout=0.1):
    """Fine-tune e(.) with a linear classifier on top, labels y (N,) (paper, Step 1). Keeps the best dev epoch."""
    torch.manual_seed(seed)
    for table in encoder.lm.modules():  # word embeddings (ours): other languages' stay as they are
        if isinstance(table, nn.Embedding) and table.num_embeddings >= len(encoder.tokenizer):
            table.requires_grad_(False)
    head = nn.Linear(encoder.dim, int(y.max()) + 1)
    model = nn.Sequential(encoder, nn.Dropout(dropout), head).to(encoder.lm.device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer, schedule = make_optimizer(weights, lr, epochs * -(-len(y) // batch))
    scaler = torch.amp.GradScaler(encoder.lm.device.type, enabled=encoder.autocast == torch.float16)
    generator, rows = torch.Generator().manual_seed(seed), encoder.tokenize(texts)
    model = average_gradients(model)  # of several GPUs
    history, best, kept = [], -1.0, encoder.state_dict()
    for epoch in range(1, epochs + 1):
        model.train()
        encoder.eval()  # only the classifier's dropout: faster, and no worse on dev rows
        losses = []
        for i, inputs in shuffled(encoder, rows, batch, generator, f"epoch {epoch}/{epochs}"):
            logits = model(inputs)  # (B, C)
            loss = nn.functional.cross_entropy(logits, y[i].to(logits.device))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(weights, 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        if not mean < float("inf"):
            raise UserError(f"the loss is {mean}: lower --lr {lr:g}, or try --amp off")
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
    flag("--model", default="data/toy/encoder", help="hub name or folder; paper: xlm-roberta-base")
    flag("--data", default="data/toy", help="root of <task>/<lang>/*.tsv (default: data/toy)")
    flag("--task", default="sentiment", help="folder below --data (default: sentiment)")
    flag("--pool", choices=("mean", "cls"), default="mean", help="of tokens, or the first token")
    flag("--max-len", type=int, default=256, help="tokens; longer text is cut (ours: 256)")
    flag("--epochs", type=int, default=3, help="passes (ours: 3); 0: the LM as it is")
    flag("--lr", type=float, default=5e-5, help="peak rate (ours: 5e-5; small LMs: 1e-4)")
    flag("--batch", type=int, default=32, help="texts a step (ours: 32); memory grows")
    args = p.parse_args()

    device, dtype, machine = pick_device(args)
    info = describe_task(args.data, args.task)
    texts, y, dev_texts, dev_y = load_english(info)
    encoder = load_pretrained(args.model, args.pool, args.max_len).to(device)
    encoder.autocast, encoder.batch_tokens = dtype, args.batch_tokens
    rows = [row["input_ids"] for row in encoder.tokenize(texts)]
    lengths = [len(row) for row in rows]
    unknown = sum(row.count(encoder.tokenizer.unk_token_id) for row in rows)
    try:  # what would fail in the middle of the training fails here
        if max(lengths) < 3 or 2 * unknown > sum(lengths):
            raise ValueError(f"{unknown} tokens of {sum(lengths)} unknown; no tokenizer.json?")
        encode(encoder, [texts[lengths.index(max(lengths))]], progress="")
    except (RuntimeError, TypeError, ValueError, IndexError) as err:
        why = f"{type(encoder.lm).__name__} fails on texts of up to {max(lengths)} tokens: {err}"
        raise UserError(f"--model {args.model}: {why}")
    folder, fresh = Path(args.out, "encoder"), Path(args.out, ".encoder.tmp")
    if folder.exists() and not Path(args.out, "embed.pt").exists():
        raise UserError(f"{folder}: not of step 1, which replaces it; choose another --out")
    Path(args.out).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=args.out).close()  # a read-only folder fails now, not after training
    counts = str(dict(zip(info["labels"], y.bincount().tolist())))[:300]
    say(f"step 1 | {machine} | {args.model}, {encoder.lm.num_parameters():,} parameters")
    say(f"{args.task}: {len(y)} English rows, labels {counts}")
    say(f"{len(dev_y)} dev rows, {len(set(texts) & set(dev_texts))} of them training rows, too")
    full = sum(length >= encoder.max_len for length in lengths)
    warn_if(full, f"{full} texts fill {encoder.max_len} tokens: any rest is not read")
    options = {"epochs": args.epochs, "lr": args.lr, "batch": args.batch, "seed": args.seed}
    history = tune(encoder, texts, y, dev_texts, dev_y, **options) if args.epochs else []
    info |= {"pool": args.pool, "max_len": encoder.max_len, "history": history, **options}
    if RANK == 0:
        shutil.rmtree(fresh, ignore_errors=True)  # of a killed run
        encoder.tokenizer.model_max_length = encoder.max_len
        try:
            encoder.tokenizer.save_pretrained(fresh)
            encoder.lm.save_pretrained(fresh)
        except Exception as err:  # of a full disk: each library raises its own
            raise UserError(f"{fresh}: {err}; make room or choose another --out")
        info["lm"] = encoder_digest(fresh, info)
    save(Path(args.out, "embed.pt"), "embed", **info)
    if RANK == 0:  # last: the folder is whole when its files are those that embed.pt names
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    majority = (dev_y.bincount().max() / len(dev_y)).item()
    for epoch, record in enumerate(history, 1):
        say("epoch {}: loss {loss:.3f}, English dev accuracy {dev:.2%}".format(epoch, **record))
    say(f"majority class {majority:.2%} -> {args.out}/encoder")
    best = max((record["dev"] for record in history), default=1.0)
    warn_if(best <= majority, f"the LM learned nothing from {len(y)} rows: try --lr, or more rows")


if __name__ == "__main__":
    run(main)
