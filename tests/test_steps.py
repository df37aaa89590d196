"""Steps 1 to 3 on the tiny random world: each loss by hand, planted maps, frozen LM, variants."""
import json
import shutil
import types

import numpy as np
import pytest
import step1_embed
import step2_align
import step3_head
import torch
import torch.nn.functional as F
from conftest import ROOT, WORDS, go, script, step1, write
from transformers import Gemma3TextConfig, Gemma3TextModel

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
    args = types.SimpleNamespace(arch=kind, plain=False, seed=0)
    step2_align.train(aligner, x[:300], y[:300], x[300:], y[300:], args, CPU)
    assert (aligner.map(x) - y).abs().max() < (1e-4 if kind != "linear" else 0.02)
    assert torch.allclose(aligner.W, w, atol=0.01)


def solve(kind, x, y):
    """The closed form's W from pairs of which the last 100 are held out."""
    return step2_align.closed_form(kind, x[:-100], y[:-100], x[-100:], y[-100:])


@pytest.mark.parametrize("noise, place", [(0.0, 0), (3.5, 5), (5.0, 6)])
def test_linear_takes_the_strongest_ridge_within_two_percent(noise, place):
    """Compared with plain ridge regression by the library, one ridge after the other."""
    x, y, _ = planted("linear")
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (x_, y_), (mean_x, mean_y) = (x[:300].double(), y[:300].double()), (x[:300].mean(0), y[:300].mean(0))
    maps, errors = [], []
    for ridge in step2_align.RIDGES:
        size = ridge * (x_ - mean_x).square().mean() * 300           # of the mean input variance
        rows = torch.cat([x_ - mean_x, size ** 0.5 * torch.eye(8)])
        maps.append(torch.linalg.lstsq(rows, torch.cat([y_ - mean_y, torch.zeros(8, 8)])).solution.float())
        errors.append(F.mse_loss((x[300:] - mean_x) @ maps[-1] + mean_y, y[300:]).item())
    within = [i for i, error in enumerate(errors) if error <= 1.02 * min(errors)]
    assert within[-1] == place and (place == 0 or within[-1] > errors.index(min(errors))), errors
    assert torch.allclose(solve("linear", x, y), maps[place], atol=1e-3)


def test_procrustes_is_the_best_rotation():
    x, y, _ = planted("linear")
    rotation = solve("procrustes", x, y)
    assert torch.allclose(rotation @ rotation.T, torch.eye(8), atol=1e-5)
    x, y = x[:300] - x[:300].mean(0), y[:300] - y[:300].mean(0)
    others = [torch.linalg.qr(rotation + 0.1 * torch.randn(8, 8))[0] for _ in range(20)]
    others = [q * (q * rotation).sum(0).sign() for q in others]                    # near by, same signs
    assert all(F.mse_loss(x @ rotation, y) < F.mse_loss(x @ q, y) for q in others)


def train(monkeypatch, aligner, x, y, held, plain):
    """step2_align.train, set to learn by heart; returns the held-out MSEs that it has seen, in order."""
    for name, value in (("WEIGHT_DECAY", 0.0), ("LR", 3e-3), ("EPOCHS", 60)):
        monkeypatch.setattr(step2_align, name, value)
    seen, mse = [], F.mse_loss
    monkeypatch.setattr(F, "mse_loss", lambda a, b: seen.append((len(b), mse(a, b).item())) or mse(a, b))
    args = types.SimpleNamespace(seed=0, arch=aligner.config["arch"], plain=plain)
    step2_align.train(aligner, x[:-held], y[:-held], x[-held:], y[-held:], args, CPU)
    monkeypatch.undo()
    return [error for rows, error in seen if rows == held]


