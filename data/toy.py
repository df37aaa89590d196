"""Build the toy world: parallel text in five languages, and a tiny encoder that aligns them little.

    python data/toy.py                                         # writes data/toy
    python data/toy.py --rows 600 --steps 60 --out data/small  # for tests, in seconds

The world is modelled on where LangAlign helps: the LM has read some text of the target languages, but
hardly any translations. data/toy_text.py writes all text. The encoder is an XLM-R of two layers. It
learns masked language modelling and, in every second step, to find a sentence's paraphrase in the same
language, in a tenth of these steps its paraphrase in English. It sees no dev or test text.

Reads    nothing.
Writes   <out>/<task>/<lang>/{train,dev,test}.tsv, for target languages translated.tsv (formats:
         data/README.md), tasks sentiment and nli; <out>/encoder/ for AutoModel and AutoTokenizer.
         Stopped, it leaves <out> as it was. A folder that it did not make is never replaced.
Expect   a masked-LM loss of 5 to 6 (at the start 7.8); 20 s on two CPU cores.
It shows the mechanism of LangAlign and is no evidence about real languages.

Shapes   B sequences of a batch, T tokens, M masked tokens, D width, V vocabulary.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from common import UserError, make_optimizer, masked_mean, run
from toy_text import LABELS, LANGS, sample, speak

MARKER = ".made_by_toy"  # a folder without it is not ours to replace
LAYERS, WIDTH, HEADS, INNER, VOCAB = 2, 128, 4, 256, 2400
STEPS, BATCH, RATE, MASKED = 300, 32, 3e-3, 0.15  # BATCH sequences per step, MASKED of their tokens
SHARES = (5, 4, 4, 4, 1)  # of LANGS in what the encoder reads, in their order
EVERY, ALIGNED = 2, 0.1  # steps from one of paraphrases to the next, share of English ones


def build_rows(task, sizes, seed):
    """{(lang, split): rows of (label, *texts, *translations)}; no text of a test split recurs."""
    files, banned = {}, set()
    for split, lang in itertools.product(("test", "dev", "train"), LANGS):
        rng = random.Random(f"{seed} {task} {lang} {split}")
        others = LANGS[1:] if (lang, split) == ("en", "train") else ()
        count = sizes["translated" if others else split]
        seen, rows = set(), []
        while len(rows) < count:
            label = LABELS[task][len(rows) % len(LABELS[task])]
            meanings = sample(task, label, rng)
            versions = [speak(task, lang, meanings, rng)]
            versions += [speak(task, other, meanings) for other in others]
            texts = {text for version in versions for text in version}
            if seen.isdisjoint(versions) and banned.isdisjoint(texts):
                seen.update(versions)
                rows.append((label, versions))

        rng.shuffle(rows)
        files[lang, split] = [(label, *versions[0]) for label, versions in rows[: sizes[split]]]
        for i, other in enumerate(others, 1):
            files[other, "translated"] = [(label, *v[0], *v[i]) for label, v in rows]
        if split == "test":
            banned.update(text for row in files[lang, "test"] for text in row[1:])
    return files


def write_files(root, files):
    for (lang, split), rows in files.items():
        header = ["label", "text", "text_b"][: len(files["en", "test"][0])]
        if split == "translated":
            header += [name.replace("text", "translation") for name in header[1:]]
        (root / lang).mkdir(parents=True, exist_ok=True)
        with open(root / lang / f"{split}.tsv", "w", encoding="utf-8", newline="\n") as f:
            f.writelines("\t".join(row) + "\n" for row in [header, *rows])


def train_tokenizer(texts):
    """BPE with XLM-R's special tokens; a pair is <s> a </s> </s> b </s>."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=specials)
    trainer.show_progress = False
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # words and punctuation
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, specials)),
    )


def masked_loss(model, tokenizer, mask, worlds, rng):
    """Masked language modelling on native train rows of one task and language, so of similar length."""
    rows = worlds[rng.choice(list(worlds))][rng.choices(LANGS, SHARES)[0], "train"]
    batch = mask([tokenizer(*row[1:]) for row in rng.choices(rows, k=BATCH)])  # (B, T) each
    labels = batch.pop("labels")
    hidden = model.roberta(**batch).last_hidden_state  # (B, T, D)
    chosen = labels != -100  # (B, T)
    return F.cross_entropy(model.lm_head(hidden[chosen]), labels[chosen])  # (M, V), (M,)


