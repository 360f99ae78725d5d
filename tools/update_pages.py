"""Write what is read off the records in nbs/results: README.md's tables, pages/results.md, the register's
numbers and table.

python tools/update_pages.py           # write them again
python tools/update_pages.py --check   # exit 1 if one of them would change
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mudenet.assumptions import read_register, with_table
from mudenet.config import from_saved
from mudenet.core import markdown_table, read_records, write_text
from mudenet.evaluation import results_table
from mudenet.experiments import departures
from mudenet.peers import cost_table
from mudenet.register_checks import filled
from mudenet.report import interval_note, metrics_table, teacher_of, verdict

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "nbs" / "results"
BEGIN, END = "<!-- results: written by tools/update_pages.py from nbs/results -->", "<!-- end of results -->"
# fingerprint of images → what to know of them
COPIES = {"f55fb396a8d201ea": "the images were copies of 256×256 pixels; the publisher's have 900×900."}
DATASETS = dict(
    synthetic="The embedded product line", mvtec_ad="MVTec AD", mvtec_loco="MVTec LOCO AD", visa="VisA"
)


def git(*words: str) -> str:
    """What git says of this checkout; nothing where there is none."""
    try:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@functools.cache
def history() -> set[str]:
    """The commits that lead to this one, as records name them.

    Provenance cannot be judged without all of them.
    """
    commits = {c[:12] for c in git("rev-list", "HEAD").splitlines()}
    if not commits or git("rev-parse", "--is-shallow-repository") == "true":
        sys.exit(
            "the pages say which records come from this history: update them in a whole git clone (git "
            "fetch --unshallow)"
        )
    return commits


def provenance(r: Mapping[str, Any], known: set[str]) -> str:
    """What is doubtful about where a record comes from; nothing where commit, tree and date are known."""
    commit = r["environment"]["commit"] or "unknown"
    doubts = []
    if commit.removesuffix("-dirty") not in known:
        doubts.append("the commit is in no history here")
    if commit.endswith("-dirty"):
        doubts.append("made from a changed tree")
    if "made" not in r:
        doubts.append("not dated")
    return "; ".join(doubts)


def held_out(r: Mapping[str, Any]) -> str:
    """Which images a run kept for its statistics; records of before `data.holdout_seed` drew them with the
    run's seed.
    """
    if r["splits"]["layout"] == "mvtec_loco":
        return "the publisher's validation images"
    data = from_saved(r["config"]).data
    return f"{data.holdout:.0%} of the nominal images, drawn with seed {data.holdout_seed}".replace("%", " %")


@functools.cache
def evaluations() -> dict[Path, dict[str, Any]]:
    """Every record of an evaluation, by file."""
    return read_records(RESULTS, "evaluation")


def schedule(r: Mapping[str, Any]) -> str:
    """How long and on what a run learned, in words."""
    c = r["config"]

    def stage(s: Mapping[str, Any]) -> str:
        return f"{s['epochs']} epochs" if s["steps"] is None else f"{s['steps']} steps"

    weights = c["backbone"]["weights"]
    made = "fixed random weights" if weights == "random" else f"the weights {weights}"
    return (
        f"{c['data']['image_size']} pixels, {c['model']['channels']} channels, {c['backbone']['name']} with "
        f"{made}, {stage(c['distill'])} + {stage(c['train'])} of {c['train']['batch_size']} images"
    )


def of_the_demo() -> list[dict[str, Any]]:
    """The records of `mudenet demo`."""
    return [r for r in evaluations().values() if r["dataset"] == "synthetic"]


@functools.cache
def on_equal_terms() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of neighbours, and ours of the same images at the same size."""
    found = list(read_records(RESULTS, "peer").values())

    def of(r: Mapping[str, Any]) -> tuple[str, int]:
        return r["data"], r["config"]["data"]["image_size"]

    ours = [r for r in evaluations().values() if of(r) in set(map(of, found))]
    sizes = set(map(of, ours))
    return [r for r in found if of(r) in sizes], ours


def readme_section() -> str:
    """The demonstration with its kinds of defects apart, and what was run on real images beside its neighbours.

    All other runs are on the results page.
    """
    demo, (_, ours) = of_the_demo(), on_equal_terms()
    seeds = ", ".join(str(r["config"]["seed"]) for r in demo)
    said = f"`mudenet demo` on its own product line ({demo[0]['note']}); mean ± deviation over seeds {seeds}:"
    copies = [f"*{r['category']}*: {COPIES[r['data']]}" for r in ours if r["data"] in COPIES]
    tables = results_table(demo, kinds=True), PEERS.replace("FOLDER", ""), beside_peers()
    return "\n\n".join([said, *tables, *dict.fromkeys(copies)])


def beside_peers() -> str:
    """PaDiM and PatchCore beside our detectors, and what they cost."""
    theirs, ours = on_equal_terms()
    tables = results_table([*theirs, *map(named, ours)]), cost_table(theirs)
    return "\n\n".join([*tables, *doubtful([*theirs, *ours])])


def doubtful(records: list[dict[str, Any]]) -> list[str]:
    """A sentence for each record that cannot be made again exactly."""
    known = history()
    doubts = ((r, provenance(r, known)) for r in records)
    return [f"Provenance of {r['run']} on *{r['category']}*: {d}." for r, d in doubts if d]


