"""`mudenet assumptions check` passes, and sees an alternative that does not run or is a switch without a wire."""

import shutil
from pathlib import Path

import pytest

from mudenet.ablations import resolve_variants, variants
from mudenet.assumptions import check, read_register, write_table
from mudenet.cli import main
from mudenet.config import load_config
from mudenet.synthetic import write_product_line

ROOT = Path(__file__).parent.parent


def test_the_whole_register_holds(capsys):
    assert main(["assumptions", "check"]) == 0, capsys.readouterr().err
    assert "alternatives run" in capsys.readouterr().out


@pytest.fixture
def register(tmp_path):
    """A copy of the register whose entries keep no switch but A-002's, so that little has to be trained."""
    copy = tmp_path / "assumptions"
    shutil.copytree(ROOT / "assumptions", copy)
    for f in copy.glob("A-*.md"):
        if not f.name.startswith("A-002"):
            head, body = f.read_text(encoding="utf-8").split("\n---\n", 1)
            lines, skip = [], False
            for line in head.splitlines():
                skip = line.startswith(("field:", "alternatives:", "reason:")) or (
                    skip and line.startswith("  ")
                )
                lines += [] if skip else [line]
            f.write_text(
                "\n".join([*lines, "field: none", "reason: left out here", "alternatives: []"])
                + "\n---\n"
                + body,
                encoding="utf-8",
            )
    write_table(copy)
    return copy


@pytest.mark.parametrize(
    "field, chosen, other, says",
    [
        (
            "model.channels",
            "128",
            "500",
            "500 does not run: ConfigError: model.channels=500 is more than the 448 channels",
        ),
        ("train.save_minutes", "10.0", "5.0", "5.0 runs, but nothing comes out differently"),
        ("model.stem_pool", "avg", "max", None),
    ],
)
def test_an_alternative_must_run_and_matter(register, field, chosen, other, says):
    f = register / "A-002-stem-pool.md"
    text = f.read_text(encoding="utf-8")
    old, new = (
        "model.stem_pool\nchosen: avg\nalternatives: [max]",
        f"{field}\nchosen: {chosen}\nalternatives: [{other}]",
    )
    f.write_text(
        text.replace(old, new).replace("`model.stem_pool=max`", f"`{field}={other}`"), encoding="utf-8"
    )
    write_table(register)
    faults = check(register, ROOT)
    assert (
        faults == []
        if says is None
        else (len(faults) == 1 and "A-002-stem-pool.md: alternatives: " + says in faults[0])
    ), faults


def test_every_switch_can_be_ablated(tmp_path):
    """Each entry's variants fit a configuration that leaves its fields alone, and none is left out without a
    reason.
    """
    for seed, name in enumerate(("one", "two")):
        write_product_line(
            tmp_path / "data" / name,
            seed=seed,
            size=64,
            train=2,
            validation=1,
            good=2,
            structural=1,
            logical=1,
        )
    tree = dict(
        root=str(tmp_path / "data"),
        out=str(tmp_path / "runs"),
        dataset="mvtec_loco",
        category="one",
        data=dict(augment=["hflip", "rotate", "jitter"]),
    )
    folder = dict(distill=dict(images="folder", folder=str(tmp_path / "data" / "two" / "train")))
    given = {"A-023": folder, "A-046": folder, "A-047": folder}
    configs = {a: load_config(tree={**tree, **given.get(a, {})}) for a in ("", *given)}
    for e in read_register():
        if e.field:
            kept, left = resolve_variants(configs[e.id if e.id in given else ""], variants(e.id), e.id)
            assert len(kept) == 1 + len(e.alternatives) and not left, (e.id, left)
    assert list(resolve_variants(configs[""], variants("A-023"), "A-023")[1]) == ["images=folder"]
