"""eval.py: the table by hand on planted predictions, statistics, cost, --predict, --plot."""
import itertools
import json
import os
import random
import re
import shutil
import tempfile
import time
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import eval as evaluation
import numpy as np
import pytest
import step2_align
import step3_head
import torch
import torch.nn.functional as F
from conftest import WORDS, go, sentence, step1, write

import common
from common import Aligner, UserError, load_encoder
from data import plot

CPU = torch.device("cpu")


def results(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def planted_head(predicted, method="langalign", arch=None, n=None, r2=0.0, p1=0.0, lang="xx"):
    """A head that says predicted (S, N) where e(text i) is the ith unit vector."""
    said = F.one_hot(torch.as_tensor(predicted), 2).float()                             # (S, N, C)
    return {"method": method, "arch": arch, "n": n, "lang": lang, "labels": ["bad", "good"], "aligner": None,
            "heads": {"weight": said.mT, "bias": torch.zeros(len(said), 1, 2),
                      "mean": torch.zeros(said.shape[1]), "scale": torch.ones(said.shape[1])},
            "alignment": {"A": {"r2": r2, "p1": p1}}, "seconds": {},
            "cost": {"sentences": 0, "characters": 0}}


def judge(folder, y, heads, seed=0):
    """evaluate() of planted heads {file stem: head} on test labels y: {record's "head": record}, in order."""
    write(folder / "task" / "xx" / "test.tsv", ["label", "text"], [[["bad", "good"][c], f"s{c}"] for c in y])
    info = {"data": folder, "task": "task", "labels": ["bad", "good"], "pair": False}
    floor = {"head-english": planted_head([[0] * len(y)], "english", lang="en")}
    heads = [(Path(f"{stem}.pt"), head) for stem, head in (heads if "head-english" in heads else heads | floor).items()]
    args = types.SimpleNamespace(split="test", seed=seed, allow_leak=False)
    records = evaluation.evaluate("xx", heads, lambda texts, *_: torch.eye(len(texts)), info, args)
    return {record["head"]: record for record in records}


def right(*counts, rows=40):
    """Predictions (S, rows) for labels that are all 1: the first `count` of them right, one count a seed."""
    return [[int(i < count) for i in range(rows)] for count in counts]


def test_head_and_aligner_seeds_are_pooled(tmp_path):
    counts = np.random.default_rng(0).integers(5, 36, (3, 5))
    heads = {f"head-langalign-xx-fc-n90{tail}": planted_head(right(*of), "langalign", "fc", 90, r2, 0.1)
             for tail, of, r2 in zip(("", "-seed1", "-seed12-seed3"), counts, (0.1, 0.2, 0.6))}
    for stem, n in (("n90-noise0.3", 90), ("n40-noise0.3", 40), ("n40-seed1", 40), ("n90-seeds2", 90),
                    ("n90-seed1-seeds2", 90)):
        heads[f"head-langalign-xx-fc-{stem}"] = planted_head(right(20, 30), "langalign", "fc", n)
    found = judge(tmp_path, [1] * 40, heads)
    assert list(found) == ["majority", "head-english", *(f"head-langalign-xx-fc-{tail}" for tail in (
        "n40", "n90", "n40-noise0.3", "n90-noise0.3", "n90-seeds2"))]        # a variant's n together
    pooled, accuracies = found["head-langalign-xx-fc-n90"], counts.flatten() / 40
    assert pooled["seeds"] == 15 and pooled["accuracy"] == pytest.approx(accuracies.mean())
    assert pooled["accuracy_std"] == pytest.approx(accuracies.std()), "over all 15, not within an aligner"
    assert pooled["r2"] == pytest.approx(0.3) and pooled["p1"] == pytest.approx(0.1)
    assert [found[f"head-langalign-xx-fc-{name}"]["seeds"] for name in ("n40", "n90-seeds2")] == [2, 4]


def test_difference_interval_and_share_of_the_gap_by_hand(tmp_path):
    heads = {"head-english": planted_head(right(10, 12), "english"),
             "head-langalign-xx-fc-n90": planted_head(right(20, 22), "langalign", "fc", 90),
             "head-translated-xx-n90": planted_head(right(24), "translated", None, 90),
             "head-native-xx": planted_head(right(30, 32), "native")}
    top, english, ours, _, native = judge(tmp_path, [1] * 40, heads).values()
    assert (english["accuracy"], english["accuracy_std"]) == pytest.approx((11 / 40, 1 / 40))
    assert [english[key] for key in evaluation.DELTA] == [0, 0, 0] and "recovered" not in english
    assert ours["delta"] == pytest.approx(10 / 40)                 # of 40 items 8 gain 1 and 4 gain a half
    half = 1.96 * (9 / 40 - 0.25 ** 2) ** 0.5 / 40 ** 0.5
    assert (ours["delta_low"], ours["delta_high"]) == pytest.approx((0.25 - half, 0.25 + half), abs=0.013)
    assert (ours["recovered"], native["recovered"]) == (0.5, 1.0) and ours["ceiling"] == "native"
    assert (top["accuracy"], top["macro_f1"]) == (1, 0.5) and top["delta"] == pytest.approx(29 / 40)
    assert "recovered" not in top


@pytest.mark.parametrize("native, translated, gap",
                         [(None, 27, 16), (30, 27, 19), (12, 27, 16), (12, 13, None)])
def test_the_gap_needs_a_ceiling_above_the_floor(tmp_path, native, translated, gap):
    """English has 11 of 40 right, so that 12 and 13 are no ceilings: their intervals hold 0."""
    heads = {"head-english": planted_head(right(11), "english"),
             "head-rev-xx-fc-n90-rev": planted_head(right(15), "langalign", "fc", 90),
             "head-translated-xx-n40": planted_head(right(20 if gap else 12), "translated", None, 40),
             "head-translated-xx-n90": planted_head(right(translated), "translated", None, 90)}
    heads |= {"head-native-xx": planted_head(right(native), "native")} if native else {}
    shares = {name: record.get("recovered") for name, record in judge(tmp_path, [1] * 40, heads).items()}
    assert shares["head-rev-xx-fc-n90-rev"] == (pytest.approx(4 / gap) if gap else None)
    assert shares["head-translated-xx-n90"] == (pytest.approx(16 / gap) if gap else None)


def slow_bootstrap(differences, seed):
    """The plain way: a list of drawn items at a time."""
    rng, n = np.random.default_rng(seed), len(differences)
    means = [np.mean([differences[i] for i in rng.integers(0, n, n)], axis=0) for _ in range(4000)]
    return np.percentile(means, [2.5, 97.5], axis=0)


def test_bootstrap_equals_the_plain_way():
    d = np.random.default_rng(0).choice([-1.0, -0.2, 0.0, 0.4, 1.0], (60, 3), p=[0.1, 0.1, 0.4, 0.1, 0.3])
    assert evaluation.bootstrap(d, 0) == pytest.approx(slow_bootstrap(d, 1), abs=0.012)


def test_bootstrap_is_paired():
    """The same resamples for every column: a column's interval does not know its neighbours."""
    d = np.random.default_rng(1).normal(0.1, 1, 50)
    low, high = evaluation.bootstrap(np.stack([d, -d, 2 * d + 1, 0 * d, d], 1), 0)
    assert (low[1], high[1]) == pytest.approx((-high[0], -low[0])) and (low[4], high[4]) == (low[0], high[0])
    assert (low[2], high[2]) == pytest.approx((2 * low[0] + 1, 2 * high[0] + 1))
    assert (low[3], high[3]) == (0, 0)
    assert evaluation.bootstrap(d[:, None], 0)[:, 0] == pytest.approx((low[0], high[0]))
    assert evaluation.bootstrap(d[:, None], 1)[0, 0] != low[0]


@pytest.mark.parametrize("rows, ones, interval", [
    (1, 1, (1, 1)), (10, 10, (1, 1)), (2, 1, (0, 1)), (10, 1, (0, 0.3)), (40, 20, (0.35, 0.65))])
def test_bootstrap_of_ones_and_zeros_has_binomial_quantiles(rows, ones, interval):
    """Resampled, the count of ones is binomial: (10, 0.1) has the 97.5% quantile 3, (40, 0.5) 14 and 26."""
    d = np.array([1.0] * ones + [0.0] * (rows - ones))[:, None]
    assert evaluation.bootstrap(d, 0)[:, 0] == pytest.approx(interval)


def test_bootstrap_interval_is_the_normal_one_on_many_items():
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (2000, 1), p=[0.1, 0.7, 0.2])
    (low,), (high,) = evaluation.bootstrap(d, 0)
    half = 1.96 * d.std() / 2000 ** 0.5
    assert (low, high) == pytest.approx((d.mean() - half, d.mean() + half), abs=2e-3)


