"""common.py: encode, cache, loaders, aligner shapes, artifacts."""
import os
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import WORDS, step1, write

import common
from common import ROWS, Aligner, Cache, UserError, encode, load_encoder, load_translated, read_tsv

CPU = torch.device("cpu")
TEXTS = [(" ".join(WORDS[:k]),) for k in (3, 11, 5, 1, 7, 20, 2)]


def one_by_one(encoder, texts):
    """The plain way: a sentence at a time, no padding, the library's own call."""
    out = []
    with torch.no_grad():
        for text in texts:
            batch = encoder.tokenizer(*[[part] for part in text], return_tensors="pt")
            hidden = encoder.lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0][0]
            out.append(hidden.mean(0) if encoder.pool == "mean" else hidden[0])
    return torch.stack(out)


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_encode_equals_one_sentence_at_a_time(tiny, tmp_path, pool, budget):
    encoder, _ = load_encoder(step1(tiny, tmp_path, "--pool", pool))
    plain = one_by_one(encoder, TEXTS)
    assert plain.std(0).mean() > 0.1, "the encoder must tell the texts apart for this to test anything"
    assert (encode(encoder, TEXTS, CPU, budget=budget) - plain).abs().max() < 1e-5


def test_encode_pairs_as_one_sequence(folder):
    encoder, _ = load_encoder(folder)
    pairs = [(a[0], b[0]) for a, b in zip(TEXTS, TEXTS[1:])]
    assert (encode(encoder, pairs, CPU, budget=40) - one_by_one(encoder, pairs)).abs().max() < 1e-5
    assert encoder.tokenize(pairs[:1])[0]["input_ids"].count(2) == 3              # <s> A </s></s> B </s>


def test_order_of_rows_does_not_matter(folder):
    encoder, _ = load_encoder(folder)
    assert (encode(encoder, TEXTS[::-1], CPU, budget=30).flip(0) - encode(encoder, TEXTS, CPU)).abs().max() < 1e-5


def test_token_type_ids_are_padded(folder):
    rows = [{"input_ids": [0, 5, 2], "token_type_ids": [0, 0, 1]}, {"input_ids": [0], "token_type_ids": [0]}]
    tokenizer = load_encoder(folder)[0].tokenizer
    batch = common.pad(rows, tokenizer, CPU)
    assert batch["input_ids"].tolist() == [[0, 5, 2], [0, *[tokenizer.pad_token_id] * 2]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_masked_mean_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    assert common.masked_mean(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 4.0]]


def test_long_text_is_cut_to_the_encoders_length(folder):
    encoder, _ = load_encoder(folder)
    assert encoder.max_len == 48
    assert len(encoder.tokenize([(" ".join(WORDS * 9),)])[0]["input_ids"]) == 48


def test_encoder_loads_as_fp32_though_its_file_is_fp16(tiny):
    encoder = common.load_pretrained(str(tiny[0]), "mean", 48)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_cache_encodes_a_text_once(folder, monkeypatch):
    encoder, _ = load_encoder(folder)
    calls = []
    monkeypatch.setattr(common, "encode", lambda e, t, *a, **k: calls.append(list(t)) or encode(e, t, *a, **k))
    first = Cache(encoder, folder, CPU)
    whole = encode(encoder, TEXTS, CPU)
    assert (first(TEXTS[:4]) - whole[:4]).abs().max() < 1e-5
    again = Cache(encoder, folder, CPU)                       # a new process, n larger: a prefix is known
    assert (again(TEXTS + TEXTS[:2]) - torch.cat([whole, whole[:2]])).abs().max() < 1e-5
    assert calls == [TEXTS[:4], TEXTS[4:]]
    assert torch.equal(Cache(encoder, folder, CPU)(TEXTS), again(TEXTS)) and len(calls) == 2


def test_cache_of_several_files_and_of_another_lm(folder, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "SHARD", 3)
    encoder, _ = load_encoder(folder)
    cache = Cache(encoder, folder, CPU)
    assert (cache(TEXTS) - encode(encoder, TEXTS, CPU)).abs().max() < 1e-5
    assert len(list(cache.folder.iterdir())) == 3
    other, _ = load_encoder(step1(tiny, tmp_path / "other", "--pool", "cls"))
    assert other.fingerprint != encoder.fingerprint
    cls = Cache(other, folder, CPU)
    assert (cls(TEXTS) - one_by_one(other, TEXTS)).abs().max() < 1e-5
    assert len(list(cls.folder.iterdir())) == 3 and cls.folder != cache.folder


