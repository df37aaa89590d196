"""What the four scripts share: command line, data loaders, encoder, cache, aligner, artifacts.

Reference implementation of LangAlign (arXiv 2503.18603). A script runs with this file beside it.

Symbols: e(.) the frozen multilingual encoder, A the aligner, d_en an English text, T(d_en) its translation.
Shapes:  N rows, B batch, T tokens, D embedding width, C labels, S head seeds, V vocabulary.
A text is a tuple: (text,), or (text, text_b) in a pair task such as NLI, encoded as one sequence pair.
Embeddings are fp32 tensors (N, D) on the CPU, whatever made them.
"""
import argparse
import contextlib
import functools
import hashlib
import os
import pickletools
import sys
import tempfile
import time
import uuid
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import transformers
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer

FORMAT = 4             # of every .pt written here; raise it when a reader of the old form would misread
SHUFFLE_SEED = 2503    # of the order whose prefixes are the n pairs; not --seed, so 5000 is inside 20000
DEFAULT_N = 20_000     # translated pairs; the paper uses 5K to 50K
HELD_OUT = 0.1         # share of the pairs held out in step 2, and of train where there is no dev.tsv
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))     # set by torchrun
STALE = 3_600          # seconds after which a temporary file is a killed run's
SHARD = 5_000          # rows a cache file holds: the most that a killed run can lose
BATCH_TOKENS = {"cpu": 1_024, "cuda": 65_536, "mps": 16_384}     # of an encoding batch, with padding

# Command line
class UserError(Exception):
    """A mistake that the user can mend: one line that says what, where and how."""

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see: python {self.prog} --help")

class HelpPage(argparse.RawDescriptionHelpFormatter):
    """The script's docstring as it stands, then every flag with its default, if it has one."""
    def _get_help_string(self, action):
        plain = any(action.default is none for none in (None, False, argparse.SUPPRESS))
        return action.help if plain else f"{action.help} (default: %(default)s)"

def make_parser(doc):
    """Parser with the flags that every script has; `doc` is the script's docstring."""
    p = Parser(description=doc, formatter_class=HelpPage)
    p.add_argument("--out", default="runs", help="run folder: the artifacts (.pt) of one LM and one task")
    p.add_argument("--device", help="cuda, cuda:1, mps or cpu; without it the first of these that is there")
    p.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto",
                   help="precision of the LM; auto: bf16 where native, else fp16 on CUDA, fp32 elsewhere")
    p.add_argument("--seed", type=int, default=0, help="of initial weights, batch order and resampling")
    return p

def number(kind, low, below, words):
    """argparse type: a number of `kind` from `low` to less than `below`, `words` in an error."""
    def parse(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) < below:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
    return parse

positive = number(int, 1, float("inf"), "a whole number above 0")
share = number(float, 0, 1, "a number from 0 to below 1")

