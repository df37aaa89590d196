"""Step 1 of LangAlign (arXiv 2503.18603), tuning for embedding: fine-tune the LM on English task data.

    python step1_embed.py                                        # the toy world of data/toy.py
    python step1_embed.py --model xlm-roberta-base --data data/real --task nli --out runs/nli
    python step1_embed.py --epochs 0                             # skip the tuning: the LM as it is

Reads   <data>/<task>/en/{train,dev}.tsv (formats: data/README.md) and a Hugging Face encoder.
Writes  <out>/encoder/, a plain Hugging Face folder, and <out>/embed.pt: labels, task, place of the data.
Expect  TODO
"""

import copy
import shutil
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from common import (
    RANK,
    WORLD,
    UserError,
    barrier,
    encode,
    encoder_digest,
    load_pretrained,
    load_train_dev,
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
    warn,
)

DROPOUT = 0.1  # between embedding and labels; ours
WARM_UP = 0.06  # share of the steps in which the learning rate rises; then it falls to 0; ours


def check_texts(encoder, rows, name):
    """UserError unless the tokenizer knows most of the tokenised texts and the LM takes the longest
    and the shortest of them in one batch: what would fail in the middle of training fails here."""
    tokenizer, kind = encoder.tokenizer, type(encoder.lm).__name__
    special = set(tokenizer.all_special_ids)
    unknown = [sum(i == tokenizer.unk_token_id for i in row["input_ids"]) for row in rows]
    content = [sum(i not in special for i in row["input_ids"]) for row in rows]
    if sum(content) < len(rows) or sum(unknown) > sum(content):
        raise UserError(
            f"--model {name}: its tokenizer ({type(tokenizer).__name__}, at most {encoder.max_len} tokens) "
            f"knows {sum(content)} of {sum(content) + sum(unknown)} tokens of the training text; are "
            "tokenizer.json and tokenizer_config.json, or the vocabulary's files, missing beside the weights?"
        )
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    try:
        with torch.no_grad():
            ok = encoder(pad([rows[0], rows[-1]], tokenizer, encoder.device)).isfinite().all()
        why = "" if ok else "its embeddings are not finite"
    except (IndexError, RuntimeError, ValueError, TypeError) as err:
        why = f"{str(err).splitlines()[0][:100]} (a token, type or position that the LM has no row for?)"
    if why:
        raise UserError(
            f"--model {name}: {kind} fails on {len(rows[-1]['input_ids'])} tokens: {why}"
        )


