"""What the start of learned steps costs: squared error of codes, by truncation ratio and width.

    python benchmarks/initial_steps.py
    python benchmarks/initial_steps.py --model teacher --bits 4-4-4

Prints the part of the energy (sum of squares) that is lost, the mean over the tensors of a kind: weights of
the encoder with one threshold a row, inputs of matrices, Q, K and V, attention probabilities. "chosen" is the
ratio that `qexport train` chooses for each threshold by itself, "mean" the start of LSQ. Activations are
those of the float model on 32 rows of Rotten Tomatoes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from qexport.training.attention import AttentionQuantizers
from qexport.training.calibration import initialise_thresholds
from qexport.training.config import TrainConfig
from qexport.training.data import encode, load_task_data, load_tokenizer, pad, pad_token_id
from qexport.training.kinds import get_kind
from qexport.training.models import load_encoder, resolve_model
from qexport.training.quantizers import learned
from qexport.training.recipes import get_recipe
from qexport.training.student import QuantLinear, quantize_model, quantized_modules

RATIOS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2)


def lost(x: Tensor, top: int) -> list[float]:
    """Relative squared error of x [..., n] for each ratio, the chosen one, and the start from the mean."""
    if x.shape[-1] > learned.FITTED_VALUES:
        x = x[
            torch.randint(x.shape[-1], (learned.FITTED_VALUES,), generator=torch.Generator().manual_seed(1))
        ]
    found = []
    for rule in (*map(learned.threshold_rule, (*RATIOS, None)), learned.mean_threshold):
        codes, step = learned.learned_codes(x, rule(x, top), top)
        found.append(
            float((codes * step.unsqueeze(-1) - x).square().sum() / x.square().sum().clamp(min=1e-30))
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="minilm", help="float model: folder, hub id or minilm")
    parser.add_argument("--bits", default="2-2-2,4-4-4,8-8-8", help="widths W-E-A, by comma")
    options = parser.parse_args()
    folder = Path(resolve_model(options.model))
    rows = load_task_data("rotten_tomatoes", train_samples=32, seed=42).train
    encoded, pad_id = encode(rows, load_tokenizer(folder), 64), pad_token_id(folder)
    features = {key: torch.from_numpy(value) for key, value in pad(encoded, range(32), pad_id=pad_id).items()}
    print(f"{'bits':7}{'tensors':16}{''.join(f'{ratio:>9}' for ratio in RATIOS)}   chosen     mean")
    for bits in options.bits.split(","):
        run = TrainConfig(method="kdlsq", output=Path("."), task="rotten_tomatoes", bits=bits)
        float_model = load_encoder(options.model, kind=get_kind("classification"))
        model = quantize_model(float_model, get_recipe("kdlsq").quant_config(run))
        initialise_thresholds(model, features)
        sums: dict[str, list[list[float]]] = defaultdict(list)
        for module in quantized_modules(model).values():
            if isinstance(module, QuantLinear):
                sums["weights"].append(lost(module.weight.detach(), 2 ** (module.bits - 1) - 1))
                watch(module.activation, "inputs", sums)
            elif isinstance(module, AttentionQuantizers):
                for name in ("query", "key", "value", "probabilities"):
                    kind = "probabilities" if name == "probabilities" else "Q, K, V"
                    watch(getattr(module, name), kind, sums)
        with torch.no_grad():
            initialise_thresholds(model, features)
        for kind, lines in sums.items():
            means = [sum(column) / len(lines) for column in zip(*lines, strict=True)]
            print(f"{bits:7}{kind:16}{''.join(f'{mean:9.4f}' for mean in means)}")


def watch(site: learned.LearnedActivation, kind: str, sums: dict[str, list[list[float]]]) -> None:
    """Measure what `site` is shown, instead of setting its threshold."""
    site.observe = lambda x, rule: sums[kind].append(lost(x.detach().float().reshape(-1), site.top))


if __name__ == "__main__":
    main()
