"""Data sets and models made into bilevel problems, with the baselines to compare against."""
