"""Whatever ends a run, it ends with a message and its last good state; given again, the command ends where
it would have ended.
"""

import signal
import subprocess
import sys

import pytest
from tiny import TINY

from mudenet import loop
from mudenet.cli import main
from mudenet.cli_options import configure
from mudenet.core import DataError, read_meta
from mudenet.evaluation import evaluate
from mudenet.job import open_job
from mudenet.inference import load_detector
from mudenet.synthetic import write_product_line

OPTIONS = [
    *TINY,
    "--distill.steps=3",
    "--train.steps=9",
    "--distill.save_minutes=0.0001",
    "--train.save_minutes=0.0001",
]  # after every step


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return write_product_line(
        tmp_path_factory.mktemp("survival") / "line",
        size=64,
        train=10,
        validation=3,
        good=3,
        structural=3,
        logical=3,
    )


@pytest.fixture(scope="module")
def undisturbed(line, tmp_path_factory):
    """The detector's bytes of a run that nobody disturbs."""
    return detector(line, tmp_path_factory.mktemp("undisturbed"))


def command(line, out, *more):
    return ["train", "--root", str(line), "--out", str(out), *OPTIONS, *more]


def detector(line, out):
    assert main(command(line, out)) == 0
    return next(out.rglob("detector.safetensors")).read_bytes()


def saved(out):
    return read_meta(next(out.rglob("train.state.safetensors")), "state")["step"]


def at_step(monkeypatch, n, action):
    """Do something while step n of a process (3 of stage 1, then 9 of stage 2) is under way."""
    batch, calls = loop.Batches.__getitem__, iter(range(1, 1000))

    def getting(self, k):
        x = batch(self, k)
        changed = action(x) if next(calls) == n else None
        return x if changed is None else changed

    monkeypatch.setattr(loop.Batches, "__getitem__", getting)


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        "SIGINT",
        pytest.param("SIGHUP", marks=pytest.mark.skipif(sys.platform == "win32", reason="no SIGHUP")),
    ],
)
def test_a_signal_saves_first(line, undisturbed, tmp_path, monkeypatch, capsys, name):
    signum = getattr(signal, name)
    before = signal.signal(signum, signal.default_int_handler)  # under nohup it would be ignored
    try:
        with monkeypatch.context() as m:
            at_step(m, 3 + 4, lambda x: signal.raise_signal(signum))
            assert main(command(line, tmp_path)) == 128 + signum
    finally:
        signal.signal(signum, before)
    assert "the same command goes on" in capsys.readouterr().err
    assert saved(tmp_path) == 4
    assert detector(line, tmp_path) == undisturbed


def test_a_vanished_data_folder(line, undisturbed, tmp_path, monkeypatch, capsys):
    """The images are in memory: training goes on to a detector.

    There is nothing to evaluate on, and that is said.
    """
    away = line.with_name("away")
    with monkeypatch.context() as m:
        at_step(m, 2, lambda x: (line.rename(away), None)[1])
        try:
            assert detector(line, tmp_path) == undisturbed
            run = str(next(tmp_path.rglob("detector.safetensors")).parent)
            assert main(["evaluate", run]) == 2
            assert f"{line} is not there" in capsys.readouterr().err
        finally:
            away.rename(line)
    assert main(["evaluate", run, "--evaluation.pictures=0"]) == 0


def test_images_that_vanish_while_they_are_looked_at(line, undisturbed, tmp_path, capsys):
    """A folder that is listed and then gone is a message too, not a traceback."""
    assert detector(line, tmp_path) == undisturbed
    run = next(tmp_path.rglob("detector.safetensors")).parent
    job = open_job(configure({}, str(run / "config.yaml")))
    away = line.with_name("away")
    line.rename(away)
    try:
        with pytest.raises(DataError, match="there is no such file"):
            evaluate(load_detector(run, "cpu"), job)
        with pytest.raises(DataError, match="is its disk still there"):
            _ = job.data_fingerprint
    finally:
        away.rename(line)
    assert not (run / "record.json").exists() and not (run / "report.html").exists()


def test_a_loss_that_is_not_finite(line, undisturbed, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as m:
        at_step(m, 3 + 6, lambda x: x * float("nan"))
        assert main(command(line, tmp_path)) == 1
    assert "step 6: the loss is not finite" in capsys.readouterr().err
    assert saved(tmp_path) == 5
    assert detector(line, tmp_path) == undisturbed


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_disk_that_fills_up(line, undisturbed, tmp_path):
    """From stage 2's sixth step on the kernel refuses to write more than a few kilobytes, as it does on a
    full disk.
    """
    code = (
        "import resource, sys\n"
        "from mudenet import loop\n"
        "from mudenet.cli import main\n"
        "batch, calls = loop.Batches.__getitem__, iter(range(1, 1000))\n"
        "def getting(self, k):\n"
        "    if next(calls) == 3 + 6: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, "
        "resource.RLIM_INFINITY))\n"
        "    return batch(self, k)\n"
        "loop.Batches.__getitem__ = getting\n"
        f"sys.exit(main({command(line, tmp_path)!r}))"
    )
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 2 and "the disk is full" in r.stderr and "Traceback" not in r.stderr, r.stderr
    assert saved(tmp_path) == 5 and not list(tmp_path.rglob("*.part"))
    assert detector(line, tmp_path) == undisturbed


def test_another_configuration_is_another_run(line, tmp_path, monkeypatch, capsys):
    """It never touches the unfinished one, and a state that was put into its folder is refused with the
    fields that differ.
    """
    with monkeypatch.context() as m:
        at_step(m, 3 + 4, lambda x: signal.raise_signal(signal.SIGTERM))
        assert main(command(line, tmp_path)) == 143
    state = next(tmp_path.rglob("train.state.safetensors"))
    content = state.read_bytes()
    other = command(line, tmp_path, "--train.lr=0.002")
    with monkeypatch.context() as m:
        at_step(m, 3 + 1, lambda x: signal.raise_signal(signal.SIGTERM))
        assert main(other) == 143
    assert state.read_bytes() == content
    (target,) = set(tmp_path.rglob("train.state.safetensors")) - {state}
    target.write_bytes(content)
    capsys.readouterr()
    assert main(other) == 2
    assert "train.lr: 0.001 there, 0.002 here" in capsys.readouterr().err
    assert main([*other, "--resume=false"]) == 0
