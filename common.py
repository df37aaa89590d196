"""What the four scripts of LangAlign (arXiv 2503.18603) share: e(.), A, the data and the run folder.

Symbols  e(.) the frozen multilingual encoder (LM and pooling), A the aligner,
         d_en an English text of the task, T(d_en) its translation.
Shapes   N rows, B batch, T tokens, D embedding width, C classes, S head seeds, R rank.
A text is a tuple, (text,) or in a pair task such as NLI (text, text_b), encoded as one sequence pair.
Embeddings are fp32 tensors (N, D) on the CPU. Importing this file changes nothing.
"""

import argparse
import contextlib
import hashlib
import io
import os
import re
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
import transformers
from tqdm import tqdm

BATCH_TOKENS = {"cpu": 1_024, "cuda": 65_536}  # tokens of an encoding batch, padding included
ORDER_SEED = 2503  # of the order whose first n rows are the n pairs: 5,000 lie inside 20,000
DEFAULT_N = 20_000  # translated pairs; the paper uses 5K to 50K
HELD_OUT = (
    0.1  # share of the pairs that step 2 measures on, and of train.tsv where dev.tsv is missing
)
SHARD = 5_000  # embeddings a cache file holds: the most that a killed run can lose
ROWS = "label text", "label text text_b"  # headers of train, dev and test.tsv
PAIRS = "label text translation", "label text text_b translation translation_b"  # of translated.tsv


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what, where and how."""


# ------------------------------------------------------------------------------------------------
# e(.): the multilingual encoder
# ------------------------------------------------------------------------------------------------
def masked_mean(hidden, attention_mask):
    """(B, T, D), (B, T) -> (B, D): mean over the tokens that are not padding."""
    mask = attention_mask.unsqueeze(-1)  # (B, T, 1)
    return (hidden * mask).sum(1) / mask.sum(1)


class Encoder(nn.Module):
    """e(.): the last hidden states of a Hugging Face LM, pooled to one vector a text.

    pool: "mean" over the tokens, or "cls", the first token (the paper does not say which).
    max_len: tokens that a text is cut to, at most what the LM has positions for."""

    def __init__(self, lm, tokenizer, pool="mean", max_len=256):
        super().__init__()
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool {pool!r} is none of mean, cls")
        for name, module in lm.named_modules():  # RoBERTa's positions begin behind its padding id
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                max_len = min(max_len, module.num_embeddings - 1 - (module.padding_idx or -1))
        if getattr(lm, "pooler", None) is not None:
            lm.pooler = None  # BERT's own: unused here
        self.lm, self.tokenizer, self.pool = lm, tokenizer, pool
        self.max_len = min(max_len, tokenizer.model_max_length)
        self.dim = lm.config.hidden_size
        self.autocast = None  # dtype of autocast while the LM is tuned
        self.digest, self.inside = (
            "",
            None,
        )  # of the weights, see load_encoder; the Inside that is on

    @property
    def device(self):
        return next(self.lm.parameters()).device

    def forward(self, batch):
        """A batch of `pad` -> (B, D) fp32."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            hidden = self.lm(**batch).last_hidden_state.float()  # (B, T, D)
        return masked_mean(hidden, batch["attention_mask"]) if self.pool == "mean" else hidden[:, 0]

    def tokenize(self, texts):
        """Texts -> one {"input_ids": [...], maybe "token_type_ids": [...]} each, cut to max_len."""
        columns = [list(column) for column in zip(*texts)]  # first texts, maybe second texts
        out = self.tokenizer(
            *columns, truncation=True, max_length=self.max_len, return_attention_mask=False
        )
        return [dict(zip(out, values)) for values in zip(*out.values())]

    def freeze(self, dtype=None):
        """No gradient and no dropout from here on; weights as `dtype`, parameter by parameter, so
        that buffers such as rotary frequencies stay fp32."""
        self.eval().requires_grad_(False)
        for parameter in self.lm.parameters():
            parameter.data = parameter.data.to(dtype or torch.float32)
        return self


