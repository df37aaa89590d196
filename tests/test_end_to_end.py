"""Use the repository as a newcomer does: toy data, README's commands and code. Check its size and layout."""

import ast
import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS, error_line, few_steps

import common

CORE = ["common.py", *SCRIPTS]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = "".join(block for kind, block in BLOCKS if kind == "sh").replace("\\\n", "")
LINES = [line for line in re.split("&&|\n", SHELL) if line.strip().startswith("python ")]
COMMANDS = [shlex.split(line, comments=True)[1:] for line in LINES]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
N = 300  # rows and pairs, in place of README's


def play(script, *args):
    """Run a script of the root or of data/ in this process."""
    if script in SCRIPTS:
        module, args = SCRIPTS[script], [*args, "--device", "cpu"]
    else:
        module = importlib.import_module(script.replace("/", ".").removesuffix(".py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *args])
        common.run(module.main)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Return a folder with data/toy and runs/ of README's main job and `inside`, on small toy data."""
    home = tmp_path_factory.mktemp("home")
    first, last = map([words[0] for words in COMMANDS].index, ("step1_embed.py", "eval.py"))
    inside = [[s, "--arch", "inside", "--lang", "ko"] for s in ("step2_align.py", "step3_head.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        few_steps(patch, 200)
        play("data/toy.py", "--rows", str(N), "--steps", "30")
        for command in [*COMMANDS[first:last], *inside, COMMANDS[last]]:
            flags = re.sub(r"--n \d+", f"--n {N}", " ".join(command))
            play(*flags.split())
    return home


def test_run_folder_is_as_designed_and_the_toy_world_leaks_nothing(home):
    names = {path.name for path in (home / "runs").iterdir()}
    made = [f"align-ko-fc-n{N}.pt", f"head-ko-fc-n{N}.pt", f"head-ko-fc-n{N}-residuals.pt"]
    made += [f"align-ko-rev-inside-n{N}.pt", f"head-ko-rev-inside-n{N}.pt", "head-english.pt"]
    assert names == {"encoder", "embed.pt", "cache", "results-ko.json", *made}
    for name in [*made, "embed.pt"]:
        art = torch.load(home / "runs" / name, weights_only=True)
        assert art["kind"] == name.removesuffix(".pt").split("-")[0]
    records = json.loads((home / "runs/results-ko.json").read_text())
    assert len(records) == 4
    for record in records:
        assert record["lang"] == "ko" and record["leaks"] == 0 and record["rows"] == N


def test_toy_world_replaces_only_its_own(home, monkeypatch):
    monkeypatch.chdir(home)
    line = error_line(lambda: play("data/toy.py", "--out", "runs"))
    assert "runs was not made by data/toy.py" in line and (home / "runs/embed.pt").exists()


def test_readme_commands_have_flags_that_exist(capsys):
    assert len(COMMANDS) >= 6
    for script, *words in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            play(script, "--help")
        listed = capsys.readouterr().out.split("\noptions:\n")[-1]
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        assert stop.value.code == 0
        assert not [flag for flag in flags if not re.search(rf" {flag}\b", listed)], script


@pytest.fixture
def copy(home, tmp_path, monkeypatch):
    """Change to a copy of `home`, in which heads are trained for few steps."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    (tmp_path / "data").symlink_to(home / "data")
    monkeypatch.chdir(tmp_path)
    few_steps(monkeypatch, 50)


def test_lessons_run(copy, capsys):
    """Run all of data/LESSONS.md in one go, with fewer pairs and steps."""
    text = (ROOT / "data/LESSONS.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    code = "".join(blocks).replace("n=1000", f"n={N}").replace("900", "250")
    exec(code.replace("range(60)", "range(5)"), {})  # noqa: S102
    assert len(blocks) == 9 and "inside" in capsys.readouterr().out


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_readme_code_runs(block, copy):
    """Run it with fewer pairs than README has."""
    exec(re.sub(r"\bn=\d+", f"n={N}", block), {})  # noqa: S102


def test_functions_are_short():
    for name in CORE:
        for part in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(part, ast.FunctionDef):
                lines = part.end_lineno - part.lineno + 1
                assert lines < (80 if part.name == "main" else 40), f"{name}: {part.name}"


def test_the_root_holds_only_the_core_and_its_folders():
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    others = {"runs", "venv", "__pycache__", "findings"}
    assert names - others == {"README.md", "LICENSE", "requirements.txt", *CORE, "data", "tests"}


def test_imports_are_the_required_packages_and_common():
    """Then a script of the root works wherever it and common.py are copied to."""
    tools = [*(ROOT / "data").glob("*.py")]
    packages = {"torch", "numpy", "tqdm", "transformers", "tokenizers", "huggingface_hub"}
    packages |= {*sys.stdlib_module_names, "safetensors", "common"}
    for path in [*(ROOT / name for name in CORE), *tools]:
        parts = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {part.module for part in parts if isinstance(part, ast.ImportFrom)}
        found |= {a.name for part in parts if isinstance(part, ast.Import) for a in part.names}
        allowed = {other.stem for other in [*tools, *map(Path, CORE)] if path in tools} | packages
        assert {name.split(".")[0] for name in found} <= allowed, path.name
