#!/usr/bin/env bash
# MarianTokenizer recommends sacremoses at each load, but its tokens are the same with and without that package.
# Expected: with sacremoses, punctuation is normalised before the text is split, as in the training of opus-mt.
# Seen: only the method normalize uses sacremoses, and the tokenizer never calls it. A model that knows straight quotes
# reads curly ones as unknown tokens, also with sacremoses.
# Affects: data/translate.py with opus-mt. It needs sentencepiece only, and its table of models does not ask for sacremoses.
# Versions: transformers 5.24.0, sacremoses 0.1.1, sentencepiece 0.2.3. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.24.0 sacremoses==0.1.1 sentencepiece==0.2.3
cd "$work"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cat >ids.py <<'END'
import json
import warnings

import sentencepiece
import transformers

pieces = dict(model_prefix="m", vocab_size=30, hard_vocab_limit=False, minloglevel=2)
text = 'she said "good food" and left'
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([text] * 50), **pieces)
processor = sentencepiece.SentencePieceProcessor(model_file="m.model")
words = [processor.id_to_piece(i) for i in range(len(processor))]
with open("vocab.json", "w") as file:
    json.dump({word: i for i, word in enumerate([*words, "<pad>"])}, file)
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    tokenizer = transformers.MarianTokenizer("m.model", "m.model", "vocab.json", "en", "de")
curly = "she said \u201egood food\u201c and left"
recommended = any("sacremoses" in str(w.message) for w in found)
unknown = tokenizer(curly)["input_ids"].count(tokenizer.unk_token_id)
print(f"recommends sacremoses: {recommended}; unknown tokens: {unknown}; by itself: {tokenizer.normalize(curly)}")
print(tokenizer(curly)["input_ids"])
END
venv/bin/python ids.py >with.txt
venv/bin/pip uninstall -q -y sacremoses
venv/bin/python ids.py >without.txt
tail -n +1 with.txt without.txt
grep -q 'sacremoses: False; unknown tokens: [1-9].*"good food" and left' with.txt
grep -q "sacremoses: True; unknown tokens: [1-9]" without.txt
diff <(tail -1 with.txt) <(tail -1 without.txt) && echo "the same ids"
