"""Benchmark of LangAlign (arXiv 2503.18603): time and memory, beside the peers that are installed. No test.

    python tests/bench.py                                        # every part, on runs/embed.pt: 20 minutes or more
    python tests/bench.py --quick --only encode,memory           # smaller: a look, not a measurement
    python tests/bench.py --only memory --dim 384 --points 100000,1000000          # a million pairs
    python tests/bench.py --peer --lang ko --out runs/nli        # accuracy beside a peer library's own recipe

Reads   <out>/embed.pt of step 1 and the data it names. Parts steps23 and memory need neither: they run steps
        2 and 3 as shipped on planted embeddings in a temporary folder (2 GB, with --quick 0.3 GB).
        Peers, each used only if installed: sentence-transformers, accelerate; for --peer datasets as well.
Writes  nothing; with --peer the english and fc heads of step 3, where <out> lacks them.
Prints  as its last line one JSON object (null: no such peer here, no native bf16, or a part not asked for):
        encode_*_ratio       our texts a second / SentenceTransformer.encode's in fp32 at its default batch
        encode_*_best_ratio  the same / its best of four batches in our precision (bf16: cast or autocast)
        encode_*_peak_share  our FLOP/s / those of torch's matrix products at the encoder's shapes; padding
                             is no work.     encode_bf16_cosine: of our bf16 embeddings to our fp32 ones
        step1_ratio          examples a second of step 1 / of Trainer, dev accuracy each epoch included
        fc_seconds, linear_seconds: A from cached embeddings.      heads_ratio: time of 5 heads / of one
        bytes_per_row_over_embedding: memory of step 2 for one more pair / bytes of the pair's embeddings
        With --peer a table in its place: accuracy, difference to english, trained parameters, seconds.
Expect  times of an idle machine only; each is the best of interleaved runs in one process after a warm-up.
"""

import argparse
import contextlib
import copy
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402
import eval as evaluation  # noqa: E402
import peers  # noqa: E402
import step1_embed  # noqa: E402
import step2_align  # noqa: E402
import step3_head  # noqa: E402
from common import UserError, encode, load_encoder, load_task, load_train_dev, load_translated  # noqa: E402
from peers import DEFAULT, has, peer_encode, quiet  # noqa: E402

RESULTS = (
    "encode_fp32_ratio",
    "encode_fp32_best_ratio",
    "encode_fp32_peak_share",
    "encode_bf16_ratio",
    "encode_bf16_best_ratio",
    "encode_bf16_peak_share",
    "encode_bf16_cosine",
    "step1_ratio",
    "fc_seconds",
    "linear_seconds",
    "heads_ratio",
    "bytes_per_row_over_embedding",
)
FULL = dict(
    texts=4_000,
    repeats=2,
    rows=1_000,
    epochs=3,
    pairs=50_000,
    dim=768,
    points=(10_000, 50_000, 100_000, 200_000),
)
QUICK = dict(
    texts=600, repeats=2, rows=192, epochs=1, pairs=8_000, dim=768, points=(10_000, 20_000, 40_000)
)
BATCHES = (16, 32, 64, 128)  # of SentenceTransformer.encode
PRODUCTS = 5  # rounds of a layer's products in one timing of the peak


def sizes(text):
    """argparse type: "1000,2000" -> [1000, 2000]."""
    return [common.positive(n) for n in text.split(",")]


def get_args(argv=None):
    p = common.make_parser(__doc__)
    p.add_argument("--quick", action="store_true", help="smaller sizes: a look, not a measurement")
    p.add_argument("--only", default=",".join(PARTS), help="parts to run, with commas")
    p.add_argument("--points", type=sizes, help="pairs of the memory part: 100000,1000000")
    p.add_argument(
        "--dim", type=common.positive, help="embedding width of steps23 and memory, else 768"
    )
    p.add_argument(
        "--threads", type=common.positive, help="CPU threads of torch, else torch's own choice"
    )
    p.add_argument(
        "--peer",
        action="store_true",
        help="instead of the parts: distil the LM on the run "
        "folder's pairs by sentence-transformers, and compare with the english and fc heads",
    )
    p.add_argument("--lang", help="target language of --peer, e.g. ko")
    p.add_argument("--n", type=common.positive, help="pairs of --peer, else 20000, or all if fewer")
    p.add_argument(
        "--peer-epochs", type=common.positive, default=3, help="the peer's passes over the pairs"
    )
    args = p.parse_args(argv)
    args.only = args.only.split(",")
    if not set(args.only) <= set(PARTS) or args.peer != bool(args.lang):
        raise UserError(
            f"--only takes some of {','.join(PARTS)}; --peer and --lang go together, for "
            "example: python tests/bench.py --peer --lang ko"
        )
    return args


