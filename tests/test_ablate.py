"""`mudenet ablate` sets an assumption's fields itself, and refuses early what it cannot keep."""

import json
from unittest import mock

import pytest

from mudenet.cli import main
from mudenet.synthetic import write_product_line

FAST = ["--preset=fast", "--data.image_size=64", "--train.steps=1", "--device=cpu", "--seeds=1", "--yes"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A line with masks, and a folder for its runs."""
    top = tmp_path_factory.mktemp("ablate")
    sizes = dict(train=8, validation=2, good=3, structural=3, logical=3)
    write_product_line(top / "line", size=64, **sizes)
    return top


def ablate(place, assumption, *more):
    """The exit code of an ablation with the preset fast."""
    return main(["ablate", assumption, f"--root={place / 'line'}", f"--out={place / 'runs'}", *FAST, *more])


@pytest.fixture(scope="module")
def record(place):
    """The record of A-053, which the preset turns."""
    assert ablate(place, "A-053") == 0
    return json.loads((place / "runs" / "ablation-A-053-line.json").read_text())


def test_a_preset_s_value_is_one_of_the_variants(record):
    values = {v: fields["inference.standardise_places"] for v, fields in record["variants"].items()}
    assert values == {"standardise_places=false": False, "standardise_places=true": True}
    assert record["config"]["preset"] == "fast"
    assert record["config"]["inference"]["standardise_places"] is False  # the baseline's


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--train.lr=0.5"], "train.lr: 0.001 there, 0.5 here"),
        (["--seed=7"], "would drop (seed 0)"),
    ],
)
def test_a_second_one_in_the_same_folder_is_refused_before_anything_is_computed(
    place, record, capsys, more, said
):
    with mock.patch("mudenet.ablations.plan", side_effect=AssertionError("planned")):
        assert ablate(place, "A-053", *more) == 2
    seen = capsys.readouterr()
    assert not seen.out
    assert "ablation-A-053-line.json" in seen.err and said in seen.err and "--out" in seen.err


def test_an_option_that_no_variant_has_is_refused(place, capsys):
    assert ablate(place, "A-016", "--inference.smoothing=3") == 2
    assert "--inference.smoothing 3.0 is given, and A-016 compares" in capsys.readouterr().err