def pad(rows, tokenizer, device):
    """Tokenised rows -> dict of (B, T) int64 tensors, padded on the right, with the attention mask."""
    batch = tokenizer.pad(rows, padding_side="right", return_tensors="pt")
    if device.type == "cuda":  # pinned memory is copied while the GPU computes
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def batches(lengths, budget):
    """Row numbers in batches of at most `budget` tokens, longest first: memory runs out at once, if
    ever, and rows of like length need little padding."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def random_batches(lengths, batch, generator, pool=50):
    """Row numbers in batches of `batch` rows in random order, for an epoch of training. Rows are sorted
    by length within pools of `pool` batches: little padding."""
    out = []
    for rows in torch.randperm(len(lengths), generator=generator).split(batch * pool):
        rows = sorted(rows.tolist(), key=lambda i: lengths[i])
        out += [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return [out[i] for i in torch.randperm(len(out), generator=generator).tolist()]


def as_tuples(texts):
    """["a", "b"] or [("a",), ("b",)] or [("a", "a2"), ...] -> a list of tuples of strings."""
    if isinstance(texts, str):
        raise TypeError(f"give a list of texts, not the bare string {texts[:30]!r}")
    texts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if len({len(text) for text in texts}) > 1 or any(len(text) not in (1, 2) for text in texts):
        raise TypeError("give texts, or pairs (text, text_b), not both")
    return texts


@torch.no_grad()
def encode(encoder, texts, batch_tokens=None, progress="encode"):
    """Texts or (text, text_b) pairs -> (N, D) fp32 on the CPU, in their order.

    batch_tokens: tokens a batch, default BATCH_TOKENS. Under torchrun each rank encodes its share and
    gets all rows. Raises UserError with the row number (from 1) if an embedding is not finite."""
    texts = as_tuples(texts)
    encoder.eval()
    out = torch.zeros(len(texts), encoder.dim)
    mine = range(RANK, len(texts), WORLD)
    rows = encoder.tokenize([texts[i] for i in mine])
    budget = batch_tokens or BATCH_TOKENS.get(encoder.device.type, 16_384)

    order, parts = [], []
    with tqdm(
        total=len(rows), desc=progress, unit="text", delay=2, leave=False, disable=RANK > 0
    ) as bar:
        for index in batches([len(row["input_ids"]) for row in rows], budget):
            batch = pad([rows[i] for i in index], encoder.tokenizer, encoder.device)
            parts.append(encoder(batch))  # (B, D)
            order += [mine[i] for i in index]
            bar.update(len(index))
    if parts:
        out[order] = torch.cat(parts).cpu()
    out = share_rows(out, texts)

    bad = (~out.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"text {bad[0] + 1}: its embedding is not finite; try --amp off: {texts[bad[0]]}"
        )
    return out


# ------------------------------------------------------------------------------------------------
# A: the aligner
# ------------------------------------------------------------------------------------------------
def mlp(widths, dropout):
    """Linear layers between consecutive widths, ReLU and dropout between them, none after the last."""
    layers = []
    for width_in, width_out in zip(widths, widths[1:]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


DEPTH = {
    "fc": 2,
    "ae": 3,
}  # layers; ae's is the paper's, fc's is ours: readings of the paper differ
CLOSED = "linear", "procrustes", "shift"  # not in the paper, see step2_align.py
ARCHES = *DEPTH, *CLOSED, "inside"


class Aligner(nn.Module):
    """A(x) = f((x - mean_x) / scale_x) * scale_y + mean_y, embeddings (N, D) -> (N, D).

    arch "fc"  f is `depth` linear layers of `width` (None: D), ReLU and dropout between (paper)
    arch "ae"  f has `depth` layers down to a bottleneck of `width` (None: D / 2) and as many up (paper)
    linear, procrustes: f is one matrix; shift: none. Not in the paper; step2_align.solve makes them.
    Means (D,) and scales are those of the training pairs; scale_y is one number, so that Eq. 1 stays."""

    def __init__(self, arch="fc", dim=768, depth=None, width=None, dropout=0.1):
        super().__init__()
        if arch not in (*DEPTH, *CLOSED):
            raise ValueError(f"arch {arch!r} is none of {', '.join((*DEPTH, *CLOSED))}")
        depth = depth or DEPTH.get(arch, 1)
        self.config = dict(arch=arch, dim=dim, depth=depth, width=width, dropout=dropout)
        if arch == "fc":
            self.f = mlp([dim, *[width or dim] * (depth - 1), dim], dropout)
        elif arch == "ae":
            down = np.linspace(dim, width or dim // 2, depth + 1).round().astype(int).tolist()
            self.f = mlp([*down, *down[-2::-1]], dropout)
        elif arch == "shift":
            self.f = nn.Identity()
        else:
            self.f = nn.Linear(dim, dim, bias=False)
        for name in ("mean_x", "mean_y"):
            self.register_buffer(name, torch.zeros(dim))
        self.register_buffer("scale_x", torch.ones(dim))
        self.register_buffer("scale_y", torch.ones(()))

    def forward(self, x):
        return self.f((x - self.mean_x) / self.scale_x) * self.scale_y + self.mean_y

    @torch.no_grad()
    def map(self, x):
        """A(x) of a whole (N, D) tensor: no dropout, no gradient, in blocks, on the CPU."""
        self.eval()
        return torch.cat([self(block.to(self.mean_x.device)).cpu() for block in x.split(8_192)])


class Inside(nn.Module):
    """A inside the frozen LM (ours): W h becomes W h + B A h in every linear layer, LoRA of `rank` R
    (Hu et al. 2021). B is zero at the start, so an untrained Inside changes nothing. Target text is
    encoded `with inside.on(encoder):`; outside of it the LM is bit for bit what it was."""

    def __init__(self, lm, rank=8):
        super().__init__()
        self.config = dict(arch="inside", rank=rank)
        self.layers = [name for name, module in lm.named_modules() if isinstance(module, nn.Linear)]
        linear = [lm.get_submodule(name) for name in self.layers]
        self.A = nn.ParameterList(
            torch.randn(rank, m.in_features) / m.in_features**0.5 for m in linear
        )
        self.B = nn.ParameterList(torch.zeros(m.out_features, rank) for m in linear)

    def forward(self, encoder, batch):
        """A batch of `pad` -> (B, D): e_A(.), the encoder with A inside."""
        with self.on(encoder):
            return encoder(batch)

    def add(self, i, h, out):
        """Output `out` of layer i on input `h` (B, T, in) -> out + B A h."""
        return out + F.linear(F.linear(h, self.A[i].to(h.dtype)), self.B[i].to(h.dtype))

    @contextlib.contextmanager
    def on(self, encoder):
        if encoder.inside is not None:
            raise ValueError("another Inside is on in this encoder; leave its `with` block first")
        hooks = []
        for i, name in enumerate(self.layers):
            layer = encoder.lm.get_submodule(name)
            hook = lambda module, inputs, out, i=i: self.add(i, inputs[0], out)
            hooks.append(layer.register_forward_hook(hook))
        encoder.inside = self
        try:
            yield encoder
        finally:
            encoder.inside = None
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def merge(self, lm):
        """Add every B A to the weights of `lm`, in place: an LM of its own for the language."""
        for i, name in enumerate(self.layers):
            weight = lm.get_submodule(name).weight
            weight += (self.B[i] @ self.A[i]).to(weight)


def logits(heads, x):
    """x (N, D) through the S linear heads of step 3 on standardised inputs: (S, N, C)."""
    return (x - heads["mean"]) / heads["scale"] @ heads["weight"].mT + heads["bias"]


def build_aligner(art, lm):
    """The Aligner or Inside that a file of steps 2 or 3 holds, frozen."""
    config = art["aligner"]
    aligner = Inside(lm, config["rank"]) if config["arch"] == "inside" else Aligner(**config)
    aligner.load_state_dict(art["state"])
    aligner.digest = digest_of(str(config), *(t.numpy().tobytes() for t in art["state"].values()))
    return aligner.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------
# Data: <root>/<task>/<lang>/{train,dev,test,translated}.tsv, see data/README.md
# ------------------------------------------------------------------------------------------------
def read_lines(path):
    """Lines of a UTF-8 file, composed (NFC). UserError with file and line if it is none."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = err.object.count(b"\n", 0, err.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8; save it as UTF-8, or use data/convert.py --encoding"
        )
    except (OSError, ValueError) as err:  # ValueError: NUL in the name
        hint = (
            "python data/toy.py builds the toy world"
            if "toy" in str(path)
            else "see data/README.md"
        )
        raise UserError(f"{path}: {getattr(err, 'strerror', None) or err}; {hint}")
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text.rstrip("\n").split("\n")


