"""`mudenet train`, killed with SIGKILL from its first step to its last file, leaves the bytes of an
undisturbed run.

python tests/test_kill.py nbs/results/kill_test.json   # also writes the record that notebook 15 shows
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import TINY

from mudenet.core import new_record, read_meta, write_json
from mudenet.synthetic import write_product_line

STEPS = dict(distill=80, train=80)
KILLS = 8  # in each stage, from its first step to its last
OPTIONS = [
    *TINY,
    *(f"--{k}.steps={n}" for k, n in STEPS.items()),
    *(f"--{k}.save_minutes=0.0001" for k in STEPS),
]  # after every step
HAND_OVER = dict(
    distill=("before teacher.safetensors", "after teacher.safetensors"),
    train=("before calibration", "before detector.safetensors", "after detector.safetensors"),
)
# A process that sends itself SIGKILL: nobody outside could hit a moment so well. Before and after a file:
# written beside its place,
# and put into it. With a step, that of the state which is the file; with a delay, so many seconds later,
# wherever that is.
CHILD = """
import json, os, signal, sys, threading
from mudenet import job
from mudenet.cli import main
from mudenet.core import read_meta
aim, replace, calibrate = json.loads(sys.argv.pop(1)), os.replace, job.calibrate_on
def end(): os.kill(os.getpid(), signal.SIGKILL)
def at(moment, path=None):
    if moment != aim.get("at") or "step" in aim and read_meta(path, "state")["step"] < aim["step"]: return
    threading.Timer(aim["delay"], end).start() if "delay" in aim else end()
def replacing(part, path):
    name = os.path.basename(path)
    at("before " + name, part); replace(part, path); at("after " + name, path)
def calibrating(*args): at("before calibration"); return calibrate(*args)
os.replace, job.calibrate_on = replacing, calibrating
sys.exit(main())
"""


def start(line, out, **aim):
    """A training process, which kills itself where it is told to."""
    command = [sys.executable, "-c", CHILD, json.dumps(aim), "train", "--root", line, "--out", out, *OPTIONS]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for a process that nobody disturbs."""
    err = process.communicate()[1]
    assert process.returncode == 0, err


def run_folder(out):
    """The run's folder, once there is one."""
    return next(out.glob("*/*/*-s0"), out)


def killed(process, out, stage, aim):
    """What a process that was to be killed left behind."""
    err = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, f"{stage}, {aim}: missed. {err}"
    folder = run_folder(out)
    state = folder / f"{stage}.state.safetensors"
    writing = sorted(p.name.replace(str(process.pid), "PID") for p in folder.glob(f".*.{process.pid}.part"))
    return dict(
        stage=stage, aim=aim, step=read_meta(state, "state")["step"] if state.exists() else 0, writing=writing
    )


def disturbed_run(line, out):
    """Train to the end through kills: while it begins, from each stage's first step to its last, and around
    its last files.
    """
    kills = []
    for stage, steps in STEPS.items():
        process = start(line, out)
        time.sleep(1.5)
        process.kill()
        kills.append(killed(process, out, stage, "beginning"))
        for k in range(KILLS):
            aim = dict(at=f"before {stage}.state.safetensors", step=1 + k * steps // KILLS)  # while saving
            if k % 2 == 0:
                # at any moment
                aim = dict(
                    aim, at=f"after {stage}.state.safetensors", delay=random.Random(k).uniform(0, 0.01)
                )
            kills.append(killed(start(line, out, **aim), out, stage, "saving" if k % 2 else "any moment"))
        kills += [killed(start(line, out, at=point), out, stage, point) for point in HAND_OVER[stage]]
    finish(start(line, out))
    return kills


def kill_test(top):
    """The record of a disturbed and an undisturbed run."""
    line = write_product_line(top / "line", size=64, train=10, validation=3, good=2, structural=2, logical=2)
    finish(start(line, top / "undisturbed"))
    kills = disturbed_run(line, top / "killed")
    folders = [run_folder(top / k) for k in ("killed", "undisturbed")]
    # config.yaml names its own --out, and a state is no result
    names = {
        p.name for f in folders for p in f.iterdir() if p.name != "config.yaml" and ".state." not in p.name
    }
    digests = {n: [digest(f / n) for f in folders] for n in sorted(names)}
    return new_record("kill_test", options=OPTIONS, steps=STEPS, kills=kills, digests=digests)


def digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes, of a log without its seconds."""
    if not path.exists():
        return None
    content = path.read_bytes()
    if path.suffix == ".csv":
        content = b"\n".join(line.rsplit(b",", 1)[0] for line in content.splitlines())
    return hashlib.sha256(content).hexdigest()


def check(record):
    """At least 20 kills, from the first steps of each stage to its last and at every point, and not a bit of
    difference.
    """
    kills = record["kills"]
    assert len(kills) >= 20 and {k["aim"] for k in kills} == {
        "beginning",
        "any moment",
        "saving",
        *sum(HAND_OVER.values(), ()),
    }
    for stage, steps in record["steps"].items():
        spread = [k for k in kills if k["stage"] == stage and k["aim"] in ("any moment", "saving")]
        at = [0, *(k["step"] for k in spread), steps]
        assert at == sorted(at) and max(b - a for a, b in zip(at, at[1:])) <= steps / 4, at
        assert sum(f".{stage}.state.safetensors.PID.part" in k["writing"] for k in spread) >= KILLS // 2, (
            spread
        )
    for name in ("teacher.safetensors", "detector.safetensors"):  # written, not yet in its place
        assert any(k["writing"] == [f".{name}.PID.part"] for k in kills if k["aim"] == f"before {name}"), (
            kills
        )
    assert set(record["digests"]) == {
        "teacher.safetensors",
        "detector.safetensors",
        "distill.csv",
        "train.csv",
    }
    for name, (killed, undisturbed) in record["digests"].items():
        assert killed == undisturbed, name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_killed_and_resumed_equals_undisturbed(tmp_path):
    check(kill_test(tmp_path))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as top:
        record = kill_test(Path(top))
        write_json(sys.argv[1], record)
        check(record)
        print(f"{len(record['kills'])} kills, all files equal; {sys.argv[1]}")
