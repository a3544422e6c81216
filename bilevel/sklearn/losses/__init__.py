"""Compiled cross-validation losses, and the folds and moments that they are computed from."""
