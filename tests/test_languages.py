"""One aligner for several languages: two ciphers pooled, a third one unseen, and files that never mix them up.

aa and bb spell each English word in their own way. cc takes every other word from each, as a relative of both would.
"""

import itertools
import json
import random
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import WORDS, few_steps, main, make_encoder, make_row, step1, write

import step2_align
import step3_head
from common import UserError, describe, find, load, load_encoder, load_pairs, path_of, save
from eval import load_classifier

COUNTS = {"aa": 400, "bb": 250}  # pairs: bb has fewer
POOL, POOLED = ["rev", "aa", "bb"], ("--via", "aa", "bb", "--method", "rev", "--arch")


def spell(text, lang):
    """English -> aa, bb or cc, word for word."""
    ends = ["aa", "bb"] if lang == "cc" else [lang]
    return " ".join(word + ends[WORDS.index(word) % len(ends)] for word in text.split())


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    """.out: run folder with pooled aligners, closed and inside, and their heads for all three languages."""
    path, rng = tmp_path_factory.mktemp("related"), random.Random(0)
    data, out = path / "data", path / "runs"
    words = [word + end for end in ("", "aa", "bb") for word in WORDS]
    encoder = make_encoder(path / "encoder", texts=[" ".join(words)])
    english = {count: [make_row(rng, pair=False) for _ in range(count)] for count in (400, 100)}
    write(data / "task/en/train.tsv", "label text", english[400])
    write(data / "task/en/dev.tsv", "label text", english[100])
    for lang in ("aa", "bb", "cc"):
        made = [make_row(rng, pair=False) for _ in range(200)]
        rows = [(label, spell(text, lang)) for label, text in made]
        write(data / f"task/{lang}/test.tsv", "label text", rows)
        if lang in COUNTS:
            rows = [(*row, spell(row[1], lang)) for row in english[400][: COUNTS[lang]]]
            write(data / f"task/{lang}/translated.tsv", "label text translation", rows)
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch, 200)
        fit_inside = partial(step2_align.fit_inside, epochs=6, lr=1e-2)
        patch.setattr(step2_align, "fit_inside", fit_inside)
        step1(encoder, data, out, "--lr", 1e-3, task="task", epochs=2)
        for arch in ("linear", "inside"):
            flags = "--method", "rev", "--arch", arch, "--out", out
            main("step2_align.py", "--lang", "bb", "aa", *flags)  # in any order
            for lang in ("aa", "bb", "cc"):
                main("step3_head.py", "--lang", lang, *POOLED, arch, "--out", out)
    return SimpleNamespace(out=out, data=data)


def test_one_aligner_serves_its_languages_and_their_relative(related, capsys):
    """eval's table says whose aligner it is, and whether it has seen the language."""
    for lang, whose in {"aa": "A of aa bb", "bb": "A of aa bb", "cc": "A of aa bb, unseen"}.items():
        main("eval.py", "--lang", lang, "--out", related.out)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  rev")]
        assert len(lines) == 2 and all(line.endswith(whose) for line in lines)
        english, *records = json.loads((related.out / f"results-{lang}.json").read_text())
        pooled = {r["arch"]: r for r in records if [r["method"], *(r["via"] or ())] == POOL}
        assert english["accuracy"] < 0.65 and pooled.keys() == {"linear", "inside"}
        assert all(r["gain"] > 0.2 and r["accuracy"] > 0.65 for r in pooled.values())
    for arch in ("linear", "inside"):
        art = load(related.out / f"align-aa+bb-rev-{arch}-n400.pt", "align")
        report = art["report"]
        assert art["via"] == ["aa", "bb"] and art["pairs"] == COUNTS
        assert report["A, aa"]["r2"] > 0.15 < report["A, bb"]["r2"] and report["identity"]["r2"] < 0


