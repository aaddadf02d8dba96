"""Lower quantised attention to the `ai.qexport` operator of its activation mode.

    before   y = qexport.QuantAttention(q, k, v, mask[, q_scale, k_scale[, p_scale, v_scale]])
    after    q', k', v' = Reshape(Transpose(q)), ...                                    [B, S, H * D]
             y' = ai.qexport.QuantizedAttention | ...PerTensor | ...Static | ...StaticBounded, and QK forms
             y = Transpose(Reshape(y'))

Shapes   q, k, v, y float32 [B, H, S, D], mask bool [B, 1, 1, S], scales float32 scalars (static only).
         Every encoder splits the heads just before and joins them just after, so that merge_heads.py removes
         all of these and the linear layers read and write q', k', v', y' directly.
Parity   equal integers given equal probabilities; softmax differs between runtimes by float32 rounding.
         Static codes are bounded to -127..127 by the operator; a Clip is written only for a smaller `clip`.
Names    operator ...PerTensor, ...Static or neither for dynamic-tensor, static, dynamic-token; ...QK when p
         and v are float; ...StaticBounded for static codes below 8 bits.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.formats import ACTIVATION_MODES, max_code
from qexport.graphs.operators import DOMAIN, VERSION, attention_name
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.activation import clip_static, holds_all_codes, width_problem
from qexport.graphs.rewrites.initializers import floats, target_shape
from qexport.graphs.rewrites.lower_linear import module_of

__all__ = ["rules"]


def _dynamic(op: Any, q: Any, k: Any, v: Any, mask: Any) -> Any:
    return op.QuantAttention(
        q, k, v, mask, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"]
    )


def _static_qk(op: Any, q: Any, k: Any, v: Any, mask: Any, q_scale: Any, k_scale: Any) -> Any:
    return op.QuantAttention(
        q, k, v, mask, q_scale, k_scale, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"]
    )


def _static(
    op: Any, q: Any, k: Any, v: Any, mask: Any, q_scale: Any, k_scale: Any, p_scale: Any, v_scale: Any
) -> Any:
    return op.QuantAttention(
        q,
        k,
        v,
        mask,
        q_scale,
        k_scale,
        p_scale,
        v_scale,
        _domain=EXPORT_DOMAIN,
        _allow_other_attributes=True,
        _outputs=["y"],
    )


def _stored(scales: dict[str, ir.Value | None]) -> list[tuple[str, ir.Value]]:
    """The scales that the node has, in the operator's order."""
    order = ("q_scale", "k_scale", "p_scale", "v_scale")
    return [(name, value) for name in order if (value := scales.get(name)) is not None]


def _sizes(q: ir.Value) -> tuple[int, int] | None:
    """Heads and their width, when q [B, H, S, D] is known to have them."""
    if q.shape is None or len(q.shape) != 4:
        return None
    heads, width = q.shape[1], q.shape[3]
    return (heads, width) if isinstance(heads, int) and isinstance(width, int) else None


def _applies(context: Any, y: ir.Value, q: ir.Value, **values: ir.Value | None) -> MatchResult:
    result = MatchResult()
    if _sizes(q) is None:
        return result.fail("q must be [B, H, S, D] with a known number of heads and width", q)
    node, _name = module_of(y)
    act, clip = node.attributes.get_string("act", ""), node.attributes.get_float("clip", 0.0)
    pv = node.attributes.get_int("quantize_p", 1)
    if act not in ACTIVATION_MODES:
        return result.fail(f"act must be one of {', '.join(ACTIVATION_MODES)}, got '{act}'", node)
    bits = node.attributes.get_int("a_bits", 8)
    if problem := width_problem(act, bits):
        return result.fail(problem, node)
    if bits < 8 and (clip > 0 or not pv):
        return result.fail("activations below 8 bits need quantised p and v, and no clip", node)
    if not 0 < node.attributes.get_int("p_top", 127) <= (127 if bits == 8 else (1 << bits) - 1):
        return result.fail(f"p_top must be a code of {bits} bits", node)
    if not node.attributes.get_int("quantize_qk", 1) or pv != node.attributes.get_int("quantize_v", 1):
        return result.fail("q and k must be quantised, and p and v both or neither", node)
    if pv and 0 < clip < 1:
        return result.fail(f"a clip below 1 would cut the attention probabilities, got {clip}", node)
    stored = _stored(values)
    if len(stored) != (0 if act != "static" else 4 if pv else 2):
        return result.fail(f"{len(stored)} scales given for act '{act}'", node)
    for name, value in stored:
        scale = floats(value, ((),))
        if scale is None or scale <= 0:
            return result.fail(f"{name} must be a float32 scalar initializer greater than 0", value)
    return result


