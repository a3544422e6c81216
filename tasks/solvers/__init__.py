"""Solvers and estimators of their own, reached from a configuration by name."""