@pytest.mark.parametrize("a, b, rho", [
    ([1, 2, 3], [10, 200, 3000], 1), ([1, 2, 3], [3, 2, 1], -1),
    ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / 22.5 ** 0.5),        # ranks 1 2.5 2.5 4 and 1 2 3 4
    ([5, 5, 7, 7], [2, 9, 2, 9], 0),
    ([0.1, 0.3, 0.2, 0.5, 0.4], [1, 2, 3, 4, 5], 0.8),      # 1 - 6 * 4 / (5 * 24)
    ([1, 1, 1], [1, 2, 3], None)])
def test_rank_correlation_by_hand(a, b, rho):
    found = evaluation.rank_correlation(a, b)
    assert np.isnan(found) if rho is None else found == pytest.approx(rho)


ORDER = [("majority", None), ("english", None), ("langalign fc", 40), ("langalign fc", 90),
         ("langalign fc plain noise0.3", 90), ("langalign ae", 90), ("langalign shift", 90),
         ("rev fc", 90), ("translated", 90), ("native", None)]


def test_one_table_for_the_whole_run_folder(sweep, capsys):
    go(sweep, "eval")
    records = results(sweep)
    assert [(r["lang"], r["label"], r["n"]) for r in records] == [
        *(("xx", *row) for row in ORDER), *(("yy", *row) for row in (ORDER[0], ORDER[1], ORDER[3]))]
    seeds = {("majority", None): 1, ("langalign fc", 90): 15}
    assert [r["seeds"] for r in records[:len(ORDER)]] == [seeds.get(row, 5) for row in ORDER]
    lines = capsys.readouterr().out.splitlines()
    heads = [i for i, line in enumerate(lines) if re.match("(xx|yy), 40 test rows", line)]
    assert len(heads) == 2 and lines[heads[0]].startswith("xx")
    rows = [line for line in lines if line.split()[:1] and line.split()[0] in evaluation.METHODS]
    assert len(rows) == len(records)
    for row, r in zip(rows, records):
        low, delta, high = (f"{100 * r[key]:+.2f}" for key in ("delta_low", "delta", "delta_high"))
        assert row.split()[0] == r["method"] and f" {r['accuracy']:.2%} " in row
        assert f" {r['macro_f1']:.2%}" in row
        assert (f" {delta} [{low}, {high}]" in row) == (r["method"] != "english")
        assert r["label"] in row and (f"{r['r2']:.3f}" in row if r["arch"] else True)
        assert (f"{r['recovered']:.0%}" in row) if "recovered" in r else True
        assert r["n"] is None or f" {r['n']} " in row
        assert not r.get("characters") or f" {r['sentences']} " in row and f" {r['characters']} " in row
    mapped = [r for r in records if r["lang"] == "xx" and r["method"] == "langalign"]
    rho = evaluation.rank_correlation([r["r2"] for r in mapped], [r["accuracy"] for r in mapped])
    told = [line for line in lines if "rank correlation" in line]
    assert len(told) == 1, "yy has too few rows for one"
    assert f"5 langalign rows: R^2 {rho:+.2f}" in told[0]