def _merged(op: Any, graph: ir.Graph, x: ir.Value, heads: int, width: int) -> ir.Value:
    """[B, H, S, D] as [B, S, H * D]."""
    assert x.shape is not None
    batch, _, sequence, _ = x.shape
    swapped = op.Transpose(x, perm=[0, 2, 1, 3])
    swapped.shape = ir.Shape([batch, sequence, heads, width])
    merged: ir.Value = op.Reshape(swapped, target_shape(graph, [0, 0, heads * width]))
    merged.shape = ir.Shape([batch, sequence, heads * width])
    return merged


def _clip(op: Any, graph: ir.Graph, x: ir.Value, scale: ir.Value, clip: float, name: str) -> ir.Value:
    """x bounded by `clip` where codes would reach further."""
    stored = floats(scale, ((),))
    assert stored is not None  # checked
    if clip <= 0 or holds_all_codes(clip, stored):
        return x
    clipped = clip_static(op, graph, x, scale, clip, name)
    clipped.shape = x.shape
    return clipped


def _after(
    op: Any, y: ir.Value, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, **values: ir.Value | None
) -> ir.Value:
    node, name = module_of(y)
    graph, sizes = node.graph, _sizes(q)
    assert isinstance(graph, ir.Graph) and sizes is not None and q.shape is not None
    heads, width = sizes
    act, clip = node.attributes.get_string("act"), node.attributes.get_float("clip", 0.0)
    pv = bool(node.attributes.get_int("quantize_p", 1))
    scales = dict(_stored(values))
    attributes: dict[str, Any] = {"num_heads": heads, "scaling": node.attributes.get_float("scaling")}
    bits = node.attributes.get_int("a_bits", 8)
    if act != "static":
        attributes["clip"] = clip
    if bits < 8:
        attributes |= {"top": max_code(bits), "p_top": node.attributes.get_int("p_top", max_code(bits))}
    inputs = []
    for site, x in (("q", q), ("k", k), ("v", v)):
        merged = _merged(op, graph, x, heads, width)
        if f"{site}_scale" in scales:
            merged = _clip(op, graph, merged, scales[f"{site}_scale"], clip, f"{name}.{site}")
        inputs.append(merged)
    lowered = op.op(
        attention_name(act, quantize_pv=pv, bounded=bits < 8),
        *inputs,
        mask,
        *scales.values(),
        _domain=DOMAIN,
        _version=VERSION,
        _name=name,
        **attributes,
    )
    lowered.shape, lowered.dtype = inputs[0].shape, ir.DataType.FLOAT
    split = op.Reshape(lowered, target_shape(graph, [0, 0, heads, width]))
    split.shape = ir.Shape([q.shape[0], q.shape[2], heads, width])
    context: ir.Value = op.Transpose(split, perm=[0, 2, 1, 3])
    return context


rules = RewriteRuleSet(
    [
        RewriteRule(_dynamic, _after, _applies, name="lower-attention"),
        RewriteRule(_static_qk, _after, _applies, name="lower-attention-static-qk"),
        RewriteRule(_static, _after, _applies, name="lower-attention-static"),
    ]
)
"""The rule, once for each number of inputs."""
