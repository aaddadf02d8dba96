"""The inventory adds up to the file, names what it sees, and refuses broken files in a sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from rich.console import Console

from qexport.errors import UnsupportedModelError
from qexport.graphs.inventory import Inventory, inspect_file
from qexport.graphs.operators import DOMAIN, OPERATORS, gather_name, matmul_name
from qexport.graphs.operators.single import chain_model
from qexport.graphs.packing import pack

K, N, VOCABULARY = 33, 12, 1200


def codes(shape: tuple[int, int], bits: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    top = 1 if bits <= 2 else 2 ** (bits - 1) - 1
    return ((rng.integers(0, 2, shape) * 2 - 1) * top).astype(np.int8)


def packed_model(bits: int) -> onnx.ModelProto:
    """Embedding, quantiser and matrix product."""
    names = [gather_name(bits), "QuantizePerToken", matmul_name(bits)]
    stored = {
        "bert.embeddings.word_embeddings.weight": pack(codes((VOCABULARY, K), bits), bits),
        "bert.embeddings.word_embeddings.scale": np.ones(VOCABULARY, np.float32),
        "zero": np.array(128, np.uint8),
        "layer.query.weight": pack(codes((N, K), bits), bits),
        "layer.query.scale": np.ones(N, np.float32),
        "layer.query.bias": np.ones(N, np.float32),
    }
    table, table_scale, zero, weight, scale, bias = stored
    nodes = [
        helper.make_node(names[0], ["ids", table, table_scale], ["x"], domain=DOMAIN, K=K),
        helper.make_node(names[1], ["x"], ["q", "s"], domain=DOMAIN, clip=0.0),
        helper.make_node(names[2], ["q", "s", zero, weight, scale, bias], ["Y"], domain=DOMAIN, K=K),
    ]
    model = chain_model(
        nodes,
        [OPERATORS[name] for name in names],
        {"ids": np.zeros((1, 4), np.int64)},
        stored,
        {"Y": np.zeros((1, 4, N), np.float32)},
    )
    helper.set_model_props(model, {"qexport.bits": f"{bits}-{bits}-8"})
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def by_kind(inventory: Inventory) -> dict[str, tuple[str, int, int]]:
    return {row.kind: (row.storage, row.elements, row.n_bytes) for row in inventory.rows}


def float_model() -> onnx.ModelProto:
    """A float graph as PyTorch would export it, with a branch and constants in nodes."""
    rng = np.random.default_rng(0)
    weights = {
        "embeddings.position_embeddings.weight": rng.random((16, 8), np.float32),
        "encoder.weight": rng.random((8, 8), np.float32),
        "encoder.bias": rng.random(8, np.float32),
        "LayerNorm.weight": rng.random(8, np.float32),
        "LayerNorm.bias": rng.random(8, np.float32),
        "classifier.weight": rng.random((2, 8), np.float32),
    }
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((3, 3), np.float32)))],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [3, 3])],
    )
    nodes = [
        helper.make_node("Gather", ["embeddings.position_embeddings.weight", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "encoder.weight"], ["p"]),
        helper.make_node("Add", ["p", "encoder.bias"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "LayerNorm.weight", "LayerNorm.bias"], ["n"]),
        helper.make_node("Gemm", ["n", "classifier.weight"], ["y"], transB=1),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants of nodes as initializers, as `to-onnx --inline` stores them."""
    lifted = ir.serde.deserialize_model(model)
    LiftConstantsToInitializersPass(True, 0)(lifted)
    return ir.serde.serialize_model(lifted)


