"""Write what is read off the records in nbs/results: README.md's results tables and pages/results.md.

    python tools/update_pages.py           # write them again
    python tools/update_pages.py --check   # exit 1 if one of them would change
"""
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mudenet.core import markdown_table, read_records, write_text
from mudenet.evaluation import results_table
from mudenet.experiments import departures
from mudenet.report import interval_note, metrics_table, verdict

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "nbs" / "results"
BEGIN, END = "<!-- results: written by tools/update_pages.py from nbs/results -->", "<!-- end of results -->"
# fingerprint of images → what to know of them
COPIES = {"f55fb396a8d201ea": "The images were copies of 256×256 pixels; the publisher's have 900×900."}
DATASETS = dict(synthetic="The embedded product line", mvtec_ad="MVTec AD", mvtec_loco="MVTec LOCO AD", visa="VisA")


def evaluations() -> dict[Path, dict[str, Any]]:
    """Every record of an evaluation, by file."""
    return read_records(RESULTS, "evaluation")


def schedule(r: Mapping[str, Any]) -> str:
    """How long and on what a run learned, in words."""
    c = r["config"]

    def stage(s: Mapping[str, Any]) -> str:
        return f"{s['steps']} steps" if s["steps"] else f"{s['epochs']} epochs"

    weights = c["backbone"]["weights"]
    made = "fixed random weights" if weights == "random" else f"the weights {weights}"
    return (f"{c['data']['image_size']} pixels, {c['model']['channels']} channels, {c['backbone']['name']} with {made}, "
            f"{stage(c['distill'])} + {stage(c['train'])} of {c['train']['batch_size']} images")


def same_thing(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Runs grouped by data set, category and configuration; what is left apart in a group are seeds."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in records:
        groups.setdefault((r["dataset"], r["category"], r["run"].rsplit("-s", 1)[0]), []).append(r)
    return [groups[k] for k in sorted(groups, key=lambda k: (k[0] != "synthetic", k))]


def readme_section() -> str:
    """A table for each thing that was run, kinds of defects apart on the product line."""
    parts = []
    for group in same_thing(list(evaluations().values())):
        first, seeds = group[0], ", ".join(str(r["config"]["seed"]) for r in group)
        spread = f"mean ± deviation over seeds {seeds}" if len(group) > 1 else f"seed {seeds}"
        if first["dataset"] == "synthetic":
            parts.append(f"`mudenet demo` on its own product line ({first['note']}); {spread}:")
        else:
            name = DATASETS.get(first["dataset"], first["dataset"])
            copies = f" {COPIES[first['data']]}" if first["data"] in COPIES else ""
            parts.append(f"{name} {first['category']}: {first['note'] or schedule(first)}; {spread}.{copies}")
        parts.append(results_table(group, kinds=first["dataset"] == "synthetic"))
    return "\n\n".join(parts)


def one_run(file: Path, r: Mapping[str, Any]) -> str:
    """A run: what it was, its numbers with intervals, what it says in words, what made it."""
    env = r["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items())
    said = "\n".join(f"- {s}" for s in verdict(r))
    return f"""### {file.stem}

{DATASETS.get(r['dataset'], r['dataset'])}, {r['category']}, seed {r['config']['seed']}, run `{r['run']}`.
{r['note'] or schedule(r)}. {COPIES.get(r['data'], '')}

{metrics_table(r)}

{said}

Record: [{file.name}](../nbs/results/{file.name}). Images {r['data']}, detector {r['detector'][:16]}, mudenet {env['mudenet']} at
commit {env['commit']}, Python {env['python']}, {packages}, {env['system']} {env['machine']}, {env['cpus']} CPUs.

Not as in the paper's configuration: {', '.join(departures(r['config'], r['dataset'])) or 'nothing'}."""


def results_page() -> str:
    """The whole page: the summary, every evaluation, and the other records."""
    found = evaluations()
    others = [(f, json.loads(f.read_text(encoding="utf-8"))) for f in sorted(RESULTS.rglob("*.json")) if f not in found]
    notebooks = {nb: nb.read_text(encoding="utf-8") for nb in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))}

    def row(f: Path, r: Any) -> list[str]:
        name, kind = f.relative_to(RESULTS).as_posix(), r.get("kind", "–") if isinstance(r, dict) else "–"
        shown = [nb for nb, text in notebooks.items()  # by its name, or with all of its kind (quoted in a cell, hence escaped)
                 if f.name in text or ('read_records(\\"results\\"' in text and f'\\"{kind}\\"' in text)]
        links = ", ".join(f"[{nb.stem}](../nbs/{nb.name})" for nb in shown)
        return [f"[{name}](../nbs/results/{name})", kind, links or "–"]

    rows = [row(f, r) for f, r in others]
    other = ["## Other records", markdown_table(["record", "kind", "shown in"], rows, "lll")] if rows else []
    whole = [r for r in found.values() if not departures(r["config"], r["dataset"])]
    reach = (f"{len(whole)} of these runs have the paper's configuration." if whole else
             "No category has been trained with the paper's\n"
             "configuration, so nothing here confirms or contradicts the paper's numbers.")
    return "\n\n".join([
        '---\ntitle: Results\ndescription: Every number on record, with the run that made it\n---',
        "<!-- written by tools/update_pages.py from nbs/results; edit that script, not this page -->",
        "Each number here is read off a record that a command wrote. A record holds the configuration, the fingerprint of the\n"
        "images, the detector's digest, versions, and the score of every test image, so that the tables can be made again.\n"
        f"{interval_note(found.values())}.\nThose of image AUROC are computed from these scores when this page is made. "
        "± is the standard deviation over seeds.\n" + reach,
        "## Summary", results_table(found.values()), "## Runs", *(one_run(f, r) for f, r in found.items()), *other]) + "\n"


def pages() -> dict[Path, str]:
    """File → what it should hold."""
    readme = ROOT / "README.md"
    section = re.sub(f"({re.escape(BEGIN)}\n).*({re.escape(END)})", lambda m: f"{m[1]}\n{readme_section()}\n\n{m[2]}",
                     readme.read_text(encoding="utf-8"), flags=re.S)
    return {readme: section, ROOT / "pages" / "results.md": results_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path.name} is not what nbs/results says: run python tools/update_pages.py")
        else:
            write_text(path, text)
