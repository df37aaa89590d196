"""Compare methods on one run folder, by functions of the core, for data/RESULTS.md.

    python data/experiments.py --out runs/nusax0 --lang jv su min ban                # all methods, all pairs
    python data/experiments.py --out runs/nusax0 --lang jv --n 25 50 100 --subsets 3 # gain against n
    python data/experiments.py --out runs/nusax0 --lang jv --inside                  # only A inside the LM
    python data/experiments.py --out runs/nusax0 --pool jv su min --lang ban ace     # one A of jv su min
    python data/experiments.py --out runs/nusax0 --lang jv --distil --lr 1e-4        # train the LM instead
    python data/experiments.py --out runs/nusax0 --lang jv --noise drop 0.2 --n 100  # worse translations
    python data/experiments.py --table runs/nusax0 runs/nusax1 --over "fc residuals" # means over run folders
    python data/experiments.py --table runs/nolly[0-4] --lang ha yo --minus ha-mt yo-mt  # people minus machine
    python data/experiments.py --table runs/nolly[0-4] --lang ha yo --bench     # n at which a method reaches native

Reads   <out>/ of step 1, and the task's en, <lang>/test, dev and translated.tsv.
Writes  <out>/experiments.json, one record per method, language, n and seed. The same command adds what
        is missing, so that a stopped one continues. Of pairs with the same English the first counts, so that
        two translations of the same rows are compared at the same n.
Expect  with --pool one row of --table per role: languages "seen" in the pool, "unseen", or with "own" pairs (--own).
"""

import argparse
import contextlib
import copy
import json
import re
import sys
import time
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Aligner, Inside, UserError, cached, check_flags, encode, hold_out, load_encoder
from common import fixed_order, load_english, load_task, load_translated, logits, one_line_error
from common import pick_device, run, write_atomic
from eval import bootstrap
from rivals import NOISE, add_noise, unpaired, xite
from step2_align import fit, fit_inside, solve
from step3_head import train_heads

# 97.5% quantile of Student's t for the mean of 2, 3, ..., 10 runs
STUDENT = dict(enumerate([12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262], 2))
LR = 3e-3  # default of fit_inside
SEEDS = {"fc": range(3), "ae": range(3)}  # the closed forms need no seed


class Language:
    """English rows, the English head and the test rows of one language: what the methods share."""

    def __init__(self, encoder, info, out, noise, lang):
        self.encoder, self.info, self.noise, self.lang = encoder, info, noise, lang
        self.cache = partial(cached, encoder, out)
        self.texts, self.y, dev_texts, self.dev_y = load_english(info)
        self.x, self.dev_x = self.cache(self.texts), self.cache(dev_texts)  # (N, D), (M, D)
        self.test_texts, self.test_y = load_task(info, lang, "test")
        self.own_dev_texts, self.own_dev_y = load_task(info, lang, "dev")
        self.test_x, self.own_dev_x = self.cache(self.test_texts), self.cache(self.own_dev_texts)
        self.premises = np.unique([t[0] for t in self.test_texts], return_inverse=True)[1]  # (N,)
        self.english = self.heads(self.x, self.y)

    def heads(self, x, y, residuals=None, **options):
        return train_heads(x, y, len(self.info["labels"]), residuals, **options)

    def pairs(self, lang, n=None, subset=0, labelled=False):
        """Return load_translated's n pairs with distinct English, their translations with noise."""
        english, target, y = load_translated(self.info, lang, labelled=labelled)
        rows = np.argsort(fixed_order(len(english))).tolist()  # in the order of the file
        first = {english[i]: i for i in reversed(rows)}
        rows = [i for i in rows if first[english[i]] == i]
        if (n or 0) > len(rows):
            raise UserError(f"--n {n}: {lang} has {len(rows)} distinct English texts; use fewer")
        rows = [rows[i] for i in fixed_order(len(rows), subset)[:n]]
        english, target = [english[i] for i in rows], [target[i] for i in rows]
        target = add_noise(target, *self.noise, subset) if self.noise else target
        return english, target, y[rows] if labelled else None

    def record(self, method, heads, test_x=None, dev_x=None, own_dev_x=None, out=None, **fields):
        """Return accuracy on test and on the language's dev rows, gain over English with its interval, and calibration
        of heads. test_x, dev_x, own_dev_x: embeddings of test, English dev and own dev rows (default: by the LM alone).
        out: logits on test rows in place of test_x; no dev accuracy is then recorded."""
        if out is None:
            own_dev_x = self.own_dev_x if own_dev_x is None else own_dev_x
            hits = logits(heads, own_dev_x).argmax(2) == self.own_dev_y
            fields["dev"] = hits.double().mean().item()
        out = logits(heads, self.test_x if test_x is None else test_x) if out is None else out
        english = logits(self.english, self.test_x)  # (S, N, C), as out
        hits, baseline = ((x.argmax(2) == self.test_y).double().mean(0) for x in (out, english))
        gains = (hits - baseline).numpy()
        fields |= {"accuracy": hits.mean().item(), "gain": gains.mean()}
        [fields["interval"]] = bootstrap(gains[None], self.premises)

        # Expected calibration error over ten bins, without and with a temperature fitted on dev rows
        dev = logits(heads, self.dev_x if dev_x is None else dev_x)
        log_p, dev = (x.softmax(2).mean(0).clamp_min(1e-9).log() for x in (out, dev))
        grid = torch.linspace(0.3, 4.0, 75)
        fitted = min(grid, key=lambda t: F.cross_entropy(dev / t, self.dev_y).item())
        for name, t in ("ece", 1), ("ece_tempered", fitted):
            confidence, guess = (log_p / t).softmax(1).max(1)
            bin_of = (10 * confidence).long().clamp_max(9)
            gap = confidence - (guess == self.test_y).float()
            fields[name] = torch.zeros(10).index_add(0, bin_of, gap).abs().sum().item() / len(gap)
        return {"lang": self.lang, "method": method} | fields


