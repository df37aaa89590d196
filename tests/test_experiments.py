"""data/experiments.py and data/plot.py: records, table and pictures on a tiny task."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import few_steps

import experiments
import plot
import rivals
import step3_head
from common import UserError


def put(folder, keys, rows, **shared):
    """Write experiments.json, with one record per row. Return the folder's name."""
    records = [{"ece": 0, "ece_tempered": 0} | shared | dict(zip(keys, row)) for row in rows]
    folder.mkdir(exist_ok=True)
    (folder / "experiments.json").write_text(json.dumps(records))
    return str(folder)


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
    assert len(made) == 27 and made["english"]["gain"] == 0 < made["fc"]["ece"] < 1
    assert not records("--lang", "ko")
    few = records("--lang", "ko", "--n", "25", "--subsets", "2")
    assert {(r["method"], r["subset"]) for r in few} >= {("mixed", 0), ("mixed", 1), ("shift", 1)}
    worse = records("--lang", "ko", "--n", "25", "--noise", "drop", "0.5")
    assert {r["method"] for r in worse} == {r["method"] + ", drop 0.5" for r in few}
    assert not records("--lang", "ko", "--n", "25", "--noise", "drop", ".5")
    inside = "--n", "25", "--inside", "--epochs", "1", "--noise", "swap", "0.2"
    worse = records("--lang", "ko", *inside)
    assert [r["method"] for r in worse] == ["inside, 1 epochs, swap 0.2"]
    [made] = records("--lang", "ko", "--n", "25", "--distil", "--epochs", "1")
    assert made["method"] == "distilled, lr 0.003, 1 epochs" and made["parameters"] > 10_000


def test_the_aligner_of_a_pool_is_tested_on_a_language_without_pairs(records):
    pool = "--pool", "ko", "ja", "--n", "60", "--epochs", "2", "--own"
    made = records(*pool, "0", "25", "--lang", "vi")
    assert " ".join(r["method"].split(", ")[-1] for r in made) == "seen seen unseen seen seen own"
    assert [r["n"] for r in made] == [60, 60, None, 60, 60, 25]
    assert len({r["accuracy"] for r in made[:3]}) == 1  # all three are the same cipher
    assert not records(*pool, "0") and not records(*pool, "25", "--lang", "vi")


def test_means_over_ten_runs_and_their_interval(tmp_path, capsys):
    points, folders = [("ko", "fc", 25, 0.02), ("ko", "fc", 50, 0.02)], []
    points += [("ko", "inside", 25, 0.01), ("jv", "inside", 25, 0.5)]
    for i in range(10):
        rows = [(*point, gain + i / 100) for *point, gain in points]
        keys = "lang", "method", "n", "gain"
        folders.append(put(tmp_path / f"{i}", keys, rows, accuracy=0.5, interval=[0, 1]))
    experiments.main(["--table", *folders])
    half = 2.262 * 3.0277 / 10**0.5  # Student's t, and the standard deviation of 0 ... 9
    assert f"50   10     50.00  +6.50       +- {half:.2f}" in capsys.readouterr().out
    experiments.main(["--table", *folders, "--over", "inside"])  # jv has no own pairs
    assert "25   10     50.00  +1.00       +- 0.00" in capsys.readouterr().out
    plot.main([*folders, "--out", str(tmp_path / "a.svg")])
    assert "fc +6.5<" in (tmp_path / "a.svg").read_text()