def test_n_is_a_prefix_of_one_order(tiny):
    small, large = (load_translated(tiny[1], "mood", "xx", n) for n in (20, 60))
    assert [part[:20] for part in large[:2]] == list(small[:2])
    assert len(set(large[0])) > 50 and large[0] != load_translated(tiny[1], "mood", "xx")[0][-60:]
    english, target, none = load_translated(tiny[1], "pair", "xx")
    assert none is None
    assert len(english) == 90 and all(len(t) == 2 for t in english + target)
    assert all("x" + e.split()[0] == t.split()[0] for e, t in zip([x[1] for x in english], [x[1] for x in target]))


def test_default_n_is_20000_or_what_there_is():
    assert common.DEFAULT_N == 20_000
    order = common.fixed_order(30_000)
    assert sorted(order) == list(range(30_000)) and order != sorted(order)


def test_tsv_keeps_what_is_text(tmp_path):
    odd = "a\u2028b\u0085c \"quoted\" \U0001f600 \u05d0"
    (tmp_path / "f.tsv").write_bytes(f"\ufefflabel\ttext\r\ngood\t{odd}\r\nbad\tz\r\n\r\n".encode())
    assert read_tsv(tmp_path / "f.tsv", *ROWS) == [("good", odd), ("bad", "z")]


@pytest.mark.parametrize("content, line, what", [
    (b"", ":1:", "the header is ['']"), (b"label\ttext\n", "", "no rows"), (b"label\ttext\ng\tx\n", "", "1 rows"),
    (b"a\tb\n1\t2\n", ":1:", "the header is ['a', 'b'], not, between tabs: label text or: label text text_b"),
    (b"label\ttext\ng\tx\ng\n", ":3:", "1 columns"), (b"label\ttext\ng\tx\ty\n", ":2:", "3 columns"),
    (b"label\ttext\ng\tx\nb\t\xff\n", ":3:", "0xff is not UTF-8"), (b"label\ttext\ng\t \n", ":2:", "an empty text"),
    (b"label\ttext\ng\tx\nlabel\ttext\n", ":3:", "header again"),
    (b"label\ttext\ttext\ng\tx\ty\n", ":1:", "the header is"), (b"text\tlabel\nx\tg\n", ":1:", "the header is"),
    (b"label text\ng x\n", ":1:", "the header is ['label text']")])
def test_bad_rows_name_file_and_line(tmp_path, content, line, what):
    path = tmp_path / "f.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="f.tsv" + line) as caught:
        read_tsv(path, *ROWS)
    assert what in str(caught.value) and "\n" not in str(caught.value)


def test_dev_is_held_out_where_there_is_none(tmp_path):
    write(tmp_path / "t" / "en" / "train.tsv", ["label", "text"], [["ab"[i % 2], f"s{i}"] for i in range(50)])
    (texts, y), (dev, dev_y) = common.load_train_dev(tmp_path, "t", "en", ["a", "b"])
    assert (len(texts), len(y), len(dev), len(dev_y)) == (45, 45, 5, 5) and not set(texts) & set(dev)


@pytest.mark.parametrize("arch, depth, hidden, widths", [
    ("fc", 1, None, [16, 16]), ("fc", 2, None, [16, 16, 16]), ("fc", 6, 20, [16, 20, 20, 20, 20, 20, 16]),
    ("ae", 3, None, [16, 13, 11, 8, 11, 13, 16]), ("ae", 2, 4, [16, 10, 4, 10, 16])])
def test_aligner_shapes_and_depth(arch, depth, hidden, widths):
    aligner = Aligner(arch, 16, depth, hidden, 0.1)
    linear = [m for m in aligner.modules() if isinstance(m, torch.nn.Linear)]
    assert [linear[0].in_features, *(m.out_features for m in linear)] == widths
    assert aligner(torch.randn(5, 16)).shape == (5, 16)
    kinds = [type(m).__name__ for m in getattr(aligner.f, "_modules", {}).values()]
    assert kinds == (["Linear", "ReLU", "Dropout"] * len(linear))[:-2] if len(linear) > 1 else True


@pytest.mark.parametrize("arch", ["fc", "ae", "shift"])
def test_an_aligner_by_hand(arch):
    """(x - mean_x) W + f((x - mean_x) / scale_x) * scale_y + mean_y; a closed form has no f and nothing to train."""
    aligner = Aligner(arch, 4, 2)
    aligner.mean_x, aligner.mean_y, aligner.W = torch.ones(4), torch.full((4,), 3.0), torch.randn(4, 4)
    aligner.scale_x, aligner.scale_y, x = torch.full((4,), 2.0), torch.tensor(5.0), torch.randn(3, 4)
    f = aligner.f((x - 1) / 2) * 5 if arch != "shift" else 0
    assert torch.allclose(aligner(x), (x - 1) @ aligner.W + 3 + f, atol=1e-5)
    assert bool(list(aligner.parameters())) == (arch != "shift") and aligner.W.grad_fn is None


