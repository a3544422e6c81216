"""Reports on a problem before a run: are the hypergradients right, what do they cost."""
