"""Benchmark of LangAlign (arXiv 2503.18603): its time and memory against what users would run instead. No test.

    python tests/bench.py                                        # every part, on the toy world: 20 minutes
    python tests/bench.py --quick --only encode,step1            # small sizes: a look, no measurement
    python tests/bench.py --peers --only encode                  # sentence-transformers, ONNX, OpenVINO too
    python tests/bench.py --model xlm-roberta-base --data data/real --task nli --lang ko

Parts   encode   texts a second of common.encode against plain transformers code, as in sentence-transformers
        step1    examples a second of step1_embed.tune against Hugging Face Trainer (if accelerate is there),
                 else against a plain loop: trainable table, LM dropout, random batches
        inside   seconds an epoch and peak memory of step2_align.fit_inside against distilling the whole LM
        steps23  seconds of fit (fc), solve (linear) and train_heads on random embeddings (N, 384)
        main     seconds of README's commands in a copy of the repository; with --data on that world
Prints  as its last line one JSON object; ratios are above 1 where ours is faster or smaller:
        encode_fp32_ratio, encode_bf16_ratio   of texts a second; with --peers to the faster torch program
        encode_onnx_ratio, encode_openvino_ratio   to the backend's best of a class (fp32; bf16 or int8);
                                               the smaller of both, null without --peers
        step1_ratio, inside_ratio, inside_memory_ratio, fit_seconds, heads_seconds, main_job_seconds
Expect  numbers of an idle machine only: medians of runs that take turns. Threads are each library's own
        choice; to restrict all of them alike, start the program on fewer cores (taskset).
"""

import argparse
import copy
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402
import step1_embed  # noqa: E402
import step2_align  # noqa: E402
import step3_head  # noqa: E402
from common import UserError, encode, masked_mean  # noqa: E402

KEYS = "encode_fp32_ratio encode_bf16_ratio encode_onnx_ratio encode_openvino_ratio step1_ratio".split()
KEYS += "inside_ratio inside_memory_ratio fit_seconds heads_seconds main_job_seconds".split()
FULL = {"texts": 2_000, "rounds": 5, "rows": 960, "epochs": 2, "pairs": 960, "points": 20_000}
QUICK = {"texts": 400, "rounds": 2, "rows": 128, "epochs": 1, "pairs": 128, "points": 2_000}
PEER_BATCHES = 16, 32, 64, 128  # of SentenceTransformer.encode; 32 is its default
OPERATIONS = {  # part of an operator's name: what it is
    "matrix products": ("mm", "linear", "matmul"),
    "attention": ("scaled_dot_product", "softmax"),
    "gelu": ("gelu",),
    "layer norm": ("layer_norm",),
}
PACKAGE = "sentence-transformers[onnx,openvino]"
PEER = r"""
# Runs in the peers' environment: for each batch size on stdin encodes the texts, answers with seconds
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the libraries print goes to the log
import sentence_transformers as st, torch
place, kind, target = sys.argv[1:]
backend = kind.split()[0]
options = {}
if kind == "openvino f32":
    options = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
model = st.SentenceTransformer(f"{place}/lm", backend=backend, device="cpu", model_kwargs=options)
if kind in ("onnx O3", "onnx int8"):
    folder = f"{place}/{kind}"
    model.save_pretrained(folder)
    if kind == "onnx O3":
        st.export_optimized_onnx_model(model, "O3", folder)
        name = "model_O3.onnx"
    else:
        st.export_dynamic_quantized_onnx_model(model, target, folder, file_suffix="int8")
        name = "model_int8.onnx"
    options = {"file_name": f"onnx/{name}"}
    model = st.SentenceTransformer(folder, backend="onnx", device="cpu", model_kwargs=options)
if kind == "torch bf16":
    model.bfloat16()
texts, model.max_seq_length = json.load(open(f"{place}/texts.json"))
for line in sys.stdin:
    start = time.perf_counter()
    out = model.encode(texts, batch_size=int(line), convert_to_tensor=True, show_progress_bar=False)
    print(time.perf_counter() - start, file=answers, flush=True)
torch.save(out.float(), f"{place}/{kind}.pt")
"""
CLASSES = {"fp32": ("torch fp32", "onnx fp32", "onnx O3", "openvino f32")}
CLASSES["bf16"] = "torch bf16", "onnx int8", "openvino as it is"


