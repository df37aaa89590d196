"""The peers of bench.py: what runs another library's code. Each library is imported only when it is used.

sentence-transformers: the same encoder as a SentenceTransformer, and `--peer`, its multilingual distillation
(Reimers & Gurevych 2020; the recipe of its make_multilingual example) beside our english and fc heads.
accelerate: Hugging Face Trainer, on step 1's task.
Shapes as in common.py: N rows, B batch, D embedding width, C labels, S head seeds.
"""

import contextlib
import copy
import importlib.util
import io
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers

import common
import eval as evaluation
import step1_embed
import step2_align
import step3_head
from common import UserError, encode, load_encoder, load_task, load_train_dev, load_translated

DEFAULT = 32  # SentenceTransformer.encode's batch_size
RECIPE = dict(learning_rate=2e-5, per_device_train_batch_size=32)  # of --peer, make_multilingual's
WARMUP = 0.1  # its share of steps with rising learning rate
SAME = 1e-4  # embeddings of two libraries differ by less, or comparing them means nothing


def has(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


def quiet():
    """Keep the output of a script that runs inside the benchmark, and its bars, off the screen."""
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    return stack


# sentence-transformers
def peer_model(encoder, device):
    """The same LM, tokenizer and pooling as a SentenceTransformer with weights of its own, in fp32."""
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:  # before version 6
        from sentence_transformers.models import Pooling, Transformer
    with tempfile.TemporaryDirectory() as folder, quiet():
        encoder.lm.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        modules = [Transformer(folder, max_seq_length=encoder.max_len)]
        modules.append(Pooling(encoder.dim, pooling_mode=encoder.pool))
        return SentenceTransformer(modules=modules, device=str(device))


def peer_texts(texts):
    """Texts as the peer takes them: a string, or [text, text_b], which it tokenizes as one pair."""
    return [text[0] if len(text) == 1 else list(text) for text in texts]


def peer_encode(model, texts, batch, device, dtype=None):
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        return torch.as_tensor(
            model.encode(peer_texts(texts), batch_size=batch, show_progress_bar=False)
        )


def check_same(encoder, model, texts, device):
    """UserError unless the peer's fp32 embeddings of `texts` are ours."""
    gap = (
        (encode(encoder, texts, device) - peer_encode(model, texts, DEFAULT, device))
        .abs()
        .max()
        .item()
    )
    if not gap < SAME:
        raise UserError(
            f"sentence-transformers' embeddings differ from ours by {gap:.1e}, not by less than "
            f"{SAME:g}: nothing to compare; report the encoder and the library's version"
        )
    print(f"  {len(texts)} embeddings equal sentence-transformers', largest difference {gap:.1e}")


# Trainer
class Classifier(nn.Module):
    """Step 1's model with the interface that Trainer wants."""

    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, labels, **batch):
        out = self.head(
            F.dropout(self.encoder(batch), step1_embed.DROPOUT, self.training)
        )  # (B, C)
        return {"loss": F.cross_entropy(out, labels), "logits": out}


def trainer(data, encoder, own):
    """Dev accuracy after Hugging Face Trainer with its default optimizer, batches grouped by length."""
    torch.manual_seed(0)
    encoder = copy.deepcopy(encoder).requires_grad_(True)
    rows = [
        [{**row, "labels": int(label)} for row, label in zip(encoder.tokenize(texts), y)]
        for texts, y in data
    ]
    group = {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" not in transformers.TrainingArguments.__dataclass_fields__:
        group = {"group_by_length": True}  # transformers 4
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=own.batch,
            learning_rate=own.lr,
            num_train_epochs=own.epochs,
            use_cpu=own.device.type == "cpu",
            bf16=own.dtype == torch.bfloat16,
            fp16=own.dtype == torch.float16,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            **group,
        )
        loop = transformers.Trainer(
            Classifier(encoder, own.classes),
            settings,
            train_dataset=rows[0],
            eval_dataset=rows[1],
            data_collator=transformers.DataCollatorWithPadding(encoder.tokenizer),
            compute_metrics=lambda out: {
                "dev": float((out.predictions.argmax(1) == out.label_ids).mean())
            },
        )
        loop.train()
    return [record["eval_dev"] for record in loop.state.log_history if "eval_dev" in record][-1]


