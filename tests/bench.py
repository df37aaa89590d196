"""Benchmark LangAlign (arXiv 2503.18603): time and memory against what users would run instead. This is no test.

    python tests/bench.py                                        # every part, on the toy data
    python tests/bench.py --quick --only encode,step1 --peers    # small sizes, with ONNX and OpenVINO
    python tests/bench.py --model xlm-roberta-base --data data/real --task nli --lang ko

encode   texts per second of common.encode against plain transformers code, as in sentence-transformers
step1    examples per second of step1_embed.tune against Hugging Face Trainer (which needs accelerate)
inside   seconds per epoch and peak memory of step2_align.fit_inside against distilling the LM's layers
steps23  seconds of fit (fc), solve (linear) and train_heads on random embeddings (N, 384)
main     seconds of README's commands, as printed there, in a copy of the repository; --before FOLDER: in turns with
         another checkout
Prints   a JSON object as its last line; null is not measured. A ratio above 1 means that ours is faster or smaller.
         With --peers it is the smallest ratio to a program of that backend in its class (fp32, or bf16 and int8).
         Use an idle machine.
"""

import argparse
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common
import step1_embed
import step2_align
import step3_head
from common import UserError, encode

TOY = str(ROOT / "data" / "toy")
FULL = {"texts": 1_000, "rounds": 3, "rows": 320, "epochs": 2, "points": 20_000}
QUICK = {"texts": 400, "rounds": 2, "rows": 128, "epochs": 1, "points": 2_000}
CLASSES = {"fp32": ["torch fp32", "onnx fp32", "onnx O3", "openvino f32"]}
CLASSES["bf16"] = ["torch bf16", "onnx int8", "openvino as-is"]
PACKAGE, VENV = "sentence-transformers[onnx,openvino]", "runs/peers"
PEER = r"""  # for a batch size on stdin encodes the texts, answers with seconds
import json, os, sys, time, torch, sentence_transformers as st
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the libraries print
place, backend, variant, int8 = sys.argv[1:]
extra = {"f32": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}, "bf16": {"torch_dtype": "bfloat16"}}
load = lambda path, **extra: st.SentenceTransformer(path, device="cpu", backend=backend, model_kwargs=extra)
model = load(f"{place}/lm", **extra.get(variant, {}))
if variant in ("O3", "int8"):
    model.save_pretrained(f"{place}/{variant}")
    export = st.export_optimized_onnx_model if variant == "O3" else st.export_dynamic_quantized_onnx_model
    export(model, "O3" if variant == "O3" else int8, f"{place}/{variant}", file_suffix="new")
    model = load(f"{place}/{variant}", file_name="onnx/model_new.onnx")
texts, model.max_seq_length = json.load(open(f"{place}/texts.json"))
for line in sys.stdin:
    start = time.perf_counter()
    out = model.encode(texts, batch_size=int(line), convert_to_tensor=True, show_progress_bar=False)
    print(time.perf_counter() - start, file=answers, flush=True)
torch.save(out.float(), f"{place}/out.pt")
"""


def seconds_of(job, device):
    start = time.perf_counter()
    job()
    if device.type != "cpu":  # a GPU's work is only queued
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def take_turns(jobs, args):
    """Return the median seconds of each job, run in turns, so that a slow hour is slow for all."""
    rounds = [[seconds_of(job, args.device) for job in jobs] for _ in range(args.size["rounds"])]
    return [median(column) for column in zip(*rounds)]


def load_all(args):
    info = common.describe_task(args.data, args.task)
    return info, common.load_pretrained(args.model).to(args.device)


@torch.no_grad()
def plain_encode(encoder, texts, batch=32):
    """Encode as sentence-transformers does: sorted by length, batches of 32, padding, mean over tokens."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out, options = torch.zeros(len(texts), encoder.dim), {"padding": True, "return_tensors": "pt"}
    options |= {"truncation": True, "max_length": encoder.max_len}
    for start in range(0, len(order), batch):
        index = order[start : start + batch]
        inputs = encoder.tokenizer([texts[i] for i in index], **options).to(encoder.lm.device)
        out[index] = encoder(dict(inputs)).cpu()  # masked mean, (B, D)
    return out


def share_of_products(encoder, texts):
    """Return the share of encode's time in matrix products outside of attention, from one short run."""
    with torch.profiler.profile() as run:
        whole = seconds_of(partial(encode, encoder, texts), encoder.lm.device)
    field = "self_cpu_time_total" if encoder.lm.device.type == "cpu" else "self_device_time_total"
    events = [e for e in run.key_averages() if re.search("mm|linear|matmul", e.key)]
    return sum(getattr(event, field) for event in events) / 1e6 / whole


