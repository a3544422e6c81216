"""Run by the conformance tests on four virtual devices: the estimators named as arguments."""

import sys

import jax

from bilevel.testing import conformance
from tests.contract.test_conformance import CASES, TABLE

assert jax.device_count() == 4
for name in sys.argv[1:]:
    conformance.shards_over_examples(TABLE[name].make, CASES["ridge"])