# --peer: multilingual distillation of the whole LM by its own library
def distil(student, english, target, teacher, args):
    """Train the student so that e(d_en) and e(T(d_en)) come near the teacher's e(d_en) (N, D), by MSE."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MSELoss

    data = Dataset.from_dict(
        {
            "english": peer_texts(english),
            "non_english": peer_texts(target),
            "label": teacher.tolist(),
        }
    )
    steps = args.peer_epochs * -(-len(english) // RECIPE["per_device_train_batch_size"])
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=args.peer_epochs,
            warmup_steps=int(WARMUP * steps),
            seed=args.seed,
            use_cpu=args.device.type == "cpu",
            bf16=args.dtype == torch.bfloat16,
            fp16=args.dtype == torch.float16,
            save_strategy="no",
            report_to="none",
            logging_steps=50,
            **RECIPE,
        )
        SentenceTransformerTrainer(
            student, settings, train_dataset=data, loss=MSELoss(student)
        ).train()


def own_heads(args, n, fingerprint):
    """Artifacts of the english head and of the fc head of n pairs; steps 2 and 3 make what is missing."""
    paths = [
        Path(args.out, name)
        for name in ("head-english.pt", f"head-langalign-{args.lang}-fc-n{n}.pt")
    ]
    flags = [
        "--out",
        args.out,
        "--lang",
        args.lang,
        "--n",
        str(n),
        "--arch",
        "fc",
        "--device",
        str(args.device),
        "--amp",
        args.amp,
    ]
    if not all(path.exists() for path in paths):
        step2_align.main(flags)
        step3_head.main(flags)
    return [
        common.load(
            path,
            "head",
            f"python step3_head.py --out {args.out} --lang {args.lang} --arch fc",
            fingerprint,
        )
        for path in paths
    ]


def bench_peer(args):
    if not has("sentence_transformers", "datasets", "accelerate"):
        raise UserError(
            "--peer needs its library: pip install sentence-transformers datasets accelerate"
        )
    encoder, info = load_encoder(args.out)
    device, dtype, where = args.device, args.dtype, (info["data"], info["task"])
    english, target, _ = load_translated(*where, args.lang, args.n)
    (test, y), (source, source_y) = (
        load_task(*where, lang, "test", info["labels"])[:2] for lang in (args.lang, "en")
    )
    (texts, labels), _ = load_train_dev(*where, "en", info["labels"])
    floor, aligned = own_heads(args, len(english), encoder.fingerprint)
    student = peer_model(encoder, device)
    check_same(encoder.to(device), student, english[:32] + target[:32], device)
    encoder.lm.to(dtype or torch.float32)  # as open_run does, the student has its own
    cache = common.Cache(encoder, args.out, device)
    teacher, start = cache(english, "encode teacher"), time.perf_counter()
    spent = {"teacher": cache.seconds}
    distil(student, english, target, teacher, args)
    spent["distil"], start = time.perf_counter() - start, time.perf_counter()
    x = peer_encode(student, texts, DEFAULT, device, dtype)
    heads = step3_head.train_heads(
        x,
        labels,
        len(info["labels"]),
        range(len(floor["heads"]["weight"])),
        float(floor["config"]["l2"]),
        device,
    )
    again, x = {**spent, "encode and head": time.perf_counter() - start}, cache(test, "encode test")
    student_x = peer_encode(student, test, DEFAULT, device, dtype)
    head = (encoder.dim + 1) * len(info["labels"])
    lm, layer = (
        sum(p.numel() for p in m.parameters())
        for m in (encoder.lm, common.load_aligner(aligned, encoder.dim))
    )
    layer += encoder.dim**2  # W, solved for
    of = partial(common.logits, floor["heads"])
    show_peer(
        args,
        y,
        {
            "english": (of(x), floor["seconds"], head),
            f"langalign fc, n {len(english)}": (
                common.logits(aligned["heads"], x),
                aligned["seconds"],
                layer + head,
            ),
            "peer, english's head": (
                of(student_x),
                {**spent, "head": floor["seconds"]["head"]},
                lm + head,
            ),
            "peer, its own head": (common.logits(heads, student_x), again, lm + head),
        },
        of(cache(source, "encode test en")).argmax(2) == source_y,
    )


def show_peer(args, y, rows, upper):
    """The table of rows {name: (logits (S, N, C), seconds, parameters)}; upper (S, M): English hits."""
    hits = {name: (out.argmax(2) == y).double() for name, (out, *_) in rows.items()}  # (S, N)
    gains = torch.stack([hit.mean(0) - hits["english"].mean(0) for hit in hits.values()], 1).numpy()
    delta = zip(gains.mean(0), *evaluation.bootstrap(gains, args.seed))
    trained = f"under autocast to {str(args.dtype)[6:]}" if args.dtype else "in float32"
    print(
        f"\npeer | sentence-transformers' distillation of the LM, {args.peer_epochs} epochs {trained}\n"
        f"{args.lang}: {len(y)} test rows; +- over head seeds; "
        "difference to english in points, its 95% interval over test rows\n"
        "  head                      accuracy    +-  difference              trained parameters  seconds"
    )
    for (name, (_, seconds, size)), triple in zip(rows.items(), delta):
        mean, spread = hits[name].mean(), 100 * hits[name].mean(1).std(correction=0)
        print(
            f"  {name:24s} {mean:9.2%} {spread:5.2f}  "
            + "{:+6.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in triple)).ljust(24)
            + f"{size:18,d}  {sum(seconds.values()):.0f}: "
            + ", ".join(f"{key} {value:.0f}" for key, value in seconds.items())
        )
    print(
        f"  {'english, on English text':24s} {upper.double().mean():9.2%} "
        f"{100 * upper.double().mean(1).std(correction=0):5.2f}"
    )
