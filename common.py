"""What the four scripts of LangAlign (arXiv 2503.18603) share: e(.), A, the data and the run folder.

e(.) is the frozen multilingual encoder, A the aligner, d_en an English text, T(d_en) its translation.
Read e(.) and A first, the rest when a script calls it.
Shapes: N rows, M others, n pairs, P premises, B batch, T tokens, D width, C classes, S seeds, R rank.
A text is a tuple: (text,), or in a pair task such as NLI (text, text_b), encoded as one sequence pair.
Embeddings are fp32 tensors (N, D) on the CPU.
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
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

BATCH_TOKENS = {"cpu": 1_024, "cuda": 65_536}  # of an encoding batch, padding included
ROWS = "label text", "label text text_b"  # headers of train, dev, test.tsv; second: two texts a row
PAIRS = "label text translation", "label text text_b translation translation_b"  # of translated.tsv
METHODS = "english", "centred", "langalign", "rev", "mixed", "translated", "native"  # see step 3
HEAD_DEFAULTS = {"seeds": 5, "l2": 0.05, "seed": 0}  # of step 3; a file's name says what differs


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what, where and how."""


# Several GPUs: torchrun starts WORLD processes, this one is RANK; rank 0 alone prints and writes ---
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0")) if WORLD > 1 else 0


def join_ranks(device):
    """The device of this rank; the ranks can talk to each other from here on."""
    if WORLD > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if WORLD > 1 and not dist.is_initialized():
        dist.init_process_group()
    return device


def average_gradients(model):
    """The model to train: the ranks' gradients are averaged, so that each step is the same on all."""
    return model if WORLD == 1 else nn.parallel.DistributedDataParallel(model)


def check_ranks(texts):
    """UserError if the ranks were given different texts."""
    if WORLD > 1:
        digests = [digest_of(repr(texts).encode())] * WORLD
        dist.all_gather_object(digests, digests[0])
        if len(set(digests)) > 1:
            raise UserError("the ranks read different texts: give all of them the same files")


# e(.): the multilingual encoder -----------------------------------------------------------------
def masked_mean(hidden, attention_mask):
    """(B, T, D), (B, T) -> (B, D): mean over the tokens that are not padding."""
    mask = attention_mask.unsqueeze(-1)  # (B, T, 1)
    return (hidden * mask).sum(1) / mask.sum(1)


class Encoder(nn.Module):
    """e(.): last hidden states of a Hugging Face LM, pooled to one vector a text: the mean over its tokens,
    or "cls", the first (the paper does not say which). max_len: tokens that a text is cut to."""

    def __init__(self, lm, tokenizer, pool="mean", max_len=256):
        super().__init__()
        for name, module in lm.named_modules():  # RoBERTa's positions begin behind its padding id
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                first = 0 if module.padding_idx is None else module.padding_idx + 1
                max_len = min(max_len, module.num_embeddings - first)
        lm.pooler = None  # BERT's own: unused here
        self.lm, self.tokenizer, self.pool, self.dim = lm, tokenizer, pool, lm.config.hidden_size
        self.max_len = min(max_len, tokenizer.model_max_length)
        self.autocast = self.batch_tokens = self.inside = self.digest = None  # set later

    def forward(self, batch):
        """A batch of `pad` -> (B, D) fp32."""
        device, attention = self.lm.device.type, contextlib.nullcontext()
        if device == "cpu" and torch.is_grad_enabled():  # its fused kernel is slow backwards
            attention = sdpa_kernel(SDPBackend.MATH)
        with attention, torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            hidden = self.lm(**batch).last_hidden_state.float()  # (B, T, D)
        return masked_mean(hidden, batch["attention_mask"]) if self.pool == "mean" else hidden[:, 0]

    def tokenize(self, texts):
        """Texts -> [{"input_ids": [...], ...}, ...], cut to max_len. UserError: a token without embedding."""
        texts = [(text,) if isinstance(text, str) else text for text in texts]
        if {len(text) for text in texts} not in ({1}, {2}):
            raise TypeError("give texts, or pairs (text, text_b), one or more, not both")
        columns = [list(column) for column in zip(*texts)]  # first texts, maybe second texts
        out = self.tokenizer(*columns, truncation=True, max_length=self.max_len)
        rows = [dict(zip(out, values)) for values in zip(*out.values())]
        highest = max(max(row["input_ids"], default=0) for row in rows)
        if highest >= (getattr(self.lm.config, "vocab_size", None) or highest + 1):
            told = f"the LM has no embedding for {self.tokenizer.convert_ids_to_tokens(highest)!r}"
            raise UserError(f"{told}; delete the texts that have it, or choose another --model")
        return rows


