"""The operator set `ai.qexport` version 1: ONNX function bodies and their numpy references.

Each operator travels in the file as a model-local function of ai.onnx operators, so any runtime can run it.
"""

from qexport.graphs.operators.attention import ATTENTIONS, attention_name
from qexport.graphs.operators.body import DOMAIN, MAX_OPSET, MIN_OPSET, VERSION, Operator
from qexport.graphs.operators.fused import FUSED
from qexport.graphs.operators.gather import GATHERS, gather_name
from qexport.graphs.operators.matmul import MATMULS, matmul_name
from qexport.graphs.operators.quantize import QUANTIZERS, SMALLEST_SCALE, ZERO_POINT

__all__ = [
    "DOMAIN",
    "MAX_OPSET",
    "MIN_OPSET",
    "OPERATORS",
    "SMALLEST_SCALE",
    "VERSION",
    "ZERO_POINT",
    "Operator",
    "attention_name",
    "gather_name",
    "matmul_name",
]

OPERATORS: dict[str, Operator] = {**QUANTIZERS, **FUSED, **MATMULS, **GATHERS, **ATTENTIONS}
"""Every operator by its type."""
