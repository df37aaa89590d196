"""Read text, models and run folders as people bring them, or refuse them in one line that says where."""

import json
import re
import shutil
import unicodedata
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers as hf
from conftest import WORDS, cipher, few_steps, main, make_encoder, make_tokenizer, step1, write
from safetensors.torch import load_file, save_file
from tokenizers import processors

import common
from common import PAIRS, ROWS, Inside, cached, UserError, describe_task, encode, fixed_order
from common import hold_out, load, load_encoder, load_english, load_pretrained, load_task
from common import load_translated, read_tsv, save

TEXTS = [(" ".join(WORDS[:k]),) for k in (3, 11, 5, 1, 7)]


def refused(call, *words):
    """Expect that `call` raises a UserError of one line that holds all words."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(str(word) in message for word in words), message


# Files of text
def test_text_is_composed_whatever_wrote_it(tmp_path):
    """macOS writes NFD, Korean letter by letter. It is the same text and the same label."""
    rows = [("café", "좋은 영화"), ("café", "나쁜 방"), ("no", "x")]
    write(tmp_path / "t/en/train.tsv", ROWS[0], rows)
    rows[0] = tuple(unicodedata.normalize("NFD", cell) for cell in rows[0])
    write(tmp_path / "t/ko/train.tsv", ROWS[0], rows)
    info = describe_task(tmp_path, "t")
    assert info["labels"] == ["café", "no"]
    texts, y = load_task(info, "ko", "train")
    assert texts == [("좋은 영화",), ("나쁜 방",), ("x",)] and y.tolist() == [0, 0, 1]


def test_line_ends_and_byte_order_marks(tmp_path):
    odd = "a\u2028b\u0085c d \u00a0e \u202eabc"  # all of it is text
    lines = ["label\ttext", f"good\t{odd}", "bad\tz"]
    for mark, end, tail in product(("", "\ufeff"), ("\n", "\r\n", "\r"), (0, 1, 3)):
        (tmp_path / "f.tsv").write_bytes((mark + end.join(lines) + tail * end).encode())
        assert read_tsv(tmp_path / "f.tsv", *ROWS) == [("good", odd), ("bad", "z")]


@pytest.mark.parametrize(
    "content, line, words",
    [
        (b"", ":1:", "header"),
        (b"label\ttext\ng\tx\n", ":", "only 1 data rows"),
        (b"text\tlabel\nx\tg\ny\tb\n", ":1:", "label text, or label text text_b"),
        (b"label,text\ng,x\nb,y\n", ":1:", "header is 'label,text'"),
        (b"label text\ng\tx\nb\ty\n", ":1:", "header is 'label text'; expected, tab-separated"),
        (b"label\ttext\ng\tx\ng\n", ":3:", "2 columns"),
        (b"label\ttext\ng\tx\nb\t\xc2\xa0\n", ":3:", "no text empty"),
        (b"label\ttext\ng\tx\nb\ty\xff\n", ":3:", "not UTF-8"),
        (b"label\ttext\ng\tx\n\xef\xbb\xbflabel\ttext\nb\ty\n", ":3:", "'text')"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, content, line, words):
    path = tmp_path / "f.tsv"
    path.write_bytes(content)
    refused(lambda: read_tsv(path, *ROWS), f"{path}{line}", words)


def test_texts_in_quotes_warn(tmp_path, capsys):
    rows = [("g", '"It was ""good"""'), ("b", '"x, y"'), ("b", "z")]
    assert read_tsv(write(tmp_path / "f.tsv", ROWS[0], rows), *ROWS) == rows
    assert "f.tsv: most texts are quoted" in capsys.readouterr().err
    read_tsv(write(tmp_path / "f.tsv", ROWS[0], [*rows[1:], rows[2]]), *ROWS)
    assert capsys.readouterr().err == ""


# Labels
def test_labels_that_look_alike_are_refused(tmp_path):
    for other in "good\u00a0", "Good", "go\u200bod", "\uff47ood", "":
        rows = [("good", "x"), ("bad", "y"), (other, "z")]
        path = write(tmp_path / "t/en/train.tsv", ROWS[0], rows)
        refused(lambda: describe_task(tmp_path, "t"), path, repr(other), "look the same")


def test_a_task_has_two_classes_and_few(tmp_path, capsys):
    path = write(tmp_path / "t/en/train.tsv", ROWS[0], [("good", "x"), ("good", "y")])
    refused(lambda: describe_task(tmp_path, "t"), path, "at least two")
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(40)]  # columns swapped
    write(path, ROWS[0], rows)
    describe_task(tmp_path, "t")
    assert "40 classes in 40 rows; is the label column first?" in capsys.readouterr().err
    write(path, ROWS[0], [row[::-1] for row in rows])
    assert describe_task(tmp_path, "t")["labels"] == ["a", "b"] and not capsys.readouterr().err