@pytest.mark.parametrize("arch, depth, plain", [("fc", 2, True), ("fc", 2, False), ("ae", 1, True)])
def test_training_learns_a_planted_map(monkeypatch, arch, depth, plain):
    x, y, _ = planted("linear", 2000)
    torch.manual_seed(0)
    aligner = Aligner(arch, 8, depth, 8, 0.0)
    errors = train(monkeypatch, aligner, x, y, 200, plain)
    assert step2_align.measure(aligner.map(x[1800:]), y[1800:], y.mean(0))["r2"] > (0.95 if plain else 0.9999)
    assert not plain or min(errors) < 0.1 * errors[0]


@pytest.mark.parametrize("noise, plain, best", [(10.0, True, 4), (30.0, False, 0)])
def test_training_keeps_the_best_epoch_or_the_start(monkeypatch, noise, plain, best):
    """Few and noisy pairs and a wide layer: after its best epoch, 0 the start, A learns them by heart."""
    x, y, _ = planted("linear", 300)
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    aligner = Aligner("fc", 8, 2, 256, 0.0)
    errors = train(monkeypatch, aligner, x, y, 100, plain)
    errors = errors if plain else errors[len(step2_align.RIDGES):]                  # those of the ridges go first
    assert errors.index(min(errors)) == best and len(errors) == 61
    assert F.mse_loss(aligner.map(x[200:]), y[200:]).item() == pytest.approx(errors[best], rel=1e-5)


def test_eq1_by_hand():
    aligner = Aligner("linear", 2)
    aligner.W, aligner.mean_y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 0.0])
    x, y = torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert step2_align.eq1(aligner(x), y).item() == (4 + 0 + 0 + 16) / 4           # A(x) = (2, 2), (1, 4)


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
    step2_align.report(y, x, y, y.mean(0), (0.0, 0.0))
    assert "warning" not in capsys.readouterr().out
    step2_align.report(predicted, x, y, y.mean(0), (1.5, 1.5) if fault == "domain" else (0.0, 0.0))
    line = [line for line in capsys.readouterr().out.splitlines() if words in line and "warning" in line]
    assert len(line) == 1 and any(c.isdigit() for c in line[0])


def test_training_only_the_used_rows_is_exact(tiny, tmp_path, monkeypatch):
    """Step 1 as it is, and with all rows of the embedding table in the optimizer, give the same LM."""
    name = "embeddings.word_embeddings.weight"
    start = common.load_pretrained(str(tiny[0]), "mean", 48).lm.state_dict()[name]
    cut = torch.load(tune(tiny, tmp_path / "cut", "--lr", "0.01") / "embed.pt", weights_only=True)["state"]
    monkeypatch.setattr(step1_embed, "use_rows", lambda encoder, rows: lambda: None)
    full = torch.load(tune(tiny, tmp_path / "full", "--lr", "0.01") / "embed.pt", weights_only=True)["state"]
    assert cut.keys() == full.keys() and all(torch.allclose(full[key], cut[key], atol=1e-5) for key in full)
    changed = (full[name] != start).any(1)
    assert 5 < changed.sum() < len(start), "some rows train, some must not"
    assert torch.equal(changed, (cut[name] != start).any(1))


