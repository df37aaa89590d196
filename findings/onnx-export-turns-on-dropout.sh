#!/usr/bin/env bash
# torch.onnx.export(dynamo=False) turns on the dropout of a model that was in evaluation mode.
# Expected: the exporter switches to inference, and afterwards puts each module back into its own mode.
# Seen: it remembers the mode of the outermost module alone, and sets all modules to it. A new wrapper is in training
# mode, so an LM in evaluation mode inside it comes back with dropout, without a message. Its embeddings are random.
# Affects: data/export.py --onnx, which wraps LM, pooling and heads. It uses the newer exporter (dynamo=True), which
# leaves all modes alone, and puts the wrapper itself into evaluation mode.
# Versions: torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import io
import logging
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
logging.getLogger("torch.onnx").setLevel(logging.ERROR)


class Wrapper(nn.Module):
    """An LM and its pooling: (B, T, D) -> (B, D)."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, hidden):
        return self.lm(hidden).mean(1)


torch.manual_seed(0)
x, seen = torch.randn(2, 3, 8), {}
print("torch", torch.__version__)
for dynamo in (False, True):
    lm = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()
    before = lm(x)
    torch.onnx.export(Wrapper(lm), (x,), io.BytesIO(), dynamo=dynamo, verbose=False)
    seen[dynamo] = lm.training, torch.equal(lm(x), before)
    print(f"dynamo={dynamo}: LM in training mode after export {lm.training}", end=", ")
    print("same output as before", seen[dynamo][1])
assert seen == {False: (True, False), True: (False, True)}, "behaviour changed"
END
