"""Kill each script at random moments, inspect the files, and run it again. This is a program, not a test.

    python tests/faults.py               # 50 kills of each of the four scripts
    python tests/faults.py --kills 10

A script runs in a forked child, on the tiny random data of conftest.py. SIGKILL ends it. Half of the kills come
at a random moment, half in a write or next to a rename or a deletion. Half of the runs start in a folder where
the same command ran before, so that they have files to overwrite. After a kill every file must be, byte for byte,
either the old one or that of an undisturbed run. Then the same command must succeed and leave the files of an
undisturbed run. A killed write may leave its temporary file.

Prints  one line per script: kills before its end, and differences. Each difference has a line.
Expect  0 differences. The exit status is 1 if there is one.
"""

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

from conftest import SCRIPTS, make_encoder, make_task
from tqdm import tqdm

import common
import eval as evaluation
import step3_head

PARTS = 3  # pieces in which a child writes a file
NAMES = "step1_embed", "step2_align", "step3_head", "eval"
EVENTS = RawValue("l", 0)  # a child's changes of files: pieces written, renames, deletions


def commands(base):
    """Return {script: its arguments}, in the order in which they build on each other."""
    where, run = ["--data", str(base / "data")], ["--out", str(base / "run"), "--device", "cpu"]
    model = ["--model", str(base / "encoder"), "--task", "reviews", "--epochs", "1", *where]
    ko = ["--lang", "ko"]
    return {name: [*args, *run] for name, args in zip(NAMES, [model, ko, [*ko, "--residuals"], ko])}


def watch(at):
    """Count EVENTS, and kill this process at number `at` (0: never)."""

    def event():
        EVENTS.value += 1
        if EVENTS.value == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_bytes(path, content):
        size = math.ceil(len(content) / PARTS)
        with open(path, "wb") as file:
            for start in range(0, len(content), size):
                event()
                file.write(content[start : start + size])
                file.flush()

    def between(function):
        return lambda *args, **options: (event(), function(*args, **options), event())[1]

    Path.write_bytes = write_bytes
    Path.replace, Path.rename = between(Path.replace), between(Path.rename)
    shutil.rmtree = between(shutil.rmtree)


def launch(base, name, at=0):
    """Fork a child that runs a script as `python <name>.py` would. Return its process id."""
    EVENTS.value = 0
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(base / "output", "w", 1) as sys.stdout:
            sys.stderr = sys.stdout
            tqdm.set_lock(threading.RLock())  # a killed child would keep tqdm's own, shared lock
            sys.argv = [f"{name}.py", *commands(base)[name]]
            watch(at)
            common.run(SCRIPTS[f"{name}.py"].main)
            os._exit(0)
    finally:
        os._exit(1)


def finish(pid):
    """Return the exit status of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(folder):
    """Return {name: bytes} of the files below a folder, without temporary ones."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: data for name, data in files.items() if ".tmp" not in name}


def reset(base, start):
    """Restore the run folder from the copy `start`, or delete it if there is no copy."""
    shutil.rmtree(base / "run", ignore_errors=True)
    if (base / start).exists():
        shutil.copytree(base / start, base / "run")


def undisturbed(base, name, start):
    """Run a script once. Return (seconds, events, contents of the run folder)."""
    reset(base, start)
    begin, status = time.monotonic(), finish(launch(base, name))
    if status or not EVENTS.value:
        sys.exit(f"{name}: status {status}, {EVENTS.value} writes: {(base / 'output').read_text()}")
    return time.monotonic() - begin, EVENTS.value, content(base / "run")


def kill_once(base, name, start, seconds, writes, expected, in_write):
    """Kill a run, then rerun it. Return (whether the kill was in time, faults)."""
    reset(base, start)
    before = content(base / "run")
    if in_write:
        at = random.randrange(1, writes + 1)
        moment, pid = f"event {at} of {writes}", launch(base, name, at=at)
    else:
        wait = random.uniform(0, seconds)
        moment, pid = f"{wait:.3f} of {seconds:.3f} s", launch(base, name)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)  # if it has ended, it is a zombie until waited for
    in_time = finish(pid) == -signal.SIGKILL

    after = content(base / "run")
    whole = {*before.items(), *expected.items()}
    faults = [f"{path} is half" for path, data in after.items() if (path, data) not in whole]
    faults += [f"{path} is gone" for path in {*before} - {*after} if "encoder" not in path]
    status, end = finish(launch(base, name)), content(base / "run")
    if status:
        faults.append(f"the next run: status {status}: {(base / 'output').read_text()[-200:]}")
    different = {path for path, _ in {*end.items()} ^ {*expected.items()}}
    faults += [f"{path} differs after the next run" for path in different]
    return in_time, [f"{start}, {moment}: {fault}" for fault in faults]


def kill_script(base, name, kills):
    """Kill a script `kills` times and print its line. Return the number of differences."""
    starts = [f"{name}-before", f"{name}-after"]
    if (base / "run").exists():
        shutil.copytree(base / "run", base / starts[0])
    whole = [undisturbed(base, name, starts[0])]
    shutil.copytree(base / "run", base / starts[1])
    whole.append(undisturbed(base, name, starts[1]))
    faults = [f"{name} twice: another result"] if whole[0][2] != whole[1][2] else []
    landed = 0
    for trial in range(kills):
        again = trial // 2 % 2
        in_time, wrong = kill_once(base, name, starts[again], *whole[again], in_write=trial % 2)
        landed, faults = landed + in_time, faults + wrong
    reset(base, starts[1])
    line = f"{name:12} {landed} of {kills} kills in time | {len(faults)} differences"
    print("\n  ".join([line, *faults]), flush=True)
    return len(faults)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--kills", type=int, default=50, help="kills per script (default: 50)")
    args = p.parse_args()
    step3_head.train_heads = partial(step3_head.train_heads, steps=100)
    evaluation.BOOTSTRAP = 500
    random.seed(0)

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        make_task(base / "data", rows=150)
        make_encoder(base / "encoder")
        differences = sum(kill_script(base, name, args.kills) for name in NAMES)
    print(f"{differences} differences in {time.monotonic() - begin:.0f} s")
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
