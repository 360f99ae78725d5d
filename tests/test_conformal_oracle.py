"""p-values and thresholds against independent implementations: crepes (Boström 2022) and MAPIE (Taquet and
others 2022).
"""

import warnings

import numpy as np
import pytest

from mudenet.decisions import cross_p_values, p_values, rate_threshold

CASES = {
    "without ties": lambda draw, n: draw.standard_normal(n),
    "with many ties": lambda draw, n: draw.integers(0, 6, n).astype(float),
    "far apart": lambda draw, n: draw.standard_cauchy(n),
}


@pytest.fixture(scope="module")
def crepes():
    return pytest.importorskip("crepes", reason="crepes is not installed: pip install crepes")


@pytest.fixture(scope="module")
def mapie():
    return pytest.importorskip("mapie.regression", reason="MAPIE is not installed: pip install mapie")


@pytest.mark.parametrize("n", [1, 19, 60])
@pytest.mark.parametrize("kind", CASES)
def test_p_values_are_those_of_crepes(crepes, kind, n):
    draw = np.random.default_rng(n)
    held, new = CASES[kind](draw, n), CASES[kind](draw, 200)
    theirs = crepes.base.p_values_batch(held, new, smoothing=False)
    np.testing.assert_allclose(p_values(new, held), theirs, rtol=1e-15)


def test_cross_p_values_are_the_counts_of_crepes_added(crepes):
    draw = np.random.default_rng(0)
    folds = [draw.integers(0, 9, n).astype(float) for n in (5, 6, 7)]
    new = [draw.integers(0, 9, 200).astype(float) for _ in folds]
    split = [crepes.base.p_values_batch(h, x, smoothing=False) for h, x in zip(folds, new)]
    larger = sum(np.rint(p * (len(h) + 1)) - 1 for p, h in zip(split, folds))
    np.testing.assert_allclose(cross_p_values(new, folds), (1 + larger) / (1 + 18), rtol=1e-15)


class Zero:
    """A regressor that says 0, whose residuals are the scores themselves."""

    def fit(self, x, y):
        self.fitted_ = True
        return self

    def predict(self, x):
        return np.zeros(len(x))

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("kind", CASES)
def test_threshold_is_the_half_width_of_mapie(mapie, kind, rate):
    held = np.abs(CASES[kind](np.random.default_rng(3), 47))
    theirs = mapie.SplitConformalRegressor(Zero(), confidence_level=1 - rate, prefit=True)
    theirs.conformalize(np.zeros((47, 1)), held)
    _, interval = theirs.predict_interval(np.zeros((1, 1)))
    assert rate_threshold(held, rate) == pytest.approx(float(interval[0, 1, 0]), rel=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_what_lies_outside_of_mapies_cv_interval_is_rejected(mapie, rate):
    """CV+ intervals hold what cross-conformal prediction accepts, so that what they leave out is rejected
    here too.
    """
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import KFold

    draw, parts, new, folds = np.random.default_rng(4), 40, 400, KFold(4)
    x, fresh = draw.standard_normal((parts, 3)), draw.standard_normal((new, 3))
    y, seen = x.sum(1) + draw.standard_normal(parts), fresh.sum(1) + 2 * draw.standard_normal(new)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = mapie.CrossConformalRegressor(
            LinearRegression(), confidence_level=1 - rate, method="plus", cv=folds
        )
        theirs.fit_conformalize(x, y)
        _, interval = theirs.predict_interval(fresh)
    low, high = interval[:, 0, 0], interval[:, 1, 0]
    outside = (seen < low) | (seen > high)

    held, judged = [], []
    for rest, fold in folds.split(x):
        model = LinearRegression().fit(x[rest], y[rest])
        held.append(np.abs(y[fold] - model.predict(x[fold])))
        judged.append(np.abs(seen - model.predict(fresh)))
    rejected = cross_p_values(judged, held) <= rate
    assert outside.sum() > 20
    assert rejected[outside].all()
    assert (rejected != outside).mean() < 0.05  # the two differ at the border only
    assert outside.mean() > 0.5 * rate