def read_tsv(path, *headers):
    """Rows of a tab-separated file without quoting whose header is one of `headers` ("label text"):
    a list of tuples, a string a column; row i stands on line i + 2. UserError with file and line."""
    lines = read_lines(path)
    header = lines[0].split("\t")
    if " ".join(header) not in headers:
        raise UserError(
            f"{path}:1: the header is {header}, not, between tabs: {' or: '.join(headers)}"
        )
    rows = [tuple(line.split("\t")) for line in lines[1:]]
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(
                f"{path}:{line}: {len(row)} columns, not {len(header)}; one row a line, no tab"
            )
        if "\ufeff" in row[0] or list(row) == header:
            raise UserError(
                f"{path}:{line}: a header in the middle; were two files joined? Delete the line"
            )
        if not all(cell.strip() for cell in row[1:]):
            raise UserError(f"{path}:{line}: an empty text; fill it or delete the row")
    if len(rows) < 2:
        raise UserError(f"{path}: {len(rows)} rows below the header; give two or more")
    if sum(row[1][0] == row[1][-1] == '"' for row in rows) > len(rows) / 2:
        warn(f"{path}: most texts stand in quotes, which are read as text; use data/convert.py")
    return rows


def label_ids(path, rows, labels):
    """The rows' first column -> (N,) int64; UserError with the line of the first that is none of `labels`."""
    for line, row in enumerate(rows, 2):
        if row[0] not in labels:
            mend = "give the pairs their rows' labels" if not row[0] else "correct it"
            raise UserError(
                f"{path}:{line}: label {row[0]!r} is none of English train.tsv's {labels}; {mend}"
            )
    return torch.tensor([labels.index(row[0]) for row in rows])


