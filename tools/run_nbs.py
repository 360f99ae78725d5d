"""Run notebooks in place, keep their outputs, and clean them so that a second run changes nothing.

    python tools/run_nbs.py [nbs/01_arch.ipynb ...]     # default: every numbered notebook
    python tools/run_nbs.py --tidy [...]                # do not run; only tidy what JupyterLab saved

Cells marked `#| eval: false` or `#| slow`, and nbdev_export() cells, are not run and keep the outputs they
have.
"""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean

os.environ["IN_TEST"] = "1"
# as in conftest.py: the last digits of a sum depend on how many threads share it
os.environ["OMP_NUM_THREADS"] = "1"
SKIP = re.compile(r"^#\|\s*(eval:\s*false|slow)\b|nbdev_export\(", re.M | re.I)
STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"


def still(nb):
    """Drop a widget from an output that also has its figures as HTML or PNG: nobody can work it on a page."""
    for cell in nb.cells:
        for out in cell.get("outputs", []):
            if {"text/html", "image/png"} & set(out.get("data", {})):
                out["data"].pop(VIEW, None)
    return nb


def stable_widgets(nb):
    """Rename random widget ids in order of use, and drop widgets that no output shows."""
    states = nb.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    names, order = {}, []

    def visit(old):
        if old in names or old not in states:
            return
        names[old] = f"widget-{len(names):02d}"
        order.append(old)
        for ref in re.findall(r"IPY_MODEL_([\w-]+)", json.dumps(states[old], sort_keys=True)):
            visit(ref)

    for cell in nb.cells:
        for out in cell.get("outputs", []):
            if VIEW in out.get("data", {}):
                visit(out["data"][VIEW]["model_id"])
    if names:
        ids = re.compile("|".join(map(re.escape, names)))
        nb = nbformat.from_dict(json.loads(ids.sub(lambda m: names[m[0]], json.dumps(nb))))
        kept = nb.metadata["widgets"][STATE]["state"]
        nb.metadata["widgets"][STATE]["state"] = {k: v for k, v in kept.items() if k in set(names.values())}
    else:
        nb.metadata.pop("widgets", None)
    return nb


async def execute(nb, path):
    client = NotebookClient(
        nb,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    async with client.async_setup_kernel():
        for i, cell in enumerate(nb.cells):
            if cell.cell_type == "code" and not SKIP.search(cell.source):
                cell.outputs = []
                await client.async_execute_cell(cell, i)
        client.set_widgets_metadata()


def run(path, tidy=False):
    nb = nbformat.read(path, as_version=4)
    if not tidy:
        nb.metadata.pop("widgets", None)
        asyncio.run(execute(nb, path))
    nb = stable_widgets(still(nb))
    nbformat.validate(nb)
    path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    nbdev_clean.__wrapped__(str(path))


if __name__ == "__main__":
    tidy = "--tidy" in sys.argv
    for f in [Path(a) for a in sys.argv[1:] if a != "--tidy"] or sorted(Path("nbs").glob("[0-9]*.ipynb")):
        print("tidy" if tidy else "run", f, flush=True)
        run(f, tidy)
