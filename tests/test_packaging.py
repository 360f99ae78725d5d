"""A clean clone holds what the code imports; sdist and wheel build, and the wheel alone runs the
demonstration.
"""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    out = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return set(out.split("\0"))


def test_a_clone_holds_every_imported_module():
    files = tracked()
    for f in sorted(ROOT.glob("mudenet/*.py")):
        for node in ast.walk(ast.parse(f.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                names = [node.module.split(".")[0]]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mudenet."):
                names = [node.module.split(".")[1]]
            for n in names:
                assert f"mudenet/{n}.py" in files, f"{f.name} imports mudenet.{n}, which git does not hold"
    for f in ROOT.glob("mudenet/configs/*.yaml"):
        assert f.relative_to(ROOT).as_posix() in files


LAYERS = "1023"  # first digits: the ground, the method on it, the workshop around it, the line


def layer(notebook):
    """Where a module stands: its layer, and its number in it; a letter is of its number's own."""
    return LAYERS.index(notebook[0]), int(notebook[:2])


def test_modules_import_only_from_lower_layers():
    """A module imports from lower layers, or from lower numbers of its own; never in a circle."""
    stands = {p.stem.split("_", 1)[1]: layer(p.stem) for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    free = {"core", "assumptions"}  # the register imports nothing of ours but core
    needs = {}
    for f in ROOT.glob("mudenet/[a-z]*.py"):
        tree = ast.parse(f.read_text(encoding="utf-8"))
        relative = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1}
        # nbdev leaves an import of several lines as it is
        whole = {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 0}
        ours = {name.removeprefix("mudenet.") for name in whole if name.startswith("mudenet.")}
        needs[f.stem] = {name for name in relative | ours if name and name not in free}
        for name in needs[f.stem]:
            assert stands[name] <= stands[f.stem], f"{f.stem} imports {name}"
    TopologicalSorter(needs).prepare()  # raises CycleError


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheel and sdist, built from a copy of what git holds."""
    top = tmp_path_factory.mktemp("dist")
    for name in tracked() - {""}:
        if (ROOT / name).is_file():
            (top / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, top / "src" / name)
    r = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(top / "out"), str(top / "src")],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stdout + r.stderr
    return top / "out"


def test_sdist_and_wheel(dist):
    (wheel,) = dist.glob("*.whl")
    assert len(list(dist.glob("*.tar.gz"))) == 1
    names = set(zipfile.ZipFile(wheel).namelist())
    for f in [
        *ROOT.glob("mudenet/*.py"),
        *ROOT.glob("mudenet/configs/*.yaml"),
        *ROOT.glob("mudenet/weights/*"),
        ROOT / "mudenet/py.typed",
    ]:
        assert f.relative_to(ROOT).as_posix() in names
    assert not [n for n in names if n.startswith(("nbs/", "tests/", "tools/"))]


def test_the_wheel_carries_the_register(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        carried = {Path(n).name: z.read(n) for n in z.namelist() if n.startswith("mudenet/register/")}
    assert carried == {f.name: f.read_bytes() for f in ROOT.glob("assumptions/A-*.md")}


MAIN = "from mudenet.cli import main; sys.exit(main(sys.argv[1:]))"


def of_the_wheel(folder, *arguments, before=""):
    """The command line with the package from `folder`/site alone."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; {before}{MAIN}", *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
    )


def test_the_wheel_alone_runs_the_demo(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    draw = (
        "import mudenet; print(mudenet.__file__); from mudenet.synthetic import write_product_line as w; "
        "w('line', size=64, train=8, validation=2, good=2, structural=2, logical=2); "
    )
    options = ["--root", "line", "--out", "out", "--assume", "A-007=after", "--train.steps=4"]
    r = of_the_wheel(tmp_path, "demo", *options, before=draw)
    assert r.returncode == 0, r.stdout + r.stderr
    assert r.stdout.splitlines()[0].startswith(str(tmp_path / "site"))
    assert len(list((tmp_path / "out").rglob("record.json"))) == 1
    (config,) = (tmp_path / "out").rglob("config.yaml")
    assert "encoder_padding: after" in config.read_text()
    verified = of_the_wheel(tmp_path, "teachers", "verify")
    assert verified.returncode == 0, verified.stderr
    assert [x.split(":")[0] for x in verified.stdout.splitlines()] == ["general", "resnet18", "small"]
    shown = of_the_wheel(tmp_path, "assumptions", "check")
    assert shown.returncode == 2 and "run it in a checkout" in shown.stderr