def test_using_some_rows_changes_no_embedding_though_their_class_scales_them(tiny):
    """Gemma multiplies what it looks up; the cut table must, too, and be gone afterwards."""
    tokenizer = common.load_pretrained(str(tiny[0]), "mean", 48).tokenizer
    torch.manual_seed(0)
    lm = Gemma3TextModel(Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=1, max_position_embeddings=50)).eval()
    encoder = common.Encoder(lm, tokenizer, "mean", 48)
    texts = [(" ".join(WORDS[:k]),) for k in (2, 5, 9)]
    before, names = common.encode(encoder, texts, CPU), list(lm.state_dict())
    restore = step1_embed.use_rows(encoder, encoder.tokenize(texts))
    assert len(lm.get_input_embeddings().weight) < len(tokenizer)
    assert torch.equal(common.encode(encoder, texts, CPU), before)
    with torch.no_grad():
        lm.get_input_embeddings().weight.mul_(2)
    doubled = common.encode(encoder, texts, CPU)
    restore()
    assert torch.equal(common.encode(encoder, texts, CPU), doubled) and not torch.equal(before, doubled)
    assert list(lm.state_dict()) == names and len(lm.get_input_embeddings().weight) == len(tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_byte_dropout_is_dropout(dtype):
    """Share and mean as F.dropout's, units independent of their neighbours and rows, zeros in the gradient too."""
    torch.manual_seed(0)
    x = torch.full((3001, 1001), 2.0, dtype=dtype, requires_grad=True)            # no multiple of 8
    out = step1_embed.byte_dropout(x, 0.1, True)
    zero = (out == 0).double()
    assert zero.mean().item() == pytest.approx(26 / 256, abs=1e-3)                   # deviation 1.7e-4
    assert zero.mean(0).max() < 0.14 and zero.mean(0).min() > 0.06                  # each column, 7 deviations
    for step in (1, 2, 8):                                                          # neighbours in a word and beyond
        both = (zero[:, step:] * zero[:, :-step]).mean().item()
        assert both == pytest.approx((26 / 256) ** 2, abs=4e-4)
    assert (zero[1:] * zero[:-1]).mean().item() == pytest.approx((26 / 256) ** 2, abs=4e-4)
    assert out.dtype == dtype and out[out != 0].unique().tolist() == [pytest.approx(512 / 230, rel=4e-3)]
    out.sum().backward()
    assert torch.equal(x.grad == 0, out == 0) and torch.equal(step1_embed.byte_dropout(x, 0.1, False), x)
    assert torch.equal(step1_embed.byte_dropout(x, 0.0, True), x)


def test_step1_drops_units_by_bytes_on_a_cpu_and_leaves_torch_as_it_was(tiny, tmp_path, monkeypatch):
    seen, theirs = [], F.dropout
    monkeypatch.setattr(step1_embed, "byte_dropout", lambda x, p, *more, **named: seen.append((x.ndim, p)) or x)
    step1(tiny, tmp_path / "run", "--epochs", 1)
    assert {(2, 0.1), (3, 0.1), (4, 0.1)} == set(seen)                   # before the labels, hidden, attention
    assert F.dropout is theirs


def test_batches_of_an_epoch_hold_each_row_once_and_little_padding(tiny, tmp_path, monkeypatch):
    seen, pad = [], step1_embed.pad
    monkeypatch.setattr(step1_embed, "pad", lambda rows, *args: seen.append(rows) or pad(rows, *args))
    step1(tiny, tmp_path, "--epochs", "1", "--batch", "4")
    rows = [tuple(row["input_ids"]) for batch in seen for row in batch]
    texts = common.load_task(tiny[1], "mood", "en", "train")[0]
    encoder, _ = load_encoder(tmp_path)
    assert sorted(rows) == sorted(tuple(row["input_ids"]) for row in encoder.tokenize(texts))
    padded = sum(len(batch) * max(len(row["input_ids"]) for row in batch) for batch in seen)
    assert padded < 1.2 * sum(map(len, rows))
    first = [len(batch[0]["input_ids"]) for batch in seen]
    assert first != sorted(first) and first != sorted(first, reverse=True), "batches come in random order"


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
    monkeypatch.setattr(step1_embed, "train_epoch", _train_and(accuracies, step1_embed.train_epoch, tiny))
    folder = tune(tiny, tmp_path / "a", "--lr", "0.01")
    history = torch.load(folder / "embed.pt", weights_only=True)["history"]
    encoder, _ = load_encoder(folder)
    best = max(range(2), key=lambda i: (history[i]["dev"], -i))
    kept = encoder.lm.encoder.state_dict()
    assert all(torch.equal(kept[k], states[best][k]) for k in kept)
    assert not all(torch.equal(kept[k], states[1 - best][k]) for k in kept)


def _train_and(accuracies, train_epoch, tiny):
    """train_epoch whose second epoch wrecks the classifier, so that the first is the best by dev accuracy."""
    def wrapped(model, *args):
        loss = train_epoch(model, *args)
        if next(accuracies) < 0.5:
            model[-1].weight.data.zero_()
            model[-1].bias.data = torch.tensor([-1.0, 1.0])
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


def test_lm_bytes_do_not_change_in_steps_2_and_3(folder, monkeypatch):
    before = (folder / "embed.pt").read_bytes()
    seen = []
    monkeypatch.setattr(common, "load_encoder", lambda out: seen.append(load_encoder(out)) or seen[-1])
    go(folder, "step2_align --lang xx", "step3_head --lang xx")
    fresh, _ = load_encoder(folder)
    assert len(seen) == 2
    for encoder, _ in seen:
        assert not encoder.training and not any(p.requires_grad or p.grad is not None for p in encoder.parameters())
        assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(encoder.state_dict().values(), fresh.state_dict().values()))
    assert (folder / "embed.pt").read_bytes() == before


