"""A problem of which every inner row has a weight, a hyperparameter."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import UserLoss
from bilevel.linear import OutputLoss
from bilevel.utils import DataTree, Hyper, Params, PyTree, Scalar, register_node


@dataclass(frozen=True)
class WeightedHyper:
    """The hyperparameters of an attribution: ``weights [n]`` of the rows, and the problem's own.

    The latter are constants: evidence is then of the gradient in the weights alone.
    """

    weights: Array
    own: Hyper

    @property
    def hyper(self) -> Hyper:
        """Return the problem's own hyperparameters, with no derivative."""
        return jax.lax.stop_gradient(self.own)

    def average(self, losses: Array, numbers: Array) -> Scalar:
        """Return the mean of the losses of rows with these numbers; weights of mean 1."""
        return jnp.mean(self.weights[numbers] * losses) / jnp.mean(self.weights)


register_node(WeightedHyper)


@dataclass(frozen=True)
class WeightedRows:
    """``mean_i weight_i loss(row_i)``, a batch being ``(rows, their numbers)``; weights of mean 1.

    So half of the rows at weight 1, the others at 0, are the loss of a training set of half the
    size, with the penalty that it had.
    """

    loss: UserLoss

    def __call__(self, params: Params, hyper: WeightedHyper, batch: DataTree) -> Scalar:
        """Return the weighted loss."""
        rows, numbers = batch
        losses = map_rows(lambda row: self.loss(params, hyper.hyper, row), rows)
        return hyper.average(losses, numbers)


@dataclass(frozen=True)
class OutputsOfRows:
    """The outputs of a :class:`bilevel.OutputLoss`, a row being a batch of one."""

    split: OutputLoss

    def __call__(self, params: Params, hyper: WeightedHyper, batch: DataTree) -> PyTree:
        """Return the outputs of single rows."""
        return map_rows(lambda row: self.split.outputs(params, hyper.hyper, row), batch[0])


@dataclass(frozen=True)
class WeightedOutputs:
    """What :class:`WeightedRows` is, of the outputs of single rows."""

    split: OutputLoss

    def __call__(
        self, outputs: PyTree, params: Params, hyper: WeightedHyper, batch: DataTree
    ) -> Scalar:
        """Return the weighted loss."""
        rows, numbers = batch

        def of_row(row: DataTree, z: PyTree) -> Scalar:
            return self.split.loss(z, params, hyper.hyper, row)

        return hyper.average(map_rows(of_row, rows, outputs), numbers)


@dataclass(frozen=True)
class OfHyper:
    """A function of ``(params, hyper, ...)`` that sees the problem's own hyperparameters."""

    fn: Callable[..., PyTree]

    def __call__(self, params: Params, hyper: WeightedHyper, *rest: PyTree) -> PyTree:
        """Return what the function returns."""
        return self.fn(params, hyper.hyper, *rest)


def map_rows(fn: Callable[..., PyTree], rows: DataTree, *beside: PyTree) -> PyTree:
    """Return ``fn`` of single rows, each a batch of one, and what is beside, of each row."""
    return jax.vmap(fn)(jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], rows), *beside)


def weigh_rows(loss: UserLoss) -> UserLoss:
    """Return the loss with a weight per row, in two parts where it has two."""
    if isinstance(loss, OutputLoss):
        return OutputLoss(OutputsOfRows(loss), WeightedOutputs(loss))
    return WeightedRows(loss)
