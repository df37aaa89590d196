"""Two processes on the CPU, as torchrun starts them (gloo): embeddings and gradients as of one, no hang."""
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, WORDS, go, step1

from common import encode, load, load_encoder

# Run by every process: gradients of each step of an epoch with an odd batch and a last one of a single row
# (weights stay as they are), then the chain on the run folder that is there.
PROGRAM = """
import sys
import torch
import step1_embed, step2_align, step3_head
import eval as evaluation
from common import RANK, run
import common

def gradients(argv):
    found = []
    def step(self, *args, **kwargs):
        found.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
    torch.optim.AdamW.step, step1_embed.DROPOUT, step1_embed.CLIP = step, 0.0, 1e9
    step1_embed.main(argv)
    torch.save(found, f"{argv[-1]}/gradients{RANK}")

def main():
    model, data, grads, out = sys.argv[1:]
    gradients(["--model", model, "--data", data, "--task", "mood", "--epochs", "1", "--batch", "89",
               "--device", "cpu", "--amp", "off", "--out", grads])
    common.SHARD, step3_head.STEPS = 30, 40
    same = ["--device", "cpu", "--amp", "off", "--out", out]
    step2_align.main(["--lang", "xx", *same])
    step3_head.main(["--lang", "xx", *same])
    evaluation.main(["--lang", "xx", *same])

run(main)
"""


def launch(count, *command, timeout=120):
    """The processes that torchrun would start on one machine: [(exit status, stdout, stderr)] by rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
             "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, *map(str, command)], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env={**where, "RANK": str(i), "LOCAL_RANK": str(i)})
               for i in range(count)]
    told = [process.communicate(timeout=timeout) for process in started]
    return [(process.returncode, *words) for process, words in zip(started, told)]


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    """(data, encoder without dropout, run folders by number of processes, what the processes said)."""
    base = tmp_path_factory.mktemp("ranks")
    model = shutil.copytree(tiny[0], base / "encoder")
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    (base / "run.py").write_text(PROGRAM)
    said = {}
    for count in (1, 2):
        step1((model, tiny[1]), base / f"out{count}")
        said[count] = launch(count, base / "run.py", model, tiny[1], base / f"grads{count}",
                             base / f"out{count}")
        assert [code for code, *_ in said[count]] == [0] * count, said[count]
    return base, said


def test_gradients_of_two_processes_are_those_of_the_joint_batch(world):
    base, _ = world
    one = torch.load(base / "grads1" / "gradients0")
    for rank in range(2):
        two = torch.load(base / "grads2" / f"gradients{rank}")
        assert len(one) == len(two) == 2                                # 90 rows in batches of 89
        for a, b in zip(one, two):
            assert len(a) == len(b) and all(torch.allclose(p, q, rtol=1e-4, atol=1e-6) for p, q in zip(a, b))
    assert max(p.abs().max() for p in one[0]) > 1e-3                    # there is something to compare


def test_two_processes_make_the_same_artifacts_and_rank_0_alone_speaks(world):
    base, said = world
    encoder, _ = load_encoder(base / "out1")
    files = [{p.name: p for p in (base / f"out{count}").glob("*.pt")} for count in (1, 2)]
    assert list(files[0]) and sorted(files[0]) == sorted(files[1])
    for name, kind in (("align-xx-fc-n90.pt", "align"), ("head-langalign-xx-fc-n90.pt", "head")):
        one, two = (load(files[i][name], kind, "", encoder.fingerprint) for i in range(2))
        for key in one["state"]:
            assert torch.allclose(one["state"][key], two["state"][key], atol=1e-4), key
    rows = [json.loads((base / f"out{count}" / "results.json").read_text()) for count in (1, 2)]
    assert [r["accuracy"] for r in rows[0]] == [r["accuracy"] for r in rows[1]]
    assert "2 x cpu" in said[2][0][1] and "R^2" in said[2][0][1] and said[2][1][1] == ""


def test_embeddings_of_two_processes_equal_one(world):
    base, _ = world
    tables = []
    for count in (1, 2):
        encoder, _ = load_encoder(base / f"out{count}")
        shards = [load(path, "cache", "", encoder.fingerprint)
                  for path in (base / f"out{count}" / "cache").rglob("*.pt")]
        assert max(len(shard["keys"]) for shard in shards) == 16 * 30 * count          # SHARD rows a rank
        tables.append({bytes(key.tolist()): row for shard in shards
                       for key, row in zip(shard["keys"].view(-1, 16), shard["embeddings"])})
    assert tables[0].keys() == tables[1].keys() and len(tables[0]) > 200
    assert max((tables[0][key] - tables[1][key]).abs().max() for key in tables[0]) < 1e-5
    alone = encode(encoder, [(" ".join(WORDS[:k]),) for k in (3, 9)], torch.device("cpu"))
    assert alone.norm(dim=1).min() > 0.1                              # not the zeros of the other rank's rows


def test_a_process_that_dies_ends_the_run(tiny, tmp_path):
    """Under torchrun itself: rank 1 dies in the first epoch, rank 0 waits for it in a collective."""
    (tmp_path / "dies.py").write_text(
        "import os, sys\nimport step1_embed\nfrom common import RANK, run\nreal = step1_embed.pad\n"
        "step1_embed.pad = lambda *args: os._exit(9) if RANK else real(*args)\nrun(step1_embed.main)\n")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--",
         tmp_path / "dies.py", "--model", tiny[0], "--data", tiny[1], "--task", "mood", "--device", "cpu",
         "--out", tmp_path / "run"], env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "exitcode  : 9" in done.stderr
    assert not list(tmp_path.rglob("*.pt"))


def test_plain_python_is_unchanged(folder, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    go(folder, "step2_align --lang xx --arch shift")
    assert not torch.distributed.is_initialized()
