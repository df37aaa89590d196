"""Translate n rows of your own English train.tsv into the translated.tsv that step 2 of LangAlign trains on.

    python data/translate.py --data data/mine --task topics --lang ko --model facebook/nllb-200-distilled-600M
    python data/translate.py --data data/mine --task topics --export rows.tsv                 # for an LLM ...
    python data/translate.py --data data/mine --task topics --lang ko --merge rows-ko.tsv     # ... and back

Reads    <data>/<task>/en/train.tsv; with --merge the file of --export, translations added.
Writes   <data>/<task>/<lang>/translated.tsv (formats: data/README.md), and beside it translated.<key>.jsonl,
         the finished work of one model and its options: a stopped run, or a larger --n, goes on from it.
Expect   next to no translation identical to its source, and three examples that you can judge.

--n takes the first n rows of train.tsv in the fixed order that step 2's --n uses, and translated.tsv keeps
that order: from a file of 20000 rows, step 2 --n 5000 takes the rows that --n 5000 would have translated.
A pair task's text and text_b are translated separately, a sentence that recurs only once.
Models: opus-mt (Marian), NLLB, M2M100, mBART-50, MADLAD-400, other sequence-to-sequence models of one pair.
"""
import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import (DEFAULT_N, ROWS, UserError, batches, digest, fixed_order, pad,  # noqa: E402
                    pick_device, positive, read_lines, read_tsv, run, write_whole)

BATCH_TOKENS = {"cpu": 1_024, "cuda": 8_192, "mps": 2_048}   # each beam has logits over a whole vocabulary
CHUNK = {"cpu": 256, "cuda": 2_048, "mps": 512}              # sentences between savings: a killed run's loss
OUTPUT_TOKENS = 32     # counted besides a sentence's tokens: a short one has a translation to be written too
WARN_SAME = 0.1        # above: so many sentences come back as they were that the language may be wrong
SHOWN = 5              # ids, lines or codes that a message names

# A multilingual model is told the language by a token of its vocabulary; group 1 is the code.
BEFORE_SOURCE = (r">>(\w+)<<", r"<2([a-z]{2,3}(?:_\w+)?)>")                # opus-mt, MADLAD-400
FIRST_OF_TARGET = (r"__([a-z]{2,3})__",                                     # M2M100, then NLLB, then mBART
                   r"([a-z]{3}_[A-Z][a-z]{3})", r"([a-z]{2}_[A-Z]{2})")
FLORES = dict(pair.split(":") for pair in """
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
    """.split())
OTHER_NAMES = {"zh": "cmn_Hans", "ar": "ara"}   # opus-mt's, where these differ from the others' names

def get_args(argv=None):
    p = argparse.ArgumentParser(prog="data/translate.py", description=__doc__, usage=argparse.SUPPRESS,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="data root, holds <task>/en/train.tsv")
    p.add_argument("--task", required=True, help="task folder under the data root")
    p.add_argument("--lang", help="target language, ISO 639-1: names the folder and asks the model, e.g. ko")
    p.add_argument("--n", type=positive, help=f"rows, else {DEFAULT_N}, or all if fewer (paper: 5K-50K)")
    job = p.add_mutually_exclusive_group(required=True)
    job.add_argument("--model", help="translation model, hub name or folder; work is kept by this name, so "
                     "give other weights another one")
    job.add_argument("--export", metavar="FILE", help="write the n rows, with ids, to translate elsewhere")
    job.add_argument("--merge", metavar="FILE", help="read them back, with translation [translation_b] added")
    p.add_argument("--lang-code", help="the model's own code of the language, where --lang does not tell it")
    p.add_argument("--beams", type=positive, default=4, help="of beam search (ours: 4); 1: faster, worse")
    p.add_argument("--max-new-tokens", type=positive, default=256, help="longer are cut (ours: 256)")
    p.add_argument("--batch-tokens", type=positive, help=f"of a batch, else {BATCH_TOKENS}")
    p.add_argument("--skip", action="store_true", help="--merge: leave out rows that have no translation")
    p.add_argument("--force", action="store_true", help="replace a file that these settings did not make")
    p.add_argument("--device", help="cuda, cuda:1, mps or cpu; without it the first of these that is there")
    p.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto",
                   help="precision; auto (default): bf16 if native, else fp16 on CUDA, fp32 elsewhere")
    args = p.parse_args(argv)
    if not args.export and args.lang in (None, "en"):
        raise UserError("--lang: give the target language, another than en, e.g. --lang ko")
    return args