def pair_loss(model, tokenizer, held_out, rng):
    """Contrastive: a text finds its paraphrase in the batch by cosine of mean-pooled embeddings."""
    task, lang = rng.choice(list(LABELS)), rng.choices(LANGS, SHARES)[0]
    other = "en" if rng.random() < ALIGNED else lang
    pairs = []
    while len(pairs) < BATCH:
        meanings = sample(task, rng.choice(LABELS[task]), rng)
        pair = speak(task, lang, meanings, rng)[0], speak(task, other, meanings, rng)[0]
        if held_out.isdisjoint(pair):
            pairs.append(pair)
    texts = [text for side in zip(*pairs) for text in side]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = model.roberta(**batch).last_hidden_state  # (2B, T, D)
    pooled = masked_mean(hidden, batch["attention_mask"])  # (2B, D)
    english, other = F.normalize(pooled, dim=1).chunk(2)
    scores = english @ other.T / 0.05  # (B, B), the temperature of SimCSE
    same = torch.arange(BATCH)
    return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2


def pretrain(worlds, steps, seed, folder):
    """Train tokenizer and encoder and save them; returns the last tenth's mean masked-LM loss."""
    rng = random.Random(f"{seed} encoder")
    torch.manual_seed(seed)
    splits = [files[lang, "train"] for files in worlds.values() for lang in LANGS]
    tokenizer = train_tokenizer(text for rows in splits for row in rows for text in row[1:])
    held_out = set()
    for files, lang, split in itertools.product(worlds.values(), LANGS, ("dev", "test")):
        held_out.update(text for row in files[lang, split] for text in row[1:])
    mask = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.XLMRobertaForMaskedLM(config).train()
    optimizer, schedule = make_optimizer(model.parameters(), RATE, steps, weight_decay=0.01)
    losses = []
    for step in tqdm(range(steps), desc="pretraining", unit="step", disable=None):
        if step % EVERY == EVERY - 1:
            loss = pair_loss(model, tokenizer, held_out, rng)
        else:
            loss = masked_loss(model, tokenizer, mask, worlds, rng)
            losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    encoder = transformers.XLMRobertaModel(config)  # with the pooler that AutoModel looks for
    encoder.load_state_dict(model.roberta.state_dict(), strict=False)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def main(argv=None):
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="data/toy", help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of text and encoder (default: 0)")
    rows = "translated pairs per language (20000); a fifth as many train rows, dev 1/20, test 1/10"
    parser.add_argument("--rows", type=int, default=20_000, help=rows)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} sequences ({STEPS})")
    args, start = parser.parse_args(argv), time.time()
    if not 60 <= args.rows <= 50_000 or args.steps < 10:
        raise UserError("--rows must be 60 to 50000, and --steps at least 10")
    out = Path(args.out).resolve()
    if out.exists() and not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} was not made by data/toy.py; choose another --out")
    seconds = 5 + args.rows / 4000 + args.steps / 30
    print(f"toy world -> {args.out}: about {seconds:.0f} s on two cores", flush=True)

    torch.set_num_threads(min(2, torch.get_num_threads()))  # more are slower on so small a model
    sizes = {"translated": args.rows, "train": args.rows // 5, "dev": args.rows // 20}
    sizes["test"] = max(args.rows // 10, min(args.rows, 2000))  # fewer cannot show three points
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}") as building:
        new = Path(building, "new")
        worlds = {task: build_rows(task, sizes, args.seed) for task in LABELS}
        for task, files in worlds.items():
            write_files(new / task, files)
        (new / MARKER).touch()
        loss = pretrain(worlds, args.steps, args.seed, new / "encoder")
        if out.exists():
            out.rename(Path(building, "old"))
        new.rename(out)
    for task, files in worlds.items():
        counts = [f"{split} {len(files['ko', split]):,}" for split in ("train", "dev", "test")]
        pairs = f"{len(files['ko', 'translated']):,} pairs each of English and ko, ja, zh, sw"
        print(f"{task}: {pairs}; labelled rows in each language:", *counts)
    label, english, korean = worlds["sentiment"]["ko", "translated"][0]
    print(f"{label}: {english}\n  translated: {korean}")
    print(f"masked-LM loss {loss:.2f} -> {args.out} in {time.time() - start:.0f} s")
    step1 = "step1_embed.py --lr 5e-4"
    if args.out != parser.get_default("out"):
        step1 += f" --data {args.out} --model {args.out}/encoder"
    print(f"next: python {step1}")


if __name__ == "__main__":
    run(main)
