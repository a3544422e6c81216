"""Room in JAX's pool of threads on the CPU, without which a batched program can wait for ever."""

import os

_THREADS = 16


def widen_thread_pool() -> None:
    """Give JAX's pool on the CPU at least 16 threads, unless ``PJRT_NPROC`` says how many.

    A batched factorisation (LU, Cholesky, eigenvalues under ``vmap``) occupies a thread of the pool
    and waits for others to do its parts. Where as many run side by side as there are threads, two
    on a machine of two cores, all of them wait and none works (JAX 0.10). More threads than cores
    cost nothing measurable. Without effect once JAX has made an array on the CPU.
    """
    if "PJRT_NPROC" not in os.environ and "NPROC" not in os.environ:
        os.environ["PJRT_NPROC"] = str(max(_THREADS, os.cpu_count() or 1))
