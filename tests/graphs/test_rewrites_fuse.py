"""The rules that fuse GELU and LayerNorm with the quantisation that follows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from qexport.graphs.config import Target
from qexport.graphs.pipeline import finish, layer_norm_outputs
from qexport.graphs.rewrites import fuse_gelu, fuse_layer_norm, lower_exact

SCALE = np.float32(0.02)
LIMIT = np.float32(127) * SCALE


def quantised(act: str, y: str = "y", q: str = "q") -> str:
    """The nodes that quantise `y` to `q`."""
    if act == "dynamic-token":
        return f"{q}, scale_of_{q} = ai.qexport.QuantizePerToken<clip = 2.5>({y})"
    return f"bounded_{q} = Clip({y}, low, high)\n {q} = QuantizeLinear(bounded_{q}, scale, zero)"


def stored(act: str, limit: float = LIMIT, zero: int = 128) -> str:
    """The initializers that those nodes read."""
    if act == "dynamic-token":
        return ""
    limits = f"float low = {{{-limit:.9g}}}, float high = {{{limit:.9g}}}"
    return f", {limits}, float scale = {{{SCALE:.9g}}}, uint8 zero = {{{zero}}}"


def parse(text: str) -> ir.Model:
    header = '<ir_version: 8, opset_import: ["": 18, "ai.qexport": 2, "qexport": 1]>\n'
    return ir.serde.deserialize_model(onnx.parser.parse_model(header + text))


def gelu(act: str, *, extra: str = "", limit: float = LIMIT, zero: int = 128) -> ir.Model:
    outputs = "uint8[batch, sequence, 4] q" + (", float[batch, sequence, 4] twice" if extra else "")
    return parse(f"""
g (float[batch, sequence, 4] x) => ({outputs})
<float unused = {{1.0}}{stored(act, limit, zero)}> {{
    y = qexport.Gelu(x)
    {quantised(act)}
    {extra}
}}""")


def norm(
    act: str,
    *,
    add: str = "Add(x, r)",
    rows: str = "batch",
    extra: str = "",
    limit: float = LIMIT,
    shift: str = "float[4] shift = {0.1, 0.2, 0.3, 0.4}",
) -> ir.Model:
    """y is read by its quantiser and by the next residual."""
    outputs = "uint8[batch, sequence, 4] q, float[batch, sequence, 4] next"
    outputs += ", float[batch, sequence, 4] twice" if extra else ""
    return parse(
        f"""
