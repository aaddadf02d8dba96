from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_ir import run_reference
from onnx import numpy_helper
from tiny_models import save_model, tiny_tokenizer
from tiny_students import save_float, save_student

from qexport.digests import file_sha256
from qexport.errors import OutputExistsError, UnsupportedModelError
from qexport.graphs import export as export_module
from qexport.graphs import folder as folders
from qexport.graphs.config import ExportConfig
from qexport.graphs.export import ExportResult, export_graph, to_onnx
from qexport.training.models import load
from qexport.training.student import quantized_modules

pytestmark = pytest.mark.usefixtures("trace_once")

CASES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "bert-dynamic-token": ("bert", {}),
    "roberta-tensor-clip": ("roberta", {"activations": "dynamic-tensor", "granularity": "matrix",
                                        "embedding_granularity": "matrix", "activation_clip": 2.5,
                                        "position_bits": 32}),
    "distilbert-q8bert": ("distilbert", {"bits": "8-8-8", "activations": "static", "granularity": "matrix",
                                         "quantize_probabilities": False, "quantize_values": False,
                                         "quantize_head": True}),
    "electra-weight-only": ("electra", {"bits": "4-5-32"}),
    "bert-fp32": ("bert", None),
}  # fmt: skip


@dataclass
class Exported:
    name: str
    source: Path
    result: ExportResult
    model: onnx.ModelProto

    @property
    def path(self) -> Path:
        return self.result.output / "model.onnx"


@pytest.fixture(scope="module")
def exported_as(tmp_path_factory: pytest.TempPathFactory, trace_once: None) -> Callable[[str], Exported]:
    """Export a case, once."""
    torch.set_num_threads(1)
    done: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            model_type, quantization = CASES[name]
            if quantization is None:
                source = save_float(root / "model", model_type)
            else:
                source = save_student(root / "model", model_type, **quantization)
            result = to_onnx(ExportConfig(model=source, output=root / "out"))
            done[name] = Exported(name, source, result, onnx.load(root / "out" / "model.onnx"))
        return done[name]

    return get


@pytest.fixture(params=list(CASES))
def exported(request: pytest.FixtureRequest, exported_as: Callable[[str], Exported]) -> Exported:
    return exported_as(request.param)


def feeds_of(model: onnx.ModelProto, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ids, padded at the end; the last row of a batch is padding only."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    for row in range(1, batch):
        mask[row, rng.integers(1, length + 1) :] = 0
    if batch > 1:
        mask[-1] = 0
    feeds = {
        "input_ids": np.where(mask == 1, rng.integers(4, 20, (batch, length)), 0),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch, length)) * mask,
    }
    names = {value.name for value in model.graph.input}
    return {name: array.astype(np.int64) for name, array in feeds.items() if name in names}