def bench_peers(args, ours, texts, reference, ratios):
    """Add our ratio to each program of a backend, at its best batch, to `ratios`, {key: [ratio, ...]}."""
    print(f"  pip install {PACKAGE} -> {VENV}", flush=True)
    pip = f"'{VENV}/bin/pip' install -q '{PACKAGE}'"  # their own: they need another transformers
    if os.system(f"'{sys.executable}' -m venv '{VENV}' && {pip}"):
        raise UserError(f"--peers: cannot install {PACKAGE} in {VENV}; see above")
    encoder, has = ours["fp32"].args[0], torch.cpu.get_capabilities()
    int8 = "avx512_vnni" if has.get("avx512_vnni") else "avx2" if has.get("avx2") else "arm64"
    with tempfile.TemporaryDirectory() as place:
        encoder.lm.save_pretrained(f"{place}/lm")
        encoder.tokenizer.save_pretrained(f"{place}/lm")
        path = Path(place, "lm", "tokenizer_config.json")  # transformers 4 lacks version 5's class
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
        Path(place, "texts.json").write_text(json.dumps([texts, encoder.max_len]))
        for name, kind in [(key, kind) for key in ours for kind in CLASSES[key]]:
            command = [f"{VENV}/bin/python", "-c", PEER, place, *kind.split(), int8]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            try:
                with subprocess.Popen(command, bufsize=1, **pipes) as worker:

                    def spend(batch, worker=worker):
                        worker.stdin.write(f"{batch}\n")
                        return float(worker.stdout.readline())

                    spend(32)  # warm-up
                    batch = min((16, 32, 64, 128), key=spend)
                    theirs, mine = take_turns([partial(spend, batch), ours[name]], args)
            except (OSError, ValueError):  # it has ended without an answer
                print(f"  {kind} failed, see above", flush=True)
                continue
            key = name if kind.startswith("torch") else kind.split()[0]
            ratios.setdefault(key, []).append(theirs / mine)
            if kind == "openvino as-is":
                ratios["openvino_bf16"] = [theirs / mine]
            cosine = F.cosine_similarity(torch.load(f"{place}/out.pt"), reference).mean()
            speed = f"{len(texts) / theirs:8.1f} texts/s, ours {len(texts) / mine:8.1f}"
            print(f"  {kind:15s} {speed}; batch {batch}, cosine to fp32 {cosine:.4f}", flush=True)


def bench_encode(args):
    info, encoder = load_all(args)
    rows = common.load_english(info)[0] + common.load_translated(info, args.lang)[1]
    texts = list(dict.fromkeys(text for row in rows for text in row))
    texts = [texts[i] for i in common.fixed_order(len(texts))[: args.size["texts"]]]
    models, ratios, ours = {"fp32": encoder}, {}, {}
    if args.dtype == torch.bfloat16:
        models["bf16"] = copy.deepcopy(encoder).to(args.dtype)
    reference = plain_encode(encoder, texts)
    for kind, model in models.items():
        ours[kind] = partial(encode, model, texts)
        plain = partial(plain_encode, model, texts)
        plain()
        cosine = F.cosine_similarity(ours[kind](), reference).mean()  # and warm-up
        spent = take_turns([ours[kind], plain], args)
        speed = "ours {:.1f} texts/s, plain {:.1f}".format(*(len(texts) / t for t in spent))
        share = f"{share_of_products(model, texts[:200]):.0%} of ours in matrix products"
        print(f"  {kind}: {speed}; cosine to plain fp32 {cosine:.4f}; {share}", flush=True)
        ratios[kind] = [spent[1] / spent[0]]
    if args.peers:
        bench_peers(args, ours, texts, reference, ratios)
    return {f"encode_{key}_ratio": min(values) for key, values in ratios.items()}


