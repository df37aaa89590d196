"""Translate n rows of your own English train.tsv into the translated.tsv that step 2 trains on.

    python data/translate.py --data data/mine --task topics --lang ko --model facebook/nllb-200-distilled-600M
    python data/translate.py --data data/mine --task topics --export rows.tsv  # for an LLM ...
    python data/translate.py --data data/mine --task topics --lang ko --merge rows-ko.tsv  # ... and back

Reads    <data>/<task>/en/train.tsv; with --merge the file of --export, translations added.
Writes   <data>/<task>/<lang>/translated.tsv (see data/README.md) and, beside it, translated.<key>.jsonl,
         the finished work of one model and its options: a stopped run or a larger --n goes on from it.
Expect   hardly a translation that is its source or that many share, and three examples to judge.

--n takes the first n rows of train.tsv in the fixed order that step 2's --n uses, and translated.tsv
keeps that order: from a file of 20000 rows, step 2 --n 5000 takes the rows that --n 5000 would have
translated. Rows with the same text count once; a pair task's text and text_b are translated apart, a
sentence that recurs only once; text is composed (NFC). Models: opus-mt (Marian), NLLB, M2M100,
mBART-50, MADLAD-400, others of one pair of languages.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import time
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import (
    ROWS,
    UserError,
    batches,
    fixed_order,
    pad,
    pick_device,
    read_lines,
    read_tsv,
    run,
    write_atomic,
)

# Each beam has logits over a whole vocabulary, so batches are small.
BATCH_TOKENS = {"cpu": 1_024, "cuda": 8_192, "mps": 2_048}
DEFAULT_N = 20_000  # rows, in the middle of the paper's 5K to 50K: a day of a CPU, or a bill
CHUNK = {"cpu": 256, "cuda": 2_048, "mps": 512}  # sentences between savings: a killed run's loss
OUTPUT_TOKENS = (
    32  # counted besides a sentence's own: short ones have a translation to be written, too
)
WARN = 0.02  # share of sentences left as they were, or translated alike, that is a warning
UNKNOWN = 0.5  # unknown tokens per word above which tokenizer files are missing
SHOWN = 5  # ids, lines or codes that a message names
TOKENIZER = "its tokenizer needs tokenizer.json, or *.model and pip install sentencepiece protobuf"

# A multilingual model is told the language by a token of its vocabulary; group 1 is the code.
BEFORE_SOURCE = (r">>(\w+)<<", r"<2([a-z]{2,3}(?:_\w+)?)>")  # opus-mt, MADLAD-400
M2M100, NLLB, MBART = r"__([a-z]{2,3})__", r"([a-z]{3}_[A-Z][a-z]{3})", r"([a-z]{2}_[A-Z]{2})"
CODES = """
af:afr_Latn am:amh_Ethi ar:arb_Arab as:asm_Beng az:azj_Latn be:bel_Cyrl bg:bul_Cyrl bn:ben_Beng
bs:bos_Latn ca:cat_Latn cs:ces_Latn cy:cym_Latn da:dan_Latn de:deu_Latn el:ell_Grek en:eng_Latn
es:spa_Latn et:est_Latn eu:eus_Latn fa:pes_Arab fi:fin_Latn fr:fra_Latn ga:gle_Latn gl:glg_Latn
gu:guj_Gujr ha:hau_Latn he:heb_Hebr hi:hin_Deva hr:hrv_Latn hu:hun_Latn hy:hye_Armn id:ind_Latn
ig:ibo_Latn is:isl_Latn it:ita_Latn ja:jpn_Jpan jv:jav_Latn ka:kat_Geor kk:kaz_Cyrl km:khm_Khmr
kn:kan_Knda ko:kor_Hang ky:kir_Cyrl lo:lao_Laoo lt:lit_Latn lv:lvs_Latn mk:mkd_Cyrl ml:mal_Mlym
mn:khk_Cyrl mr:mar_Deva ms:zsm_Latn mt:mlt_Latn my:mya_Mymr ne:npi_Deva nl:nld_Latn no:nob_Latn
or:ory_Orya pa:pan_Guru pl:pol_Latn ps:pbt_Arab pt:por_Latn ro:ron_Latn ru:rus_Cyrl rw:kin_Latn
sd:snd_Arab si:sin_Sinh sk:slk_Latn sl:slv_Latn sn:sna_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl
su:sun_Latn sv:swe_Latn sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai tl:tgl_Latn
tr:tur_Latn ug:uig_Arab uk:ukr_Cyrl ur:urd_Arab uz:uzn_Latn vi:vie_Latn xh:xho_Latn yo:yor_Latn
zh:zho_Hans zu:zul_Latn
"""
FLORES = dict(pair.split(":") for pair in CODES.split())  # ISO 639-1 -> NLLB's code
OTHER_NAMES = {"zh": "cmn_Hans", "ar": "ara"}  # opus-mt's, where they are neither of these


def positive(text):
    """argparse type: an int of 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def device(text):
    """argparse type: a torch.device."""
    try:
        return torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of cuda, cuda:1, mps or cpu")


