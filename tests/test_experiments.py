"""What plans, pools and pages of experiments refuse, each with a message that says the way out."""

import pytest

from mudenet.ablations import variants
from mudenet.core import ConfigError, DeviceError
from mudenet.experiments import Here, read_variants
from mudenet.on_ray import OnRay, allocate


@pytest.mark.parametrize(
    ("what", "nodes", "options", "error", "message"),
    [
        (
            "more threads than any machine has",
            [dict(CPU=16.0)],
            dict(threads=17),
            ConfigError,
            "--threads 17",
        ),
        (
            "a GPU where there is none",
            [dict(CPU=16.0)],
            dict(device="cuda"),
            DeviceError,
            "no machine of the cluster has a GPU",
        ),
        ("head nodes alone", [dict(CPU=0.0)], {}, DeviceError, "lends a CPU"),
    ],
)
def test_a_cluster_that_cannot_take_the_runs(what, nodes, options, error, message):
    with pytest.raises(error, match=message):
        allocate(nodes, **options)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_run_has_no_thread(threads):
    with pytest.raises(ConfigError, match=f"--threads {threads}"):
        Here(threads=threads)
    with pytest.raises(ConfigError, match=f"--threads {threads}"):
        OnRay("local", threads=threads)


def test_a_cluster_chooses_its_gpu():
    with pytest.raises(ConfigError, match="Ray chooses the GPU"):
        OnRay("local", device="cuda:1")


def test_a_file_of_variants_holds_names_and_fields(tmp_path):
    file = tmp_path / "variants.yaml"
    file.write_text("joint: false\n")
    with pytest.raises(ConfigError, match="names of variants"):
        read_variants(file)


@pytest.mark.parametrize(
    ("assumption", "values", "message"),
    [
        ("A-016", [-1], "inference.smoothing"),
        ("A-016", [4], "nothing to compare"),
        ("A-99", None, "A-99"),
        ("A-2", None, "Did you mean 'A-002'"),
    ],
)
def test_values_and_names_that_cannot_be_compared(assumption, values, message):
    with pytest.raises(ConfigError, match=message):
        variants(assumption, values)
