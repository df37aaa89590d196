"""Step 1 of LangAlign (arXiv 2503.18603), tuning for embedding: fine-tune the LM on English task data.

    python step1_embed.py                                        # the toy world of data/toy.py
    python step1_embed.py --model xlm-roberta-base --data data/real --task nli --out runs/nli
    python step1_embed.py --epochs 0                             # skip the tuning: the LM as it is

Reads   <data>/<task>/en/{train,dev}.tsv (formats: data/README.md) and a Hugging Face encoder.
Writes  <out>/encoder/, a plain Hugging Face folder, and <out>/embed.pt: labels, task, place of data.
Expect  TODO
"""

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from common import RANK, UserError, describe_task, encode, encoder_digest, load_english
from common import load_pretrained, make_optimizer, make_parser, parallel, pick_device, run, save
from common import say, shuffled, warn_if

DROPOUT = 0.1  # between embedding and labels; ours


def check_rows(encoder, texts, rows, name):
    """UserError where training would fail: unknown text, or text that the LM has no room for."""
    special, unk = set(encoder.tokenizer.all_special_ids), encoder.tokenizer.unk_token_id
    known = sum(i not in special for row in rows for i in row["input_ids"])
    unknown = sum(row["input_ids"].count(unk) for row in rows)
    lengths = [len(row["input_ids"]) for row in rows]
    try:
        if known < max(len(rows), unknown):
            raise ValueError(f"{known} known and {unknown} unknown tokens; no tokenizer files?")
        encode(encoder, [texts[0], texts[lengths.index(max(lengths))]])
    except (IndexError, RuntimeError, TypeError, ValueError) as err:
        why = f"{type(encoder.lm).__name__} fails on texts of up to {max(lengths)} tokens: {err}"
        raise UserError(f"--model {name}: {why}")


def tune(encoder, texts, y, dev_texts, dev_y, epochs=3, lr=5e-5, batch=32, seed=0):
    """Fine-tune e(.) through a linear layer to the labels y (N,), cross-entropy (paper, Step 1). Leaves
    the epoch of the best dev accuracy in the encoder; returns a record an epoch."""
    torch.manual_seed(seed)
    # Frozen, the words that never occur in English stay what the other languages know.
    encoder.lm.get_input_embeddings().requires_grad_(False)
    head = nn.Linear(encoder.dim, int(y.max()) + 1)
    model = parallel(nn.Sequential(encoder, nn.Dropout(DROPOUT), head).to(encoder.lm.device))
    weights = [p for p in model.parameters() if p.requires_grad]
    steps = -(-len(y) // batch)  # an epoch
    optimizer, schedule = make_optimizer(weights, lr, epochs * steps)
    scaler = torch.amp.GradScaler(encoder.lm.device.type, enabled=encoder.autocast == torch.float16)
    generator, rows = torch.Generator().manual_seed(seed), encoder.tokenize(texts)

    history, best = [], -1.0
    for epoch in range(1, epochs + 1):
        model.train()
        encoder.eval()  # no dropout inside the LM: faster, and no worse on dev rows
        total = 0.0
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
            total += loss.detach()
        mean = float(total) / steps
        if not mean < float("inf"):
            raise UserError(f"the loss is {mean}: lower --lr {lr:g}, or try --amp off")
        dev_x = encode(encoder, dev_texts, progress="dev").to(encoder.lm.device)  # (M, D)
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
    encoder.autocast = dtype
    rows = encoder.tokenize(texts)
    check_rows(encoder, texts, rows, args.model)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=args.out).close()  # a read-only folder fails now, not after training

    counts = dict(zip(info["labels"], y.bincount().tolist()))
    size = sum(p.numel() for p in encoder.parameters()) / 1e6
    say(f"step 1 | {machine} | {args.model}, {size:.1f}M parameters, {args.epochs} epochs")
    say(f"{args.task}: {len(y)} English rows, labels {counts}; {len(dev_y)} dev rows")
    cut = sum(len(row["input_ids"]) >= encoder.max_len for row in rows)
    if cut:
        say(f"{cut} texts have more than {encoder.max_len} tokens: only their beginning is read")

    options = {"epochs": args.epochs, "lr": args.lr, "batch": args.batch, "seed": args.seed}
    history = tune(encoder, texts, y, dev_texts, dev_y, **options) if args.epochs else []
    info |= {"pool": args.pool, "max_len": encoder.max_len, "history": history, **options}
    folder, fresh = Path(args.out, "encoder"), Path(args.out, ".encoder.tmp")
    if RANK == 0:
        shutil.rmtree(fresh, ignore_errors=True)
        encoder.tokenizer.model_max_length = encoder.max_len
        try:
            encoder.tokenizer.save_pretrained(fresh)
            encoder.lm.save_pretrained(fresh)
        except Exception as err:  # of a full disk: each library raises its own
            shutil.rmtree(fresh, ignore_errors=True)
            raise UserError(f"{fresh}: {err}; make room or choose another --out")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        info["lm"] = encoder_digest(folder, info)
    save(Path(args.out, "embed.pt"), "embed", **info)  # last: it says that the folder is whole

    majority = (dev_y.bincount().max() / len(dev_y)).item()
    for epoch, record in enumerate(history, 1):
        say("epoch {}: loss {loss:.3f}, English dev accuracy {dev:.2%}".format(epoch, **record))
    say(f"majority class {majority:.2%} -> {args.out}/encoder")
    learned = [record for record in history if record["dev"] > majority]
    words = f"the LM learned nothing from {len(y)} rows: try another --lr, or more rows"
    warn_if(history and not learned, words)


if __name__ == "__main__":
    run(main)
