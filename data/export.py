"""Export one head, with its LM, as a folder that sentence-transformers loads (data/README.md, "Ship it").

    python data/export.py --lang jv --arch inside --out runs/reviews --to shipped
    python data/export.py --lang ko --residuals --to shipped --onnx    # also onnx/model.onnx

Reads    <out>/ of steps 1 to 3, test.tsv of --lang or else English rows, results-*.json of eval.py.
Writes   --to: Transformer, Pooling and Dense modules, labels.json, and README.md, a model card. It labels the
         rows with both. After an error it writes nothing. --amp is off by default.
Expect   "Labels that differ: 0 of 400". 16-bit weights, or 32-bit ones if those change a label.

Any head becomes a stack of Dense layers. Inside merges into the LM's weights, A behind the LM and all
standardisations into the linear layers next to them. The seeds' heads become one with the mean of their logits,
where eval.py takes the mean of their probabilities. Shapes: as in common.py."""

import contextlib
import importlib.util
import json
import logging
import re
import shlex
import shutil
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import METHODS, UserError, build_aligner, check_flags, describe, encode, load_encoder
from common import load_english, load_task, logits, make_parser, masked_mean, pick_device, run
from common import say, warn
from eval import digest_of_weights, load_head, logits_of

ROWS = 1_000  # rows that check the folder, at most
MODELS = "sentence_transformers.models"  # modules under names that all versions know
ROUNDING = 0.01  # largest difference between probabilities that counts as rounding


@torch.no_grad()
def dense_layers(heads, aligner, dim):
    """Return [(weight (out, in), bias (out,)), ...] for embeddings (N, dim), with ReLU between and a softmax after
    them: the Aligner, if there is one, then the mean of S heads."""
    steps = [lambda x: logits(heads, x).mean(0), nn.ReLU()]
    if aligner:
        parts = aligner.f if isinstance(aligner.f, nn.Sequential) else [aligner.f]
        standardise = lambda x: (x - aligner.mean_x) / aligner.scale_x
        restore = lambda x: x * aligner.scale_y + aligner.mean_y
        steps = [standardise, *parts, restore, *steps]
    layers, out = [], torch.cat([torch.zeros(1, dim), torch.eye(dim)])
    for step in steps:
        if isinstance(step, nn.ReLU):  # what is before it is f(x) = W x + b: b = f(0)
            layers.append(((out[1:] - out[0]).T.contiguous(), out[0].clone()))
            out = torch.cat([torch.zeros(1, out.shape[1]), torch.eye(out.shape[1])])
        else:
            out = step(out)
    return layers


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
    config["model_input_names"] = list(encoder.tokenize(["a"])[0])
    if isinstance(config.get("extra_special_tokens"), list):  # transformers 4 expects a dict
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    write_json(path, config)


