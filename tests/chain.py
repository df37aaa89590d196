"""The small toy world and, on it, README.md's commands as printed: `python tests/chain.py FOLDER [--toy-only]`.

conftest.py starts it when the tests start, which leave one of two cores idle, and the fixtures `toy_world` and
`chain` wait for it.
"""
import os
import sys
from pathlib import Path

from conftest import SCRIPTS, readme_blocks, toy_commands

import toy

ROWS, STEPS = "6000", "400"          # smaller than the default; 2,000 test rows show a gain of four points


def main(place, toy_only):
    toy.main(["--out", f"{place}/data/toy", "--rows", ROWS, "--steps", STEPS])
    if toy_only:
        return
    os.chdir(place)
    Path("reviews.txt").write_text("음식이 정말 맛있어요\n방이 좁고 시끄러워요\n", encoding="utf-8")
    for name, args in toy_commands("\n".join(readme_blocks("sh"))):
        print("+", name, *args, flush=True)
        args = [ROWS if a == "20000" else a for a in args]                            # what this world has
        further = name == "step1_embed.py" and "--out" in args                        # LMs beside the main one
        SCRIPTS[name].main(["--epochs", "1", *args] if further else args)             # a later --epochs wins


if __name__ == "__main__":
    main(sys.argv[1], "--toy-only" in sys.argv)