# The model and its languages
def language_tokens(tokenizer):
    """({code: token}, does the token stand before the source); no codes if the model has one pair."""
    vocabulary = tokenizer.get_vocab() | getattr(tokenizer, "lang_token_to_id", {})
    best = {}, False
    for form in BEFORE_SOURCE + FIRST_OF_TARGET:
        found = {match[1]: token for token in vocabulary if (match := re.fullmatch(form, token))}
        if len(found) > len(best[0]):
            best = found, form in BEFORE_SOURCE
    return best

def find_code(codes, lang, flag="--lang"):
    """The code that means `lang`: the same, its FLORES name, or the only one with that language in front."""
    flores = FLORES.get(lang, lang)
    names = [lang, flores, flores.split("_")[0], OTHER_NAMES.get(lang)]
    same = [name for name in names if name in codes]
    begin = [code for code in codes if code.split("_")[0] in names]
    if same or len(begin) == 1:
        return (same or begin)[0]
    near = sorted(codes, key=lambda code: (code not in begin, code[:2] != lang[:2], code))[:SHOWN]
    raise UserError(f"{flag} {lang}: {len(begin) or 'none'} of the model's {len(codes)} languages; give the "
                    f"model's own code with --lang-code, such as {' '.join(near)}")

def load_model(name):
    """(model in fp32, tokenizer) from a hub name or a folder; UserError if they are none."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
    except Exception as err:                                 # hub, file and class each raise their own
        why = " ".join(str(err).split())
        vague = "AutoTokenizer" in why and not importlib.util.find_spec("sentencepiece")
        if vague or re.search("sentencepiece|protobuf|tiktoken", why, re.I):
            raise UserError(f"--model {name}: its tokenizer needs more: pip install sentencepiece protobuf")
        raise UserError(f"--model {name}: {why[:150]}; give a translation model's hub name or folder")
    if tokenizer.pad_token_id is None:
        raise UserError(f"--model {name}: its tokenizer has no padding token; give another translation model")
    return model, tokenizer

class Translator:
    """A sequence-to-sequence model that has been told the language: sentences in, translations out."""
    def __init__(self, args, device, dtype):
        self.model, self.tokenizer = load_model(args.model)
        self.model.to(device).eval()                         # parameters still require gradients: autocast
        self.args, self.device, self.dtype = args, device, dtype        # keeps its cast copies only of such
        positions = getattr(self.model.config, "max_position_embeddings", None) or 512
        self.max_len = min(positions, self.tokenizer.model_max_length)
        self.limit = min(args.max_new_tokens, positions - 1)
        self.prefix, self.first, self.told = "", None, ""    # text before a source, id that starts a target
        codes, before = language_tokens(self.tokenizer)
        if codes:
            self.tell(codes, before)
        elif args.lang_code:
            raise UserError(f"--lang-code: {args.model} has no codes, it translates one pair; leave it out")
        elif (getattr(self.tokenizer, "target_lang", None) or args.lang) != args.lang:
            print(f"warning: {args.model} says that it translates into {self.tokenizer.target_lang!r}")

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
        if self.tokenizer.convert_tokens_to_ids(marker) not in self.tokenizer(self.prefix + "a").input_ids:
            raise UserError(f"--model {self.args.model}: its tokenizer does not write {marker} into a source")

    def tokenize(self, sentences):
        """One {"input_ids": [...]} a sentence, with all that belongs around it, cut to max_len tokens."""
        rows = self.tokenizer([self.prefix + s for s in sentences], truncation=True, max_length=self.max_len)
        return [{"input_ids": ids} for ids in rows["input_ids"]]

    @torch.no_grad()
    def generate(self, rows):
        """Tokenised rows -> [[translation, was it cut]], one batch."""
        pad_id = self.tokenizer.pad_token_id
        forced = {} if self.first is None else {"forced_bos_token_id": self.first}
        batch = pad(rows, self.tokenizer, self.device)
        out = self.model.generate(**batch, num_beams=self.args.beams, do_sample=False,
                                  max_new_tokens=self.limit, pad_token_id=pad_id, **forced)
        out = out[:, 1:]                                     # without the token that starts a decoder
        cut = (out != pad_id).sum(1) >= self.limit
        texts = self.tokenizer.batch_decode(out[:, len(forced):], skip_special_tokens=True)
        return [[" ".join(text.split()), is_cut] for text, is_cut in zip(texts, cut.tolist())]

# Finished work
def file_digest(content):
    return hashlib.blake2b(content, digest_size=16).hexdigest()

class Progress:
    """Finished work, one JSON object a line: {"chunk": [[sentence, translation, was it cut], ...]}, or
    {"wrote": digest of a translated.tsv}. A line that a killed run left half is passed over."""
    def __init__(self, target, **settings):
        self.target = target
        self.path = target.with_name(f"translated.{digest(settings)[:8]}.jsonl")
        self.done, self.wrote = {}, set()                    # done: sentence -> (translation, was it cut)
        content = self.path.read_bytes() if self.path.exists() else b""
        self.start = "" if content.endswith(b"\n") else "\n" if content else json.dumps(settings) + "\n"
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
            raise UserError(f"{self.path}: cannot be written ({err.strerror}); the work before it is kept")
        self.start = ""

    def guard(self, force):
        """Refuse to replace a translated.tsv that did not come from these settings as it stands."""
        if self.target.exists() and not force and file_digest(self.target.read_bytes()) not in self.wrote:
            raise UserError(f"{self.target} was not made by this model and options, or was changed since; "
                            "move it away, or replace it with --force")

def translate(sentences, progress, translator):
    """Translate what `progress` lacks, in chunks with fixed ends: a stopped run goes on alike."""
    device, chunks = translator.device, {}
    for place, sentence in enumerate(sentences):
        if sentence not in progress.done:
            chunks.setdefault(place // CHUNK[device.type], []).append(sentence)
    left = sum(map(len, chunks.values()))
    bar = tqdm(total=len(sentences), initial=len(sentences) - left, desc="translate", unit="sentence",
               delay=2, leave=False)
    budget, sources_cut = translator.args.batch_tokens or BATCH_TOKENS[device.type], 0
    with bar, torch.autocast(device.type, translator.dtype, enabled=translator.dtype is not None):
        for part in chunks.values():
            rows, out = translator.tokenize(part), [None] * len(part)
            sources_cut += sum(len(row["input_ids"]) >= translator.max_len for row in rows)
            for index in batches([len(row["input_ids"]) + OUTPUT_TOKENS for row in rows], budget):
                try:
                    texts = translator.generate([rows[i] for i in index])
                except torch.OutOfMemoryError:
                    raise UserError(f"out of memory on {device}; lower --batch-tokens {budget} or --beams")
                for i, text in zip(index, texts):
                    out[i] = text
                bar.update(len(index))
            progress.add(chunk=[[sentence, *text] for sentence, text in zip(part, out)])
            progress.done |= {sentence: tuple(text) for sentence, text in zip(part, out)}
    if sources_cut:
        print(f"warning: {sources_cut} sentences reach the {translator.max_len} tokens that the model takes, "
              "and are cut there")

# train.tsv, translated.tsv and the files handed out
def load_rows(args):
    """(["text" [, "text_b"]], {id: (label, text [, text_b])}) of the n rows, in the fixed order of step 2.

    The id is the row's line in train.tsv, as a string."""
    path = Path(args.data, args.task, "en", "train.tsv")
    rows = read_tsv(path, *ROWS)
    if args.n and args.n > len(rows):
        raise UserError(f"--n {args.n}: {path} has {len(rows)} rows; use --n {len(rows)}, or add rows")
    columns = ["text", "text_b"][:len(rows[0]) - 1]
    return columns, {str(i + 2): rows[i] for i in fixed_order(len(rows))[:args.n or DEFAULT_N]}

