"""Losses, penalties and networks that tasks are assembled from."""
