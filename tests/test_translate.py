"""data/translate.py on tiny random models of each family: the rows of --n, resuming, languages, export and merge."""
import os
import random
import re
import signal
import subprocess
import sys

import pytest
import torch
import translate
from conftest import ROOT, WORDS, commands, script, sentence, write
from test_errors import refuse
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (M2M100Config, M2M100ForConditionalGeneration, MarianConfig, MarianMTModel, MBart50Tokenizer,
                          MBartConfig, MBartForConditionalGeneration, NllbTokenizer, PreTrainedTokenizerFast)
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

import common

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
FAST = "--device cpu --amp off --beams 2 --max-new-tokens 8".split()


def make_model(folder, tokenizer, config, model, seed=1, ends=2.0):
    """A random model of two layers and 16 dimensions that answers a sentence with words, different for each."""
    torch.manual_seed(seed)
    layers = {f"{side}_{name}": size for side in ("encoder", "decoder")
              for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}
    net = model(config(vocab_size=len(tokenizer), d_model=16, init_std=1.0, max_position_embeddings=40, pad_token_id=1,
                       eos_token_id=2, decoder_start_token_id=2, bos_token_id=0, forced_eos_token_id=2, dropout=0.1,
                       tie_word_embeddings=False, **layers))
    with torch.no_grad():                                    # special tokens and codes are no words
        net.lm_head.weight[[i for t, i in tokenizer.get_vocab().items() if i != 2 and not t.isalpha()]] = 0
        net.lm_head.weight[2] *= ends                        # some sentences end early, some are cut
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def word_tokenizer(codes=(), source="", special=True):
    """Words to tokens, language tokens `codes`, in front of each sentence the token `source`."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS, *codes])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, core.token_to_id(token)) for token in (source, "</s>") if token]
    core.post_processor = processors.TemplateProcessing(single=f"{source} $A </s>".strip(), special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
                                   unk_token="<unk>", extra_special_tokens=list(codes) * special, model_max_length=40)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """{family: folder of a model}; those whose tokenizers know a source language come with another than English."""
    base, letters = tmp_path_factory.mktemp("models"), ["▁", *"abcdefghiklmnorstvwy"]
    m2m, marian = (M2M100Config, M2M100ForConditionalGeneration), (MarianConfig, MarianMTModel)
    return {name: make_model(base / name, tokenizer, *family) for name, tokenizer, family in (
        ("m2m", word_tokenizer(["__en__", "__ko__", "__de__"], "__en__", special=False), m2m),
        ("nllb", NllbTokenizer(vocab={t: i for i, t in enumerate(SPECIAL + letters)}, merges=[], src_lang="fra_Latn"),
         m2m),
        ("mbart", MBart50Tokenizer(vocab=[(t, -1.0) for t in ["<unk>", "<s>", "</s>"] + letters], src_lang="fr_XX"),
         (MBartConfig, MBartForConditionalGeneration)),
        ("marian", word_tokenizer(), marian),
        ("marian-mul", word_tokenizer([">>kor<<", ">>deu<<", ">>cmn_Hans<<", ">>cmn_Hant<<"]), marian))}


@pytest.fixture
def data(tmp_path):
    """Task `mood` of 60 rows, task `pair` of 12 rows on 4 premises."""
    rng = random.Random(0)
    texts = sorted({sentence(rng, WORDS) for _ in range(80)})[:64]
    rng.shuffle(texts)
    write(tmp_path / "data/mood/en/train.tsv", ["label", "text"], [["good", t] for t in texts[:60]])
    write(tmp_path / "data/pair/en/train.tsv", ["label", "text", "text_b"],
          [["e", texts[60 + i % 4], texts[i]] for i in range(12)])
    return tmp_path / "data"


def go(data, *args, task="mood"):
    """Run the script on the language ko; returns the bytes of translated.tsv."""
    translate.main(["--data", str(data), "--task", task, "--lang", "ko", *map(str, args)])
    return (data / task / "ko" / "translated.tsv").read_bytes()


def english(data, n, task="mood"):
    """The first n rows of train.tsv in the fixed order, without their labels."""
    rows = [row[1:] for row in common.read_tsv(data / task / "en/train.tsv", *common.ROWS)]
    return [rows[i] for i in common.fixed_order(len(rows))[:n]]


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that a model was given, as they come."""
    sizes, generate = [], translate.Translator.generate
    monkeypatch.setattr(translate.Translator, "generate",
                        lambda self, rows: sizes.append(len(rows)) or generate(self, rows))
    monkeypatch.setitem(translate.CHUNK, "cpu", 8)
    return sizes


