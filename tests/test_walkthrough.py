"""README's walk-through, from English labels to labels in another language, as printed but on small files and models."""
import random

from conftest import ROOT, SCRIPTS, WORDS, commands, readme_blocks, sentence, write
from test_translate import hub  # noqa: F401  (a fixture)

import translate

MAINS = {**{name: module.main for name, module in SCRIPTS.items()}, "data/translate.py": translate.main}


def test_the_walk_through_labels_every_line(tiny, hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    found = [c for c in commands("\n".join(readme_blocks("sh"))) if "reviews" in c[1] or "runs/reviews" in c[1]]
    assert [name for name, _ in found] == ["data/translate.py", *SCRIPTS]
    monkeypatch.chdir(tmp_path)
    rng = random.Random(1)
    rows = [[rng.choice(["bad", "good"]), sentence(rng, WORDS)] for _ in range(80)]
    write(tmp_path / "data/mine/reviews/en/train.tsv", ["label", "text"], rows)
    reviews = [sentence(rng, WORDS) for _ in range(7)]
    (tmp_path / "reviews.txt").write_text("\n".join(reviews) + "\n")
    small = {"facebook/nllb-200-distilled-600M": hub["m2m"], "xlm-roberta-base": str(tiny[0]), "5000": "60"}
    for name, args in found:
        capsys.readouterr()
        MAINS[name]([small.get(arg, arg) for arg in args] + ["--device", "cpu"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(reviews) and {label for label, _ in lines} <= {"bad", "good"}
    assert all(0.5 <= float(probability) <= 1 for _, probability in lines)
    assert len((tmp_path / "data/mine/reviews/ko/translated.tsv").read_text().splitlines()) > 20
    for path in ("data/README.md#translations", "data/README.md"):
        assert (ROOT / path.partition("#")[0]).exists() and f"({path})" in (ROOT / "README.md").read_text()