def test_classifier_takes_the_languages_of_its_aligner(related, monkeypatch):
    flags = {"method": "rev", "arch": "inside"}
    pooled = load_classifier(related.out, "bb", via=["bb", "aa"], **flags)
    assert pooled.head["path"].name == "head-bb-via-aa+bb-rev-inside-n400.pt"
    monkeypatch.delattr("common.Inside.merged")  # A is in the LM by now
    labels, _ = pooled([spell("good great kind", "bb"), spell("bad awful rude", "bb")])
    assert labels == ["positive", "negative"]
    with pytest.raises(UserError, match="run: python step3_head.py .*--lang bb --method rev"):
        load_classifier(related.out, "bb", **flags)


def test_held_out_rows_are_new_in_every_language(related, monkeypatch):
    """A row that is translated into two languages is held out in both."""
    seen, solve = [], step2_align.solve
    monkeypatch.setattr(step2_align, "solve", lambda *args: seen.extend(args) or solve(*args))
    flags = "--n", 200, "--method", "rev", "--arch", "linear", "--out", related.out
    main("step2_align.py", "--lang", "aa", "bb", *flags)
    _, x, y, held_x, held_y = seen[-5:]  # before: those of check_pairs
    assert len(x) == len(y) and len(held_x) == len(held_y) and len(y) + len(held_y) == 400
    train, held = (set(map(tuple, rows.tolist())) for rows in (y, held_y))  # e(d_en)
    assert not train & held and 0 < len(held) < len(held_y)  # some rows are in both languages


def test_residuals_are_those_of_all_pairs(related, monkeypatch):
    shapes, train = [], step3_head.train_heads

    def spy(x, y, residuals=None, **options):
        shapes.append(None if residuals is None else tuple(residuals.shape))
        return train(x, y, residuals=residuals, **options, steps=20)

    monkeypatch.setattr(step3_head, "train_heads", spy)
    main("step2_align.py", "--lang", "aa", "bb", "--arch", "linear", "--out", related.out)
    flags = "--arch", "linear", "--residuals", "--out", related.out
    main("step3_head.py", "--lang", "cc", "--via", "aa", "bb", *flags)
    assert shapes == [None, (sum(COUNTS.values()), 32)]


def test_n_is_per_language(related):
    flags = "--arch", "shift", "--out", related.out
    main("step2_align.py", "--lang", "aa", "bb", "--n", 100, *flags)
    art = load(related.out / "align-aa+bb-shift-n100.pt", "align")
    assert art["pairs"] == {"aa": 100, "bb": 100} and art["n"] == 100
    english, target, langs = load_pairs(load_encoder(related.out)[1], {"aa": None, "bb": 100})
    assert langs == ["aa"] * 400 + ["bb"] * 100
    assert target == [(spell(text, lang),) for (text,), lang in zip(english, langs)]


def test_no_two_variants_share_a_file_or_meet_in_find(tmp_path):
    """Every combination of flags has a file of its own, and find returns exactly that one."""
    many = [[f"l{i:03}_Latn" for i in range(count)] for count in (199, 200)]  # names stay short
    vias = ["aa"], ["aa", "bb"], ["bb"], ["aa-bb"], *many, None
    flags = itertools.product(vias, [5, 50], [0, 1], ["fc", "ae"], ["langalign", "rev"])
    files = {}
    for via, n, seed, arch, method in flags:
        for kind in ("align", "head"):
            for residuals in (False, True) if (kind, method) == ("head", "langalign") else (False,):
                options = {"n": n, "seed": seed}
                options |= {"residuals": residuals} if kind == "head" else {}
                fields = describe("cc", method, arch, via, **options)
                files[path_of(tmp_path, kind, **fields).name] = kind, fields
    assert len(files) == 7 * 2**4 + 7 * 2**4 + 7 * 2**3
    for name, (kind, fields) in files.items():
        save(tmp_path / name, kind, lm="x", **fields)
    for name, (kind, fields) in list(files.items())[::7]:
        assert find(tmp_path, kind, "x", **fields)["path"].name == name
