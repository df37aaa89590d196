"""The benchmark's own arithmetic; it runs on a tiny encoder and prints the JSON object it promises."""
import json
import random

import bench
import peers
import pytest
import torch
from conftest import step1
from transformers import BertConfig

SMALL = dict(texts=40, repeats=1, rows=64, epochs=1, pairs=200, dim=8, points=(40, 80))


@pytest.fixture
def small(monkeypatch):
    """Sizes of a second or two, and no peer, whatever is installed."""
    monkeypatch.setattr(bench, "QUICK", SMALL)
    monkeypatch.setattr(bench, "has", lambda *packages: False)
    monkeypatch.setattr(bench.step2_align, "EPOCHS", 2)
    monkeypatch.setattr(bench.step3_head, "STEPS", 20)


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_flops_of_a_tiny_encoder_by_hand():
    config = BertConfig(hidden_size=4, intermediate_size=6, num_hidden_layers=3, num_attention_heads=2)
    # 2 and 5 tokens; a layer: linear maps 2 (4 * 16 + 2 * 24) = 224 a token, 1568 in all; q k^T and the sum
    # over v: 2 * 2 * 4 T^2 = 16 T^2, so 64 + 400; three layers of 2032
    assert bench.flops(config, [2, 5]) == 3 * 2032
    job, work = bench.peak_job(config, 10, torch.device("cpu"), torch.float32)
    job(None)
    assert work == 10 * 224 * bench.PRODUCTS


def test_fit_recovers_a_planted_line():
    n = (10, 50, 100, 200)
    slope, constant = bench.fit_line(n, [3.5 * rows + 700 for rows in n])
    assert slope == pytest.approx(3.5) and constant == pytest.approx(700)


def test_best_of_warms_up_takes_turns_and_keeps_the_fastest():
    calls = []
    jobs = {name: lambda work, name=name: calls.append((name, work)) or work for name in "ab"}
    seconds, values = bench.best_of(jobs, "warm", "work", 2, torch.device("cpu"))
    assert calls == [("a", "warm"), ("b", "warm"), *[("a", "work"), ("b", "work")] * 2]
    assert values == {"a": "work", "b": "work"} and all(0 <= s < 1 for s in seconds.values())


def test_planted_embeddings_follow_from_the_text():
    encoder = type("", (), {"dim": 8})
    texts = [(f"{i} {lang} words",) for i in range(300) for lang in ("en", "xx")]
    random.Random(0).shuffle(texts)
    rows = dict(zip(texts, bench.planted(encoder, texts)))
    again = bench.planted(encoder, texts[:5])
    assert all(torch.equal(rows[text], row) for text, row in zip(texts, again))
    x, y = (torch.stack([rows[f"{i} {lang} words",] for i in range(300)]) for lang in ("en", "xx"))
    left = y - x @ torch.linalg.lstsq(x, y).solution
    assert 0 < left.var() < 0.2 * y.var()


def test_quick_run_prints_the_promised_object(small, folder, capsys):
    bench.main(["--quick", "--out", str(folder), "--device", "cpu", "--amp", "bf16"])
    found = last_line(capsys)
    assert tuple(found) == bench.RESULTS
    null = {key for key, value in found.items() if value is None}
    assert null == {"encode_fp32_ratio", "encode_fp32_best_ratio", "encode_bf16_ratio",
                    "encode_bf16_best_ratio", "step1_ratio"}
    assert found["encode_bf16_cosine"] > 0.99 and 0 < found["encode_fp32_peak_share"] < 1
    assert found["fc_seconds"] > 0 and found["heads_ratio"] > 0


def test_steps_are_encoded_once_and_parts_can_be_chosen(small, tmp_path, capsys):
    bench.main(["--quick", "--only", "steps23", "--out", str(tmp_path / "none"), "--device", "cpu"])
    out = capsys.readouterr().out
    encoded = [line.split(": ")[-1] for line in out.splitlines() if "texts encoded" in line]
    assert len(encoded) == 8 and all(line.endswith(", 0") for line in encoded)
    assert encoded[0] == "400, 0"                            # 200 pairs; their English is the task's text
    found = json.loads(out.splitlines()[-1])
    assert {key for key, value in found.items() if value} == {"fc_seconds", "linear_seconds", "heads_ratio"}


@pytest.mark.parametrize("args, words", [
    (["--only", "speed"], "--only takes some of encode,step1,steps23,memory"),
    (["--peer"], "--peer and --lang go together"),
    (["--only", "encode", "--out", "nowhere"], "python step1_embed.py --out nowhere")])
def test_a_mistake_is_one_line(args, words):
    with pytest.raises(bench.UserError, match=words) as err:
        bench.main([*args, "--device", "cpu"])
    assert "\n" not in str(err.value)


@pytest.mark.skipif(not peers.has("sentence_transformers"), reason="needs sentence-transformers")
@pytest.mark.parametrize("task", ["mood", "pair"])
def test_the_peers_embeddings_are_ours(tiny, tmp_path, task):
    encoder, info = bench.load_encoder(step1(tiny, tmp_path, "--task", task))
    texts = bench.load_task(info["data"], task, "en", "test")[0]
    peers.check_same(encoder, peers.peer_model(encoder, torch.device("cpu")), texts, torch.device("cpu"))
