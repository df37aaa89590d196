"""Export one head, with its LM, as a folder that sentence-transformers and transformers load.

    python data/export.py --lang jv --arch inside --out runs/reviews --to shipped
    python data/export.py --lang ko --residuals --to shipped --onnx    # also onnx/model.onnx

Reads    <out>/ of steps 1 to 3, test.tsv of --lang or else English rows, results-<lang>.json of eval.py.
Writes   --to: Transformer, Pooling and Dense modules (modules.json), labels.json, and README.md, a model card.
         It labels the rows with both. After an error it writes nothing.
Expect   "Labels that differ: 0 of 400", and 16-bit weights, half the size of <out>/encoder.

Any head becomes a stack of Dense layers. Inside merges into the LM's weights, A behind the LM and all
standardisations into the linear layers next to them. The seeds' heads become one with the mean of their logits,
where eval.py takes the mean of their probabilities. Shapes: as in common.py; O, I are sizes of a layer."""

import argparse
import importlib.util
import json
import logging
import os
import shlex
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ARCHES, METHODS, UserError, build_aligner, check_flags, describe, encode, find
from common import load_encoder, load_english, load_task, masked_mean, one_line_error, run, say
from eval import logits_of

ROWS = 1_000  # rows that check the folder, at most
ROUNDING = 0.01  # largest difference between probabilities that counts as rounding


# Any head as Dense layers -----------------------------------------------------------------------
@torch.no_grad()
def merge(inside, lm):
    """Add A to the weights of the LM: W becomes W + up down, with up (O, R) and down (R, I)."""
    for name, down, up in zip(inside.layers, inside.down, inside.up):
        lm.get_submodule(name).weight += up @ down


@torch.no_grad()
def dense_layers(heads, aligner=None):
    """Return [(weight (O, I), bias (O,)), ...], with ReLU between and a softmax after them: an Aligner, if there
    is one, then the mean of S heads, weight (S, C, D)."""

    def then(weight, bias):  # two affine maps without a ReLU between them are one
        W, b = layers[-1]
        layers[-1] = weight.double() @ W, weight.double() @ b + bias.double()

    def start(width):
        return torch.eye(width).double(), torch.zeros(width).double()

    layers = [start(heads["weight"].shape[2])]
    if aligner:
        then(torch.diag(1 / aligner.scale_x), -aligner.mean_x / aligner.scale_x)
        for part in aligner.f.modules():
            if isinstance(part, nn.Linear):
                then(part.weight, torch.zeros(()) if part.bias is None else part.bias)
            elif isinstance(part, nn.ReLU):
                layers.append(start(len(layers[-1][1])))
        then(torch.eye(len(aligner.mean_y)) * aligner.scale_y, aligner.mean_y)
    then(torch.diag(1 / heads["scale"]), -heads["mean"] / heads["scale"])
    then(heads["weight"].mean(0), heads["bias"].mean(0)[0])
    return [(weight.float().contiguous(), bias.float()) for weight, bias in layers]


# The folder -------------------------------------------------------------------------------------
def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def write_tokenizer(folder, encoder):
    """Write a tokenizer for transformers 4 and 5, with the NFC that Encoder.tokenize does in Python."""
    encoder.tokenizer.model_max_length = encoder.max_len
    encoder.tokenizer.save_pretrained(folder)
    if not (path := folder / "tokenizer.json").exists():
        raise UserError("the LM's tokenizer has no tokenizer.json; run step 1 with another --model")
    content = json.loads(path.read_text("utf-8"))
    own = [content["normalizer"]] if content["normalizer"] else []
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, *own]}
    write_json(path, content)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["model_input_names"] = encoder.tokenizer.model_input_names
    if isinstance(config.get("extra_special_tokens"), list):  # transformers 4 expects a dict
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    write_json(path, config)


