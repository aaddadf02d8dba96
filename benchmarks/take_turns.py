"""Time two exported folders against each other, each in its own Python environment, taking turns.

    python benchmarks/take_turns.py OLD_PYTHON OLD_FOLDER NEW_PYTHON NEW_FOLDER [--kernels off]

So two versions of qexport, or two files, are compared on a machine that is busy now and then. One thread, one
sentence of random tokens; a turn is the median of 5 calls. Printed are the medians of all turns in
milliseconds and the median of the second's time over the first's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

CHILD = """
import json, sys, time
import numpy as np
from qexport import load_onnx
model = load_onnx(sys.argv[1], kernels=sys.argv[2], threads=1)
for line in sys.stdin:
    length = int(line)
    ids = np.random.default_rng(0).integers(1000, 20000, (1, length))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    times = []
    for _ in range(5):
        start = time.perf_counter()
        model.logits(batch)
        times.append(time.perf_counter() - start)
    print(json.dumps(sorted(times)[2] * 1000), flush=True)
"""


class Side:
    """A child that has one folder open."""

    def __init__(self, python: str, folder: Path, kernels: str) -> None:
        command = [python, "-c", CHILD, str(folder.resolve()), kernels]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self, length: int) -> float:
        """Milliseconds of one sentence of `length` tokens."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(f"{length}\n")
        self._child.stdin.flush()
        return float(json.loads(self._child.stdout.readline()))


def main() -> None:
    """Take turns and print a line for each length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for side in ("old", "new"):
        parser.add_argument(f"{side}_python")
        parser.add_argument(f"{side}_folder", type=Path)
    parser.add_argument("--kernels", choices=("require", "off"), default="require")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    old = Side(options.old_python, options.old_folder, options.kernels)
    new = Side(options.new_python, options.new_folder, options.kernels)
    for length in (16, 32, 128, 256):
        turns = [(old.turn(length), new.turn(length)) for _ in range(options.rounds)]
        first, second = (statistics.median(side) for side in zip(*turns, strict=True))
        ratio = statistics.median(b / a for a, b in turns)
        print(f"{length:4d} tokens: {first:8.2f} ms, {second:8.2f} ms, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
