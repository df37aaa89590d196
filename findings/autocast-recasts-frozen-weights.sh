#!/usr/bin/env bash
# Freezing a model makes torch.autocast convert its weights again in every forward pass.
# Expected: autocast caches the bf16 copy of each weight until the region ends, all the more if the weight is frozen.
# Seen: only weights that require a gradient are cached. Twelve batches through one frozen layer convert 24 times, not 2.
# Affects: steps 2, 3 and eval.py, whose LM is frozen. common.load_encoder stores its weights in the half precision
# itself, so that nothing is left to convert.
# Versions: torch 2.13.0 on a CPU. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        # a conversion of the weight (4, 4) or bias (4,), not of a batch (3, 4)
        if op is torch.ops.aten._to_copy.default and args[0].shape in ((4, 4), (4,)):
            self.count = getattr(self, "count", 0) + 1
        return op(*args, **(kwargs or {}))


counts = {}
for name in ("trainable", "frozen", "frozen, stored in bf16"):
    layer = torch.nn.Linear(4, 4).requires_grad_(name == "trainable")
    if "stored" in name:
        layer = layer.bfloat16()
    with Casts() as casts, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(12):
            layer(torch.randn(3, 4))
    counts[name] = getattr(casts, "count", 0)
print("torch", torch.__version__, "conversions of weight and bias in 12 batches:", counts)
assert counts == {"trainable": 2, "frozen": 24, "frozen, stored in bf16": 0}, "behaviour changed"
END
