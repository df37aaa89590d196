"""data/experiments.py and data/plot.py: records, table and pictures on a tiny task."""

import json
import shutil
import sys

import pytest
import step3_head
from conftest import ROOT, few_steps

sys.path.insert(1, str(ROOT / "data"))

import experiments
import plot
from common import UserError


@pytest.fixture(scope="module")
def records(runs, world, tmp_path_factory):
    """Run data/experiments.py on a task with the same "Korean" under three codes -> the records it adds."""
    root = tmp_path_factory.mktemp("experiments")
    task = shutil.copytree(world.data / "reviews", root / "data/reviews")
    for lang in ("ja", "vi"):
        shutil.copytree(task / "ko", task / lang)
    folder = shutil.copytree(runs, root / "runs")

    def go(*args):
        before = experiments.read_records(folder)
        experiments.main(["--out", str(folder), "--data", str(root / "data"), *args])
        return experiments.read_records(folder)[len(before) :]

    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch, 50)
        patch.setattr(experiments, "train_heads", step3_head.train_heads)
        patch.setattr(experiments, "SEEDS", {"fc": [0], "ae": [0]})
        yield go


def test_all_methods_are_recorded_once(records):
    made = {r["method"]: r for r in records("--lang", "ko")}
    assert len(made) == 20 and made["english"]["gain"] == 0 < made["fc"]["ece"] < 1
    assert not records("--lang", "ko")
    few = records("--lang", "ko", "--n", "25", "--subsets", "2")
    assert {(r["method"], r["subset"]) for r in few} >= {("mixed", 0), ("mixed", 1), ("shift", 1)}
    made = records("--lang", "ko", "--n", "25", "--distil", "--epochs", "1")[0]
    assert made["method"] == "distilled, lr 0.003, 1 epochs" and made["parameters"] > 10_000


def test_the_aligner_of_a_pool_is_tested_on_a_language_without_pairs(records):
    pool = "--pool", "ko", "ja", "--n", "60", "--epochs", "2", "--own"
    made = records(*pool, "0", "25", "--lang", "vi")
    roles = ["seen", "seen", "unseen", "seen", "seen", "own"]  # of ja, ko and vi
    assert [r["method"].split(", ")[-1] for r in made] == roles
    assert [r["n"] for r in made] == [60, 60, None, 60, 60, 25]
    assert [r["seen"] for r in made] == [role != "unseen" for role in roles]
    assert len({r["accuracy"] for r in made[:3]}) == 1  # all three are the same cipher
    assert not records(*pool, "0") and not records(*pool, "25", "--lang", "vi")


def test_means_over_ten_runs_and_their_interval(tmp_path, capsys):
    record = {"accuracy": 0.5, "interval": [0, 1], "ece": 0, "ece_tempered": 0, "pool": ["jv"]}
    points = [("ko", "fc", n, 0.02) for n in (25, 50)] + [("ko", "inside", 25, 0.01)]
    points += [("ko", f"inside of jv, {name}", n, 0.1) for name, n in (("unseen", 0), ("own", 25))]
    points += [("jv", "inside", 25, 0.5)]
    for i in range(10):
        rows = [dict(zip(("lang", "method", "n", "gain"), point)) | record for point in points]
        rows = [r | {"gain": r["gain"] + i / 100, "own": r["n"], "n": r["n"] or None} for r in rows]
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}/experiments.json").write_text(json.dumps(rows))
    folders = [str(tmp_path / str(i)) for i in range(10)]
    experiments.main(["--table", *folders])
    half = 2.262 * 3.0277 / 10**0.5  # Student's t, and the standard deviation of 0 ... 9
    assert f"50   10     50.00  +6.50       +- {half:.2f}" in capsys.readouterr().out
    experiments.main(["--table", *folders, "--over", "inside"])  # jv has no own pairs
    assert "25   10     50.00  +9.00       +- 0.00" in capsys.readouterr().out
    plot.main([*folders, "--pooled", *folders, "--out", str(tmp_path / "a.svg")])
    picture = (tmp_path / "a.svg").read_text()
    for words in ("fc +6.5<", "own pairs + relatives +14.5<", "own pairs alone +5.5<"):
        assert words in picture


@pytest.mark.parametrize(
    "args, match",
    [
        ("", "--out with --lang or --pool is needed"),
        ("--out r --lang ko/", "--lang ko/: expected language codes"),
        ("--out r --pool ko ja --lang ja", "--lang ko ja ja: .* each once"),
        ("--out r --lang ko --n 20 0", "--n 0: must be at least 1"),
        ("--table" + 11 * " r", "11 run folders; at most 10"),
        ("--table r", "r/experiments.json: damaged; delete it"),
        ("--table s", "s: no experiments.json; run: python data/experiments.py"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, args, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r/experiments.json").write_text("[{")
    with pytest.raises(UserError, match=match):
        experiments.main(args.split())
