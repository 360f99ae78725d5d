"""Every command of README.md runs. The first two are run whole by .ci/run and on a new machine; here the demo is shrunk."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [b.strip() for b in re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)]
TINY = ("--data.image_size=64 --model.channels=8 --model.width=8 --backbone.name=resnet18 --backbone.weights=random "
        "--distill.steps=3 --distill.batch_size=4 --train.steps=4 --train.batch_size=4 --device=cpu")


@pytest.fixture(scope="module")
def my_parts(tmp_path_factory):
    """A user's folder: the embedded product line, with only what README says is needed."""
    import shutil

    from mudenet.synthetic import write_product_line

    top = tmp_path_factory.mktemp("readme")
    line = write_product_line(top / "line", size=64, train=8, validation=2, good=2, structural=2, logical=2)
    for part in ("train", "test"):
        shutil.copytree(line / part, top / "my_parts" / part)
    return top


def shell(command, cwd):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    r = subprocess.run(["bash", "-c", command], cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert r.returncode == 0, f"{command}\n{r.stdout}\n{r.stderr}"
    return r.stdout


def test_first_blocks_are_the_two_commands():
    assert SHELL[0] == "pip install . && mudenet demo"
    assert SHELL[1] == "pip install -e '.[dev]' && pytest"


def test_demo(my_parts):
    command = SHELL[0].split("&& ")[1]
    out = shell(f"{command} --root line --out demo {TINY}", my_parts)
    assert "Demonstration configuration" in out and list((my_parts / "demo").rglob("report.html"))


def test_own_images(my_parts):
    assert len(SHELL) == 3
    for command in SHELL[2].splitlines():
        out = shell(f"{command} {TINY}" if command.startswith("mudenet train") else command, my_parts)
        assert out
    assert (my_parts / "found" / "predictions.csv").read_text().count("\n") == 7


def test_python_example(my_parts):
    code = re.search(r"^```python\n(.*?)^```", README, re.M | re.S)[1]
    run = next((my_parts / "runs" / "folder" / "my_parts").iterdir())
    code = code.replace("runs/folder/my_parts/0123abcd-s0", f"runs/folder/my_parts/{run.name}")
    r = subprocess.run([sys.executable, "-c", code], cwd=my_parts, capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.count("\n") == 6, r.stderr


def test_results_are_those_of_the_records():
    r = subprocess.run([sys.executable, "tools/update_pages.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_links_lead_somewhere():
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target.split("#")[0]).exists(), (text, target)
