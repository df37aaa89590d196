"""The four scripts on the tiny random world: each loss by hand, planted maps, frozen LM, variants, predictions."""
import io
import json
import sys
import types

import eval as evaluation
import numpy as np
import pytest
import step1_embed
import step2_align
import step3_head
import torch
import torch.nn.functional as F
from conftest import ROOT, WORDS, make_encoder, script, sentence, step1, write

import common
from common import Aligner, UserError, load_encoder

CPU = torch.device("cpu")


def planted(kind, n=400, dim=8, seed=0):
    """x, y (n, dim) with y an exact map of x of the given kind, and the map."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(n, dim, generator=g) + 2, torch.randn(dim, dim, generator=g)
    w = {"shift": torch.eye(dim), "procrustes": torch.linalg.qr(w)[0], "linear": w}[kind]
    return x, x @ w + 3, w


@pytest.mark.parametrize("kind", ["shift", "procrustes", "linear"])
def test_closed_forms_recover_a_planted_map(kind):
    x, y, w = planted(kind)
    aligner = Aligner(kind, 8)
    step2_align.closed_form(aligner, x[:300], y[:300], x[300:], y[300:])
    assert (aligner.map(x) - y).abs().max() < (1e-4 if kind != "linear" else 0.02)
    assert torch.allclose(aligner.f.weight.T, w, atol=0.01)


def test_closed_forms_are_least_squares_not_memory():
    x, y, _ = planted("linear")
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.lstsq(x[:300] - x[:300].mean(0), y[:300] - y[:300].mean(0)).solution
    aligner = Aligner("linear", 8)
    step2_align.closed_form(aligner, x[:300], y[:300], x[300:], y[300:])
    assert torch.allclose(aligner.f.weight.T, exact, atol=0.02)
    rotation = Aligner("procrustes", 8)
    step2_align.closed_form(rotation, x[:300], y[:300], x[300:], y[300:])
    assert torch.allclose(rotation.f.weight @ rotation.f.weight.T, torch.eye(8), atol=1e-5)
    assert F.mse_loss(aligner.map(x), y) < F.mse_loss(rotation.map(x), y)


def settings(**changes):
    return types.SimpleNamespace(**{"lr": 3e-3, "epochs": 60, "seed": 0, "arch": "fc", **changes})


@pytest.mark.parametrize("arch, depth, skip", [("fc", 2, False), ("fc", 2, True), ("ae", 1, False)])
def test_training_learns_a_planted_map(arch, depth, skip):
    x, y, _ = planted("linear", 2000)
    torch.manual_seed(0)
    aligner = Aligner(arch, 8, depth, 8, 0.0, skip)
    history = step2_align.train(aligner, x[:1800], y[:1800], x[1800:], y[1800:], settings(), CPU)
    r2 = step2_align.measure(aligner.map(x[1800:]), y[1800:], y.mean(0))["r2"]
    assert r2 > (0.9999 if skip else 0.95) and min(h["held_out"] for h in history) < history[0]["held_out"]
    kept = F.mse_loss(aligner.map(x[1800:]), y[1800:]).item()          # the best epoch, or the start if it is better
    assert kept < min(h["held_out"] for h in history) + 1e-9 and (skip or kept in [h["held_out"] for h in history])


def test_eq1_by_hand():
    aligner = Aligner("linear", 2)
    aligner.f.weight.data, aligner.f.bias.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 0.0])
    x, y = torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert step2_align.eq1(aligner, x, y).item() == (4 + 0 + 0 + 16) / 4           # A(x) = (2, 2), (1, 4)


def test_report_numbers_by_hand():
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    m = step2_align.measure(y[[0, 1, 3, 2]] * 2, y, torch.zeros(2))
    assert m["p1"] == m["p1_back"] == 0.5 and m["cosine"] == pytest.approx(0.5)
    assert m["mse"] == pytest.approx((1 + 1 + 5 + 5) / 8) and m["r2"] == pytest.approx(1 - 1.5 / 0.5)
    assert step2_align.domain_gap(y + 3, y) == pytest.approx(18 ** 0.5 / (4 / 3) ** 0.5)
    assert step2_align.precision_at_1(y[[0, 0]], y[[0, 0]]) == 1.0                                  # a tie counts


def test_noise_moves_a_share_and_nothing_else():
    y = torch.arange(100.0)[:, None].repeat(1, 3)
    noisy = step2_align.shuffle_share(y, 0.3, seed=1)
    assert (noisy != y).all(1).sum() == 30 and torch.equal(noisy.sort(0).values, y)
    assert torch.equal(step2_align.shuffle_share(y, 0.0, 1), y)


@pytest.mark.parametrize("fault, words", [("collapse", "collapsed"), ("rows", "no better than the mean"),
                                          ("identity", "no better than identity"), ("domain", "domain gap")])
def test_warnings_fire_and_name_the_number(capsys, fault, words):
    x, y, _ = planted("linear")
    predicted = {"collapse": y.mean(0) + 0.01 * (y - y.mean(0)), "rows": y.roll(1, 0), "identity": x}.get(fault, y)
    step2_align.report(y, x, y, y.mean(0), 0.0)
    assert "warning" not in capsys.readouterr().out
    step2_align.report(predicted, x, y, y.mean(0), 1.5 if fault == "domain" else 0.0)
    line = [line for line in capsys.readouterr().out.splitlines() if words in line and "warning" in line]
    assert len(line) == 1 and any(c.isdigit() for c in line[0])


def plain_tuning(tiny, rows, y, steps):
    """Step 1's loop over one batch with the LM's full embedding table and the library's own optimizer."""
    torch.manual_seed(0)
    encoder = common.load_pretrained(str(tiny[0]), "mean", 48)
    head = torch.nn.Linear(16, 2)
    model = torch.nn.ModuleList([encoder, head])
    step1_embed.use_rows(encoder, rows) if steps < 0 else None
    optimizer, schedule = step1_embed.make_optimizer(model.eval(), 1e-2, 10)
    for _ in range(abs(steps)):
        loss = F.cross_entropy(head(encoder(common.pad(rows, 1, CPU))), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if steps < 0:
        encoder.lm.set_input_embeddings(encoder.lm.get_input_embeddings().restore())
    return encoder.lm.state_dict()


def test_training_only_the_used_rows_is_exact(tiny):
    encoder = common.load_pretrained(str(tiny[0]), "mean", 48)
    rows = encoder.tokenize([(" ".join(WORDS[i:i + 4 + i % 3]),) for i in range(0, 12, 2)])
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    full, cut = plain_tuning(tiny, rows, y, 5), plain_tuning(tiny, rows, y, -5)
    start = encoder.lm.state_dict()["embeddings.word_embeddings.weight"]
    after = full["embeddings.word_embeddings.weight"]
    assert 5 < (after != start).any(1).sum() < len(start), "some rows train, some must not"
    for name in full:
        assert torch.allclose(full[name], cut[name], atol=1e-6), name
    assert torch.equal((after != start).any(1), (cut["embeddings.word_embeddings.weight"] != start).any(1))


def test_bucketed_batches_hold_each_row_once():
    lengths = np.random.default_rng(0).integers(1, 60, 4000).tolist()
    cut = step1_embed.bucketed(lengths, 32, torch.Generator().manual_seed(0))
    assert sorted(i for batch in cut for i in batch) == list(range(4000))
    padded = sum(len(b) * max(lengths[i] for i in b) for b in cut)
    assert padded < 1.1 * sum(lengths)
    first = [lengths[b[0]] for b in cut]
    assert first != sorted(first) and np.std([np.mean(b) for b in cut]) < 800        # batches in random order


def tune(tiny, out, *args):
    return step1(tiny, out, "--epochs", "2", "--batch", "8", *args)


def test_step1_tunes_keeps_its_best_epoch_and_repeats(tiny, tmp_path, capsys):
    a = torch.load(tune(tiny, tmp_path / "a") / "embed.pt", weights_only=True)
    b = torch.load(tune(tiny, tmp_path / "b") / "embed.pt", weights_only=True)
    pretrained = torch.load(step1(tiny, tmp_path / "c") / "embed.pt", weights_only=True)
    assert a["lm"] == b["lm"] != pretrained["lm"], "same seed, same bytes; and training changes them"
    assert len(a["history"]) == 2 and pretrained["history"] == []
    told = capsys.readouterr().out
    assert f"best dev accuracy {max(h['dev'] for h in a['history']):.2%}" in told and "majority class" in told


def test_step1_keeps_the_best_epoch_not_the_last(tiny, tmp_path, monkeypatch):
    states, accuracies = [], iter([0.9, 0.1])
    plain = step1_embed.encode

    def spy(encoder, texts, *args, **kwargs):
        x = plain(encoder, texts, *args, **kwargs)
        states.append({k: v.clone() for k, v in encoder.lm.encoder.state_dict().items()})
        return x

    monkeypatch.setattr(step1_embed, "encode", spy)
    real = torch.Tensor.mean
    monkeypatch.setattr(step1_embed, "train_epoch", _train_and(accuracies, step1_embed.train_epoch, tiny))
    folder = tune(tiny, tmp_path / "a", "--lr", "0.01")
    history = torch.load(folder / "embed.pt", weights_only=True)["history"]
    encoder, _ = load_encoder(folder)
    best = max(range(2), key=lambda i: (history[i]["dev"], -i))
    kept = encoder.lm.encoder.state_dict()
    assert all(torch.equal(kept[k], states[best][k]) for k in kept)
    assert not all(torch.equal(kept[k], states[1 - best][k]) for k in kept)
    assert real is torch.Tensor.mean


def _train_and(accuracies, train_epoch, tiny):
    """train_epoch whose second epoch wrecks the classifier, so that the first is the best by dev accuracy."""
    def wrapped(model, *args):
        loss = train_epoch(model, *args)
        if next(accuracies) < 0.5:
            model[1].weight.data.zero_()
            model[1].bias.data = torch.tensor([-1.0, 1.0])
        return loss
    return wrapped


def test_step1_fp16_uses_a_grad_scaler(tiny, tmp_path, monkeypatch):
    scales = []
    real = torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale",
                        lambda self, loss: scales.append(self.is_enabled()) or real(self, loss))
    tune(tiny, tmp_path / "a", "--amp", "fp16")
    assert scales and all(scales)
    scales.clear()
    tune(tiny, tmp_path / "b", "--amp", "bf16")
    assert scales and not any(scales)