def test_one_language_alone_gives_the_same_numbers(sweep):
    go(sweep, "eval")
    whole = results(sweep)
    go(sweep, "eval --lang yy")
    assert results(sweep) == [r for r in whole if r["lang"] == "yy"]


def test_dev_rows_have_a_file_of_their_own(sweep):
    go(sweep, "eval --lang xx")
    test = (sweep / "results.json").read_bytes()
    go(sweep, "eval --lang xx --split dev")
    rows = results(sweep, "results-dev.json")
    assert {(r["split"], r["items"]) for r in rows} == {("dev", 30)}
    assert (sweep / "results.json").read_bytes() == test


def test_cost_is_what_was_sent_to_the_translator(sweep, tiny):
    """Counted here from the file itself: of n pairs the English side, two sentences in a pair task."""
    go(sweep, "eval --lang xx")
    found = {(r["label"], r["n"]): r for r in results(sweep)}
    lines = (tiny[1] / "mood" / "xx" / "translated.tsv").read_text().splitlines()[1:]
    lengths = [len(line.split("\t")[1]) for line in lines]
    first = [lengths[i] for i in common.fixed_order(90)[:40]]
    for label, n in ORDER:
        cost = [found[label, n].get(key) for key in ("sentences", "characters")]
        assert cost == ([0, 0] if n is None else
                        [40, sum(first)] if n == 40 else [90, sum(lengths)]), label


