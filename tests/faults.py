"""Fault injection for LangAlign (arXiv 2503.18603): kill each script, look, run it again. No test.

    python tests/faults.py                                       # each script: 50 kills, 25 more in a write
    python tests/faults.py --kills 10 --script step2_align,eval  # fewer, and of two scripts only

Each script runs in a forked child, on rows cut off the toy world and with small constants, so that a run
takes about a second and still writes many files. SIGKILL ends it at a random moment: --kills times by the
clock, over the whole run, and half as often in a write or at a rename: a random one, or around the last.
Every other run starts in a folder where the same command ran before, so that it has artifacts to overwrite.
After a kill every file there must be whole and hold what an undisturbed run writes, and none may have
vanished; then the same command must succeed and leave what an undisturbed run leaves, bit for bit, seconds
aside. A temporary file of the killed process (.<name>.<process>.<time>) may stay: no script reads one.

Reads   <data>/sentiment/{en,ko} of data/toy.py and its encoder.
Writes  nothing outside a temporary folder.
Prints  a line a script: kills that landed while it ran and what it was doing, files found whole, temporaries
        left after the kills and after the runs that followed, differences; below it each difference.
Expect  0 differences; exit status 1 if there is one. Left out is a kill in the seconds of Python's imports,
        before `main` runs: nothing is written then.
"""
import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"               # else it warns of every fork
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import common  # noqa: E402
import eval as evaluation  # noqa: E402
import step1_embed  # noqa: E402
import step2_align  # noqa: E402
import step3_head  # noqa: E402
from common import UserError, positive, run  # noqa: E402
from data import plot  # noqa: E402

SCRIPTS = {"step1_embed": step1_embed, "step2_align": step2_align, "step3_head": step3_head,
           "eval": evaluation}
ROWS = 400             # of each file of the toy world
SMALL = ((common, "SHARD", 80), (step3_head, "STEPS", 200), (evaluation, "BOOTSTRAP", 500))
PAUSE = 0.001          # seconds before each call that writes: kills by the clock then meet half a file
PATIENCE = 120         # seconds after which a run counts as hung
TEMPORARY = re.compile(r"\..+\.(pt|json|svg)\.\d+\.\d+")     # common.write_whole's; no reader takes one
PARTS = 3              # in which a child writes a file
RUNNING, WRITING, WRITTEN, CALLS = range(4)                  # of the memory that a child shares
BEFORE, INSIDE, BETWEEN, AFTER = "before the first write", "inside one", "between two", "after the last"

@dataclass
class World:
    """A run folder, always under the same path since artifacts keep it, and the commands that fill it."""
    base: Path                     # holds the run folder, copies of it, and what a child prints
    commands: dict                 # script -> arguments, in the order in which they build on each other
    small: tuple = SMALL           # (module, constant, value) in the children
    pause: float = PAUSE           # seconds before each call that writes
    files: dict = field(default_factory=dict)                # script -> contents after an undisturbed run
    seconds: dict = field(default_factory=dict)              # (script, start) -> of an undisturbed run
    calls: dict = field(default_factory=dict)                # (script, start) -> calls that write, in one
    writes: dict = field(default_factory=dict)               # (script, start) -> files written, in one

    @property
    def run(self):
        return self.base / "run"

    def reset(self, name, start):
        """Make the run folder what it was "before" or "after" the script's undisturbed run."""
        self.run.unlink() if self.run.is_file() else shutil.rmtree(self.run, ignore_errors=True)
        if (self.base / f"{name}-{start}").exists():
            shutil.copytree(self.base / f"{name}-{start}", self.run)         # with the files' times

def make_world(base, model, data, task, lang, n, **options):
    """World of the four scripts in their order, on one language."""
    out = ["--out", str(Path(base, "run")), "--device", "cpu"]
    given = {"step1_embed": ["--model", str(model), "--data", str(data), "--task", task, "--epochs", "1"],
             "step2_align": ["--lang", lang, "--n", str(n)], "step3_head": ["--lang", lang],
             "eval": ["--lang", lang, "--plot", str(Path(base, "run", "plot.svg"))]}
    return World(Path(base), {name: [*args, *out] for name, args in given.items()}, **options)

