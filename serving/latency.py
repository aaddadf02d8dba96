"""Latency of several engines, taken in turns so that a busy machine slows all of them alike.

Every round runs each engine once, in an order that rotates; the ratio of two engines is formed inside each
round, and reported as its median with a distribution-free 95 % interval (order statistics).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from qexport.errors import UsageError
from qexport.serving.evaluate import Runner
from qexport.serving.session import Batch

__all__ = [
    "LatencyCell",
    "Ratio",
    "feeds_from_rows",
    "interleave",
    "interleaved_times",
    "latency_cells",
    "measure_latency",
    "median_interval",
    "ratios",
    "run_ms",
]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of another engine divided by the time of ours, formed within each round."""

    against: str
    """Name of the other engine."""
    median: float
    """Above 1 means that ours is faster."""
    low: float
    """Lower end of the 95 % interval of the median."""
    high: float
    """Upper end of the 95 % interval of the median."""
    p10: float
    """10th percentile of the ratios of single rounds: the spread that one run sees."""
    p90: float
    """90th percentile of the same."""


@dataclass(frozen=True, slots=True)
class LatencyCell:
    """One engine at one length and thread count; milliseconds for a whole batch."""

    engine: str
    """Name of the engine."""
    length: int
    """Tokens per text."""
    batch_size: int
    """Texts per run."""
    threads: int
    """Threads inside one operator."""
    rounds: int
    """Timed runs of each engine."""
    p50_ms: float
    """Median."""
    p90_ms: float
    """90th percentile."""
    p99_ms: float
    """99th percentile; with fewer than 100 rounds it lies between the two slowest."""
    mean_ms: float
    """Mean."""
    min_ms: float
    """Fastest round."""
    ratios: list[Ratio]
    """Only of the first engine of a clock: every other engine of that clock divided by it."""
    clock: str = "host"
    """Whose clock it is: "host", or the name of the target that timed it; never compare two clocks."""


