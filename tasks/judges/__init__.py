"""Baselines, exact solutions and pictures: what judges the outcome of a task."""