def methods_without_pairs(L):
    """Yield the records of English heads, methods on unlabelled text, native rows and a ceiling. Unlabelled text is the
    dev texts; "all texts" adds those of train.tsv, or without that file the translations."""
    yield L.record("english", L.english)
    yield L.record("english, l2 0.2", L.heads(L.x, L.y, l2=0.2))
    native = Path(L.info["data"], L.info["task"], L.lang, "train.tsv").exists()
    texts, y = load_task(L.info, L.lang, "train") if native else (L.pairs(L.lang)[1], None)
    x = L.cache(texts)
    for name, target in ("", L.own_dev_x), (", all texts", torch.cat([L.own_dev_x, x])):
        yield L.record(f"centred{name}", L.heads(L.x - L.x.mean(0) + target.mean(0), L.y))
        yield L.record(f"xite{name}", L.heads(*xite(L.x, L.y, target)))
        for start in ("anchors", "identity"):
            aligner = unpaired(L.x, target, start)
            heads, dev_x = L.heads(aligner.map(L.x), L.y), aligner.map(L.dev_x)
            yield L.record(f"unpaired from {start}{name}", heads, dev_x=dev_x)
    if native:
        yield L.record("native", L.heads(x, y))

    # No method: each fifth of the test rows has heads trained on the labels of the others
    fold, out = torch.from_numpy(L.premises % 5), logits(L.english, L.test_x)
    for k in range(5):
        heads = L.heads(L.test_x[fold != k], L.test_y[fold != k])
        out[:, fold == k] = logits(heads, L.test_x[fold == k])
    yield L.record("ceiling", heads, out=out)


