"""Translate n rows of your English train.tsv into the translated.tsv that step 2 trains on.

    python data/translate.py --data data/mine --task topics --lang ko --model facebook/nllb-200-distilled-600M
    python data/translate.py --data data/mine --task topics --export rows.tsv  # for an LLM ...
    python data/translate.py --data data/mine --task topics --lang ko --merge rows-ko.tsv  # ... and back

Reads    <data>/<task>/en/train.tsv; --merge reads the exported file with translations added.
Writes   <data>/<task>/<lang>/translated.tsv (see data/README.md). --model also writes its finished work to
         translated.<key>.json, from which a stopped run or a larger --n continues.
Expect   three examples to judge, and no warning.

--n takes the first n rows in the fixed order of step 2's --n. Rows with the same text count once.
Models: opus-mt (Marian), NLLB, M2M100, mBART-50, MADLAD-400, others of one language pair.
"""

import argparse
import hashlib
import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import cached_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import PAIRS, ROWS, UserError, bar, batches, check_flags, digest_of, fixed_order
from common import load_tokenizer, pick_device, read_lines, read_tsv, run, say, warn, write_atomic
from convert import MISSING, clean
from step2_align import doubts_of

DEFAULT_N = 20_000  # rows, in the middle of the paper's 5K to 50K: a day of a CPU, or a bill
BATCH_TOKENS = {"cpu": 1_024, "cuda": 8_192, "mps": 2_048}  # small: each beam has its own logits
CHUNK = 512  # sentences between saves: what a killed run loses

with open(Path(__file__).with_name("languages.txt"), encoding="utf-8") as table:
    GROUPS = [group.split("/") for line in list(table)[1:] for group in line.split()]
NAMES = {name: group for group in GROUPS for name in group}  # all names of a language


def get_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("data/translate.py", description=__doc__, formatter_class=raw)
    flag = p.add_argument
    flag("--data", required=True, help="data root, which holds <task>/en/train.tsv")
    flag("--task", required=True, help="task folder in the data root")
    flag("--lang", default="en", help="target language, ISO 639-1, such as ko; names the folder")
    flag("--n", type=int, help=f"number of rows (default: {DEFAULT_N}, or all if fewer)")
    job = p.add_mutually_exclusive_group(required=True).add_argument
    job("--model", help="translate with this model: a hub name or folder")
    job("--export", metavar="FILE", help="write the n rows with ids, to be translated elsewhere")
    job("--merge", metavar="FILE", help="read them back, with a column translation [translation_b]")
    flag("--lang-code", help="the model's own code of the language (default: found by --lang)")
    flag("--beams", type=int, default=4, help="beams; 1 is faster and worse (default: 4)")
    flag("--max-new-tokens", type=int, default=256, help="longest translation (default: 256)")
    flag("--batch-tokens", type=int, help="lower it if memory runs out (default: 1,024 on a CPU)")
    flag("--skip", action="store_true", help="--merge: leave out rows without a translation")
    flag("--force", action="store_true", help="replace a file with other rows")
    flag("--device", help="cuda, cuda:1, mps or cpu (default: first accelerator, else cpu)")
    flag("--amp", choices=("off", "bf16", "fp16"), help="mixed precision (default: as in step 1)")
    args = p.parse_args(argv)
    check_flags(args)
    if args.lang == "en" and not args.export:
        raise UserError("--lang: give the target language, not en, such as --lang ko")
    return args


# The model and its languages
def find_code(codes, lang):
    """Return the code that means `lang`: one of its names, or the only one that begins with one."""
    first = lambda code: re.split("[-_]", code)[0]  # pt of pt-BR
    like = lambda names: sorted(code for code in codes if first(code) in names)
    names = [lang, *NAMES.get(lang, [])]
    found = [name for name in names if name in codes][:1] or like(names)
    if len(found) == 1:
        return found[0]
    close = found or like(NAMES.get(first(lang), [first(lang)]))
    close = close or sorted(code for code in codes if code[0] == lang[0]) or sorted(codes)[:9]
    count = f"{len(found) or 'none'} of the model's {len(codes)} language codes"
    raise UserError(f"{lang}: {count} fit; give one with --lang-code, such as {' '.join(close)}")