def run(main):
    """Call `main()`. A UserError becomes one line on stderr and exit status 2, Ctrl-C one line and 130."""
    try:
        main()
        if WORLD > 1:
            dist.destroy_process_group()
    except UserError as err:
        print("error:", *str(err).splitlines(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; nothing is half-written, the same command goes on from the cache", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                                  # `... | head`: the reader has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

def pick_device(args):
    """(device, autocast dtype or None for fp32, both in words with the reason) from --device and --amp."""
    mps = torch.backends.mps.is_available()
    name = args.device or ("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as err:
        raise UserError(f"--device {name}: {str(err).splitlines()[0]}; leave the flag out")
    if WORLD > 1 and not dist.is_initialized():
        join_ranks(device)
    has = getattr(torch.cpu, "get_capabilities", dict)()
    native = device.type == "cpu" and (has.get("avx512_bf16") or has.get("amx_bf16")) or \
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    auto = torch.bfloat16 if native else torch.float16 if device.type == "cuda" else None
    dtype = {"auto": auto, "off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    why = f"--amp {args.amp}" if args.amp != "auto" else "native" if native else "no native bf16"
    where = device if WORLD == 1 else f"{WORLD} x {device}"
    return device, dtype, f"{where} {str(dtype or torch.float32)[6:]} ({why})"

def join_ranks(device):
    """Under torchrun: meet the other ranks, nccl on CUDA, gloo elsewhere. Only rank 0 prints and writes."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if RANK:
        sys.stdout = open(os.devnull, "w")
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)

# Data: <root>/<task>/<lang>/{train,dev,test,translated}.tsv
def read_lines(path):
    """Lines of a UTF-8 file. A line ends at "\\n" or CRLF, nowhere else. UserError with file and line."""
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:                        # err.object: raw without the byte order mark
        line, byte = err.object.count(b"\n", 0, err.start) + 1, err.object[err.start]
        raise UserError(f"{path}:{line}: byte {byte:#04x} is not UTF-8; save the file as UTF-8")
    except (OSError, ValueError) as err:                     # ValueError: NUL in the name
        folder = next(p for p in Path(path).parents if os.path.exists(p))    # the last level that is there
        there = " ".join(sorted(p.name for p in folder.iterdir()))
        raise UserError(f"{path}: {getattr(err, 'strerror', err)}; {folder} has: {there}; data/README.md "
                        "tells what a task needs, python data/toy.py makes a toy world")
    return [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]

def read_tsv(path, required, optional=()):
    """Columns of a tab-separated file with a header and no quoting.

    Returns (names, rows): the required and the present optional columns, and one tuple of strings a row in
    that order; row i stands on line i + 2. Raises UserError with file and line.
    """
    lines = read_lines(path)
    header = lines[0].split("\t")
    missing = [name for name in required if name not in header]
    if missing or len(set(header)) < len(header):
        wrong = f"no column {missing[0]!r}" if missing else "a column twice"
        raise UserError(f"{path}:1: {wrong} in the header {header}; give: {' '.join([*required, *optional])}")
    if len(lines) < 2:
        raise UserError(f"{path}: no rows below the header; data/README.md shows what a file holds")
    names = [*required, *(name for name in optional if name in header)]
    places = [header.index(name) for name in names]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(header) or cells == header:
            wrong = "the header again" if cells == header else f"{len(cells)} columns, not {len(header)}"
            raise UserError(f"{path}:{number}: {wrong}; one row a line, no tab or line break inside a text")
        row = tuple(cells[place] for place in places)
        for name, cell in zip(names, row):
            if not cell.strip() and name != "label":
                raise UserError(f"{path}:{number}: empty {name}; fill it or delete the row")
        rows.append(row)
    return names, rows

def label_ids(path, names, labels):
    """Label names -> (N,) int64; UserError with the line of the first that is none of `labels`."""
    for line, name in enumerate(names, 2):
        if name not in labels:
            wrong = f"label {name!r}" if name else f"no label, as {names.count('')} of {len(names)} rows"
            raise UserError(f"{path}:{line}: {wrong}; the English training labels are {labels}")
    return torch.tensor([labels.index(name) for name in names])

def load_task(root, task, lang, split, labels=None, pair=None):
    """Rows of one split: (texts, y (N,) int64, labels). labels None: the sorted set of this file's; pair: the
    task is one of text pairs, or not, None: either."""
    path = Path(root, task, lang, f"{split}.tsv")
    columns, rows = read_tsv(path, ("label", "text"), ("text_b",))
    if pair not in (None, "text_b" in columns):
        raise UserError(f"{path}:1: {'no' if pair else 'a'} column text_b, other than English train.tsv")
    labels = labels or sorted({row[0] for row in rows} - {""})
    y = label_ids(path, [row[0] for row in rows], labels)
    if len(labels) < 2:
        raise UserError(f"{path}: the labels are {labels}; a task needs two or more")
    return [row[1:] for row in rows], y, labels

def fixed_order(count):
    """The one shuffle of range(count): its first n are the n pairs, so that n=5000 is a subset of n=20000."""
    return np.random.default_rng(SHUFFLE_SEED).permutation(count).tolist()

def load_train_dev(root, task, lang, labels, pair=None, translated=False, n=None):
    """((texts, y) of train, (texts, y) of dev) of a language, or of the translations and labels of n pairs.

    Dev is dev.tsv; where there is none, and for translations, it is a tenth of the rows, held out.
    """
    path = Path(root, task, lang, "translated.tsv" if translated else "train.tsv")
    if translated:
        _, texts, names = load_translated(root, task, lang, n, labels)
        y = label_ids(path, names, labels)
    else:
        texts, y, _ = load_task(root, task, lang, "train", labels, pair)
        if Path(root, task, lang, "dev.tsv").exists():
            return (texts, y), load_task(root, task, lang, "dev", labels, pair)[:2]
    if len(texts) < 2:
        raise UserError(f"{path}: one row, but one is to train on and one held out; give two or more")
    order = fixed_order(len(texts))
    cut = len(order) - max(1, int(HELD_OUT * len(order)))
    return tuple(([texts[i] for i in part], y[part]) for part in (order[:cut], order[cut:]))

def load_translated(root, task, lang, n=None, labels=None):
    """The first n pairs of translated.tsv in the fixed order; n None: DEFAULT_N, or all if fewer.
    With `labels` every row must have one of them.

    Returns (English texts, their translations, label names, "" where unlabelled).
    """
    path = Path(root, task, lang, "translated.tsv")
    names, rows = read_tsv(path, ("label", "text", "translation"), ("text_b", "translation_b"))
    if ("text_b" in names) != ("translation_b" in names):
        raise UserError(f"{path}:1: one of text_b and translation_b; pair tasks have both, other text none")
    if n is not None and n > len(rows):
        raise UserError(f"--n {n}: {path} has {len(rows)} pairs; use --n {len(rows)}, or translate more rows")
    if labels:
        label_ids(path, [row[0] for row in rows], labels)    # before the shuffle: an error names the line
    rows = [rows[i] for i in fixed_order(len(rows))[:n or DEFAULT_N]]
    return [row[1::2] for row in rows], [row[2::2] for row in rows], [row[0] for row in rows]

def volume(texts):
    """What translating `texts` is billed by: {"sentences": a pair has two, "characters": of the source}."""
    return {"sentences": sum(map(len, texts)), "characters": sum(len(part) for t in texts for part in t)}

# e(.): the multilingual encoder
def masked_mean(hidden, attention_mask):
    """(B, T, D), (B, T) -> (B, D): mean over the tokens that are not padding."""
    mask = attention_mask.unsqueeze(-1)                      # (B, T, 1)
    return (hidden * mask).sum(1) / mask.sum(1)

class Encoder(nn.Module):
    """e(.): last hidden states of a Hugging Face encoder, pooled to one vector a text.

    pool: "mean" over the tokens, or "cls", the first token; max_len: tokens a text is cut to.
    """
    def __init__(self, lm, tokenizer, pool, max_len):
        super().__init__()
        if lm.config.is_encoder_decoder or tokenizer.pad_token_id is None or max_len < 1:
            raise ValueError("no encoder with a padding token; use one such as xlm-roberta-base")
        positions = getattr(lm.config, "max_position_embeddings", None) or max_len
        if "roberta" in lm.config.model_type:                # its positions begin behind the padding id
            positions -= lm.config.pad_token_id + 1
        lm.pooler = None                                     # BERT's own, unused: neither counted nor stored
        self.lm, self.tokenizer, self.pool = lm, tokenizer, pool
        self.max_len = min(max_len, positions, tokenizer.model_max_length)
        self.dim = lm.config.hidden_size
        self.amp = None                                      # dtype of autocast, None: as the weights are
        self.fingerprint = None                              # set by save_encoder and load_encoder

    def forward(self, batch):
        """A batch of `pad` -> (B, D) fp32."""
        with torch.autocast(self.lm.device.type, self.amp, enabled=self.amp is not None):
            hidden = self.lm(**batch).last_hidden_state.float()                    # (B, T, D)
        return masked_mean(hidden, batch["attention_mask"]) if self.pool == "mean" else hidden[:, 0]

    def tokenize(self, texts):
        """One {"input_ids": [...], maybe "token_type_ids": [...]} a text, cut to max_len tokens."""
        if not texts:
            return []
        if len({len(text) for text in texts}) > 1:
            raise UserError("single texts and text pairs in one list; a task has one or the other")
        out = self.tokenizer(*map(list, zip(*texts)), truncation=True, max_length=self.max_len,
                             return_attention_mask=False)
        rows = [dict(zip(out, row)) for row in zip(*out.values())]
        full = sum(len(row["input_ids"]) == self.max_len for row in rows)
        if full:
            tqdm.write(f"{full} of {len(rows)} texts fill all {self.max_len} tokens: what is longer was cut",
                       file=sys.stderr)
        return rows

def move(tensor, device):
    """A CPU tensor on the device; a GPU copies it from pinned memory while it computes."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

def pad(rows, pad_id, device):
    """Tokenised rows -> dict of (B, T) int64 tensors, padded on the right, with the attention mask."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    width = int(lengths.max())
    batch = {name: torch.tensor([row[name] + [pad_id if name == "input_ids" else 0] * (width - len(row[name]))
                                 for row in rows]) for name in rows[0]}
    batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    return {name: move(tensor, device) for name, tensor in batch.items()}

def load_pretrained(name, pool, max_len):
    """Encoder from a hub name or a folder, as fp32 whatever its file holds; UserError if it is none."""
    transformers.logging.set_verbosity_error()               # its report on BERT's pooler drowns ours
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        lm = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        return Encoder(lm, tokenizer, pool, max_len)
    except Exception as err:                                 # hub, file and class each raise their own
        why = " ".join(str(err).split())[:150]
        raise UserError(f"--model {name}: {why}; give an encoder's hub name or folder, or run data/toy.py")

def batches(lengths, budget):
    """Row numbers in batches of similar length and at most `budget` tokens, longest first: if memory
    runs out, it does at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    while order:
        size = max(1, budget // lengths[order[0]])
        yield order[:size]
        order = order[size:]

@torch.no_grad()
def encode(encoder, texts, device, budget=None, progress="encode"):
    """Texts -> (N, D) fp32 on the CPU, in input order. budget: tokens in a batch, default BATCH_TOKENS.
    Under torchrun every rank tokenizes and encodes its share of the texts and gets all rows."""
    encoder.eval()
    out, mine = torch.zeros(len(texts), encoder.dim, device=device), torch.arange(RANK, len(texts), WORLD)
    rows = encoder.tokenize(texts[RANK::WORLD])
    cut = batches([len(row["input_ids"]) for row in rows], budget or BATCH_TOKENS[device.type])
    with tqdm(total=len(rows), desc=progress, unit="row", delay=2, leave=False) as bar:
        for index in cut:
            batch = pad([rows[i] for i in index], encoder.tokenizer.pad_token_id, device)
            out[move(mine[index], device)] = encoder(batch)
            bar.update(len(index))
    if WORLD > 1:
        dist.all_reduce(out)                                 # a row is 0 on all ranks but one
    return out.cpu()

class Cache:
    """Embeddings of one frozen LM on disk, found by the text itself: <out>/cache/<fingerprint>-<dtype>/*.pt.

    Only texts never seen before are encoded, so n=50000 after n=20000 costs 30000. Files hold SHARD rows a
    rank, are written whole, never change, and are read memory-mapped, one at a time.
    """
    def __init__(self, encoder, out, device):
        if encoder.training or any(p.requires_grad for p in encoder.parameters()):
            raise UserError("the LM is not frozen: load_encoder freezes it, and embeddings of it may be kept")
        self.encoder, self.device = encoder, device
        self.folder = Path(out, "cache", f"{encoder.fingerprint[:16]}-{str(encoder.lm.dtype)[6:]}")
        self.encoded = 0                                     # texts that this process had to encode
        self.shards, self.where = [], {}                     # files; digest of a text -> (shard, row)
        self.pace = []                                       # seconds a row, of each shard
        for path in sorted(self.folder.glob("*.pt")):
            self._add(path)

    def _load(self, path):
        def build(art):
            keys = art["keys"].numpy().tobytes()             # 16 bytes a row
            require(art["embeddings"].shape == (len(keys) / 16, self.encoder.dim))
            return keys, art["embeddings"], art["seconds"] / len(art["embeddings"])
        return load(path, "cache", f"rm {path}", self.encoder.fingerprint, build)

    def _add(self, path):
        keys, _, pace = self._load(path)
        self.where |= {keys[16 * i:16 * i + 16]: (len(self.shards), i) for i in range(len(keys) // 16)}
        self.shards.append(path)
        self.pace.append(pace)

    def __call__(self, texts, progress="encode"):
        """Texts -> (N, D) fp32. Sets `seconds`: what encoding them costs, in this run or an earlier one."""
        keys = [hashlib.blake2b("\t".join(text).encode(), digest_size=16).digest() for text in texts]
        todo = list({key: text for key, text in zip(keys, texts) if key not in self.where}.items())
        size = SHARD * WORLD
        for start in range(0, len(todo), size):              # a fixed cut: a killed run goes on alike
            part = todo[start:start + size]
            label = f"{progress} {start // size + 1}/{-(-len(todo) // size)}"
            start = time.perf_counter()
            embeddings = encode(self.encoder, [text for _, text in part], self.device, progress=label)
            seconds = time.perf_counter() - start
            if not embeddings.isfinite().all():
                raise UserError("an embedding is not finite: try --amp off, or look at the LM")
            packed = torch.frombuffer(bytearray(b"".join(key for key, _ in part)), dtype=torch.uint8)
            path = self.folder / f"{digest(packed)}.pt"
            save(path, "cache", lm=self.encoder.fingerprint, keys=packed, embeddings=embeddings,
                 seconds=seconds)
            self._add(path)
            self.encoded += len(part)
        places = np.array([self.where[key] for key in keys])          # (N, 2)
        self.seconds = sum(self.pace[self.where[key][0]] for key in set(keys))
        out = torch.empty(len(texts), self.encoder.dim)
        for shard in np.unique(places[:, 0]):
            mine = np.flatnonzero(places[:, 0] == shard)
            out[mine] = self._load(self.shards[shard])[1][places[mine, 1]]
        return out

# A: the aligner
def mlp(widths, dropout):
    """Linear layers between consecutive widths, ReLU and Dropout between them (none after the last)."""
    layers = []
    for width_in, width_out in zip(widths, widths[1:]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])

class Aligner(nn.Module):
    """A(x) = (x - mean_x) W + f((x - mean_x) / scale_x) * scale_y + mean_y, embeddings (N, D) -> (N, D).

    arch "fc": f is `depth` Linear layers of width `hidden` (None: D), ReLU and Dropout between.
    arch "ae": f is an encoder of `depth` layers down to a bottleneck of `hidden` (None: D // 2) and a decoder
               of as many back, widths in equal steps; the paper has 3 and 3.
    else:      no f. W (D, D) is a closed form (shift, procrustes, linear).
    With fc and ae W is 0 in the paper's form, --plain, and else (ours) the closed form "linear", fixed.
    Means and scales are statistics of the training pairs: (D,), scale_y one number.
    """
    def __init__(self, arch, dim, depth=None, hidden=None, dropout=0.0):
        super().__init__()
        self.config = dict(arch=arch, dim=dim, depth=depth, hidden=hidden, dropout=dropout)
        self.f = None
        if arch == "fc":
            self.f = mlp([dim, *[hidden or dim] * (depth - 1), dim], dropout)
        elif arch == "ae":
            down = np.linspace(dim, hidden or dim // 2, depth + 1).round().astype(int).tolist()
            self.f = mlp(down + down[-2::-1], dropout)
        for name, value in (("mean_x", torch.zeros(dim)), ("scale_x", torch.ones(dim)),
                            ("mean_y", torch.zeros(dim)), ("scale_y", torch.ones(())),
                            ("W", torch.zeros(dim, dim))):
            self.register_buffer(name, value)

    def affine(self, x):
        """The part with W."""
        return (x - self.mean_x) @ self.W + self.mean_y

    def learned(self, x):
        """The part with f."""
        return self.f((x - self.mean_x) / self.scale_x) * self.scale_y

    def forward(self, x):
        return self.affine(x) if self.f is None else self.affine(x) + self.learned(x)

    @torch.no_grad()
    def map(self, x, rows=8_192):
        """A(x) of a whole (N, D) tensor on the CPU: no dropout, no gradient, in blocks."""
        self.eval()
        return torch.cat([self(block.to(self.mean_x.device)).cpu() for block in x.split(rows)])

def load_aligner(art, dim):
    """Aligner from an artifact's "aligner" (its config) and "state"; raises unless they fit each other and
    embeddings of width `dim`."""
    require((art["aligner"]["depth"] or 0) <= len(art["state"]), "more layers than weights")
    with torch.device("meta"):                               # it may declare any size
        aligner = Aligner(**art["aligner"])
    aligner.load_state_dict(art["state"], assign=True)
    require(aligner.map(torch.zeros(1, dim)).isfinite().all())
    require(art["arch"] == aligner.config["arch"] and art["n"] > 0)
    return aligner.float().requires_grad_(False)

def logits(heads, x):
    """x (N, D) or (S, B, D) through S linear heads on standardised inputs: (S, N or B, C). See step 3."""
    return (x - heads["mean"]) / heads["scale"] @ heads["weight"].mT + heads["bias"]

# Artifacts: plain dicts of tensors, numbers and strings
NUMBER, COST = (int, float), dict(sentences=int, characters=int)
REPORT = dict(A=dict(r2=NUMBER, p1=NUMBER), held_out=int)
FORMS = {                                                    # what a reader takes from each kind
    "embed": dict(lm=str, state=dict, files=dict, pool=str, max_len=int, data=str, task=str, labels=list,
                  pair=bool),
    "cache": dict(lm=str, keys=torch.Tensor, embeddings=torch.Tensor, seconds=NUMBER),
    "align": dict(lm=str, lang=str, arch=str, n=int, reverse=bool, aligner=dict, state=dict, report=REPORT,
                  residuals=torch.Tensor, seconds=dict(encode=NUMBER, align=NUMBER), cost=COST),
    "head": dict(lm=str, lang=str, method=str, n=(int, type(None)), labels=list, pair=bool, heads=dict,
                 cost=COST, seconds=dict(encode=NUMBER, align=NUMBER, head=NUMBER))}

def digest(value):
    """Hex digest of nested dicts and lists of tensors, numbers and strings: same content, same digest."""
    if isinstance(value, torch.Tensor):
        head = f"{value.dtype}{tuple(value.shape)}"
        parts = [value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()]
    elif isinstance(value, (dict, list, tuple)):
        head, ordered = f"{type(value).__name__}{len(value)}", isinstance(value, (list, tuple))
        parts = [digest(item).encode() for item in (value if ordered else sorted(value.items()))]
    else:
        head, parts = f"{type(value).__name__}{value!r}", []
    hasher = hashlib.blake2b(head.encode(), digest_size=20)
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()

def save(path, kind, args=None, **content):
    """Write an artifact whole or not at all: to a temporary name, then renamed. args: the command line."""
    if args:
        content |= {"config": {key: str(value) for key, value in vars(args).items()}, "seed": args.seed}
    content |= {"kind": kind, "format": FORMAT, "torch": str(torch.__version__),   # str: not its own class
                "transformers": transformers.__version__}
    content["digest"] = digest(content)
    write_whole(path, lambda file: torch.save(content, file))

def wait():
    """Return when all ranks have come here."""
    if WORLD > 1:
        dist.barrier()

def write_whole(path, write):
    """Call write(binary file) on a temporary file beside `path`, then rename it to `path`. Under torchrun all
    ranks wait until rank 0 has."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")     # containers share process ids
    try:
        wait()
        if RANK:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{path.name}.*"):
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink(missing_ok=True)                  # of a killed run
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as err:
        cause = err.__context__                              # torch.save raises its own over what stopped it
        if isinstance(cause, KeyboardInterrupt):
            raise cause
        why = str(cause if isinstance(cause, OSError) else err).splitlines()[0]
        raise UserError(f"{path}: cannot be written ({why}); free space or change --out")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        wait()

def require(fine, words="a value of another type, shape or size"):
    if not fine:
        raise UserError(words)

def check_file(path):
    """Raise unless a .pt file is stored uncompressed and asks its reader for nothing but tensors."""
    with zipfile.ZipFile(path) as parts:
        require(not any(part.compress_type for part in parts.infolist()))
        pickles = [parts.read(name) for name in parts.namelist() if name.endswith(".pkl")]
    codes = [code for pickle in pickles for code in pickletools.genops(pickle)]
    for made in {made for code, made, _ in codes if code.name == "GLOBAL"}:
        require(made in ("collections OrderedDict", "torch._utils _rebuild_tensor_v2")
                or made.startswith("torch ") and made.endswith("Storage"))

def check_plain(content, room):
    """Raise unless `content` is what `save` writes: nested dicts and lists of text, numbers, finite tensors
    of at most `room` bytes: a stranger can declare any size."""
    queue = [content]
    for value in queue:                                      # grows on the way
        if isinstance(value, torch.Tensor):
            require(value.layout == torch.strided and value.numel() * value.element_size() <= room)
            require(not value.is_complex() and value.isfinite().all())
        elif isinstance(value, (dict, list, tuple)):
            queue += value.values() if isinstance(value, dict) else value
            require(len(queue) < 1_000_000)                  # a list that holds itself
        else:
            require(isinstance(value, (str, int, float, type(None))))

def fits(value, form):
    """Is `value` of a type or, where `form` is a dict, a dict whose values under its keys fit?"""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(fits(value.get(key), part) for key, part in form.items())
    return isinstance(value, form)

def load(path, kind, remake, lm=None, build=None):
    """Read an artifact, checked: whole, of this kind, and made with the LM of fingerprint `lm` if given.

    Returns its content, or what `build` makes of it. Whatever goes wrong is a UserError that names `remake`,
    the command that makes the artifact. Nothing in the file is executed.
    """
    path = Path(path)
    try:
        require(path.is_file(), "no such artifact")
        check_file(path)
        content = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        check_plain(content, path.stat().st_size)
        require(content.pop("digest") == digest(content), "damaged, its digest does not fit")
        found = content["kind"], content["format"]
        require(found == (kind, FORMAT), f"kind, format {found}, not {(kind, FORMAT)}")
        wrong = [key for key, form in FORMS.get(kind, {}).items() if not fits(content.get(key), form)]
        require(not wrong, f"no {' '.join(wrong)} of the right type")
        require(lm in (None, content["lm"]), "made with another LM than embed.pt beside it")
        return build(content) if build else content
    except UserError as err:
        why = str(err)
    except Exception as err:                                 # zip, pickle and tensor readers raise their own
        why = f"damaged, or no artifact of this project ({type(err).__name__} {err})"
    raise UserError(f"{path}: {why.splitlines()[0][:200]}; make it with: {remake}")

def save_encoder(path, encoder, args, **content):
    """Write embed.pt: LM weights, config and tokenizer, enough to go on offline. Sets the fingerprint."""
    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.save_pretrained(folder)
        encoder.lm.config.save_pretrained(folder)
        files = {file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
                 for file in sorted(Path(folder).iterdir())}
    state = {name: tensor.detach().cpu() for name, tensor in encoder.lm.state_dict().items()}
    identity = {"state": state, "files": files, "pool": encoder.pool, "max_len": encoder.max_len}
    encoder.fingerprint = digest(identity)
    save(path, "embed", args, lm=encoder.fingerprint, **identity, **content)

@torch.no_grad()
def build_encoder(art):
    """(Encoder, frozen; the artifact less its weights) of the content of an embed.pt, maybe a stranger's."""
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        for file, content in art["files"].items():
            Path(folder, Path(file).name).write_bytes(content.numpy().tobytes())
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    require(getattr(config, "num_hidden_layers", 0) <= len(art["state"]), "more layers than weights")
    with torch.device("meta"):                               # it may declare any size: the shapes first
        lm = AutoModel.from_config(config, trust_remote_code=False)
    Encoder(lm, tokenizer, art["pool"], art["max_len"]).lm.load_state_dict(art["state"], assign=True)
    lm = AutoModel.from_config(config, trust_remote_code=False)
    encoder = Encoder(lm, tokenizer, art["pool"], art["max_len"]).eval().requires_grad_(False)
    encoder.lm.load_state_dict(art.pop("state"))
    encoder.fingerprint = art["lm"]
    row = encoder.tokenize([("a",) * (1 + art["pair"])])[0]
    long = {name: (ids * encoder.max_len)[:encoder.max_len] for name, ids in row.items()}
    trial = pad([row, long], tokenizer.pad_token_id, torch.device("cpu"))      # padded, and of full length
    require(encoder(trial).isfinite().all() and art["pool"] in ("mean", "cls"))
    require(art["labels"] == sorted(set(map(str, art["labels"]))) and len(art["labels"]) > 1)
    return encoder, art

def load_encoder(out):
    """(Encoder, frozen: no gradient, no dropout; what embed.pt holds besides: data, task, labels ...)."""
    return load(Path(out, "embed.pt"), "embed", f"python step1_embed.py --out {out}", build=build_encoder)

def open_run(args):
    """(Cache of the run folder's frozen LM, what embed.pt holds besides, the machine in words)."""
    device, dtype, machine = pick_device(args)
    encoder, info = load_encoder(args.out)
    encoder.lm.to(dtype or torch.float32)                    # frozen, so whole: faster than autocast
    return Cache(encoder.to(device), args.out, device), info, machine

def file_name(*parts, **options):
    """File name of a variant: parts and key+value options joined by "-", empty ones left out."""
    tail = [f"{key}{value}" for key, value in options.items() if value is not None]
    return "-".join([*(str(part) for part in parts if part), *tail]) + ".pt"