def test_non_finite_loss_stops_and_names_the_step(tiny, tmp_path):
    with pytest.raises(UserError, match="loss is nan by step .* --lr"):
        tune(tiny, tmp_path / "a", "--lr", "1e30")
    assert not (tmp_path / "a").exists()


@pytest.fixture
def done(folder):
    """Run folder of the tiny world after all steps for xx."""
    for arch in ("shift", "ae", "fc"):
        step2_align.main(["--lang", "xx", "--arch", arch, "--out", str(folder)])
    step3_head.main(["--lang", "xx", "--out", str(folder)])
    return folder


def test_lm_bytes_do_not_change_in_steps_2_and_3(folder, monkeypatch):
    before = (folder / "embed.pt").read_bytes()
    seen = []
    for module in (step2_align, step3_head):
        monkeypatch.setattr(module, "load_encoder", lambda *a, **k: seen.append(load_encoder(*a, **k)) or seen[-1])
    step2_align.main(["--lang", "xx", "--out", str(folder)])
    step3_head.main(["--lang", "xx", "--out", str(folder)])
    fresh, _ = load_encoder(folder)
    assert len(seen) == 2
    for encoder, _ in seen:
        assert not encoder.training and not any(p.requires_grad or p.grad is not None for p in encoder.parameters())
        assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), fresh.state_dict().values()))
    assert (folder / "embed.pt").read_bytes() == before


