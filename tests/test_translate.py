"""data/translate.py on tiny random models of the families that it supports."""

import contextlib
import json
import random
import re
import shutil
import unicodedata

import pytest
import torch
import transformers as hf
from conftest import WORDS, cipher, make_tokenizer, read_table, write
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

import step2_align
import translate
from common import UserError, fixed_order

FAST = "--device", "cpu", "--amp", "off", "--beams", 2, "--max-new-tokens", 8
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "▁", *map(chr, range(97, 123))]


def save_model(folder, tokenizer, make_config, **config):
    """Save a random model that answers each sentence with other words, and no special tokens."""
    torch.manual_seed(1)
    config |= {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "d_model": 16}
    config |= {"vocab_size": len(tokenizer), "tie_word_embeddings": False, "init_std": 1.0}
    config = make_config(max_position_embeddings=40, **config)
    model = hf.AutoModelForSeq2SeqLM.from_config(config)
    names = tokenizer.get_vocab().items()
    model.lm_head.weight.data[[i for name, i in names if not name.strip("▁").isalpha()]] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def madlad_tokenizer():
    """Return one whose <unk> comes first and that falls back to bytes, as T5's class does not."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "<2ko>", "<2iw>", *(f"▁{word}" for word in WORDS)]
    scores = [(piece, -1.0) for piece in pieces + [f"<0x{byte:02X}>" for byte in range(256)]]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    names = {"unk_token": "<unk>", "pad_token": "<s>", "eos_token": "</s>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return a folder with a tiny model of each family, by name."""
    base, codes = tmp_path_factory.mktemp("hub"), [">>kor<<", ">>cmn_Hans<<", ">>cmn_Hant<<"]
    nllb = hf.NllbTokenizer(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[])
    mbart = hf.MBart50Tokenizer(vocab=[(letter, -1.0) for letter in LETTERS[1:]], src_lang="fr_XX")
    opus = make_tokenizer([*WORDS, *codes], max_len=40)
    opus.add_tokens(codes, special_tokens=True)
    size = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    size |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    t5 = {"d_kv": 8, "d_ff": 32, "num_heads": 2, "initializer_factor": 9.0}
    save_model(base / "nllb", nllb, hf.M2M100Config, **size)
    save_model(base / "mbart", mbart, hf.MBartConfig, **size)
    save_model(base / "opus", opus, hf.MarianConfig, **size)
    save_model(base / "madlad", madlad_tokenizer(), hf.T5Config, **t5)
    path = base / "madlad/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "T5Tokenizer"}))
    return base


