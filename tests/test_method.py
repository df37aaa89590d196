"""Check the method, in a reader's order: Eq. 1, A, closed forms, heads, e(.), inside, tuning, several ranks."""

import copy
import contextlib
import inspect
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from conftest import KINDS, ROOT, SCRIPTS, WORDS, cipher, make_encoder, step1
from torch import nn

import step1_embed
from common import Aligner, Inside, UserError, as_labels, build_aligner, encode, fixed_order
from common import load, load_encoder, load_english, load_pretrained, logits, pad, save
from eval import classify
from step1_embed import tune
from step2_align import CLOSED, check_pairs, fit, fit_inside, measure, solve
from step3_head import train_heads

TEXTS = [" ".join(WORDS[:k]) for k in (3, 11, 5, 1, 7, 20, 2)]


def planted(kind="linear", n=400, dim=8, noise=0.0):
    """Return (x, y, W), y = x W + 3 + noise, W of a kind of closed form. `parts` holds out the last 100."""
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(n, dim, generator=g) + 2, torch.randn(dim, dim, generator=g)
    W = {"shift": torch.eye(dim), "procrustes": torch.linalg.qr(W)[0], "linear": W}[kind]
    return x, x @ W + 3 + noise * torch.randn(n, dim, generator=g), W


def parts(x, y):
    return x[:-100], y[:-100], x[-100:], y[-100:]


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