def find_labels(path, rows):
    """The labels of English train.tsv, sorted. UserError if two look alike, warning if they are many."""
    labels = sorted({row[0] for row in rows})
    seen = {}
    for label in labels:
        plain = "".join(
            c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf"
        )
        other = seen.setdefault(plain.strip().casefold(), label)
        if other != label:
            raise UserError(
                f"{path}: labels {other!r} and {label!r} differ in case or in blanks only; make them one"
            )
    if len(labels) < 2 or "" in labels:
        raise UserError(
            f"{path}: the labels are {labels}; a task needs two or more, none of them empty"
        )
    if len(labels) > max(2, len(rows) / 10):
        warn(
            f"{path}: {len(labels)} classes in {len(rows)} rows; are the columns in the order label, text?"
        )
    return labels


def load_task(root, task, lang, split, labels=None, pair=None):
    """One file of a task: (texts, y (N,) int64, labels). labels None: this file's own; pair: whether
    the task is of text pairs, None: either."""
    path = Path(root, task, lang, f"{split}.tsv")
    rows = read_tsv(path, *(ROWS if pair is None else ROWS[pair : pair + 1]))
    labels = labels or find_labels(path, rows)
    return [row[1:] for row in rows], label_ids(path, rows, labels), labels


def load_train_dev(root, task, lang, labels=None, pair=None):
    """(texts, y, dev texts, dev y, labels); without a dev.tsv a tenth of train.tsv is held out."""
    texts, y, labels = load_task(root, task, lang, "train", labels, pair)
    if Path(root, task, lang, "dev.tsv").exists():
        return texts, y, *load_task(root, task, lang, "dev", labels, len(texts[0]) == 2)[:2], labels
    order = fixed_order(len(texts))
    train, held = hold_out([texts[i] for i in order])
    train, held = [order[i] for i in train], [order[i] for i in held]
    return [texts[i] for i in train], y[train], [texts[i] for i in held], y[held], labels


