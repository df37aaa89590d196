#!/usr/bin/env bash
# sentence-transformers lets an XLM-R model take two tokens more than it has positions for.
# Expected: max_seq_length, found by the library, is a length that the model can encode. Longer texts are cut.
# Seen: it is max_position_embeddings, but RoBERTa's positions start after the padding id. Of 34 rows 32 are usable
# (514 and 512 in real models), so every longer text raises an index error unless tokenizer_config.json has a limit.
# Affects: --max-len in step 1. common.Encoder counts from the padding id of the position table, and cuts at 32.
# Versions: sentence-transformers 6.2.0, transformers 5.24.0, torch 2.13.0. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 sentence-transformers==6.2.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import json

import torch
from sentence_transformers import SentenceTransformer, __version__
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaModel

names = ["<s>", "<pad>", "</s>", "<unk>", "a"]
made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
config = XLMRobertaConfig(
    vocab_size=5, intermediate_size=16, max_position_embeddings=34, type_vocab_size=1, **sizes
)
XLMRobertaModel(config).save_pretrained("lm")
made.save("lm/tokenizer.json")
special = {"unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"}
json.dump(special, open("lm/tokenizer_config.json", "w"))

model, seen = SentenceTransformer("lm", device="cpu"), {}
found = model.max_seq_length
for limit in (found, found - 2):
    model.max_seq_length = limit
    try:
        seen[limit] = f"{model.encode(['a ' * 100]).shape}"
    except (IndexError, RuntimeError) as err:
        seen[limit] = type(err).__name__
print("sentence-transformers", __version__, "| max_seq_length found:", found)
print("a text of 100 words, by max_seq_length:", seen)
assert found == 34 and seen[34].endswith("Error") and seen[32] == "(1, 16)", "behaviour changed"
END
