"""An environment that holds mudenet-runtime and what it requires, and nothing else that is installed here."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def closure(*required):
    """Folders and files that distributions and what they require have in site-packages."""
    todo, seen = list(required), {}
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()
        if name in seen or "extra ==" in requirement:
            continue
        try:
            dist = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another Python or system
            continue
        tops = {f.parts[0] for f in dist.files or () if f.parts[0] not in ("..", "__pycache__")}
        seen[name] = {Path(str(dist.locate_file(t))) for t in tops}
        todo += dist.requires or ()
    return set().union(*seen.values())


class Bare:
    """mudenet-runtime's wheel, built from what git holds, beside links to what it requires."""

    def __init__(self, top, *extras):
        if not (ROOT / ".git").exists():
            pytest.skip("not a git checkout")
        listed = subprocess.run(
            ["git", "ls-files", "-z", "mudenet", "runtime", "settings.ini"],
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            (top / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, top / "src" / name)
        build = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(top),
            str(top / "src" / "runtime"),
        ]
        r = subprocess.run(build, capture_output=True, text=True)
        assert r.returncode == 0, r.stdout + r.stderr
        (wheel,) = top.glob("*.whl")
        self.top, self.site = top, top / "site"
        with zipfile.ZipFile(wheel) as z:
            z.extractall(self.site)
        (own,) = (
            d
            for d in metadata.distributions(path=[str(self.site)])
            if d.metadata["Name"] == "mudenet-runtime"
        )

        def meant(requirement):
            return "extra ==" not in requirement or requirement.split("extra == ")[1].strip("'\"") in extras

        for path in closure(*(r.split(";")[0] for r in own.requires or () if meant(r))):
            if not (self.site / path.name).exists():
                (self.site / path.name).symlink_to(path)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OMP"))} | {
            "PYTHONPATH": str(self.site)
        }

    def argv(self, *argv):
        """A command line: of Python's where it begins with -c, of the program `mudenet` otherwise."""
        program = (
            () if argv[0] == "-c" else ("-c", "import sys; from mudenet.line import main; sys.exit(main())")
        )
        return [sys.executable, "-S", *program, *map(str, argv)]

    def __call__(self, *argv, **how):
        return subprocess.run(
            self.argv(*argv), env=self.env, text=True, capture_output=True, cwd=self.top, **how
        )

    def start(self, *argv, **how):
        return subprocess.Popen(self.argv(*argv), env=self.env, text=True, cwd=self.top, **how)
