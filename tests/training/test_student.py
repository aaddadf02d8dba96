"""The student: surgery, exact integers, invariance to the batch, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_model, tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import qexport
from qexport.errors import UnsupportedModelError, UsageError
from qexport.training.attention import AttentionQuantizers, integer_matmul
from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers import ternary_weight_network
from qexport.training.student import QuantEmbedding, QuantLinear, quantize_model, quantized_modules

FAMILIES = ("bert", "roberta", "distilbert", "electra")


def config(**values: Any) -> QuantConfig:
    return QuantConfig(**{"method": "test", "bits": "2-2-8", **values})


def student(**values: Any) -> PreTrainedModel:
    """A tiny BERT, quantised, in evaluation mode."""
    model = quantize_model(tiny_model("bert"), config(**values))
    model.train(False)
    return model


def batch(rows: int = 4, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - row :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
def test_surgery_quantises_every_linear_but_the_head_and_keeps_parameter_names(family: str) -> None:
    model = tiny_model(family)
    before = set(model.state_dict())
    quantize_model(model, config())
    assert before <= set(model.state_dict())
    left = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert left == (["classifier.out_proj"] if family in ("roberta", "electra") else ["classifier"])
    kinds = [type(module) for module in quantized_modules(model).values()]
    assert kinds.count(AttentionQuantizers) == 2
    assert kinds.count(QuantEmbedding) == 2
    assert kinds.count(QuantLinear) >= 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("activations", ["dynamic-token", "dynamic-tensor", "static"])
def test_evaluation_equals_training_forward_without_dropout(family: str, activations: str) -> None:
    model = quantize_model(tiny_model(family), config(activations=activations))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    inputs = batch()
    model.train()
    with torch.no_grad():
        model(**inputs)  # the static scales settle
        trained = model(**inputs).logits
        model.train(False)
        evaluated = model(**inputs).logits
    # codes can differ where float rounding meets a tie; the logits stay close
    assert torch.allclose(trained, evaluated, atol=0.05), (trained - evaluated).abs().max()
    assert not torch.equal(evaluated[0], evaluated[1])


@pytest.mark.parametrize("activations", ["dynamic-token", "static"])
def test_logits_do_not_depend_on_neighbours_or_padding(activations: str) -> None:
    model = quantize_model(tiny_model("bert"), config(activations=activations)).train()
    inputs = batch(6, 12)
    with torch.no_grad():
        model(**inputs)
        model.train(False)
        together = model(**inputs).logits
        for row in range(6):
            length = int(inputs["attention_mask"][row].sum())
            alone = model(**{name: value[row : row + 1, :length] for name, value in inputs.items()}).logits
            assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_logits_depend_on_neighbours_as_published_with_one_scale_per_tensor() -> None:
    model = student(activations="dynamic-tensor")
    inputs = batch(6, 12)
    with torch.no_grad():
        together = model(**inputs).logits
        alone = model(**{name: value[5:6, :7] for name, value in inputs.items()}).logits
    assert not torch.allclose(alone[0], together[5], atol=1e-5)


def test_all_padding_sentence_is_finite() -> None:
    model = student()
    inputs = {
        "input_ids": torch.zeros(2, 5, dtype=torch.long),
        "attention_mask": torch.zeros(2, 5, dtype=torch.long),
    }
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("k", [1, 64, 1040, 3072])
def test_integer_matmul_is_exact_beyond_24_bits(k: int) -> None:
    generator = np.random.default_rng(k)
    a = generator.integers(100, 128, (3, k))
    b = generator.integers(100, 128, (5, k))
    exact = (a @ b.T).astype(np.float32)
    found = integer_matmul(
        torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32), 127 * 127
    )
    assert np.array_equal(found.numpy(), exact)


def test_quant_linear_evaluates_the_contract_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = student()
    layer = model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    assert isinstance(layer, QuantLinear)
    x = torch.randn(2, 3, 20)
    with torch.no_grad():
        found = layer(x).numpy()
    codes, w_scale = (array.numpy() for array in layer.weight_codes())
    scale = np.maximum(np.abs(x.numpy()).max(-1, keepdims=True) / np.float32(127), np.float32(1.2e-32))
    q = np.rint(x.numpy() / scale).astype(np.int32)
    acc = q @ codes.astype(np.int32).T
    assert layer.bias is not None
    assert np.array_equal(found, acc.astype(np.float32) * w_scale * scale + layer.bias.detach().numpy())


def test_weight_codes_follow_the_latent_weight() -> None:
    model = student()
    layer = model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    assert isinstance(layer, QuantLinear)
    before = layer.weight_codes()[0].clone()
    with torch.no_grad():
        layer.weight.neg_()
    assert torch.equal(layer.weight_codes()[0], -before)


@pytest.mark.parametrize("fused", [True, False])
def test_weight_codes_follow_an_optimiser_step(fused: bool) -> None:
    model = quantize_model(tiny_model("bert"), config()).eval()
    layer = model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    assert isinstance(layer, QuantLinear)
    before = layer.weight_codes()[0].clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=fused)
    model.train()(**batch()).logits.square().sum().backward()
    optimizer.step()
    model.eval()
    fresh = ternary_weight_network(layer.weight.detach(), "row")[0].to(torch.int8)
    assert torch.equal(layer.weight_codes()[0], fresh) and not torch.equal(before, fresh)


def test_gradients_reach_every_parameter() -> None:
    model = quantize_model(tiny_model("bert"), config()).train()
    out = model(**batch(), output_hidden_states=True, output_attentions=True)
    loss = (
        out.logits.sum()
        + sum(h.square().mean() for h in out.hidden_states)
        + sum(a.mean() for a in out.attentions)
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_attentions_are_masked_scores_before_the_softmax() -> None:
    inputs = batch()
    for model in (tiny_model("bert"), quantize_model(tiny_model("bert"), config())):
        model.set_attn_implementation("qexport")
        model.train(False)
        scores = model(**inputs, output_attentions=True).attentions[0]
        assert scores.shape == (4, 2, 9, 9)
        assert (scores[1, :, :, 8] < -9000).all() and (scores[0] > -9000).all()


@pytest.mark.parametrize("quantizer", ["twn", "lat"])
def test_student_folder_loads_the_same_both_ways(tmp_path: Path, quantizer: str) -> None:
    model = student(weight_quantizer=quantizer)
    for module in model.modules():
        if isinstance(module, QuantLinear | QuantEmbedding) and module.uses_curvature:
            module.curvature.uniform_(0.1, 5.0)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch()).logits
        assert torch.equal(qexport.load(tmp_path)(**batch()).logits, expected)
        other = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(other(**batch()).logits, expected)


def test_load_names_the_missing_weights(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no model\.safetensors"):
        qexport.load(tmp_path)


def test_load_says_that_weights_are_damaged(tmp_path: Path) -> None:
    save_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UnsupportedModelError, match=r"damaged|cannot be loaded"):
        qexport.load(tmp_path)


def test_surgery_refuses_an_architecture_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    monkeypatch.setattr(model.config, "model_type", "gpt2")
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        quantize_model(model, config())


@pytest.mark.parametrize(
    "values", [{"bits": "1-1-8"}, {"bits": "2-2-4"}, {"activations": "per-channel"}, {"granularity": "block"}]
)
def test_quant_config_refuses_what_no_method_defines(values: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        config(**values)


def test_integer_products_are_exact_under_autocast() -> None:
    """bfloat16 holds no odd number above 256."""
    a, b = torch.full((1, 301), 1.0), torch.full((2, 301), 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = integer_matmul(a, b, 1)
    assert found.dtype == torch.float32 and found.tolist() == [[301.0, 301.0]]
