"""Target openvino: the inlined file on another engine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from required import missing
from small_batch import BATCH

from qexport.errors import MissingToolError, UnsupportedModelError
from qexport.graphs.operators import OPERATORS
from qexport.graphs.operators.single import operator_model
from qexport.graphs.packing import pack
from qexport.graphs.pipeline import inline_functions
from qexport.serving.session import Session
from qexport.serving.targets import get_target
from qexport.serving.targets.openvino import keep_divisions


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.serving.targets.openvino.find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r'run: pip install "qexport\[bench\]"'):
        get_target("openvino").check()


def require_openvino() -> None:
    if find_spec("openvino") is None:
        missing("openvino is not installed: pip install -e '.[bench]'")


def test_openvino_gives_the_logits_of_onnxruntime(ternary_folder: Path, tmp_path: Path) -> None:
    require_openvino()
    file = ternary_folder / "model.onnx"
    place = get_target("openvino").start(lambda line: None)
    runner = place.open(file, mode="openvino", threads=1)
    np.testing.assert_allclose(runner.run(BATCH)["logits"], Session(file).run(BATCH)["logits"], atol=1e-5)
    assert "openvino" in place.facts().versions
    (tmp_path / "model.onnx").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UnsupportedModelError, match="is no ONNX file"):
        place.open(tmp_path / "model.onnx", mode="openvino", threads=1)


RNG = np.random.default_rng(0)
TOKENS, WIDTH = 12, 48
X, Q, K, V = (3 * RNG.normal(size=(2, TOKENS, WIDTH)).astype(np.float32) for _ in range(4))
GAMMA, BETA = (RNG.normal(size=WIDTH).astype(np.float32) for _ in range(2))
MASK = np.arange(TOKENS).reshape(1, 1, 1, -1) < np.array([TOKENS, 7]).reshape(-1, 1, 1, 1)
CODES = [
    RNG.integers(1, 256, (2, TOKENS, WIDTH)).astype(np.uint8),
    RNG.random((2, TOKENS, 1), np.float32),
    np.array(128, np.uint8),
    pack(RNG.integers(-1, 2, (24, WIDTH)).astype(np.int8), 2),
    RNG.random(24, np.float32),
    RNG.normal(size=24).astype(np.float32),
]
NORM = {"epsilon": 1e-12}
HEADS = {"num_heads": 4, "scaling": 12**-0.5}


@pytest.mark.parametrize(
    ("name", "inputs", "attributes", "stored"),
    [
        ("TernaryMatMul", CODES, {"K": WIDTH}, ("a_zero_point", "B", "b_scale", "bias")),
        ("QuantizePerToken", [X], {"clip": 0.0}, ()),
        ("QuantizePerToken", [X], {"clip": 2.5}, ()),
        ("Gelu", [X], {}, ()),
        ("GeluQuantizePerToken", [X], {"clip": 0.0}, ()),
        ("LayerNorm", [X, GAMMA, BETA], NORM, ("gamma", "beta")),
        ("AddLayerNormQuantizePerToken", [X, Q, GAMMA, BETA], NORM | {"clip": 0.0}, ("gamma", "beta")),
        ("QuantizedAttention", [Q, K, V, MASK], HEADS | {"clip": 0.0}, ()),
    ],
)
def test_operators_with_a_scale_a_token_have_the_bits_of_their_definition(
    name: str, inputs: list[np.ndarray], attributes: dict[str, float], stored: tuple[str, ...]
) -> None:
    """Scalar scales are another matter: OpenVINO makes one operator of its own of QuantizeLinear by them."""
    require_openvino()
    import openvino

    operator = OPERATORS[name]
    graph = inline_functions(operator_model(OPERATORS, name, inputs, attributes, constants=stored))
    network = openvino.Core().read_model(graph.SerializeToString())
    assert keep_divisions(network) > 0 or name in ("TernaryMatMul", "Gelu")
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feeds = {key: value for key, value in zip(operator.inputs, inputs, strict=True) if key not in stored}
    found = compiled(feeds)
    expected = operator.reference(*inputs, **attributes)
    for output, value in zip(compiled.outputs, expected, strict=True):
        np.testing.assert_array_equal(found[output], value)
