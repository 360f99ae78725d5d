"""Make nbval (one pytest item per notebook cell) follow nbdev's conventions."""

import os
import re
from pathlib import Path

import nbval.kernel
import pytest

os.environ["IN_TEST"] = "1"  # same switch as nbdev_test: nbdev_export() cells do nothing in a test kernel
# one process a core (pytest-xdist), one thread each: tiny networks gain nothing
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a warning that our code causes is an error, in the kernels that run the notebooks and in every process that
# tests start
OURS = ["__main__", *(f"mudenet.{p.stem}" for p in (Path(__file__).parent / "mudenet").glob("[a-z]*.py"))]
os.environ["PYTHONWARNINGS"] = ",".join(f"error:::{m}" for m in OURS)

_start_kernel = nbval.kernel.start_new_kernel


def start_new_kernel(*args, **kwargs):
    """Start a kernel; again where it dies at birth: between choosing a free port and using it, another worker
    may take it.
    """
    for _ in range(2):
        try:
            return _start_kernel(*args, **kwargs)
        except RuntimeError:
            continue
    return _start_kernel(*args, **kwargs)


nbval.kernel.start_new_kernel = start_new_kernel

NO_EVAL = re.compile(r"^#\|\s*eval:\s*false\b", re.M | re.I)
SLOW = re.compile(r"^#\|\s*slow\b", re.M)  # keep equal to tst_flags in settings.ini


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests and notebook cells marked slow")


def pytest_collection_modifyitems(config, items):
    slow = config.getoption("--slow")
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None:  # an ordinary test
            if "slow" in item.keywords and not slow:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
            continue
        if NO_EVAL.search(cell.source) or (SLOW.search(cell.source) and not slow):
            item.options["skip"] = True
        # nbdev_clean removes execution counts; nbval takes a cell with outputs and no count for an error
        if cell.outputs and cell.execution_count is None:
            cell.execution_count = 1
