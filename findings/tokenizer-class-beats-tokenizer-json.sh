#!/usr/bin/env bash
# AutoTokenizer drops normalizer and post-processor of tokenizer.json where a class name stands next to it.
# Expected: tokenizer.json is the complete tokenizer. tokenizer_class only chooses the Python wrapper.
# Seen: the class takes the vocabulary alone from the file and rebuilds the rest by its own rules. DebertaV2Tokenizer
# loses NFKC, so full-width letters become [UNK]. MBartTokenizer also moves the special tokens.
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
    "MBartTokenizer": ["<pad>", "<s>", "</s>", "<unk>"],
}
print("transformers", __version__)
for name, (pad, first, last, unknown) in order.items():
    pieces = [pad, first, last, unknown, "▁", "▁A", "B", "C"]
    made = Tokenizer(models.Unigram([(piece, -2.0) for piece in pieces], unk_id=3))
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
    assert len(seen) == 4 and auto.unk_token_id in auto(text).input_ids, "behaviour changed"
END