def test_seconds_of_each_stage_survive_a_warm_cache(folder, monkeypatch):
    encode = common.encode
    monkeypatch.setattr(common, "encode", lambda *a, **k: time.sleep(0.05) or encode(*a, **k))
    monkeypatch.setattr(step2_align, "train", lambda *a: time.sleep(0.06))
    monkeypatch.setattr(step3_head, "STEPS", 20)
    runs = []
    for _ in range(2):
        go(folder, "step2_align --lang xx --arch shift", "step3_head --lang xx",
           "step3_head --lang xx --method native", "step3_head --lang xx --method translated",
           "eval --lang xx")
        runs.append({r["method"]: r["seconds"] for r in results(folder) if r["seconds"]})
    first, again = runs
    assert len(first) == 4 and all(first[method]["encode"] == again[method]["encode"] for method in first)
    ours = first["langalign"]
    assert list(ours) == ["encode", "align", "head"] and 0.1 < ours["encode"] < 1 and 0.06 < ours["align"] < 1
    assert first["native"]["encode"] > 0.05 and first["native"]["align"] == 0 < first["native"]["head"]


def test_a_cache_knows_what_its_rows_cost(folder, monkeypatch):
    clock = iter([0, 10, 10, 30, 30, 31])
    encoder, _ = load_encoder(folder)
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    texts = [(word,) for word in WORDS[:7]]
    cache = common.Cache(encoder, folder, CPU)
    for part, seconds in ((texts[:4], 10), (texts, 30), (texts[2:6], 2 * 2.5 + 2 * 20 / 3)):
        cache(part)
        assert cache.seconds == pytest.approx(seconds)
    later = common.Cache(encoder, folder, CPU)
    monkeypatch.setattr(common, "encode", None)              # nothing is left to encode
    later(texts)
    assert later.seconds == pytest.approx(30)


def test_the_same_seed_gives_the_same_bits(folder, tmp_path):
    """Steps 2, 3 and eval twice, in two run folders that have embed.pt alone in common."""
    (tmp_path / "again").mkdir()
    shutil.copy(folder / "embed.pt", tmp_path / "again")
    runs = []
    for out in (folder, tmp_path / "again"):
        go(out, *(f"{step} --lang xx --seed 3" for step in ("step2_align --arch ae", "step3_head", "eval")))
        rows = results(out)
        runs.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
        for path in sorted(out.glob("*-seed3.pt")):                    # the aligner, the two heads
            art = torch.load(path, weights_only=True)
            runs[-1].append([common.digest(art.get(part)) for part in ("state", "report", "heads", "dev")])
    assert runs[0] == runs[1]


