"""Translate n rows of your English train.tsv into the translated.tsv that step 2 trains on.

    python data/translate.py --data data/mine --task topics --lang ko --model facebook/nllb-200-distilled-600M
    python data/translate.py --data data/mine --task topics --export rows.tsv  # for an LLM ...
    python data/translate.py --data data/mine --task topics --lang ko --merge rows-ko.tsv  # ... and back

Reads    <data>/<task>/en/train.tsv; --merge reads the exported file with translations added.
Writes   <data>/<task>/<lang>/translated.tsv (see data/README.md) and next to it translated.<key>.json,
         the finished work of one model and its options. A stopped run or a larger --n continues from it.
Expect   three examples to judge, and no warning.

--n takes the first n rows in the fixed order of step 2's --n, and translated.tsv keeps that order. Rows
with the same text count once. A pair task's text and text_b are translated separately. Models: opus-mt
(Marian), NLLB, M2M100, mBART-50, MADLAD-400, others of one language pair.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import sys
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import cached_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import PAIRS, ROWS, UserError, bar, batches, check_flags, digest_of, fixed_order
from common import pick_device, read_lines, read_tsv, run, say, warn, write_atomic

DEFAULT_N = 20_000  # rows, in the middle of the paper's 5K to 50K: a day of a CPU, or a bill
BATCH_TOKENS = {"cpu": 1_024, "cuda": 8_192, "mps": 2_048}  # small: each beam has its own logits
CHUNK = {"cpu": 256, "cuda": 2_048, "mps": 512}  # sentences between saves: what a killed run loses

# Names of a language: ISO 639-1 (and its withdrawn code), NLLB's, others. The first that fits counts.
NAMES = """
af/afr ak/aka am/amh an/arg ar/arb/ara as/asm av/ava ay/ayr/aym az/azj/aze/aze_Latn ba/bak be/bel
bg/bul bm/bam bn/ben bo/bod br/bre bs/bos/bos_Latn ca/cat ce/che co/cos cs/ces cv/chv cy/cym da/dan
de/deu dv/div dz/dzo ee/ewe el/ell en/eng eo/epo es/spa et/est/ekk eu/eus fa/pes/fas ff/fuv/ful
fi/fin fj/fij fo/fao fr/fra fy/fry ga/gle gd/gla gl/glg gn/grn gu/guj gv/glv ha/hau he/iw/heb hi/hin
hr/hrv ht/hat hu/hun hy/hye id/in/ind ig/ibo is/isl it/ita ja/jpn jv/jw/jav ka/kat kg/kon ki/kik
kk/kaz/kaz_Cyrl kl/kal km/khm kn/kan ko/kor kr/knc_Latn/kau ks/kas_Arab/kas ku/kmr/kur/kur_Latn
kv/kom kw/cor ky/kir/kir_Cyrl la/lat lb/ltz lg/lug li/lim ln/lin lo/lao lt/lit lv/lvs/lav mg/plt/mlg
mi/mri mk/mkd ml/mal mn/khk/mon mr/mar ms/zsm/msa mt/mlt my/mya no/nb/nob/nor ne/npi/nep nl/nld
nn/nno ns/nso ny/nya oc/oci om/gaz/orm or/ory/ori os/oss pa/pan/pan_Guru pl/pol ps/pbt/pus pt/por
qu/quy/que rm/roh rn/run ro/mo/ron ru/rus rw/kin sa/san sc/srd sd/snd se/sme sg/sag si/sin sk/slk
sl/slv sm/smo sn/sna so/som sq/als/sqi sr/srp_Cyrl/srp ss/ssw st/sot su/sun sv/swe sw/swh/swa ta/tam
te/tel tg/tgk th/tha ti/tir tk/tuk/tuk_Latn tl/fil/tgl tn/tsn to/ton tr/tur ts/tso tt/tat tw/twi
ty/tah ug/uig uk/ukr ur/urd uz/uzn/uzb/uzb_Latn ve/ven vi/vie wa/wln wo/wol xh/xho yi/ji/ydd/yid
yo/yor zh/zho_Hans/zho/cmn_Hans/cmn zu/zul
"""


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
    job("--merge", metavar="FILE", help="read them back, column translation [translation_b] added")
    flag("--lang-code", help="the model's own code of the language (default: found by --lang)")
    flag("--beams", type=int, default=4, help="beams; 1 is faster and worse (default: 4)")
    flag("--max-new-tokens", type=int, default=256, help="longest translation (default: 256)")
    flag("--batch-tokens", type=int, help=f"tokens per batch (default: {BATCH_TOKENS})")
    flag("--skip", action="store_true", help="--merge: leave out rows without a translation")
    flag("--force", action="store_true", help="replace a file that these settings did not make")
    flag("--device", help="cuda, cuda:1, mps or cpu (default: first accelerator, else cpu)")
    amp = "mixed precision (default: bf16 if native, else fp16 on CUDA, else off)"
    flag("--amp", choices=("off", "bf16", "fp16"), help=amp)
    args = p.parse_args(argv)
    check_flags(args)
    if args.lang == "en" and not args.export:
        raise UserError("--lang: give the target language, not en, such as --lang ko")
    return args


# The model and its languages
def names_of(lang):
    """Return the names that models have for a language, the given one first."""
    groups = [group.split("/") for group in NAMES.split()]
    return [lang, *next((group for group in groups if lang in group), [])]


def find_code(codes, lang, flag="--lang"):
    """Return the code that means `lang`: one of its names, or the only one that begins with one."""
    names = names_of(lang)
    found = [name for name in names if name in codes][:1]
    found = found or [code for code in codes if code.split("_")[0] in names]
    if len(found) == 1:
        return found[0]
    heads = {code.split("_")[0]: code for code in codes if code[0] == lang[0]}
    close = found or [heads[head] for head in difflib.get_close_matches(lang, heads, 5, 0)]
    raise UserError(
        f"{flag} {lang}: {len(found) or 'none'} of the model's {len(codes)} languages; give the "
        f"model's own code with --lang-code (close: {' '.join(close) or 'none'})"
    )


def language_table(tokenizer):
    """Return ({code: id of its token}, form of that token if it stands before a source, else "")."""
    table = getattr(tokenizer, "lang_code_to_id", {})  # M2M100, mBART-50
    for token in tokenizer.all_special_tokens if not table else ():
        if re.fullmatch("[a-z]{3}_[A-Z][a-z]{3}", token):  # NLLB
            table[token] = tokenizer.convert_tokens_to_ids(token)
    if table:
        return table, ""
    for form in (">>{}<<", "<2{}>"):  # opus-mt, MADLAD-400
        code = re.compile(form.format("(.+)"))
        found = ((code.fullmatch(token), i) for token, i in tokenizer.get_vocab().items())
        if table := {match[1]: i for match, i in found if match}:
            return table, form
    return {}, ""


def use_own_file(tokenizer, file, texts):
    """Replace the parts of a tokenizer that splits texts otherwise than its tokenizer.json does.

    transformers builds some classes, such as T5's, from the vocabulary alone. They lose the file's
    unknown token, byte fallback or normalisation."""
    if not file.exists():
        return
    own = Tokenizer.from_file(str(file))
    own.no_padding()
    own.no_truncation()
    texts = [
        *texts,
        "\ufb01 \u2460 \uff76\u3099 \uac00",
    ]  # rare letters, on which they often differ
    expected = [out.ids for out in own.encode_batch(texts, add_special_tokens=False)]
    if tokenizer(texts, add_special_tokens=False).input_ids != expected:
        say(f"{type(tokenizer).__name__} differs from {file}, which is used")
        for part in ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
            setattr(tokenizer.backend_tokenizer, part, getattr(own, part))


def load_model(name, texts):
    """Return (model in fp32, tokenizer, folder) of a hub name or folder. Raises UserError if weights
    are missing, or a tokenizer that knows the words of `texts`."""
    warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
    options = {"dtype": torch.float32, "trust_remote_code": False, "output_loading_info": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        folder = Path(cached_file(name, "config.json")).parent  # of a hub name: the local snapshot
        use_own_file(tokenizer, folder / "tokenizer.json", texts)
        model, loaded = AutoModelForSeq2SeqLM.from_pretrained(name, **options)
        if missing := sorted(loaded["missing_keys"]):  # tied weights are not among them
            raise ValueError(f"its file lacks {len(missing)} weights, such as {missing[0]}")
        rows, unknown = tokenizer(texts, padding=True).input_ids, tokenizer.unk_token_id
        if sum(ids.count(unknown) for ids in rows) > len(" ".join(texts).split()) / 2:
            raise ValueError("its tokenizer does not know most words; are its files complete?")
    except Exception as err:  # hub, files and classes raise many types
        why = " ".join(str(err).split()).split(". ")[0][:200]
        hint = "give a translation model; some need pip install sentencepiece protobuf"
        raise UserError(f"--model {name}: {why}; {hint}")
    return model, tokenizer, folder


def model_digest(folder):
    """Return the digest of the files in a model's folder on which translations depend."""
    kinds = ".json", ".safetensors", ".bin", ".model", ".spm"
    paths = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    files = [np.memmap(path, mode="r") for path in paths if path.stat().st_size]
    return digest_of(*(hashlib.sha256(file).digest() for file in files))