def named(r: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation whose run is called by what it was, and not by its key."""
    c = r["config"]
    steps = c["train"]["steps"]
    length = f"{c['train']['epochs']} epochs" if steps is None else f"{steps} steps"
    teacher, patch = (r["teacher"] or {}).get("name", "its own"), from_saved(c).model.teacher_patch
    averaged = f" over {patch}×{patch} places" if patch > 1 else ""
    return dict(r, run=f"mudenet, teacher {teacher}{averaged}, {length}-s{c['seed']}")


PEERS = """Beside PaDiM and PatchCore, written down in [peers](FOLDERnbs/26_peers.ipynb), with ResNet-18, on the same images and split, by the same metrics. They need the
backbone at work and train nothing; seconds are one processor's, *kept* is what has to be remembered beside the backbone. *mudenet, 0 steps, 256 px* is
the `fast` preset before any training; other rows say which teacher they have, and over how many places its maps are averaged (A-060):"""


def as_markdown(sentence: str) -> str:
    """Options as code, whose hyphens stay as they are; a number and its % on one line."""
    return re.sub(r"--[\w.]+", r"`\g<0>`", sentence).replace(" %", "\u00a0%")


def one_run(file: Path, r: Mapping[str, Any], known: set[str]) -> str:
    """A run: what it was, its numbers with intervals, what it says in words, what made it."""
    env = r["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items())
    said = "\n".join(f"- {as_markdown(s)}" for s in verdict(r))
    doubts = f"\n\n**Provenance:** {d}." if (d := provenance(r, known)) else ""
    return f"""### {file.stem}

{DATASETS.get(r["dataset"], r["dataset"])}, {r["category"]}, seed {r["config"]["seed"]}, run `{r["run"]}`.
{r["note"] or schedule(r)}{"; " + COPIES[r["data"]] if r["data"] in COPIES else "."}

{metrics_table(r)}

{said}

Record: [{file.name}](../nbs/results/{file.name}). Images {r["data"]}, detector {r["detector"][:16]}, mudenet {env["mudenet"]} at
commit {env["commit"]}, Python {env["python"]}, {packages}, {env["system"]} {env["machine"]}, {env["cpus"]} CPUs.
Teacher: {teacher_of(r)}. Statistics and threshold from {held_out(r)}.{doubts}

Not as in the paper's configuration: {", ".join(departures(r["config"], r["dataset"])) or "nothing"}."""


def results_page() -> str:
    """The whole page: the summary, every evaluation, and the other records."""
    found, known = evaluations(), history()
    others = [
        (f, json.loads(f.read_text(encoding="utf-8")))
        for f in sorted(RESULTS.rglob("*.json"))
        if f not in found
    ]
    notebooks = {nb: nb.read_text(encoding="utf-8") for nb in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))}

    def row(f: Path, r: Any) -> list[str]:
        name, kind = f.relative_to(RESULTS).as_posix(), r.get("kind", "–") if isinstance(r, dict) else "–"
        # by its name, or with all of its kind (quoted in a cell, hence escaped)
        shown = [
            nb
            for nb, text in notebooks.items()
            if f.name in text or ('read_records(\\"results\\"' in text and f'\\"{kind}\\"' in text)
        ]
        links = ", ".join(f"[{nb.stem}](../nbs/{nb.name})" for nb in shown)
        doubts = provenance(r, known) if isinstance(r, dict) and "environment" in r else ""
        return [f"[{name}](../nbs/results/{name})", kind, links or "–", doubts or "–"]

    rows = [row(f, r) for f, r in others]
    other = (
        ["## Other records", markdown_table(["record", "kind", "shown in", "provenance"], rows, "llll")]
        if rows
        else []
    )
    whole = [r for r in found.values() if not departures(r["config"], r["dataset"])]
    reach = (
        f"{len(whole)} of these runs have the paper's configuration."
        if whole
        else "No category has been trained with the paper's\n"
        "configuration, so nothing here confirms or contradicts the paper's numbers."
    )
    return (
        "\n\n".join(
            [
                "---\ntitle: Results\ndescription: Every number on record, with the run that made it\n---",
                "<!-- written by tools/update_pages.py from nbs/results; edit that script, not this page -->",
                "Each number here is read off a record that a command wrote. A record holds the "
                "configuration, the fingerprint of the\n"
                "images, the detector's digest, versions, and the score of every test image, so that the "
                "tables can be made again.\n"
                "A line *Provenance* stands where a record names a commit that is in no history here, was "
                "made from a changed tree,\n"
                "or has no date: such a number cannot be made again exactly as it was.\n"
                f"{interval_note(found.values())}.\n"
                "Those of image AUROC are computed from these scores when this page is made. ± is the "
                "standard deviation over seeds.\n" + reach,
                "## Summary",
                results_table(found.values()),
                "## Peers",
                PEERS.replace("FOLDER", "../"),
                beside_peers(),
                "## Runs",
                *(one_run(f, r, known) for f, r in found.items()),
                *other,
            ]
        )
        + "\n"
    )


def pages() -> dict[Path, str]:
    """File → what it should hold."""
    readme = ROOT / "README.md"
    section = re.sub(
        f"({re.escape(BEGIN)}\n).*({re.escape(END)})",
        lambda m: f"{m[1]}\n{readme_section()}\n\n{m[2]}",
        readme.read_text(encoding="utf-8"),
        flags=re.S,
    )
    register = ROOT / "assumptions"
    entries = {e.path: filled(e.path.read_text(encoding="utf-8"), ROOT) for e in read_register(register)}
    return {
        readme: section,
        ROOT / "pages" / "results.md": results_page(),
        **entries,
        register / "README.md": with_table(register),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path.name} is not what nbs/results says: run python tools/update_pages.py")
        else:
            write_text(path, text)