def sync(device):
    """A GPU's work is only queued: wait for it before reading the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_of(jobs, warm, work, repeats, device):
    """({name: seconds of the fastest job(work)}, {name: its value}), after one job(warm) each.

    The jobs take turns, so that a machine that slows down does so for all of them.
    """
    seconds, values = dict.fromkeys(jobs, math.inf), {}
    bar = tqdm(
        [(turn, name) for turn in range(repeats + 1) for name in jobs], unit="run", leave=False
    )
    for turn, name in bar:
        bar.set_description(f"{name}, {f'round {turn}' if turn else 'warm-up'}")
        start = time.perf_counter()
        with quiet():
            values[name] = jobs[name](work if turn else warm)
        sync(device)
        if turn:
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds, values


# encode: ours, the peer's, and the machine's peak
def widths(config):
    return config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)


def flops(config, lengths):
    """Matrix products of a BERT-shaped encoder on texts of these token lengths; multiply and add are two."""
    width, inner = widths(config)
    linear = 2 * (4 * width * width + 2 * width * inner)  # a token: q, k, v, out; up, down
    attention = 2 * 2 * width * sum(length**2 for length in lengths)  # q k^T, and weights times v
    return config.num_hidden_layers * (linear * sum(lengths) + attention)


def peak_job(config, tokens, device, dtype):
    """(job, its FLOP): one layer's products on a batch of `tokens` tokens, nothing else."""
    width, inner = widths(config)
    shapes = [(width, width)] * 4 + [(width, inner), (inner, width)]
    x = {k: torch.randn(tokens, k, device=device, dtype=dtype) for k in (width, inner)}  # (M, K)
    weights = [torch.randn(n, k, device=device, dtype=dtype) for k, n in shapes]  # (N, K)

    def job(_):
        with torch.no_grad():
            for w in weights * PRODUCTS:
                F.linear(x[w.shape[1]], w)

    return job, 2 * tokens * sum(k * n for k, n in shapes) * PRODUCTS


def sentences(info, count):
    """Up to `count` different sentences of all languages' files of the task, in one fixed random order."""
    found = {}
    for path in sorted(
        Path(info["data"], info["task"]).glob("*/t*.tsv")
    ):  # train, translated, test
        rows = common.read_tsv(path, *common.ROWS, *common.PAIRS)
        found |= {(text,): None for row in rows for text in row[1:]}
    if not found:
        raise UserError(
            f"no text in {info['data']}/{info['task']}; start from the folder step 1 was run in"
        )
    return random.Random(common.SHUFFLE_SEED).sample(list(found), min(count, len(found)))


