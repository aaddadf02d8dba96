"""Binary students in ONNX: two packed binary products for each matrix, equal to PyTorch, small on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from random_weights import materialise
from tiny_models import tiny_model, tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from qexport.graphs.config import ExportConfig
from qexport.graphs.export import ExportResult, export_graph, to_onnx
from qexport.graphs.inventory import inspect_file
from qexport.training.models import load
from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers.learned import LearnedActivation
from qexport.training.splitting import SplitEmbedding, SplitLinear
from qexport.training.student import QuantEmbedding, QuantLinear, quantize_model, quantized_modules

MIB = 2**20
PUBLISHED = {
    "split_embedding": True,
    "granularity": "matrix",
    "activations": "dynamic-tensor",
    "activation_clip": 2.5,
    "position_bits": 32,
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "1-1-8", {}),
    "roberta-published": ("roberta", "1-1-8", PUBLISHED),
    "distilbert-4-bit": ("distilbert", "1-1-4", {"activations": "static", "learned_activations": True}),
    "electra-ternary-words": ("electra", "1-2-8", {}),
}


def binary(bits: str, heads: int, neurons: int, **values: Any) -> QuantConfig:
    return QuantConfig(
        method="binarybert", bits=bits, weight_quantizer="bwn", split_weights=True,
        kept_heads=heads, kept_neurons=neurons, **values,
    )  # fmt: skip


def save_binary(folder: Path, model_type: str, bits: str, **values: Any) -> Path:
    """A half-width binary student as training leaves it: its halves are no longer what the split made."""
    model = tiny_model(model_type)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    quantize_model(model, binary(bits, 1, 22, **values))
    for module in model.modules():
        if isinstance(module, QuantLinear | QuantEmbedding) and module.bits == 1:
            module.weight.data += 0.05 * torch.randn(module.weight.shape, generator=generator)
    if values.get("learned_activations"):
        learned = [module for module in model.modules() if isinstance(module, LearnedActivation)]
        for module in learned:
            module.threshold.data.fill_(1.0 if module.top == 15 else 2.0)
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"pad_token": "[PAD]", "model_max_length": 40, "tokenizer_class": "TokenizersBackend"}'
    )
    return folder


@pytest.fixture(scope="module", params=list(CASES))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, ExportResult]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp(request.param)
    model_type, bits, values = CASES[request.param]
    source = save_binary(root / "model", model_type, bits, **values)
    return request.param, source, to_onnx(ExportConfig(model=source, output=root / "out"))


def test_exported_binary_student_equals_pytorch(exported: tuple[str, Path, ExportResult]) -> None:
    _, source, result = exported
    session = onnxruntime.InferenceSession(
        str(result.output / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    names = {value.name for value in session.get_inputs()}
    model = load(source)
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (3, 9), (4, 30)):
        mask = np.ones((batch, length), np.int64)
        for row in range(1, batch):
            mask[row, rng.integers(1, length + 1) :] = 0
        feeds = {"input_ids": rng.integers(4, 20, (batch, length)) * mask, "attention_mask": mask}
        with torch.no_grad():
            expected = model(
                **{name: torch.from_numpy(array) for name, array in feeds.items()}
            ).logits.numpy()
        feeds["token_type_ids"] = np.zeros_like(mask)
        found = session.run(None, {name: array for name, array in feeds.items() if name in names})[0]
        # every integer is the same unless LayerNorm rounds a value to the other side of a code boundary
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert result.parity is not None and result.parity.max_abs_difference < 2e-6


def test_every_half_is_a_packed_binary_operator(exported: tuple[str, Path, ExportResult]) -> None:
    _, source, result = exported
    graph = onnx.load(result.output / "model.onnx").graph
    model = load(source)
    halves = [f"{name}.{half}" for name, module in model.named_modules() for half in ("first", "second")
              if isinstance(module, SplitLinear)]  # fmt: skip
    named = {node.name: node for node in graph.node if node.domain == "ai.qexport" and node.name}
    assert set(named) == set(quantized_modules(model))
    assert {named[name].op_type for name in halves} == {"BinaryMatMul"}
    packed = {tensor.name: tensor for tensor in graph.initializer}
    for name in halves:
        linear = model.get_submodule(name)
        assert list(packed[f"{name}.weight"].dims) == [linear.out_features, -(-linear.in_features // 8)]
    tables = Counter(named[name].op_type for name in named if "word_embeddings" in name)
    split = any(isinstance(module, SplitEmbedding) for module in model.modules())
    words = "TernaryGather" if CASES[exported[0]][1] == "1-2-8" else "BinaryGather"
    assert tables == {words: 2 if split else 1}
    counts = Counter(node.op_type for node in graph.node)
    layers = model.config.num_hidden_layers
    fused = [
        sum(counts[name] for name in counts if name.startswith(part)) for part in ("Gelu", "AddLayerNorm")
    ]
    assert fused == ([layers, 2 * layers] if "activations" not in CASES[exported[0]][2] else fused)
    assert counts["Transpose"] == counts["Reshape"] == 0


def test_both_halves_read_the_same_codes(exported: tuple[str, Path, ExportResult]) -> None:
    _, _, result = exported
    graph = onnx.load(result.output / "model.onnx").graph
    inputs = {node.name: tuple(node.input[:2]) for node in graph.node if node.op_type == "BinaryMatMul"}
    firsts = [name for name in inputs if name.endswith(".first")]
    assert firsts and all(inputs[name] == inputs[name.removesuffix("first") + "second"] for name in firsts)


@pytest.mark.slow
def test_bert_base_1_1_8_is_at_most_16_mib(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
        quantize_model(model, binary("1-1-8", 6, 1536))
    model = materialise(model)
    proto, _ = export_graph(model.eval(), ExportConfig(model=tmp_path, output=tmp_path / "out"), {})
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    inventory = inspect_file(path)
    rows = {(row.kind, row.storage): row for row in inventory.rows}
    weights = rows["encoder weights", "binary, 8 a byte"]
    assert weights.elements == 12 * 7_077_888  # as many as the full-width encoder has
    assert weights.bits_per_element == 1
    assert rows["word embedding", "binary, 8 a byte"].elements == 30522 * 768
    assert inventory.file_bytes <= 16 * MIB
    assert inventory.file_bytes <= 14.7 * MIB
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(0, 30522, (1, 16))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    assert np.isfinite(session.run(None, feeds)[0]).all()