def test_the_seed_reaches_the_bootstrap(tmp_path):
    said = np.random.default_rng(0).integers(0, 2, (8, 300))
    heads = {"head-english": planted_head(said[:4], "english"),
             "head-native-xx": planted_head(said[4:], "native")}
    found = [judge(tmp_path, [1] * 300, heads, seed)["head-native-xx"] for seed in (0, 0, 1, 2, 3)]
    lows = [record["delta_low"] for record in found]
    assert lows[0] == lows[1] and len(set(lows)) > 1


def text_boxes(svg):
    """[(left, top, right, bottom, words)] of an SVG's texts; a letter is 7.2 wide and 13 high at 13 px."""
    size = float((re.search(r"font(?:-size)?[=:]\W*(\d+)", svg) or [0, 16])[1])    # 16: what a browser takes
    found = []
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        words, (x, y) = "".join(text.itertext()), (float(text.get(key)) for key in "xy")
        wide = 7.2 / 13 * size * len(words)
        left = x - {"middle": wide / 2, "end": wide}.get(text.get("text-anchor"), 0)
        found.append((left, y - 0.8 * size, left + wide, y + 0.2 * size, words))
    return found


def check_picture(path):
    """Whole, standalone, nothing outside, no text upon text; returns its texts and elements."""
    svg = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"href|url\(|<script|<style|<image|@import|<!|nan|inf\b", svg)
    assert svg.count("http") == 1, "its namespace"
    boxes, width, height = text_boxes(svg), float(root.get("width")), float(root.get("height"))
    outside = [box[4] for box in boxes if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height]
    collide = [(a[4], b[4]) for a, b in itertools.combinations(boxes, 2)
               if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]
    assert not outside + collide
    return [box[4] for box in boxes], list(root)


def draw(folder, heads):
    """plot() of planted heads, with the pairs of a run folder; checked: its texts and elements."""
    records = list(judge(folder / "planted", [1] * 40, heads).values())
    cache, info, _ = common.open_run(types.SimpleNamespace(out=folder, device="cpu", amp="off"))
    loaded, _ = evaluation.load_heads(folder, "xx", cache.encoder, info)
    plot.draw(folder / "planted.svg", "xx", records, loaded, cache, info)
    return check_picture(folder / "planted.svg")


def spots(elements, color):
    return [e for e in elements if e.tag.endswith("circle") and e.get("fill") == color]


def test_plot_of_a_sweep(sweep):
    go(sweep, f"eval --lang xx --plot {sweep}/xx.svg")
    words, elements = check_picture(sweep / "xx.svg")
    assert [int(w.split()[-1].strip("n=")) for w in words if re.fullmatch("[n= ]*[49]0", w)] == [40, 90]
    for label, n in ORDER[2:]:
        assert any(w == label if n else w.startswith(label) for w in words), label
    assert any(w.startswith("English") for w in words) and any(w.startswith("A(e(d))") for w in words)
    places = [float(e.get("cx")) for e in elements if e.tag.endswith("circle")]
    assert sum(x > 400 for x in places) == sum(n is not None for _, n in ORDER)
    assert 20 < sum(x < 400 for x in places) <= 3 * 9                                  # 9 pairs are held out


def test_plot_of_english_and_langalign_alone(sweep):
    go(sweep, f"eval --lang yy --plot {sweep}/deep/yy.svg")
    words, elements = check_picture(sweep / "deep" / "yy.svg")
    assert "langalign fc" in words and not any(w.startswith(("native", "translated")) for w in words)