def methods_of_n(L, n, subset):
    """Yield the records of n translations: translated, mixed, rev fc, and each A with and without residuals. With all
    pairs (n None) also procrustes, more seeds, controls, and the methods without pairs."""
    english, target, y_pairs = L.pairs(L.lang, n, subset, labelled=True)
    x, y = L.cache(english), L.cache(target)  # e(d_en), e(T(d_en)): (n, D)
    fields = {"n": len(english), "subset": subset}
    if n is None and subset == 0 and not L.noise:
        yield from methods_without_pairs(L)
    yield L.record("translated", L.heads(y, y_pairs), **fields)
    translated = set(english)
    rest = [i for i, text in enumerate(L.texts) if text not in translated]
    mixed = L.heads(torch.cat([y, L.x[rest]]), torch.cat([y_pairs, L.y[rest]]))
    yield L.record("mixed", mixed, **fields)

    train, held = hold_out(english)
    pairs = x[train], y[train], x[held], y[held]
    arches = ["fc", "ae", "linear", "shift"] + ([] if n else ["procrustes"])
    for arch, seed in [(a, s) for a in arches for s in SEEDS.get(a, [0])[: 1 if n else None]]:
        torch.manual_seed(seed)
        if arch in SEEDS:
            aligner = Aligner(arch, L.encoder.dim)
            fit(aligner, *pairs, seed=seed)
        else:
            aligner = solve(arch, *pairs)
        fields["seed"] = seed
        r, a, dev_x = y - aligner.map(x), aligner.map(L.x), aligner.map(L.dev_x)
        yield L.record(arch, L.heads(a, L.y), dev_x=dev_x, **fields)
        yield L.record(f"{arch} residuals", L.heads(a, L.y, r), dev_x=dev_x, **fields)
        if arch == "fc":
            back = Aligner("fc", L.encoder.dim)
            fit(back, y[train], x[train], y[held], x[held], seed=seed)
            own = {"test_x": back.map(L.test_x), "own_dev_x": back.map(L.own_dev_x)}
            yield L.record("rev fc", L.english, **own, **fields)
        if arch == "fc" and not n and seed == 0:
            heads = L.heads(L.x, L.y, r - r.mean(0))
            yield L.record("english + residuals, no A", heads, **fields)
            noise = L.x - L.x.mean(0)  # of the residuals' variance and English's covariance
            noise = noise * (r.var(0).sum() / noise.var(0).sum()).sqrt()
            yield L.record("english + own noise", L.heads(L.x, L.y, noise), **fields)


class Peer(Inside):
    """The peer of Inside: a copy of the whole LM is trained, except its word embeddings."""

    def __init__(self, encoder):
        torch.nn.Module.__init__(self)
        self.lm = copy.deepcopy(encoder.lm).float().requires_grad_(True)
        self.lm.get_input_embeddings().requires_grad_(False)
        self.autocast = None if encoder.lm.dtype == torch.float32 else encoder.lm.dtype

    @contextlib.contextmanager
    def on(self, encoder, merge=True):
        kept, encoder.lm, encoder.autocast = encoder.lm, self.lm, self.autocast
        try:
            yield encoder
        finally:
            encoder.lm, encoder.autocast = kept, None


def inside_of(*languages, kind, pool, n, subset, own, owner, lr, epochs, noise=None):
    """Train A inside the LM, or distil the LM, on n pairs of each language in `pool` and `own` pairs of `owner`,
    and yield one record per language, whose n is the number of that language's pairs (None: unseen)."""
    L, english, target, sizes = languages[0], [], [], {}
    counts = dict.fromkeys(pool, n) | ({owner: own} if own else {})
    for lang, count in counts.items():
        pairs = L.pairs(lang, count, subset)
        english, target, sizes[lang] = english + pairs[0], target + pairs[1], len(pairs[0])
    y, (train, held) = L.cache(english), hold_out(english)  # y = e(d_en), (n, D)
    texts, held_texts = [target[i] for i in train], [target[i] for i in held]
    torch.manual_seed(0)
    inside = Peer(L.encoder) if kind == "distilled" else Inside(L.encoder.lm)
    start = time.perf_counter()
    fit_inside(inside, L.encoder, texts, y[train], held_texts, y[held], epochs=epochs, lr=lr)
    fields = {"seconds": time.perf_counter() - start, "subset": subset}
    fields["parameters"] = sum(p.numel() for p in inside.parameters() if p.requires_grad)

    options = f", lr {lr:g}" if kind == "distilled" or lr != LR else ""
    options += f", {epochs} epochs" if epochs else ""
    for L in languages:
        name = kind + options
        if kind == "pool":
            role = "own" if L.lang == owner else "seen" if L.lang in pool else "unseen"
            others = f" and {own} of another" if own and role != "own" else ""
            each = f", {n} each" if n else ""
            name = f"inside of {' '.join(pool)}{others}{each}{options}, {role}"
        with inside.on(L.encoder):
            test_x, own_dev_x = encode(L.encoder, L.test_texts), encode(L.encoder, L.own_dev_texts)
        fields["n"] = sizes.get(L.lang)
        yield L.record(name, L.english, test_x, own_dev_x=own_dev_x, **fields)


def read_records(folder):
    """Return the records of a run folder, [] before the first."""
    path = Path(folder, "experiments.json")
    return json.loads(path.read_text()) if path.exists() else []