def language_table(tokenizer):
    """Return ({code: id of its token}, form of that token if it stands before a source, else "")."""
    if table := getattr(tokenizer, "lang_code_to_id", None):  # M2M100, mBART-50
        return table, ""
    opus, madlad, nllb = ">>(.+)<<", "<2(.+)>", "([a-z]{3}_[A-Z][a-z]{3})"
    for pattern, form in {opus: ">>{}<< ", madlad: "<2{}> ", nllb: ""}.items():
        found = {re.fullmatch(pattern, token): i for token, i in tokenizer.get_vocab().items()}
        if table := {match[1]: i for match, i in found.items() if match}:
            return table, form
    return {}, ""


def load_model(name, texts):
    """Return (model in fp32, tokenizer, digest of its files) of a hub name or folder. Raises
    UserError if weights are missing, or a tokenizer that knows the words of `texts`."""
    warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
    options = {"dtype": torch.float32, "output_loading_info": True}
    try:
        tokenizer = load_tokenizer(name)
        model, loaded = AutoModelForSeq2SeqLM.from_pretrained(name, **options)
        folder = Path(cached_file(name, "config.json")).parent  # of a hub name: the local snapshot
        if missing := sorted(loaded["missing_keys"]):  # tied weights are not among them
            raise ValueError(f"its file lacks {len(missing)} weights, such as {missing[0]}")
        rows, unknown = tokenizer(texts, padding=True).input_ids, tokenizer.unk_token_id
        if sum(ids.count(unknown) for ids in rows) > len(" ".join(texts).split()) / 2:
            raise ValueError("its tokenizer does not know most words; are its files complete?")
    except Exception as err:  # hub, files and classes raise many types
        reason = " ".join(str(err).split()).split(". ")[0][:200]
        hint = "give a translation model; some need pip install sentencepiece protobuf"
        raise UserError(f"--model {name}: {reason}; {hint}")
    kinds = ".json", ".safetensors", ".bin", ".model", ".spm"
    paths = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    files = [np.memmap(path, mode="r") for path in paths if path.stat().st_size]
    return model, tokenizer, digest_of(*(hashlib.sha256(file).digest() for file in files))


class Translator:
    """A translation model with its target language set."""

    def __init__(self, args, texts):
        self.device, self.dtype, self.machine = pick_device(args)
        self.model, self.tokenizer, self.digest = load_model(args.model, texts)
        self.model.to(self.device).eval()
        positions = getattr(self.model.config, "max_position_embeddings", None) or 512
        self.tokenizer.model_max_length = min(positions, self.tokenizer.model_max_length)
        self.tokenizer.padding_side = "right"
        self.longest = min(args.max_new_tokens, positions - 1)
        self.options = {"num_beams": args.beams, "do_sample": False, "max_new_tokens": self.longest}

        codes, form = language_table(self.tokenizer)
        one = getattr(self.tokenizer, "target_lang", None) or args.lang  # if there are no codes
        self.code = in_source = find_code(codes or [one], args.lang_code or args.lang)
        self.prefix = form.format(self.code)
        source = getattr(self.tokenizer, "source_lang", None) or "en"
        if source not in NAMES["en"] and (source in NAMES or not codes):  # gmw holds English
            raise UserError(f"--model {args.model} translates from {source}; give one from English")
        if codes and not form:
            self.options["forced_bos_token_id"] = codes[self.code]
            self.tokenizer.src_lang = in_source = find_code(codes, "en")
        if codes and codes[in_source] not in self.tokenizer(f"{self.prefix}a").input_ids:
            raise UserError(f"--model {args.model} puts no {in_source} into a source; give another")

    @torch.no_grad()
    def generate(self, sentences):
        """Translate a batch; return [[translation, whether it or its source was cut], ...]."""
        texts, pad_id = [self.prefix + text for text in sentences], self.tokenizer.pad_token_id
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        batch = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            out = self.model.generate(**batch, **self.options, pad_token_id=pad_id)  # (B, T)
        cut = batch["attention_mask"].sum(1) >= self.tokenizer.model_max_length
        cut |= (out[:, 1:] != pad_id).sum(1) >= self.longest
        start = 1 + ("forced_bos_token_id" in self.options)  # M2M100's code is no special token
        texts = self.tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)
        return [[compose(text), is_cut] for text, is_cut in zip(texts, cut.tolist())]


