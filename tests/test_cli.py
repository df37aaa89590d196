"""Make users' mistakes: each gets one line that says what, where and how to fix it, and changes no file."""

import argparse
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import bench
import faults
import pytest
from conftest import PLAIN, SCRIPTS, cipher, few_steps, main, make_encoder, read_table, step1
from conftest import write

import common
import eval as evaluation
import step2_align
import step3_head

NAMES = {name.split("_")[0].removesuffix(".py"): name for name in SCRIPTS}  # "step1", ..., "eval"
STEP1 = ["--model", "{encoder}", "--task", "reviews", "--epochs", "1", "--data", "{data}"]


@pytest.fixture
def place(world, folder, tmp_path, monkeypatch):
    """Return copies of a run folder, its encoder and its data, to break."""
    few_steps(monkeypatch, 200)  # as in `runs`: the same bits
    fit_inside = partial(step2_align.fit_inside, epochs=1)
    monkeypatch.setattr(step2_align, "fit_inside", fit_inside)
    data = shutil.copytree(world.data, tmp_path / "data")
    encoder = shutil.copytree(world.encoder, tmp_path / "encoder")
    return SimpleNamespace(path=tmp_path, out=folder, data=data, encoder=encoder)


@pytest.fixture
def play(place, capsys, monkeypatch):
    """Return a function that runs "step2 --n 5" in this process -> (exit status, stdout, stderr)."""

    def run(line):
        script, *args = line.split()
        args = [*(STEP1 if script == "step1" else ["--lang", "ko"]), "--out", "{out}", *args]
        args = [arg.format(**vars(place)) for arg in args]
        monkeypatch.setattr(sys, "argv", [NAMES[script], "--device", "cpu", "--amp", "off", *args])
        status = 0
        try:
            common.run(SCRIPTS[NAMES[script]].main)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def listing(folder):
    """Return {file: bytes} below a folder, without whole files of the cache."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    paths = [path for path in paths if "cache" not in path.parts or ".tmp" in path.name]
    return {path: path.read_bytes() for path in paths}


def rewrite(name, change):
    """Return a preparation that replaces the rows of a file of the task by change(rows)."""

    def prepare(place):
        path = place.data / "reviews" / name
        header, *rows = read_table(path)
        write(path, " ".join(header), change(rows))

    return prepare


pairs, english = partial(rewrite, "ko/translated.tsv"), partial(rewrite, "en/train.tsv")
target, dev = partial(rewrite, "ko/test.tsv"), partial(rewrite, "en/dev.tsv")


def put(name, content):
    return lambda place: (place.path / name).write_bytes(content)


def second_aligner(place):
    shutil.copy(*place.out.glob("align-ko-fc-n*.pt"), place.out / "align-ko-fc-n9.pt")


def another_lm(place):
    """Run step 1 again with another LM, so that the aligners in the folder belong to the first."""
    make_encoder(place.path / "other", seed=1)
    step1(place.path / "other", place.data, place.out)
    main("step3_head.py", "--lang", "ko", "--method", "english", "--out", place.out)


def second_language(place):
    shutil.copytree(place.data / "reviews/ko", place.data / "reviews/xx")


def unlabelled(rows):
    return [["", *row[1:]] for row in rows]


FLAGS = r"""
step1 --data {path}/none       : none/reviews/en/train.tsv: no such file; check --data
step1 --out {path}/encoder/..  : encoder: exists without embed.pt; delete it, or choose another --out
step1 --model {path}/none      : --model .*none: .*; use a hub name or a folder
step1 --lr 4e9                 : the loss is (nan|inf); use a lower --lr than 4e[+]09
step2 --out {path}/none        : none/embed.pt: no such file; run: python step1_embed.py
eval --lang xx                 : xx/test.tsv: no such file; .*without labels use --predict
step2 --lang ko/               : --lang ko/: expected language codes
step2 --lang ko-rev            : --lang ko-rev: expected language codes
step2 --n 9999                 : ko/translated.tsv: only \d+ distinct pairs; use fewer, or no --n
step3 --seed 5000000000         : --seed 5000000000: must be at least 0, below
step2 --arch FC                : --arch: invalid choice: 'FC' .*fc.*inside.*; see --help
step2 --device tpu             : --device tpu is not available
step3 --residuals --method rev : --residuals needs --method langalign
step3 --method centred         : needs --unlabelled FILE
step3 --method rev --arch ae   : no such align file; run: .*--method rev .*found: align-ko-fc-n\d+.pt
step3 --method native --n 5     : --method native uses no pairs; leave out --n
step3 --residuals --seed 3     : no such align file; run: python step2_align.py .*--seed 3
step2 --lang ko xx             : xx/translated.tsv: no such file; .*there: en, ko
step3 --via ko en ko           : --via ko en ko: expected language codes such as ko, each once
"""
BROKEN = [  # (what is broken, command, what the line says)
    (put("file", b""), "step1 --out {path}/file", "file"),
    (dev(lambda rows: [["good", "film"]] * 2), "step1", "dev.tsv:2: label 'good' is not one of"),
    (pairs(unlabelled), "step3 --method translated --data {data}", "tsv:2: label '' is not"),
    (pairs(sorted), "step3 --data {data}", "changed since step 2; rerun step 2"),
    (second_aligner, "step3", r"by --n: align-ko-fc-n\d+.pt align.*n9.pt"),
    (another_lm, "step3", "another LM than encoder/; run: python step2_align.py"),
    (put("runs/embed.pt", b"hello\n"), "step2", "embed.pt: damaged.*; delete it and make it again"),
    (second_language, "step3 --via xx ko --n 30 --data {data}", "step2_align.py .*--lang ko xx"),
    (put("text", b"good\n"), "eval --predict {path}/text --arch inside --seed 3", "run: .*rev"),
]
MISTAKES = [(None, *re.split(" +: ", line, maxsplit=1)) for line in FLAGS.strip().split("\n")]
MISTAKES += BROKEN


def follow(err, play, most=3):
    """Run the command that a message names. If it fails, follow its own message first."""
    script, args = re.search(r"run: python (\w+)\.py(.*?)(?: \(found: .*)?\n", err).groups()
    command = f"{script.split('_')[0]}{args} --data {{data}}"
    status, _, err = play(command)
    if status:
        assert most > 1, err
        follow(err, play, most - 1)
        status, _, err = play(command)
    assert status == 0, err


@pytest.mark.parametrize("prepare, line, match", MISTAKES)
def test_mistake_is_one_line_whose_command_works(prepare, line, match, place, play):
    if prepare:
        prepare(place)
    before = listing(place.path)
    status, _, err = play(line)
    assert status == 2 and err.startswith("error: ") and re.search(match, err), err
    assert err.count("\n") == 1 and len(err) < 500 and listing(place.path) == before
    if "run: python" in err:
        follow(err, play)
        assert play(line)[0] == 0


def shifted(rows):
    return [[*row[:2], other[2]] for row, other in zip(rows, rows[1:] + rows[:1])]


def refused(rows):
    return [[*row[:2], "나" if i % 3 else row[2]] for i, row in enumerate(rows)]


def other_domain(rows):
    texts = [f"{PLAIN[i % 9]} {PLAIN[i % 16]}" + " so" * (i % 4) for i in range(100)]
    return [["", text, cipher(text)] for text in texts]


def unrelated_five_times(rows):
    return [[*row[:2], other[2]] for row, other in zip(rows[:60], rows[90:150])] * 5


def dev_is_train(place):
    shutil.copy(place.data / "reviews/en/train.tsv", place.data / "reviews/en/dev.tsv")


def other_pairs(place):
    """Repeat step 2 with other translations of as many rows, and not step 3."""
    pairs(lambda rows: [[*row[:2], f"{row[2]} {row[2]}"] for row in rows])(place)
    main("step2_align.py", "--lang", "ko", "--data", place.data, "--out", place.out)


def other_english(place):
    english(lambda rows: rows[:-20])(place)
    where = "--data", place.data, "--out", place.out
    main("step3_head.py", "--lang", "ko", "--method", "english", *where)


def first_is_long(rows):
    return [[*rows[0][:-1], f"{rows[0][-1]} " * 300], *rows[1:]]


def any_label(rows):
    return [[("negative", "positive")[i % 2], row[1]] for i, row in enumerate(rows)]


TUNE, EVAL = "step1 --epochs 2 --lr 1e-3", "eval --data {data}"
ALIGN = "step2 --arch linear --data {data}"
WARNINGS = [  # (what is broken, command, what it warns of then, and not before)
    (pairs(shifted), ALIGN, r"P@1 is \d.\d% at best; too few pairs, or is translated.tsv shifted"),
    (pairs(lambda rows: [[y, b, a] for y, a, b in rows]), ALIGN, "are the columns swapped"),
    (pairs(refused), ALIGN, "translations are the same, '나'; translate"),
    (pairs(lambda rows: rows[:30]), ALIGN, "3 held-out pairs are too few to judge A"),
    (target(lambda rows: [[y, "good film"] for y, _ in rows]), EVAL, "deviations from the transl"),
    (other_pairs, EVAL, "align-ko-fc-n.* has other pairs than head-ko-fc"),
    (other_english, EVAL, "heads have other English rows or --l2"),
    (another_lm, EVAL, "heads of another LM or task are ignored"),
    (dev_is_train, TUNE, "many dev rows are training rows"),
    (pairs(other_domain), ALIGN, "far from the task's text; expect no gain"),
    (pairs(unrelated_five_times), ALIGN, "A is no better than the mean"),
    (english(first_is_long), TUNE, r"1 texts reach max_len=\d+ tokens"),
    (english(lambda rows: rows[:6]), TUNE, "dev accuracy is not above the majority class"),
    (english(any_label), "step3 --data {data}", "dev accuracy is not above the majority class"),
]


@pytest.mark.parametrize("prepare, line, match", WARNINGS)
def test_warning(prepare, line, match, place, play):
    match = re.compile(f"(?m)^warning: .*{match}")
    assert not match.search(play(line)[2])
    prepare(place)
    status, _, err = play(line)
    assert status == 0 and match.search(err), err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag_and_shows_the_docstring(script, monkeypatch):
    parsers = []
    catch = lambda parser: sys.exit(parsers.append(parser))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", catch)
    with pytest.raises(SystemExit):
        SCRIPTS[script].main()
    [parser] = parsers
    assert len(parser._actions) >= 10 and all(action.help for action in parser._actions)
    assert SCRIPTS[script].__doc__ in parser.format_help()


def test_an_interrupted_write_is_one_line_and_leaves_no_file(place, play, monkeypatch):
    before, full = listing(place.path), OSError(28, "No space left on device")
    disk, stopped = "error: .*No space left on device.*\n", "interrupted; rerun.*\n"
    for failure, expected, line in (full, 2, disk), (KeyboardInterrupt, 130, stopped):
        monkeypatch.setattr(Path, "replace", mock.Mock(side_effect=failure))
        status, _, err = play("step3")
        assert status == expected and re.fullmatch(line, err) and listing(place.path) == before


def test_seed_decides_every_bit(place, play):
    found = []
    for name, seed in ("a", 5), ("b", 5), ("c", 6):
        for line in TUNE, "step2", "step2 --arch inside", "step3 --residuals":
            assert play(f"{line} --seed {seed} --out {{path}}/{name}")[0] == 0
        files = listing(place.path / name)
        found.append({path.name.replace("seed6", "seed5"): data for path, data in files.items()})
    assert found[0] == found[1] and found[0].keys() == found[2].keys()
    same = [name for name in found[0] if found[0][name] == found[2][name]]
    assert sorted(same) == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_faults_program(monkeypatch, capsys):
    for module, name in (step3_head, "train_heads"), (evaluation, "BOOTSTRAP"):
        monkeypatch.setattr(module, name, getattr(module, name))  # it sets them: undone at the end
    monkeypatch.setattr(faults, "NAMES", faults.NAMES[:2])
    monkeypatch.setattr(sys, "argv", ["faults.py", "--kills", "4"])
    with pytest.raises(SystemExit) as stop:
        faults.main()
    out = capsys.readouterr().out
    assert stop.value.code == 0 and out.count(" 0 differences") == 2, out


def test_bench_program(world, monkeypatch, capsys):
    where = "--model", world.encoder, "--data", world.data, "--task", "reviews"
    monkeypatch.setattr(bench, "QUICK", {"texts": 50, "rounds": 1})
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--only", "encode", *map(str, where)])
    bench.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["encode_fp32_ratio"] > 0
