"""A user's mistake gets one line with what, where and the command that mends it; nothing is half-written."""
import contextlib
import io
import re
import shutil

import eval as evaluation
import pytest
import step1_embed
import step2_align
import step3_head
from conftest import SCRIPTS, go, script, step1, write
from safetensors.torch import load_file, save_file

import common


@pytest.fixture
def ready(folder):
    """Run folder after all steps, its bytes and names to compare with afterwards."""
    go(folder, "step2_align --lang xx --arch shift", "step3_head --lang xx")
    return folder


def refuse(main, *args, match):
    """One line on stderr that matches, exit status 2."""
    err = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(err):
        common.run(lambda: main([str(a) for a in args]))
    text = err.getvalue()                                    # with progress bars, perhaps
    line = text.rstrip("\n").split("\n")[-1].split("\r")[-1].strip()
    assert caught.value.code == 2 and text.count("error: ") == 1 and "Traceback" not in text, text
    assert re.search(match, line) and len(line) < 450, text


def listing(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("main, args, match", [
    (step2_align.main, ["--lang", "zz"], "mood/zz/translated.tsv: No such file or directory; .* has: en xx"),
    (step2_align.main, ["--lang", "en"], "translated.tsv"),
    (step2_align.main, ["--lang", "xx", "--n", 91], "has 90 pairs; use --n 90"),
    (step2_align.main, ["--lang", "xx", "--n", 0], "argument --n: invalid int .1 or more. value: '0'"),
    (step2_align.main, ["--lang", "xx", "--n", 10], "too few"),
    (step2_align.main, ["--lang", "xx", "--noise", "1.5"], "0 or more, below 1. value: '1.5'"),
    (step2_align.main, ["--lang", "xx", "--arch", "cnn"], "invalid choice.*step2_align|invalid choice"),
    (step2_align.main, [], "--lang"),
    (step2_align.main, ["--lang", "xx", "--device", "cuda:77"], "--device cuda:77"),
    (step2_align.main, ["--lang", "xx", "--device", "tpux"], "--device tpux"),
    (step3_head.main, ["--lang", "zz"], "no aligner .*make it with: python step2_align.py .*--lang zz"),
    (step3_head.main, ["--lang", "xx", "--n", 50], "no aligner .*--n 50"),
    (step3_head.main, ["--lang", "xx", "--method", "rev"], "no aligner .*--reverse"),
    (step3_head.main, ["--lang", "zz", "--method", "native"], "mood/zz/train.tsv: No such file"),
    (step3_head.main, ["--lang", "xx", "--method", "magic"], "invalid choice"),
    (step3_head.main, ["--method", "native"], "--lang is missing"),
    (step3_head.main, ["--lang", "xx", "--l2", "many"], "invalid float .0 or more. value: 'many'"),
    (step3_head.main, ["--lang", "xx", "--l2", "-5"], "invalid float .0 or more. value: '-5'"),
    (step3_head.main, ["--lang", "xx", "--l2", "nan"], "invalid float .0 or more. value: 'nan'"),
    (step2_align.main, ["--lang", "xx", "--seed", "-1"], "--seed: invalid int .0 or more"),
    (evaluation.main, ["--seed", str(10 ** 20)], "--seed: invalid int .0 or more"),
    (step2_align.main, ["--lang", "xx", "--arch", "linear", "--plain"], "--plain.* are of fc and ae, not of .*linear"),
    (step2_align.main, ["--lang", "xx", "--arch", "shift", "--depth", "9"], "--depth.* are of fc and ae"),
    (evaluation.main, ["--lang", "zz"], "zz"),
    (evaluation.main, ["--lang", "zz", "--predict", "-"], "heads for en xx, not for en and zz; make: .*--lang zz"),
    (evaluation.main, ["--predict", "nofile.txt"], "No such file or directory: 'nofile.txt'"),
])
def test_mistakes_in_a_finished_run_folder(ready, main, args, match):
    before = listing(ready)
    refuse(main, *args, "--out", ready, match=match)
    assert listing(ready) == before


@pytest.mark.parametrize("main, args, match", [
    (step2_align.main, ["--lang", "xx"], "embed.pt: no such artifact; make it with: python step1_embed.py --out"),
    (step3_head.main, ["--lang", "xx"], "embed.pt: no such artifact"),
    (evaluation.main, [], "embed.pt: no such artifact"),
    (step1_embed.main, ["--data", "nodata"], "nodata/sentiment/en/train.tsv: No such file .*data/README.md"),
    (step1_embed.main, ["--lang", "ko"], "--lang goes with"),
    (step1_embed.main, ["--train-on", "native"], "--lang goes with"),
    (step1_embed.main, ["--lr", "-1"], "--lr: invalid float .0 or more. value: '-1'"),
])
def test_mistakes_in_an_empty_folder(tmp_path, main, args, match):
    refuse(main, *args, "--out", tmp_path / "run", match=match)
    assert not (tmp_path / "run").exists()


def test_step1_names_what_is_wrong_with_data_and_model(tiny, tmp_path):
    model, data, out = tiny[0], tiny[1], ["--out", tmp_path / "run"]
    base = ["--model", model, "--data", data, *out]
    refuse(step1_embed.main, *base, "--task", "poetry", match="poetry/en/train.tsv: No such file .* has: mood pair")
    refuse(step1_embed.main, "--model", tmp_path / "none", "--data", data, "--task", "mood", *out,
           match="--model .*none: .*data/toy.py")
    (tmp_path / "hollow").mkdir()
    refuse(step1_embed.main, "--model", tmp_path / "hollow", "--data", data, "--task", "mood", *out, match="hollow")
    renamed = shutil.copytree(model, tmp_path / "renamed")
    weights = load_file(renamed / "model.safetensors")
    save_file({f"backbone.{key}": value for key, value in weights.items()}, renamed / "model.safetensors")
    refuse(step1_embed.main, "--model", renamed, "--data", data, "--task", "mood", *out, match="lacks weights")
    rows = [["good", "a film"], ["bad", "the film"]]
    for content, match in (([["good", "x"], ["good", "y"]], "labels are \\['good'\\]"),
                           ([["", "x"], ["good", "y"]], "train.tsv:2: label ''; the English training labels are")):
        write(tmp_path / "d" / "t" / "en" / "train.tsv", ["label", "text"], content)
        refuse(step1_embed.main, "--model", model, "--data", tmp_path / "d", "--task", "t", *out, match=match)
    write(tmp_path / "d" / "t" / "en" / "train.tsv", ["label", "text"], rows * 9)
    write(tmp_path / "d" / "t" / "en" / "dev.tsv", ["label", "text"], [rows[0], ["meh", "x"]])
    refuse(step1_embed.main, "--model", model, "--data", tmp_path / "d", "--task", "t", *out,
           match="dev.tsv:3: label 'meh'")
    assert not (tmp_path / "run").exists()


def test_artifacts_of_another_lm_language_or_width_are_refused(ready, tiny, tmp_path):
    other = step1(tiny, tmp_path / "other", "--pool", "cls")
    for name in ("align-xx-shift-n90.pt", "head-langalign-xx-shift-n90.pt"):
        (other / name).write_bytes((ready / name).read_bytes())
    refuse(step3_head.main, "--lang", "xx", "--out", other, match="another LM.*python step2_align.py")
    refuse(evaluation.main, "--out", other, match="head-.*: made with another LM.*python step3_head.py")
    (ready / "align-yy-shift-n90.pt").write_bytes((ready / "align-xx-shift-n90.pt").read_bytes())
    refuse(step3_head.main, "--lang", "yy", "--out", ready, match="no aligner")


@pytest.mark.parametrize("name, main", [("embed.pt", step2_align.main), ("align-xx-shift-n90.pt", step3_head.main),
                                        ("head-english.pt", evaluation.main)])
def test_truncated_artifacts_are_refused(ready, name, main):
    raw = (ready / name).read_bytes()
    (ready / name).write_bytes(raw[:len(raw) // 2])
    refuse(main, "--lang", "xx", "--out", ready, match=f"{name}: .*make it with: python step")


@pytest.mark.parametrize("spoil", ["width", "order", "names"])
def test_head_of_another_width_or_labels_is_refused(ready, spoil):
    """Labels in another order would be read as each other without a word."""
    head = common.load(ready / "head-english.pt", "head", "")
    if spoil == "width":
        head["heads"]["weight"] = head["heads"]["weight"][..., :8]
    else:
        head["labels"] = ["good", "bad"] if spoil == "order" else ["bad", "fine"]
    common.save(ready / "head-english.pt", **head)
    before = listing(ready)
    for args in ([], ["--lang", "xx", "--predict", "-"], ["--lang", "xx", "--plot", ready / "x.svg"]):
        refuse(evaluation.main, *args, "--out", ready, match="head-english.pt: .*(labels|size).*python step3_head.py")
    assert listing(ready) == before


def test_a_run_folder_without_heads(folder):
    refuse(evaluation.main, "--out", folder, match="heads for no language.*python step3_head.py")


@pytest.mark.parametrize("missing", ["head-english.pt", "head-langalign-xx-shift-n90.pt", "--lang"])
def test_plot_needs_a_language_an_english_and_a_langalign_head(ready, missing):
    if missing != "--lang":
        (ready / missing).unlink()
        go(ready, "step3_head --lang xx --method native" if "langalign" in missing else "step2_align --lang xx")
    what = "heads for xx, not for en and xx" if missing == "head-english.pt" else "draws one language that has a lang"
    lang = [] if missing == "--lang" else ["--lang", "xx"]
    refuse(evaluation.main, *lang, "--plot", ready / "x.svg", "--out", ready, match=f"{what}.*python step3_head.py")
    assert not (ready / "x.svg").exists()


def test_aligner_of_another_form_is_refused(ready):
    art = common.load(ready / "align-xx-shift-n90.pt", "align", "")
    art["aligner"]["dim"] = 8
    common.save(ready / "align-xx-shift-n90.pt", **art)
    refuse(step3_head.main, "--lang", "xx", "--out", ready, match="damaged, or not ours")


def test_exit_status_is_2_with_one_line_and_no_traceback(ready):
    for args in (["step3_head.py", "--lang", "xx", "--n", "nine"], ["eval.py", "--predict", "missing.txt"]):
        done = script(args[0], *args[1:], "--out", ready)
        assert done.returncode == 2 and "error: " in done.stderr
        assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_each_script_is_a_page(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        SCRIPTS[name].main(["--help"])
    page = capsys.readouterr().out
    assert all(word in page for word in ("Reads ", "Writes ", "Expect ", f"python {name}", "--out", "default:"))