def write_folder(folder, encoder, layers, head, dtype):
    """Write LM (floating-point weights in dtype), tokenizer, pooling, Dense layers and label names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    state = {
        key: w.to(dtype) if w.is_floating_point() else w
        for key, w in encoder.lm.state_dict().items()
    }
    encoder.lm.save_pretrained(folder, state_dict=state)  # config.json keeps float32
    write_tokenizer(folder, encoder)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": encoder.max_len, "do_lower_case": False},
    )
    mean, cls = (encoder.pool == pool for pool in ("mean", "cls"))
    pooling = {"word_embedding_dimension": encoder.dim, "pooling_mode_cls_token": cls}
    write_json(folder / "1_Pooling/config.json", pooling | {"pooling_mode_mean_tokens": mean})
    for i, (weight, bias) in enumerate(layers, 2):
        config = {"in_features": weight.shape[1], "out_features": len(weight), "bias": True}
        config["activation_function"] = "torch.nn.modules.activation.ReLU"
        if i == len(layers) + 1:
            config["activation_function"] = "torch.nn.modules.activation.Softmax"
            # versions below 5.7 know no module_output_name, and no CrossEncoder of modules
            config |= {"module_output_name": "scores"} if head["two_texts"] else {}
        write_json(folder / f"{i}_Dense/config.json", config)
        tensors = {"linear.weight": weight, "linear.bias": bias}
        save_file(tensors, folder / f"{i}_Dense/model.safetensors", {"format": "pt"})
    paths = ["", "1_Pooling", *(f"{i}_Dense" for i in range(2, len(layers) + 2))]
    kinds = ["Transformer", "Pooling", *["Dense"] * len(layers)]  # names that all versions know
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds))
    ]
    write_json(folder / "modules.json", modules)
    kind = "CrossEncoder" if head["two_texts"] else "SentenceTransformer"
    config = {"model_type": kind, "activation_fn": "torch.nn.modules.linear.Identity"}
    write_json(folder / "config_sentence_transformers.json", config)
    write_json(folder / "labels.json", head["labels"])


class Shipped(nn.Module):
    """The folder, read by transformers and safetensors alone."""

    def __init__(self, folder):
        super().__init__()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.lm = transformers.AutoModel.from_pretrained(folder).eval()
        pooling, modules = Path(folder, "1_Pooling/config.json"), Path(folder, "modules.json")
        self.cls = json.loads(pooling.read_text("utf-8"))["pooling_mode_cls_token"]
        paths = [module["path"] for module in json.loads(modules.read_text("utf-8"))[2:]]
        files = [load_file(Path(folder, path, "model.safetensors")) for path in paths]
        self.layers = [(file["linear.weight"], file["linear.bias"]) for file in files]

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """Return the probabilities (B, C) of token ids (B, T)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **types}
        hidden = self.lm(**batch).last_hidden_state  # (B, T, D)
        x = hidden[:, 0] if self.cls else masked_mean(hidden, attention_mask)
        for layer in self.layers[:-1]:
            x = F.linear(x, *layer).relu()
        return F.linear(x, *self.layers[-1]).softmax(1)

    def tokenize(self, texts):
        """Tuples of one or two texts -> dict of (B, T) tensors."""
        columns = [list(column) for column in zip(*texts)]
        return dict(self.tokenizer(*columns, padding=True, truncation=True, return_tensors="pt"))

    @torch.no_grad()
    def label(self, texts, batch=32):
        """Return the probabilities (N, C) of tuples of one or two texts."""
        parts = [texts[i : i + batch] for i in range(0, len(texts), batch)]
        return torch.cat([self(**self.tokenize(part)) for part in parts])


def write_onnx(folder, texts):
    """Write onnx/model.onnx: token ids (B, T) -> probabilities (B, C), for any B and T."""
    shipped = Shipped(folder).eval()
    batch = shipped.tokenize(texts[:3])
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    names = {"input_names": list(batch), "output_names": ["probabilities"]}
    names["dynamic_shapes"] = dict.fromkeys(batch, sizes)
    path = folder / "onnx/model.onnx"
    path.parent.mkdir()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(shipped, (), path, kwargs=batch, verbose=False, **names)