# The child
def watch(state, at, number, pause):
    """Count in `state` the files and the calls that write; at call number `at` (0: never) get a signal.

    Only the process that calls this is changed: it is a child that ends with its script.
    """
    write_whole, replace = common.write_whole, os.replace

    def call():
        if state[WRITING]:
            state[CALLS] += 1
            time.sleep(pause)
            if state[CALLS] == at:
                signal.raise_signal(number)

    def write_bytes(path, content):
        size = -(-len(content) // PARTS)
        with open(path, "wb") as file:
            for start in range(0, len(content), size):
                call()
                file.write(content[start:start + size])
                file.flush()

    def counted(*args):
        state[WRITING] = 1
        write_whole(*args)
        state[WRITTEN] += 1
        state[WRITING] = 0

    def stepped(*args):
        call()
        replace(*args)
        call()

    Path.write_bytes, os.replace = write_bytes, stepped
    common.write_whole = evaluation.write_whole = plot.write_whole = counted

def launch(world, name, state=None, at=0, number=signal.SIGKILL, setup=None, args=None, tag="child"):
    """Fork a child that runs a script as `python <name>.py <args>` would; returns its process id.

    at, number: see `watch`. setup: called in the child before. Its output is in <base>/<tag>.out and .err.
    """
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status, flags = 1, os.O_CREAT | os.O_TRUNC | os.O_WRONLY
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)         # until the script runs
        for stream, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(world.base / f"{tag}.{kind}", flags, 0o644), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        torch.set_num_threads(1)                             # a fork has none of its parent's threads
        tqdm.set_lock(threading.RLock())                     # tqdm's is shared: a killed child keeps it
        for module, constant, value in world.small:
            setattr(module, constant, value)
        watch(state if state is not None else RawArray("l", 4), at, number, world.pause)
        if setup:
            setup()
        run(lambda: play(SCRIPTS[name].main, args or world.commands[name], state))
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)

def play(main, args, state):
    """Call `main` with Ctrl-C as Python has it; afterwards a late one is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if state is not None:
        state[RUNNING] = 1
    main(list(args))
    signal.signal(signal.SIGINT, signal.SIG_IGN)

def finish(pid, patience=PATIENCE):
    """Exit status of a child, or minus the signal that ended it; TimeoutError for one that hangs."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"a child ran for more than {patience} s")

def disturb(pid, after, number):
    """Send a child a signal so many seconds from now; returns its exit status as `finish` does."""
    time.sleep(after)
    os.kill(pid, number)                                     # an ended child is still there, as a zombie
    return finish(pid)

# The run folder
def plain(value):
    """Nested content without times, as something that == compares bit for bit."""
    if isinstance(value, torch.Tensor):
        raw = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), raw
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return repr(value)

def read(path):
    """Content of one file as `plain` has it; UserError or ValueError where it is not whole."""
    if path.suffix == ".pt":
        kind = "cache" if path.parent.parent.name == "cache" else path.stem.split("-")[0]
        return plain(common.load(path, kind, "a script"))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".svg" and not text.endswith("</svg>\n"):
        raise ValueError("an SVG cut short")
    return plain(json.loads(text)) if path.suffix == ".json" else text

def look(folder):
    """(name -> content of the whole files, names of temporaries left, what is wrong) under a run folder."""
    whole, left, wrong = {}, [], []
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        name = str(path.relative_to(folder))
        if TEMPORARY.fullmatch(path.name):
            left.append(name)
            continue
        try:
            whole[name] = read(path)
        except (UserError, ValueError) as err:
            wrong.append(f"{name} is not whole: {str(err).splitlines()[0]}")
    return whole, left, wrong

def compare(whole, expected, needed):
    """What is wrong with whole files: other content than an undisturbed run's, or a needed one gone."""
    wrong = [f"{name} is none of an undisturbed run" for name in whole if name not in expected]
    wrong += [f"{name} differs" for name in whole if name in expected and whole[name] != expected[name]]
    return wrong + [f"{name} is missing" for name in needed if name not in whole]

# The kills
def undisturbed(world, name, start):
    """Run a script once from a start, time it and keep what it writes; UserError if it fails."""
    world.reset(name, start)
    state, begin = RawArray("l", 4), time.monotonic()
    status = finish(launch(world, name, state))
    key, told = (name, start), (world.base / "child.err").read_text().strip()
    if status:
        raise UserError(f"{name} fails undisturbed, status {status}: {told[-300:]}; run data/toy.py first")
    world.seconds[key], world.calls[key] = time.monotonic() - begin, state[CALLS]
    world.writes[key] = state[WRITTEN]
    whole, left, wrong = look(world.run)
    wrong += [f"{item} left" for item in left] + compare(whole, world.files.get(name, whole), whole)
    if wrong:
        raise UserError(f"{name} undisturbed {start}: {'; '.join(wrong)}; no run can be compared with this")
    world.files[name] = whole

def prepare(world):
    """Run all scripts undisturbed, each from a fresh folder and over its own artifacts; keep the folders."""
    for name in world.commands:
        if world.run.exists():
            shutil.copytree(world.run, world.base / f"{name}-before")
        undisturbed(world, name, "before")
        shutil.copytree(world.run, world.base / f"{name}-after")
        undisturbed(world, name, "after")
        world.reset(name, "after")                           # the next script's start

def phase(state, writes):
    """What a child was doing when it died."""
    if state[WRITING]:
        return INSIDE
    return BEFORE if not state[WRITTEN] else AFTER if state[WRITTEN] == writes else BETWEEN