def bench_step1(args):
    info, encoder = load_all(args)
    texts, y, *_ = common.load_english(info)
    texts, y, epochs = texts[: args.size["rows"]], y[: args.size["rows"]], args.size["epochs"]
    rows = [row | {"labels": label} for row, label in zip(encoder.tokenize(texts), y.tolist())]
    auto = transformers.AutoModelForSequenceClassification
    options = {"num_labels": len(info["labels"]), "dtype": torch.float32}
    classifier = auto.from_pretrained(args.model, **options).to(args.device)
    encoder.autocast = args.dtype

    def ours(n, epochs):
        step1_embed.tune(copy.deepcopy(encoder), texts[:n], y[:n], texts[:8], y[:8], epochs)

    def peer(n, epochs):  # all weights, LM dropout and random batches, by Trainer's defaults
        options = {"num_train_epochs": epochs, "per_device_train_batch_size": 32}
        options |= {"bf16": args.dtype == torch.bfloat16, "fp16": args.dtype == torch.float16}
        options |= {"use_cpu": args.device.type == "cpu", "disable_tqdm": True}
        with tempfile.TemporaryDirectory() as folder:
            settings = transformers.TrainingArguments(folder, **options)
            options = {"train_dataset": rows[:n], "processing_class": encoder.tokenizer}
            transformers.Trainer(copy.deepcopy(classifier), settings, **options).train()

    for job in ours, peer:
        job(64, 1)  # warm-up
    spent = take_turns([partial(job, len(rows), epochs) for job in (ours, peer)], args)
    speed = [len(rows) * epochs / seconds for seconds in spent]
    print(f"  ours {speed[0]:.1f} examples/s, Trainer {speed[1]:.1f}")
    return {"step1_ratio": spent[1] / spent[0]}


