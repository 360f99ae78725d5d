"""Pages mark every record whose origin is in doubt, and a page that forgets it is noticed."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="provenance is judged by the history")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("update_pages", ROOT / "tools" / "update_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "commit, made, says",
    [
        ("0123456789ab", dict(date="2026-11-26"), ""),
        ("ffffffffffff", dict(date="2026-11-26"), "the commit is in no history here"),
        (None, dict(date="2026-11-26"), "the commit is in no history here"),
        ("0123456789ab-dirty", dict(date="2026-11-26"), "made from a changed tree"),
        ("0123456789ab", None, "not dated"),
        ("ffffffffffff-dirty", None, "the commit is in no history here; made from a changed tree; not dated"),
    ],
)
def test_each_doubt_has_its_words(tool, commit, made, says):
    record = dict(environment=dict(commit=commit), **({"made": made} if made else {}))
    assert tool.provenance(record, {"0123456789ab"}) == says


def test_every_record_on_the_results_page_is_marked(tool):
    known, page = tool.history(), (ROOT / "pages" / "results.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "nbs" / "results").glob("*.json")):
        doubts = tool.provenance(json.loads(file.read_text(encoding="utf-8")), known)
        section = re.search(rf"^### {file.stem}$(.*?)(?=^##)", page, re.M | re.S)
        row = re.search(rf"^\| \[{re.escape(file.name)}\].*$", page, re.M)
        assert doubts in (section or row)[0], (file.name, doubts)


def test_readme_marks_what_its_tables_show(tool):
    known, text = tool.history(), (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split(tool.BEGIN)[1].split(tool.END)[0]
    theirs, ours = tool.on_equal_terms()
    for r in [*tool.of_the_demo(), *theirs, *ours]:
        doubts = tool.provenance(r, known)
        assert not doubts or f"Provenance of {r['run']} on *{r['category']}*: {doubts}." in section


@pytest.mark.parametrize(
    "notebook, kind",
    [
        ("22_speed", "bench_train"),
        ("21b_evaluation", "evaluation"),
        ("25b_findings", "ablation"),
        ("28_explorer", "bench_explorer"),
    ],
)
def test_notebooks_that_show_doubtful_records_say_where_to_look(tool, notebook, kind):
    known = tool.history()
    records = [json.loads(f.read_text(encoding="utf-8")) for f in (ROOT / "nbs" / "results").glob("*.json")]
    doubtful = [
        r for r in records if r["kind"] == kind and tool.provenance(r, known) not in ("", "not dated")
    ]
    text = (ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8")
    assert not doubtful or "(../pages/results.md#" in text


def test_the_split_of_a_record_is_told(tool):
    record = dict(splits=dict(layout="mvtec_ad"), config=dict(seed=2, data=dict(holdout=0.1)))
    assert tool.held_out(record) == "10 % of the nominal images, drawn with seed 2"  # of before the field
    record["config"]["data"]["holdout_seed"] = 0
    assert tool.held_out(record).endswith("seed 0")
