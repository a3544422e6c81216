"""Studies of the theory of noise: each is one command, `python -m experiments.studies.NAME --help`.

A study writes a figure, tables (csv and Markdown) and numbers (JSON), prints a sentence for each
finding, and fails, with a sentence, where an acceptance figure is missed.
"""
