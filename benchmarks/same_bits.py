"""How far softmax, GELU and LayerNorm keep from ties, and what that changes: python benchmarks/same_bits.py

Every value of a grid is looked at, in float64. "Room" is the error that an exp (relative), an erf (absolute)
or a square root (in units of the last place) may have before a result rounds to a neighbour; the float32
steps around it are allowed for.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.formats import GELU_INPUT_STEPS, LARGEST_POWER, LARGEST_VARIANCE, ROOT_STEPS, SCORE_STEPS
from qexport.graphs.operators.attention import softmax
from qexport.graphs.operators.fused import gelu, layer_norm
from qexport.training.exact import exact_gelu, exact_softmax

STEP = 2.0**-24  # half a unit in the last place, relative


def main() -> None:
    """Print the two margins, then the differences to the functions without grids."""
    scores = -np.arange(0, 16 * SCORE_STEPS) / SCORE_STEPS
    powers = np.exp(scores) * LARGEST_POWER
    distance = np.abs(powers - np.floor(powers) - 0.5)
    print(f"softmax: {scores.size} scores, room for exp {(distance / powers - STEP).min():.1e} (relative)")

    h = np.arange(-8 * GELU_INPUT_STEPS, 8 * GELU_INPUT_STEPS + 1, dtype=np.float64)
    h = h[h != 0]
    erf = torch.erf(torch.from_numpy(h / (GELU_INPUT_STEPS * np.sqrt(2)))).numpy()
    distance = np.abs(h * (1 + erf) - np.floor(h * (1 + erf)) - 0.5)
    steps = STEP * (1 + np.abs(erf)) + STEP * (1 + erf)  # of 1 + erf, and of the product by h
    print(f"GELU: {h.size} values, room for erf {(distance / np.abs(h) - steps).min():.1e} (absolute)")

    whole = np.arange(1, int(ROOT_STEPS * LARGEST_VARIANCE) + 1, dtype=np.float64)
    distance = np.abs(np.sqrt(whole) - np.floor(np.sqrt(whole)) - 0.5)
    places = distance / np.spacing(np.sqrt(whole).astype(np.float32))
    print(f"LayerNorm: {whole.size} variances, room for sqrt {places.min():.1f} units in the last place")

    x = np.linspace(-8, 8, 1_000_001, dtype=np.float32)
    error = gelu(x) - torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    rms = np.sqrt(np.square(error).mean())
    print(f"GELU: the grids move it by at most {np.abs(error).max():.4f}, {rms:.4f} rms")

    rows = np.random.default_rng(0).normal(0, 3, (4096, 128)).astype(np.float32)
    exact = torch.softmax(torch.from_numpy(rows).double(), -1).numpy()
    moved = np.abs(softmax(rows) - exact) / exact.max(-1, keepdims=True)
    print(f"softmax: the grids move it by {moved.mean():.5f} of a row's largest, at most {moved.max():.4f}")

    for outlier in (3, 10, 20):
        rows = np.random.default_rng(1).normal(0, 1, (1024, 384)).astype(np.float32)
        rows[:, 0] = outlier
        one = np.ones(384, np.float32)
        wide = rows.astype(np.float64)
        exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-12)
        found = layer_norm(rows, one, 0 * one, 1e-12)
        moved = np.abs(found - exact) / np.abs(exact).max(-1, keepdims=True)
        mean, most = moved.mean(), moved.max()
        print(f"LayerNorm, largest value {outlier}: moved by {mean:.1e} of it, at most {most:.1e}")

    same = np.array_equal(softmax(rows), exact_softmax(torch.from_numpy(rows)).numpy())
    same &= np.array_equal(gelu(x), exact_gelu(torch.from_numpy(x)).numpy())
    print(f"numpy and PyTorch give the same bits: {same}")


if __name__ == "__main__":
    main()