def session_of(
    path: Path, extra: tuple[str, ...] = (), *, optimise: bool = True
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = onnx.load(path)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in extra)
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def torch_logits(source: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        logits = load(source)(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits
    return np.asarray(logits.numpy())


def test_export_is_valid_and_of_the_promised_format(exported: Exported) -> None:
    onnx.checker.check_model(exported.model, full_check=True)
    opsets = {entry.domain: entry.version for entry in exported.model.opset_import}
    quantised = CASES[exported.name][1] is not None
    assert opsets == ({"": 18, "ai.qexport": 2} if quantised else {"": 18})
    assert exported.model.ir_version == 8
    assert (exported.model.producer_name, len(exported.model.graph.output)) == ("qexport", 1)
    for value in exported.model.graph.input:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert [axis.dim_param for axis in value.type.tensor_type.shape.dim] == ["batch", "sequence"]
    used = {node.op_type for node in exported.model.graph.node if node.domain == "ai.qexport"}
    assert {function.name for function in exported.model.functions} == used


def test_export_matches_pytorch_for_any_batch_and_length(exported: Exported) -> None:
    session = session_of(exported.path)
    for batch, length in ((1, 1), (1, 7), (3, 5), (5, 38)):
        feeds = feeds_of(exported.model, batch, length)
        found = session.run(None, feeds)[0]
        assert found.shape == (batch, 2)
        assert np.isfinite(found).all()
        # every integer is the same; what is left is the last bits of tanh and of the float head
        np.testing.assert_allclose(found, torch_logits(exported.source, feeds), rtol=0, atol=2e-6)
    assert exported.result.parity is not None
    assert exported.result.parity.max_abs_difference < 2e-6
    assert exported.result.parity.rows == len(export_module.PARITY_TEXTS)


def test_exported_file_runs_on_the_reference_evaluator(exported_as: Callable[[str], Exported]) -> None:
    exported = exported_as("bert-dynamic-token")
    feeds = feeds_of(exported.model, 2, 6)
    expected = session_of(exported.path, optimise=False).run(None, feeds)[0]
    np.testing.assert_allclose(run_reference(exported.model, feeds), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["bert-dynamic-token", "distilbert-q8bert", "bert-fp32"])
def test_a_sentence_does_not_depend_on_its_batch(name: str, exported_as: Callable[[str], Exported]) -> None:
    exported = exported_as(name)
    session = session_of(exported.path)
    feeds = feeds_of(exported.model, 5, 30, seed=3)
    together = session.run(None, feeds)[0]
    for row in range(4):
        kept = int(feeds["attention_mask"][row].sum())
        alone = session.run(None, {key: array[row : row + 1, :kept] for key, array in feeds.items()})[0]
        np.testing.assert_allclose(alone[0], together[row], atol=2e-6)


def test_every_quantised_module_has_its_operator(exported: Exported) -> None:
    modules = quantized_modules(load(exported.source))
    named = Counter(
        node.name for node in exported.model.graph.node if node.domain == "ai.qexport" and node.name
    )
    assert dict(named) == dict.fromkeys(modules, 1)


@pytest.mark.parametrize(
    ("model_type", "activations", "fused"),
    [
        ("bert", "dynamic-token", "PerToken"),
        ("distilbert", "static", "Linear"),
        ("electra", "dynamic-token", "PerToken"),
        ("roberta", "static", "Linear"),
    ],
)
def test_every_layer_is_fused(model_type: str, activations: str, fused: str, tmp_path: Path) -> None:
    """Attention reads and writes what linear layers do; GELU and LayerNorm are one node with the codes."""
    source = save_student(tmp_path / "student", model_type, activations=activations)
    config = ExportConfig(model=source, output=tmp_path / "out")
    model = load(source)
    proto, entries = export_graph(model, config, {})
    counts = Counter(node.op_type for node in proto.graph.node)
    layers = model.config.num_hidden_layers
    assert counts[f"GeluQuantize{fused}"] == layers
    assert counts[f"AddLayerNormQuantize{fused}"] == 2 * layers  # the embeddings' is one, the last is not
    assert counts["LayerNorm"] == 1 and counts["LayerNormalization"] == counts["Gelu"] == 0
    assert counts["Transpose"] == counts["Reshape"] == 0
    assert counts["Erf"] == (model_type == "electra")  # GELU of its head, before a float layer
    assert len(entries) == 2 * layers + 1
    makers = {name: (node, index) for node in proto.graph.node for index, name in enumerate(node.output)}
    for node in proto.graph.node:
        if node.op_type.startswith("AddLayerNorm"):
            assert [makers[name][1] for name in node.input[:2]] == [0, 0]
            assert node.output[0].startswith("ln")


@pytest.mark.parametrize(
    "name", [name for name, (_, quantization) in CASES.items() if quantization is not None]
)
def test_no_quantised_weight_is_left_as_codes_or_floats(
    name: str, exported_as: Callable[[str], Exported]
) -> None:
    exported = exported_as(name)
    latent = {
        name: tuple(module.weight.shape)
        for name, module in quantized_modules(load(exported.source)).items()
        if hasattr(module, "weight_codes")
    }
    stored = {tensor.name: tensor for tensor in exported.model.graph.initializer}
    for path, shape in latent.items():
        tensor = stored[f"{path}.weight"]
        assert (tensor.data_type, tensor.dims[0]) == (onnx.TensorProto.UINT8, shape[0])
    assert not [t.name for t in stored.values() if t.data_type == onnx.TensorProto.INT8]
    assert (
        max(np.prod(t.dims, initial=1) for t in stored.values() if t.data_type == onnx.TensorProto.INT64) <= 8
    )
    allowed = (
        "token_type_embeddings.weight",
        "position_embeddings.weight",
        "classifier.weight",
        "out_proj.weight",
    )
    floats = [t.name for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    assert [name for name in floats if not name.endswith(allowed)] == []


def test_float_weights_keep_their_names(exported_as: Callable[[str], Exported]) -> None:
    exported = exported_as("bert-fp32")
    names = {name for name, _ in load(exported.source).named_parameters()}
    assert {tensor.name for tensor in exported.model.graph.initializer if "." in tensor.name} == names


@pytest.mark.parametrize("name", ["bert-dynamic-token", "electra-weight-only", "bert-fp32"])
def test_layer_norm_names_lead_to_the_torch_values(name: str, exported_as: Callable[[str], Exported]) -> None:
    exported = exported_as(name)
    entries = folders.read_manifest(exported.result.output)["layer_norms"]
    feeds = feeds_of(exported.model, 1, 9)
    model, seen = load(exported.source), dict[str, np.ndarray]()
    norms = [path for path, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    assert [entry["module"] for entry in entries] == norms
    for path in norms:
        model.get_submodule(path).register_forward_hook(
            lambda _module, _args, output, path=path: seen.__setitem__(path, output.detach().numpy())
        )
    with torch.no_grad():
        model(**{key: torch.from_numpy(array) for key, array in feeds.items()})
    session = session_of(exported.path, tuple(entry["value"] for entry in entries))
    for entry, found in zip(entries, session.run(None, feeds)[1:], strict=True):
        expected = seen[entry["module"]][:, : found.shape[1]]  # of the last layer only the first token
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6, err_msg=entry["module"])


def test_folder_describes_itself(exported_as: Callable[[str], Exported]) -> None:
    exported = exported_as("bert-dynamic-token")
    output = exported.result.output
    own = {"config.json", "model.onnx", "ort_config.json", "qexport.json"}
    assert {path.name for path in output.iterdir()} == own | {"tokenizer.json", "tokenizer_config.json"}
    assert (
        json.loads((output / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    manifest = folders.read_manifest(output)
    assert (manifest["bits"], manifest["method"], manifest["labels"]) == (
        "2-2-8",
        "ternarybert",
        ["LABEL_0", "LABEL_1"],
    )
    assert manifest["target"] == {"opset": 18, "ir_version": 8, "inline": False, "min_ort": "1.20"}
    for name, entry in manifest["files"].items():
        assert entry == {
            "sha256": file_sha256(output / name),
            "bytes": (output / name).stat().st_size,
        }
    assert "model.onnx" in manifest["files"]
    assert sum(row["n_bytes"] for row in manifest["inventory"]) == exported.result.file_bytes
    props = {prop.key: prop.value for prop in exported.model.metadata_props}
    assert props["qexport.bits"] == "2-2-8"
    assert json.loads(props["qexport.labels"]) == ["LABEL_0", "LABEL_1"]


def test_training_report_reaches_the_manifest(tmp_path: Path) -> None:
    source = save_student(tmp_path / "student")
    report = {
        "task": "sst2",
        "labels": ["negative", "positive"],
        "max_length": 64,
        "metrics": {"accuracy": 0.9},
    }
    (source / "qexport_train.json").write_text(json.dumps(report))
    to_onnx(ExportConfig(model=source, output=tmp_path / "out"))
    manifest = folders.read_manifest(tmp_path / "out")
    assert {key: manifest[key] for key in report} == report


@pytest.mark.parametrize(
    ("options", "opset", "ir_version"),
    [({"inline": True}, 18, 8), ({"min_ort": "1.16"}, 18, 8), ({"opset": 21}, 21, 10)],
)
def test_target_options_reach_the_file(
    options: dict[str, Any], opset: int, ir_version: int, tmp_path: Path
) -> None:
    source = save_student(tmp_path / "student")
    result = to_onnx(ExportConfig(model=source, output=tmp_path / "out", **options))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir_version)
    inlined = opset == 18
    assert (len(model.functions) == 0, any(n.domain for n in model.graph.node)) == (inlined, not inlined)
    assert result.parity is not None and result.parity.max_abs_difference < 2e-6
    entries = folders.read_manifest(tmp_path / "out")["layer_norms"]
    assert {entry["value"] for entry in entries} <= {
        name for node in model.graph.node for name in node.output
    }
    tables = [t for t in model.graph.initializer if numpy_helper.to_array(t).size == 243 * 5]
    assert len(tables) == 2 * inlined  # int8 for products, float32 for rows; each once


def test_export_reports_and_says_what_it_did(tmp_path: Path) -> None:
    lines: list[str] = []
    source = save_float(tmp_path / "model")
    result = to_onnx(ExportConfig(model=source, output=tmp_path / "out", check=False), report=lines.append)
    assert result.parity is None
    assert "not compared" in result.summary()
    assert lines and "bert" in lines[0]
    assert (
        json.loads(json.dumps(result.to_json()))["file_bytes"]
        == (tmp_path / "out" / "model.onnx").stat().st_size
    )


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def other_head(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))


def other_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "albert", "architectures": ["AlbertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_weights, "no model.safetensors"),
        (no_config, "no config.json"),
        (damaged_config, "not valid JSON"),
        (no_tokenizer, "no tokenizer.json"),
        (other_head, "BertForMaskedLM"),
        (other_family, "model_type 'albert'"),
        (truncated, "damaged"),
    ],
)
def test_export_refuses_a_wrong_folder_in_one_sentence(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    source = save_model(tmp_path / "model")
    damage(source)
    with pytest.raises(UnsupportedModelError) as caught:
        to_onnx(ExportConfig(model=source, output=tmp_path / "out"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_export_refuses_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no such model folder"):
        to_onnx(ExportConfig(model=Path("some-org/some-model"), output=tmp_path / "out"))


def test_export_refuses_a_static_student_that_saw_no_data(tmp_path: Path) -> None:
    source = save_student(tmp_path / "student", calibrate=False, activations="static")
    with pytest.raises(UnsupportedModelError, match=r"layer\.0\.attention\.self.*greater than 0"):
        to_onnx(ExportConfig(model=source, output=tmp_path / "out", check=False))


def test_export_refuses_an_output_that_exists_before_it_loads_anything(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputExistsError, match="--force"):
        to_onnx(ExportConfig(model=tmp_path / "absent", output=tmp_path / "out"))


@pytest.mark.parametrize("old", [False, True])
def test_interrupted_export_leaves_the_old_folder_or_nothing(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_float(tmp_path / "model")
    out = tmp_path / "out"
    if old:
        out.mkdir()
        (out / "model.onnx").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        to_onnx(ExportConfig(model=source, output=out, force=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == (["model", "out"] if old else ["model"])
    if old:
        assert (out / "model.onnx").read_text() == "old"


def test_export_that_computes_something_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qexport.graphs.export.PARITY_LIMIT", -1.0)
    with pytest.raises(UnsupportedModelError, match=r"in a second session by .*pass --no-check"):
        to_onnx(ExportConfig(model=save_float(tmp_path / "model"), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_tokenizer_of_the_folder_is_the_models(exported_as: Callable[[str], Exported]) -> None:
    text = (exported_as("bert-dynamic-token").result.output / "tokenizer.json").read_text()
    assert json.loads(text) == json.loads(tiny_tokenizer().to_str())