# Tasks
def test_pairs_are_two_texts(world):
    info = describe_task(world.data, "nli")
    assert info["two_texts"] and info["labels"] == ["contradiction", "entailment", "neutral"]
    assert all(len(text) == 2 for text in load_task(info, "ko", "test")[0])
    english, target, _ = load_translated(info, "ko")
    assert len(target) > 100 and target == [tuple(map(cipher, text)) for text in english]
    refused(lambda: load_task({**info, "two_texts": False}, "ko", "test"), ":1: header is 'label")


def test_held_out_rows_share_no_first_text():
    texts = [(f"premise {i // 3}", f"hypothesis {i}") for i in range(300)]
    kept, held = hold_out(texts)
    assert sorted(kept + held) == list(range(300)) and len(held) == 30
    assert not {texts[i][0] for i in kept} & {texts[i][0] for i in held}
    refused(lambda: hold_out([("a", "b"), ("a", "c")]), "1 distinct texts cannot be split")


def test_dev_is_held_out_where_there_is_none(world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world.data, tmp_path / "data")
    info = describe_task(tmp_path / "data", "nli")
    assert len(load_english(info)[2]) == 40
    (tmp_path / "data/nli/en/dev.tsv").unlink()
    texts, y, dev, dev_y = load_english(info)
    assert len(texts) + len(dev) == len(y) + len(dev_y) == 120
    assert not {text[0] for text in texts} & {text[0] for text in dev}
    whole = dict(zip(*load_task(info, "en", "train")))
    assert all(whole[text] == label for text, label in zip(texts + dev, torch.cat([y, dev_y])))
    (tmp_path / "data/reviews/en/dev.tsv").unlink()  # nor do heads learn from their translations
    step1(world.encoder, tmp_path / "data", tmp_path / "runs", epochs=0)
    few_steps(monkeypatch, 10)
    main("step3_head.py", "--lang", "ko", "--method", "mixed", "--out", tmp_path / "runs")
    assert re.search("english: 360 rows.*\nmixed: 360 rows", capsys.readouterr().out)


def test_n_is_a_prefix_of_one_order(world):
    assert sorted(fixed_order(1_000)) == list(range(1_000)) != fixed_order(1_000)
    info = describe_task(world.data, "reviews")
    whole, small = load_translated(info, "ko", labelled=True), load_translated(info, "ko", 50, True)
    assert len(whole[0]) == 400 and len(small[0]) == 50
    assert [part[:50] for part in whole[:2]] == list(small[:2])
    assert torch.equal(whole[2][:50], small[2]) and load_translated(info, "ko")[2] is None
    labels = dict(zip(*load_task(info, "en", "train")))
    assert all(labels[text] == y for text, y in zip(whole[0], whole[2]))


def test_the_same_pair_counts_once(tmp_path):
    info = {"data": tmp_path, "task": "t", "two_texts": False, "labels": ["a", "b"]}
    rows = [("a", f"{i}", f"x{i}") for i in range(20)]
    rows += [("b", *row[1:]) for row in rows] + [("a", "0", "another")]
    write(tmp_path / "t/ko/translated.tsv", PAIRS[0], rows)
    english, target, y = load_translated(info, "ko", labelled=True)
    assert len(set(zip(english, target))) == len(english) == 21 and y.tolist() == [0] * 21


# The cache of embeddings
@pytest.fixture
def encoder(runs):
    return load_encoder(runs)[0]


def test_a_text_is_encoded_once(encoder, tmp_path, monkeypatch):
    encoded, plain = [], encode(encoder, TEXTS)
    spy = lambda encoder, texts, *args: encoded.append(texts) or encode(encoder, texts, *args)
    monkeypatch.setattr(common, "encode", spy)
    assert torch.allclose(cached(encoder, tmp_path, TEXTS[:3]), plain[:3], atol=1e-5)
    encoder.cache.clear()  # as a larger n in a new process
    first = cached(encoder, tmp_path, TEXTS + TEXTS[:2])
    assert torch.allclose(first, torch.cat([plain, plain[:2]]), atol=1e-5)
    assert encoded == [TEXTS[:3], TEXTS[3:]]
    assert torch.equal(cached(encoder, tmp_path, TEXTS), first[:5]) and len(encoded) == 2


