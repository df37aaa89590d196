#!/usr/bin/env bash
# NllbTokenizer accepts a language that it does not have, and writes <unk> where the language belongs.
# Expected: src_lang="ko" raises an error, as M2M100Tokenizer does for a code it lacks.
# Seen: no error and no warning, in the constructor and when set later. The source starts with <unk>.
# Also convert_tokens_to_ids("ko"), the documented value of forced_bos_token_id, is the id of <unk>.
# Affects: data/translate.py. Translator reads the codes from the vocabulary, refuses others, and checks that a source
# contains the code.
# Versions: transformers 5.24.0, tokenizers 0.23.3. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import json

import sentencepiece
from transformers import M2M100Tokenizer, NllbTokenizer, __version__

pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b"]
vocab = {piece: i for i, piece in enumerate(pieces)}
print("transformers", __version__)


def tokens(tokenizer):
    return tokenizer.convert_ids_to_tokens(tokenizer("a").input_ids)


seen = {}
for code in ("eng_Latn", "en", "kor_Latn"):
    made = NllbTokenizer(vocab=vocab, merges=[], src_lang=code)
    later = NllbTokenizer(vocab=vocab, merges=[], src_lang="eng_Latn")
    later.src_lang = code
    assert tokens(made) == tokens(later)
    unknown = later.convert_tokens_to_ids(code) == later.unk_token_id
    seen[code] = tokens(later)[0], unknown
    print(f"NLLB, src_lang={code}: {tokens(later)}, as forced_bos_token_id <unk>: {unknown}")

lines = iter(["a b"] * 50)
options = {"model_prefix": "m", "model_type": "char", "minloglevel": 2, "vocab_size": 6}
sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, **options)
json.dump(vocab, open("vocab.json", "w"))
try:
    M2M100Tokenizer("vocab.json", "m.model", src_lang="eng_Latn")
    raised = None
except KeyError as err:
    raised = repr(err)
print("M2M100, src_lang=eng_Latn:", raised)
assert raised == "KeyError('eng_Latn')", "M2M100 changed"
expected = {"eng_Latn": ("eng_Latn", False), "en": ("<unk>", True), "kor_Latn": ("<unk>", True)}
assert seen == expected, "behaviour changed"
END