def median_interval(values: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median: order statistics k and n - k + 1 of the binomial(n, 1/2).

    Args:
        values: float64 [n], n >= 1.
        level: coverage; below 6 values the interval is the whole range, which covers less than 95 %.
    """
    ordered = np.sort(values)
    n = len(ordered)
    tail = (1.0 - level) / 2.0
    below, rank = 0.0, 0
    for k in range(n // 2):
        below += math.comb(n, k) * 0.5**n
        if below > tail:
            break
        rank = k + 1
    rank = max(rank, 1)
    return float(ordered[rank - 1]), float(ordered[n - rank])


def run_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - begin) / 1e6


def interleave(
    turns: Mapping[str, Callable[[], float]], *, rounds: int, warmup: int
) -> dict[str, npt.NDArray[np.float64]]:
    """What each engine's turn gives in each round; every round starts with the next engine.

    Args:
        turns: name -> one turn of that engine, which gives its milliseconds.
        rounds: rounds that count; each gives every engine one turn.
        warmup: rounds before, not kept, in the order of `turns`.
    Returns:
        name -> float64 [rounds]; index i of every engine comes from the same round.
    """
    names = list(turns)
    times = {name: np.zeros(rounds, dtype=np.float64) for name in names}
    for _ in range(warmup):
        for name in names:
            turns[name]()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                times[name][index] = turns[name]()
    finally:
        if collecting:
            gc.enable()
    return times


def interleaved_times(
    engines: Mapping[str, Runner], batch: Batch, *, rounds: int, warmup: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of each engine in each round; see `interleave`.

    Args:
        engines: name -> runner.
        batch: the feeds of every run.
        rounds: timed rounds; each runs every engine once.
        warmup: rounds before, not timed.
    """
    turns = {name: partial(run_ms, partial(runner.run, batch)) for name, runner in engines.items()}
    return interleave(turns, rounds=rounds, warmup=warmup)


def feeds_from_rows(
    batches: Sequence[Batch], *, length: int, batch_size: int, seed: int = 0
) -> dict[str, npt.NDArray[np.int64]]:
    """A full batch of exactly `length` tokens, made of token ids that occur in the rows; no padding.

    Args:
        batches: the tokenised rows to draw from.
        length: tokens per text.
        batch_size: texts.
        seed: of the draw.
    Returns:
        input_ids, attention_mask and token_type_ids, int64 [batch_size, length].
    """
    pool = [
        np.asarray(batch["input_ids"])[np.asarray(batch.get("attention_mask", batch["input_ids"])) != 0]
        for batch in batches[:32]
    ]
    ids = np.concatenate(pool) if pool else np.zeros(0, dtype=np.int64)
    if len(ids) == 0:
        ids = np.ones(1, dtype=np.int64)
    drawn = np.random.default_rng(seed).choice(ids, size=(batch_size, length)).astype(np.int64)
    return {
        "input_ids": drawn,
        "attention_mask": np.ones_like(drawn),
        "token_type_ids": np.zeros_like(drawn),
    }


def ratios(times: Mapping[str, npt.NDArray[np.float64]], ours: str) -> list[Ratio]:
    """Every other engine's time divided by that of `ours`, within each round; float64 [rounds] each."""
    found = []
    for name, values in times.items():
        if name == ours:
            continue
        ratio = values / times[ours]
        low, high = median_interval(ratio)
        p10, p90 = np.percentile(ratio, [10, 90])
        found.append(Ratio(name, float(np.median(ratio)), low, high, float(p10), float(p90)))
    return found


def measure_latency(
    open_engines: Callable[[int], Mapping[str, Runner]],
    batches: Sequence[Batch],
    *,
    lengths: Sequence[int],
    threads: Sequence[int],
    batch_size: int = 1,
    rounds: int = 30,
    warmup: int = 3,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> list[LatencyCell]:
    """Time every engine at every length and thread count, in turns.

    Args:
        open_engines: thread count -> engines, ours first; called once per thread count.
        batches: tokenised rows; their ids fill the timed batches.
        lengths: tokens per text.
        threads: threads inside one operator.
        batch_size: texts per run.
        rounds: timed rounds per cell.
        warmup: rounds before, not timed.
        seed: of the token ids.
        report: told one line per cell.
    Raises:
        UsageError: a length, thread count, batch size or number of rounds below 1.
    """
    for name, values in (
        ("lengths", lengths),
        ("threads", threads),
        ("batch-size", [batch_size]),
        ("iterations", [rounds]),
    ):
        if not values or min(values) < 1:
            raise UsageError(f"--{name} must be at least 1, got {list(values)}")
    cells = []
    for count in threads:
        engines = open_engines(count)
        ours = next(iter(engines))
        for length in lengths:
            feeds = feeds_from_rows(batches, length=length, batch_size=batch_size, seed=seed)
            times = interleaved_times(engines, feeds, rounds=rounds, warmup=warmup)
            counts = dict.fromkeys(times, count)
            cells += latency_cells(times, ours, length=length, batch_size=batch_size, threads=counts)
            line = ", ".join(f"{name} {np.median(taken):.2f} ms" for name, taken in times.items())
            report(f"latency, {length} tokens, {count} thread{'s' if count > 1 else ''}: {line}")
    return cells


def latency_cells(
    times: Mapping[str, npt.NDArray[np.float64]], ours: str, *, length: int, batch_size: int,
    threads: Mapping[str, int], clock: str = "host",
) -> list[LatencyCell]:  # fmt: skip
    """One cell per engine, from the milliseconds of each in each round.

    Args:
        times: name -> float64 [rounds], taken in turns by one clock.
        ours: the engine that ratios are formed against.
        length: tokens per text.
        batch_size: texts per run.
        threads: name -> threads inside one operator.
        clock: whose clock it was.
    """
    cells = []
    for name, taken in times.items():
        p50, p90, p99 = (float(value) for value in np.percentile(taken, [50, 90, 99]))
        cells.append(
            LatencyCell(
                engine=name, length=length, batch_size=batch_size, threads=threads[name], rounds=len(taken),
                p50_ms=p50, p90_ms=p90, p99_ms=p99, mean_ms=float(taken.mean()),
                min_ms=float(taken.min()), ratios=ratios(times, ours) if name == ours else [], clock=clock,
            )
        )  # fmt: skip
    return cells
