"""Every command of README.md and of the scripts' docstrings is run as printed, or at least parsed by its script."""
import os
import re
import shlex
import subprocess
import sys

import eval as evaluation
import pytest
import step1_embed
import step2_align
import step3_head
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
GET_ARGS = {"step1_embed.py": step1_embed.get_args, "step2_align.py": step2_align.get_args,
            "step3_head.py": step3_head.get_args, "eval.py": evaluation.get_args}
ELSEWHERE = ("xlm-roberta-base", "data/real", "data/mine", "bench.py", "git clone", "pytest", "FILE")


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", README, re.S)


def commands(text):
    """The single commands of shell text: lines joined at a backslash, cut at && and ;, comments and loops left out."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        for part in re.split(r"&&|;", line.split(" #")[0]):
            words = part.strip().removeprefix("do ").removeprefix("done").strip()
            if words.startswith("python ") and "$" not in words:
                yield words


def test_the_two_first_commands_are_the_promised_ones():
    lines = README.splitlines()
    job = ("pip install -r requirements.txt && python data/toy.py && python step1_embed.py && python step2_align.py "
           "--lang ko --n 20000 && python step3_head.py --lang ko && python eval.py --lang ko")
    assert job in lines and "pip install -r requirements.txt && pytest -q" in lines


@pytest.mark.parametrize("text", [README, *(f.__globals__["__doc__"] for f in GET_ARGS.values())])
def test_every_printed_command_parses(text):
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)) or text
    found = 0
    for command in commands(shell if shell != text else "\n".join(
            line.strip() for line in text.splitlines() if line.strip().startswith("python "))):
        script, *args = shlex.split(command.split(">")[0].split("<")[0])[1:]
        assert (ROOT / script).exists(), command
        if script in GET_ARGS:
            GET_ARGS[script](args)
            found += 1
    assert found


def test_readme_commands_on_the_toy_world_run_as_printed(toy_world, chain, tmp_path):
    """In a copy of the project with the toy world built; commands that need other data or a network are left out.
    The main job from scratch, installation included, is run by .ci/run."""
    for name in (*GET_ARGS, "common.py", "data"):
        os.symlink(ROOT / name, tmp_path / name) if name != "data" else (tmp_path / "data").mkdir()
    for name in os.listdir(ROOT / "data"):
        if name.endswith((".py", ".md")):
            os.symlink(ROOT / "data" / name, tmp_path / "data" / name)
    os.symlink(toy_world, tmp_path / "data" / "toy")
    (tmp_path / "reviews.txt").write_text("이 식당 음식이 정말 맛있어요\n방이 좁고 시끄러워요\n", encoding="utf-8")
    ran = []
    for block in blocks("sh"):
        for command in commands(block):
            if "toy.py" in command or any(word in command for word in ELSEWHERE) or command in ran:
                continue
            command = command.replace("--n 20000", "--n 6000")            # as many as this smaller toy world has
            done = subprocess.run(f"{shlex.quote(sys.executable)} {command.removeprefix('python ')}", shell=True,
                                  cwd=tmp_path, capture_output=True, text=True, timeout=280)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            ran.append(command)
    assert len(ran) >= 5


def test_the_python_snippet_runs(chain, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(chain, tmp_path / "runs")
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) >= 2


def test_the_symbol_table_names_functions_that_exist():
    rows = re.findall(r"`(\w+\.py):(\w+)`", README)
    assert len(rows) >= 10
    for file, name in rows:
        assert re.search(rf"^\s*(def|class) {name}\b|^{name} =", (ROOT / file).read_text(), re.M), f"{file}:{name}"
