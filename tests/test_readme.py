"""Every command of README.md runs. The first two are run whole by .ci/run and on a new machine; here the
demo is shrunk.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY

from mudenet.cli import make_parser
from mudenet.synthetic import write_product_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [b.strip() for b in re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)]
QUICK = "--train.steps=4 --device=cpu"  # for the demonstration, whose teacher is shipped
SHORT = " ".join([*TINY, "--teacher=none", "--distill.steps=3", "--train.steps=4"])


@pytest.fixture(scope="module")
def my_parts(tmp_path_factory):
    """A user's folder: the embedded product line, with only what README says is needed."""
    top = tmp_path_factory.mktemp("readme")
    line = write_product_line(top / "line", size=64, train=8, validation=2, good=2, structural=2, logical=2)
    for part in ("train", "test"):
        shutil.copytree(line / part, top / "my_parts" / part)
    return top


def shell(command, cwd):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    r = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert r.returncode == 0, f"{command}\n{r.stdout}\n{r.stderr}"
    return r.stdout


def test_first_blocks_are_the_two_commands():
    assert SHELL[0] == "pip install . && mudenet demo"
    assert SHELL[1] == "pip install -e '.[dev]' && pytest"


def test_demo(my_parts):
    command = SHELL[0].split("&& ")[1]
    out = shell(f"{command} --root line --out demo {QUICK}", my_parts)
    assert "Demonstration configuration" in out and list((my_parts / "demo").rglob("report.html"))


def test_own_images(my_parts):
    assert len(SHELL) == 3
    for command in SHELL[2].splitlines():
        out = shell(f"{command} {SHORT}" if command.startswith("mudenet train") else command, my_parts)
        assert out
    assert (my_parts / "found" / "predictions.csv").read_text().count("\n") == 7


def test_a_second_run_is_listed_and_not_mixed_up(my_parts):
    shell(f"{SHELL[2].splitlines()[0]} {SHORT} --seed 1", my_parts)
    with pytest.raises(AssertionError, match="(?s)holds 2 runs; name one of them:.*-s0.*-s1"):
        shell(SHELL[2].splitlines()[1], my_parts)
    shutil.rmtree(next((my_parts / "runs" / "folder" / "my_parts").glob("*-s1")))


def test_inline_commands(my_parts):
    """Those within a sentence: run at toy size, or read by the parser where they would want a cluster or a
    file.
    """
    assert set(re.findall(r"`(mudenet [a-zA-Z][^`]*)`", README)) == {
        "mudenet demo",
        "mudenet train --root PATH --category cable",
        "mudenet COMMAND --help",
        "mudenet benchmark --root PATH",
        "mudenet teachers",
        "mudenet export RUN --to onnx",
        "mudenet calibrate RUN good_parts --false-alarms 0.05",
        "mudenet threshold RUN --bad FOLDER",
        "mudenet data check PATH",
        "mudenet zoo list",
        "mudenet sweep train.lr=0.001,0.002 data.image_size=128,256 --root PATH",
        "mudenet calibrate RUN --folds 4",
        "mudenet ablate A-049 --root PATH",
    }
    assert shell("mudenet teachers", my_parts).startswith("general")
    assert "layout folder" in shell("mudenet data check my_parts", my_parts) and "Apache-2.0" in shell(
        "mudenet zoo list", my_parts
    )
    shutil.copytree(my_parts / "my_parts", my_parts / "mvtec" / "cable")
    shell(f"mudenet train --root mvtec --category cable --out inline {SHORT}", my_parts)
    assert list((my_parts / "inline" / "mvtec_ad" / "cable").rglob("detector.safetensors"))
    assert "| mvtec_ad | cable | 1 |" in shell(
        f"mudenet benchmark --root mvtec --seeds 1 --out table {SHORT}", my_parts
    )
    assert "--train.epochs" in shell("mudenet train --help", my_parts)
    for words in (
        "export RUN --to onnx",
        "calibrate RUN good_parts --false-alarms 0.05",
        "threshold RUN --bad FOLDER",
        "ablate A-049 --root PATH",
    ):
        make_parser(words.split()[0]).parse_args(words.split(), defaults=False)
    options = re.findall(r"`(--[^`]+)`", README)
    assert set(options) == {
        "--backbone.weights PATH",
        "--ray auto",
        "--teacher general",
        "--teacher small",
        "--teacher none --model.teacher_trunk descriptor",
        "--preset fast",
        "--preset paper",
        "--train.steps 0",
        "--model.teacher_patch 1",
        "--minutes 10",
        "--track [tensorboard]",
        "--train.patience 25",
    }
    for option in options:
        command = "benchmark" if "--ray" in option else "train"
        make_parser(command).parse_args([command, "--root", "mvtec", *option.split()], defaults=False)


def test_extras_exist():
    extras = set(re.findall(r"pip install (?:-e )?'\.\[(\w+)\]'", README))
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    assert extras == {"anomalib", "dev", "explorer", "export", "hub", "ray", "track"}
    assert all(f"\n{e}_requirements = " in settings for e in extras)
    assert "'mudenet[" not in README  # it is not published


def test_python_example(my_parts):
    code = re.search(r"^```python\n(.*?)^```", README, re.M | re.S)[1]
    run = next((my_parts / "runs" / "folder" / "my_parts").iterdir())
    code = code.replace("runs/folder/my_parts/0123abcd-s0", f"runs/folder/my_parts/{run.name}")
    r = subprocess.run([sys.executable, "-c", code], cwd=my_parts, capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.count("\n") == 6, r.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="provenance is judged by the history")
def test_python_example_has_types(tmp_path):
    """A user's strict type checker accepts the example, and knows what comes out of it."""
    code = re.search(r"^```python\n(.*?)^```", README, re.M | re.S)[1]
    (tmp_path / "mine.py").write_text(
        code + "\nwrong: int = detector.predict('x')[0].name\n", encoding="utf-8"
    )
    r = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    errors = [line for line in r.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1 and "str" in errors[0] and "assignment" in errors[0], r.stdout + r.stderr


def test_results_are_those_of_the_records():
    r = subprocess.run(
        [sys.executable, "tools/update_pages.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert r.returncode == 0, r.stderr


def test_links_lead_somewhere():
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target.split("#")[0]).exists(), (text, target)
