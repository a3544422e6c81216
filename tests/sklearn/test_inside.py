"""The estimators inside scikit-learn's machinery: frames, routing, display, sparse columns."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import bilevel.sklearn
from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 8))
Y = X[:, 0] - 2 * X[:, 1] + RNG.normal(size=60)
WEIGHT = RNG.uniform(0.1, 2, 60)
GROUPS = np.repeat(np.arange(12), 5)


def test_polars_frames_in_and_between_the_steps():
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.DataFrame(dict(zip("abcdefgh", X.T, strict=True)))
    scaler = StandardScaler().set_output(transform="polars")
    model = make_pipeline(scaler, HypergradRidge()).fit(frame, Y)
    assert isinstance(scaler.transform(frame), polars.DataFrame)
    assert list(model[-1].feature_names_in_) == list("abcdefgh")
    plain = make_pipeline(StandardScaler(), HypergradRidge()).fit(X, Y)
    np.testing.assert_allclose(model.predict(frame), plain.predict(X), rtol=1e-9)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename({"a": "z"}))


def by_hand(model, cv, fit, score):
    """Scores of the outer folds, the metadata sliced here."""
    scores = []
    for train, test in cv.split(X, Y, fit.get("groups")):
        own = clone(model).fit(X[train], Y[train], **{k: v[train] for k, v in fit.items()})
        weights = {k: v[test] for k, v in score.items()}
        scores.append(r2_score(Y[test], own.predict(X[test]), **weights))
    return scores


def test_sample_weight_is_routed_through_cross_validation():
    model, metadata = HypergradRidge(cv=4), {"sample_weight": WEIGHT}
    expected = by_hand(model, KFold(3), metadata, metadata)
    with config_context(enable_metadata_routing=True):
        model = model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        found = cross_val_score(model, X, Y, cv=KFold(3), params=metadata)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not np.allclose(found, by_hand(model, KFold(3), {}, metadata))


def test_groups_are_routed_to_the_outer_and_the_inner_folds():
    model, outer = HypergradRidge(cv=GroupKFold(4)), GroupKFold(3)
    expected = by_hand(model, outer, {"groups": GROUPS}, {})
    with config_context(enable_metadata_routing=True):
        model = model.set_fit_request(groups=True)
        found = cross_val_score(model, X, Y, cv=outer, params={"groups": GROUPS})
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="'groups' parameter should not be None"):
        model.fit(X, Y)


NAMES = [name for name in vars(bilevel.sklearn) if name.startswith("Hypergrad")]


@pytest.mark.parametrize("name", NAMES)
def test_html_shows_name_and_changed_parameters(name):
    html = getattr(bilevel.sklearn, name)("per_feature", max_iter=17)._repr_html_()
    assert name in html
    assert "per_feature" in html
    assert "17" in html
    assert "Not fitted" in html


def test_behind_a_column_transformer_whose_columns_are_sparse():
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdefgh"))
    frame["kind"] = np.array(["red", "green", "blue"])[np.arange(60) % 3]
    labels = (X[:, 0] + (frame["kind"] == "red") + RNG.normal(size=60) > 0.3).to_numpy()
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), list("abcde")), ("kind", OneHotEncoder(), ["kind"])],
        sparse_threshold=1.0,
    )
    model = make_pipeline(columns, HypergradLogisticRegression(cv=4)).fit(frame, labels)
    inside = columns.transform(frame)
    assert sparse.issparse(inside)
    assert list(model[-1].classes_) == [False, True]
    other = LogisticRegression(C=model[-1].C_, tol=1e-10, max_iter=10**4).fit(inside, labels)
    np.testing.assert_allclose(model.predict_proba(frame), other.predict_proba(inside), atol=1e-6)


MODELS = [
    HypergradRidge("per_feature"),
    HypergradLasso(),
    HypergradElasticNet(),
    # Two searches end at one penalty as far as tol asks.
    HypergradLogisticRegression(cv=4, tol=1e-10),
]


def only_moments(toarray):
    """Second moments ``[d, d]`` may be dense, rows not."""

    def checked(self, *args, **kwargs):
        assert self.shape == (8, 8), "rows made dense"
        return toarray(self, *args, **kwargs)

    return checked


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_sparse_rows_are_never_made_dense(model, monkeypatch):
    thinned = np.where(np.random.default_rng(1).uniform(size=X.shape) < 0.75, X, 0)
    y = (Y > 0) * 1 if isinstance(model, HypergradLogisticRegression) else Y
    dense = clone(model).fit(thinned, y)

    for kind in (sparse.csr_array, sparse.csc_array, sparse.coo_array):
        monkeypatch.setattr(kind, "toarray", only_moments(kind.toarray))
    found = clone(model).fit(sparse.csr_array(thinned), y)
    np.testing.assert_allclose(found.coef_, dense.coef_, rtol=1e-4, atol=1e-6)
    found.predict(sparse.csr_array(thinned))


def test_two_million_sparse_columns_fit_in_the_memory_of_a_few():
    rng, n, d = np.random.default_rng(1), 60, 2_000_000
    place = np.repeat(np.arange(n), 5), rng.integers(0, 50, 5 * n) * 40_000
    A = sparse.csr_array((rng.normal(size=5 * n), place), shape=(n, d))
    used = np.unique(A.indices)
    y = A @ np.ones(d) + rng.normal(size=n)
    tracemalloc.start()
    model = HypergradRidge().fit(A, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * d * 8 / 4  # of the dense matrix, 960 MB
    reference = Ridge(alpha=model.alpha_).fit(A[:, used].toarray(), y)
    np.testing.assert_allclose(model.coef_[used], reference.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.predict(A), reference.predict(A[:, used].toarray()))
