"""`mudenet assumptions check` passes, and sees an alternative that does not run or that changes nothing."""

import shutil
from pathlib import Path

import pytest

from mudenet.ablations import resolve_variants, variants
from mudenet.assumptions import read_register, with_table
from mudenet.cli import main
from mudenet.config import load_config
from mudenet.register_checks import check
from mudenet.synthetic import write_product_line

ROOT = Path(__file__).parent.parent


def test_the_whole_register_holds(capsys):
    assert main(["assumptions", "check"]) == 0, capsys.readouterr().err
    assert "alternatives run" in capsys.readouterr().out


def without_switch(entry):
    """The text of an entry whose field, alternatives and reason are taken out."""
    head, body = entry.split("\n---\n", 1)
    kept, skip = [], False
    for line in head.splitlines():
        begins = line.startswith(("field:", "alternatives:", "reason:"))
        skip = begins or skip and line.startswith("  ")  # which goes on with the field above it
        if not skip:
            kept.append(line)
    kept += ["field: none", "reason: left out here", "alternatives: []"]
    return "\n".join(kept) + "\n---\n" + body


def renew(folder):
    """The table of the entries as they are now."""
    (folder / "README.md").write_text(with_table(folder), encoding="utf-8")


@pytest.fixture
def register(tmp_path):
    """A copy of the register whose entries keep no switch but A-002's, so that little has to be trained."""
    copy = tmp_path / "assumptions"
    shutil.copytree(ROOT / "assumptions", copy)
    for f in copy.glob("A-*.md"):
        if not f.name.startswith("A-002"):
            f.write_text(without_switch(f.read_text(encoding="utf-8")), encoding="utf-8")
    renew(copy)
    return copy


CHANNELS = "500 does not run: ConfigError: model.channels=500 is more than the 448 channels"
ALTERNATIVES = {
    "one that fails": ("model.channels", "128", "500", CHANNELS),
    "a dead switch": ("train.save_minutes", "10.0", "5.0", "5.0 runs, but nothing comes out differently"),
    "a good one": ("model.stem_pool", "avg", "max", ""),
}


@pytest.mark.parametrize("kind", ALTERNATIVES)
def test_an_alternative_must_run_and_matter(register, kind):
    field, chosen, other, says = ALTERNATIVES[kind]
    entry = register / "A-002-stem-pool.md"
    text = entry.read_text(encoding="utf-8")
    fields = "model.stem_pool\nchosen: avg\nalternatives: [max]"
    text = text.replace(fields, f"{field}\nchosen: {chosen}\nalternatives: [{other}]")
    text = text.replace("`model.stem_pool=max`", f"`{field}={other}`")
    entry.write_text(text, encoding="utf-8")
    renew(register)

    faults = check(register, ROOT)
    assert len(faults) == bool(says), faults
    if says:
        assert "A-002-stem-pool.md: alternatives: " + says in faults[0]


def test_every_switch_can_be_ablated(tmp_path):
    """Each entry's variants fit a configuration that leaves its fields alone, and none is left out."""
    counts = dict(train=2, validation=1, good=2, structural=1, logical=1)
    for seed, name in enumerate(("one", "two")):
        write_product_line(tmp_path / "data" / name, seed=seed, size=64, **counts)
    tree = dict(
        root=str(tmp_path / "data"),
        out=str(tmp_path / "runs"),
        dataset="mvtec_loco",
        category="one",
        data=dict(augment=["hflip", "rotate", "jitter"]),
    )
    folder = dict(distill=dict(images="folder", folder=str(tmp_path / "data" / "two" / "train")))
    whole = dict(model=dict(teacher_trunk="resnet18"), backbone=dict(name="resnet18"))
    given = {"A-023": folder, "A-046": folder, "A-047": folder, "A-060": whole}
    configs = {a: load_config(tree={**tree, **given.get(a, {})}) for a in ("", *given)}
    for e in read_register():
        if e.field:
            kept, left = resolve_variants(configs[e.id if e.id in given else ""], variants(e.id), e.id)
            assert not left, e.id
            assert len(kept) == 1 + len(e.alternatives), e.id
    _, without_a_folder = resolve_variants(configs[""], variants("A-023"), "A-023")
    assert list(without_a_folder) == ["images=folder"]
