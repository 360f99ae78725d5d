"""`mudenet train`, killed with SIGKILL at random moments and started again until it ends, leaves the bytes of an undisturbed run.

    python tests/test_kill.py nbs/results/kill_test.json   # also writes the record that notebook 04a shows
"""
import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mudenet.core import new_record, read_meta, write_json
from mudenet.synthetic import write_product_line

STEPS = dict(distill=260, train=260)
KILLS = 12  # in each stage
TINY = ["--data.image_size=64", "--model.channels=8", "--model.width=8", "--backbone.name=resnet18", "--backbone.weights=random",
        "--distill.batch_size=4", "--train.batch_size=4", "--device=cpu", *(f"--{k}.steps={n}" for k, n in STEPS.items()),
        *(f"--{k}.save_minutes=0.0001" for k in STEPS)]  # after every step


def start(line, out):
    """A training process."""
    code = "import sys; from mudenet.cli import main; sys.exit(main())"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, "train", "--root", line, "--out", out, *TINY], env=env,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for a process that nobody disturbs."""
    err = process.communicate()[1]
    assert process.returncode == 0, err


def run_folder(out):
    """The run's folder, once there is one."""
    return next(out.glob("*/*/*-s0"), None)


def learning(out, stage, since):
    """Whether a stage has written its state since a moment."""
    folder = run_folder(out)
    state = folder and folder / f"{stage}.state.safetensors"
    try:
        return bool(state) and state.stat().st_mtime > since
    except FileNotFoundError:  # the stage has just ended
        return False


def await_save(process, out, stage):
    """Wait until a process is writing its state."""
    part = run_folder(out) / f".{stage}.state.safetensors.{process.pid}.part"
    while process.poll() is None and not part.exists():
        pass


def kill(process, out, begin):
    """SIGKILL, and what it hit."""
    process.kill()
    process.communicate()
    folder = run_folder(out)
    stage = "train" if folder and (folder / "teacher.safetensors").exists() else "distill"
    state = folder / f"{stage}.state.safetensors" if folder else None
    step = read_meta(state, "state")["step"] if state and state.exists() else 0
    saving = bool(folder) and any(folder.glob(f".*.{process.pid}.part"))
    return dict(stage=stage, step=step, saving=saving, seconds=round(time.time() - begin, 2))


def disturbed_run(line, out, seed=0):
    """Train to the end through many kills: most while a stage learns, some aimed at a save, some at any moment after the start."""
    moment, kills = random.Random(seed), []
    while True:
        count = {k: sum(x["stage"] == k for x in kills) for k in STEPS}
        folder = run_folder(out)
        taught = folder is not None and (folder / "teacher.safetensors").exists()
        stage = "train" if taught or count["distill"] >= KILLS else "distill"
        begin, process = time.time(), start(line, out)
        if count[stage] >= KILLS:
            finish(process)
            return kills
        if len(kills) % 6 == 5:  # any moment: imports, reading images, between the stages
            time.sleep(moment.uniform(0, 4))
        else:
            while process.poll() is None and not learning(out, stage, begin):
                time.sleep(0.002)
            time.sleep(moment.uniform(0, 0.6))
            if len(kills) % 3 == 1:
                await_save(process, out, stage)
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            return kills
        kills.append(kill(process, out, begin))


def kill_test(top):
    """The record of a disturbed and an undisturbed run."""
    line = write_product_line(top / "line", size=64, train=10, validation=3, good=2, structural=2, logical=2)
    finish(start(line, top / "undisturbed"))
    kills = disturbed_run(line, top / "killed")
    folders = [run_folder(top / k) for k in ("killed", "undisturbed")]
    names = sorted({p.name for f in folders for p in f.iterdir()} - {"config.yaml"})  # config.yaml names its own --out
    digests = {n: [hashlib.sha256(content(f / n)).hexdigest() if (f / n).exists() else None for f in folders] for n in names}
    return new_record("kill_test", options=TINY, steps=STEPS, kills=kills, digests=digests)


def content(path: Path) -> bytes:
    """The bytes of a file, of a log without its seconds."""
    if path.suffix != ".csv":
        return path.read_bytes()
    return "\n".join(line.rsplit(",", 1)[0] for line in path.read_text(encoding="utf-8").splitlines()).encode()


def check(record):
    """At least 20 kills, in both stages, some while saving, and not a bit of difference."""
    for stage in STEPS:
        assert sum(k["stage"] == stage for k in record["kills"]) >= 8, record["kills"]
    assert len(record["kills"]) >= 20 and any(k["saving"] for k in record["kills"])
    assert set(record["digests"]) == {"teacher.safetensors", "detector.safetensors", "distill.csv", "train.csv"}
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
