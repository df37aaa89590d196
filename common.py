"""What the four scripts of LangAlign (arXiv 2503.18603) share; a script runs with this file beside it.

Symbols: e(.) the frozen multilingual encoder, A the aligner, d_en an English text, T(d_en) its translation.
Shapes:  N rows, B batch, T tokens, D embedding width, C labels, S head seeds, V vocabulary.
A text is a tuple: (text,), or (text, text_b) in a pair task such as NLI, encoded as one sequence pair.
Embeddings are fp32 tensors (N, D) on the CPU, whatever made them.
"""
import argparse
import contextlib
import functools
import hashlib
import io
import os
import pickletools
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import transformers
from tqdm import tqdm

FORMAT = 5             # of every .pt written here; raise it when a reader of the old form would misread
SHUFFLE_SEED = 2503    # of the order whose prefixes are the n pairs; not --seed, so 5000 is inside 20000
DEFAULT_N = 20_000     # translated pairs; the paper uses 5K to 50K
ARCHES = ("fc", "ae", "linear", "procrustes", "shift")       # of A: the paper's two, then closed forms
HELD_OUT = 0.1         # share of the pairs held out in step 2, and of train where there is no dev.tsv
IDENTITY = "state", "files", "pool", "max_len", "data", "task", "labels"     # whose digest is its fingerprint
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))     # set by torchrun
SHARD = 5_000          # rows a cache file holds: the most that a killed run can lose
BATCH_TOKENS = {"cpu": 1_024, "cuda": 65_536}                    # of an encoding batch, with padding
transformers.logging.set_verbosity_error()                       # its report on BERT's pooler drowns ours

# Command line
class UserError(Exception):
    """A mistake that the user can mend: one line that says what, where and how."""

def make_parser(doc):
    """Parser with the flags that every script has; `doc` is the script's docstring."""
    p = argparse.ArgumentParser(description=doc, usage=argparse.SUPPRESS,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs", help="folder of one LM and task's files (default: %(default)s)")
    p.add_argument("--device", help="cuda, cuda:1, mps or cpu; without it the first of these that is there")
    p.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto",
                   help="precision of the LM; auto (default): bf16 if native, else fp16 on CUDA, else fp32")
    p.add_argument("--seed", type=number(0, 2 ** 40), default=0, help="of weights, order, resampling (0)")
    return p

def number(low, below=float("inf"), kind=int):
    """argparse type: a number of `kind` from `low` to less than `below`."""
    def parse(text):
        if not low <= kind(text) < below:
            raise ValueError                                 # argparse's words: invalid ... value
        return kind(text)
    parse.__name__ = f"{kind.__name__} ({low} or more{f', below {below}' * (below < float('inf'))})"
    return parse

positive, amount, share = number(1), number(0, kind=float), number(0, 1, float)

