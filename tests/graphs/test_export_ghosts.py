"""Ghost students in ONNX: shifted tokens times taps in one order for all engines, equal to PyTorch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tiny_models import tiny_model, tiny_tokenizer

from qexport.graphs.config import ExportConfig
from qexport.graphs.export import ExportResult, to_onnx
from qexport.training.models import load
from qexport.training.quant_config import QuantConfig
from qexport.training.student import quantize_model

CASES = {
    "float": ("bert", "32-32-32", 32, False),
    "ternary": ("distilbert", "2-2-8", 8, True),
    "roberta": ("roberta", "32-32-32", 32, True),
    "electra": ("electra", "8-8-8", 8, True),
}
SLOW = ("float", "roberta", "electra")


def save_ghosts(folder: Path, family: str, bits: str, position_bits: int, gain: bool) -> Path:
    """Four heads cut to two, with two random ghosts each."""
    heads = {"n_heads": 4} if family == "distilbert" else {"num_attention_heads": 4}
    model = tiny_model(family, **heads)
    quant = QuantConfig(
        method="ghostbert", bits=bits, position_bits=position_bits, kept_heads=2, kept_neurons=22, ghosts=2,
        ghost_gain=gain,
    )  # fmt: skip
    quantize_model(model, quant)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith(("taps", "gain")):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"pad_token": "[PAD]", "model_max_length": 40, "tokenizer_class": "TokenizersBackend"}'
    )
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES],
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, ExportResult]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp(request.param)
    source = save_ghosts(root / "model", *CASES[request.param])
    return request.param, source, to_onnx(ExportConfig(model=source, output=root / "out"))


def test_exported_ghost_student_equals_pytorch(exported: tuple[str, Path, ExportResult]) -> None:
    _, source, result = exported
    session = onnxruntime.InferenceSession(
        str(result.output / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    names = {value.name for value in session.get_inputs()}
    model = load(source)
    generator = torch.Generator().manual_seed(0)
    for rows, length in ((1, 1), (1, 2), (5, 11), (3, 39)):
        ids = torch.randint(4, 20, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, max(1, length // 2) :] = 0
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
        found = session.run(["logits"], {name: feeds[name].numpy() for name in names})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert result.parity is not None and result.parity.agreement == 1.0


def test_file_holds_folded_kernels_and_packed_parts(exported: tuple[str, Path, ExportResult]) -> None:
    case, _, result = exported
    model = onnx.load(result.output / "model.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    assert (
        counts["Conv"] == 0
        and counts["Relu"] >= 4 * 2
        and counts["Softmax"] == (2 if CASES[case][1] == "32-32-32" else 0)
    )  # those of attention
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    padded = {node.output[0] for node in model.graph.node if node.op_type == "Pad"}
    shifted = {node.output[0] for node in model.graph.node if node.input and node.input[0] in padded}
    taps = [
        stored[name]
        for node in model.graph.node if node.op_type == "Mul" and shifted & set(node.input)
        for name in node.input if name in stored
    ]  # fmt: skip
    kernels = np.stack(taps).reshape(4 * 2, 3, 2 * 20)  # places and ghosts, taps, groups and channels
    np.testing.assert_allclose(kernels.sum(1), 1, atol=1e-6)
    floats = {name for name, array in stored.items() if array.dtype == np.float32 and array.size > 500}
    if case == "ternary":
        assert counts["TernaryMatMul"] == 17  # Q, K, V, two parts of two matrices, up, in two layers; pooler
        assert not floats