def compare(logits, probabilities):
    """Compare the folder's probabilities (N, C) with the heads' logits (S, N, C). Return how far they are from the
    mean of logits and from the mean of probabilities, and in how many rows these have another label."""
    means = logits.mean(0).softmax(1), logits.softmax(2).mean(0)  # (N, C): the folder's, eval.py's
    far = [(mean - probabilities).abs().max().item() for mean in means]
    labels = [(mean.argmax(1) != probabilities.argmax(1)).sum().item() for mean in means]
    return *far, *labels


# The model card ---------------------------------------------------------------------------------
def commands_of(args, head):
    """Return the commands that made the folder after step 1, one per line."""
    flags = f"--method {head['method']}" + (f" --arch {head['arch']}" if head["arch"] else "")
    flags += (f" --n {head['n']}" if head["n"] else "") + f" --seed {head['seed']}"
    flags += f" --out {shlex.quote(args.out)}"
    step3 = f"step3_head.py --lang {args.lang} {flags} --l2 {head['l2']}"
    step3 += f" --seeds {len(head['heads']['weight'])}"
    step3 += " --residuals" if head["residuals"] else ""
    step3 += " --unlabelled FILE" if head["method"] == "centred" else ""
    lines = [step3, f"data/export.py {shlex.join(sys.argv[1:])}"]
    if head["arch"]:
        via = " ".join(head["via"])
        lines = [f"step2_align.py --lang {via} {flags}", f"{step3} --via {via}", lines[1]]
    return "\n".join(f"python {line}" for line in lines)


def table_of(args, head):
    """Return the languages of the head, and a table of them with the figures of results-<lang>.json."""
    paired = head["via"] or ([args.lang] if head["n"] else [])
    table = "| language | pairs in training | test rows | accuracy (std over heads) |\n|---|---|---|---|"
    for lang in sorted({args.lang, *paired}):
        path, figures = Path(args.out, f"results-{lang}.json"), "- | -"
        for record in json.loads(path.read_text("utf-8")) if path.exists() else ():
            if all(record[key] == head[key] for key in describe(lang) if key != "lang"):
                figures = "{rows} | {accuracy:.2%} ({accuracy_std:.2%})".format(**record)
        table += f"\n| {lang} | {'yes' if lang in paired else 'no'} | {figures} |"
    return sorted({args.lang, *paired}), table


def card(args, head, encoder, info, count, check):
    """Return the text of README.md, the model card, of a folder with `count` Dense layers."""
    languages, table = table_of(args, head)
    name, names = Path(args.to).resolve().name, json.dumps(head["labels"], ensure_ascii=False)
    how = METHODS[head["method"]] + (f"; A is {head['arch']}" if head["arch"] else "")
    kind, call, columns = "SentenceTransformer", 'encode(["a text"])', '["a text"]'
    if head["two_texts"]:
        kind, call = "CrossEncoder", 'predict([("a text", "its text_b")])'
        columns = '["a text"], ["its text_b"]'
    pooled = "x[:, 0]" if encoder.pool == "cls" else "(x * mask).sum(1) / mask.sum(1)"
    onnx = "\n`onnx/model.onnx` takes the tokenizer's output and returns probabilities.\n"
    step1 = ", ".join(f"{key} {info[key]}" for key in ("epochs", "lr", "batch", "seed", "max_len"))
    return f"""---
language: {json.dumps(languages)}
{f"license: {args.license}" if args.license else "# license: that of the LM of step 1"}
pipeline_tag: text-classification
library_name: sentence-transformers
tags: [langalign]
---
# {info["task"]}: {", ".join(head["labels"])}

LangAlign (arXiv 2503.18603) made this classifier. Its head is trained on: {how}.

{table}

## Use
```python
from sentence_transformers import {kind}  # version {"6" if head["two_texts"] else "5.1"} or later

labels = {names}
probabilities = {kind}("{name}").{call}  # one column per label
print([labels[i] for i in probabilities.argmax(1)])
```
With transformers alone:
```python
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear
from transformers import AutoModel, AutoTokenizer

tokenizer, lm = AutoTokenizer.from_pretrained("{name}"), AutoModel.from_pretrained("{name}").eval()
dense = [load_file(f"{name}/{{i}}_Dense/model.safetensors") for i in range(2, {count + 2})]
batch = tokenizer({columns}, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    x, mask = lm(**batch).last_hidden_state, batch["attention_mask"][..., None]
    x = {pooled}
    for i, layer in enumerate(dense):
        x = linear(x.relu() if i else x, layer["linear.weight"], layer["linear.bias"])
probabilities = x.softmax(1)
```
{onnx if args.onnx else ""}
Two warnings are harmless: the pooler is missing because it is not used, and the softmax is over labels.

## How it was made
{check} The difference includes that the folder averages the logits of
{len(head["heads"]["weight"])} heads, and `eval.py` their probabilities. Step 1 ran with {step1}. The commands after it:
```sh
{commands_of(args, head)}
```
"""


