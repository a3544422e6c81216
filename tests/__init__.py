"""The tests: one folder per room of `bilevel/`, and four that are about more than one.

`contract/`: every estimator and every public name; `reference/`: published numbers; `repository/`:
rules of the code itself; `experiments/` and `tasks/`: the folders of these names.
"""
