"""Sparse tables against scikit-learn's weightings and filled-in arrays; files that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfTransformer

from tasks.datasets import sparse


def table(seed: int = 0, n: int = 20, d: int = 7) -> sp.csr_matrix:
    X = np.random.default_rng(seed).poisson(0.7, (n, d)).astype(float)
    X[3] = 0  # a text without a word
    return sp.csr_matrix(X)


def arrays(X: sp.csr_matrix, name: str) -> dict[str, np.ndarray]:
    return {f"{name}_{part}": np.asarray(getattr(X, part)) for part in sparse.PARTS}


def test_padded_rows_are_the_matrix() -> None:
    X = table()
    rows = sparse.Rows.from_matrix(X, 6)
    filled = np.zeros(X.shape)
    np.add.at(filled, (np.arange(20)[:, None], rows.index), rows.value)
    np.testing.assert_array_equal(filled, X.toarray())


def test_tfidf_is_scikit_learns_of_the_training_rows() -> None:
    X, train = table(), np.arange(12)
    expected = TfidfTransformer(sublinear_tf=True).fit(X[train]).transform(X)
    np.testing.assert_allclose(
        sparse.weighted(X, train, "tfidf").toarray(), expected.toarray(), rtol=1e-12
    )


def test_scaled_columns_have_mean_square_one_on_the_training_rows() -> None:
    X, train = table(), np.arange(12)
    Z = sparse.weighted(X, train, "scale").toarray()
    np.testing.assert_allclose(np.mean(Z[train] ** 2, axis=0), 1)
    np.testing.assert_array_equal(Z == 0, X.toarray() == 0)


def test_the_largest_entries_are_kept() -> None:
    X = sparse.weighted(table(), np.arange(12), "tfidf")
    less, width, share = sparse.largest(X, 2)
    filled, kept = X.toarray(), less.toarray()
    assert width == np.diff(less.indptr).max() == 2
    for before, after in zip(filled, kept, strict=True):
        np.testing.assert_allclose(np.sort(after)[-2:], np.sort(before)[-2:])
    assert share == pytest.approx(np.sum(kept**2) / np.sum(filled**2))
    assert sparse.largest(X, None)[1:] == (np.diff(X.indptr).max(), 1.0)


def test_own_test_rows_and_text_labels(tmp_path: Path) -> None:
    X = [table(0), table(1)]
    y = [np.arange(20) % 2, np.arange(20) // 10]
    path = tmp_path / "two.npz"
    names = np.array(["cat", "dog"])
    np.savez(
        path,
        **arrays(X[0], "X_train"),
        **arrays(X[1], "X_test"),
        y_train=y[0],
        y_test=y[1],
        target_names=names,
    )
    found = sparse.read(str(path))
    assert found.classes == ("cat", "dog")
    np.testing.assert_array_equal(found.y, np.concatenate(y))
    np.testing.assert_array_equal(found.test_rows, np.arange(20, 40))
    np.testing.assert_array_equal(found.X.toarray(), sp.vstack(X).toarray())


GOOD = arrays(table(), "X") | {"y": np.arange(20) % 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X_indptr": None}, r"expected the CSR arrays .*\(X_indptr are missing\)"),
        ({"X_shape": np.array([20, 3])}, "X is no CSR matrix: "),
        ({"X_data": np.full(GOOD["X_data"].shape, np.nan)}, "X has missing or infinite entries"),
        ({"y": np.arange(19)}, "expected one label in y for each of 20 rows"),
        ({"y": np.zeros(20)}, "every row of 'y' has the label '0'"),
    ],
)
def test_bad_files_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **{n: a for n, a in (GOOD | change).items() if a is not None})
    with pytest.raises(ValueError, match=message):
        sparse.read(str(path))


def test_absent_files_and_negative_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'newsgroups20' is not here: there is no .*Pass root="):
        sparse.read("newsgroups20", str(tmp_path))
    with pytest.raises(ValueError, match="unknown data set 'newsgroup'"):
        sparse.read("newsgroup", str(tmp_path))
    X = sp.csr_matrix(np.array([[1.0, -1.0], [0.0, 2.0]]))
    with pytest.raises(ValueError, match="tfidf' is for counts: an entry is negative"):
        sparse.weighted(X, np.arange(2), "tfidf")


def test_newsgroups_are_the_published_counts(shared_data: Path) -> None:
    """The shape and number of entries of scikit-learn's own `fetch_20newsgroups_vectorized`."""
    if not (shared_data / sparse.COUNTS["newsgroups20"]).is_file():
        pytest.skip("newsgroups20_counts.npz is not in ../shared/data")
    found = sparse.read("newsgroups20")
    own = found.test_rows
    assert own is not None
    assert found.X.shape == (11_314 + 7532, 130_107)
    assert sp.issparse(found.X)
    assert found.X[: own[0]].nnz == 1_787_565
    assert len(found.classes) == 20
    np.testing.assert_array_equal(own, np.arange(11_314, 18_846))
