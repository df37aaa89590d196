"""Most comparisons of data/RESULTS.md on one run folder, by the functions of the core.

    python data/experiments.py --out runs/nusax0 --lang jv su min ban                # all methods, all pairs
    python data/experiments.py --out runs/nusax0 --lang jv --n 25 50 100 --subsets 3 # gain against n
    python data/experiments.py --out runs/nusax0 --lang jv --inside                  # minutes a language
    python data/experiments.py --out runs/nusax0 --lang jv --distil --lr 1e-4        # a peer: the LM trained
    python data/experiments.py --table runs/nusax0 runs/nusax1 runs/nusax2           # means over run folders
    python data/experiments.py --table runs/nusax? --over "fc residuals"             # gains over a method

Reads   <out>/ of step1_embed.py, and the task's en, <lang>/test, dev and translated.tsv.
Writes  <out>/experiments.json: a record a method, language, n and seed. The same command again adds what
        is missing, so that a stopped one goes on.
"""

import argparse
import contextlib
import copy
import itertools
import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import Aligner, Inside, UserError, cached, encode, hold_out, load_encoder, load_english
from common import load_task, load_translated, logits, pick_device, run, write_atomic
from eval import bootstrap
from step2_align import fit, fit_inside, solve
from step3_head import train_heads

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # 97.5% quantile for so many runs
STUDENT |= {7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
LR = 3e-3  # of inside and its peer


def calibration_error(probabilities, y, bins=10):
    """Expected calibration error of probabilities (N, C): mean |confidence - accuracy| over ten bins."""
    confidence, guess = probabilities.max(1)
    bin_of = (confidence * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins).index_add(0, bin_of, confidence - (guess == y).float())
    return (gaps.abs().sum() / len(y)).item()


def temperature(probabilities, y):
    """The T that makes softmax(log p / T) fit labels y best, by grid on English dev rows."""
    grid = torch.linspace(0.3, 4.0, 75)
    return min(grid, key=lambda t: F.cross_entropy(probabilities.log() / t, y).item()).item()


class Language:
    """The embeddings and labels of one language that the methods share."""

    def __init__(self, encoder, info, out, lang):
        self.encoder, self.info, self.lang = encoder, info, lang
        self.cache = partial(cached, encoder, out)
        self.texts, self.y, dev_texts, self.dev_y = load_english(info)
        self.x, self.dev_x = self.cache(self.texts), self.cache(dev_texts)  # (N, D), (M, D)
        self.test_texts, self.test_y = load_task(info, lang, "test")
        self.test_x = self.cache(self.test_texts)
        self.premises = np.unique([t[0] for t in self.test_texts], return_inverse=True)[1]
        self.english = self.heads(self.x, self.y)
        self.floor = self.hits(self.english, self.test_x)

    def heads(self, x, y, residuals=None, **options):
        return train_heads(x, y, len(self.info["labels"]), residuals, **options)

    def hits(self, heads, x):
        """Share of the heads that are right on each test row, (N,)."""
        return (logits(heads, x).argmax(2) == self.test_y).double().mean(0)

    def record(self, method, heads, test_x=None, dev_x=None, **fields):
        """Accuracy, gain over English with its interval, and calibration of one method."""
        test_x = self.test_x if test_x is None else test_x
        dev_x = self.dev_x if dev_x is None else dev_x
        gains = (self.hits(heads, test_x) - self.floor).numpy()
        p = logits(heads, test_x).softmax(2).mean(0).clamp_min(1e-9)
        t = temperature(logits(heads, dev_x).softmax(2).mean(0).clamp_min(1e-9), self.dev_y)
        return {
            "lang": self.lang,
            "method": method,
            "accuracy": self.hits(heads, test_x).mean().item(),
            "gain": gains.mean().item(),
            "interval": bootstrap(gains, self.premises),
            "ece": calibration_error(p, self.test_y),
            "ece_tempered": calibration_error((p.log() / t).softmax(1), self.test_y),
            **fields,
        }


def fixed_methods(L):
    """Records of what needs no choice of n: floors, controls and ceilings."""
    yield L.record("english", L.english)
    yield L.record("english, l2 0.2", L.heads(L.x, L.y, l2=0.2))
    unlabelled = L.cache(load_task(L.info, L.lang, "dev")[0])
    yield L.record("centred", L.heads(L.x - L.x.mean(0) + unlabelled.mean(0), L.y))
    if Path(L.info["data"], L.info["task"], L.lang, "train.tsv").exists():
        texts, y = load_task(L.info, L.lang, "train")
        yield L.record("native", L.heads(L.cache(texts), y))

    # No method: a head cross-validated on the test labels
    fold, right = torch.from_numpy(L.premises % 5), 0.0
    for k in range(5):
        heads = L.heads(L.test_x[fold != k], L.test_y[fold != k])
        right += L.hits(heads, L.test_x)[fold == k].sum().item()
    yield {"lang": L.lang, "method": "ceiling", "accuracy": right / len(fold)}


def methods_of_n(L, n, subset, seeds, controls):
    """Records of what is made from n pairs: translations, every A, with and without residuals."""
    english, target, y_pairs = load_translated(L.info, L.lang, n, labelled=True, seed=subset)
    x, y = L.cache(english), L.cache(target)  # e(d_en), e(T(d_en)): (n, D)
    told = {"n": len(english), "subset": subset}
    yield L.record("translated", L.heads(y, y_pairs), **told)
    translated = set(english)
    rest = [i for i, text in enumerate(L.texts) if text not in translated]
    mixed = torch.cat([y, L.x[rest]]), torch.cat([y_pairs, L.y[rest]])
    yield L.record("mixed", L.heads(*mixed), **told)

    train, held = hold_out(english)
    pairs = x[train], y[train], x[held], y[held]
    for arch in (
        ("fc", "ae", "linear", "procrustes", "shift") if controls else ("fc", "linear", "shift")
    ):
        for seed in range(seeds if arch in ("fc", "ae") else 1):
            torch.manual_seed(seed)
            if arch in ("fc", "ae"):
                aligner = Aligner(arch, L.encoder.dim)
                fit(aligner, *pairs, seed=seed)
            else:
                aligner = solve(arch, *pairs)
            r, a, dev = y - aligner.map(x), aligner.map(L.x), aligner.map(L.dev_x)
            yield L.record(arch, L.heads(a, L.y), dev_x=dev, seed=seed, **told)
            yield L.record(f"{arch} residuals", L.heads(a, L.y, r), dev_x=dev, seed=seed, **told)
            if controls and arch == "fc":
                back = Aligner("fc", L.encoder.dim)
                fit(back, y[train], x[train], y[held], x[held], seed=seed)
                yield L.record("rev fc", L.english, test_x=back.map(L.test_x), seed=seed, **told)
            if controls and arch == "fc" and seed == 0:
                yield L.record(
                    "english + residuals, no A", L.heads(L.x, L.y, r - r.mean(0)), **told
                )
                noise = L.x - L.x.mean(0)  # as large as the residuals, of English's own covariance
                noise = noise * (r.var(0).sum() / noise.var(0).sum()).sqrt()
                yield L.record("english + own noise", L.heads(L.x, L.y, noise), **told)


class Peer(nn.Module):
    """The peer of Inside: instead of A, a copy of the whole LM is trained, its word embeddings not."""

    def __init__(self, encoder):
        super().__init__()
        half = encoder.lm.dtype if encoder.lm.dtype != torch.float32 else None
        self.lm, self.autocast = copy.deepcopy(encoder.lm).float(), half
        self.lm.requires_grad_(True)
        for table in self.lm.modules():
            if isinstance(table, nn.Embedding) and table.num_embeddings >= len(encoder.tokenizer):
                table.requires_grad_(False)

    def forward(self, encoder, batch):
        with self.on(encoder):
            return encoder(batch)

    @contextlib.contextmanager
    def on(self, encoder):
        """The encoder, with this LM in place of its own until the `with` block ends."""
        kept, encoder.lm, encoder.autocast = encoder.lm, self.lm, self.autocast
        try:
            yield encoder
        finally:
            encoder.lm, encoder.autocast = kept, None


def inside_of_n(L, n, subset, distil, lr):
    """The record of A inside the LM, or of the LM distilled, from n pairs, with seconds of training."""
    english, target, _ = load_translated(L.info, L.lang, n, seed=subset)
    y = L.cache(english)  # e(d_en), the target of Eq. 1 reversed
    train, held = hold_out(english)
    texts, held_texts = [target[i] for i in train], [target[i] for i in held]
    dev_texts, dev_y = load_task(L.info, L.lang, "dev")
    torch.manual_seed(0)
    inside = Peer(L.encoder) if distil else Inside(L.encoder.lm)
    start = time.perf_counter()
    fit_inside(inside, L.encoder, texts, y[train], held_texts, y[held], lr=lr)
    told = {"n": len(english), "subset": subset, "seconds": time.perf_counter() - start}
    with inside.on(L.encoder):
        test_x = encode(L.encoder, L.test_texts)
        dev = (logits(L.english, encode(L.encoder, dev_texts)).argmax(2) == dev_y).double().mean()
    told["dev"] = dev.item()
    told["parameters"] = sum(p.numel() for p in inside.parameters() if p.requires_grad)
    method = "distilled" if distil else "inside"
    method += f", lr {lr:g}" if distil or lr != LR else ""
    return L.record(method, L.english, test_x, **told)


def read_records(folder):
    """The list in <folder>/experiments.json; UserError if it is damaged."""
    path = Path(folder, "experiments.json")
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: damaged; delete it, and run data/experiments.py again")


def collect(folders, langs=()):
    """{(method, n): {run folder: [record, ...]}} of what has a gain."""
    if len(folders) > max(STUDENT):
        raise UserError(f"{len(folders)} run folders: give {max(STUDENT)} at most")
    gains = {}
    for folder in folders:
        for r in read_records(folder):
            if "gain" in r and r["lang"] in (langs or [r["lang"]]):
                runs = gains.setdefault((r["method"], r.get("n")), {})
                runs.setdefault(folder, []).append(r)
    return gains


def mean_gain(runs, over=None):
    """(mean, half of Student's interval) over run folders; languages, subsets, seeds averaged first.
    over: the runs of another method, whose gain is subtracted run by run."""
    means = [np.mean([r["gain"] for r in records]) for records in runs.values()]
    if over:
        means -= np.array([np.mean([r["gain"] for r in over[folder]]) for folder in runs])
    if len(means) == 1:
        return means[0], 0
    return np.mean(means), STUDENT[len(means)] * np.std(means, ddof=1) / len(means) ** 0.5


def print_table(folders, langs, over=None):
    """Print mean gain over English, or over a method, and Student's interval over run folders."""
    gains = collect(folders, langs)
    if over and over not in {method for method, _ in gains}:
        methods = ", ".join(sorted({method for method, _ in gains}))
        raise UserError(f"--over {over}: give one of {methods}")
    print(f"{'method':28}{'n':>7} runs  accuracy   gain  95% over runs  above 0     ECE  tempered")
    for (method, n), runs in gains.items():
        rows = [r for records in runs.values() for r in records]
        others = gains.get((over, n)) or gains.get((over, None))  # of as many pairs
        if over and not (others and set(runs) <= set(others)):
            continue
        mean, half = mean_gain(runs, others)
        clear = sum(r["interval"][0] > 0 for r in rows)
        interval = f"+-{100 * half:5.2f}" if len(runs) > 1 else "one run"
        numbers = [
            np.mean([r[key] for r in rows]) * 100 for key in ("accuracy", "ece", "ece_tempered")
        ]
        print(
            f"{method:28}{n or '-':>7}{len(runs):5}{numbers[0]:10.2f}{100 * mean:+7.2f}"
            f"{interval:>14}{clear:5}/{len(rows):<3}{numbers[1]:8.1f}{numbers[2]:10.1f}"
        )
    records = [r for folder in folders for r in read_records(folder) if "gain" not in r]
    accuracy = [r["accuracy"] for r in records if r["lang"] in (langs or [r["lang"]])]
    if accuracy:
        print(f"cross-validated on the test labels: {100 * np.mean(accuracy):.2f}")


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, formatter_class=raw)
    p.add_argument("--out", help="run folder of step 1")
    p.add_argument("--lang", nargs="+", default=[], help="target languages")
    p.add_argument(
        "--n", nargs="+", type=int, default=[None], help="numbers of pairs (default: all)"
    )
    p.add_argument("--subsets", type=int, default=1, help="random draws of n pairs (default: 1)")
    p.add_argument("--seeds", type=int, default=3, help="of fc and ae (default: 3)")
    only = p.add_mutually_exclusive_group().add_argument
    only("--inside", action="store_true", help="only A inside the LM: minutes a language")
    only("--distil", action="store_true", help="only the whole LM, distilled on the pairs")
    p.add_argument("--lr", type=float, default=LR, help="of these two (default: 3e-3)")
    p.add_argument("--data", help="root of the data, if it moved since step 1")
    p.add_argument("--table", nargs="+", metavar="OUT", help="print means over these run folders")
    p.add_argument("--over", metavar="METHOD", help="with --table: gains over it, not over english")
    args = p.parse_args(argv)
    if args.table:
        return print_table(args.table, args.lang, args.over)
    if not (args.out and args.lang):
        p.error("give --out, the run folder of step 1, and --lang; or --table")
    if args.lr != LR and not (args.inside or args.distil):
        p.error("--lr goes with --inside or --distil")
    for lang, n in itertools.product(args.lang, args.n):  # every flag is checked before any work
        flags = {**vars(args), "lang": lang, "n": n, "device": None, "amp": None}
        device, dtype, _ = pick_device(argparse.Namespace(**flags))
    encoder, info = load_encoder(args.out, device, dtype, args.data)
    path = Path(args.out, "experiments.json")

    def recorded():
        return read_records(args.out) if path.exists() else []

    done = {json.dumps(r["job"]) for r in recorded()}
    kind = f"distil {args.lr:g}" if args.distil else args.inside
    if args.inside and args.lr != LR:
        kind = f"inside {args.lr:g}"
    for lang in args.lang:
        L = Language(encoder, info, args.out, lang)
        jobs = [[lang, n, s, kind] for n in args.n for s in range(args.subsets)]
        if not kind and args.n == [None]:  # first: it soon misses a file that is not there
            jobs.insert(0, [lang, "fixed", 0, False])
        for job in [job for job in jobs if json.dumps(job) not in done]:
            _, n, subset, kind = job
            if n == "fixed":
                made = fixed_methods(L)
            elif kind:
                made = [inside_of_n(L, n, subset, args.distil, args.lr)]
            else:
                made = methods_of_n(L, n, subset, args.seeds, n is None)
            made = [{**r, "job": job} for r in made]
            for r in made:
                print(f"{lang} {r['method']:28} n {r.get('n')} {100 * r['accuracy']:.2f}")
            write_atomic(path, json.dumps(recorded() + made).encode())


if __name__ == "__main__":
    run(main)
