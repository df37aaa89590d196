"""Shared by the four scripts of LangAlign (arXiv 2503.18603): encoder e(.), aligner A, data, run folder.

Start with e(.) and A, and return to the rest when a script uses it. A text is a tuple: (text,), or in a pair
task such as NLI (text, text_b), encoded as one sequence pair. d_en is an English text, T(d_en) its translation.
Embeddings are fp32 tensors (N, D) on the CPU. Shapes: N rows, M rows of a second set (dev, residuals), n pairs,
P premises, B batch, T tokens, D width, C classes, S seeds, R rank."""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import unicodedata
import zipfile
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn
from transformers.utils import cached_file
from tqdm import tqdm

BATCH_TOKENS = {"cpu": 1_024, "cuda": 65_536}  # per encoding batch, with padding; others: 16,384
ROWS = ["label text", "label text text_b"]  # headers of train, dev and test.tsv: texts, pairs
PAIRS = ["label text translation", "label text text_b translation translation_b"]  # translated.tsv
METHODS = {  # what a head is trained on, in the order of eval's table
    "english": "English",
    "centred": "English moved onto the mean of --unlabelled target text",
    "langalign": "English through A",
    "rev": "English, and A maps target text at inference",
    "mixed": "translations, and the English rows that have none",
    "translated": "translations with their labels",
    "native": "labelled rows in the target language",
}
compose = partial(unicodedata.normalize, "NFC")  # applied to all text that is read
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, or a byte that is not UTF-8

# Several GPUs: torchrun starts WORLD processes, this one is RANK, and rank 0 alone prints and writes
WORLD = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
RANK = int(os.environ["RANK"]) if WORLD > 1 else 0
bar = partial(tqdm, delay=2, leave=False, disable=True if RANK else None)  # None: if no terminal


class UserError(ValueError):
    """An error the user can fix: one line that says what is wrong, where, and how to fix it."""


def as_texts(texts):
    """Return texts or (text, text_b) pairs as tuples, in NFC. Raises TypeError naming the first that is neither."""
    if isinstance(texts, (str, dict, set)) or hasattr(texts, "columns"):
        raise TypeError(f"expected a list of texts or pairs, got a {type(texts).__name__}")
    tuples = tuple, list, np.ndarray
    texts = [tuple(text) if isinstance(text, tuples) else (text,) for text in texts]
    for number, text in enumerate(texts):
        whole = all(isinstance(part, str) and part.strip() for part in text)
        if not whole or not len(text) == len(texts[0]) <= 2 or SURROGATE.search("".join(text)):
            expected = "texts or (text, text_b), none missing, empty or with a lone surrogate"
            raise TypeError(f"texts[{number}] is {text!a:.60}; expected a list of {expected}")
    return [tuple(map(compose, text)) for text in texts]


def as_labels(y, rows, classes=None):
    """Return labels y as a tensor (rows,) int64; strings become 0, 1, ... in alphabetical order. Raises ValueError
    for numbers outside 0 to classes - 1, or a missing label."""
    y = np.asarray(np.asarray(y).tolist())  # numbers also if pandas holds them as objects
    names = sorted({str(label) for label in y.ravel()}) if y.dtype.kind in "UO" else []
    classes = classes or len(names or np.unique(y))
    if y.ndim == 1 and len(names) == classes and not {"", "nan", "None", "<NA>", "NaT"} & {*names}:
        y = np.searchsorted(names, y.astype(str))
    if y.shape != (rows,) or y.dtype.kind not in "biu" or not 0 <= y.min() <= y.max() < classes:
        what = f"{rows} integers from 0 to {classes - 1}, or {classes} strings, none missing"
        found = (names or np.unique(y).tolist())[:5]
        raise ValueError(f"labels such as {found}, of shape {y.shape}: expected {what}")
    return torch.as_tensor(y).long()


def as_rows(x, dim=None, rows=None):
    """Return embeddings, a tensor or an array (N, D), in fp32. Raises ValueError if N is not `rows`, D is not `dim`,
    or a row is not finite."""
    x = x if isinstance(x, torch.Tensor) else np.asarray(x, order="C")
    x = torch.as_tensor(np.stack(x) if x.dtype == object else x).detach().float()
    if x.dim() != 2 or x.shape != (len(x) if rows is None else rows, dim or x.shape[1]):
        expected = f"({'N' if rows is None else rows}, {dim or 'D'})"
        raise ValueError(f"embeddings of shape {tuple(x.shape)} do not match {expected}")
    if x.is_cpu and len(bad := x.isfinite().all(1).logical_not().nonzero()):  # a GPU would stall
        raise ValueError(f"embeddings[{bad[0].item()}] is not finite")
    return x


# e(.): the multilingual encoder -----------------------------------------------------------------
def masked_mean(hidden, attention_mask):
    """(B, T, D), (B, T) -> (B, D): mean over the tokens that are not padding."""
    mask = attention_mask.unsqueeze(-1)  # (B, T, 1)
    return (hidden * mask).sum(1) / mask.sum(1)