def test_another_dtype_or_inside_has_embeddings_of_its_own(encoder, runs, tmp_path):
    inside, (low, _) = Inside(encoder.lm), load_encoder(runs, dtype=torch.bfloat16)
    torch.nn.init.ones_(inside.up[0])
    for _ in range(2):  # encoded, then read
        low.cache, encoder.cache = {}, {}
        assert torch.equal(cached(low, tmp_path, TEXTS), encode(low, TEXTS))
        assert torch.equal(cached(encoder, tmp_path, TEXTS), encode(encoder, TEXTS))
        with inside.on(encoder):
            assert torch.equal(cached(encoder, tmp_path, TEXTS), encode(encoder, TEXTS))
    tables = [art["embeddings"] for art in map(torch.load, tmp_path.glob("cache/*/*"))]
    assert len({table.numpy().tobytes() for table in tables}) == len(tables) == 3


# Files of a run folder
@pytest.mark.parametrize("fault", ["cut", "flip", "text", "code", "alien", "kind", "missing"])
def test_a_file_that_is_not_what_it_should_be_is_refused(tmp_path, fault):
    path, tensor = tmp_path / "align-ko.pt", torch.arange(999.0)
    save(path, "align", lm="f" * 64, t=tensor, n=3, none=None)
    good = load(path, "align")
    assert torch.equal(good["t"], tensor) and (good["n"], good["none"]) == (3, None)
    raw = bytearray(path.read_bytes())
    if fault == "flip":
        raw[raw.find(tensor.numpy().tobytes()[:400]) + 100] ^= 1
    path.unlink()
    if fault == "code":
        torch.save({"kind": "align", "lm": "f" * 64, "call": Path.touch}, path)
    elif fault == "alien":
        torch.save({"weight": tensor}, path)
    elif fault != "missing":
        path.write_bytes({"cut": raw[:-700], "text": b"hello"}.get(fault, raw))
    kind = "head" if fault == "kind" else "align"
    advice = "run: python step" if fault == "missing" else "delete it and make it again"
    refused(lambda: load(path, kind), path, advice)


def test_an_encoder_folder_of_another_run_is_refused(folder, tmp_path):
    assert load_encoder(folder, data="moved")[1]["data"] == "moved"
    weights = folder / "encoder/model.safetensors"
    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights)
    refused(lambda: load_encoder(folder), weights, "changed or new since step 1")
    shutil.rmtree(folder / "encoder")
    refused(lambda: load_encoder(folder), folder / "encoder", "new since step 1")
    refused(lambda: load_encoder(tmp_path / "none"), "none/embed.pt", "python step1_embed.py")


# Models
def test_verbosity_of_transformers_stays(world, tmp_path):
    hf.logging.set_verbosity_info()
    load_pretrained(world.encoder)
    refused(lambda: load_pretrained(tmp_path), "--model")
    assert hf.logging.get_verbosity() == hf.logging.INFO
    hf.logging.set_verbosity_error()


