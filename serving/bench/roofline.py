"""What this core can do at most: multiply-accumulates of an instruction set and bytes copied, a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Roofline", "measure_roofline"]

_LOOP_S = 0.02
_TRIES = 9
_COPY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Roofline:
    """The fastest of several short measurements on one core."""

    isa: str
    """Instruction set whose multiply loop was run."""
    macs_per_s: float
    """8-bit multiply-accumulates a second."""
    copy_bytes_per_s: float
    """Bytes read plus bytes written a second by a copy that is larger than the caches."""

    def bound_ms(self, macs: float, n_bytes: float, threads: int = 1) -> float:
        """Least milliseconds for this work: arithmetic or memory, whichever takes longer.

        Args:
            macs: multiply-accumulates.
            n_bytes: bytes read plus bytes written.
            threads: cores that share the arithmetic; memory is taken as one core's.
        """
        return 1e3 * max(macs / (self.macs_per_s * threads), n_bytes / self.copy_bytes_per_s)


def _rate(work: Callable[[int], float]) -> float:
    """Best rate of `work(rounds)`, which gives the amount that it did."""
    rounds, seconds = 1, 0.0
    while True:
        begin = time.perf_counter()
        amount = work(rounds)
        seconds = time.perf_counter() - begin
        if seconds >= _LOOP_S or rounds >= 2**40:
            break
        rounds *= 2 if seconds < 1e-6 else max(2, int(1.2 * _LOOP_S / seconds))
    best = amount / seconds
    for _ in range(_TRIES - 1):
        begin = time.perf_counter()
        amount = work(rounds)
        best = max(best, amount / (time.perf_counter() - begin))
    return best


def measure_roofline(isa: str | None = None) -> Roofline:
    """Run the library's multiply loop and its copy on the calling thread.

    Args:
        isa: instruction set of the multiply loop; None takes the best of this CPU.
    Raises:
        UnknownNameError: no such instruction set.
        EnvironmentProblem: no library for this machine, or its CPU lacks the instruction set.
    """
    import numpy as np

    from qexport.serving.kernels import Kernels
    from qexport.serving.native import find_library

    name = find_library(isa).isa
    kernels = Kernels()
    source, target = np.ones(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)

    def copy(rounds: int) -> float:
        for _ in range(rounds):
            kernels.stream(target, source)
        return 2.0 * _COPY_BYTES * rounds

    return Roofline(name, _rate(lambda rounds: kernels.peak(name, rounds)), _rate(copy))
