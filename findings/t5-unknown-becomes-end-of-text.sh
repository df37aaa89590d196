#!/usr/bin/env bash
# T5Tokenizer encodes an unknown letter as </s> where the file's own unknown id is not 2.
# Expected: the id of <unk> is taken from tokenizer.json, and tokenizer.unk_token_id is what unknown letters get.
# Seen: 5.24 rebuilds the model with unk_id=2. In a vocabulary in MADLAD-400's order (<unk>, <s>, </s>) each unknown
# letter becomes an end of text in the middle of the source, and unk_token_id (0) never occurs.
# Affects: data/translate.py with MADLAD and other T5 models. load_model puts the file's own model back, id included.
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

pieces = ["<unk>", "<s>", "</s>", "<pad>", "▁", "a", "b"]
made = Tokenizer(models.Unigram([(piece, -2.0) for piece in pieces], unk_id=0))
made.pre_tokenizer = pre_tokenizers.Metaspace()
made.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 2)])
made.save("tokenizer.json")
special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
config = special | {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
json.dump(config, open("tokenizer_config.json", "w"))

auto = AutoTokenizer.from_pretrained(".")
file, seen = made.encode("a Ж b").ids, auto("a Ж b").input_ids
print("transformers", __version__, "| unk_token_id", auto.unk_token_id, "| eos", auto.eos_token_id)
print("the file says", [pieces[i] for i in file])
print("T5Tokenizer  ", auto.convert_ids_to_tokens(seen))
print("and shows    ", auto("a Ж b").tokens(), "which hides it")
assert file.count(0) == 1 and file.count(2) == 1
assert seen.count(0) == 0 and seen.count(2) == 2 and auto.unk_token_id == 0, "behaviour changed"
END