@pytest.mark.parametrize("inline", ["", "inlined", "lifted"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_file(bits: int, inline: str, tmp_path: Path) -> None:
    model = packed_model(bits)
    if inline:
        model = onnx.inliner.inline_local_functions(model)
    if inline == "lifted":
        model = lift_constants(model)
    inventory = inspect_file(save(model, tmp_path / "model.onnx"))
    assert sum(row.n_bytes for row in inventory.rows) == inventory.file_bytes == inventory.total_bytes
    assert sum(row.share for row in inventory.rows) == pytest.approx(1)
    kinds = by_kind(inventory)
    storage = {
        1: "binary, 8 a byte",
        2: "ternary, 5 trits a byte",
        3: "3 bits, planes of 2+1",
        4: "4 bits, 2 a byte",
        5: "5 bits, planes of 4+1",
        6: "6 bits, planes of 4+2",
        7: "7 bits, planes of 4+2+1",
        8: "uint8" if inline else "int8, zero point 128",
    }[bits]
    width = pack(codes((1, K), bits), bits).shape[1]
    assert kinds["encoder weights"] == (storage, N * K, N * width)
    assert kinds["word embedding"] == (storage, VOCABULARY * K, VOCABULARY * width)
    assert kinds["bias"] == ("float32", N, 4 * N)
    assert ("lookup table" in kinds) == (bits != 8)
    assert inventory.opset == 18 and inventory.ir_version == 8
    assert inventory.metadata == {"qexport.bits": f"{bits}-{bits}-8"}
    assert len(inventory.functions) == (0 if inline else 3)


def test_folder_with_a_model(tmp_path: Path) -> None:
    save(packed_model(2), tmp_path / "model.onnx")
    inventory = inspect_file(tmp_path)
    assert inventory.path == tmp_path / "model.onnx"
    assert inventory.operators == {
        "ai.qexport::QuantizePerToken": 1,
        "ai.qexport::TernaryGather": 1,
        "ai.qexport::TernaryMatMul": 1,
    }


def test_float_file_with_subgraphs(tmp_path: Path) -> None:
    inventory = inspect_file(save(float_model(), tmp_path / "f.onnx"))
    kinds = by_kind(inventory)
    assert kinds["encoder weights"] == ("float32", 64, 256)
    assert kinds["classifier weights"] == ("float32", 16, 64)
    assert kinds["position embedding"] == ("float32", 128, 512)
    assert kinds["LayerNorm"] == ("float32", 16, 64)
    assert kinds["other"] == ("float32", 18, 72)
    assert inventory.operators["Constant"] == 2
    assert sum(row.n_bytes for row in inventory.rows) == inventory.file_bytes


@pytest.mark.parametrize("inline", [False, True])
def test_inputs_of_fused_operators_and_the_pooler_have_their_rows(inline: bool, tmp_path: Path) -> None:
    names = ["AddLayerNormQuantizeLinear", "GeluQuantizeLinear", matmul_name(2)]
    stored = {
        "gain": np.ones(K, np.float32),
        "shift": np.ones(K, np.float32),
        "first": np.array(0.02, np.float32),
        "second": np.array(0.03, np.float32),
        "zero": np.array(128, np.uint8),
        "bert.pooler.dense.weight": pack(codes((N, K), 2), 2),
        "row_scales": np.ones(N, np.float32),
        "offsets": np.ones(N, np.float32),
    }
    product = ["q2", "second", "zero", "bert.pooler.dense.weight", "row_scales", "offsets"]
    norm = ["x", "r", "gain", "shift", "first"]
    nodes = [
        helper.make_node(names[0], norm, ["y", "q"], domain=DOMAIN, epsilon=1e-12),
        helper.make_node(names[1], ["y", "second"], ["q2"], domain=DOMAIN),
        helper.make_node(names[2], product, ["Y"], domain=DOMAIN, K=K),
    ]
    x = np.zeros((1, 4, K), np.float32)
    outputs = {"Y": np.zeros((1, 4, N), np.float32), "q": np.zeros((1, 4, K), np.uint8)}
    model = chain_model(nodes, [OPERATORS[name] for name in names], {"x": x, "r": x}, stored, outputs)
    if inline:
        model = onnx.inliner.inline_local_functions(model)
    found = {row.name: row.kind for row in inspect_file(save(model, tmp_path / "model.onnx")).tensors}
    assert (found["gain"], found["shift"]) == ("LayerNorm", "LayerNorm")
    assert (found["first"], found["second"], found["row_scales"]) == ("scales", "scales", "scales")
    assert found["bert.pooler.dense.weight"] == "pooler weights"
    assert found["offsets"] == "bias"


def test_typed_fields_are_counted(tmp_path: Path) -> None:
    model = float_model()
    first = model.graph.initializer[0]
    values = numpy_helper.to_array(first).ravel().tolist()
    name, dims = first.name, list(first.dims)
    first.CopyFrom(helper.make_tensor(name, TensorProto.FLOAT, dims, values))
    inventory = inspect_file(save(model, tmp_path / "f.onnx"))
    assert by_kind(inventory)["position embedding"][2] == pytest.approx(512, abs=8)


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "f.onnx"
    onnx.save(
        float_model(),
        path,
        save_as_external_data=True,
        location="f.data",
        size_threshold=200,
        convert_attribute=False,
    )
    inventory = inspect_file(path)
    assert inventory.external_bytes == 256 + 512
    assert inventory.total_bytes == path.stat().st_size + 768
    assert sum(row.n_bytes for row in inventory.rows) == inventory.total_bytes
    assert {row.where for row in inventory.tensors} == {"graph", "f.data"}
    data = tmp_path / "f.data"
    data.write_bytes(data.read_bytes()[:700])
    with pytest.raises(UnsupportedModelError, match=r"bytes of the file f\.data, which has 700 bytes"):
        inspect_file(path)
    data.unlink()
    with pytest.raises(UnsupportedModelError, match="which is not there"):
        inspect_file(path)


@pytest.mark.parametrize("location", ["../f.data", "/etc/hostname", ""])
def test_external_data_must_lie_beside_the_model(tmp_path: Path, location: str) -> None:
    model = float_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(UnsupportedModelError, match="in a file beside the model"):
        inspect_file(save(model, tmp_path / "f.onnx"))


def test_broken_external_reference(tmp_path: Path) -> None:
    model = float_model()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="f.data")
    tensor.external_data.add(key="length", value="many")
    with pytest.raises(UnsupportedModelError, match="broken reference"):
        inspect_file(save(model, tmp_path / "f.onnx"))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_file_cut_short(tmp_path: Path, part: float) -> None:
    data = packed_model(2).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UnsupportedModelError, match=r"cut\.onnx is not") as caught:
        inspect_file(path)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"not a model at all", b"\x00" * 64, b"PK\x03\x04", b"\x08\x08", b'{"a": 1}']
)
def test_not_onnx(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(data)
    with pytest.raises(UnsupportedModelError, match="is not"):
        inspect_file(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="No such file"):
        inspect_file(tmp_path / "absent.onnx")
    with pytest.raises(UnsupportedModelError, match="No such file"):
        inspect_file(tmp_path)


def test_json_and_tables(tmp_path: Path) -> None:
    inventory = inspect_file(save(packed_model(2), tmp_path / "model.onnx"))
    plain = json.loads(json.dumps(inventory.to_json()))
    assert "tensors" not in plain and plain["total_bytes"] == inventory.file_bytes
    assert plain["rows"][0]["kind"] == "encoder weights"
    listed = json.loads(json.dumps(inventory.to_json(tensors=True)))["tensors"]
    assert len(listed) == len(inventory.tensors)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(inventory.table())
    console.print(inventory.tensor_table())
    text = console.export_text()
    assert "ternary, 5 trits a byte" in text
    assert "layer.query.weight" in text
    assert f"{inventory.file_bytes:,}" in text