def test_a_model_without_special_tokens(world, tmp_path):
    """Some decoders that embed add no special token, so that a word may be one token. All steps accept it."""
    tokenizer = hf.AutoTokenizer.from_pretrained(world.encoder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B")
    model, out = make_encoder(tmp_path / "model"), tmp_path / "runs"
    tokenizer.save_pretrained(model)
    step1(model, world.data, out)
    encoder, _ = load_encoder(out)
    assert len(encoder.tokenize(["good"])[0]["input_ids"]) == 1
    assert encode(encoder, ["good", "good film"]).isfinite().all()


def test_what_a_model_does_not_say_is_measured(tmp_path, capsys):
    """It has a table of segments but its tokenizer makes none, embeds with another width, depends on padding."""
    texts = [("good film", "bad"), ("so very sad and awful", "the food was good")]
    model = make_encoder(tmp_path / "bert", "bert")
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(model)
    encoder = load_pretrained(model, texts=texts)
    assert encoder.tokenize(texts)[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert not capsys.readouterr().err
    common.save_encoder(encoder, tmp_path / "run", {"data": "", "task": "t", "labels": ["a", "b"]})
    assert load_encoder(tmp_path / "run")[0].tokenize(texts) == encoder.tokenize(texts)
    old = load(tmp_path / "run/embed.pt", "embed")
    del old["segments"]  # a run folder from before they were made
    save(tmp_path / "run/embed.pt", **old)
    assert "token_type_ids" not in load_encoder(tmp_path / "run")[0].tokenize(texts)[0]
    encode(encoder, ["Ж Щ Ю", "good film"])
    assert "33% of the tokens are unknown" in capsys.readouterr().err
    sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    xlnet = hf.XLNetModel(hf.XLNetConfig(vocab_size=len(tokenizer), **sizes))
    assert 1 in common.Encoder(xlnet, tokenizer).tokenize(texts)[0]["token_type_ids"]
    encoder.lm.config.hidden_size, encoder.lm.config.max_position_embeddings = 16, 8
    assert common.Encoder(encoder.lm, tokenizer).max_len == 8
    with pytest.raises(ValueError, match="'max' is neither"):
        common.Encoder(encoder.lm, tokenizer, pool="max")
    assert common.Encoder(encoder.lm, tokenizer).dim == 32
    encoder.lm.config.type_vocab_size = 1  # as klue/roberta-base, with BERT's tokenizer
    encoder = common.Encoder(encoder.lm, make_tokenizer(WORDS, token_types=True))
    assert "token_type_ids" not in encoder.tokenize(texts)[0]
    make_encoder(tmp_path / "fnet", "fnet")
    load_pretrained(tmp_path / "fnet", texts=texts, batch_tokens=1)
    assert "embeddings of FNetModel depend on the padding" in capsys.readouterr().err


def test_the_tokens_are_those_of_tokenizer_json(world, tmp_path):
    model = shutil.copytree(world.encoder, tmp_path / "model")
    config = '{"tokenizer_class": "RobertaTokenizer", "pad_token": "<pad>"}'
    (model / "tokenizer_config.json").write_text(config)
    expected = load_pretrained(world.encoder).tokenize(["good film"])
    assert load_pretrained(model).tokenize(["good film"]) == expected


def break_model(folder, fault):
    weights, config = load_file(folder / "model.safetensors"), folder / "config.json"
    words = weights["embeddings.word_embeddings.weight"]
    if fault == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    elif fault == "no padding":
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    elif fault == "no room":
        make_tokenizer(WORDS, max_len=2).save_pretrained(folder)
    elif fault == "ids beyond the table":
        config.write_text(re.sub(r'"vocab_size": \d+', '"vocab_size": 20', config.read_text()))
        weights["embeddings.word_embeddings.weight"] = words[:20].clone()
    elif fault == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif fault == "unmerged adapter":
        weights["encoder.layer.0.attention.self.query.lora_A.default.weight"] = words[:1].clone()
    elif fault == "not finite":
        words[:] = float("nan")
    elif fault == "missing weights":
        del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if fault == "an encoder with decoder":
        sizes = {"d_model": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2}
        hf.T5Model(hf.T5Config(vocab_size=len(words), **sizes)).save_pretrained(folder)


@pytest.mark.parametrize(
    "fault, words",
    [
        ("no tokenizer", "is tokenizer.json missing?"),
        ("no padding", "no padding token"),
        ("an encoder with decoder", "T5Model has a decoder"),
        ("no room", "max_len=2: no room for text next to 3 special tokens"),
        ("ids beyond the table", "has no embedding in this LM"),
        ("unmerged adapter", "merge it into the LM first"),
        ("adapter", "merge it into the LM first"),
        ("not finite", "is not finite"),
        ("missing weights", "encoder.layer.1.output.dense.weight"),
    ],
)
def test_a_broken_model_is_refused_before_training(world, tmp_path, fault, words):
    model = shutil.copytree(world.encoder, tmp_path / "model")
    break_model(model, fault)
    out = tmp_path / "runs"
    refused(lambda: step1(model, world.data, out, task="nli", epochs=1), words)
    assert not out.exists()


def test_the_language_of_all_adapters_is_named(tmp_path, capsys):
    tokenizer = make_tokenizer([" ".join(WORDS)])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": len(tokenizer), "pad_token_id": 1}
    config = hf.XmodConfig(**sizes, languages=["en_XX", "id_ID"], default_language="en_XX")
    for part in tokenizer, hf.XmodModel(config):
        part.save_pretrained(tmp_path)
    load_pretrained(tmp_path)
    assert "XmodModel embeds every text with the adapters of en_XX" in capsys.readouterr().err


def test_what_a_folder_declares_and_we_leave_out_is_named(world, tmp_path, capsys):
    """sentence-transformers 5 and 6 write the mode in two ways. Others may read the weights of encoder/."""
    model = shutil.copytree(world.encoder, tmp_path / "model")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3": "Normalize"}
    modules = [{"path": path, "type": f"st.models.{kind}"} for path, kind in kinds.items()]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    (model / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    for config in {"pooling_mode": "cls"}, {"pooling_mode": ["cls"]}, old:
        (model / "1_Pooling/config.json").write_text(json.dumps(config))
        for pool in "mean", "cls":
            load_pretrained(model, pool, texts=TEXTS)
            err = capsys.readouterr().err
            assert ("with cls pooling, not --pool mean" in err) == (pool == "mean")
            assert "module Dense is left out" in err and "Normalize" not in err
            assert "its do_lower_case is left out" in err
    step1(model, world.data, tmp_path)
    modes = {path.stat().st_mode for path in (tmp_path / "encoder").iterdir()}
    assert len(modes) == 1