class Translator:
    """A translation model with its target language set."""

    def __init__(self, args, texts):
        self.device, self.dtype, self.machine = pick_device(args)
        self.model, self.tokenizer, self.folder = load_model(args.model, texts)
        self.model.to(self.device).eval()
        positions = getattr(self.model.config, "max_position_embeddings", None) or 512
        self.max_len = min(positions, self.tokenizer.model_max_length)  # tokens of a source
        self.options = {"num_beams": args.beams, "do_sample": False}
        self.options["max_new_tokens"] = min(args.max_new_tokens, positions - 1)

        self.prefix, self.code = "", "its one language"
        codes, form = language_table(self.tokenizer)
        if not codes:
            target = getattr(self.tokenizer, "target_lang", None) or args.lang
            if args.lang_code or target not in names_of(args.lang):
                warn(f"{args.model} has no language codes: it translates into {target!r} only")
            return
        flag = "--lang-code" if args.lang_code else "--lang"
        self.code = needed = find_code(codes, args.lang_code or args.lang, flag)
        if form:
            self.prefix = form.format(self.code) + " "
        else:
            self.options["forced_bos_token_id"] = codes[self.code]
            self.tokenizer.src_lang = needed = find_code(codes, "en")
        if codes[needed] not in self.tokenizer(f"{self.prefix}a").input_ids:
            why = f"its tokenizer does not write {needed} into a source; give another model"
            raise UserError(f"--model {args.model}: {why}")

    @torch.no_grad()
    def generate(self, sentences):
        """Translate a batch; return [[translation, whether it or its source was cut], ...]."""
        pad_id, options = self.tokenizer.pad_token_id, {"padding_side": "right", "padding": True}
        options |= {"truncation": True, "max_length": self.max_len, "return_tensors": "pt"}
        batch = self.tokenizer([self.prefix + text for text in sentences], **options)
        batch = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            out = self.model.generate(**batch, **self.options, pad_token_id=pad_id)  # (B, T)
        cut = batch["attention_mask"].sum(1) >= self.max_len
        cut |= (out[:, 1:] != pad_id).sum(1) >= self.options["max_new_tokens"]
        skip = 2 if "forced_bos_token_id" in self.options else 1  # tokens that start a translation
        texts = self.tokenizer.batch_decode(out[:, skip:], skip_special_tokens=True)
        return [[compose(text), is_cut] for text, is_cut in zip(texts, cut.tolist())]