def test_plot_shows_what_was_computed(sweep):
    """The left panel's dots are the two principal components of the held-out pairs, recomputed here."""
    go(sweep, f"eval --lang yy --plot {sweep}/yy.svg")
    _, elements = check_picture(sweep / "yy.svg")
    encoder, info = load_encoder(sweep)
    encoder.lm.to(common.pick_device(types.SimpleNamespace(device=None, amp="auto"))[1] or torch.float32)
    pairs = common.load_translated(info["data"], "mood", "yy")[:2]
    x, y = (common.encode(encoder, texts, CPU)[-9:] for texts in pairs)
    head = torch.load(sweep / "head-langalign-yy-fc-n90.pt", weights_only=True)
    clouds = torch.cat([x, common.load_aligner(head, x.shape[1]).map(x), y])
    values, vectors = torch.linalg.eigh(torch.cov(clouds.T))
    flat = ((clouds - clouds.mean(0)) @ vectors[:, [-1, -2]]).numpy()                  # (27, 2)
    drawn = [[float(e.get("cx")), float(e.get("cy"))] for color in plot.COLORS[:3]
             for e in spots(elements, color) if float(e.get("cx")) < 400]
    for axis in range(2):
        assert abs(np.corrcoef(flat[:, axis], np.array(drawn)[:, axis])[0, 1]) > 0.99


@pytest.mark.parametrize("newest", ["fc", "procrustes"])
@pytest.mark.parametrize("native, sizes", [((36,), (5, 10, 20, 50)), ((11, 12), (5, 10, 20, 30, 50))])
def test_plot_of_the_papers_sizes_and_every_arch(sweep, native, sizes, newest):
    """Many methods, labels of close and of distant heights; planted accuracies in place of trained heads."""
    heads = {"head-english": planted_head(right(11), "english"),
             "head-native-xx": planted_head(right(*native), "native")}
    for i, (arch, n) in enumerate((arch, 1000 * n) for arch in evaluation.ARCHES for n in sizes):
        heads[f"head-langalign-xx-{arch}-n{n}"] = planted_head(right(11 + i % 9), "langalign", arch, n)
    for tail in ("plain-noise0.3", "plain", "depth3-hidden64-dropout0.3"):
        heads[f"head-langalign-xx-fc-n20000-{tail}"] = planted_head(right(17), "langalign", "fc", 20_000)
    heads["head-translated-xx-n20000"] = planted_head(right(20), "translated", None, 20_000)
    go(sweep, f"step2_align --lang xx --arch {newest}", "step3_head --lang xx")
    words, _ = draw(sweep, heads)
    assert {"langalign fc plain noise0.3", "langalign ae", "translated"} <= set(words)


def test_each_kind_of_a_plot_has_a_colour_of_its_own(sweep):
    """README's grid has as many: fc and ae, also plain, three closed forms, translated, and one more for rev."""
    heads = {"head-english": planted_head(right(11), "english"),
             "head-langalign-xx-fc-n90-noise0.3": planted_head(right(12), "langalign", "fc", 90),
             "head-translated-xx-n90": planted_head(right(20), "translated", None, 90)}
    for arch in evaluation.ARCHES:
        for tail in ("", "-plain") if arch in ("fc", "ae") else ("",):
            heads[f"head-langalign-xx-{arch}-n90{tail}"] = planted_head(right(15), "langalign", arch, 90)
    _, elements = draw(sweep, heads)
    colours = [e.get("fill") for e in elements if re.match("langalign|rev|translated", e.text or "")]
    assert len(colours) == 9 and len(set(colours)) == 9


def test_plot_where_all_heads_agree(sweep):
    """No height to scale by: every difference is 0."""
    heads = {"head-english": planted_head(right(11), "english"),
             "head-langalign-xx-fc-n90": planted_head(right(11), "langalign", "fc", 90)}
    draw(sweep, heads)


@pytest.mark.parametrize("option", ["--seeds 3", "--l2 0.1", "--seed 1"])
def test_the_english_head_made_along_is_the_tables_floor(folder, option):
    """Whatever the flags of the first head are, there is a head-english to take differences to."""
    go(folder, "step2_align --lang xx --arch shift", f"step3_head --lang xx {option}", "eval --lang xx")
    assert all("delta" in row for row in results(folder))


def test_the_english_head_alone_serves_a_named_language(folder):
    go(folder, "step3_head --method english", "eval --lang xx")
    rows = results(folder)
    assert [(row["method"], row["lang"]) for row in rows] == [("majority", "xx"), ("english", "xx")]
    with pytest.raises(UserError, match="heads for en, not for en and another"):
        go(folder, "eval")


