"""Names of the release before warn, and are what the new names are."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import noise
from bilevel.noise import Affine, Compressed, Diagonal, LeastSquares, Ridge, rules
from bilevel.utils import resolve_renamed

MODULES = [
    (noise.linearised, "around", "linearise"),
    (noise.prediction, "at_rest", "stationary_error"),
    (noise.prediction, "AtRest", "StationaryError"),
    (noise.influence, "of", "compute_influence"),
    (noise.limits, "Settles", "HasStationaryMoments"),
    (noise.transient, "Moments", "MeanAndCovariance"),
]
CLASSES = [
    (LeastSquares, "of", "from_data"),
    (Ridge, "of", "from_data"),
    (Compressed, "of", "from_least_squares"),
    (Diagonal, "of", "from_least_squares"),
]


@pytest.mark.parametrize(("owner", "old", "new"), [*MODULES, *CLASSES])
def test_an_old_name_warns_and_is_the_new_one(owner, old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now .*{new}; the old name goes"):
        assert getattr(owner, old) == getattr(owner, new)


def test_an_old_method_acts_on_its_instance():
    process = Affine(jnp.ones((2, 1, 1)), jnp.array([[1.0], [-1.0]]), 1.0)
    with pytest.warns(DeprecationWarning, match="Affine.settle is now"):
        old = process.settle(rules.sgd(0.1))
    new = process.stationary_with_margin(rules.sgd(0.1))
    np.testing.assert_array_equal(old[0].second, new[0].second)


def test_other_names_are_still_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = noise.linearised.nothing


def test_a_name_that_never_was_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'm' has no attribute 'never'"):
        resolve_renamed("m", {"old": ("new", 1)}, "never")
    with pytest.warns(DeprecationWarning, match="m.old is now m.new"):
        assert resolve_renamed("m", {"old": ("new", 1)}, "old") == 1
