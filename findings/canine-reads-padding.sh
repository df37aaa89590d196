#!/usr/bin/env bash
# The embeddings of CANINE depend on the padding, although the attention mask marks it.
# Expected: as with BERT and XLM-R, a text has one embedding, alone or next to longer texts in a batch.
# Seen: a single padded position changes every result. CANINE's convolutions over 4 characters (down and up again) know
# no mask, so the padding enters the vectors next to it, and attention spreads it over the text.
# Affects: --model in step 1, as CANINE is a multilingual encoder. common.load_pretrained refuses it, since it has no
# table of word embeddings, and warns of other encoders whose embeddings of two texts depend on their batch.
# Versions: transformers 5.24.0, torch 2.13.0. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import torch
import torch.nn.functional as F
from transformers import AutoModel, BertConfig, CanineConfig, __version__

sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
sizes |= {"intermediate_size": 64}
ids = torch.arange(97, 117)[None]  # 20 letters, (1, 20)
print("transformers", __version__, "torch", torch.__version__, "| cosine with the embedding alone")
for config in (BertConfig(**sizes, vocab_size=128), CanineConfig(**sizes)):
    torch.manual_seed(0)
    lm, means = AutoModel.from_config(config).eval(), {}
    for extra in (0, 1, 4, 40):
        padded, mask = F.pad(ids, (0, extra)), F.pad(torch.ones_like(ids), (0, extra))
        with torch.no_grad():
            hidden = lm(input_ids=padded, attention_mask=mask).last_hidden_state
        means[extra] = hidden[0, :20].mean(0)  # (D,)
    cosines = {extra: F.cosine_similarity(m, means[0], dim=0).item() for extra, m in means.items()}
    rounded = {extra: round(cosine, 4) for extra, cosine in cosines.items()}
    print(f"  {config.model_type:6} by padded positions: {rounded}")
    changed = [extra for extra, cosine in cosines.items() if cosine < 0.9999]
    assert changed == ([1, 4, 40] if config.model_type == "canine" else []), "behaviour changed"
END