def kill_once(world, name, start, rng, in_write):
    """One kill and the run that follows: (phase or None if it came too late, Counter, what is wrong)."""
    world.reset(name, start)
    needed, state, key = set(look(world.run)[0]), RawArray("l", 4), (name, start)
    if in_write:
        calls = world.calls[key]                             # the last two are around the rename
        at = rng.randrange(1, calls + 1) if rng.random() < 0.5 else calls - rng.randrange(4)
        moment = f"call {at} of {calls}"
        status = finish(launch(world, name, state, at))
    else:
        moment = f"{(after := rng.uniform(0, world.seconds[key])):.3f} s of {world.seconds[key]:.3f}"
        status = disturb(launch(world, name, state), after, signal.SIGKILL)
    if status != -signal.SIGKILL:
        return None, Counter(), [f"{moment}: status {status}"] if status else []
    whole, left, wrong = look(world.run)
    wrong += compare(whole, world.files[name], needed)
    count = Counter(whole=len(whole), left=len(left))
    if status := finish(launch(world, name)):
        told = (world.base / "child.err").read_text().strip().splitlines()
        wrong.append(f"the next run's status is {status}: {told[-1] if told else 'no word'}")
    whole, left, broken = look(world.run)
    wrong += [f"after the next run {item}" for item in
              broken + compare(whole, world.files[name], world.files[name])]
    count["still"] = len(left)
    where = phase(state, world.writes[key])
    return where, count, [f"{start}, {moment}, {where}: {item}" for item in wrong]

def kill_script(world, name, kills, in_writes, rng):
    """(Counter of phases, Counter of files, what is wrong) after so many kills that landed in a run."""
    phases, files, wrong = Counter(), Counter(), []
    for in_write, wanted in ((False, kills), (True, in_writes)):
        starts, landed = itertools.cycle(("before", "after")), 0
        for _ in range(3 * wanted):                          # one that comes too late is tried again
            if landed < wanted:
                where, count, faults = kill_once(world, name, next(starts), rng, in_write)
                landed += where is not None
                phases += Counter([where] if where else [])
                files += count
                wrong += faults
    return phases, files, wrong

def told(name, phases, files, wrong):
    """The line of one script."""
    doing = ", ".join(f"{phases[where]} {where}" for where in (BEFORE, INSIDE, BETWEEN, AFTER))
    return (f"{name:12s} {sum(phases.values())} kills: {doing} | {files['whole']} whole files | "
            f"temporaries: {files['left']} left, {files['still']} after the next run | "
            f"{len(wrong)} differences")

def cut_rows(data, task, langs, rows, out):
    """Copy the first rows of each file of a task."""
    for path in (path for lang in langs for path in Path(data, task, lang).glob("*.tsv")):
        target = Path(out, path.relative_to(data))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(common.read_lines(path)[:rows + 1]) + "\n", encoding="utf-8")

def warm_up(model):
    """Import what the libraries import at first use, so that each child need not."""
    common.load_pretrained(model, "mean", 8)
    weight = torch.zeros(2, 2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=positive, default=50,
                   help="of each script by the clock, and half as many inside a write")
    p.add_argument("--data", default="data/toy", help="toy world of data/toy.py")
    p.add_argument("--model", default="data/toy/encoder", help="its encoder")
    p.add_argument("--script", default=",".join(SCRIPTS), help="scripts to kill, comma-separated")
    p.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = p.parse_args(argv)
    args.script = args.script.split(",")
    if unknown := set(args.script) - set(SCRIPTS):
        raise UserError(f"--script {' '.join(unknown)}: no such script; give some of {','.join(SCRIPTS)}")
    return args

def main(argv=None):
    args = get_args(argv)
    torch.set_num_threads(1)                                 # no pool of threads, which a fork would lose
    differences, begin = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        cut_rows(args.data, "sentiment", ("en", "ko"), ROWS, Path(base, "data"))
        world = make_world(base, Path(args.model).resolve(), Path(base, "data"), "sentiment", "ko", ROWS)
        warm_up(args.model)
        prepare(world)
        print(f"faults | seed {args.seed} | {ROWS} rows a file | " + ", ".join(
            f"{name} {world.seconds[name, 'before']:.1f} s, {world.writes[name, 'before']} files"
            for name in world.commands), flush=True)
        for name in args.script:
            rng = random.Random(args.seed)
            phases, files, wrong = kill_script(world, name, args.kills, args.kills // 2, rng)
            differences += len(wrong)
            print("\n  ".join([told(name, phases, files, wrong), *wrong]), flush=True)
    print(f"{differences} differences in {time.monotonic() - begin:.0f} s")
    if differences:
        sys.exit(1)

if __name__ == "__main__":
    run(main)