# Command line -----------------------------------------------------------------------------------
def main():
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    p.error, flag = one_line_error, p.add_argument
    flag("--out", default="runs", help="run folder (default: runs)")
    flag("--to", required=True, help="folder to write, new or empty")
    flag("--data", help="root of the data, if it moved since step 1")
    flag("--lang", required=True, help="target language, such as ko")
    flag("--method", choices=METHODS, help="as in step 3 (default: langalign, or rev for inside)")
    flag("--arch", choices=(*ARCHES, "inside"), default="fc", help="as in step 3 (default: fc)")
    flag("--via", nargs="+", metavar="LANG", help="languages of the aligner (default: --lang)")
    flag("--n", type=int, help="pairs per language (default: the only head found)")
    flag("--residuals", action="store_true", help="the head trained with --residuals")
    flag("--seed", type=int, default=0, help="seed of the head (default: 0)")
    flag("--license", help="for the card: licence of the LM of step 1, such as mit")
    flag("--onnx", action="store_true", help="also write onnx/model.onnx")
    args = p.parse_args()
    check_flags(args)
    to = Path(args.to).resolve()
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(f"--to {args.to}: exists and is not empty; delete it or choose another")
    missing = [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
    if args.onnx and missing:
        raise UserError(f"--onnx needs {missing[0]}; run: pip install onnx onnxscript")

    transformers.logging.set_verbosity_error()  # no load report about the unused pooler
    encoder, info = load_encoder(args.out, data=args.data)
    flags = {name: vars(args)[name] for name in describe(args.lang) if name != "lang"}
    head = find(args.out, "head", encoder.digest, args.lang, **flags)
    test = Path(info["data"], info["task"], args.lang, "test.tsv").exists()
    texts = load_task(info, args.lang, "test")[0][:ROWS] if test else load_english(info)[0][:100]
    wanted = logits_of(head, encoder, partial(encode, encoder), texts)  # (S, N, C), before merge
    aligner = build_aligner(head, encoder.lm) if head["method"] == "rev" else None
    if head["arch"] == "inside" and aligner:
        merge(aligner, encoder.lm)
        aligner = None
    layers = dense_layers(head["heads"], aligner)

    fresh = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        for dtype in (torch.float16, torch.float32):
            write_folder(fresh, encoder, layers, head, dtype)
            rounding, difference, other, differ = compare(wanted, Shipped(fresh).label(texts))
            if rounding <= ROUNDING and not other:
                break
        rows = f"{args.lang} test" if test else "English training"
        check = f"Labels that differ: {differ} of {len(texts)} {rows} rows; largest difference of"
        check += f" probabilities {difference:.4f} ({str(dtype).removeprefix('torch.')} weights)."
        say(check)
        if not rounding <= ROUNDING:  # or it is nan
            raise UserError(f"--to {args.to}: the folder does not label as {head['path']} does")
        if args.onnx:
            write_onnx(fresh, texts)
        text = card(args, head, encoder, info, len(layers), check)
        (fresh / "README.md").write_text(text, encoding="utf-8")
        if to.exists():
            to.rmdir()
        fresh.rename(to)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    say(f"-> {to}")


if __name__ == "__main__":
    run(main)
