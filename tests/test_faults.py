"""A killed, stopped, crowded or unwritable run leaves whole files, and the same command then works."""
import ctypes
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import eval as evaluation
import pytest
import step2_align
import step3_head
import torch
from conftest import ROOT

import common

if not sys.platform.startswith("linux"):
    pytest.skip("faults.py forks a process with PyTorch in it: safe on Linux only", allow_module_level=True)

import resource  # noqa: E402

from faults import (INSIDE, RUNNING, SCRIPTS, compare, disturb, finish, kill_script, launch,  # noqa: E402
                    look, make_world, prepare, warm_up)

SMALL = ((common, "SHARD", 16), (step3_head, "STEPS", 40), (step2_align, "EPOCHS", 4),
         (evaluation, "BOOTSTRAP", 200))
NO_RIGHT = 77          # exit status of a child that may not do what the test needs
NEW_MOUNTS, NEW_USER, BIND, REMOUNT, READ_ONLY, PRIVATE = 0x20000, 0x10000000, 4096, 32, 1, 1 << 18 | 1 << 14


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    """The four scripts on the tiny world, with the files and times of undisturbed runs."""
    world = make_world(tmp_path_factory.mktemp("faults"), *tiny, "mood", "xx", 90, small=SMALL, pause=2e-4)
    warm_up(tiny[0])
    prepare(world)
    return world


def stderr(world, tag="child"):
    """Lines on a child's stderr, progress bars left out."""
    text = re.sub(r"[^\r\n]*?%\|.*?\]", "", (world.base / f"{tag}.err").read_text())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def refused(world, status, words):
    """One line with these words and exit status 2."""
    lines = stderr(world)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), (status, lines)
    assert re.search(words, lines[0]), lines[0]


def nothing_changed(world, before):
    """The run folder holds the files of `before` and no temporaries."""
    assert look(world.run) == (before, [], [])


def mended(world, name):
    """The same command succeeds and leaves what an undisturbed run leaves."""
    assert finish(launch(world, name)) == 0, stderr(world)
    whole, _, wrong = look(world.run)
    assert wrong + compare(whole, world.files[name], world.files[name]) == []


# Kills
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_killed_script_leaves_whole_files_and_runs_again_to_the_same_result(world, name):
    phases, files, wrong = kill_script(world, name, 3, 3, random.Random(1))
    assert wrong == []
    assert sum(phases.values()) == 6 and phases[INSIDE] >= 3 and files["whole"] > 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_kill_around_the_last_rename(world, name):
    """In the write, before and after the rename: a file under its name holds all its bytes."""
    for back in range(4):
        world.reset(name, "before")
        status = finish(launch(world, name, None, world.calls[name, "before"] - back))
        whole, left, wrong = look(world.run)
        assert (status, len(left), wrong) == (-signal.SIGKILL, int(back > 0), [])
        assert compare(whole, world.files[name], world.files[name] if not back else ()) == []
    mended(world, name)