def translation_names(columns):
    return [column.replace("text", "translation") for column in columns]

def tsv(table):
    return "".join("\t".join(cells) + "\n" for cells in table).encode()

def distinct(rows):
    """The different sentences of rows (label, text [, text_b]), in order of appearance."""
    return list(dict.fromkeys(sentence for row in rows for sentence in row[1:]))

def write_translated(columns, pairs, progress, force):
    """Write pairs of (row, translations) so that load_translated(n) gives the first n, whatever n."""
    progress.guard(force)
    table = [None] * len(pairs)
    for place, (row, translations) in zip(fixed_order(len(pairs)), pairs):
        table[place] = [*row, *translations]
    content = tsv([["label", *columns, *translation_names(columns)], *table])
    progress.add(wrote=file_digest(content))                 # before the file, in case of a kill in between
    write_whole(progress.target, content)

def report(pairs, target):
    """Print three examples and the numbers that tell whether it worked."""
    for row, translations in pairs[:3]:
        print(f"  {' / '.join(row[1:])}\n    -> {' / '.join(translations)}")
    unique = dict(both for row, translations in pairs for both in zip(row[1:], translations))
    same = sum(source == target for source, target in unique.items()) / len(unique)
    size, ratio = sum(map(len, unique)), sum(map(len, unique.values())) / sum(map(len, unique))
    if same > WARN_SAME:
        print(f"warning: {same:.0%} of the translations are identical to the source: is the language right?")
    print(f"{same:.1%} identical to the source, {ratio:.2f} characters for one of the source's\n"
          f"{len(pairs)} rows, {len(unique)} different sentences of {size:,} characters -> {target}")