def pad(rows, tokenizer, device):
    """Tokenised rows -> dict of (B, T) int64 tensors, padded on the right, with attention mask."""
    return dict(tokenizer.pad(rows, padding_side="right", return_tensors="pt").to(device))


def batches(lengths, budget):
    """Row numbers in batches of at most `budget` tokens, longest first: the first needs most memory."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def shuffled(encoder, rows, batch, generator, progress):
    """An epoch: (row numbers, their `pad`), batches of rows of similar length in random order."""
    cut = []
    for pool in torch.randperm(len(rows), generator=generator).split(50 * batch):
        pool = sorted(pool.tolist(), key=lambda i: len(rows[i]["input_ids"]))
        cut += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    for number in bar(torch.randperm(len(cut), generator=generator).tolist(), desc=progress):
        index = cut[number][RANK::WORLD] or cut[number][:1]  # a rank's share; if empty, one row
        yield index, pad([rows[i] for i in index], encoder.tokenizer, encoder.lm.device)


def make_optimizer(weights, lr, steps, weight_decay=0.0):
    """AdamW and its schedule: the rate rises for 6% of the steps, then falls to 0 (ours)."""
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, fused=True)
    warm_up = int(0.06 * steps)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, warm_up, steps)


@torch.no_grad()
def encode(encoder, texts, progress="encode", place="text ", first=1):
    """Texts or (text, text_b) pairs -> (N, D) fp32 on the CPU, in their order. Under torchrun a rank does
    its share and gets all. UserError with place and begin of a text whose embedding is not finite."""
    if isinstance(texts, str):
        raise TypeError(f"give a list of texts, not the bare string {texts[:30]!r}")
    texts = list(texts)  # of a pandas Series, too
    check_ranks(texts)
    encoder.eval()
    device, mine = encoder.lm.device, range(RANK, len(texts), WORLD)
    rows = encoder.tokenize([texts[i] for i in mine]) if mine else []
    budget = encoder.batch_tokens or BATCH_TOKENS.get(device.type, 16_384)
    full = sum(len(row["input_ids"]) >= encoder.max_len for row in rows)
    warn_if(full and progress, f"{full} texts fill {encoder.max_len} tokens: any rest is not read")
    cut = list(batches([len(row["input_ids"]) for row in rows], budget))
    out = torch.zeros(len(texts), encoder.dim, device=device)
    parts = [out[:0]]  # one copy at the end: a copy of numbers for each batch would stop a GPU
    for index in bar(cut, desc=progress):
        parts.append(encoder(pad([rows[i] for i in index], encoder.tokenizer, device)))  # (B, D)
    out[[mine[i] for index in cut for i in index]] = torch.cat(parts)
    if WORLD > 1:
        dist.all_reduce(out)  # the rows of the other ranks are 0 on this one
    out = out.cpu()
    if len(bad := out.isfinite().all(1).logical_not().nonzero()):  # (K, 1)
        why = f"not a finite embedding of {str(texts[bad[0]])[:50]}; try --amp off"
        raise UserError(f"{place}{first + bad[0].item()}: {why}")
    return out


# A: the aligner ---------------------------------------------------------------------------------
DEPTH = {"fc": 2, "ae": 3}  # layers: ae's is the paper's; fc's, which it leaves open, is ours
CLOSED = "linear", "procrustes", "shift"  # not in the paper, see step2_align.py
ARCHES = *DEPTH, *CLOSED, "inside"


class Aligner(nn.Module):
    """A(x) = f((x - mean_x) / scale_x) * scale_y + mean_y, embeddings (N, D) -> (N, D).
    fc: f is `depth` linear layers of `width` (None: D), ReLU and dropout between (paper; sizes ours).
    ae: f has `depth` layers down to a bottleneck of `width` (None: D / 2) and as many up (paper).
    linear, procrustes: f is one matrix; shift: f(x) = x (not in the paper; step2_align.solve).
    Means and scales are those of the training pairs (closed forms: scales 1): f meets numbers around 0."""

    def __init__(self, arch="fc", dim=768, depth=None, width=None, dropout=0.1):
        super().__init__()
        if arch not in (*DEPTH, *CLOSED):
            raise ValueError(f"arch {arch!r} is none of {', '.join((*DEPTH, *CLOSED))}")
        depth = depth or DEPTH.get(arch)
        self.config = {"arch": arch, "dim": dim, "depth": depth, "width": width, "dropout": dropout}
        if arch in DEPTH:
            widths = [dim] + [width or dim] * (depth - 1) + [dim]
            if arch == "ae":
                down = np.linspace(dim, width or dim // 2, depth + 1).round().astype(int).tolist()
                widths = down + down[-2::-1]
            layers = []
            for width_in, width_out in pairwise(widths):
                layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
            self.f = nn.Sequential(*layers[:-2])  # nothing after the last linear layer
        else:
            self.f = nn.Identity() if arch == "shift" else nn.Linear(dim, dim, bias=False)
        self.mean_x, self.scale_x = nn.Buffer(torch.zeros(dim)), nn.Buffer(torch.ones(dim))
        self.mean_y, self.scale_y = nn.Buffer(torch.zeros(dim)), nn.Buffer(torch.ones(()))

    def forward(self, x):
        return self.f((x - self.mean_x) / self.scale_x) * self.scale_y + self.mean_y

    @torch.no_grad()
    def map(self, x):
        """A(x) of a whole (N, D) tensor on the CPU: no dropout, no gradient, in blocks."""
        self.eval()
        return torch.cat([self(block.to(self.mean_x)).cpu() for block in x.split(8_192)])


class Inside(nn.Module):
    """A inside the frozen LM (ours): in every linear layer W h becomes W h + up down h, LoRA of `rank` R and
    scale 1 (Hu et al. 2021), up zero at the start. Outside of `with inside.on(encoder):` the LM is as it was."""

    def __init__(self, lm, rank=8):
        super().__init__()
        self.config = {"arch": "inside", "rank": rank}
        self.layers = [name for name, part in lm.named_modules() if isinstance(part, nn.Linear)]
        if not self.layers:
            raise UserError(f"{type(lm).__name__} has no linear layers for --arch inside; use fc")
        sizes = [lm.get_submodule(name).weight.shape for name in self.layers]  # (out, in)
        self.down = nn.ParameterList(torch.randn(rank, size[1]) / size[1] ** 0.5 for size in sizes)
        self.up = nn.ParameterList(torch.zeros(size[0], rank) for size in sizes)

    def forward(self, encoder, batch):
        """A batch of `pad` -> (B, D): e_A(.), the encoder with A inside."""
        with self.on(encoder):
            return encoder(batch)

    @staticmethod
    def add(down, up, layer, inputs, out):
        """W h -> W h + up down h, a hook: inputs (h,), h (B, T, in), out = W h (B, T, out)."""
        h = inputs[0]
        return out + h @ down.T.to(h.dtype) @ up.T.to(h.dtype)

    @contextlib.contextmanager
    def on(self, encoder):
        """The encoder, with A in it until the `with` block ends. ValueError if another is on."""
        if encoder.inside is not None:
            raise ValueError("an Inside is on in this encoder; leave its `with` block first")
        encoder.inside = self
        with contextlib.ExitStack() as stack:  # what is undone at the end of the block
            stack.callback(setattr, encoder, "inside", None)
            for name, down, up in zip(self.layers, self.down, self.up):
                layer = encoder.lm.get_submodule(name)
                stack.enter_context(layer.register_forward_hook(partial(self.add, down, up)))
            yield encoder


def build_aligner(art, lm):
    """The Aligner or Inside that a file of steps 2 or 3 holds, frozen."""
    config = art["aligner"]
    aligner = Inside(lm, config["rank"]) if art["arch"] == "inside" else Aligner(**config)
    aligner.load_state_dict(art["state"])
    return aligner.eval().requires_grad_(False)


def logits(heads, x):
    """x (N, D) through the S linear heads of step 3 on standardised inputs: (S, N, C)."""
    return (x - heads["mean"]) / heads["scale"] @ heads["weight"].mT + heads["bias"]


# Data: <root>/<task>/<lang>/{train,dev,test,translated}.tsv, see data/README.md ------------------
def read_lines(path):
    """Lines of a UTF-8 file, composed (NFC), whatever ends them. UserError with file and line."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as err:
        line = err.object.count(b"\n", 0, err.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8; data/convert.py --encoding reads other files")
    except FileNotFoundError:
        hint = "is --data the root, see data/README.md? python data/toy.py makes data/toy"
        raise UserError(f"{path}: no such file; {hint}")
    return unicodedata.normalize("NFC", text).rstrip("\n").split("\n")


def read_texts(lines, file, width):
    """Lines -> texts, composed (NFC), one by one; UserError with the line of one that is none."""
    for number, line in enumerate(lines, 1):
        if re.search("[\udc80-\udcff]", line):  # what errors="surrogateescape" made of other bytes
            raise UserError(f"{file}:{number}: not UTF-8; save the file as UTF-8")
        text = unicodedata.normalize("NFC", line).rstrip("\n").split("\t")
        if len(text) != width or not all(part.strip() for part in text):
            raise UserError(f"{file}:{number}: not {width} filled column(s): empty, or labelled")
        yield tuple(text)


def read_tsv(path, *headers, labels=None):
    """Rows, as tuples, of a tab-separated file without quoting whose header is one of `headers`."""
    header, *rows = [tuple(line.split("\t")) for line in read_lines(path)]
    if " ".join(header) not in headers:
        raise UserError(f"{path}:1: header {header}, not, between tabs: {' or: '.join(headers)}")
    for line, row in enumerate(rows, 2):
        if len(row) != len(header) or row[1:] == header[1:]:
            raise UserError(f"{path}:{line}: not {len(header)} columns, or a second header")
        if not all(cell.strip() for cell in row[1:]):
            raise UserError(f"{path}:{line}: an empty text; fill it or delete the row")
        if labels and row[0] not in labels:
            raise UserError(f"{path}:{line}: label {row[0]!r}, not one of step 1's {labels}")
    if len(rows) < 2:
        raise UserError(f"{path}: {len(rows)} rows below the header; give two or more")
    quoted = sum(any(t[0] == t[-1] == '"' for t in row[1:]) for row in rows) > len(rows) / 2
    warn_if(quoted, f"{path}: most texts stand in quotes, taken as text; use data/convert.py")
    return rows


def describe_task(data, task):
    """info, a task's {"data", "task", "labels", "two_texts"}, from en/train.tsv; no two labels look alike."""
    path = Path(data, task, "en", "train.tsv")
    rows = read_tsv(path, *ROWS)
    labels = sorted({row[0] for row in rows})
    looks = {unicodedata.normalize("NFKC", label).casefold() for label in labels}
    looks = {re.sub(r"[\s\u00ad\u200b-\u200d\ufeff]", "", look) for look in looks}
    if len(looks) < max(2, len(labels)) or "" in looks:
        raise UserError(f"{path}: labels {labels}: give two or more, none empty, no look-alikes")
    told = f"{path}: {len(labels)} classes in {len(rows)} rows; is the label column first?"
    warn_if(len(labels) > max(2, len(rows) / 10), told)
    return {"data": str(data), "task": task, "labels": labels, "two_texts": len(rows[0]) == 3}


def load_task(info, lang, split):
    """A file of the task: (texts, y (N,) int64)."""
    path = Path(info["data"], info["task"], lang, f"{split}.tsv")
    rows = read_tsv(path, ROWS[info["two_texts"]], labels=info["labels"])
    return [row[1:] for row in rows], torch.tensor([info["labels"].index(row[0]) for row in rows])


def load_english(info):
    """(texts, y, dev texts, dev y); without a dev.tsv a tenth of train.tsv is held out."""
    texts, y = load_task(info, "en", "train")
    if Path(info["data"], info["task"], "en", "dev.tsv").exists():
        return texts, y, *load_task(info, "en", "dev")
    kept, held = hold_out(texts)
    return [texts[i] for i in kept], y[kept], [texts[i] for i in held], y[held]


def fixed_order(count, seed=0):
    """A shuffle of range(count), the same everywhere, so that a smaller n is a part of a larger one."""
    return np.random.default_rng(2503 + seed).permutation(count).tolist()


def hold_out(texts):
    """(kept, held out) row numbers, a tenth held out; rows of one first text (a premise) stay together."""
    first = [text[0] for text in texts]
    different = list(dict.fromkeys(first))
    if len(different) < 10:
        raise UserError(f"{len(different)} different texts: too few to hold out some; give 10")
    order = fixed_order(len(different))[: max(1, len(different) // 10)]
    held, rows = {different[i] for i in order}, range(len(texts))
    return [i for i in rows if first[i] not in held], [i for i in rows if first[i] in held]


def load_translated(info, lang, n=None, labelled=False, seed=0):
    """n pairs of translated.tsv, the first in a fixed order: (English texts d_en, translations T(d_en),
    y (n,) if `labelled`). n None: all. The same pair counts once; seed: another order."""
    path = Path(info["data"], info["task"], lang, "translated.tsv")
    rows = read_tsv(path, *PAIRS, labels=info["labels"] if labelled else None)
    rows = list({row[1:]: row for row in reversed(rows)}.values())[::-1]  # of equal ones the first
    if n is not None and n > len(rows):
        raise UserError(f"{path}: {len(rows)} different pairs, not {n}; step 2: --n {len(rows)}")
    rows = [rows[i] for i in fixed_order(len(rows), seed)[:n]]
    y = torch.tensor([info["labels"].index(row[0]) for row in rows]) if labelled else None
    half = len(rows[0]) // 2 + 1
    return [row[1:half] for row in rows], [row[half:] for row in rows], y


# Run folder: encoder/ and .pt files, plain dicts of tensors, numbers and strings -----------------
MAKES = {"embed": "step1_embed.py", "align": "step2_align.py", "head": "step3_head.py"}


def digest_of(*parts):
    """Hex digest of bytes."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def write_atomic(path, content):
    """Write bytes to a temporary file, then rename it to `path`: all or nothing, by rank 0 only."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if RANK == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
    except OSError as err:  # a full disk's own message names no file
        raise OSError(err.errno, f"{err.strerror}; make room or choose another folder", str(path))
    finally:
        temporary.unlink(missing_ok=True)
    if WORLD > 1:
        dist.barrier()


def save(path, kind, **content):
    """Write a .pt file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"kind": kind, **content}, buffer)
    write_atomic(path, buffer.getbuffer())


def load(path, kind, digest=None):
    """The dict in a .pt file; UserError unless whole, of this kind and of the LM of this digest."""
    why = f"not of kind {kind}, damaged, or of another LM or task than encoder/"
    try:
        whole = zipfile.ZipFile(path).testzip() is None  # by the checksum of each part
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if whole and content.get("kind") == kind and digest in (None, content["lm"]):
            return content
    except Exception as err:  # zip and pickle readers raise their own
        why = getattr(err, "strerror", None) or "damaged"
    make = f"make it with the same flags: python {MAKES[kind]}" if kind in MAKES else "delete it"
    raise UserError(f"{path}: {why}; {make}")


def file_name(kind, lang, method, arch=None, n=None, residuals=False, **options):
    """Name of a file of step 2 or 3, without defaults; options: seed, l2, seeds."""
    parts = [kind, lang, "" if method == "langalign" else method, arch]
    parts += [f"n{n}" if n else "", "residuals" if residuals else ""]
    parts += [f"{name}{value}" for name, value in options.items() if value != HEAD_DEFAULTS[name]]
    return "-".join(part for part in parts if part) + ".pt"


def find(out, kind, digest, n, **options):
    """load() of the file of this name; n "*": of the only one. UserError that lists those there."""
    name = file_name(kind, n=n, **options)
    paths = [p for p in Path(out).glob(name) if p.name.count("-") == name.count("-")]
    if len(paths) == 1:
        return load(paths[0], kind, digest) | {"path": paths[0]}
    there = " ".join(sorted(p.name for p in paths or Path(out).glob(f"{kind}-*.pt"))) or "none"
    what = "several fit, say which by --n" if paths else f"no {name}: python {MAKES[kind]} makes it"
    raise UserError(f"{out}: {what}, with the same flags; there: {there}")


def load_pretrained(name, pool="mean", max_len=256):
    """Encoder from a hub name or a folder, as fp32 whatever its file holds; UserError if it is none."""
    options = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
    try:
        lm, told = transformers.AutoModel.from_pretrained(name, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        lost = [key for key in told["missing_keys"] if "pooler" not in key][:2]
        if lost or lm.config.is_encoder_decoder or tokenizer.pad_token_id is None:
            raise ValueError(f"{type(lm).__name__}: no encoder, or without padding, or {lost}")
    except Exception as err:  # hub, file and class each raise their own
        why = " ".join(str(err).split())[:150]
        if "sentencepiece" in why or "tiktoken" in why:
            why = "its tokenizer needs: pip install sentencepiece protobuf"
        raise UserError(f"--model {name}: {why}; give a hub name, or a folder like runs/encoder")
    return Encoder(lm, tokenizer, pool, max_len)


def encoder_digest(folder, info):
    """Digest of an encoder/ folder's files and of what its vectors and labels depend on besides."""
    chosen = repr([info[key] for key in ("task", "labels", "pool", "max_len")])
    paths = sorted(path for path in Path(folder).glob("[!.]*") if path.is_file())
    return digest_of(chosen.encode(), *(path.name.encode() + path.read_bytes() for path in paths))


def load_encoder(out="runs", device="cpu", dtype=None, data=None, batch_tokens=None):
    """(Encoder, frozen; info: what embed.pt holds) of a run folder; data: root in place of step 1's."""
    info, folder = load(Path(out, "embed.pt"), "embed"), Path(out, "encoder")
    if not folder.is_dir() or encoder_digest(folder, info) != info["lm"]:
        raise UserError(f"{folder}: other files than embed.pt belongs to; run step 1 again")
    encoder = load_pretrained(folder, info["pool"], info["max_len"]).eval().requires_grad_(False)
    for parameter in encoder.parameters():  # one by one: buffers such as rotary ones stay fp32
        parameter.data = parameter.data.to(device, dtype)
    encoder.digest, encoder.batch_tokens = info["lm"], batch_tokens
    return encoder.to(device), {**info, "data": data or info["data"]}


def cached(encoder, out, texts, progress="encode"):
    """encode(encoder, texts), (N, D), each text found in <out>/cache if it was encoded before, so that
    n=20000 after n=5000 costs 15,000 pairs. With an Inside on, the embeddings are those of e_A."""
    check_ranks(texts)
    weights = encoder.inside.state_dict().values() if encoder.inside else ()
    inside = digest_of(*(tensor.cpu().numpy().tobytes() for tensor in weights))
    name = f"{encoder.digest[:16]}-{inside[:16]}-{str(encoder.lm.dtype)[6:]}"
    folder, rows = Path(out, "cache", name), {}  # files never change; rows: key -> (D,)
    for path in sorted(folder.glob("*.pt")):
        art = load(path, "cache", encoder.digest)
        rows.update(zip(art["keys"], art["embeddings"]))
    keys = [digest_of("\t".join(text).encode())[:32] for text in texts]
    text_of = dict(zip(keys, texts))
    new = [key for key in text_of if key not in rows]
    if new:
        embeddings = encode(encoder, [text_of[key] for key in new], progress)
        path = folder / f"{digest_of(*map(str.encode, new))[:32]}.pt"
        save(path, "cache", lm=encoder.digest, keys=new, embeddings=embeddings)
        rows.update(zip(new, embeddings))
    return torch.stack([rows[key] for key in keys])


# Command line -----------------------------------------------------------------------------------
bar = partial(tqdm, delay=2, leave=False, disable=RANK > 0)  # shown on what takes over two seconds


def say(*words, **options):
    if RANK == 0:
        print(*words, **options, flush=True)


def warn(words):
    say(f"warning: {words}", file=sys.stderr)


def warn_if(condition, words):
    if condition:
        warn(words)


def make_parser(doc, step):
    """Parser with the flags that the scripts share; `doc` is the docstring, step 4 eval.py."""
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=doc, usage=argparse.SUPPRESS, formatter_class=raw)
    flag = p.add_argument
    flag("--out", default="runs", help="folder of one LM and task's files (default: runs)")
    flag("--seed", type=int, default=0, help="of weights and order; step 3: of A, too (default: 0)")
    flag("--device", help="cuda, cuda:1, mps or cpu; else the first there is")
    amp = "of the LM (default: bf16 where it is native, else fp16 on CUDA, else off: fp32)"
    flag("--amp", choices=("off", "bf16", "fp16"), help=amp)
    flag("--batch-tokens", type=int, help="encoded at once; lower it if memory runs out")
    if step > 1:
        flag("--data", help="root of the data, if it moved since step 1")
        flag("--lang", required=True, help="target language, a folder beside en, e.g. ko")
        flag("--arch", choices=ARCHES, default="fc", help="A: fc and ae are the paper's")
        flag("--n", type=int, help="pairs (paper: 5K to 50K; default: all, or those of the file)")
    if step > 2:
        flag("--method", choices=METHODS, default="langalign", help="what the head learns from")
        flag("--residuals", action="store_true", help="langalign: head on A(x) + r, ours")
        flag("--seeds", type=int, default=HEAD_DEFAULTS["seeds"], help="number of heads (ours: 5)")
        flag("--l2", type=float, default=HEAD_DEFAULTS["l2"], help="times |w|^2 (ours: 0.05)")
    return p


def pick_device(args):
    """(device, dtype of the LM, None: fp32; both in words) of the flags, which are checked first."""
    for name, value in vars(args).items():
        low = {"seed": 0, "epochs": 0, "lr": 0, "l2": 0, "max_len": 3}.get(name, 1)
        if type(value) in (int, float) and not low <= value < 2**32:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {low} or more, below 2^32")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", vars(args).get("lang", "en")):
        raise UserError(f"--lang {args.lang!r}: give a language code such as ko")
    there = torch.accelerator.current_accelerator(True) or torch.device("cpu")
    try:
        device = torch.zeros(1, device=args.device or there).device
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {args.device}: it is not here; leave the flag out")
    device = join_ranks(device)
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    native = has.get("avx512_bf16") or has.get("amx_bf16")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    amp = args.amp or ("bf16" if native else "fp16" if device.type == "cuda" else "off")
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return device, dtype, f"{WORLD} x {device}, amp {amp} ({'' if native else 'no '}native bf16)"


def run(main):
    """Call `main()`. What the user can mend becomes one line on stderr and exit status 2, Ctrl-C 130."""
    sys.stdout.reconfigure(encoding="utf-8")  # labels may be in any script
    transformers.logging.set_verbosity_error()  # its report on BERT's pooler drowns ours
    transformers.logging.disable_progress_bar()
    try:
        main()
    except BrokenPipeError:  # `| head` has what it wants
        os._exit(141)
    except (UserError, OSError, torch.OutOfMemoryError) as err:
        print("error:", " ".join(str(err).split())[:400], file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as err:
        print(str(err) or "stopped; the same command starts again", file=sys.stderr)
        sys.exit(130)
    if WORLD > 1:
        dist.destroy_process_group()
