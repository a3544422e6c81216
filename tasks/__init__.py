"""Data sets and models made into bilevel problems, with the baselines to compare against.

What a configuration may call of this package is registered here by name: every task, and the parts
that its settings are made of. Nothing else of it can be a `_target_`.
"""

__all__ = ["register", "registered"]

_REGISTERED = {
    "tasks.attribution.attribution",
    "tasks.augmentation.augmentation",
    "tasks.cleaning.cleaning",
    "tasks.custom.custom",
    "tasks.distillation.distillation",
    "tasks.imbalance.imbalance",
    "tasks.kernel.kernel_ridge",
    "tasks.lasso.lasso",
    "tasks.logistic.logistic",
    "tasks.meta.meta",
    "tasks.multinomial.multinomial",
    "tasks.networks.cleaning.cleaning_network",
    "tasks.networks.equilibrium.equilibrium",
    "tasks.networks.mixture.mixture",
    "tasks.ridge.ridge",
    "tasks.schedule.schedule",
    "tasks.weight_decay.weight_decay",
    "tasks.datasets.task_distributions.Episodes",
    "tasks.judges.exact_sparse.external",
    "tasks.parts.adaptation.LearnedRates",
    "tasks.parts.learned_schedules.Momentum",
    "tasks.parts.learned_schedules.Rate",
    "tasks.solvers.from_rest.FromRest",
    "tasks.solvers.online_reweighting.LookAhead",
    "tasks.solvers.online_reweighting.positive_part",
}


def register(name: str) -> None:
    """Let configurations call ``name``, the full name of a function or class."""
    _REGISTERED.add(name)


def registered() -> frozenset[str]:
    """Return the full names that configurations may call."""
    return frozenset(_REGISTERED)
