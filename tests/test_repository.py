"""Nothing of one machine is in the project."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MACHINE = re.compile(r"(?<![\w.<>-])/(work|root|home|tmp|Users)/\w")


def test_no_path_of_a_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in files:
        path = ROOT / name
        if (
            name
            and path.is_file()
            and path.suffix in {".py", ".ipynb", ".md", ".yaml", ".yml", ".json", ".ini", ".toml", ".qmd"}
        ):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if not (path == Path(__file__) or '"image/' in line):
                    assert not MACHINE.search(line), f"{name}:{number}: {MACHINE.search(line)[0]}"


def test_ignore_patterns_are_anchored_or_generated():
    for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert line.startswith("/") or line in {"__pycache__/", ".ipynb_checkpoints/", ".last_checked"}, (
                line
            )