def test_a_run_killed_between_two_writes_goes_on_from_its_cache(world):
    world.reset("step2_align", "before")
    die = partial(at_write, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert finish(launch(world, "step2_align", setup=die)) == -signal.SIGKILL
    whole, left, wrong = look(world.run)
    assert len([name for name in whole if name.startswith("cache")]) == 3 and left == wrong == []
    kept = {path: path.stat().st_mtime_ns for path in world.run.glob("cache/*/*.pt")}
    mended(world, "step2_align")
    assert len(kept) == 3 and all(path.stat().st_mtime_ns == written for path, written in kept.items())


def straight(write_whole, path, content):
    Path(path).write_bytes(content)


def gone_first(write_whole, path, content):
    Path(path).unlink(missing_ok=True)
    write_whole(path, content)


def renamed_early(write_whole, path, content):
    early = path.with_name(f".{path.name}.1.1")
    early.write_bytes(b" ")
    os.replace(early, path)
    path.write_bytes(content)


@pytest.mark.parametrize("broken, told", [
    (straight, "is not whole"), (gone_first, "is missing"), (renamed_early, "is not whole")])
def test_the_harness_sees_a_broken_writer(world, monkeypatch, broken, told):
    monkeypatch.setattr(common, "write_whole", partial(broken, common.write_whole))
    wrong = kill_script(world, "step3_head", 0, 4, random.Random(0))[2]
    assert any(told in line for line in wrong), wrong


def test_the_harness_sees_another_result(world, monkeypatch):
    monkeypatch.setattr(step2_align, "LR", 1.01e-3)
    wrong = kill_script(world, "step2_align", 0, 2, random.Random(0))[2]
    assert any("align-xx-fc-n90.pt differs" in line for line in wrong), wrong


# Ctrl-C
def stopped(world, status, tag="child"):
    """One line, exit status 130, no temporaries; whatever is there is whole."""
    assert (status, [line.split(";")[0] for line in stderr(world, tag)]) == (130, ["stopped"])
    whole, left, wrong = look(world.run)
    assert left == wrong == []
    return whole


def interrupt(world, name, start, after):
    """Exit status of a script that gets Ctrl-C so many seconds after its start, or sooner."""
    world.reset(name, start)
    state = RawArray("l", 4)
    pid = launch(world, name, state)
    while not state[RUNNING]:
        time.sleep(0.001)
    return disturb(pid, after, signal.SIGINT) or interrupt(world, name, start, after / 2)


@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_is_one_line_and_exit_status_130(world, name):
    rng = random.Random(2)
    for start in ("before", "after", "before"):
        world.reset(name, start)
        needed = look(world.run)[0]
        status = interrupt(world, name, start, rng.uniform(0, world.seconds[name, start]))
        assert compare(stopped(world, status), world.files[name], needed) == []
    mended(world, name)


@pytest.mark.parametrize("start", ["before", "after"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_in_the_middle_of_a_write(world, name, start):
    """At the first call that writes, at one in the middle, and just after the last rename."""
    calls = world.calls[name, start]
    for at in (1, calls // 2, calls):
        world.reset(name, start)
        needed = look(world.run)[0]
        status = finish(launch(world, name, None, at, signal.SIGINT))
        assert compare(stopped(world, status), world.files[name], needed) == []
    mended(world, name)


@pytest.mark.parametrize("name, args", [("step1_embed", ["--epochs", "100000"])])
def test_ctrl_c_at_a_script_as_a_user_runs_it(world, name, args):
    world.reset(name, "before")
    with open(world.base / "user.err", "wb") as err, subprocess.Popen(
            [sys.executable, "-u", f"{name}.py", *world.commands[name], *args], cwd=ROOT, stderr=err,
            stdout=subprocess.PIPE, text=True,               # where the tests run in the background, a shell has
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as user:      # them ignore Ctrl-C
        try:
            assert user.stdout.readline().startswith(name[:4])                     # the imports are over
            time.sleep(0.02)
            user.send_signal(signal.SIGINT)
            user.communicate(timeout=60)
        finally:
            user.kill()                                      # no hang if it went on
    stopped(world, user.returncode, "user")
    assert not list(world.run.glob("align-*"))


# No room
def at_write(number, act):
    """In a child: `act()` just before it writes its file of this number."""
    write_whole, count = common.write_whole, itertools.count(1)

    def counted(*args):
        if next(count) == number:
            act()
        write_whole(*args)
    common.write_whole = evaluation.write_whole = counted


def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))          # less than any file of a script


@pytest.mark.parametrize("start", ["before", "after"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_file_that_may_not_grow(world, name, start):
    """The old files are still there, of the new one nothing; with room again the command does its work."""
    world.reset(name, start)
    before = look(world.run)[0]
    refused(world, finish(launch(world, name, setup=partial(at_write, 1, limit))),
            r": cannot be written \(.*File too large.*\); free space or change --out")
    nothing_changed(world, before)
    mended(world, name)


def test_caches_written_before_the_disk_was_full_are_used(world):
    world.reset("step2_align", "before")
    status = finish(launch(world, "step2_align", setup=partial(at_write, 4, limit)))
    refused(world, status, "cannot be written")
    whole, left, wrong = look(world.run)
    assert len(whole) == 1 + 3 and left == wrong == []       # embed.pt and three files of the cache
    mended(world, "step2_align")


def mount(*arguments):
    """In a child: mount(2) in a namespace of its own; ends it with NO_RIGHT where that is not allowed."""
    libc, user = ctypes.CDLL(None, use_errno=True), f"0 {os.getuid()} 1"
    if libc.unshare(NEW_MOUNTS):
        if libc.unshare(NEW_MOUNTS | NEW_USER):
            os._exit(NO_RIGHT)
        Path("/proc/self/uid_map").write_text(user)
    given = [(None, b"/", None, PRIVATE, None), *arguments]
    if any(libc.mount(source, target, kind, ctypes.c_ulong(flags), data)
           for source, target, kind, flags, data in given):
        os._exit(NO_RIGHT)


def full_disk(world, name, start):
    """In a child: the run folder on a disk without a free block; AssertionError if a write changes it."""
    world.run.mkdir(exist_ok=True)
    disk = b"tmpfs", bytes(world.run), b"tmpfs"
    mount((*disk, 0, b"size=64m"))
    if (world.base / f"{name}-{start}").exists():
        shutil.copytree(world.base / f"{name}-{start}", world.run, dirs_exist_ok=True)
    room = os.statvfs(world.run)
    used = max(4_096, (room.f_blocks - room.f_bfree) * room.f_bsize)   # 0 would mean no limit
    mount((*disk, REMOUNT, f"size={used}".encode()))
    write_whole, before = common.write_whole, look(world.run)

    def looked(*args):
        try:
            write_whole(*args)
        finally:
            assert look(world.run) == before
    common.write_whole = evaluation.write_whole = looked


def allowed(status):
    if status == NO_RIGHT:
        pytest.skip("needs the right to mount a file system: run as root, or allow user namespaces")
    return status


@pytest.mark.parametrize("start", ["before", "after"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_full_disk(world, name, start):
    world.reset(name, start)
    refused(world, allowed(finish(launch(world, name, setup=partial(full_disk, world, name, start)))),
            r": cannot be written \(.*No space left.*\); free space or change --out")


# No permission
def give_up_root():
    """In a child: root without its capabilities, whom permissions then bind as they bind anybody."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def read_only_mount(world):
    folder = bytes(world.run)
    mount((folder, folder, None, BIND, None), (folder, folder, None, BIND | REMOUNT | READ_ONLY, None))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_folder_without_the_right_to_write(world, name):
    world.reset(name, "after")
    folders = [world.run, *(p for p in world.run.rglob("*") if p.is_dir())]
    before = look(world.run)[0]
    for folder in folders:
        folder.chmod(0o555)
    status = finish(launch(world, name, setup=give_up_root))
    for folder in folders:
        folder.chmod(0o755)
    refused(world, status, r": cannot be written \(.*Permission denied.*\); free space or change --out")
    nothing_changed(world, before)
    mended(world, name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_read_only_file_system(world, name):
    world.reset(name, "after")
    before = look(world.run)[0]
    refused(world, allowed(finish(launch(world, name, setup=partial(read_only_mount, world)))),
            r": cannot be written \(.*Read-only file system.*\); free space or change --out")
    nothing_changed(world, before)


@pytest.mark.parametrize("name, blocked", [
    ("step1_embed", "."), ("step2_align", "cache"), ("step3_head", "head-english.pt"),
    ("eval", "results.json")])
def test_something_else_under_the_name(world, name, blocked):
    """A file where a folder should be, or a folder where a file should be: for root as for anybody."""
    world.reset(name, "before")
    place = world.run / blocked
    place.mkdir() if place.suffix else place.write_text("")
    refused(world, finish(launch(world, name)), "cannot be written")
    assert place.is_dir() if place.suffix else place.read_text() == ""
    assert not world.run.is_dir() or look(world.run)[1:] == ([], [])
    place.rmdir() if place.suffix else place.unlink()
    mended(world, name)


# Two at once
def both(world, *children):
    """Run two children on the run folder at once: both exit 0, all files are whole, no temporaries."""
    pids = [launch(world, name, args=args, tag=f"child{i}") for i, (name, args) in enumerate(children)]
    statuses = [finish(pid) for pid in pids]
    assert statuses == [0, 0], [stderr(world, f"child{i}") for i in (0, 1)]
    whole, left, wrong = look(world.run)
    assert left == wrong == []
    return whole


@pytest.mark.parametrize("start", ["before", "after"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_two_runs_of_one_command_at_once(world, name, start):
    world.reset(name, start)
    assert compare(both(world, (name, None), (name, None)), world.files[name], world.files[name]) == []


def test_two_aligners_at_once(world):
    """They need the same embeddings, so each is what it is alone."""
    fc = world.commands["step2_align"]
    ae = [*fc, "--arch", "ae"]
    world.reset("step2_align", "after")
    assert finish(launch(world, "step2_align", args=ae)) == 0
    alone = look(world.run)[0]
    world.reset("step2_align", "before")
    assert compare(both(world, ("step2_align", fc), ("step2_align", ae)), alone, alone) == []


def test_steps_2_and_3_at_once(world):
    """They share some texts and cut them otherwise, so a text's embedding may differ in its last bits."""
    english = ["--method", "english", *world.commands["step3_head"][2:]]
    world.reset("step2_align", "before")
    whole = both(world, ("step2_align", None), ("step3_head", english))
    assert {"align-xx-fc-n90.pt", "head-english.pt"} <= set(whole)
    rows = [{}, {}]
    for found, files in zip(rows, (whole, world.files["step3_head"])):
        for content in (content for name, content in files.items() if name.startswith("cache")):
            x = unpack(content["embeddings"])
            found |= {content["keys"][2][16 * i:16 * i + 16]: row for i, row in enumerate(x)}
    assert rows[0].keys() == rows[1].keys()
    for key, row in rows[0].items():
        assert torch.allclose(row, rows[1][key], atol=1e-2), key


def test_eval_while_step_3_writes(world):
    world.reset("eval", "after")
    whole = both(world, ("eval", None), ("step3_head", None))
    assert compare(whole, world.files["eval"], world.files["eval"]) == []


def unpack(content):
    """fp32 tensor of a tensor in the form of `plain`."""
    return torch.frombuffer(bytearray(content[2]), dtype=torch.float32).view(content[1])
