"""What stands before an integer product: the nodes that turn a float activation into codes and a scale.

| act            | nodes                                                       | scale             |
| dynamic-token  | ai.qexport QuantizePerToken                                 | float32, computed |
| dynamic-tensor | ai.qexport QuantizePerTensor                                | float32, computed |
| static         | Clip to [-127 s, 127 s], QuantizeLinear with zero point 128 | float32, stored   |

Asymmetric ones have codes 0..255 and a zero point z of their own:

| dynamic-tensor | Clip if asked for, DynamicQuantizeLinear                    | float32, computed |
| static         | Clip to [-z s, (255 - z) s], QuantizeLinear                 | float32, stored   |

The codes of the others are uint8, 1..255, zero point 128. Static activations of b < 8 bits have top =
2**(b - 1) - 1 in place of 127, codes 128 - top .. 128 + top in a byte like the others; asymmetric ones
2**b - 1 in place of 255. The rules that fuse a quantisation into what
comes before it leave those alone, since their operators bound codes to 1..255. Two products that read the
same value make the same nodes; the pipeline's common-subexpression pass leaves one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from qexport.formats import max_code
from qexport.graphs.operators import DOMAIN, VERSION, ZERO_POINT
from qexport.graphs.rewrites.initializers import constant, floats, initializer

__all__ = [
    "clip_static",
    "holds_all_codes",
    "is_symmetric",
    "quantize_activation",
    "quantize_asymmetric",
    "static_quantizer",
    "width_problem",
    "zero_point",
]

LARGEST_CODE = np.float32(127)


def zero_point(graph: ir.Graph) -> ir.Value:
    """uint8 scalar 128."""
    return initializer(graph, "zero_point", np.array(ZERO_POINT, np.uint8))


def width_problem(act: str, bits: int) -> str:
    """Why activations cannot have `bits` bits, or "" where they can."""
    if bits == 8 or (act == "static" and 2 <= bits < 8):
        return ""
    return f"activations must have 8 bits, or 2 to 8 with stored scales, got {bits} for act '{act}'"


def holds_all_codes(limit: float, scale: npt.NDArray[np.float32]) -> bool:
    """Whether values up to `limit` reach code 127, so that a bound on codes makes one on values needless."""
    return bool(np.rint(np.float32(limit) / scale) >= LARGEST_CODE)


def clip_static(
    op: Any, graph: ir.Graph, x: ir.Value, scale: ir.Value, clip: float, name: str, *, bits: int = 8
) -> ir.Value:
    """x clipped to the smaller of top * scale and `clip` (0: none), so that codes stay within -top..top."""
    stored = constant(scale)
    assert stored is not None  # the rules' checks have seen it
    limit = np.float32(max_code(bits)) * np.float32(stored)
    if clip > 0:
        limit = min(limit, np.float32(clip))
    low = initializer(graph, f"{name}_min", np.array(-limit, np.float32))
    high = initializer(graph, f"{name}_max", np.array(limit, np.float32))
    clipped: ir.Value = op.Clip(x, low, high)
    return clipped


def static_quantizer(op: Any, x: Any, low: Any, high: Any, scale: Any, zero: Any) -> Any:
    """The pattern of what `quantize_activation` writes for static activations."""
    return op.QuantizeLinear(op.Clip(x, low, high), scale, zero, _allow_other_attributes=True)


def is_symmetric(
    result: MatchResult, *, low: ir.Value, high: ir.Value, scale: ir.Value, zero: ir.Value, **_: Any
) -> MatchResult:
    """Fail `result` unless a matched `static_quantizer` gives all codes 1..255 around zero point 128."""
    limits = [floats(value, ((),)) for value in (low, high)]
    stored, offset = floats(scale, ((),)), constant(zero)
    if limits[0] is None or limits[1] is None or stored is None or stored <= 0:
        return result.fail("the limits and the scale must be float32 scalar initializers", scale)
    if offset is None or offset.dtype != np.uint8 or offset.shape != () or offset != ZERO_POINT:
        return result.fail(f"the zero point must be the uint8 scalar {ZERO_POINT}", zero)
    if limits[0] != -limits[1] or not holds_all_codes(float(limits[1]), stored):
        return result.fail("a clip below 127 * scale cannot be left to the bound on codes", high)
    return result


def quantize_activation(
    op: Any,
    graph: ir.Graph,
    x: ir.Value,
    act: str,
    clip: float,
    scale: ir.Value | None,
    name: str,
    *,
    bits: int = 8,
) -> tuple[ir.Value, ir.Value]:
    """Codes uint8 of the shape of `x` and their scale.

    Args:
        op: the rewriter's builder.
        graph: where constants are registered.
        x: float32 [..., K].
        act: a mode of `qexport.formats.ACTIVATION_MODES`.
        clip: clip x to [-clip, clip] first; 0 for none.
        scale: float32 scalar for "static".
        name: prefix of new initializers.
        bits: width of the codes; below 8 for "static" only.
    """
    if act == "static":
        assert scale is not None
        bounded = clip_static(op, graph, x, scale, clip, name, bits=bits)
        return op.QuantizeLinear(bounded, scale, zero_point(graph)), scale
    kind = "QuantizePerToken" if act == "dynamic-token" else "QuantizePerTensor"
    codes, found = op.op(kind, x, _domain=DOMAIN, _version=VERSION, _outputs=2, clip=float(clip))
    return codes, found


def quantize_asymmetric(
    op: Any,
    graph: ir.Graph,
    x: ir.Value,
    clip: float,
    scale: ir.Value | None,
    zero: int,
    name: str,
    *,
    bits: int = 8,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes uint8 0..2**bits - 1 of the shape of `x`, their scale and their zero point.

    Args:
        op: the rewriter's builder.
        graph: where constants are registered.
        x: float32 [..., K].
        clip: clip x to [-clip, clip] first; 0 for none.
        scale: float32 scalar of a stored range; None: the range is found at run time.
        zero: zero point of a stored range, 0..2**bits - 1.
        name: prefix of new initializers.
        bits: width of the codes; below 8 for stored ranges only.
    """
    ends = {
        "min": np.float32(-clip if clip > 0 else -np.inf),
        "max": np.float32(clip if clip > 0 else np.inf),
    }
    if scale is not None:
        stored = constant(scale)
        assert stored is not None  # the rules' checks have seen it
        step = np.float32(stored)
        ends["min"] = np.maximum(ends["min"], np.float32(-zero) * step)
        ends["max"] = np.minimum(ends["max"], np.float32((1 << bits) - 1 - zero) * step)
    if np.isfinite(ends["min"]):
        x = op.Clip(
            x, *(initializer(graph, f"{name}_{end}", np.array(v, np.float32)) for end, v in ends.items())
        )
    if scale is None:
        codes, found, offset = op.DynamicQuantizeLinear(x, _outputs=3)
        return codes, found, offset
    offset = initializer(graph, f"{name}_zero_point", np.array(zero, np.uint8))
    return op.QuantizeLinear(x, scale, offset), scale, offset