def run(main):
    """Call `main()`. What the user can mend becomes one line on stderr and exit status 2, Ctrl-C 130."""
    try:
        main()
        if WORLD > 1:
            dist.destroy_process_group()
    except (UserError, OSError, torch.OutOfMemoryError) as err:          # OSError: no such file, disk full
        print("error:", *str(err).splitlines(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; nothing is half-written, the same command starts again", file=sys.stderr)
        sys.exit(130)

def pick_device(args):
    """(device, autocast dtype or None for fp32, both in words with the reason) of --device and --amp."""
    name = args.device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as err:
        raise UserError(f"--device {name}: {str(err).splitlines()[0]}; leave the flag out")
    if WORLD > 1 and not dist.is_initialized():              # torchrun: only rank 0 prints and writes
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if RANK:
            sys.stdout = open(os.devnull, "w")
            tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    has = getattr(torch.cpu, "get_capabilities", dict)()
    native = (torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else
              device.type == "cpu" and (has.get("avx512_bf16") or has.get("amx_bf16")))
    auto = torch.bfloat16 if native else torch.float16 if device.type == "cuda" else None
    dtype = {"auto": auto, "off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    why = f"--amp {args.amp}" if args.amp != "auto" else "native" if native else "no native bf16"
    return device, dtype, f"{WORLD} x " * (WORLD > 1) + f"{device} {str(dtype or torch.float32)[6:]} ({why})"

# Data: <root>/<task>/<lang>/{train,dev,test,translated}.tsv
ROWS = "label text", "label text text_b"                     # headers of a file, of a pair task's
PAIRS = "label text translation", "label text text_b translation translation_b"       # and of translated.tsv

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
        raise UserError(f"{path}: {getattr(err, 'strerror', err)}; {folder} has: {there}; see data/README.md")
    return [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]

def read_tsv(path, *headers):
    """Rows of a tab-separated file without quoting whose header is one of `headers` ("label text"): a list
    of tuples, a string a column; row i stands on line i + 2. Raises UserError with file and line."""
    lines = read_lines(path)
    header = lines[0].split("\t")
    if header not in [allowed.split() for allowed in headers]:
        raise UserError(f"{path}:1: the header is {header}, not, between tabs: {' or: '.join(headers)}")
    rows = [tuple(line.split("\t")) for line in lines[1:]]
    for line, row in enumerate(rows, 2):
        if len(row) != len(header) or list(row) == header:
            wrong = "the header again" if list(row) == header else f"{len(row)} columns, not {len(header)}"
            raise UserError(f"{path}:{line}: {wrong}; one row a line, no tab or line break inside a text")
        if not all(cell.strip() for cell in row[1:]):
            raise UserError(f"{path}:{line}: an empty text; fill it or delete the row")
    if len(rows) < 2:
        raise UserError(f"{path}: {len(rows) or 'no'} rows below the header; give two or more")
    return rows

def label_ids(path, rows, labels):
    """The rows' first column -> (N,) int64; UserError with the line of the first that is none of `labels`."""
    for line, row in enumerate(rows, 2):
        if row[0] not in labels:
            raise UserError(f"{path}:{line}: label {row[0]!r}; the English training labels are {labels}")
    return torch.tensor([labels.index(row[0]) for row in rows])

def load_task(root, task, lang, split, labels=None, pair=None):
    """A split: (texts, y (N,) int64, labels). labels None: this file's, sorted; pair: text pairs or not."""
    path = Path(root, task, lang, f"{split}.tsv")
    rows = read_tsv(path, *(ROWS if pair is None else ROWS[pair:pair + 1]))
    labels = labels or sorted({row[0] for row in rows} - {""})
    y = label_ids(path, rows, labels)
    if len(labels) < 2:
        raise UserError(f"{path}: the labels are {labels}; a task needs two or more")
    return [row[1:] for row in rows], y, labels

def fixed_order(count):
    """The one shuffle of range(count): its first n are the n pairs, so that n=5000 is a subset of n=20000."""
    return np.random.default_rng(SHUFFLE_SEED).permutation(count).tolist()

def load_train_dev(root, task, lang, labels, pair=None, translated=False, n=None):
    """((texts, y) of train, (texts, y) of dev) of a language, or of the translations and labels of n pairs.
    Dev is dev.tsv; where there is none, and for translations, it is a tenth of the rows, held out."""
    if translated:
        _, texts, y = load_translated(root, task, lang, n, labels)
    else:
        texts, y, _ = load_task(root, task, lang, "train", labels, pair)
        if Path(root, task, lang, "dev.tsv").exists():
            return (texts, y), load_task(root, task, lang, "dev", labels, pair)[:2]
    order, held = fixed_order(len(texts)), max(1, int(HELD_OUT * len(texts)))
    return tuple(([texts[i] for i in part], y[part]) for part in (order[:-held] or order, order[-held:]))

def load_translated(root, task, lang, n=None, labels=None):
    """The first n pairs of translated.tsv in the fixed order; n None: DEFAULT_N, or all if fewer: (English
    texts, their translations, y (n,) if there are `labels`, of which each row must have one)."""
    path = Path(root, task, lang, "translated.tsv")
    rows = read_tsv(path, *PAIRS)
    if n is not None and n > len(rows):
        raise UserError(f"--n {n}: {path} has {len(rows)} pairs; use --n {len(rows)}, or translate more rows")
    order, half = fixed_order(len(rows))[:n or DEFAULT_N], len(rows[0]) // 2 + 1
    y = label_ids(path, rows, labels)[order] if labels else None
    return [rows[i][1:half] for i in order], [rows[i][half:] for i in order], y

def volume(texts):
    """What translating `texts` is billed by: {"sentences": a pair has two, "characters": of the source}."""
    return {"sentences": sum(map(len, texts)), "characters": sum(len(part) for t in texts for part in t)}

# e(.): the multilingual encoder
def masked_mean(hidden, attention_mask):
    """(B, T, D), (B, T) -> (B, D): mean over the tokens that are not padding."""
    mask = attention_mask.unsqueeze(-1)                      # (B, T, 1)
    return (hidden * mask).sum(1) / mask.sum(1)

class Encoder(nn.Module):
    """e(.): last hidden states of a Hugging Face encoder, pooled to one vector a text: "mean" over the tokens
    or "cls", the first token. max_len: tokens a text is cut to."""
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
        self.dim, self.amp = lm.config.hidden_size, None     # amp: dtype of autocast, None: of the weights

    def forward(self, batch):
        """A batch of `pad` -> (B, D) fp32."""
        with torch.autocast(self.lm.device.type, self.amp, enabled=self.amp is not None):
            hidden = self.lm(**batch).last_hidden_state.float()                    # (B, T, D)
        return masked_mean(hidden, batch["attention_mask"]) if self.pool == "mean" else hidden[:, 0]

    def tokenize(self, texts):
        """One {"input_ids": [...], maybe "token_type_ids": [...]} a text, cut to max_len tokens."""
        out = self.tokenizer(*map(list, zip(*texts)), truncation=True, max_length=self.max_len,
                             return_attention_mask=False) if texts else {}
        rows = [dict(zip(out, row)) for row in zip(*out.values())]
        if full := sum(len(row["input_ids"]) == self.max_len for row in rows):
            tqdm.write(f"{full} of {len(rows)} texts reach or pass {self.max_len} tokens", file=sys.stderr)
        return rows

def pad(rows, tokenizer, device):
    """Tokenised rows -> dict of (B, T) int64 tensors, padded on the right, with the attention mask."""
    batch = tokenizer.pad(rows, padding_side="right", return_tensors="pt")
    if device.type == "cuda":                                # pinned: copied while the GPU computes
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=device.type == "cuda") for name, tensor in batch.items()}

def load_pretrained(name, pool, max_len):
    """Encoder from a hub name or a folder, as fp32 whatever its file holds; UserError if it is none."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        lm, told = transformers.AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False,
                                                          output_loading_info=True)
        require(all("pooler" in key for key in told["missing_keys"]), "its file lacks weights of the LM")
        return Encoder(lm, tokenizer, pool, max_len)
    except Exception as err:                                 # hub, file and class each raise their own
        why = " ".join(str(err).split())[:150]
        raise UserError(f"--model {name}: {why}; give an encoder's hub name or folder, or run data/toy.py")

def batches(lengths, budget):
    """Row numbers in batches of at most `budget` tokens, longest first: memory runs out at once, if ever."""
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
    cut = batches([len(row["input_ids"]) for row in rows], budget or BATCH_TOKENS.get(device.type, 16_384))
    with tqdm(total=len(rows), desc=progress, unit="row", delay=2, leave=False) as bar:
        for index in cut:
            batch = pad([rows[i] for i in index], encoder.tokenizer, device)
            out[mine[index].to(device)] = encoder(batch)
            bar.update(len(index))
    if WORLD > 1:
        dist.all_reduce(out)                                 # a row is 0 on all ranks but one
    return out.cpu()

class Cache:
    """Embeddings of one frozen LM on disk, found by the text itself: <out>/cache/<fingerprint>-<dtype>/*.pt.
    Only texts never seen before are encoded, so n=50000 after n=20000 costs 30000. Files hold SHARD rows a
    rank, are written whole, never change, and are read memory-mapped, one at a time."""
    def __init__(self, encoder, out, device):
        if encoder.training or any(p.requires_grad for p in encoder.parameters()):
            raise UserError("the LM is not frozen: load_encoder freezes it, and embeddings of it may be kept")
        self.encoder, self.device = encoder, device
        self.folder = Path(out, "cache", f"{encoder.fingerprint[:16]}-{str(encoder.lm.dtype)[6:]}")
        self.where = {}                                      # digest of a text -> (file, row, seconds)
        for path in sorted(self.folder.glob("*.pt")):
            self._read(path)

    def _read(self, path):
        """The embeddings in a file, (M, D); notes where their texts are."""
        def build(art):
            keys, pace = art["keys"].numpy().tobytes(), art["seconds"] / len(art["embeddings"])
            require(art["embeddings"].shape == (len(keys) / 16, self.encoder.dim))
            self.where |= {keys[16 * i:16 * i + 16]: (path, i, pace) for i in range(len(keys) // 16)}
            return art["embeddings"].float()
        return load(path, "cache", f"rm {path}", self.encoder.fingerprint, build)

    def __call__(self, texts, progress="encode"):
        """Texts -> (N, D) fp32. Sets `seconds`: what encoding them costs, in this run or an earlier one."""
        keys = [hashlib.blake2b("\t".join(text).encode(), digest_size=16).digest() for text in texts]
        new = [item for item in dict(zip(keys, texts)).items() if item[0] not in self.where]
        for i in range(0, len(new), SHARD * WORLD):          # a fixed cut: a killed run goes on alike
            part, start = dict(new[i:i + SHARD * WORLD]), time.perf_counter()
            embeddings = encode(self.encoder, list(part.values()), self.device, progress=progress)
            if not embeddings.isfinite().all():
                raise UserError("an embedding is not finite: try --amp off, or look at the LM")
            packed = torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8)
            path = self.folder / f"{digest(packed)}.pt"
            save(path, "cache", lm=self.encoder.fingerprint, keys=packed, embeddings=embeddings,
                 seconds=time.perf_counter() - start)
            self._read(path)
        self.seconds, files = sum(self.where[key][2] for key in set(keys)), {}
        for place, key in enumerate(keys):
            files.setdefault(self.where[key][0], []).append((place, self.where[key][1]))
        out = torch.empty(len(texts), self.encoder.dim)
        for path, places in files.items():
            mine, rows = torch.tensor(places).T
            out[mine] = self._read(path)[rows]
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
    arch "ae": f has `depth` layers down to a bottleneck of `hidden` (None: D // 2), and as many back up.
    else:      no f. W (D, D) is a closed form (shift, procrustes, linear).
    With fc and ae W is 0 in the paper's form, --plain, else (ours) the closed form "linear", fixed. Means and
    scales are the training pairs': (D,), scale_y one number."""
    def __init__(self, arch, dim, depth=None, hidden=None, dropout=0.0):
        super().__init__()
        self.config = dict(arch=arch, dim=dim, depth=depth, hidden=hidden, dropout=dropout)
        self.f = None
        if arch == "fc":
            self.f = mlp([dim, *[hidden or dim] * (depth - 1), dim], dropout)
        elif arch == "ae":
            down = np.linspace(dim, hidden or dim // 2, depth + 1).round().astype(int).tolist()
            self.f = mlp(down + down[-2::-1], dropout)
        shapes = dict(mean_x=(dim,), scale_x=(dim,), mean_y=(dim,), scale_y=(), W=(dim, dim))
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full(shape, float("scale" in name)))

    def affine(self, x):                                     # the part with W
        return (x - self.mean_x) @ self.W + self.mean_y

    def learned(self, x):                                    # the part with f
        return self.f((x - self.mean_x) / self.scale_x) * self.scale_y

    def forward(self, x):
        return self.affine(x) if self.f is None else self.affine(x) + self.learned(x)

    @torch.no_grad()
    def map(self, x, rows=8_192):
        """A(x) of a whole (N, D) tensor on the CPU: no dropout, no gradient, in blocks."""
        self.eval()
        return torch.cat([self(block.to(self.mean_x.device)).cpu() for block in x.split(rows)])

def load_aligner(art, dim):
    """Aligner of an artifact's "aligner" and "state"; raises unless they fit embeddings of width `dim`."""
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
def digest(value, room=float("inf")):
    """Hex digest of nested dicts, lists, text, numbers, finite tensors of up to `room` bytes, no more."""
    if isinstance(value, torch.Tensor):
        require(value.layout == torch.strided and value.numel() * value.element_size() <= room)
        require(not value.is_complex() and value.isfinite().all())
        head = f"{value.dtype}{tuple(value.shape)}"
        tail = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    elif isinstance(value, (dict, list, tuple)):
        items = sorted(value.items()) if isinstance(value, dict) else value
        head = f"{type(value).__name__}{len(value)}"
        tail = "".join(digest(item, room) for item in items).encode()
    else:
        require(isinstance(value, (str, int, float, type(None))))
        head, tail = f"{type(value).__name__}{value!r}", b""
    hasher = hashlib.blake2b(head.encode(), digest_size=20)
    hasher.update(tail)
    return hasher.hexdigest()

def save(path, kind, args=None, **content):
    """Write an artifact whole or not at all: to a temporary name, then renamed. args: the command line."""
    if args:
        content |= {"config": {key: str(value) for key, value in vars(args).items()}, "seed": args.seed}
    content |= {"kind": kind, "format": FORMAT, "torch": str(torch.__version__),   # str: not its own class
                "transformers": transformers.__version__}
    content["digest"] = digest(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())

def write_whole(path, content):
    """Write bytes to a temporary file, then rename it to `path`: all or nothing. Ranks but 0 only wait."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns()}")     # containers share ids
    if WORLD > 1:
        dist.barrier()                                       # all have read what this may replace
    try:
        if RANK == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except OSError as err:
        raise UserError(f"{path}: cannot be written ({err.strerror}); free space or change --out")
    finally:
        for old in path.parent.glob(f".{path.name}.*"):      # this one, if it failed, and killed runs'
            with contextlib.suppress(OSError):
                if old == temporary or time.time() - old.stat().st_mtime > 3_600:
                    old.unlink()
        if WORLD > 1:
            dist.barrier()

def require(fine, words="a value of another type, shape or size"):
    if not fine:
        raise UserError(words)

def check_file(path):
    """Raise unless a .pt file is stored uncompressed and asks its reader for nothing but plain tensors."""
    with zipfile.ZipFile(path) as parts:
        require(not any(part.compress_type for part in parts.infolist()))
        pickles = [parts.read(name) for name in parts.namelist() if name.endswith(".pkl")]
    codes = [code for pickle in pickles for code in pickletools.genops(pickle)]
    plain = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
    require(all(plain.fullmatch(name) for code, name, _ in codes if code.name == "GLOBAL"))

def load(path, kind, remake, lm=None, build=dict):
    """What `build` makes of an artifact, checked: whole, of this kind, of the LM of fingerprint `lm` if any.
    Whatever is wrong is a UserError that names `remake`, the command that makes it. Nothing is executed."""
    try:
        require(os.path.isfile(path), "no such artifact")
        check_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        queue = [content]
        for value in queue:                                  # grows on the way: may hold itself
            queue += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            require(len(queue) < 1_000_000)
        require(content.pop("digest") == digest(content, os.path.getsize(path)), "damaged, digest differs")
        found = content["kind"], content["format"]
        require(found == (kind, FORMAT), f"kind, format {found}, not {(kind, FORMAT)}")
        require(lm in (None, content["lm"]), "made with another LM than embed.pt beside it")
        return build(content)
    except Exception as err:                                 # zip, pickle and tensor readers raise their own
        why = err if isinstance(err, UserError) else f"damaged, or not ours: {type(err).__name__} {err}"
        raise UserError(f"{path}: {str(why).splitlines()[0][:200]}; make it with: {remake}")

def save_encoder(path, encoder, args, **content):
    """Write embed.pt: LM weights, config and tokenizer, enough to go on offline. Sets the fingerprint."""
    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.save_pretrained(folder)
        encoder.lm.config.save_pretrained(folder)
        files = {file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
                 for file in sorted(Path(folder).iterdir())}
    state = {name: tensor.detach().cpu() for name, tensor in encoder.lm.state_dict().items()}
    content |= {"state": state, "files": files, "pool": encoder.pool, "max_len": encoder.max_len}
    encoder.fingerprint = digest({key: content[key] for key in IDENTITY})
    save(path, "embed", args, lm=encoder.fingerprint, **content)

@torch.no_grad()
def build_encoder(art):
    """(Encoder, frozen; the artifact less its weights) of the content of an embed.pt, maybe a stranger's."""
    with tempfile.TemporaryDirectory() as folder:
        for file, content in art["files"].items():
            Path(folder, Path(file).name).write_bytes(content.numpy().tobytes())
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    require(art["lm"] == digest({key: art[key] for key in IDENTITY}), "it was made with another LM or task")
    require(getattr(config, "num_hidden_layers", 0) <= len(art["state"]))
    for device in "meta", "cpu":                             # it may declare any size: the shapes first
        with torch.device(device):
            lm = transformers.AutoModel.from_config(config, trust_remote_code=False)
        encoder = Encoder(lm, tokenizer, art["pool"], art["max_len"]).eval().requires_grad_(False)
        encoder.lm.load_state_dict(art["state"], assign=device == "meta")
    encoder.fingerprint = art["lm"]
    row = encoder.tokenize([("a",) * (1 + art["pair"])])[0]
    long = {name: (ids * encoder.max_len)[:encoder.max_len] for name, ids in row.items()}
    trial = pad([row, long], tokenizer, torch.device("cpu"))                   # padded, and of full length
    require(encoder(trial).isfinite().all() and art["pool"] in ("mean", "cls"))
    require(max(tokenizer.get_vocab().values()) < encoder.lm.get_input_embeddings().num_embeddings)
    require(isinstance(art["data"] + art["task"], str))
    require(art["labels"] == sorted(set(map(str, art["labels"]))) and len(art["labels"]) > 1)
    return encoder, {key: value for key, value in art.items() if key != "state"}

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
