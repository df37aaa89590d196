"""Every command of README.md and of the scripts' docstrings is run as printed (fixture `chain`), or at least parsed."""
import argparse
import ast
import re

import pytest
from conftest import ROOT, SCRIPTS, commands, readme_blocks, toy_commands

README = (ROOT / "README.md").read_text(encoding="utf-8")


class Parsed(Exception):
    """A command line is right; nothing else is to be done with it."""


def test_the_two_first_commands_are_the_promised_ones():
    job = ("pip install -r requirements.txt && python data/toy.py && python step1_embed.py && python step2_align.py "
           "--lang ko --n 20000 && python step3_head.py --lang ko && python eval.py --lang ko")
    assert job in README.splitlines() and "pip install -r requirements.txt && pytest -q" in README.splitlines()


@pytest.mark.parametrize("name", ["README.md", *SCRIPTS])
def test_every_printed_command_parses(name, monkeypatch):
    text = "\n".join(readme_blocks("sh")) if name == "README.md" else re.sub("^ +", "", SCRIPTS[name].__doc__, flags=re.M)
    real = argparse.ArgumentParser.parse_args

    def parse_only(self, argv):
        real(self, argv)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    found = commands(text)
    assert len(found) >= 2
    for script, args in found:
        assert (ROOT / script).exists()
        if script in SCRIPTS:
            with pytest.raises(Parsed):
                SCRIPTS[script].main(args)


def test_readme_commands_ran_as_printed(chain):
    ran = toy_commands("\n".join(readme_blocks("sh")))
    assert len(ran) >= 10 and {script for script, _ in ran} == set(SCRIPTS)
    heads = {path.name.split("-")[1] for path in chain.glob("head-*.pt")}
    assert heads == {"english.pt", "langalign", "rev", "native", "translated"} and (chain / "results.json").exists()


def test_the_python_snippet_runs(chain, monkeypatch, capsys):
    monkeypatch.chdir(chain.parent)
    for snippet in readme_blocks("python"):
        exec(compile(snippet.replace("n20000", "n6000"), "README.md", "exec"), {})
    words = capsys.readouterr().out.split()
    assert words[0::2] and set(words[0::2]) <= {"positive", "negative"} and len(words) == 4


def test_the_symbol_table_names_functions_that_exist():
    rows = re.findall(r"`(\w+\.py):(\w+)`", README)
    assert len(rows) >= 10
    for file, name in rows:
        assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), re.M), f"{file}:{name}"


def test_the_core_stays_small():
    """Read in one sitting: 1,200 lines in all, none over 110 columns, no function of 40 lines, no main of 80."""
    sources = {name: (ROOT / name).read_text() for name in ("common.py", *SCRIPTS)}
    assert sum(len(source.splitlines()) for source in sources.values()) <= 1200
    for name, source in sources.items():
        assert max(map(len, source.splitlines())) <= 110, name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                size = node.end_lineno - node.lineno + 1
                assert size < (80 if node.name == "main" else 40), f"{name}:{node.name}"
