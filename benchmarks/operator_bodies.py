"""Time alternative bodies of the operators on stock ONNX Runtime, one thread.

    python benchmarks/operator_bodies.py [--repeats 60] [--tokens 128]

All bodies of a table run in turn, round after round, so that a busy machine slows them all alike. The table
shows the median and the quartiles of the time of one call in microseconds, and the largest difference from
the numpy reference. docs/decisions/operator-bodies.md says what was decided from it.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qexport.graphs.operators import OPERATORS, ZERO_POINT
from qexport.graphs.operators.body import Body
from qexport.graphs.operators.quantize import codes_by_row, codes_per_tensor, codes_per_token, scale_of
from qexport.graphs.operators.single import operator_model

Arrays = dict[str, np.ndarray[Any, Any]]


class UnclippedBody(Body):
    """A body outside a function: its attributes are 0."""

    def number(self, name: str) -> str:
        return self.constant(0, np.float32)


def session(model: onnx.ModelProto, *, fuse: bool = True) -> ort.InferenceSession:
    """One thread, all optimisations, or all but the fusion of an integer product with its scales."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    disabled = [] if fuse else ["MatMulIntegerToFloatFusion"]
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


def body_model(write: Callable[[Body], None], inputs: Arrays, outputs: dict[str, int], stored: Arrays) -> Any:
    """A model whose graph is a body."""
    body = UnclippedBody(18)
    write(body)
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        body.nodes,
        "body",
        [helper.make_tensor_value_info(n, kind(a.dtype), [None] * a.ndim) for n, a in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def compare(
    title: str, sessions: dict[str, ort.InferenceSession], feed: Arrays, expected: Any, repeats: int
) -> None:
    """Run all in turn and print the table."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        for name, one in sessions.items():
            start = time.perf_counter()
            one.run(None, feed)
            times[name].append(1e6 * (time.perf_counter() - start))
    print(f"\n{title}\n{'body':44s} {'median':>8s} {'25 %':>8s} {'75 %':>8s}  difference")
    for name, values in times.items():
        low, middle, high = np.percentile(values, [25, 50, 75])
        found = sessions[name].run(None, feed)[0].astype(np.float64)
        print(f"{name:44s} {middle:8.0f} {low:8.0f} {high:8.0f}  {np.abs(found - expected).max():.2g}")


def finish(body: Body, codes: str, scale: str) -> None:
    """Name the outputs of a quantiser."""
    body.node("Identity", codes, output="q")
    body.node("Identity", scale, output="scale")


def abs_then_max(body: Body) -> None:
    largest = body.reduce("ReduceMax", body.node("Abs", "x"), [-1], keepdims=False)
    scale = scale_of(body, largest, clip=True)
    codes = codes_by_row(body, body.node("Flatten", "x", axis=-1), scale, ZERO_POINT, np.uint8)
    bounded = body.node("Clip", codes, body.constant(1, np.uint8))
    finish(body, body.node("Reshape", bounded, body.node("Shape", "x")), scale)


def without_bound(body: Body) -> None:
    scale = scale_of(body, body.largest_magnitude("x", [-1], keepdims=False), clip=True)
    codes = codes_by_row(body, body.node("Flatten", "x", axis=-1), scale, ZERO_POINT, np.uint8)
    finish(body, body.node("Reshape", codes, body.node("Shape", "x")), scale)


def trailing_axis(body: Body) -> None:
    scale = scale_of(body, body.largest_magnitude("x", [-1], keepdims=True), clip=True)
    codes = codes_by_row(body, body.node("Flatten", "x", axis=-1), scale, ZERO_POINT, np.uint8)
    bounded = body.node("Clip", codes, body.constant(1, np.uint8))
    finish(body, body.node("Reshape", bounded, body.node("Shape", "x")), scale)


def elementwise(body: Body) -> None:
    scale = scale_of(body, body.largest_magnitude("x", [-1], keepdims=True), clip=True)
    rounded = body.node("Round", body.node("Div", "x", scale))
    shifted = body.node("Add", rounded, body.constant(ZERO_POINT, np.float32))
    finish(body, body.node("Cast", shifted, to=TensorProto.UINT8), scale)


def divide_then_quantize(body: Body) -> None:
    scale = scale_of(body, body.largest_magnitude("x", [-1], keepdims=True), clip=True)
    one, zero = body.constant(1, np.float32), body.constant(ZERO_POINT, np.uint8)
    finish(body, body.node("QuantizeLinear", body.node("Div", "x", scale), one, zero), scale)


def quantizers(rng: np.random.Generator, repeats: int, tokens: int) -> None:
    """Bodies of QuantizePerToken; the first is the one that is used."""
    bodies = {
        "used": lambda body: finish(body, *codes_per_token(body, "x")),
        "Abs, then ReduceMax": abs_then_max,
        "no lower bound on codes": without_bound,
        "scale with a trailing axis": trailing_axis,
        "Div, Round, Add, Cast": elementwise,
        "Div, QuantizeLinear with scale 1": divide_then_quantize,
        "(QuantizePerTensor)": lambda body: finish(body, *codes_per_tensor(body, "x")),
    }
    outputs = {"q": int(TensorProto.UINT8), "scale": int(TensorProto.FLOAT)}
    for shape in ((1, tokens, 384), (1, tokens, 768), (1, tokens, 1536), (1, 12, tokens, 64)):
        x = rng.normal(size=shape).astype(np.float32)
        sessions = {name: session(body_model(write, {"x": x}, outputs, {})) for name, write in bodies.items()}
        expected = OPERATORS["QuantizePerToken"].reference(x, clip=0.0)[0].astype(np.float64)
        compare(f"QuantizePerToken {list(shape)}", sessions, {"x": x}, expected, repeats)


def products(rng: np.random.Generator, repeats: int, tokens: int) -> None:
    """What follows the integer product, with a scale for each token and with one scale."""
    for k, n in ((384, 384), (384, 1536), (768, 768)):
        a = rng.integers(1, 256, (1, tokens, k)).astype(np.uint8)
        stored = {
            "W": rng.integers(-1, 2, (k, n)).astype(np.int8),
            "s": rng.random(n, np.float32),
            "b": rng.random(n, np.float32),
            "minus_b": np.zeros(n, np.float32),
            "z": np.array(ZERO_POINT, np.uint8),
        }
        stored["minus_b"] = -stored["b"]
        wide = stored | {
            "W": (stored["W"].astype(np.int16) + 128).astype(np.uint8),
            "wz": np.array(128, np.uint8),
        }
        for label, scale in (
            ("a scale for each token", rng.random((1, tokens, 1), np.float32)),
            ("one scale", np.array(0.02, np.float32)),
        ):
            feed = {"A": a, "a": scale}
            exact = (a.astype(np.int64) - 128) @ stored["W"].astype(np.int64)
            expected = (exact.astype(np.float32) * stored["s"] * scale + stored["b"]).astype(np.float64)

            def build(
                tail: str,
                feed: Arrays = feed,
                stored: Arrays = stored,
                *,
                wide: bool = False,
                fuse: bool = True,
            ) -> ort.InferenceSession:
                def write(body: Body) -> None:
                    acc = body.node("MatMulInteger", "A", "W", "z", *(["wz"] if wide else []))
                    real = body.node("Cast", acc, to=TensorProto.FLOAT)
                    if tail == "in turn":
                        product = body.node("Mul", body.node("Mul", real, "s"), "a")
                    else:
                        product = body.node("Mul", real, body.node("Mul", "a", "s"))
                    if tail == "Add":
                        body.node("Add", product, "b", output="Y")
                    else:
                        body.node("Sub", product, "minus_b", output="Y")

                return session(body_model(write, feed, {"Y": int(TensorProto.FLOAT)}, stored), fuse=fuse)

            sessions = {
                "used: Mul by b, Mul by a, Sub": build("in turn"),
                "Mul by a * b, Sub, fused": build("Sub"),
                "Mul by a * b, Sub, fusion disabled": build("Sub", fuse=False),
                "Mul by a * b, Add, fused (wrong with tokens)": build("Add"),
                "Mul by a * b, Sub, fused, weight uint8": build("Sub", stored=wide, wide=True),
            }
            compare(f"{tokens} x {k} x {n}, {label}", sessions, feed, expected, repeats)


def attention(rng: np.random.Generator, repeats: int, tokens: int) -> None:
    """The variants of attention, BERT-base, one sentence."""
    q, k, v = (rng.normal(size=(1, tokens, 12 * 64)).astype(np.float32) for _ in range(3))
    mask = np.ones((1, 1, 1, tokens), bool)
    mask[..., 3 * tokens // 4 :] = False
    for name in (name for name in OPERATORS if name.startswith("QuantizedAttention")):
        inputs = [q, k, v, mask]
        attributes: dict[str, int | float] = {"num_heads": 12, "scaling": 0.125}
        if "Static" in name:
            scales = (0.03, 0.03) if name.endswith("QK") else (0.03, 0.03, 1 / 127, 0.03)
            inputs += [np.array(scale, np.float32) for scale in scales]
        else:
            attributes["clip"] = 0.0
        if name.endswith("Bounded"):
            attributes |= {"top": 127, "p_top": 127}
        feed = dict(zip(OPERATORS[name].inputs, inputs, strict=True))
        expected = OPERATORS[name].reference(*inputs, **attributes)[0].astype(np.float64)
        one = session(operator_model(OPERATORS, name, inputs, attributes))
        compare(f"{name} [1, {tokens}, 12 * 64]", {"used": one}, feed, expected, repeats)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=60, help="calls of each body (default 60)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the one sentence (default 128)")
    options = parser.parse_args()
    print(f"onnxruntime {ort.__version__}, {platform.machine()}, {platform.python_implementation()}")
    rng = np.random.default_rng(0)
    for table in (quantizers, products, attention):
        table(rng, options.repeats, options.tokens)


if __name__ == "__main__":
    main()
