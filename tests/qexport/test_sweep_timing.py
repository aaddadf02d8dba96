"""Times of a sweep's files: which share a graph, and what goes into the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qexport.graphs.inventory import inspect_file
from qexport.sweep.timing import graph_key, time_files


def _write(folder: Path, *, seed: int, clip: float = 0.5, axes: int = 1, by_row: bool = False) -> Path:
    """A classifier: mean of embeddings, a node with an attribute, a product with a scale or two."""
    rng = np.random.default_rng(seed)
    arrays = {
        "table": rng.standard_normal((20, 4)), "weight": rng.standard_normal((4, 2)),
        "scale": rng.random(2 if by_row else 1),
    }  # fmt: skip
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    constants.append(numpy_helper.from_array(np.array([axes], np.int64), "axes"))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("ReduceMean", ["words", "axes"], ["mean"], keepdims=0),
        helper.make_node("LeakyRelu", ["mean"], ["clipped"], alpha=clip),
        helper.make_node("MatMul", ["clipped", "weight"], ["sums"]),
        helper.make_node("Mul", ["sums", "scale"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "s"])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", 2])
    graph = helper.make_graph(nodes, "g", [ids], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"made": str(seed)})
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    config = {"model_type": "bert", "vocab_size": 20, "max_position_embeddings": 40, "num_labels": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_graph_key_tells_attributes_axes_and_shapes_and_not_weights(tmp_path: Path) -> None:
    first, again = (_write(tmp_path / f"{seed}", seed=seed) for seed in (1, 2))
    assert graph_key(first) == graph_key(again)
    others = [_write(tmp_path / "a", seed=1, clip=0.25), _write(tmp_path / "b", seed=1, axes=-2)]
    sizes = {(one.file_bytes, str(one.operators)) for one in map(inspect_file, [first, others[0]])}
    assert len(sizes) == 1  # of the clip neither the size nor the operators say anything
    others.append(_write(tmp_path / "c", seed=1, by_row=True))
    assert len({graph_key(folder) for folder in [first, *others]}) == 4


def test_files_of_one_graph_share_times_and_others_get_their_own(tmp_path: Path) -> None:
    folders = {
        "plain": _write(tmp_path / "plain", seed=1), "other": _write(tmp_path / "other", seed=2),
        "clipped": _write(tmp_path / "clipped", seed=1, clip=0.25), "gone": tmp_path / "gone",
    }  # fmt: skip
    files = {
        name: ({"name": name, "method": "m", "bits": "2-2-8", "file_bytes": 1000}, folder)
        for name, folder in folders.items()
    }
    said: list[str] = []
    found = dict(time_files(files, lengths=(8,), threads=1, rounds=2, say=said.append))
    measured = {name: latency["measured_on"] for name, latency in found.items()}
    assert measured == {"plain": "plain", "other": "plain", "clipped": "clipped"}
    assert found["other"]["median_ms"] == found["plain"]["median_ms"]
    assert all(latency["median_ms"]["8 tokens, stock"] >= 0 for latency in found.values())
    assert any(line.startswith("not timed: cannot read") and "gone" in line for line in said)
