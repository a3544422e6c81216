"""The PyTorch peers of `frontier.py`, in an interpreter of their own: float64, one thread.

    python benchmarks/torch_peers.py FOLDER [--hypertorch PATH]

Reads the problem from FOLDER/case.npz and writes one JSON line per measurement to its output, the
gradient to FOLDER/N.npy. Needs torch and NumPy; higher and TorchOpt run where they are installed,
hypertorch (github.com/prolearner/hypertorch) from a checkout.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

Candidate = tuple[str, str, Callable[[], list[torch.Tensor]]]


class Problem:
    """The losses of `problems.py` in PyTorch; params and hyper are lists of tensors."""

    def __init__(self, folder: pathlib.Path) -> None:
        saved = np.load(folder / "case.npz")
        self.name = str(saved["name"])
        self.step_size, self.batch = float(saved["step_size"]), int(saved["batch"])
        self.steps = int(saved["steps"])
        read = lambda prefix: [  # noqa: E731
            torch.as_tensor(saved[k]) for k in sorted(saved.files) if k.startswith(prefix)
        ]
        self.params, self.start = read("params"), read("hyper")
        self.inner_data, self.outer_data = read("inner"), read("outer")

    def hyper(self) -> list[torch.Tensor]:
        """Leaves to differentiate."""
        return [h.clone().requires_grad_() for h in self.start]

    def inner(self, w: list, h: list, data: list | None = None) -> torch.Tensor:
        """The lower loss."""
        X, y, *index = self.inner_data if data is None else data
        if self.name == "ridge":
            return ((X @ w[0] - y) ** 2).mean() / 2 + (h[0].exp() * w[0] ** 2).sum() / 2
        each = torch.nn.functional.cross_entropy(X @ w[0] + w[1], y, reduction="none")
        if self.name == "digits":
            return each.mean() + sum((a.exp() * b**2).sum() for a, b in zip(h, w, strict=True)) / 2
        return (torch.sigmoid(h[0][index[0]]) * each).mean() + 5e-3 * sum((x**2).sum() for x in w)

    def outer(self, w: list, h: list) -> torch.Tensor:
        """The upper loss."""
        X, y = self.outer_data
        if self.name == "ridge":
            return ((X @ w[0] - y) ** 2).mean() / 2
        return torch.nn.functional.cross_entropy(X @ w[0] + w[1], y)

    def minibatch(self) -> list:
        """Random rows."""
        rows = torch.randint(len(self.inner_data[0]), (self.batch,))
        return [x[rows] for x in self.inner_data]

    @torch.enable_grad()
    def solved(self, h: list, tol: float) -> list[torch.Tensor]:
        """The minimiser by torch's own L-BFGS."""
        w = [x.clone().requires_grad_() for x in self.params]
        fixed = [x.detach() for x in h]
        scale = torch.cat([g.ravel() for g in torch.autograd.grad(self.inner(w, fixed), w)]).norm()
        solver = torch.optim.LBFGS(
            w,
            max_iter=500,
            tolerance_grad=tol * float(scale) / 10,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            loss = self.inner(w, fixed)
            loss.backward()
            return loss

        solver.step(closure)
        return [x.detach() for x in w]


class Model(torch.nn.Module):
    """The params as a module, which higher and TorchOpt ask for."""

    def __init__(self, params: list[torch.Tensor]) -> None:
        super().__init__()
        self.w = torch.nn.ParameterList([torch.nn.Parameter(x.clone()) for x in params])


def unrolled(problem: Problem) -> Iterator[Candidate]:
    """Reverse mode through minibatch SGD."""
    if importlib.util.find_spec("higher"):
        import higher

        def by_higher() -> list[torch.Tensor]:
            h, model = problem.hyper(), Model(problem.params)
            sgd = torch.optim.SGD(model.parameters(), problem.step_size)
            with higher.innerloop_ctx(model, sgd) as (moving, steps):
                for _ in range(problem.steps):
                    loss = problem.inner(list(moving.parameters()), h, problem.minibatch())
                    steps.step(loss)
                return torch.autograd.grad(problem.outer(list(moving.parameters()), h), h)

        yield "higher, SGD unrolled", f"{problem.steps} steps", by_higher
    if importlib.util.find_spec("torchopt"):
        import torchopt

        def by_torchopt() -> list[torch.Tensor]:
            h, model = problem.hyper(), Model(problem.params)
            steps = torchopt.MetaSGD(model, lr=problem.step_size)
            for _ in range(problem.steps):
                steps.step(problem.inner(list(model.w), h, problem.minibatch()))
            return torch.autograd.grad(problem.outer(list(model.w), h), h)

        yield "TorchOpt, SGD unrolled", f"{problem.steps} steps", by_torchopt


def implicit(problem: Problem, hypertorch: str | None) -> Iterator[Candidate]:
    """The implicit function theorem after L-BFGS."""
    for tol in (1e-2, 1e-4, 1e-7):
        if importlib.util.find_spec("torchopt"):
            yield "TorchOpt, implicit", f"{tol}", lambda tol=tol: by_root(problem, tol)
        if hypertorch:
            sys.path.insert(0, hypertorch)
            import hypergrad

            def by_hypertorch(tol: float = tol) -> list[torch.Tensor]:
                h = problem.hyper()
                w = problem.solved(h, tol)

                def gradient_step(w: list, h: list) -> list[torch.Tensor]:
                    g = torch.autograd.grad(problem.inner(w, h), w, create_graph=True)
                    return [a - b for a, b in zip(w, g, strict=True)]

                size = torch.cat([g.ravel() for g in outer_slope(problem, w)]).norm()
                return hypergrad.CG(
                    w, h, 1000, gradient_step, problem.outer, tol=tol * float(size), set_grad=False
                )

            yield "hypertorch, CG", f"{tol}", by_hypertorch


def outer_slope(problem: Problem, w: list) -> tuple:
    """Gradient of the outer loss in the params."""
    w = [x.detach().requires_grad_() for x in w]
    return torch.autograd.grad(problem.outer(w, problem.start), w)


def by_root(problem: Problem, tol: float) -> list[torch.Tensor]:
    """TorchOpt's custom root with its own conjugate gradients."""
    import torchopt

    def slope(w: tuple, h: tuple) -> tuple:
        return torch.func.grad(lambda w: problem.inner(list(w), list(h)))(w)

    @torchopt.diff.implicit.custom_root(
        slope, argnums=1, solve=torchopt.linear_solve.solve_cg(rtol=tol, atol=0.0, maxiter=1000)
    )
    def solve(w: tuple, h: tuple) -> tuple:
        return tuple(problem.solved(list(h), tol))

    h = problem.hyper()
    w = solve(tuple(x.clone().requires_grad_() for x in problem.params), tuple(h))
    return torch.autograd.grad(problem.outer(list(w), h), h, allow_unused=True)


def main() -> None:
    """Measure every peer that is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--hypertorch")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    problem = Problem(args.folder)
    candidates = [*implicit(problem, args.hypertorch), *unrolled(problem)]
    for number, (family, budget, call) in enumerate(candidates):
        times, gradient = [], None
        for _ in range(args.repeats + 1):
            torch.manual_seed(0)
            begun = time.process_time()
            gradient = call()
            times.append(time.process_time() - begun)
        flat = torch.cat([g.detach().ravel() for g in gradient])
        np.save(args.folder / f"{number}.npy", flat.numpy())
        line = dict(family=family, budget=budget, first=times[0], seconds=min(times[1:]))
        print(json.dumps({**line, "number": number}), flush=True)


if __name__ == "__main__":
    main()