# --n and the file's order
def test_a_file_of_n_rows_holds_the_first_of_any_smaller_n(hub, data, batches):
    first = {}
    for n in (5, 10, 20):
        go(data, "--model", hub["m2m"], "--n", n, *FAST)
        for m in (5, 10, 20)[:len(first) + 1]:
            texts, translations, labels = common.load_translated(data, "mood", "ko", m, ["bad", "good"])
            assert texts == english(data, m) and labels.tolist() == [1] * m
            assert first.setdefault(m, translations) == translations
    assert len(set(first[20])) > 10                          # else any order would have passed


def test_more_rows_translate_only_the_rest_and_a_finished_run_nothing(hub, data, batches, capsys):
    go(data, "--model", hub["m2m"], "--n", 10, *FAST)
    assert sum(batches) == 10 and "0 done before" in capsys.readouterr().out
    longer = go(data, "--model", hub["m2m"], "--n", 20, *FAST)
    assert sum(batches) == 20 and "10 done before" in capsys.readouterr().out
    assert go(data, "--model", hub["m2m"], "--n", 20, *FAST) == longer and sum(batches) == 20
    (data / "mood/ko/translated.tsv").unlink()
    next((data / "mood/ko").glob("*.jsonl")).unlink()
    assert go(data, "--model", hub["m2m"], "--n", 20, *FAST) == longer and sum(batches) == 40


def test_default_n_is_step_2s(hub, data, monkeypatch):
    monkeypatch.setattr(translate, "DEFAULT_N", 7)
    assert len(go(data, "--model", hub["m2m"], *FAST).splitlines()) == 8


def test_pair_rows_keep_their_columns_and_premises_are_translated_once(hub, data, batches):
    content = go(data, "--model", hub["m2m"], *FAST, task="pair").decode()
    assert content.startswith("label\ttext\ttext_b\ttranslation\ttranslation_b\n") and sum(batches) == 4 + 12
    texts, translations, _ = common.load_translated(data, "pair", "ko", 12)
    assert texts == english(data, 12, "pair")
    known = {}
    assert all(known.setdefault(s, t) == t for row, other in zip(texts, translations) for s, t in zip(row, other))


# Resuming
def test_a_run_stopped_anywhere_goes_on_to_the_same_file(hub, data, batches, tmp_path, monkeypatch):
    args = "--model", hub["m2m"], "--n", "40", "--batch-tokens", "120", *FAST
    whole = go(data, *args)
    for path in (data / "mood/ko").iterdir():
        path.unlink()
    total, generate = len(batches), translate.Translator.generate
    for last in (1, 3, 4):                                   # stopped once and again, each time further on
        count = iter(range(last))

        def stopped(self, rows):
            if next(count, None) is None:
                raise KeyboardInterrupt
            return generate(self, rows)
        monkeypatch.setattr(translate.Translator, "generate", stopped)
        with pytest.raises(KeyboardInterrupt):
            go(data, *args)
        assert not (data / "mood/ko/translated.tsv").exists()
    monkeypatch.setattr(translate.Translator, "generate", generate)
    start = len(batches)
    assert go(data, *args) == whole
    assert 0 < len(batches) - start < total                  # some chunks had been kept


def test_a_run_killed_in_the_middle_of_a_line_goes_on_to_the_same_file(hub, data, batches):
    args = ["--data", str(data), "--task", "mood", "--lang", "ko", "--model", hub["m2m"], "--n", "40", *FAST]
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "data")!r})
import translate
calls = []
def fsync(file):
    calls.append(file)
    if len(calls) == 3:                       # the third chunk: cut it short as a full disk or a power cut would
        os.ftruncate(file, os.fstat(file).st_size - 40)
        os.kill(os.getpid(), signal.SIGKILL)
