#!/usr/bin/env bash
# AutoTokenizer drops the normalizer of tokenizer.json where some class names stand next to it.
# Expected: tokenizer.json is the complete tokenizer. tokenizer_class only chooses the Python wrapper.
# Seen: the class takes the vocabulary alone from the file and rebuilds the rest by its own rules. DebertaV2Tokenizer
# and BarthezTokenizer replace NFKC by NFC, so full-width letters, common in Chinese and Japanese, become unknown.
# Affects: --model in step 1 and translate.py. common.load_tokenizer and translate.load_model put the parts of the file
# back, so that tokens are those of the tokenizers library.
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

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, __version__

order = {
    "DebertaV2Tokenizer": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
    "BarthezTokenizer": ["<pad>", "<s>", "</s>", "<unk>"],
}
print("transformers", __version__)
for name, (pad, first, last, unknown) in order.items():
    pieces = [pad, first, last, unknown, "▁", "▁A", "B", "C"]
    scores = [(piece, 0.0 if i < 4 else -2.0) for i, piece in enumerate(pieces)]
    made = Tokenizer(models.Unigram(scores, unk_id=3))
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    ends = [(first, 1), (last, 2)]
    made.post_processor = processors.TemplateProcessing(f"{first} $A {last}", None, ends)
    made.save("tokenizer.json")
    special = {"pad": pad, "bos": first, "cls": first, "sep": last, "eos": last, "unk": unknown}
    config = {f"{kind}_token": token for kind, token in special.items()}
    json.dump(config | {"tokenizer_class": name}, open("tokenizer_config.json", "w"))

    auto = AutoTokenizer.from_pretrained(".")
    text = "ＡＢＣ"  # full width
    file, seen = made.encode(text).tokens, auto.convert_ids_to_tokens(auto(text).input_ids)
    print(f"{name}: the file says {file}, AutoTokenizer {seen}")
    assert file == [first, "▁A", "B", "C", last] and auto.is_fast
    assert seen == [first, "▁", unknown, last], "behaviour changed"
END