def write_folder(folder, encoder, layers, head, dtype):
    """Write LM (floating-point weights in dtype), tokenizer, pooling, Dense layers and label names."""
    shutil.rmtree(folder, ignore_errors=True)
    weights = encoder.lm.state_dict().items()
    state = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights}
    encoder.lm.save_pretrained(folder, state_dict=state)  # config.json keeps float32
    write_tokenizer(folder, encoder)
    cls = encoder.pool == "cls"
    pooling = {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    files = {
        "sentence_bert_config.json": {"max_seq_length": encoder.max_len, "do_lower_case": False},
        "1_Pooling/config.json": pooling | {"word_embedding_dimension": encoder.dim},
    }
    for i, (weight, bias) in enumerate(layers, 2):
        last = i == len(layers) + 1
        config = {"in_features": weight.shape[1], "out_features": len(weight), "bias": True}
        activation = "Softmax" if last else "ReLU"
        config["activation_function"] = f"torch.nn.modules.activation.{activation}"
        if last and head["two_texts"]:
            config["module_output_name"] = "scores"  # which CrossEncoder reads
        write_json(folder / f"{i}_Dense/config.json", config)
        tensors = {"linear.weight": weight, "linear.bias": bias}
        save_file(tensors, folder / f"{i}_Dense/model.safetensors", {"format": "pt"})
    for path in folder.rglob("*.safetensors"):  # safetensors 0.8 lets only the owner read
        path.chmod((folder / "config.json").stat().st_mode)

    kinds = ["Transformer", "Pooling", *["Dense"] * len(layers)]
    files["modules.json"] = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{MODELS}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    kind = "CrossEncoder" if head["two_texts"] else "SentenceTransformer"
    config = {"model_type": kind, "activation_fn": "torch.nn.modules.linear.Identity"}
    files |= {"config_sentence_transformers.json": config, "labels.json": head["labels"]}
    for name, content in files.items():
        write_json(folder / name, content)


class Shipped(nn.Module):
    """The folder, read by transformers and safetensors alone."""

    def __init__(self, folder):
        super().__init__()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.lm = transformers.AutoModel.from_pretrained(folder).eval()
        pooling = json.loads(Path(folder, "1_Pooling/config.json").read_text("utf-8"))
        self.cls = pooling["pooling_mode_cls_token"]
        files = [load_file(path) for path in sorted(Path(folder).glob("*_Dense/*.safetensors"))]
        self.layers = [(file["linear.weight"], file["linear.bias"]) for file in files]

    def forward(self, batch):
        """Return the probabilities (B, C) of a dict of (B, T) tensors."""
        hidden = self.lm(**batch).last_hidden_state  # (B, T, D)
        x = hidden[:, 0] if self.cls else masked_mean(hidden, batch["attention_mask"])
        for layer in self.layers[:-1]:
            x = F.linear(x, *layer).relu()
        return F.linear(x, *self.layers[-1]).softmax(1)

    def tokenize(self, texts):
        """Tuples of one or two texts -> dict of (B, T) tensors."""
        columns = [list(column) for column in zip(*texts)]
        return dict(self.tokenizer(*columns, padding=True, truncation=True, return_tensors="pt"))

    @torch.no_grad()
    def label(self, texts):
        """Return the probabilities (N, C) of tuples of one or two texts."""
        parts = [texts[i : i + 32] for i in range(0, len(texts), 32)]
        return torch.cat([self(self.tokenize(part)) for part in parts])


def write_onnx(folder, texts):
    """Write onnx/model.onnx: token ids (B, T) -> probabilities (B, C), for any B and T."""
    shipped = Shipped(folder)
    batch = shipped.tokenize(texts[:3])
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    options = {"input_names": list(batch), "output_names": ["probabilities"], "verbose": False}
    options["dynamic_shapes"] = [dict.fromkeys(batch, sizes)]
    Path(folder, "onnx").mkdir()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # without {} the last dict would be keywords
        torch.onnx.export(shipped, (batch, {}), folder / "onnx/model.onnx", **options)


# The model card ---------------------------------------------------------------------------------
def commands_of(args, head):
    """Return the commands that made the folder after step 1, one per line."""
    flags = {name: head[name] for name in ("method", "arch", "n", "seed")}
    flags |= {"out": args.out, "data": args.data}
    flags = {name: shlex.quote(str(value)) for name, value in flags.items() if value is not None}
    flags = " ".join(f"--{name} {value}" for name, value in flags.items())
    step3 = f"step3_head.py --lang {args.lang} {flags} --l2 {head['l2']}"
    step3 += f" --seeds {len(head['heads']['weight'])}" + " --residuals" * head["residuals"]
    step3 += " --unlabelled FILE" * (head["method"] == "centred")
    lines = [step3, f"data/export.py {shlex.join(sys.argv[1:])}"]
    if head["arch"]:
        via = " ".join(head["via"])
        if len({*head.get("pairs", {}).values()}) > 1:  # then step 2 took all pairs
            flags = re.sub(r"--n \d+ ", "", flags)
        lines = [f"step2_align.py --lang {via} {flags}", f"{step3} --via {via}", lines[1]]
    return "\n".join(f"python {line}" for line in lines)


def card(args, head, info, check):
    """Return the text of README.md, the model card."""
    table, weights = "", digest_of_weights(head)
    for path in sorted(Path(args.out).glob("results-*.json")):
        for r in json.loads(path.read_text("utf-8")):
            if r.get("weights") == weights:  # in any language: a pooled A serves several
                table += "\n| {lang} | {rows} {split} rows | {accuracy:.2%} |".format(**r)
    if not table:
        missing = (
            "the card has no accuracy; with a labelled test.tsv run eval.py, then export again"
        )
        warn(missing)
    kind, call = "SentenceTransformer", 'encode(["a text"])'
    if head["two_texts"]:
        kind, call = "CrossEncoder", 'predict([("a text", "its text_b")])'
    aligner = f" (A is {head['arch']}, of {' '.join(head['via'])})" if head["arch"] else ""
    return f"""---
language: {json.dumps(sorted({args.lang, *(head["via"] or [])}))}
license: {args.license}
pipeline_tag: text-classification
library_name: sentence-transformers
tags: [langalign]
---
# {info["task"]}

LangAlign (arXiv 2503.18603) made this classifier. Its head is trained on:
{METHODS[head["method"]]}{aligner}.

| language | judged on | accuracy |
|---|---|---|{table}

```python
from sentence_transformers import {kind}  # version 6 or later

labels = {json.dumps(head["labels"], ensure_ascii=False)}
probabilities = {kind}("{Path(args.to).resolve().name}").{call}  # one column per label
print([labels[i] for i in probabilities.argmax(1)])
```
Two warnings are harmless: the pooler is missing because it is not used, and the softmax is over labels.

{check}
In the difference, the folder averages the logits of {len(head["heads"]["weight"])} heads, and `eval.py` their probabilities.
The commands after step 1:
```sh
{commands_of(args, head)}
```
"""


def main():
    p = make_parser(__doc__, step=4)
    p.set_defaults(amp="off")
    flag = p.add_argument
    flag("--to", required=True, help="folder to write, new or empty")
    flag("--license", default="unknown", help="licence of the LM of step 1 (default: unknown)")
    flag("--onnx", action="store_true", help="also write onnx/model.onnx")
    args = p.parse_args()
    check_flags(args)
    to = Path(args.to).resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {args.to}: exists and is not empty; delete it or choose another")
    if args.onnx and not importlib.util.find_spec("onnxscript"):  # which needs onnx
        raise UserError("--onnx needs two more packages; run: pip install onnx onnxscript")

    transformers.logging.set_verbosity_error()  # no load report about the unused pooler
    device, dtype, _ = pick_device(args)
    encoder, info = load_encoder(args.out, device, dtype, args.data, args.batch_tokens)
    flags = {name: vars(args)[name] for name in describe(args.lang) if name != "lang"}
    head = load_head(args.out, encoder, args.lang, **flags)
    test = Path(info["data"], info["task"], args.lang, "test.tsv").exists()
    texts = (load_task(info, args.lang, "test") if test else load_english(info))[0][:ROWS]
    wanted = logits_of(head, encoder, partial(encode, encoder), texts)  # (S, N, C)
    mean, product = wanted.mean(0).softmax(1), wanted.softmax(2).mean(0)  # folder's, eval.py's
    aligner = build_aligner(head, encoder.lm) if head["method"] == "rev" else None
    merged = contextlib.nullcontext()
    if head["arch"] == "inside":
        aligner, merged = None, aligner.to(device).on(encoder)
    layers = dense_layers(head["heads"], aligner, encoder.dim)

    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".export") as folder, merged:
        fresh = Path(folder, to.name)
        for dtype in (torch.float16, torch.float32):  # 16 bits unless they change a label
            write_folder(fresh, encoder, layers, head, dtype)
            found = Shipped(fresh).label(texts)  # (N, C)
            close = torch.allclose(found, mean, rtol=0, atol=ROUNDING)
            if close and torch.equal(found.argmax(1), mean.argmax(1)):
                break
        else:
            raise UserError(f"--to {args.to}: the folder does not label as {head['path']} does")
        differ, source = (found.argmax(1) != product.argmax(1)).sum(), args.lang if test else "en"
        check = f"Labels that differ: {differ} of {len(texts)} {source} rows, with {dtype} weights."
        check += f" Largest difference of probabilities: {(found - product).abs().max():.4f}."
        say(check)
        if args.onnx:
            write_onnx(fresh, texts)
        (fresh / "README.md").write_text(card(args, head, info, check), encoding="utf-8")
        fresh.rename(to)
    say(f"-> {to}")


if __name__ == "__main__":
    run(main)