def test_accuracy_and_f1_by_hand():
    predicted, y = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
    assert evaluation.macro_f1(predicted, y, 3) == pytest.approx((0.5 + 0.8 + 0.0) / 3)


def test_eval_applies_the_head_to_plain_target_embeddings(sweep):
    """Inference of LangAlign is LM and head, no A: recomputed here from the artifacts alone."""
    encoder, info = load_encoder(sweep)
    texts, y, _ = common.load_task(info["data"], "mood", "xx", "test", info["labels"])
    head = torch.load(sweep / "head-langalign-xx-ae-n90.pt", weights_only=True)
    encoder.lm.to(common.pick_device(types.SimpleNamespace(device="cpu", amp="auto"))[1] or torch.float32)
    x = common.encode(encoder, texts, CPU)
    assert head["aligner"]["arch"] == "ae" and head["state"], "kept for the plot, not used here"
    part = head["heads"]
    x = (x - part["mean"]) / part["scale"]
    logits = torch.stack([x @ w.T + b for w, b in zip(part["weight"], part["bias"])])
    go(sweep, "eval --lang xx --device cpu")
    (row,) = [r for r in results(sweep) if r["label"] == "langalign ae"]
    assert row["accuracy"] == pytest.approx((logits.argmax(2) == y).float().mean().item(), abs=1e-6)


def test_rev_maps_the_target_text_at_inference(sweep):
    go(sweep, "step2_align --lang xx --reverse --arch shift", "step3_head --lang xx --method rev")
    english = torch.load(sweep / "head-english.pt", weights_only=True)
    rev = torch.load(sweep / "head-rev-xx-shift-n90-rev.pt", weights_only=True)
    assert torch.equal(rev["heads"]["weight"], english["heads"]["weight"]), "the head is the English one"
    shift = torch.load(sweep / "align-xx-shift-n90-rev.pt", weights_only=True)["state"]
    x = torch.randn(4, 16)
    moved = x - shift["mean_x"] + shift["mean_y"]
    assert torch.allclose(evaluation.logits_of(rev, x), evaluation.logits_of({**english}, moved), atol=1e-5)
    forward = torch.load(sweep / "align-xx-shift-n90.pt", weights_only=True)["state"]
    assert torch.allclose(shift["mean_x"], forward["mean_y"])
    assert torch.allclose(shift["mean_y"], forward["mean_x"])


def predict(folder, lines, capsys):
    """Run --predict on standard input; returns its output lines."""
    with tempfile.TemporaryFile() as file:
        file.write(lines.encode())
        file.seek(0)
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            capsys.readouterr()
            go(folder, "eval --lang xx --predict -")
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    return capsys.readouterr().out.splitlines()