def seconds_of(job, device):
    """Seconds of one job(); a GPU's work is only queued, so wait for it."""
    start = time.perf_counter()
    job()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def take_turns(jobs, rounds, device):
    """{name: median seconds} of jobs, A B A B ..., so that a machine that slows down does so for all."""
    spent = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            spent[name].append(seconds_of(job, device))
    return {name: statistics.median(values) for name, values in spent.items()}


def load_all(args):
    """(info, encoder in fp32) of the flags."""
    info = common.describe_task(args.data, args.task)
    return info, common.load_pretrained(args.model).to(args.device)


# encode -----------------------------------------------------------------------------------------
@torch.no_grad()
def plain_encode(encoder, texts, batch=32):
    """What sentence-transformers does: sort by length, batches of 32, padding, mean over tokens."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out, options = torch.zeros(len(texts), encoder.dim), {"padding": True, "return_tensors": "pt"}
    options |= {"truncation": True, "max_length": encoder.max_len}
    for start in range(0, len(order), batch):
        index = order[start : start + batch]
        inputs = encoder.tokenizer([texts[i] for i in index], **options).to(encoder.lm.device)
        hidden = encoder.lm(**inputs).last_hidden_state  # (B, T, D)
        out[index] = masked_mean(hidden, inputs["attention_mask"]).float().cpu()
    return out


def profile(encoder, texts):
    """{kind of operation: share of the time} of one short run of encode."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    field = "self_cpu_time_total"
    if encoder.lm.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        field = "self_device_time_total"
    with torch.profiler.profile(activities=activities) as run:
        whole = seconds_of(partial(encode, encoder, texts), encoder.lm.device)
    shares = dict.fromkeys(OPERATIONS, 0.0)
    for event in run.key_averages():
        kinds = [kind for kind, parts in OPERATIONS.items() if any(p in event.key for p in parts)]
        if kinds:
            shares[kinds[-1]] += getattr(event, field) / 1e6 / whole
    return shares | {"tokenising and the rest": 1 - sum(shares.values())}


def make_environment(folder):
    """The peers' Python, in a virtual environment of their own: they need another transformers."""
    python = Path(folder, "Scripts" if os.name == "nt" else "bin", "python")
    probe = [python, "-c", "import sentence_transformers, optimum.onnxruntime, optimum.intel"]
    if not python.exists() or subprocess.run(probe, capture_output=True).returncode:
        print(f"  pip install {PACKAGE} -> {folder}: minutes, gigabytes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", PACKAGE])
        if done.returncode:
            raise UserError(f"--peers: pip cannot install {PACKAGE} into {folder}; see above")
    return python


def bench_peers(args, ours, texts, reference, found):
    """Each backend at its best batch, taking turns with `ours`, {class: job}; adds ratios to `found`."""
    python, encoder, ratios = make_environment(args.peers), ours["fp32"].args[0], {}
    target = "avx512_vnni" if torch.cpu.get_capabilities().get("avx512_vnni") else "avx2"
    if platform.machine() in ("arm64", "aarch64"):
        target = "arm64"  # of int8
    with tempfile.TemporaryDirectory() as place:
        encoder.lm.save_pretrained(f"{place}/lm")
        encoder.tokenizer.save_pretrained(f"{place}/lm")
        path = Path(place, "lm", "tokenizer_config.json")  # transformers 4 lacks version 5's class
        config = path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
        path.write_text(config)
        Path(place, "texts.json").write_text(json.dumps([texts, encoder.max_len]))
        for name in ours:
            for kind in CLASSES[name]:
                with open(f"{place}/log", "w+") as log:
                    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
                    command = [python, "-c", PEER, place, kind, target]
                    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as worker:

                        def job(batch):
                            worker.stdin.write(f"{batch}\n")
                            return float(worker.stdout.readline())

                        try:
                            job(32)  # warm-up
                            batch = min(PEER_BATCHES, key=job)
                            jobs = {"ours": ours[name], "peer": partial(job, batch)}
                            spent = take_turns(jobs, args.size["rounds"], args.device)
                            worker.stdin.close()
                            worker.wait()
                            out = torch.load(f"{place}/{kind}.pt")
                        except (OSError, ValueError):  # the worker has ended
                            log.seek(0)
                            last = (log.read().strip().splitlines() or ["no message"])[-1]
                            print(f"  {kind:18s} failed: {last[:120]}", flush=True)
                            continue
                ratio = spent["peer"] / spent["ours"]
                ratios.setdefault((kind.split()[0], name), []).append(ratio)
                cosine = F.cosine_similarity(out, reference).mean().item()
                speed = [len(texts) / spent[who] for who in ("peer", "ours")]
                row = "{:8.1f} texts/s, ours {:8.1f}, ratio {:.2f}".format(*speed, ratio)
                print(f"  {kind:18s} {row}; batch {batch}, cosine to fp32 {cosine:.4f}", flush=True)
    for (backend, name), values in ratios.items():
        key = f"encode_{name if backend == 'torch' else backend}_ratio"
        found[key] = min(values + [found[key]] if found.get(key) else values)