def tune(encoder, texts, y, dev_texts, dev_y, epochs=3, lr=5e-5, batch=32, seed=0):
    """Fine-tune e(.) through a linear layer to the labels, cross-entropy on English (paper, Step 1).

    y (N,) int64. Leaves the epoch of best dev accuracy in the encoder; returns one record an epoch.
    Raises UserError if the loss is not finite."""
    torch.manual_seed(seed)
    classes = int(y.max()) + 1
    model = nn.Sequential(encoder, nn.Dropout(DROPOUT), nn.Linear(encoder.dim, classes))
    model.to(encoder.device).requires_grad_(True)
    # Most rows of a multilingual table never occur in English: frozen, it stays as the other languages
    # know it, and the optimizer keeps no state for it.
    encoder.lm.get_input_embeddings().requires_grad_(False)
    trained = parallel(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, fused=True)
    steps = epochs * -(-len(y) // batch)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARM_UP * steps), steps)
    scaler = torch.amp.GradScaler(encoder.device.type, enabled=encoder.autocast == torch.float16)
    generator = torch.Generator().manual_seed(seed)
    rows = encoder.tokenize(texts)
    lengths = [len(row["input_ids"]) for row in rows]

    history, best = [], -1.0
    for epoch in range(1, epochs + 1):
        model.train()
        start, total = time.perf_counter(), 0.0
        cut = random_batches(lengths, batch, generator)
        for index in tqdm(
            cut, desc=f"epoch {epoch}/{epochs}", delay=2, leave=False, disable=RANK > 0
        ):
            mine = index[RANK::WORLD] or index[:1]  # a last batch may have fewer rows than ranks
            inputs = pad([rows[i] for i in mine], encoder.tokenizer, encoder.device)
            loss = F.cross_entropy(trained(inputs), y[mine].to(encoder.device))  # logits (B, C)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(weights, 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            total += loss.detach()
        loss = float(total) / len(cut)
        if not loss < float("inf"):
            raise UserError(f"loss is {loss} in epoch {epoch}: lower --lr {lr:g}, or try --amp off")
        guess = model[-1](encode(encoder, dev_texts).to(encoder.device)).argmax(1).cpu()  # (M,)
        accuracy = (guess == dev_y).double().mean().item()
        history.append({"loss": loss, "dev": accuracy, "seconds": time.perf_counter() - start})
        if accuracy > best:
            best, kept = accuracy, copy.deepcopy(encoder.state_dict())
    if history:
        encoder.load_state_dict(kept)
    return history


def main():
    p = make_parser(__doc__)
    p.add_argument(
        "--model",
        default="data/toy/encoder",
        help="hub name or folder of an encoder (default: %(default)s; paper: xlm-roberta-base)",
    )
    p.add_argument(
        "--data", default="data/toy", help="root of <task>/<lang>/*.tsv (default: %(default)s)"
    )
    p.add_argument("--task", default="sentiment", help="folder below --data (default: %(default)s)")
    p.add_argument(
        "--pool",
        choices=("mean", "cls"),
        default="mean",
        help="embedding of a text: mean over tokens (default) or first token (paper: unknown)",
    )
    p.add_argument(
        "--max-len",
        type=positive,
        default=256,
        help="tokens of a text, longer ones are cut (ours: 256)",
    )
    p.add_argument(
        "--epochs", type=number(int, 0), default=3, help="passes (ours: 3); 0: the LM as it is"
    )
    p.add_argument(
        "--lr",
        type=number(float, 0),
        default=5e-5,
        help="peak learning rate (ours: 5e-5; small LM: 1e-4)",
    )
    p.add_argument(
        "--batch", type=positive, default=32, help="texts a step (ours: 32); memory grows with it"
    )
    args = p.parse_args()

    device, dtype, machine = pick_device(args)
    texts, y, dev_texts, dev_y, labels = load_train_dev(args.data, args.task, "en")
    encoder = load_pretrained(args.model, args.pool, args.max_len)
    rows = encoder.tokenize(texts)
    check_texts(encoder, rows, args.model)
    encoder.to(device).autocast = dtype
    Path(args.out).mkdir(parents=True, exist_ok=True)

    counts = Counter(labels[i] for i in y.tolist())
    cut = sum(len(row["input_ids"]) >= encoder.max_len for row in rows)
    say(
        f"step 1 | {machine} | {args.model}: {sum(p.numel() for p in encoder.parameters()) / 1e6:.1f}M parameters, {args.pool} over at most {encoder.max_len} tokens | {args.task}: {len(y)} English rows, {len(dev_y)} dev, labels {', '.join(f'{label!r} {counts[label]}' for label in labels)} | {args.epochs} epochs of {-(-len(y) // args.batch)} steps"
    )
    if cut:
        say(
            f"{cut} of {len(rows)} texts are longer than {encoder.max_len} tokens: only their beginning is read"
        )
    start = time.perf_counter()
    history = tune(encoder, texts, y, dev_texts, dev_y, args.epochs, args.lr, args.batch, args.seed)
    for epoch, record in enumerate(history, 1):
        say(
            "epoch {}: loss {loss:.3f}, English dev accuracy {dev:.2%}, {seconds:.0f} s".format(
                epoch, **record
            )
        )

    info = dict(
        task=args.task,
        data=args.data,
        labels=labels,
        pool=args.pool,
        max_len=encoder.max_len,
        pair=len(texts[0]) == 2,
        seed=args.seed,
        history=history,
        model=args.model,
    )
    folder, fresh = Path(args.out, "encoder"), Path(args.out, ".encoder.tmp")
    if RANK == 0:
        shutil.rmtree(fresh, ignore_errors=True)
        encoder.tokenizer.model_max_length = encoder.max_len
        encoder.lm.save_pretrained(fresh)
        encoder.tokenizer.save_pretrained(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    barrier()
    save(Path(args.out, "embed.pt"), "embed", lm=encoder_digest(folder, info), **info)
    best, majority = (
        max((r["dev"] for r in history), default=None),
        (dev_y.bincount().max() / len(dev_y)).item(),
    )
    told = f"best dev accuracy {best:.2%}" if history else "the LM as it is"
    say(f"{told}, majority class {majority:.2%} -> {folder} in {time.perf_counter() - start:.0f} s")
    if history and best <= majority:
        warn(
            f"the LM learned nothing: dev accuracy {best:.2%}, majority class {majority:.2%}; try --lr, or more rows"
        )


if __name__ == "__main__":
    run(main)