def test_variants_have_files_of_their_own(folder):
    for variant in ("", "--n 40", "--arch ae", "--arch shift", "--reverse", "--noise 0.5", "--seed 1",
                    "--depth 3", "--hidden 8", "--dropout 0.4", "--plain"):
        go(folder, f"step2_align --lang xx {variant}")
    assert len(list(folder.glob("align-*.pt"))) == 11
    for variant in ("", "--method native", "--method translated", "--method translated --n 50",
                    "--method rev", "--arch ae", "--n 40", "--n 40 --l2 0.1", "--n 40 --seeds 2",
                    "--n 40 --seed 1"):
        go(folder, f"step3_head --lang xx {variant}")
    assert len(list(folder.glob("head-*.pt"))) == 11                                # with english, made along


def test_a_language_may_have_a_hyphen(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(step3_head, "STEPS", 40)
    data = shutil.copytree(tiny[1], tmp_path / "data")
    shutil.copytree(data / "mood" / "xx", data / "mood" / "zh-TW")
    out = step1((tiny[0], data), tmp_path / "run")
    go(out, "step2_align --lang zh-TW --arch shift", "step3_head --lang zh-TW")
    assert (out / "head-langalign-zh-TW-shift-n90.pt").exists()


def test_heads_and_aligners_of_other_data_are_refused_though_the_lm_is_the_same(folder, tiny, tmp_path):
    """Step 1 skipped twice, on two copies of the data: the same weights, another fingerprint."""
    go(folder, "step2_align --lang xx --arch shift", "step3_head --lang xx")
    before = load_encoder(folder)[0].fingerprint
    step1((tiny[0], shutil.copytree(tiny[1], tmp_path / "data")), folder)
    assert load_encoder(folder)[0].fingerprint != before
    for command in ("step3_head --lang xx", "eval --lang xx"):
        with pytest.raises(UserError, match="another LM"):
            go(folder, command)


def test_step3_takes_the_newest_aligner_or_the_one_asked_for(sweep):
    def newest():
        return max(sweep.glob("head-langalign-*"), key=lambda p: p.stat().st_mtime_ns).name
    assert newest() == "head-langalign-xx-fc-n90-plain-noise0.3.pt"
    go(sweep, "step3_head --lang xx --arch shift")
    assert newest() == "head-langalign-xx-shift-n90.pt"


def planted_labels():
    """Inputs (600, 8), not centred, and labels that lie in one direction of them, with some noise."""
    g = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(600, 8, generator=g) + 2
    return x, (x[:, 0] - 2 + torch.randn(600, generator=g) > 0).long()


def test_heads_learn_and_their_seeds_are_independent(monkeypatch):
    monkeypatch.setattr(step3_head, "STEPS", 200)    # so that the start still shows
    x, y = planted_labels()
    three = step3_head.train_heads(x, y, 2, [0, 1, 2], 0.0, CPU)
    assert (common.logits(three, x).argmax(2) == y).float().mean(1).min() > 0.75
    one = step3_head.train_heads(x, y, 2, [0], 0.0, CPU)
    assert torch.allclose(one["weight"][0], three["weight"][0], atol=1e-5), "it does not see its neighbours"
    assert not torch.allclose(three["weight"][0], three["weight"][1], atol=1e-3)


def test_heads_minimise_cross_entropy_plus_l2(monkeypatch):
    """At the minimum the two gradients cancel: X^T (p - y) / N = -2 l2 w, on standardised inputs."""
    monkeypatch.setattr(step3_head, "STEPS", 6000)                                 # 2000 are on the way there
    x, y = planted_labels()
    heads = step3_head.train_heads(x, y, 2, [0, 1], 0.05, CPU)
    assert torch.allclose(heads["mean"], x.mean(0)) and torch.allclose(heads["scale"], x.std(0))
    wrong = common.logits(heads, x).softmax(2) - F.one_hot(y, 2)                   # (S, N, C)
    gradient = ((x - x.mean(0)) / x.std(0)).T @ wrong / len(x)                     # (S, D, C)
    assert gradient.abs().max() > 0.02 and torch.allclose(gradient, -0.1 * heads["weight"].mT, atol=2e-3)


def test_a_head_with_residuals_leaves_out_what_a_does_not_foretell():
    """Two inputs tell the label alike; in target text noise hides one. The head on A(x) alone trusts both."""
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(4000, 2, generator=g), torch.randn(4000, 2, generator=g) * torch.tensor([4.0, 0.2])
    y, target = (x.sum(1) > 0).long(), x + noise                                   # A(x) = x
    train, held, test = (slice(0, 2500), slice(2500, 3000), slice(3000, 4000))
    accuracy = {}
    for name, args in (("clean", (x[train], y[train], 2, [0, 1], 0.01, CPU)),
                       ("residuals", (x[train], y[train], 2, [0, 1], 0.01, CPU, (target - x)[held])),
                       ("translated", (target[train], y[train], 2, [0, 1], 0.01, CPU))):
        heads = step3_head.train_heads(*args)
        accuracy[name] = (common.logits(heads, target[test]).argmax(2) == y[test]).float().mean().item()
        assert heads["scale"][0] > 3 or name == "clean"
    assert accuracy["clean"] < 0.66 and accuracy["residuals"] > 0.72
    assert accuracy["residuals"] == pytest.approx(accuracy["translated"], abs=0.01)


@pytest.mark.parametrize("flags, gap, kept", [("", 0.1, True), ("--arch shift", 0.1, True), ("", 0.3, False),
                                              ("--plain", 0.1, False), ("--reverse", 0.1, False)])
def test_residuals_are_kept_of_task_text_only_and_used(folder, capsys, monkeypatch, flags, gap, kept):
    """y - A(x) of the held-out pairs and of as many others as make POOL, or all."""
    monkeypatch.setattr(step2_align, "domain_gap", lambda *_: gap)
    monkeypatch.setattr(step2_align, "POOL", 50)
    go(folder, f"step2_align --lang xx --amp off {flags}")
    art = common.load(*folder.glob("align-xx-*.pt"), "align", "")
    assert art["residuals"].shape == (50 if kept else 0, 16)
    if kept:
        assert art["residuals"][-9:].square().mean().item() == pytest.approx(art["report"]["A"]["mse"], rel=1e-4)
        encoder, info = load_encoder(folder)
        english, target, _ = common.load_translated(info["data"], info["task"], "xx")
        x, y = (common.Cache(encoder, folder, CPU)(texts)[-50:] for texts in (english, target))
        expected = y - common.load_aligner(art, 16).map(x)
        assert torch.allclose(art["residuals"], expected, atol=1e-5) and expected.std() > 0.01
    given = []
    plain = step3_head.train_heads
    monkeypatch.setattr(step3_head, "train_heads", lambda *args: given.append(args[-1]) or plain(*args))
    rev = "--method rev" * ("reverse" in flags)
    go(folder, "step3_head --method english", f"step3_head --lang xx {rev}")
    assert [len(residuals) for residuals in given] == [0, 50 if kept else 0]
    assert capsys.readouterr().out.count("with its residuals") == kept


def test_logits_by_hand():
    heads = {"weight": torch.tensor([[[1.0, 3.0], [0.0, 2.0]]]), "bias": torch.tensor([[[0.0, 5.0]]]),
             "mean": torch.tensor([1.0, 1.0]), "scale": torch.tensor([2.0, 1.0])}
    assert common.logits(heads, torch.tensor([[3.0, 2.0]])).tolist() == [[[4.0, 7.0]]]


@pytest.mark.parametrize("right, fires", [(18, True), (27, False)])       # of 30 rows, 18 of one class
def test_a_head_at_the_majority_class_warns(folder, tiny, capsys, monkeypatch, right, fires):
    y = common.load_task(tiny[1], "mood", "en", "dev")[1]
    said = torch.where(torch.arange(30) < right, y, 1 - y).expand(5, -1)
    monkeypatch.setattr(step3_head, "train_heads", lambda *a: {"weight": torch.zeros(5, 2, 16)})
    monkeypatch.setattr(step3_head, "logits", lambda heads, x: F.one_hot(said, 2))
    go(folder, "step3_head --method english")
    told = capsys.readouterr().out
    assert ("warning: the head learned nothing" in told) == fires
    assert f"dev accuracy {right / 30:.2%} +- 0.00%, majority class 60.00%" in told


def test_single_general_texts_for_a_pair_task_are_taken_with_a_warning(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step3_head, "STEPS", 40)
    shutil.copytree(tiny[1] / "pair", tmp_path / "data" / "pair")
    rows = [["", f"the film {w} {v}", f"xthe xfilm x{w} x{v}"] for w in WORDS for v in WORDS[:5]]
    write(tmp_path / "data" / "pair" / "xx" / "translated.tsv", ["label", "text", "translation"], rows)
    folder = step1((tiny[0], tmp_path / "data"), tmp_path / "run", "--task", "pair")
    go(folder, "step2_align --lang xx")
    told = capsys.readouterr().out
    gap = common.load(folder / "align-xx-fc-n100.pt", "align", "")["report"]["domain_gap"]
    assert "warning: single texts for a pair task" in told and gap > step2_align.WARN_GAP
    assert f"warning: the pairs are far from the task's text, domain gap {gap:.2f}" in told
    go(folder, "step3_head --lang xx", "eval --lang xx")                            # and all steps go on
    ours = json.loads((folder / "results.json").read_text())[-1]
    assert ours["method"] == "langalign" and ours["sentences"] == len(rows) == 100
    assert ours["characters"] == sum(len(row[1]) for row in rows)
    with pytest.raises(UserError, match="translated.tsv:2: label ''; the English"):
        go(folder, "step3_head --lang xx --method translated")


@pytest.mark.parametrize("kind", ["native", "translated"])
def test_an_lm_tuned_on_native_or_translated_rows_has_a_run_folder_of_its_own(folder, tiny, tmp_path, kind):
    other = step1(tiny, tmp_path / kind, "--train-on", kind, "--lang", "xx", "--epochs", "1")
    assert [path.name for path in other.iterdir()] == ["embed.pt"]
    assert load_encoder(other)[0].fingerprint != load_encoder(folder)[0].fingerprint
    go(other, f"step3_head --lang xx --method {kind}", "eval --lang xx")
    methods = [row["method"] for row in json.loads((other / "results.json").read_text())]
    assert methods == ["majority", "english", kind]


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