def bench_encode(args, size):
    encoder, info = load_encoder(args.out)
    device, config, peer = args.device, encoder.to(args.device).lm.config, None
    texts = sentences(info, size["texts"])
    lengths = [len(row["input_ids"]) for row in encoder.tokenize(texts)]
    print(
        f"\nencode | {sum(p.numel() for p in encoder.parameters()) / 1e6:.1f}M parameters | {len(texts)} "
        f"sentences of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.1f}",
        flush=True,
    )
    if has("sentence_transformers"):
        peer = peers.peer_model(encoder, device)
        peers.check_same(encoder, peer, texts[:64], device)
        cast = copy.deepcopy(peer).bfloat16()
    jobs, work, tokens = {}, {}, min(common.BATCH_TOKENS.get(device.type, 16_384), sum(lengths))
    dtypes = {"fp32": None, "bf16": args.dtype} if args.dtype == torch.bfloat16 else {"fp32": None}
    for name, dtype in dtypes.items():
        mine = copy.deepcopy(encoder)
        mine.lm.to(dtype or torch.float32)  # as open_run does
        jobs[f"{name} ours"] = partial(encode, mine, device=device)
        jobs[f"{name} peak"], work[f"{name} peak"] = peak_job(
            config, tokens, device, dtype or torch.float32
        )
        for batch in BATCHES if peer else ():
            jobs[f"{name} peer {batch}"] = partial(
                peer_encode, peer, batch=batch, device=device, dtype=dtype
            )
            if dtype:
                jobs[f"{name} peer {batch} cast"] = partial(
                    peer_encode, cast, batch=batch, device=device
                )
    seconds, values = best_of(jobs, texts[:64], texts, size["repeats"], device)
    speed = {
        name: work.get(name, flops(config, lengths)) / seconds[name] for name in jobs
    }  # FLOP/s
    for name in jobs:
        print(
            f"  {name:18s} {speed[name] / 1e9:10.1f} GFLOP/s"
            + ("" if name in work else f" {len(texts) / seconds[name]:10.1f} texts/s")
        )
    found = {}
    for name in dtypes:
        mine, theirs = (
            speed[f"{name} ours"],
            [value for job, value in speed.items() if f"{name} peer" in job],
        )
        found[f"encode_{name}_peak_share"] = mine / speed[f"{name} peak"]
        if peer:
            found[f"encode_{name}_ratio"] = mine / speed[f"fp32 peer {DEFAULT}"]
            found[f"encode_{name}_best_ratio"] = mine / max(theirs)
    if "bf16" in dtypes:
        pair = (values[f"{name} ours"] for name in dtypes)
        found["encode_bf16_cosine"] = F.cosine_similarity(*pair).mean().item()
    return found


# Step 1: our loop and Trainer's, on copies of one encoder; data: ((texts, y), (texts, y)) of train and dev
def ours(data, encoder, own):
    """Dev accuracy after step 1's own loop."""
    torch.manual_seed(0)
    encoder = copy.deepcopy(encoder).requires_grad_(True)
    model = nn.Sequential(
        encoder, nn.Dropout(step1_embed.DROPOUT), nn.Linear(encoder.dim, own.classes)
    )
    (texts, y), dev = data
    return step1_embed.tune(model, (encoder.tokenize(texts), y), dev, own)[-1]["dev"]


@contextlib.contextmanager
def clocked(device, places):
    """Add up the seconds in functions, {name: (owner, attribute)}, while the shipped loop calls them."""
    seconds = dict.fromkeys(places, 0.0)

    def timed(name, function):
        def wrapper(*args, **kwargs):
            sync(device)
            start = time.perf_counter()
            value = function(*args, **kwargs)
            sync(device)
            seconds[name] += time.perf_counter() - start
            return value

        return wrapper

    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(
                mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute)))
            )
        yield seconds


