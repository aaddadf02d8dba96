"""Lower quantised attention to the `ai.qexport` operator of its activation mode.

    before   qexport.QuantAttention(q, k, v, mask[, q_scale, k_scale[, p_scale, v_scale]])
    after    ai.qexport.QuantizedAttention | ...PerTensor | ...Static, and their QK forms

Shapes   q, k, v float32 [B, H, S, D], mask bool [B, 1, 1, S], scales float32 scalars (static only).
Parity   equal integers given equal probabilities; softmax differs between runtimes by float32 rounding.
Names    operator ...PerTensor, ...Static or neither for dynamic-tensor, static, dynamic-token; ...QK when p
         and v are float.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.formats import ACTIVATION_MODES
from qexport.graphs.operators import DOMAIN, attention_name
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.activation import clip_static
from qexport.graphs.rewrites.initializers import floats
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


def _applies(context: Any, y: ir.Value, **values: ir.Value | None) -> MatchResult:
    result = MatchResult()
    node, _name = module_of(y)
    act, clip = node.attributes.get_string("act", ""), node.attributes.get_float("clip", 0.0)
    pv = node.attributes.get_int("quantize_p", 1)
    if act not in ACTIVATION_MODES:
        return result.fail(f"act must be one of {', '.join(ACTIVATION_MODES)}, got '{act}'", node)
    if node.attributes.get_int("a_bits", 8) != 8:
        return result.fail("activations must have 8 bits", node)
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


def _after(
    op: Any, y: ir.Value, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, **values: ir.Value | None
) -> ir.Value:
    node, name = module_of(y)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    act, clip = node.attributes.get_string("act"), node.attributes.get_float("clip", 0.0)
    pv = bool(node.attributes.get_int("quantize_p", 1))
    attributes: dict[str, Any] = {"scaling": node.attributes.get_float("scaling")}
    scales = _stored(values)
    if act == "static":
        q, k = (
            clip_static(op, graph, x, scale, clip, f"{name}.{site[0]}")
            for x, (site, scale) in zip((q, k), scales[:2], strict=True)
        )
        if pv:
            v = clip_static(op, graph, v, scales[3][1], clip, f"{name}.v")
    else:
        attributes["clip"] = clip
    lowered: ir.Value = op.op(
        attention_name(act, quantize_pv=pv),
        q,
        k,
        v,
        mask,
        *(scale for _, scale in scales),
        _domain=DOMAIN,
        _version=1,
        _name=name,
        **attributes,
    )
    return lowered


rules = RewriteRuleSet(
    [
        RewriteRule(_dynamic, _after, _applies, name="lower-attention"),
        RewriteRule(_static_qk, _after, _applies, name="lower-attention-static-qk"),
        RewriteRule(_static, _after, _applies, name="lower-attention-static"),
    ]
)
"""The rule, once for each number of inputs."""