def collect(folders, langs=(), key=lambda r: (r["method"], r.get("n"))):
    """Return {key(record): {(run folder, language): [record, ...]}} (langs (): of all languages)."""
    if len(folders) > max(STUDENT):
        raise UserError(f"{len(folders)} run folders; at most {max(STUDENT)} are possible")
    gains = {}
    for folder in folders:
        if not (records := read_records(folder)):
            command = f"python data/experiments.py --out {folder} --lang ..."
            raise UserError(f"{folder}: no experiments.json; run: {command}")
        for r in records:
            if not langs or r["lang"] in langs:
                gains.setdefault(key(r), {}).setdefault((folder, r["lang"]), []).append(r)
    return gains


def mean_gain(runs, over=None, field="gain"):
    """Return (mean, half of Student's interval, number) of run folders; the records of a language and then the
    languages of a folder are averaged first. over: runs of another method, subtracted by language."""
    means = {}
    for (folder, lang), records in runs.items():
        gain = np.mean([r[field] for r in records])
        gain -= np.mean([r[field] for r in over[folder, lang]]) if over else 0
        means.setdefault(folder, []).append(gain)
    means = [np.mean(gains) for gains in means.values()]
    error = np.std(means, ddof=1) / len(means) ** 0.5 if len(means) > 1 else 0
    return np.mean(means), STUDENT.get(len(means), 0) * error, len(means)


def print_table(folders, langs, over, minus):
    """Print the mean gain over English, over a method, or of `langs` over the languages `minus`, compared in order,
    with Student's interval over run folders."""
    if minus and len(minus) != len(langs):
        raise UserError("--minus needs as many languages as --lang, in the same order")
    gains = collect(folders, langs)
    methods = sorted({method for method, _ in gains})
    if over and over not in methods:
        raise UserError(f"--over {over}: expected one of {', '.join(methods)}")
    other = dict(zip(langs, minus))
    less = collect(folders, minus) if minus else {}
    width = max(28, *map(len, methods))
    header = "      n runs  accuracy   gain  95% over runs  above 0     ECE  tempered"
    print(f"{'method':{width}}{header}")
    for (method, n), runs in gains.items():
        rows = [r for records in runs.values() for r in records]
        noise = rows[0].get("noise", "")
        others = gains.get((over, n)) or gains.get((over, None), {})  # from as many pairs
        others = gains.get((f"{over}{noise}", n), others)  # with the same noise
        if minus:
            found = less.get((method, n), {})
            others = {place: found.get((place[0], other[place[1]])) for place in runs}
        if (over or minus) and not all(others.get(place) for place in runs):
            continue
        mean, half, count = mean_gain(runs, others, "accuracy" if minus else "gain")
        interval = f"+-{100 * half:5.2f}" if count > 1 else "one run"
        clear = sum(r["interval"][0] > 0 for r in rows)
        columns = zip(*((r["accuracy"], r["ece"], r["ece_tempered"]) for r in rows))
        accuracy, ece, tempered = (100 * np.mean(column) for column in columns)
        line = f"{method:{width}}{n or '-':>7}{count:5}{accuracy:10.2f}{100 * mean:+7.2f}"
        print(f"{line}{interval:>14}{clear:5}/{len(rows):<3}{ece:8.1f}{tempered:10.1f}")