def bench_step1(args, size):
    encoder, info = load_encoder(args.out)
    data = load_train_dev(info["data"], info["task"], "en", info["labels"])
    data = tuple(
        (texts[:n], y[:n]) for (texts, y), n in zip(data, (size["rows"], size["rows"] // 4))
    )
    own = argparse.Namespace(
        epochs=size["epochs"],
        lr=5e-5,
        batch=32,
        seed=0,
        device=args.device,
        dtype=args.dtype,
        classes=len(info["labels"]),
    )  # step 1's defaults
    print(
        f"\nstep1 | {len(data[0][0])} rows of {info['task']}, {len(data[1][0])} dev, {own.epochs} epochs, "
        f"batch {own.batch} | from embed.pt, so dev accuracy may start high",
        flush=True,
    )
    jobs = {"ours": partial(ours, encoder=encoder, own=own)}
    if has("accelerate"):
        jobs["Trainer"] = partial(peers.trainer, encoder=encoder, own=own)
    warm = tuple((texts[:64], y[:64]) for texts, y in data)
    seconds, accuracy = best_of(jobs, warm, data, size["repeats"], args.device)
    for name in jobs:
        print(
            f"  {name:10s} {len(data[0][0]) * own.epochs / seconds[name]:8.1f} examples/s, dev accuracy "
            f"{accuracy[name]:.2%}"
        )
    places = dict(
        forward=(common.Encoder, "forward"),
        backward=(torch.Tensor, "backward"),
        clipping=(nn.utils, "clip_grad_norm_"),
        optimizer=(torch.optim.AdamW, "step"),
        loop=(step1_embed, "train_epoch"),
    )
    no_dev = torch.zeros(len(data[1][0]), encoder.dim)  # forward is to be of the loop alone
    with (
        quiet(),
        mock.patch.object(step1_embed, "encode", return_value=no_dev),
        clocked(args.device, places) as spent,
    ):
        jobs["ours"](data)
    whole = spent.pop("loop")
    spent["rest"] = whole - sum(spent.values())
    print(
        "  our loop: " + ", ".join(f"{name} {value / whole:.0%}" for name, value in spent.items())
    )
    return {"step1_ratio": seconds["Trainer"] / seconds["ours"]} if "Trainer" in jobs else {}


# Steps 2, 3 and memory: the shipped scripts on planted embeddings
def planted(encoder, texts, *_, **__):
    """In common.encode's place, for texts "<i> en ..." and "<i> xx ...": x_i, or a noisy linear map of it.
    All of it follows from i, so no table of all rows is held."""

    def normal(rows, seed):
        return torch.randn(rows, encoder.dim, generator=torch.Generator().manual_seed(seed))

    words = [text[0].split() for text in texts]
    turn = torch.eye(encoder.dim) + 0.3 / encoder.dim**0.5 * normal(encoder.dim, 0)  # (D, D)
    rows = [normal(2, int(word[0])) for word in words]
    x, noise = torch.stack(rows).unbind(1)  # (N, D)
    x[:, 0] += torch.tensor(
        [3.0 - 6.0 * (int(word[0]) % 2) for word in words]
    )  # the label: even or odd
    return torch.where(
        torch.tensor([[word[1] == "xx"] for word in words]), x @ turn + 0.3 * noise, x
    )


def make_world(place, pairs, train, dim):
    """Run folder of a one-layer random encoder of width `dim` with a task of two labels, languages en, xx."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    lm = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=2,
            hidden_size=dim,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
        )
    )
    for part in (
        lm,
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>"),
    ):
        part.save_pretrained(f"{place}/lm")
    new = range(pairs, pairs + 500)
    for path, ids, langs in (
        ("xx/translated", range(pairs), ("en", "xx")),
        ("en/dev", new, ("en",)),
        ("en/train", range(train), ("en",)),
        ("xx/test", new, ("xx",)),
    ):
        path = Path(place, "odd", f"{path}.tsv")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            "\t".join(
                [("even", "odd")[i % 2], *(f"{i} {lang} {'and words ' * 8}" for lang in langs)]
            )
            for i in ids
        ]  # as long as a sentence is
        path.write_text(
            "\n".join(["\t".join(("label", "text", "translation")[: 1 + len(langs)]), *lines])
        )
    with quiet():
        step1_embed.main(
            [
                "--model",
                f"{place}/lm",
                "--data",
                place,
                "--task",
                "odd",
                "--epochs",
                "0",
                "--out",
                place,
                "--device",
                "cpu",
                "--amp",
                "off",
            ]
        )


def bench_steps23(args, size):
    """Steps 2, 3 and eval, twice: the second time nothing may be encoded."""
    n, epochs = size["pairs"], step2_align.EPOCHS
    print(
        f"\nsteps23 | {n} pairs x {size['dim']} dimensions, embeddings there | fc: {epochs} epochs",
        flush=True,
    )
    runs = {
        f"align-xx-{arch}-n{n}": (step2_align, "--n", str(n), "--arch", arch)
        for arch in ("fc", "linear", "procrustes", "shift")
    }
    runs |= {
        "head-english": (step3_head, "--method", "english"),
        "head-english-seeds1": (step3_head, "--method", "english", "--seeds", "1"),
        f"head-langalign-xx-fc-n{n}": (step3_head, "--arch", "fc"),
        "results": (evaluation,),
    }
    seconds, texts = {name: [] for name in runs}, {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as place:
        make_world(place, n, n, size["dim"])
        for turn, name in tqdm(
            [(t, name) for t in (1, 2) for name in runs], desc="steps 2, 3", leave=False
        ):
            script, *flags = runs[name]
            flags += [
                "--out",
                place,
                "--lang",
                "xx",
                "--device",
                str(args.device),
                "--amp",
                args.amp,
            ]
            with mock.patch.object(common, "encode", side_effect=planted) as encoded, quiet():
                script.main(flags)
            texts[name].append(sum(len(call.args[1]) for call in encoded.call_args_list))
            if script is not evaluation:
                kind = name.split("-")[0]
                seconds[name].append(
                    common.load(Path(place, f"{name}.pt"), kind, "")["seconds"][kind]
                )
    for name, values in seconds.items():
        print(
            f"  {name:32s} {', '.join(f'{value:.2f} s' for value in values):20s} texts encoded, first and "
            f"second run: {', '.join(map(str, texts[name]))}"
        )
    best = {name: min(values) for name, values in seconds.items() if values}
    return {
        "fc_seconds": best[f"align-xx-fc-n{n}"],
        "linear_seconds": best[f"align-xx-linear-n{n}"],
        "heads_ratio": best["head-english"] / best["head-english-seeds1"],
    }


# Not ru_maxrss where there is /proc: on Linux it starts at the parent's. Both count the cache's mapped pages.
POINT = r"""
import re, resource, sys, step2_align
step2_align.EPOCHS = 1                                       # later epochs hold no more
step2_align.main(sys.argv[1:])
try:
    print(1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]))
