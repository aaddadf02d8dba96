"""One session, many threads, many runs: always the same bits, and no more memory."""

from __future__ import annotations

import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from kernel_hooks import Hooks
from kernel_models import feeds, session

THREADS = 8


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def soak(encoder: ort.InferenceSession, runs: int) -> list[int]:
    """Run every feed on every thread, over and over; resident bytes after each tenth of the runs."""
    names = {item.name for item in encoder.get_inputs()}
    cases = [{key: value for key, value in feed.items() if key in names} for feed in feeds(12)]
    expected = [encoder.run(None, case) for case in cases]
    begin = threading.Barrier(THREADS)
    sizes: list[int] = []

    def work(thread: int) -> int:
        begin.wait()
        for index in range(runs):
            case = (index + thread) % len(cases)
            found = encoder.run(None, cases[case])
            assert all(np.array_equal(a, b) for a, b in zip(found, expected[case], strict=True)), (
                thread,
                index,
            )
            if thread == 0 and index % (runs // 10) == runs // 10 - 1:
                sizes.append(resident())
        return runs

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(work, range(THREADS))) == THREADS * runs
    return sizes


@pytest.mark.parametrize("threads", [1, 2])
def test_a_shared_session_gives_the_same_bits(threads: int, library: Path, ternary_folder: Path) -> None:
    soak(session(str(ternary_folder / "model.onnx"), library, optimize=True, threads=threads), 100)


def test_every_instruction_set_gives_the_bits_of_its_own_single_thread(
    hooks: Hooks, library: Path, ternary_folder: Path
) -> None:
    """A whole encoder: 1, 2 and 3 threads, whatever the instruction set."""
    for isa in hooks.isas:
        hooks.set_isa(isa)
        made = [
            session(str(ternary_folder / "model.onnx"), library, optimize=True, threads=threads)
            for threads in (1, 2, 3)
        ]
        names = {item.name for item in made[0].get_inputs()}
        for feed in feeds(8):
            case = {key: value for key, value in feed.items() if key in names}
            results = [one.run(None, case) for one in made]
            for other in results[1:]:
                assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True)), isa


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_does_not_grow(threads: int, library: Path, ternary_folder: Path) -> None:
    """8 threads, 20,000 runs each; after the first half, which fills caches, at most 1 MiB more."""
    encoder = session(str(ternary_folder / "model.onnx"), library, optimize=True, threads=threads)
    sizes = soak(encoder, 20_000)
    print([size >> 10 for size in sizes])
    assert sizes[-1] - sizes[4] < 1 << 20