def get_args(argv=None):
    p = argparse.ArgumentParser(
        prog="data/translate.py",
        description=__doc__,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = p.add_argument
    flag("--data", required=True, help="data root, holds <task>/en/train.tsv")
    flag("--task", required=True, help="task folder under the data root")
    flag("--lang", help="target language, ISO 639-1: names the folder and asks the model: ko")
    flag("--n", type=positive, help=f"rows, else {DEFAULT_N}, or all if fewer (paper: 5K-50K)")
    job = p.add_mutually_exclusive_group(required=True).add_argument
    job("--model", help="translation model, hub name or folder; work is kept by this name")
    job("--export", metavar="FILE", help="write the n rows, with ids, to translate elsewhere")
    job("--merge", metavar="FILE", help="read them back, with translation [translation_b] added")
    flag("--lang-code", help="the model's own code of the language, where --lang does not tell it")
    flag("--beams", type=positive, default=4, help="of beam search (ours: 4); 1: faster, worse")
    flag("--max-new-tokens", type=positive, default=256, help="longer are cut (ours: 256)")
    flag("--batch-tokens", type=positive, help=f"of a batch, else {BATCH_TOKENS}")
    flag("--skip", action="store_true", help="--merge: leave out rows that have no translation")
    flag("--force", action="store_true", help="replace a file that these settings did not make")
    flag("--device", type=device, help="cuda, cuda:1, mps or cpu; else the first that is there")
    amp = "precision (default: bf16 if native, else fp16 on CUDA, fp32 elsewhere)"
    flag("--amp", choices=("off", "bf16", "fp16"), help=amp)
    args = p.parse_args(argv)
    if not args.export and (args.lang == "en" or not re.fullmatch(r"[\w-]+", args.lang or "")):
        p.error(f"--lang {args.lang or ''}: give the target language, not en, such as --lang ko")
    return args


# The model and its languages
def language_tokens(tokenizer):
    """({code: token}, does it stand before the source); no codes if the model has one pair."""
    vocabulary = tokenizer.get_vocab() | getattr(tokenizer, "lang_token_to_id", {})
    best = {}, False
    for form in (*BEFORE_SOURCE, M2M100, NLLB, MBART):
        found = {match[1]: token for token in vocabulary if (match := re.fullmatch(form, token))}
        if len(found) > len(best[0]):
            best = found, form in BEFORE_SOURCE
    return best


def find_code(codes, lang, flag="--lang"):
    """The code that means `lang`: the same, its FLORES name, or the one that begins with it."""
    flores = FLORES.get(lang, lang)
    names = [lang, flores, flores.split("_")[0], OTHER_NAMES.get(lang)]
    same = [name for name in names if name in codes]
    begin = [code for code in codes if code.split("_")[0] in names]
    if same or len(begin) == 1:
        return (same or begin)[0]
    near = sorted(codes, key=lambda code: (code not in begin, code[:2] != lang[:2], code))[:SHOWN]
    raise UserError(
        f"{flag} {lang}: {len(begin) or 'none'} of the model's {len(codes)} languages; give the "
        f"model's own code with --lang-code, such as {' '.join(near)}"
    )


def load_model(name):
    """(model in fp32, tokenizer) of a hub name or a folder; UserError if they are not whole."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, loaded = AutoModelForSeq2SeqLM.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as err:
        why = " ".join(str(err).split())
        if Path(name).is_dir() and not Path(name, "config.json").is_file():
            why = "a folder without config.json"
        elif re.search("sentencepiece|protobuf|tiktoken|AutoTokenizer", why, re.IGNORECASE):
            raise UserError(f"--model {name}: {TOKENIZER}")
        why = f"{why.split('. ')[0][:200]}; give a translation model's hub name or folder"
        raise UserError(f"--model {name}: {why}")
    if missing := sorted(loaded["missing_keys"]):  # tied ones are not among them
        raise UserError(
            f"--model {name}: its file lacks {len(missing)} of the model's weights, such as "
            f"{missing[0]}; get it again, or give another translation model"
        )
    if tokenizer.pad_token_id is None:
        why = "its tokenizer has no padding token; give another translation model"
        raise UserError(f"--model {name}: {why}")
    return model, tokenizer


class Translator:
    """A sequence-to-sequence model that knows the languages: sentences in, translations out."""

    def __init__(self, args, device, dtype):
        self.args, self.device, self.dtype = args, device, dtype
        self.model, self.tokenizer = load_model(args.model)
        self.model.to(device).eval()  # weights keep requires_grad: autocast caches only such casts
        positions = getattr(self.model.config, "max_position_embeddings", None) or 512
        self.max_len = min(positions, self.tokenizer.model_max_length)
        self.limit = min(args.max_new_tokens, positions - 1)
        self.prefix = ""  # text before a source
        self.first = None  # id that starts a target
        self.told = ""  # the model's code of the language
        codes, before = language_tokens(self.tokenizer)
        other = getattr(self.tokenizer, "target_lang", None) or args.lang
        if codes:
            self.tell(codes, before)
        elif args.lang_code:
            raise UserError(f"--lang-code: {args.model} translates one pair; leave it out")
        elif other != args.lang:
            print(f"warning: {args.model} says that it translates into {other!r}")

    def tell(self, codes, before):
        """Set what tells the model the languages, and see that a source text gets its token."""
        flag = "--lang-code" if self.args.lang_code else "--lang"
        self.told = find_code(codes, self.args.lang_code or self.args.lang, flag)
        marker = codes[self.told]
        if before:
            self.prefix = f"{marker} "
        else:
            self.first = self.tokenizer.convert_tokens_to_ids(marker)
            english = find_code(codes, "en")
            marker = codes[english]
            if hasattr(self.tokenizer, "src_lang"):
                self.tokenizer.src_lang = english
        source = self.tokenizer(self.prefix + "a").input_ids
        if self.tokenizer.convert_tokens_to_ids(marker) not in source:
            why = f"its tokenizer does not write {marker} into a source; give another model"
            raise UserError(f"--model {self.args.model}: {why}")

    def tokenize(self, sentences):
        """One {"input_ids": [...]} a sentence, with what belongs around it, cut to max_len."""
        texts = [self.prefix + sentence for sentence in sentences]
        out = self.tokenizer(texts, truncation=True, max_length=self.max_len)
        return [{"input_ids": ids} for ids in out["input_ids"]]

    def check(self, sentences):
        """UserError if most words are unknown: transformers makes one up for missing files."""
        unknown = sum(
            row["input_ids"].count(self.tokenizer.unk_token_id) for row in self.tokenize(sentences)
        )
        if unknown > UNKNOWN * sum(len(sentence.split()) for sentence in sentences):
            raise UserError(f"--model {self.args.model}: most words are unknown to it; {TOKENIZER}")

    @torch.no_grad()
    def generate(self, rows):
        """Tokenised rows -> [(translation, was it cut)], one batch."""
        pad_id = self.tokenizer.pad_token_id
        options = {"num_beams": self.args.beams, "do_sample": False, "pad_token_id": pad_id}
        if self.first is not None:
            options["forced_bos_token_id"] = self.first
        batch = pad(rows, self.tokenizer, self.device)
        out = self.model.generate(**batch, max_new_tokens=self.limit, **options)  # (B, T)
        out = out[:, 1:]  # without the token that starts a decoder
        cut = (out != pad_id).sum(1) >= self.limit
        out = out if self.first is None else out[:, 1:]
        texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
        return [(compose(text), is_cut) for text, is_cut in zip(texts, cut.tolist())]


def compose(text):
    """Composed (NFC), any run of white space as one space."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


# Finished work
def file_digest(content):
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class Progress:
    """Finished work, a JSON object a line: {"chunk": [[sentence, translation, was it cut], ...]}
    or {"wrote": digest of a translated.tsv}. A line that a killed run left half is passed over."""

    def __init__(self, target, **settings):
        self.target = target
        key = file_digest(json.dumps(settings, sort_keys=True).encode())[:8]
        self.path = target.with_name(f"translated.{key}.jsonl")
        self.done = {}  # sentence -> (translation, was it cut)
        self.wrote = set()  # digests of files
        content = self.path.read_bytes() if self.path.exists() else b""
        self.start = "" if content else json.dumps(settings) + "\n"  # before the next record
        if content and not content.endswith(b"\n"):
            self.start = "\n"
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                self.done |= {source: (text, cut) for source, text, cut in record.get("chunk", [])}
                self.wrote.add(record.get("wrote"))

    def add(self, **record):
        """Append a record; it is on disk when this returns."""
        line = self.start + json.dumps(record, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as err:
            why = f"cannot be written ({err.strerror}); free space, the work before it is kept"
            raise UserError(f"{self.path}: {why}")
        self.start = ""

    def guard(self, force):
        """Refuse to replace a translated.tsv that did not come from these settings as it stands."""
        if force or not self.target.exists():
            return
        if file_digest(self.target.read_bytes()) not in self.wrote:
            raise UserError(
                f"{self.target} was not made by this model and options, or was changed since; "
                "move it away, or replace it with --force"
            )


def translate(sentences, progress, translator):
    """Translate what `progress` lacks, in chunks with fixed ends: a stopped run goes on alike."""
    size, chunks = CHUNK[translator.device.type], {}
    for place, sentence in enumerate(sentences):
        if sentence not in progress.done:
            chunks.setdefault(place // size, []).append(sentence)
    done = len(sentences) - sum(map(len, chunks.values()))
    sources_cut = 0
    with tqdm(
        desc="translate", total=len(sentences), initial=done, unit="sentence", delay=2, leave=False
    ) as bar:
        for chunk in chunks.values():
            rows = translator.tokenize(chunk)
            sources_cut += sum(len(row["input_ids"]) >= translator.max_len for row in rows)
            out = translate_chunk(rows, translator, bar)
            progress.add(chunk=[[source, *target] for source, target in zip(chunk, out)])
            progress.done |= dict(zip(chunk, out))
    if sources_cut:
        print(
            f"warning: {sources_cut} sentences reach the {translator.max_len} tokens that the "
            "model takes, and are cut there"
        )


def translate_chunk(rows, translator, bar):
    """Tokenised rows -> [(translation, was it cut)] in the same order."""
    out, device, dtype = [None] * len(rows), translator.device, translator.dtype
    budget = translator.args.batch_tokens or BATCH_TOKENS[device.type]
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for index in batches([len(row["input_ids"]) + OUTPUT_TOKENS for row in rows], budget):
            try:
                texts = translator.generate([rows[i] for i in index])
            except torch.OutOfMemoryError:
                raise UserError(
                    f"out of memory on {device}; lower --batch-tokens {budget} or --beams"
                )
            for i, text in zip(index, texts):
                out[i] = text
            bar.update(len(index))
    return out


# train.tsv, translated.tsv and the files handed out
def load_rows(args):
    """(["text" [, "text_b"]], {id: (label, text [, text_b])}) of the n rows, in step 2's order.

    The id is the row's line in train.tsv. Of rows with the same text the first counts."""
    path = Path(args.data, args.task, "en", "train.tsv")
    rows = {}  # texts -> (id, row)
    for line, row in enumerate(read_tsv(path, *ROWS), 2):
        row = tuple(unicodedata.normalize("NFC", cell) for cell in row)
        rows.setdefault(row[1:], (str(line), row))
    rows = list(rows.values())
    if args.n and args.n > len(rows):
        raise UserError(f"--n {args.n}: {path} has {len(rows)} different rows; use --n {len(rows)}")
    columns = ["text", "text_b"][: len(rows[0][1]) - 1]
    return columns, dict(rows[i] for i in fixed_order(len(rows))[: args.n or DEFAULT_N])


def translation_names(columns):
    return [column.replace("text", "translation") for column in columns]


def tsv(table):
    return "".join("\t".join(cells) + "\n" for cells in table).encode()


def distinct(rows):
    """The different sentences of rows (label, text [, text_b]), in order of appearance."""
    return list(dict.fromkeys(sentence for row in rows for sentence in row[1:]))


def write_translated(columns, pairs, progress, force):
    """Write pairs of (row, translations) so that step 2's first n are the first n, whatever n."""
    progress.guard(force)
    table = [None] * len(pairs)
    for place, (row, translations) in zip(fixed_order(len(pairs)), pairs):
        table[place] = [*row, *translations]
    content = tsv([["label", *columns, *translation_names(columns)], *table])
    progress.add(wrote=file_digest(content))  # before the file, in case of a kill in between
    write_atomic(progress.target, content)


def report(pairs, target):
    """Print three examples and the numbers that tell whether it worked, with warnings."""
    for row, translations in pairs[:3]:
        print(f"  {' / '.join(row[1:])}\n    -> {' / '.join(translations)}")
    unique = {}  # sentence -> translation
    for row, translations in pairs:
        unique |= zip(row[1:], translations)
    total = len(unique)
    copies = sum(compose(a).casefold() == compose(b).casefold() for a, b in unique.items())
    counts = Counter(map(compose, unique.values()))
    most, shared = counts.most_common(1)[0]

    again = "is the language right? Translate them again, or leave such rows out (--merge --skip)"
    if copies > WARN * total:
        print(f"warning: {copies:,} of {total:,} translations are the source itself; {again}")
    if shared > max(2, WARN * total):
        print(
            f"warning: {shared:,} of {total:,} sentences have the translation {most[:50]!r}; {again}"
        )
    size = sum(map(len, unique))
    ratio = sum(map(len, unique.values())) / size
    print(
        f"{len(counts):,} different translations of {total:,} different sentences; {copies:,} are "
        f"the source itself; {ratio:.2f} characters for one of the source's\n"
        f"{len(pairs):,} rows of {size:,} characters -> {target}"
    )


# The three jobs
def export(args):
    """Write the n rows with their ids: the first 5000 of 20000 are those of --n 5000."""
    columns, rows = load_rows(args)
    if Path(args.export).exists() and not args.force:
        raise UserError(f"{args.export} is there already; give another name, or --force")
    content = tsv([["id", "label", *columns], *([name, *row] for name, row in rows.items())])
    write_atomic(args.export, content)
    unique = distinct(rows.values())
    print(
        f"export | {len(rows)} rows, {len(unique)} different sentences of "
        f"{sum(map(len, unique)):,} characters -> {args.export}\n"
        f"add the column {' and '.join(translation_names(columns))}, keep the others, and read the "
        f"file back with --merge and --n {len(rows)}"
    )


def read_merge(path, columns, rows):
    """({id: translations}, {id: its line if it has none}) of a file handed back, checked."""
    try:  # not read_tsv, which refuses empty cells
        header, *lines = (line.split("\t") for line in read_lines(path))
    except UserError as err:
        raise UserError(f"{str(err).split('; ')[0]}; give the export with translations, as UTF-8")
    for name in ("id", *columns, *translation_names(columns)):
        if header.count(name) != 1:
            raise UserError(
                f"{path}:1: {header.count(name) or 'no'} column {name!r} in the header {header}; "
                "keep the columns of the export and add the translations"
            )
    if not lines:
        raise UserError(f"{path}: no rows below the header; give the export with its translations")
    found, empty, seen = {}, {}, {}
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            why = f"{len(cells)} columns, not {len(header)}; one row a line"
            raise UserError(f"{path}:{number}: {why}")
        cell = dict(zip(header, map(compose, cells)))
        key, translations = cell["id"], [cell[name] for name in translation_names(columns)]
        check_merged(cell, columns, rows, seen, f"{path}:{number}")
        seen[key] = number
        if all(translations):
            found[key] = translations
        else:
            empty[key] = number
    return found, empty


def check_merged(cell, columns, rows, seen, where):
    """UserError unless a row handed back has an id of the export, its texts, and no double."""
    key = cell["id"]
    if key not in rows:
        mend = "give the --n of the export" if key.isdigit() else "leave the ids as exported"
        raise UserError(f"{where}: id {key!r} is none of the {len(rows)} rows; {mend}")
    if key in seen:
        raise UserError(f"{where}: id {key} again, as on line {seen[key]}; keep one of the two")
    for name, text in zip(columns, rows[key][1:]):
        if cell[name] != compose(text):
            raise UserError(
                f"{where}: {name} is {cell[name][:40]!r}, in train.tsv id {key} is {text[:40]!r}; "
                "leave it as exported, without quotes around it"
            )


def some(values):
    """The first few values, and how many there are, for a message."""
    values = list(map(str, values))
    more = f" ... ({len(values)} in all)" if len(values) > SHOWN else ""
    return " ".join(values[:SHOWN]) + more


def merge(args):
    """Write translated.tsv from a file of --export to which translations were added."""
    columns, rows = load_rows(args)
    target = Path(args.data, args.task, args.lang, "translated.tsv")
    progress = Progress(target, made_by="merge")
    progress.guard(args.force)
    found, empty = read_merge(args.merge, columns, rows)
    missing = [key for key in rows if key not in found and key not in empty]
    pairs = [(row, found[key]) for key, row in rows.items() if key in found]
    if empty and not args.skip:
        raise UserError(
            f"{args.merge}: no translation on line {some(empty.values())}; fill it in, or leave "
            "such rows out with --skip"
        )
    if not pairs or (missing and not args.skip):
        raise UserError(
            f"{args.merge}: of {len(rows)} rows these ids are missing: {some(missing or empty)}; "
            "give the --n of the export, add them, or leave them out with --skip"
        )
    write_translated(columns, pairs, progress, args.force)
    left_out = len(rows) - len(pairs)
    print(f"merge | {args.merge}: {len(pairs)} rows with a translation, {left_out} left out")
    report(pairs, target)


def by_model(args):
    """Write translated.tsv with a translation model."""
    columns, rows = load_rows(args)
    target = Path(args.data, args.task, args.lang, "translated.tsv")
    names = "model", "lang", "lang_code", "beams", "amp", "max_new_tokens"
    progress = Progress(target, **{name: getattr(args, name) for name in names})
    progress.guard(args.force)
    sentences = distinct(rows.values())
    left = sum(sentence not in progress.done for sentence in sentences)
    if left:
        device, dtype, machine = pick_device(args)
        translator = Translator(args, device, dtype)
        translator.check(sentences[:1_000])
        size = sum(p.numel() for p in translator.model.parameters())
        print(
            f"translate | {machine} | {args.model}: {size / 1e6:.1f}M parameters, English to "
            f"{translator.told or 'its one language'}, {args.beams} beams | {len(rows)} rows, "
            f"{len(sentences)} different sentences, {len(sentences) - left} done before",
            flush=True,
        )
        start = time.perf_counter()
        translate(sentences, progress, translator)
        seconds = time.perf_counter() - start
        print(f"{left} sentences in {seconds:.0f} s, {left / seconds:.1f} a second")

    pairs = [(row, [progress.done[text][0] for text in row[1:]]) for row in rows.values()]
    kept = [pair for pair in pairs if all(pair[1])]
    if cut := sum(progress.done[sentence][1] for sentence in sentences):
        print(f"warning: {cut} translations were cut; raise --max-new-tokens {args.max_new_tokens}")
    if len(kept) < len(pairs):
        print(f"warning: {len(pairs) - len(kept)} rows are left out, their translation is empty")
    if not kept:
        raise UserError(f"--model {args.model}: all translations are empty; try --amp off")
    write_translated(columns, kept, progress, args.force)
    report(kept, target)


def main(argv=None):
    args = get_args(argv)
    if args.export:
        export(args)
    elif args.merge:
        merge(args)
    else:
        by_model(args)


if __name__ == "__main__":
    run(main)