g (float[batch, sequence, 4] x, float[{rows}, sequence, 4] r) => ({outputs})
<float[4] gain = {{1.0, 2.0, 3.0, 4.0}}, {shift}{stored(act, limit)}> {{
    z = {add}
    y = qexport.LayerNorm<epsilon = 0.001>(z, gain, shift)
    next = Add(x, y)
    {quantised(act)}
    {extra}
}}""".replace("norm.weight", "gain")
    )


def feeds_of(model: ir.Model, rows: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 5, 4), "r": (rows, 5, 4)}
    return {
        str(value.name): rng.normal(size=shapes[str(value.name)]).astype(np.float32)
        for value in model.graph.inputs
    }


def run(model: ir.Model, feeds: dict[str, np.ndarray], *, optimise: bool = False) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = finish(model.clone(), Target(), {}, "test")
    return list(onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds))


def run_apart(model: ir.Model, feeds: dict[str, np.ndarray], *, optimise: bool = False) -> list[np.ndarray]:
    """What the model gives when nothing is fused."""
    apart = model.clone()
    assert lower_exact.rules.apply_to_model(apart)
    return run(apart, feeds, optimise=optimise)


def kinds(model: ir.Model) -> list[str]:
    return [item.op_type for item in model.graph]


FORMS = {"dynamic-token": "PerToken", "static": "Linear"}


@pytest.mark.parametrize(("act", "form"), FORMS.items())
def test_fuse_gelu_keeps_every_bit(act: str, form: str) -> None:
    model = gelu(act)
    feeds = feeds_of(model)
    before = [run_apart(model, feeds, optimise=level) for level in (False, True)]
    assert fuse_gelu.rules.apply_to_model(model) == 1
    assert kinds(model) == [f"GeluQuantize{form}"]
    for level in (False, True):
        np.testing.assert_array_equal(run(model, feeds, optimise=level)[0], before[level][0])
    assert fuse_gelu.rules.apply_to_model(model) == 0


@pytest.mark.parametrize(
    "model",
    [
        gelu("dynamic-token", extra="twice = Add(y, y)"),
        gelu("static", limit=100 * SCALE),
        gelu("static", limit=7 * SCALE),
        gelu("static", zero=127),
    ],
    ids=["another reader", "a tighter limit", "four bits", "another zero point"],
)
def test_fuse_gelu_leaves_a_near_miss_alone(model: ir.Model) -> None:
    assert fuse_gelu.rules.apply_to_model(model) == 0


@pytest.mark.parametrize("add", ["Add(x, r)", "Add(r, x)"])
@pytest.mark.parametrize("rows", ["batch", "1"])
@pytest.mark.parametrize(("act", "form"), FORMS.items())
def test_fuse_layer_norm_keeps_every_bit_and_rewires_all_readers(
    act: str, form: str, rows: str, add: str
) -> None:
    model = norm(act, rows=rows, add=add)
    feeds = feeds_of(model, 2 if rows == "batch" else 1)
    before = [run_apart(model, feeds, optimise=level) for level in (False, True)]
    assert fuse_layer_norm.rules.apply_to_model(model) == 1
    assert kinds(model) == [f"AddLayerNormQuantize{form}", "Add"]
    fused = model.graph[0]
    if rows == "1":  # what is broadcast is the residual, whichever term it was
        assert [value.name for value in fused.inputs[:2] if value] == ["x", "r"]
    assert fused.outputs[0].name == "y"
    assert fused.attributes.get_float("epsilon") == pytest.approx(0.001)
    for level in (False, True):
        for found, expected in zip(run(model, feeds, optimise=level), before[level], strict=True):
            np.testing.assert_array_equal(found, expected)
    assert fuse_layer_norm.rules.apply_to_model(model) == 0


@pytest.mark.parametrize(
    "model",
    [
        norm("dynamic-token", rows="other"),
        norm("dynamic-token", extra="twice = Add(z, z)"),
        norm("dynamic-token", add="Mul(x, r)"),
        norm("dynamic-token", shift="float[1] shift = {0.1}"),
        norm("static", limit=100 * SCALE),
        norm("static", limit=7 * SCALE),
    ],
    ids=[
        "rows that may not fit",
        "another reader of the sum",
        "a product",
        "a scalar shift",
        "a tighter limit",
        "four bits",
    ],
)
def test_fuse_layer_norm_leaves_a_near_miss_alone(model: ir.Model) -> None:
    assert fuse_layer_norm.rules.apply_to_model(model) == 0


@pytest.mark.parametrize("act", FORMS)
def test_two_layers_each_get_their_own_codes(act: str) -> None:
    """The quantiser of one LayerNorm is never taken for that of another."""
    model = parse(f"""
g (float[batch, sequence, 4] x, float[batch, sequence, 4] r)
    => (uint8[batch, sequence, 4] q, uint8[batch, sequence, 4] q2)
<float[4] gain = {{1.0, 2.0, 3.0, 4.0}}, float[4] shift = {{0.1, 0.2, 0.3, 0.4}}{stored(act)}> {{
    z = Add(x, r)
    y = qexport.LayerNorm<epsilon = 0.001>(z, gain, shift)
    z2 = Add(y, r)
    y2 = qexport.LayerNorm<epsilon = 0.001>(z2, gain, shift)
    {quantised(act, "y2", "q2")}
    {quantised(act)}
}}""")
    for item in model.graph:
        if item.op_type == "LayerNorm":
            item.outputs[0].shape = ir.Shape(["batch", "sequence", 4])
    feeds = feeds_of(model)
    before = run_apart(model, feeds)
    assert fuse_layer_norm.rules.apply_to_model(model) == 2
    for found, expected in zip(run(model, feeds), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fuse", [lower_exact.rules.apply_to_model, fuse_layer_norm.rules.apply_to_model])
def test_layer_norm_outputs_are_found_fused_or_not(fuse: Callable[[ir.Model], int]) -> None:
    model = norm("dynamic-token")
    gain = model.graph.initializers["gain"]
    gain.name = "layer.0.norm.weight"
    fuse(model)
    entries = layer_norm_outputs(ir.serde.serialize_model(model))
    assert entries == [{"module": "layer.0.norm", "value": "y"}]
