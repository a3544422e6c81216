"""Splits, folds, standardised columns and penalties: what each row and column is used for."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from tasks.datasets import features as module
from tasks.datasets.design import prepare
from tasks.datasets.features import Features
from tasks.datasets.splits import deal, split
from tasks.datasets.tables import Table, load
from tasks.datasets.tabular import Tabular
from tasks.parts.stability import stability

SHARES = dict(validation=0.3, test=0.2, rows=None)
COMMON = Tabular("diabetes", folds=3, test=0.2)


def table(n: int, classes: int = 0, test_rows=None) -> Table:
    y = np.arange(n) % classes if classes else np.arange(n, dtype=float)
    names = tuple(f"class {c}" for c in range(classes))
    return Table(np.arange(2.0 * n).reshape(n, 2), y, ("a", "b"), names, "made up", test_rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [0, 3])
def test_every_row_has_one_part(seed: int, classes: int) -> None:
    parts = split(table(47, classes), seed=seed, **SHARES)
    rows = np.concatenate([parts.train, parts.validation, parts.test])
    np.testing.assert_array_equal(np.sort(rows), np.arange(47))
    again = split(table(47, classes), seed=seed, **SHARES)
    np.testing.assert_array_equal(parts.train, again.train)
    other = split(table(47, classes), seed=seed + 1, **SHARES)
    assert not np.array_equal(parts.test, other.test)
    np.testing.assert_array_equal(
        parts.development, np.concatenate([parts.train, parts.validation])
    )


@pytest.mark.parametrize("n", [47, 300])
def test_parts_have_their_share_of_each_class(n: int) -> None:
    data = table(n, 3)
    parts = split(data, seed=0, **SHARES)
    for rows, share in ((parts.validation, 0.3), (parts.test, 0.2)):
        counts, total = np.bincount(data.y[rows]), np.bincount(data.y)
        assert np.all(np.abs(counts - share * total) <= 0.5)


def test_split_in_numbers_of_rows_is_the_permutation_in_order() -> None:
    """The split of the reference cases: RandomState(seed).permutation cut at 150, 300."""
    parts = split(load("diabetes"), validation=150, test=142, seed=3, rows=None)
    order = np.random.RandomState(3).permutation(442)
    np.testing.assert_array_equal(np.concatenate([parts.development, parts.test]), order)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (150, 150, 142)


def test_test_rows_of_the_source_stay_test_rows() -> None:
    own = np.arange(27, 47)
    parts = split(table(47, 2, own), seed=0, **SHARES)
    np.testing.assert_array_equal(np.sort(parts.test), own)
    assert len(parts.validation) == 8  # 0.3 of the other 14 and 13, class by class
    fewer = split(table(47, 2, own), seed=0, validation=0.3, test=0.2, rows=30)
    assert sum(map(len, (fewer.train, fewer.validation, fewer.test))) == 30
    assert set(fewer.test) <= set(own)


BAD_SHARES = [
    (dict(validation=0), "validation=0 must be a share of the rows between 0 and 1"),
    (dict(test=99), "test=99 must be a share .* below the 47 there are"),
    (dict(validation=0.6, test=0.5), "leave 0 rows for train: each part needs at least 2"),
    (dict(validation=0.01), "leave 0 rows for validation"),
    (dict(rows=1), "rows=1 must lie between 2 and the 47"),
    (dict(rows=48), "rows=48 must lie between 2 and the 47"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SHARES)
def test_bad_shares_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(table(47), seed=0, **{**SHARES, **change})


def test_class_without_training_rows_is_refused() -> None:
    data = table(40, 2)
    data.y[:] = np.arange(40) < 3
    with pytest.raises(ValueError, match="no training row has the label 'class 1'"):
        split(data, seed=0, validation=0.5, test=0.4, rows=None)


@pytest.mark.parametrize("folds", [2, 5, 23])
def test_folds_are_even_and_stratified(folds: int) -> None:
    y = np.random.default_rng(0).integers(0, 3, 23)
    fold = deal(y, folds, stratify=True)
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for label in range(3):
        assert np.ptp(np.bincount(fold[y == label], minlength=folds)) <= 1
    with pytest.raises(ValueError, match=f"folds={folds} must lie between 2 and the {folds - 1}"):
        deal(y[: folds - 1], folds, stratify=True)
    with pytest.raises(ValueError, match="folds=1 must lie"):
        deal(y, 1, stratify=False)


@pytest.mark.parametrize("degree", [1, 2])
def test_columns_are_those_of_scikit_learn(degree: int) -> None:
    X, names = load("diabetes").X, load("diabetes").feature_names
    features = Features.fit(X[:150], names, degree)
    pipe = make_pipeline(
        StandardScaler(), PolynomialFeatures(degree, include_bias=False), StandardScaler()
    ).fit(X[:150])
    all_names = list(pipe[:2].get_feature_names_out(names))
    kept = [all_names.index(name) for name in features.names]
    np.testing.assert_allclose(features.transform(X), pipe.transform(X)[:, kept], atol=1e-10)
    # A column with two values is, squared and standardised, itself again.
    assert features.dropped == (("sex^2",) if degree == 2 else ())
    assert len(features.names) + len(features.dropped) == len(all_names)


def test_constant_and_duplicate_columns_are_dropped_and_named() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20))
    X = np.column_stack([a, np.full(20, 3.0), 5 - 2 * a, b, b])
    features = Features.fit(X, ("a", "constant", "a turned", "b", "b again"))
    assert features.names == ("a", "b")
    assert features.dropped == ("constant", "a turned", "b again")
    with pytest.raises(ValueError, match="all 1 feature columns are constant over the 4 training"):
        Features.fit(np.ones((4, 1)), ("a",))
    with pytest.raises(ValueError, match="degree=3 must be 1"):
        Features.fit(X, ("a",) * 5, 3)


def test_outliers_are_clipped_before_they_are_squared() -> None:
    x = np.array([[0.0], [1.0], [2.0], [3.0], [1000.0]])
    free, clipped = (Features.fit(x[:4], ("a",), 2, clip) for clip in (None, 2.0))
    np.testing.assert_allclose(clipped.transform(x[:4]), free.transform(x[:4]))
    at_bound = x[:4].mean() + 2 * x[:4].std()
    np.testing.assert_allclose(clipped.transform(x[4:]), free.transform(np.array([[at_bound]])))
    with pytest.raises(ValueError, match="clip=0 must be a positive number"):
        Features.fit(x, ("a",), 2, 0)


def test_scales_come_from_training_rows_alone() -> None:
    one = prepare(replace(COMMON, outer="holdout"), "regression")
    assert one.folds is None
    np.testing.assert_allclose(one.X[one.train].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(one.X[one.train].std(0), 1)
    folds = prepare(COMMON, "regression")
    assert folds.folds == 3
    np.testing.assert_array_equal(folds.train.sum(1), 2)  # each row trains all folds but one
    for f in range(3):
        X = folds.X[folds.train[:, f], f]
        np.testing.assert_allclose(X.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(X.std(0), 1)
    assert not set(one.parts.test) & set(one.parts.development)
    with pytest.raises(ValueError, match="outer='cv' must be one of holdout, kfold"):
        prepare(replace(COMMON, outer="cv"), "regression")


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
def test_no_number_of_the_judging_rows_reaches_the_training_columns(outer: str, tmp_path) -> None:
    """Other values in validation and test rows leave every training column as it was."""
    data, path = load("diabetes"), tmp_path / "t.npz"
    chosen = replace(COMMON, outer=outer, degree=2)
    before = prepare(chosen, "regression")
    # Folds share the columns of all their rows, so there only the test rows are out of sight.
    unseen = (
        before.parts.test if outer == "kfold" else np.r_[before.parts.validation, before.parts.test]
    )
    X = data.X.copy()
    X[unseen] = 7 + 100 * np.random.default_rng(0).normal(size=(len(unseen), X.shape[1]))
    np.savez(path, X=X, y=data.y, feature_names=np.array(data.feature_names))
    after = prepare(replace(chosen, data=str(path)), "regression")
    assert before.parts.digest == after.parts.digest
    shared = [after.features.names.index(name) for name in before.features.names]
    one, other = before.X, after.X[..., shared]
    keep = slice(None) if outer == "kfold" else before.train
    np.testing.assert_allclose(other[keep], one[keep], atol=1e-12)
    for f in range(before.folds or 0):  # within the folds, by each fold's own training rows
        Z, used = before.development[0], before.train[:, f]
        scaled = (Z - Z[used].mean(0)) / Z[used].std(0)
        np.testing.assert_allclose(before.X[:, f], scaled, atol=1e-10)


def test_all_seeds_have_the_same_columns() -> None:
    """Pixels that only a few digits use are constant in the training rows of some seeds."""
    data = load("digits", kind="classification")
    digits = replace(COMMON, data="digits", outer="holdout")
    made = [prepare(replace(digits, seed=seed), "classification") for seed in range(6)]
    varying = {np.count_nonzero(np.ptp(data.X[d.parts.train], axis=0)) for d in made}
    assert len(varying) > 1
    assert {d.X.shape for d in made} == {(1438, 61)}
    assert np.count_nonzero(np.ptp(data.X, axis=0)) == 61
    assert len({d.parts.digest for d in made}) == 6
    for d in made:
        assert np.all(np.isfinite(d.X))
        np.testing.assert_allclose(d.X[d.train].mean(0), 0, atol=1e-12)


def test_duplicates_are_found_in_blocks(monkeypatch) -> None:
    X = np.random.default_rng(0).normal(size=(30, 9))
    X[:, 4], X[:, 7], X[:, 8] = -X[:, 1], 3 * X[:, 6], X[:, 1] + 2
    names = tuple("abcdefghi")
    whole = Features.fit(X, names)
    monkeypatch.setattr(module, "BLOCK", 2)
    assert Features.fit(X, names).names == whole.names == tuple("abcdfg")


@pytest.mark.parametrize("seed", range(3))
def test_step_sizes_bound_the_second_moment_of_batch_hessians(seed: int) -> None:
    """Exact: E[H_B^2] = H^2 + (mean |x|^2 x x^T - mean(x x^T)^2) / B with H the whole Hessian."""
    rng = np.random.default_rng(seed)
    X = rng.standard_t(3, size=(40, 6)) @ rng.normal(size=(6, 6))
    penalties = rng.uniform(0.01, 2.0, 6)
    facts = stability(X, penalties.max())
    G = X.T @ X / 40
    H = G + np.diag(penalties)
    fourth = (X * np.sum(X**2, axis=1, keepdims=True)).T @ X / 40
    for batch, key in ((None, "max_step_size"), (32, "max_step_size_batch_32")):
        second = H @ H + (0 if batch is None else (fourth - G @ G) / batch)
        largest = np.max(np.linalg.eigvals(np.linalg.solve(H, second)).real)
        assert facts[key] * largest <= 2
    assert facts["curvature"] == pytest.approx(np.linalg.eigvalsh(G)[-1])
    folds = stability(np.stack([X, 2 * X], axis=1), 0.0)
    assert folds["curvature"] == pytest.approx(4 * facts["curvature"])
    wide = stability(X[:4], 0.0)
    assert wide["curvature"] == pytest.approx(np.linalg.eigvalsh(X[:4].T @ X[:4] / 4)[-1])