def fixed_order(count, seed=ORDER_SEED):
    """A shuffle of range(count) that is the same on every machine: its first n are the n pairs."""
    return np.random.default_rng(seed).permutation(count).tolist()


def hold_out(texts, share=HELD_OUT):
    """(kept, held out) row numbers: about `share` of the rows, from the end; rows with the same first
    text (an NLI premise, a sentence twice) stay on one side."""
    rows_of = {}
    for i, text in enumerate(texts):
        rows_of.setdefault(text[0], []).append(i)
    held = []
    for rows in reversed(rows_of.values()):
        if len(held) < share * len(texts):
            held += rows
    held.sort()
    kept = sorted(set(range(len(texts))) - set(held))
    if not kept:
        raise UserError(
            f"{len(texts)} rows with {len(rows_of)} first texts cannot be divided; give more"
        )
    return kept, held


def load_translated(root, task, lang, n=None, labels=None, pair=None, order_seed=ORDER_SEED):
    """The first n pairs of translated.tsv in the fixed order: (English texts d_en, their translations
    T(d_en), y (n,) or None). The same pair twice counts once. n None: DEFAULT_N, or all if fewer.
    With `labels` each row must have one of them."""
    path = Path(root, task, lang, "translated.tsv")
    rows = read_tsv(path, *PAIRS)
    half = len(rows[0]) // 2 + 1
    if pair is not None and half != pair + 2:
        kind = "pairs of texts" if half == 3 else "single texts"
        warn(f"{path} has {kind}, unlike the task: general text, look at the domain gap")
    y = label_ids(path, rows, labels) if labels else None
    once = list({row[1:]: i for i, row in reversed(list(enumerate(rows)))}.values())[::-1]
    if n is not None and n > len(once):
        raise UserError(
            f"--n {n}: {path} has {len(once)} different pairs; use --n {len(once)} or translate more"
        )
    order = [once[i] for i in fixed_order(len(once), order_seed)[: n or DEFAULT_N]]
    english, target = [rows[i][1:half] for i in order], [rows[i][half:] for i in order]
    return english, target, y[order] if labels else None


# ------------------------------------------------------------------------------------------------
# Run folder: encoder/ and .pt files, plain dicts of tensors, numbers and strings
# ------------------------------------------------------------------------------------------------
def digest_of(*parts):
    """Hex digest of strings and bytes."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode() if isinstance(part, str) else part)
    return hasher.hexdigest()


def write_whole(path, content):
    """Write bytes to a temporary file, then rename it to `path`: all or nothing. Only rank 0 writes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if RANK == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except OSError as err:
        raise UserError(f"{path}: cannot be written ({err.strerror}); free space or change --out")
    finally:
        temporary.unlink(missing_ok=True)
    barrier()