def bench_encode(args):
    info, encoder = load_all(args)
    rows = common.load_english(info)[0] + common.load_translated(info, args.lang)[1]
    texts = list(dict.fromkeys(text for row in rows for text in row))
    texts = [texts[i] for i in common.fixed_order(len(texts))[: args.size["texts"]]]
    lengths = [len(row["input_ids"]) for row in encoder.tokenize([(text,) for text in texts])]
    print(f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all")
    encoders = {"fp32": encoder.eval().requires_grad_(False)}
    if args.dtype:
        encoders["bf16"] = copy.deepcopy(encoder)
        for parameter in encoders["bf16"].parameters():
            parameter.data = parameter.data.to(args.dtype)
    reference, found, ours = encode(encoder, texts), {}, {}
    for name, encoder in encoders.items():
        ours[name] = partial(encode, encoder, texts)
        cosines = [F.cosine_similarity(ours[name](), reference).mean().item()]
        plain = partial(plain_encode, encoder, texts)
        cosines.append(F.cosine_similarity(plain(), reference).mean().item())
        spent = take_turns({"ours": ours[name], "plain": plain}, args.size["rounds"], args.device)
        for (who, seconds), cosine in zip(spent.items(), cosines):
            speed = f"{len(texts) / seconds:8.1f} texts/s"
            print(f"  {name} {who:13s} {speed}, cosine to fp32 {cosine:.4f}", flush=True)
        found[f"encode_{name}_ratio"] = spent["plain"] / spent["ours"]
        shares = profile(encoder, texts[:200])
        print("    ours:", ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()))
    if args.peers:
        bench_peers(args, ours, texts, reference, found)
    return found