def compose(text):
    """Return text composed (NFC), white space as one space, tokens such as <0xEA> as their bytes."""
    spell = lambda found: bytes.fromhex(re.sub("<0x|>", "", found[0])).decode("utf-8", "ignore")
    text = re.sub("(<0x[0-9A-F]{2}>)+", spell, text)
    return unicodedata.normalize("NFC", " ".join(text.split()))


class Work:
    """Finished work of one model and its options, kept in translated.<key>.json.

    done: sentence -> [translation, whether it was cut]; wrote: digests of the files written."""

    def __init__(self, args, **settings):
        self.target = Path(args.data, args.task, args.lang, "translated.tsv")
        key = digest_of(json.dumps(settings, sort_keys=True).encode())[:8]
        self.path = self.target.with_name(f"translated.{key}.json")
        self.record = {"settings": settings, "done": {}, "wrote": []}
        if self.path.exists():
            self.record = json.loads(self.path.read_text("utf-8"))
        self.done = self.record["done"]
        old = [digest_of(self.target.read_bytes())] if self.target.exists() else []
        if not args.force and not set(old) <= set(self.record["wrote"]):
            why = "was not made by this model and options, or was changed since"
            raise UserError(f"{self.target} {why}; move it away, or replace it with --force")

    def save(self):
        write_atomic(self.path, json.dumps(self.record, ensure_ascii=False).encode())

    def write_target(self, header, pairs):
        """Write (row, translations) pairs so that the first n that step 2 takes are the first n."""
        table = [None] * len(pairs)
        for place, (row, translations) in zip(fixed_order(len(pairs)), pairs):
            table[place] = [*row, *translations]
        content = tsv([header, *table])
        self.record["wrote"].append(digest_of(content))
        self.save()  # first, so that a kill in between does not lead to --force
        write_atomic(self.target, content)