def test_variants_have_files_of_their_own(folder):
    for args in ([], ["--n", "40"], ["--arch", "ae"], ["--arch", "shift"], ["--reverse"], ["--noise", "0.5"],
                 ["--seed", "1"], ["--depth", "3"], ["--hidden", "8"], ["--dropout", "0.4"], ["--plain"], ["--lr", "0.002"]):
        step2_align.main(["--lang", "xx", *args, "--out", str(folder)])
    assert len(list(folder.glob("align-*.pt"))) == 12
    for args in ([], ["--method", "native"], ["--method", "translated"], ["--method", "translated", "--n", "50"],
                 ["--method", "rev"], ["--arch", "ae"], ["--n", "40"]):
        step3_head.main(["--lang", "xx", *args, "--out", str(folder)])
    assert len(list(folder.glob("head-*.pt"))) == 8                                  # with english, made along


def test_step3_takes_the_newest_aligner_or_the_one_asked_for(done):
    def newest():
        return max(done.glob("head-langalign-*"), key=lambda p: p.stat().st_mtime_ns).name
    assert newest() == "head-langalign-xx-fc-n90.pt"
    step3_head.main(["--lang", "xx", "--arch", "shift", "--out", str(done)])
    assert newest() == "head-langalign-xx-shift-n90.pt"


def test_heads_learn_and_their_seeds_are_independent():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=g)
    y = (x[:, 0] + 0.1 * torch.randn(600, generator=g) > 0).long()
    rows = x[:500], y[:500], x[500:], y[500:]
    three, dev = step3_head.train_heads(*rows, 2, [0, 1, 2], 0.0, CPU)
    assert dev.min() > 0.9
    one, _ = step3_head.train_heads(*rows, 2, [0], 0.0, CPU)
    assert torch.allclose(one.weight[0], three.weight[0], atol=1e-5), "a head does not see its neighbours"
    assert not torch.allclose(three.weight[0], three.weight[1], atol=1e-3)