def test_a_picture_of_own_pairs_with_and_without_relatives(tmp_path):
    keys, out = ("lang", "method", "n", "gain", "job"), tmp_path / "a.svg"
    job, pooled = {"owner": None}, {"pool": ["jv", "su"], "owner": "ace"}
    rows = [("ace", "inside of jv su, unseen", None, 0.2, pooled | {"owner": None, "own": 0})]
    rows += [("ace", "inside of jv su, own", 25, 0.25, pooled | {"own": 25})]
    rows += [("ace", "inside", 25, 0.1, job), ("ace", "inside", 50, 0.15, job)]
    rows += [("ace", "native", None, 0.22, job), ("jv", "inside", 25, 0.9, job)]
    folder = put(tmp_path, keys, [*rows, ("ace", "fc", 900, 0.3, job)])  # fc is not drawn
    plot.main(["--pooled", folder, "--lang", "ace", "--out", str(out)])
    svg = out.read_text()
    for words in ("with relatives +25.0", "own pairs alone +15.0", "native rows +22.0"):
        assert words in svg
    assert svg.count("<circle") == 2 + 3 and "900" not in svg  # own pairs alone start at 0, 0
    with pytest.raises(UserError, match="no own pairs; .* --pool ... --own 25 50 --lang jv"):
        plot.main(["--pooled", folder, "--lang", "jv", "--out", str(out)])


def test_rivals_find_a_moved_language_without_pairs():
    generator = torch.Generator().manual_seed(0)
    topics = 2 * torch.randn(20, 16, generator=generator)
    topic, target_topic = torch.randint(20, (2, 400), generator=generator)
    x, target = topics[topic], topics[target_topic]
    x, target = (rows + 0.3 * torch.randn(400, 16, generator=generator) for rows in (x, target))
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    for start, turn in ("anchors", rotation), ("identity", torch.eye(16)):
        aligner = rivals.unpaired(x, target @ turn + 3, start)
        predicted, truth = aligner.map(x) - aligner.mean_y, (x - x.mean(0)) @ turn
        assert F.cosine_similarity(predicted, truth).mean() > 0.95
    rows, y = rivals.xite(x, topic, target, share=0.5)
    assert (y[400:] == target_topic).float().mean() > 0.99 and torch.equal(rows[:400], x)
    assert F.cosine_similarity(rows[400:], target).mean() > 0.95


def test_noise_changes_exactly_the_share():
    texts = [(" ".join(f"w{i}-{k}" for k in range(10)),) for i in range(20)]
    dropped, replaced, swapped = (rivals.add_noise(texts, kind, 0.3) for kind in rivals.NOISE)
    assert all(len(text.split()) == 7 for (text,) in dropped)
    for (old,), (new,) in zip(texts, replaced):
        assert sum(a != b for a, b in zip(old.split(), new.split(), strict=True)) == 3
    assert sum(a != b for a, b in zip(texts, swapped)) == 6 and sorted(texts) == sorted(swapped)
    assert rivals.add_noise([("one",)], "drop", 1.0) == [("one",)]


def test_people_minus_machine_and_pairs_that_reach_native(tmp_path, capsys):
    points = [("ha", "native", None, 0.8), ("ha", "fc", 25, 0.7), ("ha", "fc", 50, 0.82)]
    points += [("ha-mt", "fc", 25, 0.68)]
    folders = []
    for i, last in enumerate((0.79, 0.77)):
        rows = [*points, ("ha-mt", "fc", 50, last)]
        keys = "lang", "method", "n", "accuracy"
        folders.append(put(tmp_path / f"{i}", keys, rows, interval=[0, 1]))
    table = "--table", *folders, "--lang", "ha"
    experiments.main([*table, "--minus", "ha-mt"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # differences 2 and 4 points: 12.71 (Student) times their standard deviation, 2^0.5, / 2^0.5
    assert any(line.startswith("fc 50 2 82.00 +4.00 +-12.71") for line in lines)
    experiments.main([*table, "ha-mt", "--bench"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == ["native, accuracy 80.00 80.00", "fc 50 >50"]


@pytest.mark.parametrize(
    "args, match",
    [
        ("", "--out with --lang or --pool is needed"),
        ("--out r --pool ko ja --lang ja", "--lang ko ja ja: .* each once"),
        ("--out r --lang ko --n 20 0", "--n 0: must be at least 1"),
        ("--out r --lang ko --noise drop 2", "--noise drop 2: expected drop, replace or swap"),
        ("--table t --lang ha yo --minus ha-mt", "--minus needs as many languages as --lang"),
        ("--table" + 11 * " r", "11 run folders; at most 10"),
        ("--table s", "s: no experiments.json; run: python data/experiments.py"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, args, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=match):
        experiments.main(args.split())