@pytest.fixture
def data(tmp_path):
    """Task `mood` of 60 rows; task `pair` of 12 rows on 4 premises, one of them twice."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 12))) for _ in range(64)]
    write(tmp_path / "mood/en/train.tsv", "label text", [["x", text] for text in texts[:60]])
    rows = [["e", texts[60 + i % 4], texts[i]] for i in range(12)]
    write(tmp_path / "pair/en/train.tsv", "label text text_b", [rows[3], *rows])
    return tmp_path


def run(data, *args, task="mood"):
    """Run the script on Korean; return the rows of translated.tsv in the order of --n, unlabelled."""
    translate.main(["--data", str(data), "--task", task, "--lang", "ko", *map(str, args)])
    rows = read_table(data / task / "ko/translated.tsv")[1:]
    return [rows[i][1:] for i in fixed_order(len(rows))]


def english(data, n, task="mood"):
    """Return the first n rows of train.tsv in the fixed order, without their labels."""
    rows = read_table(data / task / "en/train.tsv")[1:]
    texts = list(dict.fromkeys(tuple(row[1:]) for row in rows))
    return [list(texts[i]) for i in fixed_order(len(texts))[:n]]


# By a model
def translator(model):
    command = f"--data d --task t --lang ko --model {model} --device cpu".split()
    return translate.Translator(translate.get_args(command), ["a film"])


FAMILIES = "nllb eng_Latn kor_Hang", "mbart en_XX ko_KR", "opus >>kor<< ", "madlad <2ko> "


@pytest.mark.parametrize("family, source, target", [family.split(" ") for family in FAMILIES])
def test_each_family_and_a_larger_n(hub, data, capsys, family, source, target):
    args = "--model", hub / family, *FAST
    small, large = run(data, *args, "--n", 10), run(data, *args, "--n", 20)
    out, err = capsys.readouterr()
    assert "20 distinct sentences, 10 done before" in out and "20 translations or" in err
    assert large[:10] == small and len({row[1] for row in large}) >= 10
    assert [row[:1] for row in large] == english(data, 20) and "<" not in str(large)
    pairs = run(data, *args, task="pair")
    assert "12 rows, 16 distinct sentences" in capsys.readouterr().out  # 4 premises
    assert [row[:2] for row in pairs] == english(data, 12, "pair")

    made = translator(hub / family)
    ids, own = made.tokenizer(f"{made.prefix}가").input_ids, made.tokenizer.get_vocab()
    assert own[source] in ids and made.options.get("forced_bos_token_id") == own.get(target)
    assert (own.get("<0xEA>") in ids) == (family == "madlad")


def test_a_killed_run_continues_to_the_same_result(hub, data, monkeypatch):
    args, generate, calls = ["--model", hub / "opus", *FAST], translate.Translator.generate, []
    monkeypatch.setattr(translate, "CHUNK", 8)
    whole = run(data, *args)
    (data / "mood/ko").rename(data / "whole")

    def kill(self, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, batch)

    monkeypatch.setattr(translate.Translator, "generate", kill)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        run(data, *args)
    assert run(data, *args) == whole and len(calls) == 4 + 5  # 8 chunks, 3 of them done before


def test_work_belongs_to_the_content_of_a_model(hub, data, tmp_path, capsys):
    folder = shutil.copytree(hub / "opus", tmp_path / "model")
    args, file = ["--model", folder, "--n", 10, *FAST], folder / "model.safetensors"
    old = run(data, "--model", hub / "opus", "--n", 10, *FAST)
    assert run(data, *args) == old and "10 done before" in capsys.readouterr().out
    weights = load_file(file)
    save_file({name: tensor.flip(0) for name, tensor in weights.items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match="is not by this model .* --force"):
        run(data, *args)
    assert run(data, *args, "--force") != old
    del weights["model.decoder.layers.1.fc1.bias"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights, such as model.decoder.layers.1.fc1.bias"):
        run(data, *args)


def test_languages_are_found_by_their_names():
    for lang, code in {"jw": "jav", "mi": "mri", "mg": "plt", "nb": "nob", "yi": "ydd"}.items():
        assert translate.find_code(NLLB, lang)[:3] == code
    other = "an av br ce co cv dv fy gv kl kv kw la os rm se to ty ve wa"  # languages NLLB lacks
    langs = {group[0] for group in translate.GROUPS}.difference(other.split())
    assert len({translate.find_code(NLLB, lang) for lang in langs}) == len(langs) == 136
    assert translate.find_code(["iw", "no"], "he") == "iw"
    near = {"jx": "jav_Latn jpn_Jpan", "bjn": "bjn_Arab bjn_Latn", "pt-BR": "por_Latn$"}
    for lang, close in (near | {"zh-CN": "zho_Hans zho_Hant$", "ko-KR": "kor_Hang$"}).items():
        with pytest.raises(UserError, match=f"{lang}: .*--lang-code, such as {close}"):
            translate.find_code(NLLB, lang)


def test_a_model_that_does_not_read_english_is_refused(hub, monkeypatch):
    """gmw is a group of languages that holds English, which counts if the model has codes for targets."""
    kind, codes = hf.PreTrainedTokenizerFast, translate.language_table
    monkeypatch.setattr(kind, "target_lang", "ko", raising=False)
    cases = [("eng", None, 1), ("gmw", codes, 1), ("gmw", None, 0), ("deu", codes, 0)]
    for source, table, fits in cases:
        monkeypatch.setattr(kind, "source_lang", source, raising=False)
        monkeypatch.setattr(translate, "language_table", table or (lambda tokenizer: ({}, "")))
        wrong = pytest.raises(UserError, match=f"translates from {source}; give one from English")
        with contextlib.nullcontext() if fits else wrong:
            translator(hub / "opus")


# By somebody else
def exchange(data, task, n, change):
    """Export n rows, translate them, `change` the rows; return a function that merges them."""
    out = data / f"{task}{n}.tsv"
    flags = "--data", data, "--task", task, "--n", n, "--export", out, "--force"
    translate.main([str(flag) for flag in flags])
    header, *rows = read_table(out)
    header += [name.replace("text", "translation") for name in header[2:]]
    rows = change([[*row, *map(cipher, row[2:])] for row in rows])
    back = write(data / "back.tsv", " ".join(header), rows)
    return lambda *args: run(data, "--n", n, "--merge", back, *args, task=task)


def test_export_and_merge_keep_order_and_compose(data):
    nfd = lambda rows: [[unicodedata.normalize("NFD", cell) for cell in row] for row in rows[::-1]]
    expected = [[*row, *map(cipher, row)] for row in english(data, 12, "pair")]
    assert exchange(data, "pair", 6, nfd)() == expected[:6]
    assert exchange(data, "pair", 12, nfd)() == expected  # continues it
    with pytest.raises(UserError, match="has other rows .* --force"):
        exchange(data, "pair", 6, nfd)()
    assert translate.compose("a <0xEA><0xB0><0x80> <0xEA>") == "a 가"


MISTAKES = {
    "tsv:12: id .* occurs twice": lambda rows: [*rows, rows[1]],
    "tsv:2: id '2.0' is unknown": lambda rows: [["2.0", *row[1:]] for row in rows],
    "tsv:2: id .* has another text": lambda rows: [[*row[:2], "b", row[3]] for row in rows],
    "tsv:2: 3 columns, not 4": lambda rows: [row[:3] for row in rows],
    "tsv:2: saved with quotes": lambda rows: [[*row[:3], f'"""{row[3]}"" y"'] for row in rows],
    "tsv:3: saved with quotes": lambda rows: [rows[0], [*rows[1][:3], '"a, b"'], *rows[2:]],
    "3 of 10 rows have no ": lambda rows: [[*rows[0][:3], "N/A"], [*rows[1][:3], "nan"], *rows[3:]],
    "2 of 10 rows have no .*--skip": lambda rows: [[*rows[0][:3], ""], *rows[2:]],
}