@pytest.mark.parametrize("dev, fires", [(0.5, True), (0.9, False)])
def test_a_head_at_the_majority_class_warns(folder, capsys, monkeypatch, dev, fires):
    train = step3_head.train_heads
    monkeypatch.setattr(step3_head, "train_heads", lambda *a: (train(*a)[0], torch.full((5,), dev)))
    step3_head.main(["--method", "english", "--out", str(folder)])
    told = capsys.readouterr().out
    assert ("warning: the head learned nothing" in told) == fires and "majority class 60.00%" in told


def test_results_json(done):
    evaluation.main(["--lang", "xx", "--out", str(done)])
    rows = json.loads((done / "results.json").read_text())
    rows = sorted(rows, key=lambda row: row["method"])
    assert [row["method"] for row in rows] == ["english", "langalign"]
    assert {"method", "lang", "arch", "n", "seeds", "accuracy", "accuracy_std", "macro_f1", "delta", "delta_low",
            "delta_high"} <= set(rows[0])
    english, ours = rows
    assert english["delta"] is None and ours["arch"] == "fc" and ours["n"] == 90 and ours["seeds"] == 5
    assert ours["delta"] == pytest.approx(ours["accuracy"] - english["accuracy"])
    assert ours["delta_low"] <= ours["delta"] <= ours["delta_high"]


def test_the_english_head_alone_serves_a_named_language(folder):
    step3_head.main(["--method", "english", "--out", str(folder)])
    evaluation.main(["--lang", "xx", "--out", str(folder)])
    (row,) = json.loads((folder / "results.json").read_text())
    assert (row["method"], row["lang"]) == ("english", "xx")
    with pytest.raises(UserError, match="no head for a target language, only for: en"):
        evaluation.main(["--out", str(folder)])


def test_accuracy_and_f1_by_hand():
    predicted, y = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
    assert evaluation.macro_f1(predicted, y, 3) == pytest.approx((0.5 + 0.8 + 0.0) / 3)


def test_bootstrap_interval_is_the_normal_one_on_many_items():
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.7, 0.2])
    low, high = evaluation.bootstrap(d, 0)
    half = 1.96 * d.std() / 2000 ** 0.5
    assert low == pytest.approx(d.mean() - half, abs=2e-3) and high == pytest.approx(d.mean() + half, abs=2e-3)


def test_eval_applies_the_head_to_plain_target_embeddings(done):
    """Inference of LangAlign is LM and head, no A: recomputed here from the artifacts alone."""
    encoder, info = load_encoder(done)
    texts, y, _ = common.load_task(info["data"], "mood", "xx", "test", info["labels"])
    head = torch.load(done / "head-langalign-xx-fc-n90.pt", weights_only=True)
    x = common.encode(encoder, texts, CPU, common.pick_device(types.SimpleNamespace(device="cpu", amp="auto"))[1])
    part = head["heads"]
    logits = torch.stack([((x - part["mean"]) / part["scale"]) @ w + b for w, b in zip(part["weight"], part["bias"])])
    evaluation.main(["--lang", "xx", "--out", str(done), "--device", "cpu"])
    row, = [r for r in json.loads((done / "results.json").read_text()) if r["method"] == "langalign"]
    assert row["accuracy"] == pytest.approx((logits.argmax(2) == y).float().mean().item(), abs=1e-6)


def test_rev_maps_the_target_text_at_inference(done):
    step2_align.main(["--lang", "xx", "--reverse", "--arch", "shift", "--out", str(done)])
    step3_head.main(["--lang", "xx", "--method", "rev", "--out", str(done)])
    english = torch.load(done / "head-english.pt", weights_only=True)
    rev = torch.load(done / "head-rev-xx-shift-n90-rev.pt", weights_only=True)
    assert torch.equal(rev["heads"]["weight"], english["heads"]["weight"]), "the head itself is the English one"
    shift = torch.load(done / "align-xx-shift-n90-rev.pt", weights_only=True)["state"]
    x = torch.randn(4, 16)
    moved = x - shift["mean_x"] + shift["mean_y"]
    assert torch.allclose(evaluation.logits_of(rev, x), evaluation.logits_of({**english}, moved), atol=1e-5)
    forward = torch.load(done / "align-xx-shift-n90.pt", weights_only=True)["state"]
    assert torch.allclose(shift["mean_x"], forward["mean_y"]) and torch.allclose(shift["mean_y"], forward["mean_x"])