def peak_memory(device):
    """Return the peak bytes, from /proc if possible: on Linux ru_maxrss starts at the parent's value."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if Path("/proc/self/status").exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def one_inside(args, whole):
    """Return (seconds per epoch, peak bytes, bytes before training). Run it in a process of its own."""
    transformers.logging.disable_progress_bar()
    info, encoder = load_all(args)
    english, target, _ = common.load_translated(info, args.lang)
    texts, epochs = target[: args.size["rows"]], args.size["epochs"]
    y = encode(encoder, english[: len(texts)])  # e(d), (N, D)
    aligner, lr = common.Inside(encoder.lm), 1e-3
    if whole:  # instead of A the LM's layers are trained, in mixed precision as in step 1
        encoder.lm.get_input_embeddings().requires_grad_(False)
        encoder.autocast, aligner.lm, lr = args.dtype, encoder.lm, 5e-5
        aligner.layers, aligner.down, aligner.up = [], *[torch.nn.ParameterList()] * 2
    else:
        encoder.requires_grad_(False).to(args.dtype)
    parts, before = (texts, y, texts[:8], y[:8]), peak_memory(args.device)
    job = partial(step2_align.fit_inside, aligner, encoder, *parts, epochs, lr)
    return seconds_of(job, args.device) / epochs, peak_memory(args.device), before


def bench_inside(args):
    runs = {False: [], True: []}
    for whole in [False, True] * min(3, args.size["rounds"]):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            runs[whole].append(pool.submit(one_inside, args, whole).result())
    ours, theirs = ([median(column) for column in zip(*runs[whole])] for whole in runs)
    for name, (seconds, peak, before) in ("inside", ours), ("LM's layers", theirs):
        print(
            f"  {name}: {seconds:.2f} s per epoch, {peak / 1e6:.0f} MB, before {before / 1e6:.0f}"
        )
    return {"inside_ratio": theirs[0] / ours[0], "inside_memory_ratio": theirs[1] / ours[1]}


def bench_steps23(args):
    n, dim, device = args.size["points"], 384, args.device
    x = torch.randn(n + 500, dim)  # (N, D), the last 500 held out
    y = x @ torch.linalg.qr(torch.randn(dim, dim))[0] + 0.3 * torch.randn_like(x)
    parts, labels = (x[:n], y[:n], x[n:], y[n:]), (x[:n, 0] > 0).long()
    fit = seconds_of(lambda: step2_align.fit(common.Aligner("fc", dim).to(device), *parts), device)
    solve = seconds_of(partial(step2_align.solve, "linear", *parts), device)
    heads = seconds_of(partial(step3_head.train_heads, x[:n].to(device), labels, 2), device)
    print(f"  {n} x {dim}: fit {fit:.2f} s, solve {solve:.2f} s, train_heads {heads:.2f} s")
    return {"fit_seconds": fit, "heads_seconds": heads}


def main_job(root):
    """Return the seconds of the commands of README, run in a copy of the checkout `root`."""
    block = (root / "README.md").read_text("utf-8").split("```sh\n", 1)[1].split("```")[0]
    lines = [shlex.split(line, comments=True) for line in re.split(r"&& \\\n|\n", block)]
    total = 0.0
    with tempfile.TemporaryDirectory() as place:
        skip = shutil.ignore_patterns(".*", "runs", "toy", "real", "venv", "__pycache__")
        shutil.copytree(root, f"{place}/copy", ignore=skip)
        for command in [words[1:] for words in lines if words[:1] == ["python"]]:
            start, options = time.perf_counter(), {"capture_output": True, "text": True}
            command = [sys.executable, *command]
            done = subprocess.run(command, check=False, cwd=f"{place}/copy", **options)
            line = " ".join(command[1:])
            if done.returncode:
                raise UserError(f"{line}: {done.stderr.strip()[-200:]}")
            total += time.perf_counter() - start
            print(f"  {time.perf_counter() - start:8.1f} s  {line}", flush=True)
    return total


def bench_main(args):
    if not args.before:
        return {"main_job_seconds": main_job(ROOT)}
    turns = [(main_job(ROOT), main_job(args.before)) for _ in range(args.size["rounds"])]
    now, before = (median(column) for column in zip(*turns))
    return {"main_job_seconds": now, "main_job_ratio": before / now}


PARTS = {"encode": bench_encode, "step1": bench_step1, "inside": bench_inside}
PARTS |= {"steps23": bench_steps23, "main": bench_main}
AIMS = ["encode_openvino_bf16_ratio", "main_job_ratio", "inside_ratio", "inside_memory_ratio"]


def main():
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flag = p.add_argument
    flag("--only", default=",".join(PARTS), help="parts to run, separated by commas (default: all)")
    flag("--quick", action="store_true", help="small sizes (not for main)")
    flag("--model", default=f"{TOY}/encoder", help="hub name or folder (default: data/toy/encoder)")
    flag("--data", default=TOY, help="root of <task>/<lang>/*.tsv (default: data/toy)")
    flag("--task", default="sentiment", help="folder below --data (default: sentiment)")
    flag("--lang", default="ko", help="target language (default: ko)")
    flag("--amp", choices=("off", "bf16", "fp16"), help="precision (default: as in step 1)")
    peers = "compare encode with ONNX and OpenVINO, installed in runs/peers"
    flag("--peers", action="store_true", help=peers)
    flag("--before", type=Path, help="another checkout, to compare main with")
    args = p.parse_args()
    args.only, args.size = args.only.split(","), QUICK if args.quick else FULL
    if not set(args.only) <= set(PARTS):
        raise UserError(f"--only {','.join(args.only)}: expected some of {','.join(PARTS)}")
    if "step1" in args.only and not transformers.utils.is_accelerate_available():
        raise UserError("step1: Trainer needs accelerate; run: pip install accelerate")
    args.device = None  # the first accelerator, else the CPU
    args.device, args.dtype, machine = common.pick_device(args)
    processor = torch.cpu.get_capabilities().get("cpu_name") or os.uname().machine
    print(f"bench | {processor}, {os.cpu_count()} cores | {machine} | torch {torch.__version__}")
    found = dict.fromkeys([*AIMS, "fit_seconds"])
    for name in args.only:
        print(f"{name} | {args.model}", flush=True)
        found |= PARTS[name](args)
    print(json.dumps({key: value and float(f"{value:.4g}") for key, value in found.items()}))


if __name__ == "__main__":
    common.run(main)
