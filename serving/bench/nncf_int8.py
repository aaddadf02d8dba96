"""Static int8 by NNCF for OpenVINO, of an FP32 .onnx file.

    python -m qexport.serving.bench.nncf_int8 model.onnx model.xml

Activation ranges are found on random token ids: right for timing, where values do not matter, and not for
accuracy. The transformer preset is OpenVINO's own advice for BERT: matrix products in int8, attention scores'
softmax in float, SmoothQuant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main"]

_SAMPLES, _LENGTH = 32, 64


def _rows(model: Any, seed: int = 0) -> list[dict[str, Any]]:
    """Token ids below the size of the vocabulary, of a length that the model has positions for."""
    vocabulary, positions = _embeddings(model)
    rng = np.random.default_rng(seed)
    length = min(_LENGTH, positions - 2)
    rows = []
    for _ in range(_SAMPLES):
        ids = rng.integers(0, vocabulary, (1, length))
        known = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        rows.append({port.get_any_name(): known[port.get_any_name()] for port in model.inputs})
    return rows


def _embeddings(model: Any) -> tuple[int, int]:
    """Rows of the word and of the position table: the tables that a Gather reads, largest first."""
    sizes = sorted(
        {
            shape[0].get_length()
            for op in model.get_ops()
            if op.get_type_name() == "Gather"
            for shape in [op.input_value(0).get_partial_shape()]
            if len(shape) == 2 and shape.is_static and shape[0].get_length() > 2
        },
        reverse=True,
    )
    return (sizes[0] if sizes else 100), (sizes[1] if len(sizes) > 1 else 512)


def main(arguments: list[str] | None = None) -> int:
    """Quantise the first file into the second."""
    # Both packages send usage figures where openvino_telemetry is installed. None is Python's own sign for a
    # module that cannot be imported; the types of sys.modules leave it out.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf
    import openvino

    source, target = sys.argv[1:] if arguments is None else arguments
    model = openvino.convert_model(source)
    data = nncf.Dataset(_rows(model))
    found = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=_SAMPLES)
    openvino.save_model(found, Path(target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
