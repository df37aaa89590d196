#!/usr/bin/env bash
# The arguments of one tokenizer call are written into tokenizer.json by a later save_pretrained.
# Expected: truncation and padding are arguments of a call, and leave no trace in the files.
# Seen: after tokenizer(text, truncation=True, max_length=4, padding="max_length") the saved file cuts and pads every
# text to 4 tokens for each reader of the tokenizers library, while AutoTokenizer ignores both settings.
# Affects: common.save_encoder, which saves a tokenizer that has been used. Its calls truncate at the run's own max_len
# and never pad in the backend. load_tokenizer takes only the five text-processing parts of such a file.
# Versions: transformers 5.24.0, tokenizers 0.23.3. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, __version__

names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]
made = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
ends = [("[CLS]", 2), ("[SEP]", 3)]
made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
made.save("tokenizer.json")
special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "tokenizer_class": "PreTrainedTokenizerFast"}
json.dump(special, open("tokenizer_config.json", "w"))

tokenizer, sizes = AutoTokenizer.from_pretrained("."), {}
for when in ("before", "after"):
    tokenizer.save_pretrained(when)
    reader = Tokenizer.from_file(f"{when}/tokenizer.json")
    auto = AutoTokenizer.from_pretrained(when)
    sizes[when] = [(len(reader.encode(t).ids), len(auto(t).input_ids)) for t in ("a a a a a", "")]
    tokenizer("a", truncation=True, max_length=4, padding="max_length")
print("transformers", __version__, "| tokens (tokenizers, AutoTokenizer) of 5 words and of none")
print("saved before a call:", sizes["before"], "| after a call:", sizes["after"])
assert sizes == {"before": [(7, 7), (2, 2)], "after": [(4, 7), (4, 2)]}, "behaviour changed"
END
