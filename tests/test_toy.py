"""The toy world and, on it, what the method claims to do."""
import hashlib
import json

import pytest
import torch
from conftest import ROOT
from transformers import AutoModel, AutoTokenizer

import common
from eval import logits_of

TASKS, LANGS = ("sentiment", "nli"), ("en", "ko", "ja", "zh", "sw")


def rows(world, task, lang, split):
    return common.read_tsv(world / task / lang / f"{split}.tsv", *common.ROWS, *common.PAIRS)


@pytest.mark.parametrize("task", TASKS)
def test_translations_are_the_english_rows_and_distinct(toy_world, task):
    width = 1 + (task == "nli")
    english = rows(toy_world, task, "en", "train")
    assert len(set(english)) == len(english) == 6000
    for lang in LANGS[1:]:
        translated = rows(toy_world, task, lang, "translated")
        assert [row[:1 + width] for row in translated] == english
        assert len({row[1 + width:] for row in translated}) == 6000
        assert all(len(rows(toy_world, task, lang, split)) >= least for split, least in
                   (("train", 1500), ("dev", 300), ("test", 600)))


@pytest.mark.parametrize("task", TASKS)
def test_no_test_sentence_is_seen_in_training(toy_world, task):
    for lang in LANGS:
        test = {text for row in rows(toy_world, task, lang, "test") for text in row[1:]}
        for split in ("train", "dev", "translated")[:3 - (lang == "en")]:
            assert not test & {text for row in rows(toy_world, task, lang, split) for text in row[1:]}, split


def test_labels_are_balanced_and_known(toy_world):
    for task, labels in (("sentiment", 2), ("nli", 3)):
        for lang in LANGS:
            names = [row[0] for row in rows(toy_world, task, lang, "test")]
            counts = {name: names.count(name) for name in set(names)}
            assert len(counts) == labels and min(counts.values()) > 0.8 * len(names) / labels


def test_the_encoder_loads_with_the_librarys_own_classes(toy_world):
    tokenizer = AutoTokenizer.from_pretrained(toy_world / "encoder")
    lm = AutoModel.from_pretrained(toy_world / "encoder")
    ids = tokenizer("a", "b")["input_ids"]
    assert lm.config.model_type == "xlm-roberta" and ids[0] == 0 and ids.count(2) == 3
    assert lm(torch.tensor([ids])).last_hidden_state.shape == (1, len(ids), lm.config.hidden_size)


def test_same_seed_same_text(tmp_path):
    import toy
    digests = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        toy.main(["--out", str(tmp_path / name), "--rows", "300", "--steps", "2", "--seed", seed])
        files = sorted((tmp_path / name).rglob("*.tsv"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert len(digests[0]) > 20 and digests[0] == digests[1] != digests[2]


def test_toy_refuses_to_replace_a_folder_that_is_not_its_own(tmp_path):
    from conftest import script
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = script(ROOT / "data" / "toy.py", "--out", tmp_path / "mine", "--rows", "300", "--steps", "2")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "mine" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").exists()


def results(chain):
    found = json.loads((chain / "results.json").read_text())
    return {(row["method"], row["arch"]): row for row in found if row["lang"] == "ko"}


def test_a_native_head_beats_english_by_more_than_its_interval(chain):
    """What there is to gain. (That English is well above chance needs the default world's longer pretraining.)"""
    assert results(chain)["native", None]["delta_low"] > 0


def test_langalign_beats_english_by_more_than_its_interval(chain):
    for arch in ("fc", "ae"):
        row = results(chain)["langalign", arch]
        assert row["delta_low"] > 0, row


def test_rev_langalign_beats_english(chain):
    (row,) = [row for (method, _), row in results(chain).items() if method == "rev"]
    assert row["delta_low"] > 0, row


def test_alignment_beats_identity_on_held_out_pairs(chain):
    for path in chain.glob("align-*.pt"):
        report = common.load(path, "align", "")["report"]
        a, identity, mean = report["A"], report["identity"], report["mean"]
        assert a["cosine"] > identity["cosine"] and a["mse"] < min(identity["mse"], mean["mse"]), path
        assert a["p1"] > 0.9 * identity["p1"] and mean["r2"] == pytest.approx(0, abs=1e-6)
        assert a["r2"] > (0.1 if "shift" not in path.name else 0)


def test_threads_and_batch_budget_change_no_prediction(chain, toy_world):
    """fp32: embeddings within 1e-5 whatever the number of threads and the batches' size, and the same labels."""
    encoder, info = common.load_encoder(chain)
    heads = [common.load(path, "head", "") for path in chain.glob("head-langalign-ko-*.pt")]
    texts, _, _ = common.load_task(toy_world, "sentiment", "ko", "test", info["labels"])
    threads, found = torch.get_num_threads(), []
    try:
        for count, budget in ((threads, None), (1, None), (threads + 1, 200), (2, 8_192)):
            torch.set_num_threads(count)
            x = common.encode(encoder, texts, torch.device("cpu"), budget)
            found.append((x, [logits_of(head, x).argmax(2) for head in heads]))
    finally:
        torch.set_num_threads(threads)
    (first, said), *others = found
    assert len(texts) >= 600 and len(said) > 1
    for x, labels in others:
        assert (x - first).abs().max() < 1e-5
        assert all(torch.equal(a, b) for a, b in zip(labels, said))
