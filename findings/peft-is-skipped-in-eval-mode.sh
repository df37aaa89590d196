#!/usr/bin/env bash
# peft's LoRA has no effect on nn.TransformerEncoderLayer in evaluation mode, with and without gradients.
# Expected: with dropout 0, eval() changes nothing, and the merged model gives what the model with its adapter gives.
# Seen: in training mode the adapter works. After eval() the layer takes PyTorch's fast path, which reads linear1.weight.
# On peft's wrapper that is the frozen base weight, so the output is the base model's, without a message.
# Affects: --arch inside on an LM of such layers. common.Inside uses forward hooks, which disable the fast path, or
# adds A to the weights. Both give the same embeddings.
# Versions: peft 0.21.2, torch 2.13.0. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import torch
from peft import LoraConfig, __version__, get_peft_model
from torch import nn

torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
lm, x = nn.Sequential(layer).eval(), torch.randn(2, 3, 16)
base = lm(x).detach()
config = LoraConfig(target_modules=["linear1", "linear2"], init_lora_weights=False)
adapted, outputs = get_peft_model(lm, config), {}
outputs["train()"] = adapted.train()(x)
outputs["eval()"] = adapted.eval()(x)
with torch.no_grad():
    outputs["eval(), no_grad"] = adapted(x)
outputs["merged, eval()"] = adapted.merge_and_unload().eval()(x)
print("peft", __version__, "torch", torch.__version__, "| largest change of the base output")
changes = {name: (out - base).abs().max().item() for name, out in outputs.items()}
for name, change in changes.items():
    print(f"  {name:16} {change:.6f}")
torch.testing.assert_close(outputs["train()"], outputs["merged, eval()"])
assert changes["train()"] > 0.1, "the adapter does nothing at all"
assert changes["eval()"] < 1e-5 and changes["eval(), no_grad"] < 1e-5, "behaviour changed"
assert outputs["eval()"].requires_grad is False, "behaviour changed: eval() now has gradients"
END