def save(path, kind, **content):
    """Write a .pt file whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"kind": kind, **content}, buffer)
    write_whole(path, buffer.getbuffer())


def load(path, kind, lm=None, make=""):
    """The dict in a .pt file, checked: whole, of this kind, and made with the LM of digest `lm`.
    Nothing in it is executed. UserError that names the command `make`."""
    try:
        if zipfile.ZipFile(path).testzip() is not None:
            raise UserError("damaged")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if content["kind"] != kind:
            raise UserError(f"a file of kind {content['kind']}, not {kind}")
        if lm is not None and content["lm"] != lm:
            raise UserError("made with another LM or task than the encoder/ beside it")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with: {make}")
    except Exception as err:  # zip and pickle readers raise their own
        why = err if isinstance(err, UserError) else f"damaged, or not of this project ({err})"
        raise UserError(f"{path}: {why}; make it again with: {make}")
    return content


def file_name(*parts, seed=0):
    """Parts joined by "-", empty ones left out: align-ko-fc-n20000.pt."""
    return "-".join([str(part) for part in parts if part] + [f"seed{seed}"] * bool(seed)) + ".pt"


def head_name(head):
    """File name of a head of step 3 by what it is: head-ko-fc-n20000-residuals.pt."""
    method = "" if head["method"] == "langalign" else head["method"]
    lang = "" if head["lang"] == "en" else head["lang"]
    n = f"n{head['n']}" if head["n"] else ""
    residuals = "residuals" if head["residuals"] else ""
    parts = "head", lang, method, head["arch"], n, residuals, head["variant"]
    return file_name(*parts, seed=head["seed"])


def flags_of(art):
    """The flags that choose a file of step 2 or 3."""
    names = [name for name in ("method", "arch", "n", "variant", "seed") if art.get(name)]
    told = [f"--{name} {art[name]}" for name in names] + ["--residuals"] * bool(
        art.get("residuals")
    )
    return " ".join(told)


def find(out, kind, lm, make, n=None, **want):
    """Content, and "path", of the one `kind`-*.pt file in `out` whose fields equal `want`, and `n` if given."""
    there = [
        (path, load(path, kind, None, make)) for path in sorted(Path(out).glob(f"{kind}-*.pt"))
    ]
    fits = [
        (path, art)
        for path, art in there
        if all(art[name] == value for name, value in want.items()) and n in (None, art["n"])
    ]
    if len(fits) == 1:
        return load(fits[0][0], kind, lm, make) | {"path": fits[0][0]}
    listed = "".join(f"\n  {path}: {flags_of(art)}" for path, art in fits or there) or " none"
    wanted = " ".join(f"{name}={value}" for name, value in want.items())
    raise UserError(
        f"{out}: {len(fits)} files fit {kind} {wanted}; make one with: {make}\nor choose of:{listed}"
    )


def encoder_digest(folder, info):
    """Digest of an encoder/ folder's files and of what its vectors and labels depend on besides."""
    files = [path for path in sorted(Path(folder).iterdir()) if path.is_file()]
    parts = [part for path in files for part in (path.name, path.read_bytes())]
    return digest_of(*parts, *(repr(info[key]) for key in ("task", "labels", "pool", "max_len")))


def load_encoder(out="runs", device="cpu", dtype=None, data=None):
    """(Encoder, frozen; what embed.pt holds: task, labels, data root ...) of a run folder."""
    make = f"python step1_embed.py --out {out}"
    info = load(Path(out, "embed.pt"), "embed", None, make)
    info["data"] = data or info["data"]
    folder = Path(out, "encoder")
    if not folder.is_dir() or encoder_digest(folder, info) != info["lm"]:
        raise UserError(
            f"{folder}: not the files that {out}/embed.pt was written with; run again: {make}"
        )
    encoder = load_pretrained(folder, info["pool"], info["max_len"]).freeze(dtype).to(device)
    encoder.digest = info["lm"]
    return encoder, info