# Step 2, Eq. 1
def test_eq1_and_its_gradient_by_hand():
    """x is (0, 0), (2, 4), standardised -+1/sqrt(2). W = 0 maps both to mean_y = (1, 1): all four errors
    are 1, dEq1/dW is -1 everywhere. Adam's first step at rate 0.1 makes W 0.1, A(x) 0.8 and 1.2."""
    x, y = torch.tensor([[0.0, 0.0], [2.0, 4.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    aligner = Aligner("fc", dim=2, depth=1)
    for parameter in aligner.parameters():
        nn.init.zeros_(parameter)
    history = fit(aligner, x, y, x, y, epochs=1, lr=0.1, weight_decay=0.0)
    assert torch.allclose(aligner.f[0].weight.grad, torch.full((2, 2), -1.0))
    assert torch.allclose(aligner.map(x), torch.tensor([[0.8, 0.8], [1.2, 1.2]]))
    assert history == [pytest.approx(0.64)]


@pytest.mark.parametrize("arch, width", [("fc", 32), ("ae", 8)])
def test_fit_minimises_the_held_out_mse(arch, width):
    x, y, _ = planted(n=1100)
    torch.manual_seed(0)
    aligner = Aligner(arch, dim=8, depth=1 + (arch == "fc"), width=width, dropout=0.0)
    history = fit(aligner, *parts(x, y), epochs=60, lr=1e-2, weight_decay=0.0)
    assert len(history) == 60 and history[-1] < 0.05 * history[0]
    assert measure(aligner.map(x[-100:]), y[-100:], y.mean(0))["r2"] > 0.95


def test_fit_keeps_the_epoch_of_the_best_held_out_mse():
    """The pairs are few and noisy, the layer is wide: after its best epoch A overfits."""
    x, y, _ = planted(n=150, noise=10.0)
    torch.manual_seed(0)
    aligner = Aligner("fc", dim=8, width=256, dropout=0.0)
    history = fit(aligner, *parts(x, y), epochs=60, lr=3e-3, weight_decay=0.0)
    assert history[-1] > 1.05 * min(history)
    assert F.mse_loss(aligner.map(x[-100:]), y[-100:]).item() == pytest.approx(min(history))


def test_a_loss_that_is_not_finite_stops_and_a_column_without_spread_is_not_blown_up():
    x, y, _ = planted()
    with pytest.raises(
        UserError, match="held-out pairs is nan; use more pairs, or a lower lr than"
    ):
        fit(Aligner("fc", dim=8), *parts(x, y), epochs=2, lr=1e30)
    x[:, 0] = 1.0
    fit(aligner := Aligner("fc", dim=8), *parts(x, y), epochs=2)
    assert aligner.scale_x[0] == 1 and aligner.map(x + torch.eye(8)[0]).abs().max() < 20


# A
@pytest.mark.parametrize(
    "arch, depth, width, widths",
    [
        ("fc", None, None, [16, 16, 16]),
        ("fc", 4, 20, [16, 20, 20, 20, 16]),
        ("ae", None, None, [16, 13, 11, 8, 11, 13, 16]),
        ("ae", 2, 4, [16, 10, 4, 10, 16]),
    ],
)
def test_shapes_and_layers(arch, depth, width, widths):
    aligner = Aligner(arch, dim=16, depth=depth, width=width)
    linear = [layer for layer in aligner.f if isinstance(layer, nn.Linear)]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths
    kinds = [type(layer).__name__ for layer in aligner.f]
    assert kinds == (["Linear", "ReLU", "Dropout"] * len(linear))[:-2]
    assert aligner(torch.randn(5, 16)).shape == (5, 16)


# Closed forms
@pytest.mark.parametrize("arch", CLOSED)
def test_closed_forms_recover_a_planted_map(arch):
    x, y, W = planted(arch)
    aligner = solve(arch, *parts(x, y))
    assert torch.allclose(aligner.map(x), y, atol=0.05)
    assert arch == "shift" or torch.allclose(aligner.f.weight.T, W, atol=0.05)


@pytest.mark.parametrize("arch", ["linear", "procrustes"])
def test_directions_without_pairs_are_unchanged(arch):
    """Three pairs span two of eight directions. Along those that neither side has, W is the identity."""
    x, y, _ = planted("linear")
    W = solve(arch, x[:3], y[:3], x[-100:], y[-100:]).f.weight.T
    both = torch.cat([x[:3] - x[:3].mean(0), y[:3] - y[:3].mean(0)])
    unseen = torch.linalg.svd(both).Vh[4:]  # (4, 8)
    assert torch.allclose(unseen @ W, unseen, atol=1e-3)
    assert not torch.allclose(W, torch.eye(8), atol=0.01)


# Step 3: heads, residuals
quick_heads = partial(train_heads, steps=300)  # enough for the planted cases


def labelled(n=64, dim=4):
    """Return x (n, dim), not centred, and labels that follow from its first direction, with noise."""
    g = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(n, dim, generator=g) + 2
    return x, (x[:, 0] - 2 + torch.randn(n, generator=g) > 0).long()


def test_logits_by_hand():
    heads = {"weight": torch.tensor([[[1.0, 3.0], [0.0, 2.0]]]), "bias": torch.tensor([0.0, 5.0])}
    heads |= {"mean": torch.tensor([1.0, 1.0]), "scale": torch.tensor([2.0, 1.0])}
    assert logits(heads, torch.tensor([[3.0, 2.0]])).tolist() == [[[4.0, 7.0]]]


def test_heads_minimise_cross_entropy_plus_l2():
    """At the minimum the two gradients cancel: X^T (p - y) / N = -2 l2 w, on standardised inputs."""
    x, y = labelled()
    heads = train_heads(x, y, classes=2, seeds=[0, 1], l2=0.05, lr=1e-2, steps=1500)
    wrong = logits(heads, x).softmax(2) - F.one_hot(y, 2)  # (S, N, C)
    gradient = (wrong.mT @ ((x - x.mean(0)) / x.std(0))) / len(x)  # (S, C, D)
    assert gradient.abs().max() > 0.02
    assert torch.allclose(gradient, -2 * 0.05 * heads["weight"], atol=1e-3)


def test_a_head_does_not_see_its_neighbours():
    x, y = labelled(200)
    five, one = quick_heads(x, y, classes=2), quick_heads(x, y, classes=2, seeds=[3])
    assert torch.allclose(five["weight"][3], one["weight"][0], atol=1e-5)
    assert not torch.allclose(five["weight"][2], one["weight"][0], atol=1e-3)


def test_residuals_are_redrawn_in_each_epoch_from_all():
    """Residual i points along axis i, so its weight moves only if residual i was drawn. Four rows that kept
    theirs would move four of sixteen."""
    x, y, residuals = torch.zeros(4, 16), torch.tensor([0, 1, 1, 0]), torch.eye(16)
    start = quick_heads(x, y, 2, residuals, seeds=[0, 1], l2=0.0, lr=0.0)["weight"]
    moved = quick_heads(x, y, 2, residuals, seeds=[0, 1], l2=0.0)["weight"] != start
    assert moved.any(1).all() and moved.shape == (2, 2, 16)


def test_residuals_keep_the_head_off_what_a_cannot_explain():
    """Two directions tell the label equally well. In target text noise hides the first. A(x) = x."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(1500, 2, generator=g) * torch.tensor([4.0, 0.2])
    x = torch.randn(1500, 2, generator=g)
    y, target = (x.sum(1) > 0).long(), x + noise
    accuracy = []
    for residuals in (None, noise[:500]):
        heads = quick_heads(x[:500], y[:500], 2, residuals, seeds=[0, 1], l2=0.01, lr=1e-2)
        accuracy.append((logits(heads, target[500:]).argmax(2) == y[500:]).float().mean().item())
    assert accuracy[0] < 0.67 and accuracy[1] > 0.72


# e(.)
def one_by_one(folder, texts, pool="mean"):
    """Encode one text at a time, without padding, as a plain Hugging Face folder."""
    lm, tokenizer = hf.AutoModel.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    out = []
    for text in texts:
        batch = tokenizer(*[[part] for part in text], return_tensors="pt")
        with torch.no_grad():
            hidden = lm(**batch).last_hidden_state[0]
        out.append(hidden.mean(0) if pool == "mean" else hidden[0])
    return torch.stack(out)


@pytest.fixture
def encoder(world):
    """Return a fresh frozen encoder."""
    return load_pretrained(world.encoder).eval().requires_grad_(False)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_padding_and_batches_change_nothing(runs, pool):
    encoder, _ = load_encoder(runs)
    encoder.pool = pool
    plain = one_by_one(runs / "encoder", [(text,) for text in TEXTS], pool)
    assert plain.std(0).mean() > 0.1, "the encoder must tell the texts apart"
    for encoder.batch_tokens in (1, 30, 10_000):
        assert torch.allclose(encode(encoder, TEXTS), plain, atol=1e-5)
        assert torch.allclose(encode(encoder, TEXTS[::-1]), plain.flip(0), atol=1e-5)


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])  # bert: with token types
def test_pairs_are_one_sequence(tmp_path, kind):
    encoder = load_pretrained(make_encoder(tmp_path, kind))
    encoder.batch_tokens = 40
    pairs = list(pairwise(TEXTS))
    assert torch.allclose(encode(encoder, pairs), one_by_one(tmp_path, pairs), atol=1e-5)
    assert not torch.allclose(encode(encoder, pairs), encode(encoder, [p[::-1] for p in pairs]))


def test_strings_are_texts_and_a_bare_string_is_none(encoder):
    assert torch.equal(encode(encoder, TEXTS), encode(encoder, [(text,) for text in TEXTS]))
    with pytest.raises(TypeError, match="a list of texts or pairs, got a str"):
        encode(encoder, "good film")
    with pytest.raises(TypeError, match="text_b"):
        encode(encoder, [("label", "good", "bad")])
    for wrong in ({}, None, ("a", 1), " ", "\ud83d", b""):
        with pytest.raises(TypeError, match=r"texts\[1\] is .* expected a list of texts"):
            encode(encoder, ["good film", wrong])


def test_frozen_weights_are_cast_and_rotary_buffers_stay_fp32(world, tmp_path):
    model, out = make_encoder(tmp_path / "model", "modernbert"), tmp_path / "runs"
    step1(model, world.data, out)
    (plain, info), (low, _) = load_encoder(out), load_encoder(out, dtype=torch.bfloat16)
    assert same(state_of(plain), state_of(load_pretrained(model))) and info["history"] == []
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in low.buffers() if b.is_floating_point()} == {torch.float32}
    near = F.cosine_similarity(encode(low, TEXTS), encode(plain, TEXTS)).min()
    assert 0.99 < near < 1 - 1e-7


# Inside the LM
def through(aligner, encoder, texts):
    """Return the embeddings of texts by e(.) with an A after or inside it."""
    if not isinstance(aligner, Inside):
        return aligner.map(encode(encoder, texts))
    with aligner.on(encoder):
        return encode(encoder, texts)


def moved(lm, rank=8):
    """Return an Inside whose `up` is not zero."""
    inside = Inside(lm, rank)
    for up in inside.up:
        nn.init.normal_(up, std=0.2)
    return inside


@pytest.mark.parametrize("kind", KINDS)
def test_inside_any_encoder_and_merged_into_it(tmp_path, kind):
    encoder = load_pretrained(make_encoder(tmp_path, kind)).eval().requires_grad_(False)
    before, bits = encode(encoder, TEXTS), state_of(encoder)
    inside = moved(encoder.lm)
    assert torch.equal(through(Inside(encoder.lm), encoder, TEXTS), before)  # up is zero
    on = through(inside, encoder, TEXTS)
    assert not torch.allclose(on, before, atol=0.1) and len(inside.layers) >= 5
    assert torch.equal(encode(encoder, TEXTS), before) and same(state_of(encoder), bits)
    with pytest.raises(ValueError, match="another Inside is active"), inside.on(encoder):
        Inside(encoder.lm).on(encoder).__enter__()
    assert same(state_of(encoder), bits) and encoder.inside is None
    batch = pad(encoder.tokenize(TEXTS), encoder.tokenizer, "cpu")
    assert torch.allclose(inside(encoder, batch), on, atol=1e-3)  # hooks, as in training
    for name, down, up in zip(inside.layers, inside.down, inside.up):  # README: A in the weights
        encoder.lm.get_submodule(name).weight.data += up @ down
    assert torch.allclose(encode(encoder, TEXTS), on, atol=1e-3)


def test_the_lm_is_frozen_and_inside_trains_down_and_up(runs):
    encoder = load_encoder(runs)[0]  # as steps 2 and 3 load it
    assert not any(p.requires_grad for p in encoder.parameters())
    y, bits = encode(encoder, TEXTS), state_of(encoder)
    target, inside = [(cipher(text),) for text in TEXTS], Inside(encoder.lm)
    start = state_of(inside)
    history = fit_inside(inside, encoder, target, y, target, y, epochs=2, lr=1e-2, batch=2)
    held_out = F.mse_loss(through(inside, encoder, target), y).item()
    assert len(history) == 2 and history[1] == pytest.approx(held_out) and held_out < history[0]
    assert not any(torch.equal(start[name], tensor) for name, tensor in state_of(inside).items())
    assert all(p.grad is None for p in encoder.parameters()) and same(state_of(encoder), bits)
    assert torch.equal(encode(encoder, TEXTS), y)


@pytest.mark.parametrize("arch", ["ae", "linear", "inside"])
def test_an_aligner_comes_back_from_its_file(encoder, tmp_path, arch):
    aligner = moved(encoder.lm) if arch == "inside" else Aligner(arch, dim=32, dropout=0.3)
    for buffer in aligner.buffers():
        buffer += 0.5
    art = {"arch": arch, "aligner": aligner.config, "state": aligner.state_dict()}
    save(tmp_path / "a.pt", "align", lm="x", **art)
    back = build_aligner(load(tmp_path / "a.pt", "align"), encoder.lm)
    assert not any(p.requires_grad for p in back.parameters()) and not back.training
    assert torch.equal(through(back, encoder, TEXTS), through(aligner, encoder, TEXTS))


# Inference: only Rev-LangAlign applies A before the head
@pytest.mark.parametrize("name", ["fc", "rev-fc", "rev-inside"])
def test_a_is_needed_at_inference_by_rev_only(runs, name):
    encoder, texts = load_encoder(runs)[0], [cipher(text) for text in TEXTS]
    align, head = (load(runs / f"{kind}-ko-{name}-n400.pt", kind) for kind in ("align", "head"))
    aligner = build_aligner(align, encoder.lm)
    x = through(aligner, encoder, texts) if "rev" in name else encode(encoder, texts)
    expected = logits(head["heads"], x).softmax(2).mean(0)
    flags = {"method": "rev", "arch": name[4:]} if "rev" in name else {}
    labels, probabilities = classify(runs, texts, lang="ko", **flags)
    assert torch.allclose(probabilities, expected, atol=1e-5)
    english = classify(runs, texts, lang="ko", method="english")[1]
    assert not torch.allclose(probabilities, english, atol=1e-3)
    assert labels == [["negative", "positive"][i] for i in expected.argmax(1)]


# Step 1
@pytest.fixture
def english(runs):
    """Return 90 + 40 rows of load_english."""
    texts, y, dev_texts, dev_y = load_english(load_encoder(runs)[1])
    return texts[:90], y[:90], dev_texts[:40], dev_y[:40]


def test_tune_trains_all_but_the_word_embeddings(world, english):
    start, encoder = state_of(load_pretrained(world.encoder)), load_pretrained(world.encoder)
    history = tune(encoder, *english, epochs=2, lr=1e-3)
    assert len(history) == 2 and all(record.keys() == {"loss", "dev"} for record in history)
    parameters = dict(encoder.named_parameters()).items()
    unmoved = [name for name, tensor in parameters if torch.equal(start[name], tensor)]
    assert unmoved == ["lm.embeddings.word_embeddings.weight"]


def test_tune_keeps_the_epoch_of_the_best_dev_accuracy(world, english, monkeypatch):
    """From the second epoch on all dev rows have the same embedding, so the first is the best."""
    states = []

    def spoiled(encoder, texts, **options):
        states.append(state_of(encoder))
        x = encode(encoder, texts, **options)
        return x if len(states) == 1 else x * 0

    monkeypatch.setattr(step1_embed, "encode", spoiled)
    encoder = load_pretrained(world.encoder)
    history = tune(encoder, *english, epochs=3, lr=2e-3, batch=8)
    assert history[0]["dev"] > max(history[1]["dev"], history[2]["dev"])
    assert same(state_of(encoder), states[0]) and not same(states[0], states[2])


def test_what_a_notebook_may_give(encoder):
    """Give an iterable, no epochs, float64 with a gradient, wrong shapes and names."""
    texts, x = ["good film", "bad", "so so"], torch.randn(30, 8).double().requires_grad_()
    assert same({"": encode(encoder, iter(texts))}, {"": encode(encoder, texts)})
    aligner, y = Aligner("fc", 8), torch.arange(30) % 2
    assert fit(aligner, x, x, x, x, epochs=2) and fit(aligner, x, x, x, x, epochs=0) == []
    assert train_heads(x, y, 2, steps=1)["weight"].dtype == torch.float32
    inside, z = Inside(encoder.lm), torch.zeros(3, encoder.dim)
    assert fit_inside(inside, encoder, texts, z, texts, z, epochs=0) == []
    state = torch.get_rng_state()
    encoder = copy.deepcopy(encoder)  # frozen, and of a run folder
    assert tune(encoder, texts, [0, 1, 0], texts[:1], [2], epochs=0) == []  # a label of dev alone
    assert torch.equal(torch.get_rng_state(), state) and not encoder.digest
    assert [*encoder.parameters()][-1].requires_grad
    wrong = [lambda: fit(aligner, x, x[1:], x, x), lambda: fit(aligner, x, x, x, x[:1])]
    wrong += [lambda: solve("linear", x, x[1:], x, x), lambda: train_heads(x, y + 1, 2)]
    gpt = hf.GPT2Model(hf.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2))
    wrong += [lambda: Aligner("FC", 8), lambda: solve("mean", x, x, x, x), lambda: Inside(gpt)]
    expected = "match|labels|embeddings|is none of .*linear, procrustes, shift|no linear layers"
    missing = [["a", "b", value] * 10 for value in (float("nan"), None, "", "<NA>")]
    for labels in y.double(), y[:, None], y[1:], *missing, y.int().numpy() - 1:
        wrong.append(partial(train_heads, x, labels, 2))
    wrong.append(partial(tune, encoder, texts, [0, 1, 2], texts, [0]))
    wrong.append(partial(fit_inside, inside, encoder, texts[:1], z, [], z))
    wrong += [lambda: fit_inside(inside, encoder, texts, z, texts, z[:2]), lambda: aligner.map(z)]
    wrong.append(lambda: train_heads(x, y, 2, residuals=x[:, 1:]))
    wrong.append(lambda: solve("shift", x.detach().numpy() * np.nan, x, x, x))
    for call in wrong:
        with pytest.raises(ValueError, match=expected):
            call()
    assert as_labels(np.array([0, 10, 2], object), 3, 11).tolist() == [0, 10, 2]
    heads = train_heads(x, ["good", "bad"] * 15, 2, residuals=x.detach().numpy(), steps=1)
    assert same(heads, train_heads(x, 1 - y, 2, residuals=x, steps=1))  # in alphabetical order
    arrays = [part.detach().double().numpy() for part in (x, x + 1, x, x + 1)]
    assert torch.allclose(solve("shift", *arrays).map(arrays[0]), x.float() + 1, atol=1e-5)
    column, backwards = np.empty(30, object), np.ascontiguousarray(arrays[0][::-1])[::-1]
    column[:] = [*arrays[0]]  # as pandas holds a column of embeddings
    for rows in arrays[0], column, [*x.detach()], backwards:
        assert torch.equal(logits(heads, rows), logits(heads, x.float()))


@pytest.mark.parametrize("share, odd", [(0, False), (0.3, True), (0.5, True), (1, True)])
def test_a_shifted_part_of_the_pairs_is_noticed(share, odd, capsys):
    texts, file = [(str(i),) for i in range(400)], torch.randn(400, 16)  # in the order of the file
    part = int(share * 400)
    moved = torch.cat([file[:part].roll(1, 0), file[part:]]) + 0.5 * torch.randn(400, 16)
    moved @= torch.linalg.qr(torch.randn(16, 16))[0] if share < 1 else torch.eye(16)  # linear A
    for rows in fixed_order(400), fixed_order(400)[:380], list(range(400)):  # file, --n, export
        check_pairs("ko", texts, texts, file[rows], moved[rows], file, 400)
        assert ("shifted by a row" in capsys.readouterr().err) == odd


def test_p1_of_many_rows_counts_all_languages():
    y = torch.eye(3_000)  # rows in order of language: the first third right, the rest wrong
    predicted = torch.cat([y[:1_000], y[1_000:].roll(1, 0)])
    assert abs(measure(predicted, y, y.mean(0), most=300)["p1"] - 1 / 3) < 0.01


# Processes: several ranks as torchrun starts them, and an import of copied scripts
RANK = """
from argparse import Namespace
from common import *
from step1_embed import tune
from step2_align import fit_inside
pick_device(Namespace(device="cpu", amp="off"))
encoder = load_pretrained(MODEL)
encoder.batch_tokens = 30
torch.save({"all": [encode(encoder, TEXTS)], **gradients(encoder)}, "made.pt")
say("rank", RANK)
torch.save(encode(encoder, ["good film"]), "one.pt")
run(lambda: None)  # leaves as the scripts do
"""
CLEAN = """
import os, sys, tqdm, warnings, torch, transformers
def state():
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    lists = dict(os.environ), list(sys.path), list(warnings.filters), dict(vars(tqdm.tqdm))
    return level, bars, *lists, sys.argv, sys.stdout, torch.get_num_threads()
before = state()
import common, step1_embed, step2_align, step3_head, eval
assert state() == before
assert (common.RANK, common.WORLD) == (0, 1)  # RANK counts only under torchrun
"""


def gradients(encoder):
    """Return what one step of fit_inside and of tune leave in .grad, for a batch of 24 texts."""
    texts, y = [(" ".join(WORDS[i % 8 : i + 2]),) for i in range(24)], torch.arange(24) % 2
    torch.manual_seed(0)
    inside, target = Inside(encoder.lm), torch.ones(24, 32)
    encoder.requires_grad_(False)
    fit_inside(inside, encoder, texts, target, texts, target, epochs=1, batch=24)
    encoder.requires_grad_(True)
    tune(encoder, texts, y, texts, y, epochs=1, batch=24, dropout=0.0)
    layers = [p.grad for p in encoder.parameters() if p.grad is not None]
    return {"inside": [up.grad for up in inside.up], "tune": layers}


def start_python(code, folder, **env):
    """Start a Python process in a folder. Its output is text."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=os.environ | env, **pipes)


def test_two_ranks_encode_and_train_as_one(world, tmp_path):
    values = f"MODEL, TEXTS, WORDS = {[str(world.encoder), TEXTS, WORDS]}\n"
    code, processes = values + inspect.getsource(gradients) + RANK, []
    env = {"TORCHELASTIC_RUN_ID": "of torchrun", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    folders = [tmp_path / rank for rank in "01"]
    for folder in folders:
        folder.mkdir()
        ranks = {"RANK": folder.name, "LOCAL_RANK": folder.name}
        processes.append(start_python(code, folder, **env, **ranks))
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [out for out, _ in outputs] == ["rank 0\n", ""], outputs
    assert [process.returncode for process in processes] == [0, 0], outputs
    one, other = (torch.load(folder / "one.pt") for folder in folders)
    assert torch.equal(one, other) and one.abs().sum() > 0  # one text for two ranks

    encoder = load_pretrained(world.encoder)
    alone = {"all": [encode(encoder, TEXTS)], **gradients(encoder)}
    for made in [torch.load(folder / "made.pt") for folder in folders]:
        for part, tensors in alone.items():
            assert len(made[part]) == len(tensors)
            close = partial(torch.allclose, rtol=1e-3, atol=1e-5 if part == "all" else 1e-6)
            assert all(map(close, made[part], tensors)), part
    assert all(max(t.abs().max() for t in tensors) > 1e-3 for tensors in alone.values())


def test_importing_copied_scripts_changes_nothing(tmp_path):
    """test_end_to_end.py checks that each of them imports only common.py."""
    for name in ("common.py", *SCRIPTS):
        shutil.copy(ROOT / name, tmp_path)
    process = start_python(CLEAN, tmp_path, RANK="1")
    assert process.communicate(timeout=100) == ("", "") and process.returncode == 0
    names = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert names == {"common.py", *SCRIPTS}


# The meta device stands for a GPU: it has shapes, dtypes and devices, but no numbers
def on_meta(loop):
    """Return loop(), with made-up values where it reads a meta tensor."""
    made_up = {"item": lambda t: 0.5, "__bool__": lambda t: True}
    made_up["cpu"] = lambda t: torch.zeros(t.shape) if t.is_meta else t
    with contextlib.ExitStack() as stack:
        for name, function in made_up.items():
            stack.enter_context(mock.patch.object(torch.Tensor, name, function))
        fused = "torch.optim.adam._device_dtype_check_for_fused"  # does not know meta
        stack.enter_context(mock.patch(fused, lambda *args, **flags: None))
        stack.enter_context(mock.patch("torch.autocast", lambda *a, **k: contextlib.nullcontext()))
        return loop()


def test_loops_put_on_the_device_what_they_need_there(world):
    encoder = load_pretrained(world.encoder).to("meta")
    x, y = torch.ones(24, 32), torch.arange(24) % 2
    texts, aligner = [("good film",)] * 24, Aligner("fc", 32).to("meta")
    assert on_meta(lambda: fit(aligner, x, x, x, x, epochs=2)) == [0.5, 0.5]
    heads = on_meta(lambda: train_heads(x.to("meta"), y, 2, residuals=x, steps=2))
    assert heads["weight"].shape == (5, 2, 32) and heads["weight"].device.type == "cpu"
    assert on_meta(lambda: tune(encoder, texts, y, texts, y, epochs=1))[0]["loss"] == 0.5
    inside = Inside(encoder.requires_grad_(False).lm)
    assert on_meta(lambda: fit_inside(inside, encoder, texts, x, texts, x, epochs=1)) == [0.5]
    assert {tensor.device.type for tensor in [*inside.parameters(), *aligner.buffers()]} == {"meta"}
