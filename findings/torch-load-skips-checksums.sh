#!/usr/bin/env bash
# torch.load reads a damaged .pt file without a word, though the file holds a checksum of every tensor.
# Expected: a .pt file is a zip archive with a CRC-32 per part, and zip readers refuse a part whose CRC does not fit.
# Seen: torch.save writes the checksums, Python's zipfile finds the damage, and torch.load returns a wrong number,
# with weights_only=True and with or without mmap.
# Affects: aligners, heads, embed.pt and cached embeddings. common.load calls zipfile's testzip first and refuses.
# Versions: torch 2.13.0. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import zipfile
from pathlib import Path

import torch

torch.save({"weight": torch.ones(1000)}, "head.pt")
raw = bytearray(Path("head.pt").read_bytes())
at = raw.index(torch.ones(1000).numpy().tobytes())  # where the tensor lies
raw[at + 4 * 500 + 3] ^= 0x40  # one bit of element 500
Path("head.pt").write_bytes(raw)

damaged = zipfile.ZipFile("head.pt").testzip()
seen = {}
for mmap in (False, True):
    seen[mmap] = torch.load("head.pt", weights_only=True, mmap=mmap)["weight"][499:502].tolist()
print("torch", torch.__version__, "| zipfile says damaged:", damaged)
print("torch.load returns", seen[False], "| with mmap", seen[True], "| saved were three ones")
assert damaged == "head/data/0", "zipfile finds no damage"
for values in seen.values():
    assert values[0] == values[2] == 1 and values[1] != 1, "behaviour changed"
END