def test_predict_one_line_in_one_line_out(sweep, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    rng = random.Random(1)
    lines = [sentence(rng, ["x" + w for w in WORDS]) for _ in range(20)] + [""]
    out = predict(sweep, "\n".join(lines) + "\n", capsys)
    assert len(out) == 21 and all(line.split("\t")[0] in ("bad", "good") for line in out)
    assert all(0.5 <= float(line.split("\t")[1]) <= 1 for line in out)
    assert predict(sweep, "\n".join(lines[::-1]) + "\n", capsys) == out[::-1]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    go(sweep, f"eval --lang xx --predict {tmp_path}/in.txt")
    assert capsys.readouterr().out.splitlines() == out


def test_pair_task_end_to_end(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step3_head, "STEPS", 40)
    folder = step1(tiny, tmp_path / "run", "--task", "pair")
    go(folder, "step2_align --lang xx --arch linear", "step3_head --lang xx",
       "step3_head --lang xx --method translated", "eval --lang xx")
    rows = results(folder)
    assert [r["method"] for r in rows] == ["majority", "english", "langalign", "translated"]
    lines = (tiny[1] / "pair" / "xx" / "translated.tsv").read_text().splitlines()[1:]
    sent = sum(len(cell) for line in lines for cell in line.split("\t")[1:3])
    assert {(r["sentences"], r["characters"]) for r in rows[2:]} == {(180, sent)}
    assert len(predict(folder, "xthe xfilm\txthe xfood\n", capsys)) == 1
    with pytest.raises(UserError, match="-:2: not UTF-8, or not 2 tab-separated columns"):
        predict(folder, "a\tb\nno second column\n", capsys)


def test_predict_takes_the_newest_head_of_the_language(sweep, capsys, tmp_path):
    (tmp_path / "in.txt").write_text("xthe xfilm\n")
    for path in [*sorted(sweep.glob("head-*-xx-*.pt"))[:3], sweep / "head-english.pt"]:
        os.utime(path)
        go(sweep, f"eval --lang xx --predict {tmp_path}/in.txt")
        newest = path.name if path.name != "head-english.pt" else newest
        assert newest in capsys.readouterr().err


def test_predict_by_a_named_head_needs_no_other(sweep, capsys, tmp_path):
    """What a user takes to another machine: embed.pt and one head, here not the newest and then English."""
    (tmp_path / "in.txt").write_text("xthe xfilm\nxvery xslow\n")
    away = tmp_path / "away"
    away.mkdir()
    shutil.copy(sweep / "embed.pt", away)
    for name in ("head-langalign-xx-shift-n90.pt", "head-english.pt"):
        shutil.copy(sweep / name, tmp_path / "mine.pt")      # whatever its name
        go(away, f"eval --predict {tmp_path}/in.txt --head {tmp_path}/mine.pt")
        told = capsys.readouterr()
        assert "mine.pt" in told.err and len(told.out.splitlines()) == 2
        encoder, _ = common.load_encoder(away)
        head = common.load(sweep / name, "head", "")
        x = common.encode(encoder, [("xthe xfilm",), ("xvery xslow",)], CPU)
        wanted = evaluation.logits_of(head, x).softmax(2).mean(0)
        for line, row in zip(told.out.splitlines(), wanted):
            label, probability = line.split("\t")
            assert label == head["labels"][row.argmax()] and abs(float(probability) - row.max()) < 2e-3
    for args in (f"--head {tmp_path}/none.pt", f"--lang yy --head {sweep}/head-langalign-xx-shift-n90.pt"):
        with pytest.raises(UserError, match="no such artifact|heads for xx, not for"):
            go(away, f"eval --predict {tmp_path}/in.txt {args}")


def test_predict_holds_one_chunk(sweep, capsys, tmp_path, monkeypatch):
    """Memory does not grow with the file: no more lines are encoded at once, and labels come out before the next."""
    sizes, encode = [], evaluation.encode
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    monkeypatch.setattr(evaluation, "encode", lambda encoder, texts, device: sizes.append(len(texts)) or
                        encode(encoder, texts, device))
    (tmp_path / "in.txt").write_text("xthe xfilm\n" * 30 + "not\tone\n")
    with pytest.raises(UserError, match="in.txt:31: not UTF-8, or not 1 tab-separated columns"):
        go(sweep, f"eval --lang xx --predict {tmp_path}/in.txt")
    assert sizes == [7] * 4 and len(capsys.readouterr().out.splitlines()) == 28


@pytest.mark.parametrize("raw, lines", [(b"\xef\xbb\xbfxthe xfilm\r\nxthe\xe2\x80\xa8xfilm\rx\n", 2), (b"", 0),
                                        (b"xthe\nx\xff\n", None)])
def test_predict_reads_lines_as_the_loaders_do(sweep, capsys, tmp_path, raw, lines):
    (tmp_path / "in.txt").write_bytes(raw)
    if lines is None:
        with pytest.raises(UserError, match="in.txt:2: not UTF-8"):
            go(sweep, f"eval --lang xx --predict {tmp_path}/in.txt")
    else:
        capsys.readouterr()
        go(sweep, f"eval --lang xx --predict {tmp_path}/in.txt")
        assert len(capsys.readouterr().out.splitlines()) == lines