except OSError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def fit_line(n, peaks):
    """(slope, constant) of the least-squares line through the points."""
    return np.polyfit(n, peaks, 1).tolist()


def bench_memory(args, size):
    print(
        f"\nmemory | step 2, fc, {size['dim']} dimensions, on the CPU, a new process a point",
        flush=True,
    )
    points, peaks, own = (
        size["points"],
        [],
        2 * 4 * size["dim"],
    )  # own: a pair's two fp32 embeddings
    with tempfile.TemporaryDirectory() as place:
        make_world(place, max(points), 2_000, size["dim"])
        cpu, encoder = torch.device("cpu"), load_encoder(place)[0]
        task = load_task(place, "odd", "en", "train")[0]
        for n in tqdm(points, desc="memory", unit="point", leave=False):
            with mock.patch.object(common, "encode", planted):
                for texts in (*load_translated(place, "odd", "xx", n)[:2], task):
                    common.Cache(encoder, place, cpu)(texts)  # adds what this n has more
            flags = [
                "--out",
                place,
                "--lang",
                "xx",
                "--n",
                str(n),
                "--device",
                "cpu",
                "--amp",
                "off",
            ]
            done = subprocess.run(
                [sys.executable, "-c", POINT, *flags], cwd=ROOT, text=True, capture_output=True
            )
            if done.returncode:
                raise UserError(
                    f"step 2 with --n {n} failed: {done.stderr.strip().splitlines()[-1]}"
                )
            peaks.append(int(done.stdout.split()[-1]))
            tqdm.write(f"  n = {n:7d}: peak {peaks[-1] / 1e6:8.1f} MB")
    slope, constant = fit_line(points, peaks)
    print(
        f"  line: {slope:.0f} bytes a pair = {slope / own:.2f} x the {own} of its two embeddings, plus "
        f"{constant / 1e6:.0f} MB"
    )
    return {"bytes_per_row_over_embedding": slope / own}


PARTS = {
    "encode": bench_encode,
    "step1": bench_step1,
    "steps23": bench_steps23,
    "memory": bench_memory,
}


def main(argv=None):
    args = get_args(argv)
    args.device, args.dtype, machine = common.pick_device(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    there = [name for name in ("sentence_transformers", "accelerate", "datasets") if has(name)]
    print(
        f"bench | {machine} | {torch.get_num_threads()} threads | torch {torch.__version__}, transformers "
        f"{transformers.__version__} | peers: {' '.join(there) or 'none'}",
        flush=True,
    )
    if args.peer:
        return peers.bench_peer(args)
    found, size = dict.fromkeys(RESULTS), dict(QUICK if args.quick else FULL)
    size |= {"dim": args.dim or size["dim"]}
    size |= {"points": args.points or size["points"]}
    for part in args.only:
        found |= PARTS[part](args, size)
    print(json.dumps({key: value and float(f"{value:.5g}") for key, value in found.items()}))


if __name__ == "__main__":
    common.run(main)