# step1 ------------------------------------------------------------------------------------------
class Classifier(nn.Module):
    """Step 1's model with the interface that Trainer wants."""

    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(step1_embed.DROPOUT)
        self.head = nn.Linear(encoder.dim, classes)

    def forward(self, labels, **batch):
        logits = self.head(self.dropout(self.encoder(batch)))  # (B, C)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def train_plainly(encoder, texts, y, epochs, dtype):
    """All weights, LM dropout on, random batches of 32."""
    encoder = copy.deepcopy(encoder)
    encoder.autocast = dtype
    model = Classifier(encoder, int(y.max()) + 1).to(encoder.lm.device).train()
    rows = encoder.tokenize(texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    for _ in range(epochs):
        for i in torch.randperm(len(rows)).split(32):
            inputs = common.pad([rows[j] for j in i], encoder.tokenizer, encoder.lm.device)
            loss = model(y[i].to(encoder.lm.device), **inputs)["loss"]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def train_by_trainer(encoder, texts, y, epochs, dtype):
    """Hugging Face Trainer with its own defaults but batch 32."""
    encoder = copy.deepcopy(encoder)
    rows = [row | {"labels": label} for row, label in zip(encoder.tokenize(texts), y.tolist())]
    options = {"num_train_epochs": epochs, "per_device_train_batch_size": 32}
    options |= {"use_cpu": encoder.lm.device.type == "cpu", "save_strategy": "no"}
    options |= {"bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}
    options |= {"report_to": "none", "logging_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(folder, remove_unused_columns=False, **options)
        collator = transformers.DataCollatorWithPadding(encoder.tokenizer)
        model = Classifier(encoder, int(y.max()) + 1)
        data = {"train_dataset": rows, "data_collator": collator}
        transformers.Trainer(model, settings, **data).train()


def train_ours(encoder, texts, y, epochs, dtype):
    encoder = copy.deepcopy(encoder)
    encoder.autocast = dtype
    step1_embed.tune(encoder, texts, y, texts[:8], y[:8], epochs)


def bench_step1(args):
    info, encoder = load_all(args)
    texts, y, *_ = common.load_english(info)
    texts, y, epochs = texts[: args.size["rows"]], y[: args.size["rows"]], args.size["epochs"]
    jobs, peer = {"ours": train_ours}, "plain loop"
    if importlib.util.find_spec("accelerate"):
        peer = "Trainer"
    jobs[peer] = train_by_trainer if peer == "Trainer" else train_plainly
    for job in jobs.values():
        job(encoder, texts[:64], y[:64], 1, args.dtype)  # warm-up
    jobs = {name: partial(job, encoder, texts, y, epochs, args.dtype) for name, job in jobs.items()}
    spent = take_turns(jobs, min(3, args.size["rounds"]), args.device)
    for name, seconds in spent.items():
        print(f"  {name:18s} {len(texts) * epochs / seconds:8.1f} examples/s")
    return {"step1_ratio": spent[peer] / spent["ours"]}


# inside -----------------------------------------------------------------------------------------
def peak_memory(device):
    """Peak bytes of this process. Not ru_maxrss where /proc is: on Linux it can be the parent's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def distil(encoder, texts, y, held, held_y, epochs):
    """fit_inside's loop, but all weights of the LM are trained."""
    optimizer, schedule = common.make_optimizer(encoder.parameters(), 5e-5, epochs * len(y) // 32)
    generator, rows = torch.Generator().manual_seed(0), encoder.tokenize(texts)
    for _ in range(epochs):
        for i, inputs in common.shuffled(encoder, rows, 32, generator, "distil"):
            loss = F.mse_loss(encoder(inputs), y[i].to(encoder.lm.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        history = F.mse_loss(encode(encoder, held), held_y).item()
    return [history]


def one_inside(args, whole):
    """In a process of its own: (seconds an epoch, peak bytes, bytes before the training, held-out MSE)."""
    info, encoder = load_all(args)
    english, target, _ = common.load_translated(info, args.lang)
    n, epochs = min(args.size["pairs"], len(english) * 9 // 10), args.size["epochs"]
    y = encode(encoder, english[: n + 64])  # e(d), (n + 64, D)
    parts = target[:n], y[:n], target[n : n + 64], y[n:]
    if whole:
        encoder.autocast, train = args.dtype, partial(distil, encoder)
    else:
        for parameter in encoder.requires_grad_(False).parameters():
            parameter.data = parameter.data.to(args.dtype)
        train = partial(step2_align.fit_inside, common.Inside(encoder.lm), encoder)
    before, history = peak_memory(args.device), []
    job = partial(train, *parts, epochs=epochs)
    seconds = seconds_of(lambda: history.extend(job()), args.device)
    return seconds / epochs, peak_memory(args.device), before, history[-1]


def bench_inside(args):
    rows = {}
    for name, whole in (("inside", False), ("whole LM", True)):
        runs = []
        for _ in range(min(3, args.size["rounds"])):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                runs.append(pool.submit(one_inside, args, whole).result())
        rows[name] = [statistics.median(column) for column in zip(*runs)]
        seconds, peak, before, mse = rows[name]
        memory = f"peak {peak / 1e6:.0f} MB, {before / 1e6:.0f} before training"
        print(
            f"  {name:18s} {seconds:8.2f} s an epoch, {memory}; held-out MSE {mse:.3g}", flush=True
        )
    ours, theirs = rows.values()
    return {"inside_ratio": theirs[0] / ours[0], "inside_memory_ratio": theirs[1] / ours[1]}


# steps23 and main -------------------------------------------------------------------------------
def bench_steps23(args):
    n, dim, device = args.size["points"], 384, args.device
    torch.manual_seed(0)
    x = torch.randn(n + n // 10, dim)  # (N, D), the last tenth held out
    y = x @ torch.linalg.qr(torch.randn(dim, dim))[0] + 0.3 * torch.randn_like(x)
    labels = (x[:n, 0] > 0).long()
    parts = x[:n], y[:n], x[n:], y[n:]
    jobs = {"fit": lambda: step2_align.fit(common.Aligner("fc", dim).to(device), *parts)}
    jobs["solve"] = lambda: step2_align.solve("linear", *parts)
    jobs["heads"] = lambda: step3_head.train_heads(x[:n].to(device), labels, 2)
    spent = {name: seconds_of(job, device) for name, job in jobs.items()}
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in spent.items())
    print(f"  {n} x {dim}: {told}")
    return {"fit_seconds": spent["fit"], "heads_seconds": spent["heads"]}


def bench_main(args):
    block = re.search(
        r"```sh\n([^`]*python data/toy\.py.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    lines = re.findall(r"^python .*?(?= && \\$|$)", block[1], re.M)
    own, total = args.data != TOY or args.quick, 0.0
    with tempfile.TemporaryDirectory() as place:
        skip = shutil.ignore_patterns(".*", "runs", "toy", "real", "__pycache__")
        shutil.copytree(ROOT, f"{place}/copy", ignore=skip)
        for line in lines:
            command = line.replace("--lang ko", f"--lang {args.lang}").split()[1:]
            if own and command == ["data/toy.py"]:
                continue
            if own and command[0] == "step1_embed.py":
                command += ["--model", args.model, "--data", args.data, "--task", args.task]
            if own and "--n" in command:  # all there are, up to the default
                at = command.index("--n")
                command[at : at + 2] = []
            if command[0] != "data/toy.py":
                command += ["--device", str(args.device), "--amp", args.amp]
            start = time.perf_counter()
            options = {"cwd": f"{place}/copy", "capture_output": True, "text": True}
            done = subprocess.run([sys.executable, *command], **options)
            seconds = time.perf_counter() - start
            if done.returncode:
                raise UserError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
            print(f"  {seconds:8.1f} s  {' '.join(command)}", flush=True)
            total += seconds
    print(f"  {total:8.1f} s  in all")
    return {"main_job_seconds": total}


TOY = str(ROOT / "data" / "toy")
PARTS = {"encode": bench_encode, "step1": bench_step1, "inside": bench_inside}
PARTS |= {"steps23": bench_steps23, "main": bench_main}


def processor():
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main():
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, formatter_class=raw)
    flag = p.add_argument
    flag("--only", default=",".join(PARTS), help="parts to run, with commas (default: all)")
    flag("--quick", action="store_true", help="small sizes; main without building the toy world")
    flag("--model", help="hub name or folder (default: data/toy/encoder)")
    flag("--data", default=TOY, help="root of <task>/<lang>/*.tsv (default: data/toy)")
    flag("--task", default="sentiment", help="folder below --data (default: sentiment)")
    flag("--lang", default="ko", help="target language (default: ko)")
    flag("--device", help="cuda, mps or cpu; else the first there is")
    flag("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto", help="as in step 1")
    there = str(Path(tempfile.gettempdir(), "langalign-peers"))
    peers = f"their environment, made if it is not there (default: {there})"
    flag("--peers", nargs="?", const=there, metavar="FOLDER", help=peers)
    args = p.parse_args()
    args.only = args.only.split(",")
    if not set(args.only) <= set(PARTS):
        raise UserError(f"--only {','.join(args.only)}: give some of {','.join(PARTS)}")
    args.size = QUICK if args.quick else FULL
    args.data = str(Path(args.data).resolve())
    args.model = args.model or f"{TOY}/encoder"
    if Path(args.model).is_dir():
        args.model = str(Path(args.model).resolve())
    args.device, args.dtype, machine = common.pick_device(args)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"bench | {processor()}, {cores} | {machine} | {versions}", flush=True)
    found = dict.fromkeys(KEYS)
    for name in args.only:
        print(f"{name} | {args.model}", flush=True)
        found |= PARTS[name](args)
    print(json.dumps({key: value and float(f"{value:.4g}") for key, value in found.items()}))


if __name__ == "__main__":
    common.run(main)