def print_bench(folders, langs):
    """Print the smallest n at which the mean accuracy of a method reaches that of a head on all native rows."""
    gains = collect(folders, key=lambda r: (r["method"], r["lang"], r.get("n")))
    means = {place: mean_gain(runs, None, "accuracy")[0] for place, runs in gains.items()}
    natives = {lang: y for (method, lang, _), y in means.items() if method == "native"}
    langs = [lang for lang in langs or natives if lang.removesuffix("-mt") in natives]
    goals = {lang: natives[lang.removesuffix("-mt")] for lang in langs}  # ha-mt: see prepare.py
    if not goals:
        raise UserError(f"no records of native; run: python data/experiments.py --out {folders[0]}")
    print(f"{'pairs to reach native':40}" + "".join(f"{lang:>9}" for lang in goals))
    print(f"{'native, accuracy':40}" + "".join(f"{100 * y:9.2f}" for y in goals.values()))
    for method in dict.fromkeys(method for method, *_ in means):
        cells = []
        for lang, goal in goals.items():
            sizes = {n: y for (*of, n), y in means.items() if of == [method, lang] and n}
            reached = [n for n, y in sizes.items() if y >= goal]
            cells.append(str(min(reached)) if reached else f">{max(sizes)}" if sizes else "-")
        if set(cells) != {"-"}:
            print(f"{method:40}" + "".join(f"{cell:>9}" for cell in cells))


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    p.error, flag = one_line_error, p.add_argument
    flag("--out", help="run folder of step 1")
    flag("--lang", nargs="+", default=[], help="languages to test")
    flag("--n", nargs="+", type=int, default=[None], help="pairs per language (default: all)")
    flag("--subsets", type=int, default=1, help="random draws of n pairs (default: 1)")
    kind = p.add_mutually_exclusive_group().add_argument
    kind("--inside", action="store_true", help="only A inside the LM, one per language")
    kind("--distil", action="store_true", help="only the LM trained on the pairs, one per language")
    kind("--pool", nargs="+", default=[], metavar="LANG", help="only A inside the LM, one for all")
    own = "with --pool: add N pairs of one --lang at a time (default: 0)"
    flag("--own", nargs="+", type=int, default=[0], metavar="N", help=own)
    flag("--lr", type=float, default=LR, help="rate of --inside, --distil, --pool (default: 3e-3)")
    flag("--epochs", type=int, help="their epochs (default: at least 4 and 180 steps)")
    noise = "drop, replace (words) or swap (rows): spoil this share of the translations"
    flag("--noise", nargs=2, metavar=("KIND", "SHARE"), help=noise)
    flag("--data", help="root of the data, if it moved since step 1")
    flag("--table", nargs="+", metavar="OUT", help="print means over these run folders")
    flag("--over", metavar="METHOD", help="with --table: print gains over this method")
    minus = "with --table: print gains of --lang over these languages, in order"
    flag("--minus", nargs="+", default=[], metavar="LANG", help=minus)
    flag("--bench", action="store_true", help="with --table: print the n that reaches native rows")
    args = p.parse_args(argv)
    if args.table and args.bench:
        return print_bench(args.table, args.lang)
    if args.table:
        return print_table(args.table, args.lang, args.over, args.minus)
    if not (args.out and args.lang + args.pool):
        p.error("--out with --lang or --pool is needed, or --table")
    kind = "distilled" if args.distil else "inside" if args.inside else "pool" * bool(args.pool)
    if any(args.own) and not args.pool or not kind and (args.lr != LR or args.epochs):
        p.error("--own goes with --pool; --lr and --epochs with --inside, --distil or --pool")
    for n in [*args.n, *filter(None, args.own)]:  # every flag is checked before any work
        check_flags(argparse.Namespace(**{**vars(args), "n": n, "lang": args.pool + args.lang}))

    noise_kind, share = args.noise or ("drop", "0")
    if noise_kind not in NOISE or not re.fullmatch(r"0?\.\d+|[01]", share):
        p.error(f"--noise {noise_kind} {share}: expected drop, replace or swap; share such as 0.2")
    noise = [noise_kind, float(share)] if args.noise else None
    suffix = f", {noise_kind} {float(share):g}" if noise else ""
    device, dtype, _ = pick_device(argparse.Namespace(device=None, amp=None))
    encoder, info = load_encoder(args.out, device, dtype, args.data)
    language = cache(partial(Language, encoder, info, args.out, noise))
    done = [[r["job"], r["lang"]] for r in read_records(args.out)]
    pools = [args.pool] if args.pool else [[lang] for lang in args.lang]
    for pool, n, subset, own in product(pools, args.n, range(args.subsets), args.own):
        for owner in args.lang if own else [None]:
            job = {"kind": kind, "pool": pool, "n": n, "subset": subset, "own": own, "owner": owner}
            job |= {"lr": args.lr, "epochs": args.epochs} | ({"noise": noise} if noise else {})
            tested = pool + args.lang if args.pool else pool
            todo = [language(lang) for lang in tested if [job, lang] not in done]
            if not todo:  # all are recorded
                continue
            made = inside_of(*todo, **job) if kind else methods_of_n(*todo, n, subset)
            made = [r | {"noise": suffix, "job": job} for r in made]
            for r in made:
                r["method"] += suffix
                print(f"{r['lang']} {r['method']:28} n {r.get('n')} {r['accuracy']:.2%}")
            path = Path(args.out, "experiments.json")
            write_atomic(path, json.dumps(read_records(args.out) + made).encode())


if __name__ == "__main__":
    run(main)