def load_pretrained(name, pool="mean", max_len=256):
    """Encoder from a hub name or a folder, as fp32 whatever its file holds; UserError if it is none."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        lm, told = transformers.AutoModel.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as err:  # hub, file and class each raise their own
        why = " ".join(str(err).split())
        if "sentencepiece" in why or "tiktoken" in why:
            why = "its tokenizer needs: pip install sentencepiece protobuf"
        raise UserError(f"--model {name}: {why[:200]}; give an encoder's hub name or folder")
    missing = [key for key in told["missing_keys"] if "pooler" not in key]
    if missing:
        raise UserError(
            f"--model {name}: its file lacks {len(missing)} weights of the LM, e.g. {missing[0]}"
        )
    if lm.config.is_encoder_decoder or tokenizer.pad_token_id is None:
        raise UserError(
            f"--model {name}: {type(lm).__name__} is no encoder with a padding token; use xlm-roberta-base"
        )
    return Encoder(lm, tokenizer, pool, max_len)


class Cache:
    """Embeddings of one frozen LM on disk, found by the text: <out>/cache/<digest>-<dtype>/*.pt.

    Only texts never seen before are encoded, so n=20000 after n=5000 costs 15,000. A file holds SHARD
    rows a rank, is written whole and never changes."""

    def __init__(self, encoder, out, batch_tokens=None):
        self.encoder, self.batch_tokens = encoder, batch_tokens
        parts = [encoder.digest[:16], str(encoder.lm.dtype)[6:]]
        if encoder.inside is not None:
            parts.append(encoder.inside.digest[:16])
        self.folder = Path(out, "cache", "-".join(parts))
        self.row_of, self.files = (
            {},
            [],
        )  # key of a text -> row; (first row, embeddings) of each file
        for path in sorted(self.folder.glob("*.pt")):
            self.read(path)

    def read(self, path):
        art = load(path, "cache", self.encoder.digest, make=f"rm {path}, then the same command")
        first = len(self.row_of)
        self.row_of.update((key, first + i) for i, key in enumerate(art["keys"]))
        self.files.append((first, art["embeddings"]))

    def __call__(self, texts, progress="encode"):
        """Texts -> (N, D) fp32, encoded now or before."""
        keys = [hashlib.sha256("\t".join(text).encode()).hexdigest()[:32] for text in texts]
        new = [
            (key, text) for key, text in dict(zip(keys, texts)).items() if key not in self.row_of
        ]
        for start in range(0, len(new), SHARD * WORLD):  # a fixed cut: a killed run goes on alike
            part = dict(new[start : start + SHARD * WORLD])
            embeddings = encode(self.encoder, list(part.values()), self.batch_tokens, progress)
            path = self.folder / f"{digest_of(*part)[:32]}.pt"
            save(path, "cache", lm=self.encoder.digest, keys=list(part), embeddings=embeddings)
            self.read(path)
        rows = torch.tensor([self.row_of[key] for key in keys])  # (N,)
        out = torch.empty(len(texts), self.encoder.dim)
        for first, embeddings in self.files:
            here = (rows >= first) & (rows < first + len(embeddings))
            out[here] = embeddings[rows[here] - first]
        return out


# ------------------------------------------------------------------------------------------------
# Several GPUs: torchrun starts WORLD processes, of which this is RANK; only rank 0 prints and writes
# ------------------------------------------------------------------------------------------------
WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0)) if WORLD > 1 else 0


def barrier():
    if WORLD > 1:
        dist.barrier()


def share_rows(out, texts):
    """Sum `out` (N, D) over the ranks, each of which filled its own rows. UserError unless all ranks
    were given the same texts."""
    if WORLD > 1:
        mine = digest_of(repr(texts))
        digests = [None] * WORLD
        dist.all_gather_object(digests, mine)
        if set(digests) != {mine}:
            raise UserError("the ranks read different texts: give every rank the same data files")
        dist.all_reduce(out)
    return out


def parallel(model):
    """The model, under torchrun wrapped so that the ranks' gradients are averaged."""
    return model if WORLD == 1 else nn.parallel.DistributedDataParallel(model)


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------
def say(*words):
    if RANK == 0:
        print(*words, flush=True)


def warn(words):
    if RANK == 0:
        tqdm.write(f"warning: {words}", file=sys.stderr)


def number(kind, low, below=float("inf")):
    """argparse type: a number of `kind` from `low` to less than `below`."""

    def parse(text):
        if not low <= kind(text) < below:
            raise ValueError
        return kind(text)

    limit = f", below {below}" if below < float("inf") else ""
    parse.__name__ = f"{kind.__name__} ({low} or more{limit})"  # argparse: invalid ... value
    return parse


def language(text):
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no language code such as ko")
    return text


positive, share = number(int, 1), number(float, 0, 1)


def make_parser(doc):
    """Parser with the flags that every script has; `doc` is the script's docstring."""
    p = argparse.ArgumentParser(
        description=doc,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--out", default="runs", help="folder of one LM and task's files (default: %(default)s)"
    )
    p.add_argument(
        "--seed", type=number(int, 0), default=0, help="of weights and order (default: 0)"
    )
    p.add_argument(
        "--device", help="cuda, cuda:1, mps or cpu; without it the first of these that is there"
    )
    p.add_argument(
        "--amp",
        choices=("auto", "off", "bf16", "fp16"),
        default="auto",
        help="precision of the LM; auto (default): bf16 if native, else fp16 on CUDA, else fp32",
    )
    p.add_argument(
        "--batch-tokens",
        type=positive,
        help="tokens that are encoded at once; lower it if memory runs out",
    )
    return p


METHODS = {  # what a head learns from
    "langalign": "English through A",
    "english": "English as it is, the floor",
    "native": "target rows, the usual ceiling",
    "translated": "the translations and their labels",
    "mixed": "the translations, and plain English of the rows that have none",
    "centred": "English with its mean moved onto that of --unlabelled text",
    "rev": "English as it is, with A in front at inference",
}


def add_choice(p):
    """The flags that name one head: step 3 makes it, eval.py --predict labels with it."""
    p.add_argument("--lang", type=language, help="target language, e.g. ko")
    told = "; ".join(f"{name}: {what}" for name, what in METHODS.items())
    p.add_argument(
        "--method", choices=METHODS, default="langalign", help=f"{told} (default: langalign)"
    )
    p.add_argument(
        "--arch", choices=ARCHES, default="fc", help="of A, for langalign and rev (default: fc)"
    )
    p.add_argument("--n", type=positive, help="translations; may be left out where one file fits")
    p.add_argument(
        "--residuals",
        action="store_true",
        help="head on A(x) + a random residual of the pairs (ours)",
    )
    p.add_argument(
        "--variant",
        default="",
        help="of A, where step 2 was given --depth, --noise ...: see its file name",
    )


def pick_device(args):
    """(device, dtype of the LM or None for fp32, both in words with the reason) of --device and --amp."""
    name = args.device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as err:
        raise UserError(f"--device {name}: {str(err).splitlines()[0]}; leave the flag out")
    if WORLD > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group()
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = getattr(torch.cpu, "get_capabilities", dict)()
        native = device.type == "cpu" and bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    auto = torch.bfloat16 if native else torch.float16 if device.type == "cuda" else None
    dtype = {"auto": auto, "off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    why = f"--amp {args.amp}" if args.amp != "auto" else "native" if native else "no native bf16"
    ranks = f"{WORLD} x " if WORLD > 1 else ""
    return device, dtype, f"{ranks}{device} {str(dtype or torch.float32)[6:]} ({why})"


def run(main):
    """Call `main()`. What the user can mend becomes one line on stderr and exit status 2, Ctrl-C 130."""
    transformers.logging.set_verbosity_error()  # its report on BERT's pooler drowns ours
    transformers.logging.disable_progress_bar()
    try:
        main()
    except (UserError, OSError, torch.OutOfMemoryError) as err:  # OSError: disk full, no such file
        lines = str(err).splitlines() or [type(err).__name__]
        mend = (
            "; lower --batch-tokens or --batch" if isinstance(err, torch.OutOfMemoryError) else ""
        )
        print(
            "error:",
            *(line[:300] for line in lines[:20]),
            mend,
            sep="\n" if len(lines) > 1 else " ",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; nothing is half-written, the same command starts again", file=sys.stderr)
        sys.exit(130)
    if WORLD > 1:
        dist.destroy_process_group()