def test_merge_names_what_is_wrong(data, capsys):
    for match, change in MISTAKES.items():
        merge = exchange(data, "mood", 10, change)
        with pytest.raises(UserError, match=match):
            merge()
    assert len(merge("--skip")) == 8 and "2 of 10 rows are left out" in capsys.readouterr().err


def test_quotes_and_missing_words_of_the_source_stay(data, monkeypatch):
    texts = ["nan", '"a, b"', 'a "b", c']
    write(data / "word/en/train.tsv", "label text", [["x", text] for text in texts])
    monkeypatch.setitem(globals(), "cipher", str)
    rows = exchange(data, "word", 3, lambda rows: rows)()
    assert sorted(rows) == sorted([text, text] for text in texts)


def test_doubts(data, capsys):
    exchange(data, "mood", 20, lambda rows: [[*row[:3], "(sorry)"] for row in rows])()
    out, err = capsys.readouterr()
    assert "20 of 20 translations are the same, '(sorry)'" in err and out.count("\n    -> ") == 3
    sources = [text for (text,) in english(data, 60)]
    right = [cipher(text) for text in sources]
    assert not step2_align.doubts_of(sources, right)
    wrong = {
        "9 of 60 .* hold \ufffd": [f"{text}\ufffd" for text in right[:9]] + right[9:],
        "60 of 60 .* start with '번'": [f"번역: {text}" for text in right],
        "9 of 60 .* repeat": [text.upper() for text in sources[:9]] + right[9:],
        "60 of 60 .* or alike": [f"{i % 9}번째 번역: {text}" for i, text in enumerate(right)],
        "40 of 60 .* end with": right[:20] + [f"{text} (영어에서 번역)" for text in right[20:]],
        "3 of 60 .* three times too long": [text * 9 for text in right[:3]] + right[3:],
    }
    for match, texts in wrong.items():
        doubt, *_ = step2_align.doubts_of(sources, texts)
        assert re.search(match, doubt)