def translate(sentences, work, translator, budget=None):
    """Translate what `work` lacks. Chunks have fixed ends, so that a resumed run has equal batches."""
    device = translator.device.type
    size, budget = CHUNK[device], budget or BATCH_TOKENS[device]
    left = sum(text not in work.done for text in sentences)
    with bar(desc="translate", total=left, unit="sentence") as progress:
        for start in range(0, len(sentences), size):
            chunk = [text for text in sentences[start : start + size] if text not in work.done]
            # about 3 letters per English token, and room to generate: 32 tokens for a short text
            for index in batches([len(text) // 3 + 32 for text in chunk], budget):
                batch = [chunk[i] for i in index]
                work.done.update(zip(batch, translator.generate(batch)))
                progress.update(len(index))
            if chunk:
                work.save()


# train.tsv, translated.tsv and the exported file
def load_rows(args):
    """Return (header of translated.tsv, {id: (label, text [, text_b])} of the n rows in order).

    The id is the line in train.tsv. Of rows with the same text the first counts."""
    path = Path(args.data, args.task, "en", "train.tsv")
    rows = {}  # texts -> (id, row)
    for line, row in enumerate(read_tsv(path, *ROWS), 2):
        rows.setdefault(row[1:], (str(line), row))
    rows = list(rows.values())
    if args.n and args.n > len(rows):
        raise UserError(f"--n {args.n}: {path} has {len(rows)} distinct rows; use --n {len(rows)}")
    header = PAIRS[len(rows[0][1]) - 2].split()
    return header, dict(rows[i] for i in fixed_order(len(rows))[: args.n or DEFAULT_N])


def tsv(table):
    return "".join("\t".join(cells) + "\n" for cells in table).encode()


def doubts_of(sources, translations):
    """Return warnings about copied, equal, too long or short translations, and an LLM's preamble."""
    pairs, doubts = dict(zip(sources, translations)), []

    def doubt(texts, words):
        if len(texts) > max(2, 0.02 * len(pairs)):  # fewer are normal
            doubts.append(f"{len(texts)} of {len(pairs)} translations {words}")

    def shared(texts, share):  # the longest beginning that this share of the texts has
        texts, count = sorted(texts), max(5, int(share * len(texts)))
        return max(map(os.path.commonprefix, zip(texts, texts[count - 1 :])), key=len, default="")

    doubt([b for a, b in pairs.items() if a.casefold() in b.casefold()], "repeat their source")
    text, count = Counter(pairs.values()).most_common(1)[0]
    doubt([text] * count, f"are the same, {text[:50]!r}")
    ratio = median(len(b) / len(a) for a, b in pairs.items())
    odd = [b for a, b in pairs.items() if not 1 / 3 < (len(b) + 20) / (ratio * len(a) + 20) < 3]
    doubt(odd, f"are three times too long or short, such as {''.join(odd[:1])[:50]!r}")
    everywhere = Counter(word for a in pairs for word in set(a.split()))
    for place, step, least in (("begin", 1, 1), ("end", -1, 10)):
        source_of = {b[::step]: a for a, b in pairs.items()}
        # share of the translations -> length that natural language does not share
        for share, length in {0.9: 1, 0.5: 3, 0.2: 8, 0.1: 10, 0.05: 16}.items():
            words = shared(source_of, share)
            if len(words) < max(length, least):
                continue
            group = [a for b, a in source_of.items() if b.startswith(words)]
            own = max(len(shared([a[::way] for a in group], 0.5)) for way in (1, -1))
            inside = Counter(word for a in group for word in set(a.split()))
            usual = {w: max(0.5, 2 * everywhere[w] / len(pairs)) * len(group) for w in inside}
            explained = any(inside[word] > usual[word] for word in inside)
            if len(words) > 1.5 * ratio * own and not explained:
                doubt(group, f"{place} with {words[::step][:50]!r}")
                break
    return doubts


# The three jobs
def export(args, header, rows):
    """Write the n rows with their ids: the first 5000 of 20000 are those of --n 5000."""
    if Path(args.export).exists() and not args.force:
        raise UserError(f"{args.export} exists; give another name, or --force")
    width, size = len(header) // 2 + 1, sum(len(text) for row in rows.values() for text in row[1:])
    table = [["id", *header[:width]], *([key, *row] for key, row in rows.items())]
    write_atomic(args.export, tsv(table))
    say(f"export | {len(rows)} rows, {size:,} characters -> {args.export}")
    column = " and ".join(header[width:])
    say(f"add the column {column} and read the file back with --merge and --n {len(rows)}")


def merge(args, header, rows):
    """Return (Work, {id: translations}) of an exported file handed back, after checking each line."""
    work, path = Work(args, made_by="merge"), args.merge
    columns, *lines = [line.split("\t") for line in read_lines(path)]
    names = ["id", *header[1:]]
    if [name for name in names if columns.count(name) != 1]:
        raise UserError(f"{path}:1: columns {columns}; it needs each of {names} once")
    found = {}
    for number, cells in enumerate(lines, 2):
        where = f"{path}:{number}"
        if len(cells) != len(columns):
            raise UserError(f"{where}: {len(cells)} columns, not {len(columns)}; one row per line")
        cell = dict(zip(columns, map(compose, cells)))
        key, *texts = [cell[name] for name in names]
        if key not in rows or key in found:
            why = "occurs twice" if key in found else f"is not among the {len(rows)} rows"
            hint = "leave the ids as exported, and give the --n of the export"
            raise UserError(f"{where}: id {key!r} {why}; {hint}")
        row = rows[key][1:]
        for text, exported in zip(texts, row):
            if text != compose(exported):
                why = f"{text[:40]!r} is {exported[:40]!r} in train.tsv"
                raise UserError(f"{where}: {why}; leave it as exported, without quotes around it")
        found[key] = texts[len(row) :]
    return work, found


def by_model(args, header, rows):
    """Return (Work, {id: translations}) of a translation model."""
    sentences = list(dict.fromkeys(text for row in rows.values() for text in row[1:]))
    translator = Translator(args, sentences[:1_000])
    settings = {name: getattr(args, name) for name in ("lang", "lang_code", "beams", "amp")}
    settings |= {"model": model_digest(translator.folder), "max_new_tokens": args.max_new_tokens}
    work = Work(args, **settings)
    done = sum(text in work.done for text in sentences)
    say(f"{translator.machine} | {args.model}: English to {translator.code}")
    say(f"{len(rows)} rows, {len(sentences)} distinct sentences, {done} done before")
    try:
        translate(sentences, work, translator, args.batch_tokens)
    except torch.OutOfMemoryError:
        raise UserError(f"out of memory on {translator.device}; lower --batch-tokens or --beams")
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command continues from the last save")
    if cut := sum(work.done[text][1] for text in sentences):
        hint = f"raise --max-new-tokens {args.max_new_tokens}"
        hint += f", or shorten texts of over {translator.max_len} tokens"
        warn(f"{cut} translations or their sources were cut; {hint}")
    return work, {key: [work.done[text][0] for text in row[1:]] for key, row in rows.items()}


def main(argv=None):
    args = get_args(argv)
    header, rows = load_rows(args)
    if args.export:
        return export(args, header, rows)
    work, found = (merge if args.merge else by_model)(args, header, rows)
    lacking = [key for key in rows if not all(found.get(key, [""]))]
    pairs = [(row, found[key]) for key, row in rows.items() if all(found.get(key, [""]))]
    if not pairs or (lacking and args.merge and not args.skip):
        why = f"{len(lacking)} of {len(rows)} rows have no translation, ids {' '.join(lacking[:5])}"
        hint = "fill them in, give the --n of the export, or leave them out with --skip"
        raise UserError(f"{args.merge}: {why}; {hint}" if args.merge else f"{why}; try --amp off")
    if lacking:
        warn(f"{len(lacking)} of {len(rows)} rows are left out, since they have no translation")
    work.write_target(header, pairs)
    for row, translations in pairs[:3]:
        say(f"  {' / '.join(row[1:])}\n    -> {' / '.join(translations)}")
    both = [pair for row, translations in pairs for pair in zip(row[1:], translations)]
    for doubt in doubts_of(*zip(*both)):
        warn(f"{doubt}; translate such rows again, or leave them out (--merge --skip)")
    say(f"{len(pairs)} rows -> {work.target}")


if __name__ == "__main__":
    run(main)
