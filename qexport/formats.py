"""Number formats and the W-E-A notation of the papers: one table for every package.

W-E-A is "bits of encoder weights - bits of the word embedding - bits of activations"; 2-2-8 means ternary
weights, a ternary word embedding and 8-bit activations (TernaryBERT, section 4; METHODS in docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from qexport.errors import UsageError

__all__ = [
    "ACTIVATION_MODES",
    "ASYMMETRIC",
    "GELU_INPUT_STEPS",
    "GELU_OUTPUT_STEPS",
    "GRANULARITIES",
    "INITIAL_STEPS",
    "LARGEST_POWER",
    "LARGEST_VARIANCE",
    "NORM_MEAN_STEPS",
    "NORM_RANGE",
    "ROOT_STEPS",
    "SCORE_STEPS",
    "SMALLEST_MAGNITUDE",
    "SMALLEST_VARIANCE",
    "TERNARY_SOLVERS",
    "Bits",
    "max_code",
    "parse_bits",
]

ACTIVATION_MODES = ("dynamic-token", "dynamic-tensor", "static")
"""How the scale of an activation is found: per token at run time, per batch tensor at run time, frozen."""

GRANULARITIES = ("row", "matrix")
"""How many scales a weight matrix [N, K] has: one per output row, shape [N], or one, shape [1]."""

ASYMMETRIC = ("none", "feed-forward", "all")
"""Which matrices take inputs whose range need not be symmetric: none, the second one of each feed-forward
part, which reads GELU's output, or all."""

INITIAL_STEPS = ("truncation", "mean")
"""Where learned steps begin: Algorithm 1 of KDLSQ-BERT, or the mean magnitude as in LSQ."""

TERNARY_SOLVERS = ("alternating", "exact")
"""How loss-aware ternarisation finds codes and scale: approximately in a few rounds, or exactly by a sort."""

SCORE_STEPS = 256
"""Attention scores are rounded to 1 / SCORE_STEPS before the exponential of softmax is taken."""

LARGEST_POWER = 1117
"""The exponentials of a softmax are whole numbers from 0 to this one, which the largest score gets.

Their sum is then the same in any order. For every whole j, LARGEST_POWER * exp(-j / SCORE_STEPS) is at least
7.7e-6 of itself away from where it would round to another number: fifty times the error of a float32 exp.
"""

GELU_INPUT_STEPS, GELU_OUTPUT_STEPS = 128, 256
"""GELU takes multiples of 1 / GELU_INPUT_STEPS and gives multiples of 1 / GELU_OUTPUT_STEPS.

No value of the first grid has a GELU so close to the middle between two of the second that the error of a
float32 erf (5e-7) could decide.
"""

NORM_RANGE, NORM_MEAN_STEPS = 128, 64
"""LayerNorm stretches a row to -NORM_RANGE..NORM_RANGE and adds up whole numbers: values in steps of
1 / NORM_MEAN_STEPS for the mean, squares in steps of 1 for the variance.

In float32 such sums have no rounding and so no order: up to NORM_RANGE**2 * K = 2**24, that is K = 1024, in
every row, and beyond in every row whose mean square is below 2**24 / K.
"""

SMALLEST_MAGNITUDE = 1e-18
"""The largest magnitude of a row counts as this one at least when LayerNorm stretches it."""

SMALLEST_VARIANCE, LARGEST_VARIANCE = 0.25, 16384.0
"""Of a stretched row, epsilon included. One that has 128 somewhere has at least 16 unless it is nearly
constant, and reaches 16384 with epsilon alone, where its own variance is below epsilon."""

ROOT_STEPS = 16
"""A variance w is divided by its root from a first guess k / 4: k is the root of ROOT_STEPS * w, both whole.

The root of a whole number up to ROOT_STEPS * LARGEST_VARIANCE = 2**18 is at least eight times the last place
of a float32 away from where it would round to another number: an approximate square root gives the same k.
"""


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits of weights, word embedding and activations."""

    weight: int
    """Encoder matrices: 1 is binary {-1, 1}, 2 ternary {-1, 0, 1}, 3..8 symmetric uniform, 32 float."""
    embedding: int
    """Word embedding table, the same coding as `weight`."""
    activation: int
    """Inputs of quantised matrix products: 8, or 32 for float."""

    def __str__(self) -> str:
        return f"{self.weight}-{self.embedding}-{self.activation}"


def parse_bits(text: str) -> Bits:
    """Read W-E-A notation such as "2-2-8".

    Raises:
        UsageError: not three whole numbers, or a number outside 1..8 and 32.
    """
    parts = text.split("-")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise UsageError(f"--bits must be W-E-A such as 2-2-8, got '{text}'")
    numbers = [int(part) for part in parts]
    if any(number != 32 and not 1 <= number <= 8 for number in numbers):
        raise UsageError(f"--bits takes numbers from 1 to 8, or 32 for float, got '{text}'")
    return Bits(*numbers)


def max_code(bits: int) -> int:
    """The largest code of a symmetric signed format: 2**(bits - 1) - 1; 1 for 1 and 2, 127 for 8 bits."""
    return max(1, (1 << (bits - 1)) - 1)
