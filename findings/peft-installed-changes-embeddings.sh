#!/usr/bin/env bash
# Installing peft changes what AutoModel loads from a folder: other embeddings, and no trainable weight.
# Expected: a folder with a complete model.safetensors gives that model, whichever packages are installed.
# Seen: if the folder also holds an adapter (as after saving a LoRA next to its base), transformers applies it only where
# peft is importable, without a message, and freezes all of the model. The loading report names nothing.
# Affects: --model in step 1, where training would change nothing. common.load_tokenizer refuses a folder with
# adapter_config.json and names merge_and_unload, with and without peft.
# Versions: transformers 5.24.0, peft 0.21.2, torch 2.13.0. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import importlib.metadata
import subprocess
import sys

import torch
from transformers import BertConfig, BertModel

sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
BertModel(BertConfig(vocab_size=20, intermediate_size=16, **sizes)).save_pretrained("lm")
make_adapter = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel
torch.manual_seed(1)
config = LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
get_peft_model(AutoModel.from_pretrained("lm"), config).save_pretrained("lm")
"""
measure = """
import torch
from transformers import AutoModel
lm, report = AutoModel.from_pretrained("lm", output_loading_info=True)
x = lm.eval()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state.mean(1)[0, :3]
lost = len(report["missing_keys"]) + len(report["unexpected_keys"])
weights = [p.requires_grad for p in lm.parameters()]
print(f"{x.tolist()} | trainable {sum(weights)} of {len(weights)} | reported keys {lost}")
"""


def python(*command):
    return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True).stdout


python("-m", "pip", "install", "-q", "peft==0.21.2")
python("-c", make_adapter)
with_peft = python("-c", measure)
python("-m", "pip", "uninstall", "-q", "-y", "peft")
without = python("-c", measure)
print("transformers", importlib.metadata.version("transformers"), "peft 0.21.2")
print(f"with peft     {with_peft}without peft  {without}", end="")
assert with_peft.split("|")[0] != without.split("|")[0], "behaviour changed"
assert "trainable 0 of" in with_peft and "trainable 23 of 23" in without, "behaviour changed"
assert "keys 0" in with_peft and "keys 0" in without, "behaviour changed"
END
