"""The settings of a table: what a task takes them from, and which of them it refuses."""

import numpy as np
import pytest

from tasks.custom import custom
from tasks.datasets.tabular import Tabular
from tasks.ridge import DEFAULT, ridge


def test_a_name_or_some_settings_leave_the_rest_as_it_was() -> None:
    own = Tabular("diabetes", "kfold", degree=2, folds=3, seed=4)
    assert own.changed("uci_yacht") == Tabular("uci_yacht", "kfold", degree=2, folds=3, seed=4)
    assert own.changed({"folds": 7}) == Tabular("diabetes", "kfold", degree=2, folds=7, seed=4)
    assert own.changed(DEFAULT) is DEFAULT


def test_custom_hands_the_settings_of_a_table_on() -> None:
    """By themselves, as a node of the linear model, and as a node of a function of one's own."""
    node = {"degree": 1, "seed": 2}
    expected = ridge(DEFAULT.changed(node), "per_input").notes
    for settings, function in (
        ({"degree": 1}, None),
        ({"table": {"degree": 1}}, None),
        ({"table": node}, "tasks.ridge:ridge"),
    ):
        assert custom(function, settings=settings, seed=2).notes == expected


def test_bad_settings_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"start=0 must be a positive penalty"):
        ridge(start=0)
    with pytest.raises(ValueError, match="outer='loo' must be one of holdout, kfold"):
        ridge({"outer": "loo"})
    with pytest.raises(ValueError, match="folds=1 must lie between 2 and the 309 rows"):
        ridge({"folds": 1})
    with pytest.raises(
        ValueError, match=r"table has no setting .fold.\. Available: clip, columns, data,"
    ):
        ridge({"fold": 3})
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{i},{int(i == 3)}\n" for i in range(9)))
    order = np.random.RandomState(0).permutation(9)
    assert 3 in order[-3:]  # the one row that differs is a test row
    with pytest.raises(ValueError, match=r"target is the same in all training rows"):
        ridge(Tabular(str(path), folds=2, validation=3, test=3), "global")