def compose(text):
    """Return text as convert.clean does, with tokens such as <0xEA> as their bytes."""
    spell = lambda found: bytes.fromhex(re.sub("<0x|>", "", found[0])).decode("utf-8", "ignore")
    return clean(re.sub("(<0x[0-9A-F]{2}>)+", spell, text))


def translate(sentences, done, path, translator, budget=None):
    """Add what `done` lacks, and save it. A resumed run has equal batches: chunks have fixed ends."""
    left, budget = len({*sentences} - {*done}), budget or BATCH_TOKENS[translator.device.type]
    with bar(desc="translate", total=left, unit="sentence") as progress:
        for start in range(0, len(sentences), CHUNK):
            chunk = [text for text in sentences[start : start + CHUNK] if text not in done]
            # about 3 letters per English token, and room to generate: 32 tokens for a short text
            for index in batches([len(text) // 3 + 32 for text in chunk], budget):
                batch = [chunk[i] for i in index]
                done.update(zip(batch, translator.generate(batch)))
                progress.update(len(index))
            if chunk:
                write_atomic(path, json.dumps(done, ensure_ascii=False).encode())


# train.tsv, translated.tsv and the exported file
def load_rows(args):
    """Return (header of translated.tsv, {id: row} of the n rows in order). The id is the line in
    train.tsv. Of rows with the same text the first counts."""
    path = Path(args.data, args.task, "en", "train.tsv")
    rows = {}  # texts -> (id, row)
    for line, row in enumerate(read_tsv(path, *ROWS), 2):
        rows.setdefault(row[1:], (str(line), row))
    rows = list(rows.values())
    if args.n and args.n > len(rows):
        raise UserError(f"--n {args.n}: {path} has {len(rows)} distinct rows; use --n {len(rows)}")
    header = PAIRS[len(rows[0][1]) - 2].split()
    return header, dict(rows[i] for i in fixed_order(len(rows))[: args.n or DEFAULT_N])


def tsv(header, table):
    return "".join("\t".join(cells) + "\n" for cells in [header, *table]).encode()


def write_target(path, header, table, force):
    """Write translated.tsv so that the first n rows for step 2 are the first n of `table`."""
    content = tsv(header, [table[i] for i in np.argsort(fixed_order(len(table)))])
    old = path.read_bytes() if path.exists() and not force else b""
    if not set(old.split(b"\n")) <= set(content.split(b"\n")):
        raise UserError(f"{path} has other rows than these; move it away, or add --force")
    write_atomic(path, content)


# The three jobs
def export(args, header, rows):
    """Write the n rows with their ids: the first 5000 of 20000 are those of --n 5000."""
    if Path(args.export).exists() and not args.force:
        raise UserError(f"{args.export} exists; give another name, or add --force")
    width = len(header) // 2 + 1
    content = tsv(["id", *header[:width]], [[key, *row] for key, row in rows.items()])
    write_atomic(args.export, content)
    say(f"export | {len(rows)} rows, {len(content):,} bytes -> {args.export}")
    added = " and ".join(header[width:])
    say(f"add {added}, and read the file back with --merge and --n {len(rows)}")


def merge(args, header, rows):
    """Return the rows of an exported file handed back, after checking each line."""
    columns, *lines = [line.split("\t") for line in read_lines(args.merge)]
    names, half = ["id", *header[1:]], len(header) // 2
    if any(columns.count(name) != 1 for name in names):
        raise UserError(f"{args.merge}:1: columns {columns}; it needs each of {names} once")
    found = {}
    for number, cells in enumerate(lines, 2):
        where = f"{args.merge}:{number}"
        if len(cells) != len(columns):
            raise UserError(f"{where}: {len(cells)} columns, not {len(columns)}; one row per line")
        cell = dict(zip(columns, map(compose, cells)))
        key, *texts = [cell[name] for name in names]
        if key not in rows or key in found:
            raise UserError(f"{where}: id {key!r} is unknown or occurs twice; use the export's --n")
        if texts[:half] != [compose(text) for text in rows[key][1:]]:
            raise UserError(f"{where}: id {key!r} has another text; leave it as exported, unquoted")
        found[key] = []
        for source, text in zip(texts, texts[half:]):
            if re.fullmatch('"([^"]|"")*(,|"")([^"]|"")*"', text) and source[0] != '"':
                raise UserError(f"{where}: saved with quotes; save it unquoted")
            found[key].append("" if text in MISSING and text != source else text)
    lacking = [key for key in rows if not all(found.get(key, [""]))]
    if lacking and not args.skip:
        problem = f"{len(lacking)} of {len(rows)} rows have no translation, ids {lacking[:5]}"
        raise UserError(f"{args.merge}: {problem}; fill them in, check --n, or add --skip")
    return [(*row, *found.get(key, [""])) for key, row in rows.items()]


def by_model(args, rows, target):
    """Return the rows with a model's translations."""
    sentences = list(dict.fromkeys(text for row in rows.values() for text in row[1:]))
    translator = Translator(args, sentences[:1_000])
    options = args.lang, args.lang_code, args.beams, args.amp, args.max_new_tokens
    key = digest_of(translator.digest.encode(), repr(options).encode())[:8]
    path, done = target.with_name(f"translated.{key}.json"), {}
    if path.exists():
        try:
            done = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise UserError(f"{path}: damaged; delete it, and run the command again")
    elif target.exists() and not args.force:
        raise UserError(f"{target} is not by this model and options; move it away, or add --force")
    say(f"{translator.machine} | {args.model}: English to {translator.code}")
    say(f"{len(rows)} rows, {len(sentences)} distinct sentences, {len(done)} done before")
    try:
        translate(sentences, done, path, translator, args.batch_tokens)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command continues from the last save")
    if cut := sum(done[text][1] for text in sentences):
        warn(f"{cut} translations or sources were cut; raise --max-new-tokens, or shorten texts")
    return [(*row, *(done[text][0] for text in row[1:])) for row in rows.values()]


def main(argv=None):
    args = get_args(argv)
    header, rows = load_rows(args)
    if args.export:
        return export(args, header, rows)
    target = Path(args.data, args.task, args.lang, "translated.tsv")
    table = merge(args, header, rows) if args.merge else by_model(args, rows, target)
    table = [row for row in table if all(row[1:])]
    if not table:
        raise UserError("no row has a translation; with --model, try --amp off")
    if lacking := len(rows) - len(table):
        warn(f"{lacking} of {len(rows)} rows are left out, since they have no translation")
    write_target(target, header, table, args.force)
    half = 1 + len(header) // 2
    for row in table[:3]:
        say(f"  {' / '.join(row[1:half])}\n    -> {' / '.join(row[half:])}")
    sources = [text for row in table for text in row[1:half]]
    translations = [text for row in table for text in row[half:]]
    for doubt in doubts_of(sources, translations):
        warn(f"{doubt}; translate such rows again, or leave them out (--merge --skip)")
    say(f"{len(table)} rows -> {target}")


if __name__ == "__main__":
    run(main)