translate.os.fsync = fsync
translate.CHUNK["cpu"] = 8
translate.main({args!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    path = next((data / "mood/ko").glob("translated.*.jsonl"))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4 and not path.read_bytes().endswith(b"\n")
    assert os.listdir(data / "mood/ko") == [path.name]
    resumed = go(data, *args[6:])
    assert sum(batches) == 40 - 16
    assert go(data, *args[6:]) == resumed and sum(batches) == 40 - 16     # no record was glued to the half line
    for file in (data / "mood/ko").iterdir():
        file.unlink()
    assert go(data, *args[6:]) == resumed


def test_another_model_or_options_begin_anew_and_do_not_replace_the_file(hub, data, batches):
    first = go(data, "--model", hub["m2m"], "--n", 10, *FAST)
    base = ["--data", data, "--task", "mood", "--lang", "ko", "--n", 10]
    for other in (["--model", hub["nllb"], *FAST], ["--model", hub["m2m"], *FAST, "--beams", 1],
                  ["--model", hub["m2m"], *FAST, "--lang-code", "de"]):
        refuse(translate.main, *base, *other, match="translated.tsv was not made by this model.*--force")
    assert sum(batches) == 10
    assert go(data, "--model", hub["m2m"], "--n", 10, *FAST, "--lang-code", "de", "--force") != first
    assert sum(batches) == 20
    assert go(data, "--model", hub["m2m"], "--n", 10, *FAST, "--force") == first and sum(batches) == 20


def test_a_file_made_or_changed_by_hand_is_not_replaced(hub, data, batches):
    go(data, "--model", hub["m2m"], "--n", 10, *FAST)
    path = data / "mood/ko/translated.tsv"
    path.write_bytes(path.read_bytes() + b"good\tby hand\tmine\n")
    args = ["--data", data, "--task", "mood", "--lang", "ko", "--model", hub["m2m"], "--n", 20, *FAST]
    refuse(translate.main, *args, match="changed since; move it away, or replace it with --force")
    assert path.read_bytes().endswith(b"mine\n") and sum(batches) == 10
    assert len(go(data, *args[6:], "--force").splitlines()) == 21


# Languages
def spy(hub, name, lang, *args):
    """(source ids, target ids after the decoder's start, tokenizer, texts) of two sentences."""
    args = translate.get_args(["--data", "d", "--task", "t", "--lang", lang, "--model", hub[name], *args, *FAST])
    translator, seen = translate.Translator(args, torch.device("cpu"), None), []
    generate = translator.model.generate
    translator.model.generate = lambda **kw: seen.append((kw["input_ids"], generate(**kw))) or seen[-1][1]
    texts = translator.generate(translator.tokenize(["the film was bad", "a very good room"]))
    return seen[0][0], seen[0][1][:, 1:], translator.tokenizer, [text for text, _ in texts]


@pytest.mark.parametrize("name, lang, args, source, target", [
    ("m2m", "ko", [], "__en__", "__ko__"), ("m2m", "xx", ["--lang-code", "de"], "__en__", "__de__"),
    ("nllb", "ko", [], "eng_Latn", "kor_Hang"), ("nllb", "swh_Latn", [], "eng_Latn", "swh_Latn"),
    ("mbart", "ko", [], "en_XX", "ko_KR"), ("mbart", "ja", [], "en_XX", "ja_XX"),
    ("marian-mul", "ko", [], ">>kor<<", None), ("marian-mul", "zh", [], ">>cmn_Hans<<", None),
    ("marian", "ko", [], None, None)])
def test_source_and_target_carry_the_models_language_tokens(hub, name, lang, args, source, target):
    given, made, tokenizer, texts = spy(hub, name, lang, *args)
    tokens = tokenizer.convert_ids_to_tokens
    assert [tokens(row)[0] for row in given.tolist()] == ([source] * 2 if source else ["the", "a"])
    firsts = {tokens(row)[0] for row in made.tolist()}
    assert firsts == {target} if target else not any(">>" in token for token in firsts)
    assert all(source not in text and target not in text for text in texts) if target else True


def test_the_language_changes_the_translation(hub):
    assert spy(hub, "nllb", "ko")[3] != spy(hub, "nllb", "de")[3]
    assert spy(hub, "marian-mul", "ko")[3] != spy(hub, "marian-mul", "de")[3]


def test_the_table_of_codes_is_nllbs_and_finds_mbarts():
    assert set(translate.FLORES.values()) <= set(NLLB) and len(set(translate.FLORES.values())) == len(translate.FLORES)
    for lang in "ar bg de el en es fr hi ru sw th tr ur vi zh ko ja".split():          # XNLI's and two more
        assert translate.find_code(NLLB, lang) == translate.FLORES[lang]
    assert all(translate.find_code(MBART, code[:2]) == code for code in MBART)


def test_madlads_form_is_known_and_a_stray_piece_is_no_language():
    tokenizer = word_tokenizer(["<2en>", "<2ko>", "<2zh_Latn>"])
    codes, before = translate.language_tokens(tokenizer)
    assert before and translate.find_code(codes, "ko") == "ko" and codes["zh_Latn"] == "<2zh_Latn>"
    assert translate.language_tokens(word_tokenizer([">>x<<", "__en__", "__ko__"]))[1] is False


@pytest.mark.parametrize("name, args, match", [
    ("nllb", ["--lang", "ku"], "--lang ku: none of the model's 202 languages; .*--lang-code, such as"),
    ("nllb", ["--lang", "kas"], "--lang kas: 2 of .*such as kas_Arab kas_Deva"),
    ("m2m", ["--lang", "xx", "--lang-code", "yy"], "--lang-code yy: none of the model's 3 .*such as de en ko"),
    ("marian", ["--lang", "ko", "--lang-code", "kor"], "no codes, it translates one pair"),
    ("m2m", ["--lang", "en"], "--lang: give the target language"),
    ("m2m", [], "--lang: give the target language"),
    ("m2m", ["--lang", "ko", "--n", "61"], "--n 61: .*train.tsv has 60 rows; use --n 60"),
    ("m2m", ["--lang", "ko", "--task", "none"], "none/en/train.tsv: No such file"),
    ("m2m", ["--lang", "ko", "--model", "no/such/folder"], "--model no/such/folder: .*hub name or folder")])
def test_mistakes(hub, data, name, args, match):
    refuse(translate.main, "--data", data, "--task", "mood", "--model", hub[name], *FAST, *args, match=match)
    assert not list(data.glob("mood/[!e]*"))


def test_a_source_without_its_language_token_is_refused(hub, data, tmp_path):
    folder = make_model(tmp_path / "m", word_tokenizer(["__en__", "__ko__"]), M2M100Config,
                        M2M100ForConditionalGeneration)
    refuse(translate.main, "--data", data, "--task", "mood", "--lang", "ko", "--model", folder,
           match="does not write __en__ into a source")


@pytest.mark.parametrize("why, match", [
    ("\nMarianTokenizer requires the SentencePiece library but", "needs more: pip install sentencepiece protobuf"),
    ("`tiktoken` is required to read a `tiktoken` file.", "needs more: pip install sentencepiece protobuf"),
    ("Unrecognized configuration class MarianConfig to build an AutoTokenizer.", "needs more: pip install sentencep"),
    ("does not appear to have a file named config.json", "opus: does not appear .*hub name or folder")])
def test_what_a_tokenizer_lacks_is_said(data, monkeypatch, why, match):
    def missing(*args, **kw):
        raise ValueError(why)
    monkeypatch.setattr(translate.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(translate.AutoTokenizer, "from_pretrained", missing)
    refuse(translate.main, "--data", data, "--task", "mood", "--lang", "de", "--model", "opus", match=match)


def test_a_model_of_another_pair_is_warned_of(hub, data, monkeypatch, capsys):
    load = translate.load_model

    def german(name):
        model, tokenizer = load(name)
        tokenizer.target_lang = "de"                         # as opus-mt-en-de's has it
        return model, tokenizer
    monkeypatch.setattr(translate, "load_model", german)
    go(data, "--model", hub["marian"], "--n", 4, *FAST)
    assert "says that it translates into 'de'" in capsys.readouterr().out


# What the model writes
@pytest.mark.parametrize("name", ["m2m", "nllb", "marian", "mbart"])
def test_a_sentence_alone_translates_as_in_a_padded_batch(hub, data, name):
    args = translate.get_args(["--data", "d", "--task", "t", "--lang", "ko", "--model", hub[name], *FAST])
    translator = translate.Translator(args, torch.device("cpu"), None)
    rows = translator.tokenize([text for text, in english(data, 24)])
    together = translator.generate(rows)
    assert together == [translator.generate([row])[0] for row in rows]
    assert len({len(row["input_ids"]) for row in rows}) > 4 and len({text for text, _ in together}) > 8
    assert {cut for _, cut in together} == ({True, False} if name in ("nllb", "mbart") else {True})  # some are cut


@pytest.mark.parametrize("amp, on", [("bf16", True), ("off", False)])
def test_amp_decides_the_precision(hub, data, monkeypatch, amp, on):
    seen, generate = [], translate.Translator.generate
    monkeypatch.setattr(translate.Translator, "generate", lambda self, rows: seen.append(
        torch.is_autocast_enabled("cpu")) or generate(self, rows))
    go(data, "--model", hub["m2m"], "--n", 4, *FAST, "--amp", amp)
    assert set(seen) == {on}


def test_empty_translations_are_left_out_tabs_replaced_and_copies_warned_of(hub, data, monkeypatch, capsys):
    empty, load = {row[0] for row in english(data, 20)[3:9:2]}, translate.load_model

    def echo(name):
        """The model gives back its source, with tabs and line ends for spaces, or nothing."""
        model, tokenizer = load(name)
        decode = tokenizer.batch_decode
        model.generate = lambda input_ids, **kw: torch.cat([input_ids[:, :1], input_ids], 1)
        tokenizer.batch_decode = lambda ids, **kw: [
            " \n" if text in empty else f" {text}\r\n".replace(" ", "\t ") for text in decode(ids, **kw)]
        return model, tokenizer
    monkeypatch.setattr(translate, "load_model", echo)
    go(data, "--model", hub["m2m"], "--n", 20, *FAST)
    kept = [row for row in english(data, 20) if row[0] not in empty]
    for n in (10, 17):
        texts, translations, _ = common.load_translated(data, "mood", "ko", n)
        assert texts == translations == kept[:n]
    out = capsys.readouterr().out
    assert "warning: 3 rows are left out, their translation is empty" in out
    assert "warning: 100% of the translations are identical to the source: is the language right?" in out


def test_cut_translations_are_counted_again_on_resuming(hub, data, capsys):
    args = ["--model", hub["m2m"], "--n", 10, *FAST, "--max-new-tokens", 3]
    go(data, *args)
    first = capsys.readouterr().out
    go(data, *args)
    assert "10 translations were cut at 3 tokens" in first and "10 translations were cut" in capsys.readouterr().out


def test_long_sources_are_warned_of_and_memory_has_a_way_out(hub, data, batches, monkeypatch, capsys):
    rows = [["good", " ".join(["film"] * 50)], *(["good", f"the {word} film"] for word in WORDS[:9])]
    write(data / "long/en/train.tsv", ["label", "text"], rows)
    args = ["--data", data, "--task", "long", "--lang", "ko", "--model", hub["m2m"], *FAST]
    generate = translate.Translator.generate

    def full(self, batch):
        if sum(batches) >= 8:                                # the second chunk is too much
            raise torch.OutOfMemoryError
        return generate(self, batch)
    monkeypatch.setattr(translate.Translator, "generate", full)
    refuse(translate.main, *args, match="out of memory on cpu; lower --batch-tokens 1024 or --beams")
    monkeypatch.setattr(translate.Translator, "generate", generate)
    go(data, *args[6:], "--batch-tokens", 99, task="long")
    assert batches == [8, 2]
    write(data / "long/en/train.tsv", ["label", "text"], rows[:2])
    go(data, *args[6:], "--beams", 1, "--force", task="long")
    assert "1 sentences reach the 40 tokens that the model takes" in capsys.readouterr().out


# Export and merge
def translated(path, out, change=lambda rows: rows):
    """Add a translation to an exported file, as its reader would; `change` edits the rows."""
    names, *rows = (line.split("\t") for line in common.read_lines(path))
    texts = [i for i, name in enumerate(names) if name.startswith("text")]
    rows = change([[*row, *(f"ko {row[i]}" for i in texts)] for row in rows])
    write(out, [*names, *(names[i].replace("text", "translation") for i in texts)], rows)
    return out


def export(data, tmp_path, n, task="mood"):
    path = tmp_path / f"rows{n}.tsv"
    translate.main(["--data", str(data), "--task", task, "--n", str(n), "--export", str(path)])
    return path


@pytest.mark.parametrize("task, n", [("mood", 20), ("pair", 12)])
def test_export_and_merge_give_the_rows_of_n(data, tmp_path, capsys, task, n):
    path = export(data, tmp_path, n, task)
    assert f"export | {n} rows" in capsys.readouterr().out
    shuffled = translated(path, tmp_path / "back.tsv", lambda rows: rows[::-1])
    go(data, "--n", n, "--merge", shuffled, task=task)
    for m in (4, n):
        texts, translations, _ = common.load_translated(data, task, "ko", m)
        assert texts == english(data, m, task)
        assert translations == [tuple(f"ko {text}" for text in row) for row in texts]
    go(data, "--n", n, "--merge", shuffled, task=task)       # its own file may be replaced
    refuse(translate.main, "--data", data, "--task", task, "--n", n, "--export", path, match="is there already")


def test_an_export_begins_with_the_smaller_one_and_ids_are_lines_of_train(data, tmp_path):
    small, large = (export(data, tmp_path, n).read_text().splitlines() for n in (10, 20))
    assert large[:11] == small and small[0] == "id\tlabel\ttext"
    train = (data / "mood/en/train.tsv").read_text().splitlines()
    for line in large[1:]:
        number, rest = line.split("\t", 1)
        assert train[int(number) - 1] == rest


def swap(rows, at, column, value):
    rows[at][column] = value
    return rows


@pytest.mark.parametrize("change, match", [
    (lambda rows: rows[:3] + rows[5:], "of 10 rows these ids are missing: \\d+ \\d+; give"),
    (lambda rows: rows[:2], r"missing: \d+ \d+ \d+ \d+ \d+ \.\.\. \(8 in all\)"),
    (lambda rows: swap(swap(rows, 2, 3, " "), 4, 3, ""), "no translation on line 4 6; .*--skip"),
    (lambda rows: rows + [rows[1]], "back.tsv:12: id .* again, as on line 3"),
    (lambda rows: swap(rows, 2, 0, "99"), "back.tsv:4: id '99' is none of the 10 rows; give the --n"),
    (lambda rows: swap(rows, 2, 2, '"the film"'), "back.tsv:4: text is '\"the film\"', in train.tsv .*without quotes"),
    (lambda rows: [row[:3] for row in rows], "back.tsv:2: 3 columns, not 4")])
def test_merge_names_what_is_wrong(data, tmp_path, change, match):
    back = translated(export(data, tmp_path, 10), tmp_path / "back.tsv", change)
    refuse(translate.main, "--data", data, "--task", "mood", "--lang", "ko", "--n", 10, "--merge", back, match=match)
    assert not (data / "mood/ko").exists()


def test_merge_wants_the_translation_column_and_can_leave_rows_out(data, tmp_path, capsys):
    path = export(data, tmp_path, 10)
    args = ["--data", data, "--task", "mood", "--lang", "ko", "--n", 10]
    refuse(translate.main, *args, "--merge", path, match="no column 'translation' in the header")
    back = translated(path, tmp_path / "back.tsv", lambda rows: swap(rows, 4, 3, "")[1:])
    go(data, "--n", 10, "--merge", back, "--skip")
    assert "8 rows with a translation, 2 left out" in capsys.readouterr().out
    texts, _, _ = common.load_translated(data, "mood", "ko", 5)
    assert texts == [row for i, row in enumerate(english(data, 10)) if i not in (0, 4)][:5]


def test_merge_does_not_replace_a_models_file_nor_the_reverse(hub, data, tmp_path):
    back = translated(export(data, tmp_path, 10), tmp_path / "back.tsv")
    by_model = go(data, "--model", hub["m2m"], "--n", 10, *FAST)
    args = ["--data", data, "--task", "mood", "--lang", "ko", "--n", 10]
    refuse(translate.main, *args, "--merge", back, match="--force")
    assert go(data, "--n", 10, "--merge", back, "--force") != by_model
    refuse(translate.main, *args, "--model", hub["m2m"], *FAST, match="--force")


# From the shell
@pytest.mark.parametrize("text", [translate.__doc__, (ROOT / "data/README.md").read_text(encoding="utf-8")])
def test_every_printed_command_parses(text):
    found = [args for name, args in commands(re.sub("^ +", "", text, flags=re.M)) if name == "data/translate.py"]
    assert len(found) >= 3 and all(translate.get_args(args) for args in found)


def test_help_and_a_mistake_from_the_shell(tmp_path):
    page = script("data/translate.py", "--help").stdout
    assert all(word in page for word in ("Reads ", "Writes ", "Expect ", "python data/translate.py", "--lang-code"))
    done = script("data/translate.py", "--data", tmp_path, "--task", "t", "--lang", "ko")
    assert done.returncode == 2 and "error: one of the arguments --model --export --merge" in done.stderr
    assert len(done.stderr.splitlines()) == 1