class Encoder(nn.Module):
    """e(.): last hidden states of a Hugging Face LM, pooled to one vector per text: "mean" over the tokens or
    "cls", the first token (the paper does not say which). Texts are truncated to max_len tokens."""

    def __init__(self, lm, tokenizer, pool="mean", max_len=256, batch_tokens=None, digest=""):
        super().__init__()
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool {pool!r} is neither 'mean' nor 'cls'")
        positions = getattr(lm.config, "max_position_embeddings", None) or 0  # XLNet: -1, no limit
        max_len = min(max_len, positions) if positions > 0 else max_len
        for name, module in lm.named_modules():  # RoBERTa's positions start after the padding id
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                first = 0 if module.padding_idx is None else module.padding_idx + 1
                max_len = min(max_len, module.num_embeddings - first)
        max_len = min(max_len, tokenizer.model_max_length)
        if max_len <= (special := tokenizer.num_special_tokens_to_add(pair=True)):
            raise UserError(f"max_len={max_len}: no room for text next to {special} special tokens")
        self.lm, self.tokenizer, self.pool, self.max_len = lm, tokenizer, pool, max_len
        # token_type_ids if the LM tells the two texts apart, whatever the tokenizer's class makes
        types = getattr(lm.config, "type_vocab_size", None) or 0  # XLNet has no number
        self.segments = types > 1 or lm.config.model_type == "xlnet"
        self.batch_tokens, self.digest, self.cache = batch_tokens, digest, {}  # see cached
        self.autocast, self.inside, self.warns = None, None, True  # dtype, the active A, see encode
        with torch.no_grad():  # D is not always config.hidden_size
            self.dim = self(pad(self.tokenize(["a"]), tokenizer, lm.device)).shape[1]

    def forward(self, batch):
        """Encode a batch made by `pad` -> (B, D) fp32."""
        device, attention = self.lm.device.type, contextlib.nullcontext()
        if device == "cpu" and torch.is_grad_enabled():  # fused attention is slow backwards there
            attention = nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)
        with attention, torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            hidden = self.lm(**batch, return_dict=True).last_hidden_state.float()  # (B, T, D)
        return masked_mean(hidden, batch["attention_mask"]) if self.pool == "mean" else hidden[:, 0]

    def tokenize(self, texts):
        """Texts -> [{"input_ids": [...], ...}, ...], NFC, truncated. Raises UserError for an id unknown to the LM."""
        columns = [list(column) for column in zip(*as_texts(texts))]  # 1 or 2 lists
        options = {"max_length": self.max_len, "return_token_type_ids": self.segments}
        out = self.tokenizer(*columns, truncation=True, **options)
        rows = [dict(zip(out, values)) for values in zip(*out.values())]
        highest = max(max(row["input_ids"], default=0) for row in rows)
        if highest >= len(self.lm.get_input_embeddings().weight):
            token = repr(self.tokenizer.convert_ids_to_tokens(highest))
            raise UserError(f"token {token} has no embedding in this LM; remove texts with it")
        return rows


def pad(rows, tokenizer, device):
    """Tokenised rows -> dict of (B, T) int64 tensors, padded on the right, with attention mask."""
    return dict(tokenizer.pad(rows, padding_side="right", return_tensors="pt").to(device))


def check_tokens(encoder, rows):
    """Warn if rows may be truncated, or if more than 5% of their tokens are unknown. Return whether it warned."""
    ids, unknown = [row["input_ids"] for row in rows], encoder.tokenizer.unk_token_id
    if full := sum(len(row) >= encoder.max_len for row in ids):
        warn(f"{full} texts reach max_len={encoder.max_len} tokens and may be truncated")
    share = sum(row.count(unknown) for row in ids) / max(1, sum(map(len, ids)))
    if share > 0.05:  # real data in a known script: at most 0.2%
        warn(f"{share:.0%} of the tokens are unknown to the LM; does it know this script?")
    return bool(full) or share > 0.05


