"""The names that a configuration may call. Nothing is allowed by where it lives.

Of `bilevel`, the classes that its facades list in `__all__`, and two functions that make one; of
`tasks`, what is registered there; of `optax` and `flax`, the names below: transformations and
schedules, modules and their initialisers. None of them opens a file or starts a process.
"""

import ast
from functools import cache
from pathlib import Path

import tasks

_BILEVEL = Path(__file__).resolve().parents[2] / "bilevel"
_FACADES = ("", "outer", "single_loop", "spaces")
_MAKERS = frozenset({"bilevel.transform", "bilevel.single_loop.preset"})

OPTAX = """
adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan adaptive_grad_clip
add_decayed_weights add_noise amsgrad apply_every apply_if_finite centralize chain clip
clip_by_block_rms clip_by_global_norm constant_schedule cosine_decay_schedule
cosine_onecycle_schedule ema exponential_decay fromage identity inject_hyperparams join_schedules
keep_params_nonnegative lamb lars lbfgs linear_onecycle_schedule linear_schedule lion nadam nadamw
noisy_sgd normalize_by_update_norm novograd optimistic_adam optimistic_gradient_descent
piecewise_constant_schedule piecewise_interpolate_schedule polyak_sgd polynomial_schedule radam
rmsprop rprop scale scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad
scale_by_belief scale_by_learning_rate scale_by_lion scale_by_novograd scale_by_radam scale_by_rms
scale_by_rprop scale_by_rss scale_by_schedule scale_by_sign scale_by_sm3 scale_by_stddev
scale_by_trust_ratio scale_by_yogi set_to_zero sgd sgdr_schedule sign_sgd signum sm3 trace
warmup_constant_schedule warmup_cosine_decay_schedule warmup_exponential_decay_schedule yogi
zero_nans
"""
FLAX = """
BatchNorm Conv ConvLocal ConvTranspose Dense DenseGeneral Dropout Embed GroupNorm InstanceNorm
LayerNorm MultiHeadDotProductAttention PReLU RMSNorm SelfAttention Sequential
"""
INITIALISERS = """
constant glorot_normal glorot_uniform he_normal he_uniform lecun_normal lecun_uniform normal
ones_init orthogonal truncated_normal uniform variance_scaling zeros_init
"""


@cache
def _fixed() -> frozenset[str]:
    made = {f"optax.{name}" for name in OPTAX.split()}
    made |= {f"flax.linen.{name}" for name in FLAX.split()}
    made |= {f"flax.linen.initializers.{name}" for name in INITIALISERS.split()}
    return frozenset(made) | _MAKERS | _classes()


@cache
def _classes() -> frozenset[str]:
    """Classes of the facades, read without importing JAX: their names begin with a capital."""
    found = set()
    for facade in _FACADES:
        tree = ast.parse((_BILEVEL / facade / "__init__.py").read_text(encoding="utf-8"))
        module = ".".join(part for part in ("bilevel", facade) if part)
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                found |= {f"{module}.{name}" for name in names if name[0].isupper()}
    return frozenset(found)


def allowed() -> frozenset[str]:
    """Every name that may be a `_target_` without anybody's trust."""
    return _fixed() | tasks.registered()