def test_artifact_round_trip(tmp_path):
    content = {"t": torch.randn(3, 2), "half": torch.ones(2).half(), "n": 3, "none": None, "d": {"s": "x", "l": [1.5]}}
    common.save(tmp_path / "a.pt", "note", lm="f" * 40, **content)
    back = common.load(tmp_path / "a.pt", "note", "remake", "f" * 40)
    assert torch.equal(back["t"], content["t"]) and {k: back[k] for k in ("n", "none", "d")} == \
        {k: content[k] for k in ("n", "none", "d")}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("spoil", ["truncate", "flip", "text", "pickle", "kind", "lm", "missing"])
def test_artifact_mismatches_are_refused(tmp_path, spoil):
    path = tmp_path / "a.pt"
    common.save(path, "note", lm="f", t=torch.arange(999.0))
    raw = bytearray(path.read_bytes())
    place = raw.find(torch.arange(999.0).numpy().tobytes()[:400]) + 100
    raw[place] ^= 1 if spoil == "flip" else 0
    path.write_bytes({"truncate": raw[:-700], "text": b"hello"}.get(spoil, raw))
    if spoil == "pickle":
        torch.save({"kind": "note", "call": os.system}, path)
    if spoil == "missing":
        path.unlink()
    with pytest.raises(UserError, match="a.pt: .*: python step2") as caught:
        common.load(path, "head" if spoil == "kind" else "note", "python step2", "g" if spoil == "lm" else "f")
    assert "\n" not in str(caught.value)


def test_a_killed_runs_temporary_goes_when_it_is_old_and_anothers_stays(tmp_path):
    old, fresh, other = (tmp_path / name for name in (".a.pt.1.1", ".a.pt.2.2", ".b.pt.1.1"))
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    common.save(tmp_path / "a.pt", "align", lm="f")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.pt.2.2", ".b.pt.1.1", "a.pt"]


def test_disk_full_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(common.Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        common.save(tmp_path / "a.pt", "align", lm="f")
    assert not list(tmp_path.iterdir())


def test_embed_artifact_holds_the_whole_lm(folder, tiny):
    encoder, info = load_encoder(folder)
    plain = common.load_pretrained(str(tiny[0]), "mean", 256)
    for (name, ours), theirs in zip(encoder.lm.state_dict().items(), plain.lm.state_dict().values()):
        assert torch.equal(ours, theirs), name
    assert info["labels"] == ["bad", "good"] and info["task"] == "mood" and not info["pair"]
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.lm.training


@pytest.mark.parametrize("how", ["autocast", "cast"])
def test_fp16_and_bf16_stay_close(folder, how):
    """Step 1 encodes dev under autocast; the later steps cast the frozen LM (open_run)."""
    encoder, _ = load_encoder(folder)
    plain = encode(encoder, TEXTS, CPU)
    for amp, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if how == "autocast":
            encoder.amp = dtype
        else:
            encoder = common.open_run(types.SimpleNamespace(out=folder, device="cpu", amp=amp))[0].encoder
            assert {p.dtype for p in encoder.parameters()} == {dtype}
        low = encode(encoder, TEXTS, CPU)
        assert low.dtype == torch.float32 and F.cosine_similarity(low, plain).min() > 0.99
        assert not torch.equal(low, plain), f"{dtype} was not used"


def test_digest_tells_content_apart():
    same = [common.digest({"a": torch.tensor([1.0, 2.0]), "b": "x"}), common.digest({"b": "x", "a": torch.tensor([1.0, 2.0])})]
    assert same[0] == same[1]
    others = [{"a": torch.tensor([[1.0, 2.0]]), "b": "x"}, {"a": torch.tensor([1, 2]), "b": "x"},
              {"a": torch.tensor([2.0, 1.0]), "b": "x"}, {"a": torch.tensor([1.0, 2.0]), "b": "y"}]
    assert len({same[0], *map(common.digest, others)}) == 5


def test_seeded_bootstrap_and_order_are_numpy_stable():
    assert np.array_equal(common.fixed_order(5), np.random.default_rng(common.SHUFFLE_SEED).permutation(5))


def test_a_bad_label_of_the_pairs_is_named_by_its_line_in_the_file(tmp_path):
    rows = [["good" if i != 15 else "godo", f"text {i}", f"xtext {i}"] for i in range(30)]
    write(tmp_path / "t" / "xx" / "translated.tsv", ["label", "text", "translation"], rows)
    with pytest.raises(common.UserError, match="translated.tsv:17: label 'godo'"):
        common.load_train_dev(tmp_path, "t", "xx", ["bad", "good"], translated=True)
    assert len(common.load_translated(tmp_path, "t", "xx")[0]) == 30, "labels do not matter to an aligner"
