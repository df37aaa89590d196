#!/usr/bin/env bash
# A translation that generate() cuts off still ends with </s> in Marian and mBART, but not in M2M100 and NLLB.
# Expected: the end token shows that the model finished. A translation without it was cut at max_new_tokens.
# Seen: the configs of Marian and mBART have forced_eos_token_id, which replaces the last token that fits by </s>.
# The half sentence looks complete, with and without beams.
# Affects: data/translate.py, which warns of cut translations. Translator.generate counts tokens against the limit,
# and does not look for </s>.
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
from transformers import AutoModelForSeq2SeqLM, M2M100Config, MarianConfig, MBartConfig, __version__

sizes = {"vocab_size": 50, "d_model": 16, "max_position_embeddings": 64}
for side in ("encoder", "decoder"):
    sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 16}
marian = {"pad_token_id": 49, "decoder_start_token_id": 49, "eos_token_id": 0}
configs = MarianConfig(**sizes, **marian), MBartConfig(**sizes), M2M100Config(**sizes)
source, ends = torch.tensor([[5, 6, 7, 2]]), {}
print("transformers", __version__, "torch", torch.__version__, "| 8 new tokens allowed")
for config in configs:
    torch.manual_seed(0)
    model, kind = AutoModelForSeq2SeqLM.from_config(config).eval(), config.model_type
    with torch.no_grad():  # a model whose own score of </s> is low: it never wants to stop
        bias = torch.zeros(50).index_fill(0, torch.tensor(config.eos_token_id), -100.0)
        model.get_output_embeddings().bias = torch.nn.Parameter(bias)
    for beams in (1, 4):
        out = model.generate(source, max_new_tokens=8, num_beams=beams, do_sample=False)[0, 1:]
        ends[kind, beams] = out[-1].item() == config.eos_token_id
        print(f"  {kind:7} {beams} beams: {out.tolist()}, ends with </s>: {ends[kind, beams]}")
        assert len(out) == 8 and config.eos_token_id not in out[:-1], "not cut at the limit"
forced = {"marian": True, "mbart": True, "m2m_100": False}
assert ends == {(kind, n): end for kind, end in forced.items() for n in (1, 4)}, "behaviour changed"
END
