"""Shared by the tests: a tiny random encoder, tiny data whose "Korean" is a cipher of English, one run folder.

Helpers are plain functions (`from conftest import ...`). The fixtures are `world`, `runs` and `folder`.
"""

import contextlib
import importlib
import io
import os
import random
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # here and in subprocesses
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data")]
torch.set_num_threads(1)
hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()

import common
import step3_head

NAMES = "step1_embed.py", "step2_align.py", "step3_head.py", "eval.py"
SCRIPTS = {name: importlib.import_module(name[:-3]) for name in NAMES}
GOOD = ["good", "great", "kind", "warm", "bright", "lovely", "fresh", "happy"]
BAD = ["bad", "awful", "rude", "cold", "dark", "ugly", "stale", "sad"]
PLAIN = ["the", "a", "film", "food", "room", "hotel", "song", "staff"]
PLAIN += ["price", "music", "was", "is", "so", "very", "and", "in"]
WORDS = GOOD + BAD + PLAIN
CIPHER = {word: chr(0xAC00 + 61 * i) + chr(0xB098 + 17 * i) for i, word in enumerate(WORDS)}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 66, "initializer_range": 0.2}
KINDS = {
    "xlm-roberta": (hf.XLMRobertaConfig, {"type_vocab_size": 1}),
    "bert": (hf.BertConfig, {"type_vocab_size": 2}),
    "distilbert": (hf.DistilBertConfig, {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}),
    "fnet": (hf.FNetConfig, {}),
    "deberta-v2": (hf.DebertaV2Config, {"relative_attention": True, "pos_att_type": "p2c|c2p"}),
    "modernbert": (hf.ModernBertConfig, {}),
}


def cipher(text):
    """Translate English into "Korean", word for word."""
    return " ".join(CIPHER[word] for word in text.split())


def make_tokenizer(texts, token_types=False, max_len=64):
    """Return a tokenizer of the words of `texts`, with XLM-R's special tokens."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    types = (0, 1) if token_types else (0, 0)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s>:{0} $A:{0} </s>:{0} $B:{1} </s>:{1}".format(*types),
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        **dict(zip(["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"], SPECIAL)),
        model_input_names=names if token_types else [names[0], names[2]],
        model_max_length=max_len,
    )


def make_encoder(folder, kind="xlm-roberta", texts=None, seed=0, **config):
    """Save a random encoder (hidden 32, 2 layers, 2 heads) of a kind of KINDS. Return the folder."""
    make_config, own = KINDS[kind]
    tokenizer = make_tokenizer(texts or [" ".join([*WORDS, *CIPHER.values()])], kind == "bert")
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    ids |= {"cls_token_id": 0, "sep_token_id": 2} if kind == "modernbert" else {}
    torch.manual_seed(seed)
    config = make_config(vocab_size=len(tokenizer), **{**SIZES, **own, **ids, **config})
    hf.AutoModel.from_config(config).save_pretrained(folder)
    return Path(folder)


def write(path, header, rows):
    """Write a tab-separated file. Return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in [header.split(), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_table(path):
    """Return the rows of a tab-separated file, with its header."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def make_row(rng, pair):
    """Return (label, text) or (label, text, text_b), English whose label follows from its words."""
    if not pair:
        label, words = rng.choice([("positive", GOOD), ("negative", BAD)])
        text = rng.choices(words, k=3) + rng.choices(GOOD + BAD, k=1) + rng.choices(PLAIN, k=4)
        return label, " ".join(rng.sample(text, len(text)))
    label = rng.choice(["contradiction", "entailment", "neutral"])
    premise = rng.sample(GOOD, 3) + rng.sample(PLAIN, 3)
    words = {"contradiction": BAD, "entailment": premise[:3], "neutral": PLAIN}[label]
    return label, " ".join(rng.sample(premise, 6)), " ".join(rng.sample(words, 3))


def make_task(root, task="reviews", pair=False, rows=120, seed=0):
    """Write <root>/<task>/{en,ko}/{train,dev,test}.tsv and ko/translated.tsv (en/train in "Korean")."""
    rng, header = random.Random(seed), "label text text_b" if pair else "label text"
    for split, count in {"train": rows, "dev": rows // 3, "test": rows // 2}.items():
        for lang in ("en", "ko"):
            made = [make_row(rng, pair) for _ in range(count)]
            if lang == "ko":
                made = [(label, *map(cipher, texts)) for label, *texts in made]
            elif split == "train":
                both = [(*row, *map(cipher, row[1:])) for row in made]
                both_header = f"{header} translation" + " translation_b" * pair
                write(Path(root, task, "ko", "translated.tsv"), both_header, both)
            write(Path(root, task, lang, f"{split}.tsv"), header, made)
    return Path(root)


def main(script, *args):
    """Run a script in this process, on the CPU in fp32. A mistake raises UserError."""
    argv = [script, *map(str, args), "--device", "cpu", "--amp", "off"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        SCRIPTS[script].main()


def step1(model, data, out, *flags, task="reviews", epochs=0):
    """Run step 1, by default without training."""
    where = "--model", model, "--data", data, "--task", task, "--out", out
    main("step1_embed.py", *where, "--epochs", epochs, *flags)


def error_line(call):
    """Run call() as a script and expect exit status 2. Return the last line on stderr, the only error."""
    err = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(err):
        common.run(call)
    assert caught.value.code == 2 and err.getvalue().count("error: ") == 1, err.getvalue()
    return err.getvalue().rstrip("\n").split("\n")[-1]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Return .data, root of the tasks reviews and nli, and .encoder, a random XLM-R. Do not change them."""
    path = tmp_path_factory.mktemp("world")
    make_task(path / "data", rows=400)
    make_task(path / "data", "nli", pair=True)
    return SimpleNamespace(path=path, data=path / "data", encoder=make_encoder(path / "encoder"))


def few_steps(patch, steps):
    """Let step 3 train its heads for only `steps` steps."""
    patch.setattr(step3_head, "train_heads", partial(step3_head.train_heads, steps=steps))


@pytest.fixture(scope="session")
def runs(world, tmp_path_factory):
    """Return a run folder of task reviews with heads of many methods, made by the scripts. Do not change it."""
    out = tmp_path_factory.mktemp("runs") / "runs"
    ko = "--lang", "ko", "--out", out
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch, 200)
        step1(world.encoder, world.data, out, "--lr", 1e-3, epochs=2)
        for flags in ((), ("--method", "rev"), ("--arch", "inside")):
            main("step2_align.py", *ko, *flags)
        for flags in ((), ("--residuals",)):
            main("step3_head.py", *ko, *flags)
        for flags in (("rev",), ("rev", "--arch", "inside"), ("native",), ("translated",)):
            main("step3_head.py", *ko, "--method", *flags)
    return out


@pytest.fixture
def folder(runs, tmp_path):
    """Return a copy of `runs` that a test may change."""
    return shutil.copytree(runs, tmp_path / "runs")
