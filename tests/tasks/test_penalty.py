"""Penalties by name and by group: which columns each belongs to."""

import numpy as np
import pytest

from tasks.datasets.features import Features
from tasks.datasets.tables import load
from tasks.parts.penalty import Penalty, describe

FEATURES = Features.fit(load("diabetes").X, load("diabetes").feature_names, 2)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("global", ("all",)),
        ("per_feature", FEATURES.names),
        ("per_input", (*load("diabetes").feature_names, "squares", "products")),
        ("by_degree", ("columns", "squares", "products")),
        ([["age", "bmi"], ["*^2"], ["*"]], ("group 0", "group 2", "group 1")),
        ({"body": ["bmi", "bmi^2"], "rest": ["*"]}, ("rest", "body")),
        ([["*"]], ("group 0",)),
    ],
)
def test_penalties_by_name(spec, names) -> None:
    penalty = Penalty.from_columns(spec, FEATURES)
    assert set(penalty.names) == set(names)
    hyper = np.log(np.arange(1.0, 1 + len(penalty.names))).reshape(penalty.shape)
    strengths = np.broadcast_to(penalty(hyper), (64,))
    for name, strength in zip(FEATURES.names, strengths, strict=True):
        squared, product = name.endswith("^2"), " " in name
        expected = {
            "global": "all",
            "per_feature": name,
            "per_input": "squares" if squared else "products" if product else name,
            "by_degree": "squares" if squared else "products" if product else "columns",
        }
        if isinstance(spec, str):
            assert penalty.names[round(float(strength)) - 1] == expected[spec]
        elif isinstance(spec, dict):
            wanted = "body" if name in ("bmi", "bmi^2") else "rest"
            assert penalty.names[round(float(strength)) - 1] == wanted
    summary = describe(penalty, hyper)
    assert max(summary.values()) == pytest.approx(len(penalty.names))
    assert min(summary.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("per_column", "penalty='per_column' must be one of global, per_feature, per_input"),
        (3, "penalty=3 must be one of"),
        ([["age"]], r"63 columns are in no group: sex, bmi.* and 51 more. Add a last group"),
        (
            [["sex^2"], ["*"]],
            r"'sex\^2' of 'group 0' fits no column.*constant or duplicate: sex\^2",
        ),
    ],
)
def test_bad_groups_are_refused(spec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Penalty.from_columns(spec, FEATURES)
