"""The tools experiments.py and plot.py."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(1, str(ROOT / "data"))

import common
from data import experiments, plot


def refuse(main, *args, match):
    """One line on stderr that matches, exit status 2."""
    err = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(err):
        common.run(lambda: main([str(a) for a in args]))
    line = err.getvalue().rstrip("\n").split("\n")[-1].split("\r")[-1].strip()
    assert caught.value.code == 2 and err.getvalue().count("error: ") == 1, err.getvalue()
    assert re.search(match, line) and len(line) < 450, line


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


# What a user does wrong with these tools, and experiments.py, plot.py, toy.py
RUN = "--out r --lang ko "


@pytest.mark.parametrize(
    "tool, args, content, match",
    [
        (experiments, "", b"", "give --out, .* and --lang"),
        (experiments, RUN + "ko/", b"", "--lang 'ko/': give a language code"),
        (experiments, RUN + "--n 20 0", b"", "--n 0: give 1 or more"),
        (experiments, "--table" + 11 * " r", b"[]", "11 run folders: give 10 at most"),
        (experiments, "--table r", b"[{", "r/experiments.json: damaged; delete it"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, tool, args, content, match):
    monkeypatch.chdir(tmp_path)
    Path("r").mkdir()
    for name in ("in.csv", "r/experiments.json"):
        Path(name).write_bytes(content)
    refuse(tool.main, *args.split(), match=match)
    assert len([*tmp_path.rglob("*")]) == 3  # nothing was written


def test_means_over_ten_runs_and_their_interval(tmp_path, capsys):
    record = {"lang": "ko", "method": "fc", "accuracy": 0.5, "interval": [0, 1], "ece": 0}
    for i in range(10):
        rows = [{**record, "n": n, "gain": i / 100, "ece_tempered": 0} for n in (25, 50)]
        write(tmp_path / f"{i}/experiments.json", [json.dumps(rows)])
    folders = [str(tmp_path / str(i)) for i in range(10)]
    experiments.main(["--table", *folders])
    half = 2.262 * 3.0277 / 10**0.5  # Student's t, and the standard deviation of 0 ... 9
    assert f"50   10     50.00  +4.50       +- {half:.2f}" in capsys.readouterr().out
    plot.main([*folders, "--out", str(tmp_path / "a.svg")])
    assert "fc +4.5<" in (tmp_path / "a.svg").read_text()
