"""Split layers: equal to the ternary ones at first, two binary ones afterwards, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForSequenceClassification

import qexport
from qexport.errors import UsageError
from qexport.training.calibration import initialise_thresholds
from qexport.training.quant_config import QuantConfig
from qexport.training.splitting import SplitEmbedding, SplitLinear, split_student
from qexport.training.student import QuantEmbedding, QuantLinear, quantize_model, quantized_modules

FAMILIES = ("bert", "roberta", "distilbert", "electra")


def config(bits: str, **values: Any) -> QuantConfig:
    defaults = {"method": "binarybert", "weight_quantizer": "bwn", "kept_heads": 1, "kept_neurons": 22}
    return QuantConfig(**{"bits": bits, **defaults, **values})


def batch(rows: int = 4, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - row :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def ternary(family: str, bits: str = "2-1-8", **values: Any) -> Any:
    """A half-width ternary student with random biases."""
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return quantize_model(model, config(bits, **values)).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("before", "after", "values"),
    [
        ("2-1-8", "1-1-8", {}),
        (
            "2-2-8",
            "1-1-8",
            {"split_embedding": True, "granularity": "matrix", "activations": "dynamic-tensor"},
        ),
        ("2-2-8", "1-2-8", {}),
        ("2-1-32", "1-1-32", {}),
    ],
)
def test_split_student_has_the_logits_of_the_ternary_one(
    family: str, before: str, after: str, values: dict[str, Any]
) -> None:
    """Every layer gives what it gave; logits do but for a value on the border of two codes or steps.

    Two halves are added in another order than the whole: values differ in their last place, which now and
    then decides a rounding, and logits move by thousandths. Float activations have nothing to round.
    """
    split_only = {"split_embedding"}
    student = ternary(
        family, before, **{key: value for key, value in values.items() if key not in split_only}
    )
    with torch.no_grad():
        batches = [batch(seed=seed) for seed in range(8)]
        layers: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        hooks = [
            module.register_forward_hook(
                lambda _, inputs, output, name=name: layers.append((name, inputs[0], output))
            )
            for name, module in quantized_modules(student).items()
            if isinstance(module, QuantLinear | QuantEmbedding)
        ]
        expected = [student(**one).logits for one in batches]
        for hook in hooks:
            hook.remove()
        split_student(student, config(after, split_weights=True, **values)).eval()
        found = [student(**one).logits for one in batches]
        for name, x, y in layers:
            size = float(y.abs().max())
            torch.testing.assert_close(student.get_submodule(name)(x), y, atol=2e-6 * size, rtol=0)
        assert len(layers) == 8 * len(hooks) > 8
    moved = [float((x - y).abs().max()) for x, y in zip(found, expected, strict=True)]
    assert sum(distance <= 1e-5 for distance in moved) >= (8 if after.endswith("32") else 6)
    assert max(moved) < 0.02
    assert not torch.equal(expected[0][0], expected[0][1])
    linears = [module for module in quantized_modules(student).values() if isinstance(module, QuantLinear)]
    assert linears and {module.bits for module in linears} == {1}
    assert all(set(module.weight_codes()[0].unique().tolist()) == {-1, 1} for module in linears)
    tables = [module for module in student.modules() if isinstance(module, SplitEmbedding)]
    assert len(tables) == int(values.get("split_embedding", False))


def test_split_static_student_has_the_logits_of_the_ternary_one() -> None:
    student = ternary("bert", activations="static").train()
    with torch.no_grad():
        student(**batch())
        student.eval()
        expected = student(**batch()).logits
        split_student(student, config("1-1-8", split_weights=True, activations="static")).eval()
        torch.testing.assert_close(student(**batch()).logits, expected, atol=1e-5, rtol=0)
    layer = student.get_submodule("bert.encoder.layer.0.intermediate.dense")
    assert isinstance(layer, SplitLinear)
    student.train()(**batch())
    assert layer.first.activation is layer.second.activation
    assert "bert.encoder.layer.0.intermediate.dense.second.activation.scale" not in student.state_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_split_student_of_4_bit_activations_has_the_logits_of_the_ternary_one(
    family: str, tmp_path: Path
) -> None:
    learned = {"activations": "static", "learned_activations": True}
    student = ternary(family, "2-1-4", **learned)
    initialise_thresholds(student, batch())
    with torch.no_grad():
        expected = student(**batch()).logits
        before = sum(name.endswith("threshold") for name in student.state_dict())
        split_student(student, config("1-1-4", split_weights=True, **learned)).eval()
        torch.testing.assert_close(student(**batch()).logits, expected, atol=1e-5, rtol=0)
        assert before == sum(name.endswith("threshold") for name in student.state_dict()) > 0
        student.save_pretrained(tmp_path)
        assert torch.equal(qexport.load(tmp_path)(**batch()).logits, student(**batch()).logits)
    student.train()(**batch()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_split_layer_trains_as_the_sum_of_its_halves() -> None:
    """One product with summed weights gives the values and gradients of two products."""
    torch.manual_seed(0)
    student = ternary("bert")
    split_student(student, config("1-1-8", split_weights=True))
    layer = student.get_submodule("bert.encoder.layer.0.intermediate.dense").train()
    x = torch.randn(3, 5, 20)
    outputs, gradients = [], []
    for forward in (layer, lambda value: layer.first(value) + layer.second(value)):
        layer.zero_grad()
        y = forward(x)
        y.square().sum().backward()
        outputs.append(y.detach())
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter_of_a_split_student(family: str) -> None:
    student = split_student(
        ternary(family, "2-2-8"), config("1-1-8", split_weights=True, split_embedding=True)
    )
    student.train()
    student(**batch()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split_embedding", [False, True])
def test_split_student_folder_loads_the_same_both_ways(
    family: str, split_embedding: bool, tmp_path: Path
) -> None:
    student = ternary(family, "2-2-8" if split_embedding else "2-1-8")
    split_student(student, config("1-1-8", split_weights=True, split_embedding=split_embedding)).eval()
    for module in student.modules():
        if isinstance(module, QuantLinear | QuantEmbedding) and module.bits == 1:
            module.weight.data += 0.05 * torch.randn_like(module.weight)  # no longer what a split gives
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = student(**batch()).logits
        assert torch.equal(qexport.load(tmp_path)(**batch()).logits, expected)
        other = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(other(**batch()).logits, expected)


@pytest.mark.parametrize(
    ("bits", "values", "words"),
    [
        ("2-2-8", {"split_weights": True}, "only 1-bit weights are split"),
        ("1-2-8", {"split_weights": True, "split_embedding": True}, "only 1-bit weights are split"),
        ("1-1-8", {"split_embedding": True}, "only with the matrices"),
        ("1-1-8", {"kept_neurons": 0}, "kept_heads and kept_neurons"),
        ("1-1-8", {"weight_quantizer": "twn"}, "1-bit weights"),
    ],
)
def test_config_that_cannot_be_split_is_refused(bits: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config(bits, **values)
