"""Published methods as rows of a table."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import optax
from jax import Array

from bilevel.core import Decay, Transform, transform
from bilevel.single_loop.batches import BatchSize
from bilevel.single_loop.double_loop import DoubleLoop
from bilevel.single_loop.f2sa import F2SA
from bilevel.single_loop.first_order import BOME, PZOBO
from bilevel.single_loop.oracles import HIA, SHIA
from bilevel.single_loop.rates import StepSize
from bilevel.single_loop.rules import SGD, STORM, DirectionRule, Momentum
from bilevel.single_loop.single_loop import SingleLoop
from bilevel.single_loop.variance import PAGE, SAGA, SARAH
from bilevel.utils import Number

Method: TypeAlias = SingleLoop | DoubleLoop | F2SA | BOME | PZOBO


class Preset(NamedTuple):
    """A method: ``make(step_size, batch_size, **settings)``; its outer step falls by ``power``."""

    make: Callable[..., Method]
    power: float
    paper: str


def _all(rule: DirectionRule) -> dict[str, DirectionRule]:
    """Take one rule for all three directions."""
    return {"w": rule, "v": rule, "lam": rule}


def _soba(s: Number, b: BatchSize, **more: Any) -> SingleLoop:
    return SingleLoop(Decay(s, 0.5), b, **more)


def _ma_soba(s: Number, b: BatchSize, weight: StepSize | None = None, **more: Any) -> SingleLoop:
    rule = Momentum(Decay(1.0, 0.5) if weight is None else weight)
    return SingleLoop(Decay(s, 0.5), b, lam=rule, **more)


def _saba(s: Number, b: BatchSize, **more: Any) -> SingleLoop:
    return SingleLoop(s, b, **_all(SAGA()), **more)


def _srba(s: Number, b: BatchSize, period: int | None = None, **more: Any) -> SingleLoop:
    return SingleLoop(s, b, **_all(SARAH(period)), **more)


def _spaba(s: Number, b: BatchSize, probability: Number | None = None, **more: Any) -> SingleLoop:
    return SingleLoop(s, b, **_all(PAGE(probability)), **more)


def _storm(series: type[HIA | SHIA]) -> Callable[..., SingleLoop]:
    def make(
        s: Number, b: BatchSize, terms: int = 10, eta: float | Array = 0.5, **more: Any
    ) -> SingleLoop:
        rule = STORM(Decay(eta, 2 / 3))
        return SingleLoop(Decay(s, 1 / 3), b, w=rule, v=series(terms, s), lam=rule, **more)

    return make


def _vrbo(
    s: Number,
    b: BatchSize,
    inner_steps: int = 10,
    terms: int = 10,
    period: int | None = None,
    **more: Any,
) -> SingleLoop:
    rule = SARAH(period)
    return SingleLoop(s, b, rule, SHIA(terms, s), rule, steps=inner_steps, **more)


def _fsla(s: Number, b: BatchSize, **more: Any) -> DoubleLoop:
    rate = Decay(s, 0.5)
    return DoubleLoop(rate, b, 1, SGD(), 1, STORM(rate), fresh_outer=True, **more)


def _ttsa(s: Number, b: BatchSize, terms: int = 10, **more: Any) -> DoubleLoop:
    return DoubleLoop(Decay(s, 0.4), b, 1, HIA(terms, s), **more)


def _bsa(
    s: Number, b: BatchSize, inner_steps: int = 10, terms: int = 10, **more: Any
) -> DoubleLoop:
    rate = Decay(s, 0.5)
    return DoubleLoop(rate, b, inner_steps, HIA(terms, s), hyper_first=True, **more)


def _stocbio(
    s: Number, b: BatchSize, inner_steps: int = 10, terms: int = 10, **more: Any
) -> DoubleLoop:
    return DoubleLoop(s, b, inner_steps, SHIA(terms, s), **more)


def _amigo(s: Number, b: BatchSize, inner_steps: int = 10, **more: Any) -> DoubleLoop:
    return DoubleLoop(s, b, inner_steps, **more)


def _f2sa(s: Number, b: BatchSize, **more: Any) -> F2SA:
    return F2SA(Decay(s, 5 / 7), b, free_step=Decay(s, 4 / 7), **more)


def _bome(s: Number, b: BatchSize, **more: Any) -> BOME:
    del b
    return BOME(s, **more)


def _pzobo(s: Number, b: BatchSize, **more: Any) -> PZOBO:
    del b
    return PZOBO(s, **more)


PRESETS: dict[str, Preset] = {
    "soba": Preset(_soba, 0.5, "Dagreou, Ablin, Vaiter, Moreau, NeurIPS 2022"),
    "saba": Preset(_saba, 0, "Dagreou, Ablin, Vaiter, Moreau, NeurIPS 2022"),
    "srba": Preset(_srba, 0, "Dagreou, Moreau, Vaiter, Ablin, AISTATS 2024"),
    "spaba": Preset(_spaba, 0, "Chu, Xu, Yao, Zhang, ICML 2024"),
    "ma_soba": Preset(_ma_soba, 0.5, "Chen, Xiao, Balasubramanian, 2023"),
    "sustain": Preset(_storm(HIA), 1 / 3, "Khanduri et al., NeurIPS 2021"),
    "mrbo": Preset(_storm(SHIA), 1 / 3, "Yang, Ji, Liang, NeurIPS 2021"),
    "vrbo": Preset(_vrbo, 0, "Yang, Ji, Liang, NeurIPS 2021"),
    "fsla": Preset(_fsla, 0.5, "Li, Gu, Huang, AAAI 2022"),
    "ttsa": Preset(_ttsa, 0.6, "Hong, Wai, Wang, Yang, SIOPT 2023"),
    "bsa": Preset(_bsa, 0.5, "Ghadimi, Wang, 2018"),
    "stocbio": Preset(_stocbio, 0, "Ji, Yang, Liang, ICML 2021"),
    "amigo": Preset(_amigo, 0, "Arbel, Mairal, ICLR 2022"),
    "f2sa": Preset(_f2sa, 4 / 7, "Kwon, Kwon, Wright, Nowak, ICML 2023"),
    "bome": Preset(_bome, 0, "Ye, Liu, Wright, Stone, Liu, NeurIPS 2022"),
    "pzobo": Preset(_pzobo, 0, "Sow, Ji, Liang, NeurIPS 2022"),
}


def preset(
    name: str,
    step_size: float | Array = 0.1,
    ratio: float | Array = 1.0,
    batch_size: BatchSize = 64,
    **settings: Any,
) -> tuple[Method, Transform]:
    """Return ``(estimator, outer)`` of a published method, for :func:`bilevel.tune`.

    Its schedules are those of the field's benchmark, ``benchopt/benchmark_bilevel``.

    Parameters
    ----------
    name : a key of ``single_loop.PRESETS``.
    step_size : of params and adjoint at the first step; the hyperparameters' is ``step_size /
        ratio``.
    batch_size, settings : further arguments of the estimator (``sampling``, ``check_every``) or of
        the method: ``terms`` of its series, ``inner_steps``, ``period``, ``probability``, ``eta``.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator, outer = bl.single_loop.preset("saba", step_size=0.1, ratio=1.0, batch_size=64)
    >>> estimator.w
    SAGA()
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    chosen = PRESETS[name]
    outer = transform(_descent, start=step_size / ratio, power=chosen.power)
    return chosen.make(step_size, batch_size, **settings), outer


def _descent(start: float | Array, power: float | Array) -> optax.GradientTransformation:
    """Descend with a step that falls."""
    rate: Any = Decay(start, power)  # optax calls a schedule with the count alone
    return optax.sgd(rate)
