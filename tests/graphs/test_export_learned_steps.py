"""Students with learned steps, exported: storage, nodes, and the integers of PyTorch, at every width."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_students import save_student

from qexport.errors import UnsupportedModelError
from qexport.formats import max_code, parse_bits
from qexport.graphs import folder as folders
from qexport.graphs.config import ExportConfig
from qexport.graphs.export import to_onnx
from qexport.graphs.operators import matmul_name
from qexport.training.config import TrainConfig
from qexport.training.models import load
from qexport.training.recipes import get_recipe
from qexport.training.student import QuantLinear

pytestmark = pytest.mark.usefixtures("trace_once")

LAYERS = 2


def student(folder: Path, method: str, bits: str, family: str = "bert", **options: Any) -> Path:
    """A student as a method makes it, its steps initialised, not trained."""
    run = TrainConfig(method=method, output=Path("x"), task="x", bits=bits, **options)
    quant = get_recipe(method).quant_config(run)
    assert quant is not None
    torch.set_num_threads(1)
    return save_student(folder, family, **dataclasses.asdict(quant))


def feeds_of(names: set[str], rows: int = 5, length: int = 17) -> dict[str, np.ndarray]:
    """Random ids, padded at the end."""
    rng = np.random.default_rng(3)
    mask = np.ones((rows, length), np.int64)
    for row in range(1, rows):
        mask[row, rng.integers(1, length + 1) :] = 0
    ids = np.where(mask == 1, rng.integers(4, 20, (rows, length)), 0).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: array for name, array in feeds.items() if name in names}


def run_file(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], extra: list[str], *, optimise: bool
) -> list[np.ndarray]:
    """Logits, then the values named `extra`, which are codes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in extra
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return [np.asarray(value) for value in session.run(None, feeds)]


