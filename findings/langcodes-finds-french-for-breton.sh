#!/usr/bin/env bash
# langcodes finds French for Breton in NLLB's languages, but nothing for Korean.
# Expected: closest_supported_match(language, codes) returns the language's own code, or None if the model lacks it.
# Seen: a distance of up to 25 is a match, so Breton becomes French, West Frisian Dutch, and Twi becomes Akan although
# NLLB has Twi. Korean, Pashto and Quechua become None: NLLB's kor_Hang is not the Kore script, and pbt and quy are
# not known as their members.
# Affects: data/translate.py, which finds the model's code of --lang. find_code compares names only, and its table
# knows NLLB's. It raises an error for languages that the model lacks.
# Versions: langcodes 3.5.1. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q langcodes==3.5.1
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
from importlib.metadata import version

from langcodes import closest_supported_match

codes = """arb_Arab aka_Latn deu_Latn eng_Latn fra_Latn ita_Latn jav_Latn jpn_Jpan kor_Hang nld_Latn pbt_Arab
    pes_Arab quy_Latn spa_Latn swh_Latn twi_Latn zho_Hans zho_Hant""".split()
own = {"jv": "jav_Latn", "sw": "swh_Latn", "ar": "arb_Arab", "fa": "pes_Arab", "zh": "zho_Hans"}
other = {"br": "fra_Latn", "fy": "nld_Latn", "la": "ita_Latn", "tw": "aka_Latn"}
lost = {"ko": None, "ps": None, "qu": None}
seen = {lang: closest_supported_match(lang, codes) for lang in [*own, *other, *lost]}
print("langcodes", version("langcodes"))
for name, group in {"own code": own, "another language": other, "not found": lost}.items():
    print(f"  {name:17}", {lang: seen[lang] for lang in group})
assert {lang: seen[lang] for lang in own} == own, "easy languages are no longer found"
assert seen == own | other | lost, "behaviour changed"
END