def batches(lengths, budget):
    """Yield batches of row indices, at most `budget` tokens each, longest first, to run out of memory at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    while len(order):
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size].tolist()
        order = order[size:]  # a view: a copy of a list would take quadratic time


def shuffled(encoder, rows, batch, generator, progress):
    """Yield one epoch as (row indices, padded batch): rows of similar length, batches in random order."""
    parts = []
    for chunk in torch.randperm(len(rows), generator=generator).split(50 * batch):
        chunk = sorted(chunk.tolist(), key=lambda i: len(rows[i]["input_ids"]))
        parts += [chunk[i : i + batch] for i in range(0, len(chunk), batch)]
    for number in bar(torch.randperm(len(parts), generator=generator).tolist(), desc=progress):
        # this rank's share; a rank without rows takes one, so that all ranks step together
        index = parts[number][RANK::WORLD] or parts[number][:1]
        yield index, pad([rows[i] for i in index], encoder.tokenizer, encoder.lm.device)


def make_optimizer(weights, lr, steps, weight_decay=0.0):
    """AdamW with linear warm-up over 6% of the steps and linear decay to 0 (our choice)."""
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, fused=True)
    warm_up = int(0.06 * steps)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, warm_up, steps)


@torch.no_grad()
def encode(encoder, texts, progress="encode"):
    """Texts or (text, text_b) pairs -> (N, D) fp32 on the CPU; under torchrun each rank encodes a share. Raises
    UserError if an embedding is not finite. progress: "" for no bar, no warnings."""
    encoder.eval()
    texts, device = as_texts(texts), encoder.lm.device
    rows = encoder.tokenize(texts) if texts else []
    if progress and encoder.warns:  # until the first warning
        encoder.warns = not check_tokens(encoder, rows)
    budget = encoder.batch_tokens or BATCH_TOKENS.get(device.type, 16_384)
    parts = list(batches([len(row["input_ids"]) for row in rows], budget))[RANK::WORLD]
    out = torch.zeros(len(texts), encoder.dim, device=device)
    embeddings = [out[:0]]
    for index in bar(parts, desc=progress) if progress else parts:
        embeddings.append(encoder(pad([rows[i] for i in index], encoder.tokenizer, device)))
    out[list(chain(*parts))] = torch.cat(embeddings)  # one copy: one per batch would stall the GPU
    if WORLD > 1:
        dist.all_reduce(out)  # the rows of the other ranks are 0 on this one
    out = out.cpu()
    if len(bad := out.isfinite().all(1).logical_not().nonzero()):  # (K, 1)
        raise UserError(f"the embedding of {texts[bad[0]]!r:.60} is not finite; try --amp off")
    return out


# A: the aligner ---------------------------------------------------------------------------------
DEPTH = {"fc": 2, "ae": 3}  # layers: of the AE as in the paper, of FC our choice
CLOSED = "linear", "procrustes", "shift"  # not in the paper, see step2_align.py
ARCHES = *DEPTH, *CLOSED


class Aligner(nn.Module):
    """A(x) = f((x - mean_x) / scale_x) * scale_y + mean_y, (N, D) -> (N, D), standardised by the training pairs.
    fc: f is `depth` linear layers of hidden size `width` (default D), ReLU and dropout between (paper).
    ae: f has `depth` layers down to `width` (default D / 2) and `depth` back up (paper).
    linear, procrustes: f is one matrix. shift: f(x) = x. (Not in the paper, see step2_align.solve.)"""

    def __init__(self, arch="fc", dim=768, depth=None, width=None, dropout=0.1):
        super().__init__()
        if arch not in ARCHES:
            raise ValueError(f"arch {arch!r} is none of {', '.join(ARCHES)}")
        depth = depth or DEPTH.get(arch)
        self.config = {"arch": arch, "dim": dim, "depth": depth, "width": width, "dropout": dropout}
        if arch in DEPTH:
            widths = [dim] + [width or dim] * (depth - 1) + [dim]
            if arch == "ae":
                down = np.linspace(dim, width or dim // 2, depth + 1).round().astype(int).tolist()
                widths = down + down[-2::-1]
            layers = []
            for i, o in pairwise(widths):
                layers += [nn.Linear(i, o), nn.ReLU(), nn.Dropout(dropout)]
            self.f = nn.Sequential(*layers[:-2])  # no ReLU or dropout after the last layer
        else:
            self.f = nn.Identity() if arch == "shift" else nn.Linear(dim, dim, bias=False)
        self.mean_x, self.scale_x = nn.Buffer(torch.zeros(dim)), nn.Buffer(torch.ones(dim))
        self.mean_y, self.scale_y = nn.Buffer(torch.zeros(dim)), nn.Buffer(torch.ones(()))

    def forward(self, x):
        return self.f((x - self.mean_x) / self.scale_x) * self.scale_y + self.mean_y

    @torch.no_grad()
    def map(self, x):
        """Apply A to x (N, D) in blocks, in eval mode, without gradients; the result is on the CPU."""
        self.eval()
        blocks = as_rows(x, len(self.mean_x)).split(8_192)
        return torch.cat([self(block.to(self.mean_x)).cpu() for block in blocks])


class Inside(nn.Module):
    """A inside the frozen LM (ours): LoRA in every linear layer (Hu et al. 2021). W becomes W + up @ down, of rank R
    and scale 1; `up` starts at zero. Active only within `with inside.on(encoder):`."""

    def __init__(self, lm, rank=8):
        super().__init__()
        self.config = {"arch": "inside", "rank": rank}
        self.layers = [name for name, part in lm.named_modules() if isinstance(part, nn.Linear)]
        if not self.layers:
            raise UserError(f"{type(lm).__name__} has no linear layers for --arch inside; use fc")
        sizes = [lm.get_submodule(name).weight.shape for name in self.layers]
        self.down = nn.ParameterList(torch.randn(rank, i) / i**0.5 for _, i in sizes)  # (R, in)
        self.up = nn.ParameterList(torch.zeros(o, rank) for o, _ in sizes)  # (out, R)

    def forward(self, encoder, batch):
        """Encode a batch made by `pad` with A active -> e_A(.), (B, D), with gradients for A."""
        with self.on(encoder, merge=False):
            return encoder(batch)

    @torch.no_grad()
    def merged(self, lm):
        """Return [(parameter, its value with A added)], one per linear layer of the LM."""
        weights = [lm.get_submodule(name).weight for name in self.layers]
        parts = zip(weights, self.down, self.up)  # added in fp32
        return [(w, (w + (up @ down).to(w.device)).to(w.dtype)) for w, down, up in parts]

    @contextlib.contextmanager
    def on(self, encoder, merge=True):
        """Activate A in `encoder` within a `with` block, for every thread. merge: add A to the LM's weights until the
        block ends, as fast as the plain LM, but without gradients for A. Raises ValueError if another is active."""
        if encoder.inside is not None:
            raise ValueError("another Inside is active in this encoder; leave its `with` block")

        def add(down, up, layer, inputs, out):  # forward hook, h (B, T, in), out = W h + b
            h = inputs[0]
            return out + h @ down.T.to(h.dtype) @ up.T.to(h.dtype)

        with contextlib.ExitStack() as undo:  # also after an exception in the block
            encoder.inside = self
            undo.callback(setattr, encoder, "inside", None)
            for weight, value in self.merged(encoder.lm) if merge else ():
                undo.callback(setattr, weight, "data", weight.data)
                weight.data = value
            for name, down, up in () if merge else zip(self.layers, self.down, self.up):
                hook = encoder.lm.get_submodule(name).register_forward_hook(partial(add, down, up))
                undo.enter_context(hook)
            yield encoder


def build_aligner(art, lm):
    """Return the Aligner or Inside stored in an align or head file, frozen."""
    config = art["aligner"]
    aligner = Inside(lm, config["rank"]) if art["arch"] == "inside" else Aligner(**config)
    aligner.load_state_dict(art["state"])
    return aligner.eval().requires_grad_(False)


def logits(heads, x):
    """Return the logits (S, N, C) of S linear heads for embeddings x (N, D)."""
    x = as_rows(x, len(heads["mean"]))
    return (x - heads["mean"]) / heads["scale"] @ heads["weight"].mT + heads["bias"]


# Data: <root>/<task>/<lang>/{train,dev,test,translated}.tsv, see data/README.md ------------------
def read_lines(path):
    """Return the lines of a UTF-8 file in NFC, with any line ending. Raises UserError with file and line."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as err:
        line = err.object.count(b"\n", 0, err.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8; data/convert.py --encoding reads other files")
    except FileNotFoundError:
        if Path(path).suffix != ".tsv":
            raise
        langs = ", ".join(sorted(folder.name for folder in Path(path).parent.parent.glob("*/")))
        hint = f"check --data, --task and --lang (there: {langs or 'nothing'}; see data/README.md)"
        hint += "; without labels use --predict" if Path(path).name == "test.tsv" else ""
        raise UserError(f"{path}: no such file; {hint}")
    return compose(text).rstrip("\n").split("\n")


def read_texts(lines, file, width):
    """Yield the text, or pair of texts, of each line; raises UserError naming a malformed line."""
    blank = 0  # the first blank line; only blank lines may follow it
    for number, line in enumerate(lines, 1):
        if number == 1:
            stray_end = "\n" if line.endswith("\r") else "\r"  # old Macs ended lines with \r
        elif line.endswith(stray_end):
            raise UserError(f"{file}:{number}: a carriage return within the line; remove it")
        line = compose(line.rstrip("\r\n"))
        odd = r'\s*[{\[]\s*(["{]|$)|["\w]+([,;\t]["\w]+)+$|(text|review|sentence)$|".*"$'
        if number == 1 and re.match(odd, line):
            warn(f"{file}:1: looks like JSON, CSV or a header; each line is read as plain text")
        text = tuple(line.split("\t"))
        if not line.strip():
            blank = blank or number
        elif SURROGATE.search(line):
            raise UserError(f"{file}:{number}: not UTF-8; save the file as UTF-8")
        elif blank or len(text) != width or not all(part.strip() for part in text):
            place = f"{file}:{blank or number}"
            raise UserError(f"{place}: expected {width} non-empty column(s), no label")
        else:
            yield text


def read_tsv(path, *headers, labels=None):
    """Return the rows, as tuples, of a tab-separated file without quoting whose header is in `headers`."""
    header, *rows = [tuple(line.split("\t")) for line in read_lines(path)]
    if header not in [tuple(names.split()) for names in headers]:
        header, expected = "\t".join(header)[:60], ", or ".join(headers)
        raise UserError(f"{path}:1: header is {header!r}; expected, tab-separated: {expected}")
    for line, row in enumerate(rows, 2):
        again = row[0].strip("\ufeff") == "label" and row[1:] == header[1:]  # files joined by cat
        if again or len(row) != len(header) or not all(map(str.strip, row[1:])):
            raise UserError(f"{path}:{line}: expected {len(header)} columns, no text empty: {row}")
        if labels and row[0] not in labels:
            raise UserError(f"{path}:{line}: label {row[0]!r} is not one of step 1's {labels}")
    if len(rows) < 2:
        raise UserError(f"{path}: only {len(rows)} data rows; at least two are needed")
    if sum(any(t[0] == t[-1] == '"' for t in row[1:]) for row in rows) > len(rows) / 2:
        warn(f"{path}: most texts are quoted, and quotes are kept as text; use data/convert.py")
    return rows


def describe_task(data, task):
    """Return info = {"data", "task", "labels", "two_texts"} of a task, from its en/train.tsv."""
    path = Path(data, task, "en", "train.tsv")
    rows = read_tsv(path, *ROWS)
    labels = sorted({row[0] for row in rows})
    looks = {unicodedata.normalize("NFKC", label).casefold() for label in labels}
    looks = {re.sub(r"[\s\u00ad\u200b-\u200d\ufe00-\ufe0f\ufeff]", "", look) for look in looks}
    if len(looks) < max(2, len(labels)) or "" in looks:
        raise UserError(f"{path}: {labels}: need at least two, none empty, none that look the same")
    if len(labels) > max(2, len(rows) / 10):
        warn(f"{path}: {len(labels)} classes in {len(rows)} rows; is the label column first?")
    return {"data": str(data), "task": task, "labels": labels, "two_texts": len(rows[0]) == 3}


def load_task(info, lang, split):
    """Load <lang>/<split>.tsv -> (texts, y (N,) int64)."""
    path = Path(info["data"], info["task"], lang, f"{split}.tsv")
    rows = read_tsv(path, ROWS[info["two_texts"]], labels=info["labels"])
    return [row[1:] for row in rows], torch.tensor([info["labels"].index(row[0]) for row in rows])


def load_english(info):
    """Return (texts, y, dev texts, dev y); without a dev.tsv a tenth of train.tsv is held out."""
    texts, y = load_task(info, "en", "train")
    if Path(info["data"], info["task"], "en", "dev.tsv").exists():
        return texts, y, *load_task(info, "en", "dev")
    kept, held = hold_out(texts)
    return [texts[i] for i in kept], y[kept], [texts[i] for i in held], y[held]


def fixed_order(count, seed=0):
    """Return a fixed shuffle of range(count), seeded by the paper's arXiv number."""
    return np.random.default_rng(2503 + seed).permutation(count).tolist()


def hold_out(texts):
    """Split row indices into (kept, held out), 10% held out; rows that share their first text stay together."""
    first = [text[0] for text in texts]
    distinct, rows = list(dict.fromkeys(first)), range(len(texts))
    if len(distinct) < 10:
        raise UserError(f"{len(distinct)} distinct texts cannot be split; at least 10 are needed")
    held = {distinct[i] for i in fixed_order(len(distinct))[: len(distinct) // 10]}
    return [i for i in rows if first[i] not in held], [i for i in rows if first[i] in held]


def load_translated(info, lang, n=None, labelled=False):
    """Load n distinct pairs of <lang>/translated.tsv (default: all), the first n of a fixed shuffle -> (English
    texts d_en, translations T(d_en), y (n,) if `labelled`)."""
    path = Path(info["data"], info["task"], lang, "translated.tsv")
    rows = read_tsv(path, *PAIRS, labels=info["labels"] if labelled else None)
    distinct = {}
    for row in rows:  # keep the first of equal pairs
        distinct.setdefault(row[1:], row)
    rows = list(distinct.values())
    if n is not None and n > len(rows):
        raise UserError(f"{path}: only {len(rows)} distinct pairs; use fewer, or no --n for all")
    rows = [rows[i] for i in fixed_order(len(rows))[:n]]
    y = torch.tensor([info["labels"].index(row[0]) for row in rows]) if labelled else None
    half = 1 + len(rows[0]) // 2  # row = label, English columns, translated columns
    return [row[1:half] for row in rows], [row[half:] for row in rows], y


def load_pairs(info, counts):
    """Load {language: number of pairs or None} -> (English texts, translations, language of each pair)."""
    pairs = {lang: load_translated(info, lang, n) for lang, n in counts.items()}
    english, target = ([text for part in pairs.values() for text in part[i]] for i in (0, 1))
    return english, target, [lang for lang, (source, _, _) in pairs.items() for _ in source]


# Run folder: encoder/ and .pt files, plain dicts of tensors, numbers and strings -----------------
def digest_of(*parts):
    """Return the hex digest of bytes."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def write_atomic(path, content):
    """Write bytes to a temporary file, then rename it to `path`; only rank 0 writes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if RANK == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
    except OSError as err:  # ENOSPC names no file
        raise UserError(f"{path}: {err.strerror}; make room or choose another folder")
    finally:
        temporary.unlink(missing_ok=True)
    if WORLD > 1:
        dist.barrier()


def save(path, kind, **content):
    """Write a .pt file atomically."""
    buffer = io.BytesIO()
    torch.save({"kind": kind, **content}, buffer)
    write_atomic(path, buffer.getbuffer())


def load(path, kind):
    """Return the dict in a .pt file. Raises UserError unless the file is intact and of this kind."""
    reason = f"damaged, or no {kind} file; delete it and make it again"
    try:
        intact = zipfile.ZipFile(path).testzip() is None  # by the checksum of each part
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if intact and content["kind"] == kind:
            return content
    except FileNotFoundError:
        out = shlex.quote(str(Path(path).parent))
        reason = f"no such file; run: python step1_embed.py --out {out}"
    except Exception as err:  # zip and pickle readers raise many exception types
        reason += f" ({type(err).__name__})"
    raise UserError(f"{path}: {reason}")


def describe(lang, method=None, arch="fc", via=None, n=None, residuals=False, seed=0):
    """Return the fields that identify an aligner or head. An aligner's lang is "jv" or "jv+su"."""
    lang = lang if isinstance(lang, str) else "+".join(sorted(lang))
    method = method or ("rev" if arch == "inside" else "langalign")
    if residuals and method != "langalign" or arch == "inside" and method == "langalign":
        raise UserError("--arch inside needs --method rev, --residuals needs --method langalign")
    if method not in METHODS or arch not in (*ARCHES, "inside"):
        raise UserError(f"{method!r} is no method, or {arch!r} no arch; see --help")
    if n and method in ("english", "centred", "native"):
        raise UserError(f"--method {method} uses no pairs; leave out --n")
    if method in ("langalign", "rev"):
        via = sorted({via} if isinstance(via, str) else {*(via or lang.split("+"))})
    elif via or arch != "fc":
        raise UserError(f"--method {method} has no aligner; leave out --arch and --via")
    else:
        via = arch = None
    lang = "" if method == "english" else lang  # that head serves every language
    fields = {"lang": lang, "via": via, "method": method, "arch": arch}
    return fields | {"n": n, "residuals": residuals, "seed": seed}


def path_of(out, kind, lang, via, method, arch, n, residuals, seed):
    """Return the path of an aligner or head; options at their default are left out of its name."""
    langs = [lang, "" if via in (None, lang.split("+")) else f"via-{'+'.join(via)}"]
    for i, name in enumerate(langs):  # a file name holds 255 bytes
        langs[i] = name if len(name) < 80 else f"{name[:60]}-{digest_of(name.encode())[:8]}"
    parts = [kind, *langs, "" if method == "langalign" else method, arch, f"n{n}" if n else ""]
    parts += ["residuals" if residuals else "", f"seed{seed}" if seed else ""]
    return Path(out, "-".join(part for part in parts if part) + ".pt")


def find(out, kind, digest, lang, **flags):
    """Load the only file with these fields (None fits any) for the LM `digest`, or name the command that makes it."""
    wanted = {key: value for key, value in describe(lang, **flags).items() if value is not None}
    files = [load(path, kind) | {"path": path} for path in sorted(Path(out).glob(f"{kind}-*.pt"))]
    fits = [file for file in files if wanted.items() <= file.items()]
    current = [file for file in fits if file["lm"] == digest]
    if len(current) == 1:
        return current[0]
    near = [file for file in files if file.get("lang") == wanted["lang"]]  # if none fits
    names = " ".join(file["path"].name for file in current or fits or near or files) or "none"
    if current:
        raise UserError(f"{out}: {len(current)} files match, choose one by --n: {names}")
    usual, lang = describe(wanted["lang"]), wanted["lang"].replace("+", " ") or "en"
    command = "step2_align.py" if kind == "align" else "step3_head.py"
    command += f" --out {shlex.quote(str(out))} --lang {lang}"
    for name, value in wanted.items():
        if value != usual[name]:
            value = " ".join(value) if name == "via" else value
            command += f" --{name} {value}".removesuffix(" True")
    problem = "belongs to another LM than encoder/" if fits else f"no such {kind} file"
    hint = ", pooled ones with --via" if "+" in names else ""
    raise UserError(f"{out}: {problem}; run: python {command} (found: {names}{hint})")


def load_tokenizer(name):
    """Return AutoTokenizer, with the parts of tokenizer.json restored that some classes override."""
    find_file = partial(cached_file, name, _raise_exceptions_for_missing_entries=False)
    if find_file("adapter_config.json"):
        raise ValueError("it holds an adapter; merge it into the LM first (peft: merge_and_unload)")
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if (file := find_file("tokenizer.json")) and hasattr(tokenizer, "backend_tokenizer"):
        own = type(tokenizer.backend_tokenizer).from_file(file)
        for part in ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
            setattr(tokenizer.backend_tokenizer, part, getattr(own, part))
    return tokenizer


def check_modules(name, pool):
    """Warn of what a sentence-transformers folder declares and this encoder leaves out."""

    def read(file):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        return json.loads(Path(path).read_text("utf-8")) if path else {}

    for module in read("modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            config = read(f"{module['path']}/config.json")
            modes = [key for key, value in config.items() if value is True and "_mode_" in key]
            modes = {re.sub("pooling_mode_|_tokens?$", "", mode) for mode in modes}
            modes |= {*np.atleast_1d(config.get("pooling_mode", [])).tolist()}
            if modes and modes != {pool}:
                warn(f"{name} was trained with {'+'.join(modes)} pooling, not --pool {pool}")
        elif kind not in ("Transformer", "Normalize"):
            warn(f"{name}: its module {kind} is left out")
    settings = read("sentence_bert_config.json") | read("config_sentence_transformers.json")
    for setting in ("do_lower_case", "default_prompt_name"):
        if settings.get(setting):
            warn(f"{name}: its {setting} is left out")


@torch.no_grad()  # in the trial
def load_pretrained(name, pool="mean", max_len=256, texts=(), **options):
    """Return an Encoder, in fp32, from a hub name or a folder, after a trial on the shortest and longest text."""
    flags = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no load report
    try:
        tokenizer = load_tokenizer(name)
        lm, report = transformers.AutoModel.from_pretrained(name, **flags)
        lm.pooler = nn.Identity()  # in place of BERT's own, which has no use here
        kind = type(lm).__name__
        if hasattr(lm, "decoder") or lm.config.is_encoder_decoder or tokenizer.pad_token_id is None:
            raise ValueError(f"{kind} has a decoder, or its tokenizer no padding token")
        if lost := [key for key in report["missing_keys"] if "pooler" not in key]:
            raise ValueError(f"the files lack {len(lost)} weights of {kind}, such as {lost[0]}")
        if language := getattr(lm.config, "default_language", None):
            warn(f"{kind} embeds every text with the adapters of {language}")
        if any("lora_" in key for key in report["unexpected_keys"]):
            raise ValueError("it holds an adapter; merge it into the LM first")
        encoder = Encoder(lm, tokenizer, pool, max_len, **options)
        if texts:
            check_modules(name, pool)
            rows = encoder.tokenize(texts)
            order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
            trial, longest = [order[0], order[-1]], rows[order[-1]]["input_ids"]
            if len(longest) < 3 or 2 * longest.count(tokenizer.unk_token_id) > len(longest):
                raise ValueError("a text has hardly any known tokens; is tokenizer.json missing?")
            alone = torch.cat([encode(encoder, [texts[i]], progress="") for i in trial])
            together = encoder(pad([rows[i] for i in trial], tokenizer, lm.device)).cpu()
            if (together - alone).norm() > 0.01 * alone.norm():
                warn(f"embeddings of {kind} depend on the padding in their batch; use another LM")
            check_tokens(encoder, rows)
        return encoder
    except UserError:
        raise
    except Exception as err:  # hub, file and class raise many exception types
        reason = " ".join(str(err).split())[:350] or type(err).__name__
        raise UserError(f"--model {name}: {reason}; use a hub name or a folder with its files")
    finally:
        transformers.logging.set_verbosity(level)


def digests_of(folder):
    """Return {file name: digest} of the files in encoder/ on which embeddings depend. Line endings do not count."""
    paths = [path for path in sorted(Path(folder).glob("[!.]*.*")) if path.is_file()]
    paths = [path for path in paths if path.suffix != ".md" and path.name != "modules.json"]
    return {path.name: digest_of(path.read_bytes().replace(b"\r\n", b"\n")) for path in paths}


def save_encoder(encoder, out, info):
    """Write <out>/encoder/, a plain Hugging Face folder, and <out>/embed.pt with info, atomically."""
    folder, fresh = Path(out, "encoder"), Path(out, ".encoder.tmp")
    if RANK == 0:
        shutil.rmtree(fresh, ignore_errors=True)  # left over by a killed run
        encoder.tokenizer.model_max_length = encoder.max_len
        try:
            encoder.tokenizer.save_pretrained(fresh)
            encoder.lm.save_pretrained(fresh)
            for path in fresh.glob("*.safetensors"):  # safetensors 0.8 lets only the owner read
                path.chmod(Path(fresh, "config.json").stat().st_mode)
        except Exception as err:  # on a full disk each library raises its own exception type
            raise UserError(f"{fresh}: {err}; make room or choose another --out")
        info = info | {name: getattr(encoder, name) for name in ("pool", "max_len", "segments")}
        info["files"] = digests_of(fresh)
        chosen = [info[key] for key in ("task", "labels", "pool", "max_len", "segments", "files")]
        info["lm"] = digest_of(repr(chosen).encode())
    save(Path(out, "embed.pt"), "embed", **info)
    if RANK == 0:  # last: after a crash in between, embed.pt does not match encoder/
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def load_encoder(out="runs", device="cpu", dtype=None, data=None, batch_tokens=None):
    """Load the frozen Encoder and info (contents of embed.pt) of a run folder; `data` overrides the data root."""
    info, folder = load(Path(out, "embed.pt"), "embed"), Path(out, "encoder")
    if odd := sorted(name for name, _ in info["files"].items() ^ digests_of(folder).items()):
        problem = "missing, changed or new since step 1; restore it, or delete a new file"
        raise UserError(f"{folder / odd[0]}: {problem}")
    options = {"batch_tokens": batch_tokens, "digest": info["lm"]}
    encoder = load_pretrained(folder, info["pool"], info["max_len"], **options)
    encoder.segments = info.get("segments")  # older run folders had no token_type_ids
    encoder.eval().requires_grad_(False)
    for parameter in encoder.parameters():  # one by one: buffers such as rotary ones stay fp32
        parameter.data = parameter.data.to(device, dtype)
    return encoder.to(device), {**info, "data": data or info["data"]}


def cached(encoder, out, texts):
    """Return encode(encoder, texts), (N, D), but texts encoded before come from <out>/cache. Files are read once. The
    encoder must be as load_encoder returned it, perhaps with an Inside active."""
    if not encoder.digest:  # not of a run folder
        return encode(encoder, texts)
    name = f"{encoder.digest[:16]}-{str(encoder.lm.dtype).removeprefix('torch.')}"
    if encoder.inside:
        weights = encoder.inside.state_dict().values()
        name += f"-inside-{digest_of(*(w.cpu().numpy().tobytes() for w in weights))[:16]}"
    folder = Path(out, "cache", name)
    rows = encoder.cache.setdefault(folder, {})
    for path in [] if rows else folder.glob("*.pt"):
        art = load(path, "cache")
        rows.update(zip(art["texts"], art["embeddings"]))
    if new := [text for text in dict.fromkeys(texts) if text not in rows]:
        embeddings = encode(encoder, new)
        path = folder / f"{digest_of(repr(new).encode())[:32]}.pt"  # each file is written once
        save(path, "cache", texts=new, embeddings=embeddings)
        rows.update(zip(new, embeddings))
    return torch.stack([rows[text] for text in texts])


# Command line -----------------------------------------------------------------------------------
def say(*words, **options):
    if RANK == 0:
        print(*words, **options, flush=True)


def warn(words):
    say(f"warning: {words}", file=sys.stderr)


def one_line_error(message):
    """Raise UserError, in place of argparse's usage and message."""
    raise UserError(f"{message}; see --help")


def make_parser(doc, step):
    """Return the parser with the flags that scripts share. step: 1 to 3, or 4 for eval.py."""
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=doc, formatter_class=raw, allow_abbrev=False)
    p.error, flag = one_line_error, p.add_argument
    flag("--out", default="runs", help="run folder, for one LM and one task (default: runs)")
    flag("--seed", type=int, default=0, help="seed, also in the names of files (default: 0)")
    flag("--device", help="cuda, cuda:1, mps or cpu (default: first accelerator, else cpu)")
    amp = "precision of the LM (default: bf16 if native, else fp16 on CUDA, else off: fp32)"
    flag("--amp", choices=("off", "bf16", "fp16"), help=amp)
    flag("--batch-tokens", type=int, help="tokens per encoding batch (default: 1,024 on a CPU)")
    if step > 1:
        flag("--data", help="root of the data, if it moved since step 1")
        lang = "target languages, which share one A" if step == 2 else "target language, such as ko"
        flag("--lang", required=True, nargs="+" if step == 2 else None, help=lang)
        arch = "fc, ae: paper; linear, procrustes, shift: closed form; inside: in LM (default: fc)"
        flag("--arch", choices=(*ARCHES, "inside"), default="fc", help=arch)
        flag("--n", type=int, help="pairs per language (default: all, or those of the only file)")
        directions = {"langalign": "A maps English", "rev": "A maps target text"}
        methods = METHODS if step > 2 else directions
        method = ", ".join(f"{name}: {text}" for name, text in methods.items())
        method += " (default: langalign, or rev for inside)"
        flag("--method", choices=methods, help=method)
    if step > 2:
        flag("--via", nargs="+", metavar="LANG", help="languages of the aligner (default: --lang)")
        flag("--residuals", action="store_true", help="add random residuals of the pairs to A(x)")
    return p


def check_flags(args):
    """Raise UserError if a number or a language of the command line is out of range."""
    for name, value in vars(args).items():
        low = 0 if name in ("seed", "epochs", "lr", "l2") else 1
        if type(value) in (int, float) and not low <= value < 2**32:
            name = name.replace("_", "-")
            raise UserError(f"--{name} {value}: must be at least {low}, below 2^32")
        if name in ("lang", "via") and value:
            langs = [value] if isinstance(value, str) else value
            codes = {lang for lang in langs if re.fullmatch(r"[\w-]+", lang, re.ASCII)}
            words = {*METHODS, *ARCHES, "inside", "via", "residuals"}  # in the files' names
            if len(codes) < len(langs) or words & {*"-".join(langs).split("-")}:
                expected = "expected language codes such as ko, each once"
                raise UserError(f"--{name} {' '.join(langs)}: {expected}")


def pick_device(args):
    """Return the device, the autocast dtype or None for fp32, and a description of both."""
    first = torch.accelerator.current_accelerator(True) or torch.device("cpu")
    try:
        device = torch.zeros(1, device=args.device or first).device
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {args.device} is not available; omit it to use {first}")
    if WORLD > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if WORLD > 1 and not dist.is_initialized():
        dist.init_process_group()
    native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    amp = args.amp or ("bf16" if native else "fp16" if device.type == "cuda" else "off")
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    name = f"{device} x {WORLD}" if WORLD > 1 else device
    name = f"{name}, {amp.replace('off', 'fp32')} ({'' if native else 'no '}native bf16)"
    return device, dtype, name


def run(main):
    """Run main(); user errors become one line on stderr and exit status 2, Ctrl-C exit status 130."""
    sys.stdout.reconfigure(encoding="utf-8")  # labels may contain any Unicode
    transformers.logging.disable_progress_bar()
    try:
        main()
    except BrokenPipeError:  # stdout was closed, for example by `| head`
        os._exit(141)
    except (UserError, OSError, torch.OutOfMemoryError) as err:
        print("error:", " ".join(str(err).split())[:500], file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as err:
        print(str(err) or "interrupted; rerun the command (it starts over)", file=sys.stderr)
        sys.exit(130)
    if WORLD > 1:
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # threads of gloo (torch 2.13) may abort a normal exit
