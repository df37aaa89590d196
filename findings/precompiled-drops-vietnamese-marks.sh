#!/usr/bin/env bash
# The fast tokenizer of a SentencePiece model drops accents of decomposed Vietnamese that SentencePiece keeps.
# Expected: tokenizers' Precompiled applies the model's own table, so both normalise each text to the same characters.
# Seen: SentencePiece composes e + dot below + circumflex. Precompiled looks up the whole cluster, accepts the entry of
# its beginning and discards the rest, so the circumflex is lost. Korean and Japanese stay decomposed.
# Affects: every text given to the encoder (XLM-R and e5 carry this table). common.Encoder.tokenize composes (NFC) first.
# Versions: tokenizers 0.23.3, sentencepiece 0.2.3, transformers 5.24.0 (reads the table). Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q tokenizers==0.23.3 sentencepiece==0.2.3 transformers==5.24.0 protobuf
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import io
from unicodedata import normalize

import sentencepiece
import tokenizers
from tokenizers import normalizers
from transformers.convert_slow_tokenizer import import_protobuf

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["việt nam được", "한국어 ガ"] * 50),
    model_writer=model,
    model_type="char",
    vocab_size=22,
    hard_vocab_limit=False,
    normalization_rule_name="nmt_nfkc",  # the rule of XLM-R
    minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
spec = import_protobuf().ModelProto.FromString(model.getvalue()).normalizer_spec
precompiled = normalizers.Precompiled(spec.precompiled_charsmap)
print("tokenizers", tokenizers.__version__, "sentencepiece", sentencepiece.__version__)
for word, lossy in {"việt": "viẹt", "được": "đươc", "한": None, "ガ": None}.items():
    apart = normalize("NFD", word)
    slow, fast = processor.normalize(apart).strip("▁"), precompiled.normalize_str(apart)
    kept = precompiled.normalize_str(word)
    print(f"{word} decomposed: SentencePiece {slow}, Precompiled {fast} = {ascii(fast)}")
    assert slow == kept == word, "composed text is no longer kept"
    assert fast == (lossy or apart) != word, "behaviour changed"
END