def predict(folder, lines, capsys, *args):
    """Run --predict on standard input; returns its output lines."""
    stdin = sys.stdin
    sys.stdin = types.SimpleNamespace(buffer=io.BytesIO(lines.encode()))
    try:
        evaluation.main(["--out", str(folder), "--predict", "-", *args])
    finally:
        sys.stdin = stdin
    return capsys.readouterr().out.splitlines()


def test_predict_one_line_in_one_line_out(done, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    rng = __import__("random").Random(1)
    lines = [sentence(rng, ["x" + w for w in WORDS]) for _ in range(20)] + [""]
    capsys.readouterr()
    out = predict(done, "\n".join(lines) + "\n", capsys)
    assert len(out) == 21 and all(line.split("\t")[0] in ("bad", "good") for line in out)
    assert all(0.5 <= float(line.split("\t")[1]) <= 1 for line in out)
    assert predict(done, "\n".join(lines[::-1]) + "\n", capsys) == out[::-1]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    evaluation.main(["--out", str(done), "--lang", "xx", "--predict", str(tmp_path / "in.txt")])
    assert capsys.readouterr().out.splitlines() == out


def test_pair_task_end_to_end(tiny, tmp_path, capsys):
    folder = step1(tiny, tmp_path / "run", "--task", "pair")
    step2_align.main(["--lang", "xx", "--arch", "linear", "--out", str(folder)])
    step3_head.main(["--lang", "xx", "--out", str(folder)])
    step3_head.main(["--lang", "xx", "--method", "translated", "--out", str(folder)])
    evaluation.main(["--lang", "xx", "--out", str(folder)])
    rows = json.loads((folder / "results.json").read_text())
    assert sorted(r["method"] for r in rows) == ["english", "langalign", "translated"]
    capsys.readouterr()
    assert len(predict(folder, "xthe xfilm\txthe xfood\n", capsys)) == 1
    with pytest.raises(UserError, match="standard input:2: 1 tab-separated columns"):
        predict(folder, "a\tb\nno second column\n", capsys)


def test_single_texts_for_a_pair_task_are_taken_with_a_warning(tiny, tmp_path, capsys):
    folder = step1(tiny, tmp_path / "run", "--task", "pair")
    rows = [["", f"the film {w} {v}", f"xthe xfilm x{w} x{v}"] for w in WORDS for v in WORDS[:5]]
    data = tmp_path / "data"
    for lang in ("en", "xx"):
        (data / "pair" / lang).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (data / "pair" / lang / f"{split}.tsv").write_bytes((tiny[1] / "pair" / lang / f"{split}.tsv").read_bytes())
    write(data / "pair" / "xx" / "translated.tsv", ["label", "text", "translation"], rows)
    folder = step1((tiny[0], data), tmp_path / "run2", "--task", "pair")
    step2_align.main(["--lang", "xx", "--out", str(folder)])
    told = capsys.readouterr().out
    assert "warning: single texts for a pair task" in told and "domain gap" in told
    with pytest.raises(UserError, match="translated.tsv:2: no label, as 100 rows"):
        step3_head.main(["--lang", "xx", "--method", "translated", "--out", str(folder)])


def test_lms_tuned_on_native_and_translated_rows(folder, tiny):
    for kind in ("native", "translated"):
        step1(tiny, folder, "--train-on", kind, "--lang", "xx", "--epochs", "1")
        step3_head.main(["--lang", "xx", "--method", kind, "--lm", kind, "--out", str(folder)])
    step3_head.main(["--method", "english", "--out", str(folder)])
    evaluation.main(["--lang", "xx", "--out", str(folder)])
    methods = [row["method"] for row in json.loads((folder / "results.json").read_text())]
    assert sorted(methods) == ["english", "native (native LM)", "translated (translated LM)"]


def test_each_script_runs_from_an_empty_folder_with_common(tiny, tmp_path):
    """Copying one script and common.py elsewhere runs: the project's promise to those who copy."""
    steps = [("step1_embed.py", "--model", tiny[0], "--data", tiny[1], "--task", "mood", "--epochs", 1),
             ("step2_align.py", "--lang", "xx"), ("step3_head.py", "--lang", "xx"), ("eval.py", "--lang", "xx")]
    for name, *args in steps:
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        for file in (name, "common.py"):
            (place / file).write_bytes((ROOT / file).read_bytes())
        done = script(name, *args, "--out", tmp_path / "runs", cwd=place)
        assert done.returncode == 0, done.stderr
        assert {p.name for p in place.iterdir()} <= {name, "common.py", "__pycache__"}
    assert "langalign" in done.stdout