def torch_codes(source: Path, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits, and the codes that each quantised linear layer multiplies, as the file stores them."""
    model, seen = load(source), dict[str, np.ndarray]()

    def keep(name: str, layer: QuantLinear, args: tuple[torch.Tensor, ...]) -> None:
        assert layer.activation is not None
        seen[name] = (layer.activation.codes(args[0])[0] + 128).numpy().astype(np.int16)

    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            module.register_forward_pre_hook(lambda layer, args, name=name: keep(name, layer, args))
    with torch.no_grad():
        logits = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits
    return logits.numpy(), seen


@pytest.mark.parametrize(
    ("method", "bits", "family"),
    [
        ("kdlsq", "2-2-8", "bert"),
        ("lsq", "4-4-4", "distilbert"),
        ("kdlsq", "2-2-2", "roberta"),
        ("kdlsq", "8-8-8", "electra"),
        pytest.param("lsq", "4-4-8", "roberta", marks=pytest.mark.slow),
        pytest.param("lsq-kd", "6-6-8", "distilbert", marks=pytest.mark.slow),
        pytest.param("kdlsq", "2-2-4", "bert", marks=pytest.mark.slow),
        pytest.param("lsq-kd", "4-4-2", "bert", marks=pytest.mark.slow),
        pytest.param("kdlsq", "4-4-6", "electra", marks=pytest.mark.slow),
        pytest.param("kdlsq", "3-5-7", "bert", marks=pytest.mark.slow),
    ],
)
def test_exported_student_computes_the_integers_of_pytorch(
    method: str, bits: str, family: str, tmp_path: Path
) -> None:
    source = student(tmp_path / "student", method, bits, family)
    result = to_onnx(ExportConfig(model=source, output=tmp_path / "out"))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    width = parse_bits(bits)
    top = max_code(width.activation)
    manifest = folders.read_manifest(tmp_path / "out")
    assert (manifest["method"], manifest["bits"]) == (method, bits)
    assert result.parity is not None and result.parity.max_abs_difference < 2e-6

    products = {node.name: node for node in model.graph.node if node.op_type == matmul_name(width.weight)}
    feeds = feeds_of({value.name for value in model.graph.input})
    logits, codes = torch_codes(source, feeds)
    assert set(products) == set(codes)
    for optimise in (False, True):
        found, *multiplied = run_file(
            model, feeds, [node.input[0] for node in products.values()], optimise=optimise
        )
        np.testing.assert_allclose(found, logits, rtol=0, atol=2e-6)
        for name, array in zip(products, multiplied, strict=True):
            assert 128 - top <= array.min() and array.max() <= 128 + top, name
            rows = codes[name][:, : array.shape[1]]  # of the last layer only the first token
            np.testing.assert_array_equal(array, rows, err_msg=name)

    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["QuantizedAttentionStatic" + ("" if width.activation == 8 else "Bounded")] == LAYERS
    if width.activation == 8:
        assert counts["GeluQuantizeLinear"] == LAYERS and counts["AddLayerNormQuantizeLinear"] == 2 * LAYERS
    else:  # what is fused bounds codes to 1..255
        assert not any(op_type.startswith(("GeluQuantize", "AddLayerNorm")) for op_type in counts)
        assert (counts["Gelu"], counts["LayerNorm"]) == (LAYERS, 2 * LAYERS + 1)
        assert counts["QuantizeLinear"] == counts["Clip"] >= 4 * LAYERS
    if family == "bert":  # one quantisation for the three projections of a layer
        assert len({node.input[0] for node in products.values()}) == 4 * LAYERS + 1
        for layer in range(LAYERS):
            names = (
                f"bert.encoder.layer.{layer}.attention.self.{part}" for part in ("query", "key", "value")
            )
            assert len({products[name].input[0] for name in names}) == 1


@pytest.mark.parametrize(
    ("method", "bits", "family", "options"),
    [
        ("kdlsq", "2-2-4", "bert", {"asymmetric": "feed-forward"}),
        ("lsq", "4-4-8", "distilbert", {"asymmetric": "all"}),
        ("q8bert", "8-8-8", "electra", {"asymmetric": "all", "activations": "static"}),
        (
            "ternarybert",
            "2-2-8",
            "roberta",
            {"asymmetric": "all", "activations": "dynamic-tensor", "activation_clip": 2.5},
        ),
    ],
)
def test_asymmetric_activations_are_multiplied_with_their_zero_points(
    method: str, bits: str, family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    source = student(tmp_path / "student", method, bits, family, **options)
    to_onnx(ExportConfig(model=source, output=tmp_path / "out"))
    stated = json.loads((tmp_path / "out" / "ort_config.json").read_text())
    assert stated["quantization"]["activations_symmetric"] is False
    model = onnx.load(tmp_path / "out" / "model.onnx")
    width = parse_bits(bits)
    feeds = feeds_of({value.name for value in model.graph.input})
    logits, codes = torch_codes(source, feeds)
    pytorch, zeros = load(source), dict[str, int]()
    for name, layer in pytorch.named_modules():
        if isinstance(layer, QuantLinear) and hasattr(layer.activation, "stored_zero"):
            zeros[name] = (
                -1 if options.get("activations") == "dynamic-tensor" else layer.activation.stored_zero()
            )
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = {node.name: node for node in model.graph.node if node.op_type == matmul_name(width.weight)}
    for name, node in products.items():
        zero = zeros.get(name, 128)
        assert zero == -1 or stored[node.input[2]] == zero, name
    seen = set(zeros.values())
    assert seen == {-1} or (len(zeros) > 1 and 128 not in seen)

    extra = [name for node in products.values() for name in (node.input[0], node.input[2])]
    for optimise in (False, True):
        run = [name for name in extra if name not in stored]
        found, *values = run_file(model, feeds, run, optimise=optimise)
        np.testing.assert_allclose(found, logits, rtol=0, atol=2e-6)
        known = {**stored, **dict(zip(run, values, strict=True))}
        for name, node in products.items():
            array, zero = known[node.input[0]], known[node.input[2]]
            centred = codes[name][:, : array.shape[1]] - 128
            np.testing.assert_array_equal(array.astype(np.int16) - np.int16(zero), centred, err_msg=name)
            assert name not in zeros or array.max() < 1 << width.activation


def test_as_published_and_inlined_files_compute_the_same(tmp_path: Path) -> None:
    source = student(tmp_path / "student", "kdlsq", "4-2-4", as_published=True)
    for name, options in (("function", {}), ("inline", {"inline": True})):
        result = to_onnx(ExportConfig(model=source, output=tmp_path / name, **options))
        assert result.parity is not None and result.parity.max_abs_difference < 2e-6
    files = [onnx.load(tmp_path / name / "model.onnx") for name in ("function", "inline")]
    feeds = feeds_of({value.name for value in files[0].graph.input})
    found = [run_file(model, feeds, [], optimise=False)[0] for model in files]
    np.testing.assert_array_equal(*found)
    stored = {tensor.name: tensor for tensor in files[0].graph.initializer}
    assert list(stored["bert.encoder.layer.0.output.dense.scale"].dims) == [1]
    assert list(stored["bert.embeddings.word_embeddings.scale"].dims) == [1]
    limit = next(node for node in files[0].graph.node if node.op_type == "QuantizedAttentionStaticBounded")
    assert {item.name: item.i for item in limit.attribute if item.name.endswith("top")} == {
        "top": 7,
        "p_top": 7,
    }


def test_export_refuses_thresholds_that_were_never_set(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "activations": "static",
        "learned_activations": True,
        "weight_quantizer": "lsq",
    }
    source = save_student(tmp_path / "student", calibrate=False, bits="4-4-4", **options)
    with pytest.raises(UnsupportedModelError, match="greater than 0"):
        to_onnx(ExportConfig(model=source, output=tmp_path / "out", check=False))