# The three jobs
def export(args):
    """Write the n rows with their ids, in the fixed order: the first 5000 of 20000 are those of --n 5000."""
    columns, rows = load_rows(args)
    if Path(args.export).exists() and not args.force:
        raise UserError(f"{args.export} is there already; give another name, or replace it with --force")
    content = tsv([["id", "label", *columns], *([name, *row] for name, row in rows.items())])
    write_whole(args.export, content)
    unique = distinct(rows.values())
    print(f"export | {len(rows)} rows, {len(unique)} different sentences of {sum(map(len, unique)):,} "
          f"characters -> {args.export}\nadd the column {' and '.join(translation_names(columns))}, keep the "
          f"others, and read the file back with --merge and --n {len(rows)}")

def read_merge(path, columns, rows):
    """({id: translations}, {id: its line if it has none}) of a file handed back, checked against `rows`."""
    header, *lines = (line.split("\t") for line in read_lines(path))        # read_tsv refuses empty cells
    found, empty, seen = {}, {}, {}
    for name in ("id", *columns, *translation_names(columns)):
        if header.count(name) != 1:
            raise UserError(f"{path}:1: {header.count(name) or 'no'} column {name!r} in the header {header}; "
                            "keep the columns of the export and add the translations")
    if not lines:
        raise UserError(f"{path}: no rows below the header; give the export with its translations")
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            raise UserError(f"{path}:{number}: {len(cells)} columns, not {len(header)}; one row a line")
        cell = {name: " ".join(text.split()) for name, text in zip(header, cells)}
        key, translations = cell["id"], [cell[name] for name in translation_names(columns)]
        if key not in rows:
            raise UserError(f"{path}:{number}: id {key!r} is none of the {len(rows)} rows; give the --n of "
                            "the export")
        if key in seen:
            raise UserError(f"{path}:{number}: id {key} again, as on line {seen[key]}; keep one of the two")
        seen[key] = number
        for name, text in zip(columns, rows[key][1:]):
            if cell[name] != " ".join(text.split()):
                raise UserError(f"{path}:{number}: {name} is {cell[name][:40]!r}, in train.tsv id {key} is "
                                f"{text[:40]!r}; leave it as exported, without quotes around it")
        (found if all(translations) else empty)[key] = translations if all(translations) else number
    return found, empty

