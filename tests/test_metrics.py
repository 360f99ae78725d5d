"""What the metrics refuse, beyond what notebook 17 shows: each message names what is wrong."""

import numpy as np
import pytest
import torch

from mudenet.core import DataError
from mudenet.loco import saturation_rules
from mudenet.metrics import (
    _keys,
    _mask,
    _saturated,
    au_pro,
    au_spro,
    au_spro_types,
    image_auroc,
    pixel_auroc,
)

MAPS = np.arange(24.0).reshape(2, 3, 4)
ONE = np.zeros((3, 4), int)
ONE[0, 0] = 1
WHOLE = dict(pixel_value=9, saturation_threshold=1, relative_saturation=True)


def entry(value=1, threshold=1, relative=True):
    return dict(pixel_value=value, saturation_threshold=threshold, relative_saturation=relative)


RULES = {
    "a share above 1": (entry(threshold=40), r"(0, 1]"),
    "half a pixel": (entry(threshold=0.5, relative=False), "1 or more"),
    "a pixel and a half": (entry(threshold=1.5, relative=False), "whole"),
    "a threshold as text": (entry(threshold="40", relative=False), "'40'"),
    "no threshold": (entry(threshold=None), "None"),
    "relative as text": (entry(relative="false"), "'false'"),
    "the background": (entry(value=0), "pixel_value 0"),
    "a value twice": (entry(value=9), "pixel_value 9"),
    "half a value": (entry(value=1.5), "pixel_value 1.5"),
    "a field left out": (dict(pixel_value=1), "entry 1 lacks relative_saturation, saturation_threshold"),
}


@pytest.mark.parametrize("case", RULES)
def test_rules_of_saturation(case):
    wrong, says = RULES[case]
    saturation_rules([WHOLE])
    with pytest.raises(DataError) as e:
        saturation_rules([WHOLE, wrong])
    assert says in str(e.value)


CHANNELS = {
    "two values": (ONE + 8 * ONE.T.reshape(3, 4) + ONE[::-1] * 3, "values are"),
    "nothing marked": (0 * ONE, "values are []"),
    "a value without a rule": (7 * ONE, "knows [1, 9]"),
    "a wrong shape": (ONE[1:], "channel 0 of image 0"),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_channels(case):
    channel, says = CHANNELS[case]
    with pytest.raises(DataError) as e:
        _saturated(MAPS[0], [channel], saturation_rules([WHOLE, entry()]), "image 0")
    assert says in str(e.value)


INPUTS = {
    "text": (lambda: _keys(["a"], "x"), "real numbers"),
    "nothing": (lambda: _keys([], "x"), "got none"),
    "half precision of another kind": (
        lambda: _keys(torch.ones(2, dtype=torch.bfloat16), "map 3"),
        "map 3 cannot be read",
    ),
    "a mask with a gradient": (
        lambda: _mask(torch.ones(2, requires_grad=True), (2,), "mask 3"),
        "mask 3 cannot be read",
    ),
    "no map": (lambda: pixel_auroc([], []), "0 maps"),
    "a label of 2": (lambda: image_auroc([1, 2], [0, 2]), "0 or 1"),
    "a score of NaN": (lambda: image_auroc([1, np.nan], [0, 1]), "NaN"),
    "a label too few": (lambda: image_auroc([1, 2, 3], [0, 1]), "(3,) and labels (2,)"),
    "maps and no masks": (lambda: au_pro(MAPS, []), "2 maps and 0 masks"),
    "lists too few": (lambda: au_spro(MAPS, [[ONE]], [entry()]), "1 lists"),
    "a map of NaN": (lambda: au_spro(MAPS * np.nan, [[ONE], []], [entry()]), "map 0 contains NaN"),
    "no channel": (lambda: au_spro_types(MAPS, [[], []], [entry()]), "no defective pixel"),
    "an unknown value": (
        lambda: au_spro_types(MAPS, [[ONE], []], [WHOLE]),
        "values [1]; defects_config knows [9]",
    ),
    "a map too few": (lambda: au_spro_types(MAPS[1:], [[ONE], []], [entry()]), "1 maps and 2 lists"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs(case):
    f, says = INPUTS[case]
    with pytest.raises(DataError) as e:
        f()
    assert says in str(e.value)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="no longer float here")
def test_numbers_that_are_too_long():
    with pytest.raises(DataError, match="64 bits"):
        _keys(np.longdouble([1]), "x")