def some(values):
    """The first few values, and how many there are, for a message."""
    values = list(map(str, values))
    return " ".join(values[:SHOWN]) + (f" ... ({len(values)} in all)" if len(values) > SHOWN else "")

def merge(args):
    """Write translated.tsv from a file of --export to which translations were added."""
    columns, rows = load_rows(args)
    progress = Progress(Path(args.data, args.task, args.lang, "translated.tsv"), made_by="merge")
    progress.guard(args.force)
    found, empty = read_merge(args.merge, columns, rows)
    missing = [key for key in rows if key not in found and key not in empty]
    pairs = [(row, found[key]) for key, row in rows.items() if key in found]
    if empty and not args.skip:
        raise UserError(f"{args.merge}: no translation on line {some(empty.values())}; fill it in, or leave "
                        "such rows out with --skip")
    if not pairs or missing and not args.skip:
        raise UserError(f"{args.merge}: of {len(rows)} rows these ids are missing: {some(missing or empty)}; "
                        "give the --n of the export, add them, or leave them out with --skip")
    write_translated(columns, pairs, progress, args.force)
    print(f"merge | {args.merge}: {len(pairs)} rows with a translation, {len(rows) - len(pairs)} left out")
    report(pairs, progress.target)

def by_model(args):
    """Write translated.tsv with a translation model."""
    columns, rows = load_rows(args)
    progress = Progress(Path(args.data, args.task, args.lang, "translated.tsv"), model=args.model,
                        lang=args.lang, lang_code=args.lang_code, beams=args.beams, amp=args.amp,
                        max_new_tokens=args.max_new_tokens)
    progress.guard(args.force)
    sentences = distinct(rows.values())
    left = sum(sentence not in progress.done for sentence in sentences)
    device, dtype, machine = pick_device(args)
    if left:
        translator = Translator(args, device, dtype)
        size = sum(p.numel() for p in translator.model.parameters())
        print(f"translate | {machine} | {args.model}: {size / 1e6:.1f}M parameters, English to "
              f"{translator.told or 'its one language'}, {args.beams} beams | {len(rows)} rows, "
              f"{len(sentences)} different sentences, {len(sentences) - left} done before", flush=True)
        start = time.perf_counter()
        translate(sentences, progress, translator)
        print(f"{left} sentences in {time.perf_counter() - start:.0f} s, "
              f"{left / (time.perf_counter() - start):.1f} a second")
    pairs = [(row, [progress.done[text][0] for text in row[1:]]) for row in rows.values()]
    kept = [pair for pair in pairs if all(pair[1])]
    cut = sum(progress.done[sentence][1] for sentence in sentences)
    if cut:
        print(f"warning: {cut} translations were cut at {args.max_new_tokens} tokens; raise --max-new-tokens")
    if len(kept) < len(pairs):
        print(f"warning: {len(pairs) - len(kept)} rows are left out, their translation is empty")
    if not kept:
        raise UserError(f"--model {args.model}: every translation is empty; give another model or --amp off")
    write_translated(columns, kept, progress, args.force)
    report(kept, progress.target)

def main(argv=None):
    args = get_args(argv)
    (export if args.export else merge if args.merge else by_model)(args)

if __name__ == "__main__":
    run(main)
