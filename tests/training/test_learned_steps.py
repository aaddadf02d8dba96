"""Learned steps: known vectors, gradients against finite differences, Algorithm 1, initial values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import qexport
from qexport.errors import UsageError
from qexport.formats import max_code
from qexport.training.attention import AttentionQuantizers
from qexport.training.calibration import initialise_thresholds, learned_thresholds
from qexport.training.exact import ExactLayerNorm
from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers.learned import (
    THRESHOLD_FLOOR,
    TRUNCATIONS,
    LearnedActivation,
    fitted_threshold,
    gradient_factor,
    learned_codes,
    learned_step,
    threshold_rule,
    truncated_threshold,
)
from qexport.training.student import QuantEmbedding, QuantLinear, quantize_model, quantized_modules

W = torch.tensor([[0.9, -0.05, 0.4, -0.7], [0.02, -0.3, 0.55, -0.1]])
X = torch.tensor([-3, -0.6, 0.013, 0.4, 1.2, 2])
STEPS: dict[str, Any] = {
    "method": "kdlsq",
    "weight_quantizer": "lsq",
    "activations": "static",
    "learned_activations": True,
}


def config(bits: str = "4-4-4", **values: Any) -> QuantConfig:
    return QuantConfig(bits=bits, **{**STEPS, **values})


def batch(rows: int = 6, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - row // 2 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def student(family: str = "bert", bits: str = "4-4-4", **values: Any) -> PreTrainedModel:
    model = quantize_model(tiny_model(family), config(bits, **values))
    initialise_thresholds(model, batch())
    model.train(False)
    return model


def gradients(x: torch.Tensor, alpha: float, high: int, **options: Any) -> tuple[torch.Tensor, ...]:
    """Output, and the gradients of its sum: of x, and of the threshold element by element."""
    latent = x.clone().requires_grad_()
    threshold = torch.full_like(x, alpha).requires_grad_()
    y = learned_step(latent, threshold, high, **options)
    y.sum().backward()
    assert latent.grad is not None and threshold.grad is not None
    return y.detach(), latent.grad, threshold.grad


def test_lsq_gives_the_known_codes_and_step_gradient() -> None:
    """Signed 4 bits as LSQ has them, -8..7, step 0.25; its gradient is that of the threshold times 7."""
    y, passed, found = gradients(X, 7 * 0.25, 7, low=-8, clipped=True)
    assert (y / 0.25).tolist() == [-8, -2, 0, 2, 5, 7]
    assert y.tolist() == [-2, -0.5, 0, 0.5, 1.25, 1.75]
    assert (found * 7).tolist() == pytest.approx([-8, 0.4, -0.052, 0.4, 0.2, 7], abs=1e-6)
    assert float(found.sum() * 7) * gradient_factor(6, 7) == pytest.approx(-0.0080238, abs=1e-6)
    assert passed.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("bits", "values", "terms"),
    [
        (
            2,
            [[0.6, 0, 0.6, -0.6], [0, 0, 0.6, 0]],
            [[1, 0.083333, 0.333333, -1], [-0.033333, 0.5, 0.083333, 0.166667]],
        ),
        (4, [[0.6, -0.085714, 0.428571, -0.6], [0, -0.342857, 0.514286, -0.085714]], None),
    ],
)
def test_kdlsq_gives_the_known_values_and_threshold_gradient(
    bits: int, values: list[list[float]], terms: list[list[float]] | None
) -> None:
    y, passed, found = gradients(W, 0.6, max_code(bits), clipped=False)
    assert y.tolist() == [pytest.approx(row, abs=1e-6) for row in values]
    if terms is not None:
        assert found.tolist() == [pytest.approx(row, abs=1e-5) for row in terms]
    assert (passed == 1).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(), (5, 1), (1, 1)])
def test_threshold_gradient_is_that_of_the_surrogate(bits: int, shape: tuple[int, ...]) -> None:
    """What rounding adds is held fixed, as the straight-through estimator means it."""
    high = max_code(bits)
    generator = torch.Generator().manual_seed(bits)
    x, upstream = (torch.randn(5, 40, generator=generator) for _ in range(2))
    threshold = (torch.rand(shape, generator=generator) + 0.5).requires_grad_()
    (learned_step(x, threshold, high, clipped=True, factor=0.25) * upstream).sum().backward()
    fixed = (threshold.detach() / high).double()
    ratio = (x.double() / fixed).clamp(-high, high)
    added = ratio.round() - ratio

    def surrogate(alpha: torch.Tensor) -> torch.Tensor:
        step = alpha / high
        total = step * ((x.double() / step).clamp(-high, high) + added) * upstream
        return total.sum_to_size(shape) if shape else total.sum()

    alpha, eps = threshold.detach().double(), 1e-6
    expected = (surrogate(alpha + eps) - surrogate(alpha - eps)) / (2 * eps)
    assert threshold.grad is not None
    torch.testing.assert_close(threshold.grad.double(), 0.25 * expected, rtol=2e-4, atol=2e-4)


def test_values_beyond_the_threshold_pass_their_gradient_only_where_weights_are_meant() -> None:
    x = torch.tensor([-2.0, -1.0, 0.3, 1.0, 1.5])
    assert gradients(x, 1.0, 7, clipped=True)[1].tolist() == [0, 1, 1, 1, 0]
    assert gradients(x, 1.0, 7, clipped=False)[1].tolist() == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_a_threshold_at_or_below_zero_counts_as_the_smallest(alpha: float) -> None:
    y, _, found = gradients(X, alpha, 7, clipped=True)
    assert y.abs().max() == pytest.approx(THRESHOLD_FLOOR) and torch.isfinite(found).all()


def test_algorithm_1_cuts_the_stated_part_of_the_sorted_values() -> None:
    x = torch.arange(-40.0, 160.0)  # 200 values; 5 to be cut on each side
    assert float(truncated_threshold(x, 0.05)) == max(abs(x[5]), abs(x[195])) == 155
    assert float(truncated_threshold(x, 0.0)) == 159
    assert float(truncated_threshold(-x, 0.05)) == 154
    rows = torch.stack([x, -x, x * 0])
    assert truncated_threshold(rows, 0.05).tolist() == pytest.approx([155, 154, THRESHOLD_FLOOR])


def test_the_mean_start_is_that_of_lsq() -> None:
    """A step of 2 * mean |x| / sqrt(7) at 4 bits: 2 * 1.2021667 / 2.6457513."""
    top = max_code(4)
    found = threshold_rule(None, "mean")(X, top)
    assert float(found) / top == pytest.approx(0.908753, abs=5e-7)
    rows = threshold_rule(0.1, "mean")(torch.stack([X, -2 * X, 0 * X]), 1)  # a ratio is of no account
    assert rows.tolist() == pytest.approx([2.404333, 4.808667, THRESHOLD_FLOOR])


def test_weights_and_activations_begin_at_the_mean_when_asked() -> None:
    model = student(bits="4-3-2")
    initialise_thresholds(model, batch(), rule=threshold_rule(None, "mean"))
    layer = model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    step = layer.weight_threshold.detach() / max_code(4)
    torch.testing.assert_close(step, 2 * layer.weight.detach().abs().mean(-1) / 7**0.5)
    words = model.get_submodule("bert.embeddings.word_embeddings")
    step = words.weight_threshold.detach() / max_code(3)
    torch.testing.assert_close(step, 2 * words.weight.detach().abs().mean(-1) / 3**0.5)
    pairs = model.get_submodule("bert.encoder.layer.0.attention.self.qexport_attention")
    seen: list[torch.Tensor] = []
    pairs.probabilities.observe = lambda x, rule: seen.append(x.detach())
    initialise_thresholds(model, batch(), rule=threshold_rule(None, "mean"))
    assert pairs.probabilities.top == 3  # 2 bits, never negative
    step = pairs.probabilities.threshold.detach() / 3
    torch.testing.assert_close(step, 2 * seen[0].abs().mean() / 3**0.5)


def test_algorithm_1_never_gives_zero_where_there_is_a_value() -> None:
    x = torch.zeros(1000)
    x[3] = -2.5
    assert float(truncated_threshold(x, 0.05)) == 2.5


@pytest.mark.parametrize("truncation", [-0.1, 1.0, float("nan")])
def test_algorithm_1_refuses_a_ratio_that_is_none(truncation: float) -> None:
    with pytest.raises(UsageError, match="--truncation"):
        truncated_threshold(X, truncation)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_fitted_threshold_is_the_best_of_the_truncations(bits: int) -> None:
    top = max_code(bits)
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(bits))
    x[1, :3] = 60.0

    def error(threshold: torch.Tensor) -> torch.Tensor:
        codes, step = learned_codes(x, threshold, top)
        return (codes * step.unsqueeze(-1) - x).square().sum(-1)

    found = error(fitted_threshold(x, top))
    errors = torch.stack([error(truncated_threshold(x, ratio)) for ratio in TRUNCATIONS])
    torch.testing.assert_close(found, errors.amin(0))
    assert (errors.amax(0) > 1.5 * found).all()


def test_the_fitted_threshold_of_a_long_vector_is_found_on_a_part_of_it_and_repeats() -> None:
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    found = fitted_threshold(x, 1)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(found, fitted_threshold(x, 1))
    assert float(found) == pytest.approx(1.22, abs=0.15)  # the best ternary value of a normal distribution


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_initial_thresholds_are_those_of_the_float_model(family: str) -> None:
    plain = tiny_model(family)
    plain.set_attn_implementation("qexport")
    plain.train(False)
    model = quantize_model(tiny_model(family), config())
    seen: dict[str, torch.Tensor] = {}
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _module, args, name=name: seen.__setitem__(name, args[0].detach())
            )
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    model.train()
    initialise_thresholds(model, batch(), rule=threshold_rule(0.1))
    with torch.no_grad():
        plain(**batch())
    assert model.training and torch.equal(torch.get_rng_state(), random)
    for name, module in quantized_modules(model).items():
        if isinstance(module, AttentionQuantizers):
            assert all(float(site.stored_scale()) > 0 for site in module.sites())
            continue
        if isinstance(module, QuantLinear):
            assert isinstance(module.activation, LearnedActivation)
            expected = truncated_threshold(seen[name].reshape(-1), 0.1)
            torch.testing.assert_close(module.activation.threshold.detach(), expected)
        if module.learns_steps:
            expected = truncated_threshold(
                module.weight if module.granularity == "row" else module.weight.reshape(1, -1), 0.1
            )
            assert torch.equal(module.weight_threshold.detach(), expected)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items() if "threshold" not in name)


@pytest.mark.parametrize("bits", ["2-2-8", "4-4-4", "2-2-2", "4-4-6"])
@pytest.mark.parametrize("unsigned", [True, False])
def test_evaluation_computes_the_integers_of_training(
    bits: str, unsigned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one softmax, GELU and LayerNorm for both: whole numbers then give what fake quantisation gives."""
    model = student(bits=bits, unsigned_probabilities=unsigned)
    monkeypatch.setattr("qexport.training.attention.exact_softmax", lambda scores: scores.softmax(-1))
    monkeypatch.setattr("qexport.training.exact.exact_gelu", nn.functional.gelu)
    monkeypatch.setattr(ExactLayerNorm, "forward", nn.LayerNorm.forward)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        evaluated = model(**batch()).logits
        trained = model.train()(**batch()).logits
    assert torch.allclose(trained, evaluated, atol=0.05)
    if bits == "2-2-8":  # with fewer bits a code that a grid moves is a large step
        monkeypatch.undo()
        with torch.no_grad():
            assert torch.allclose(trained, model.eval()(**batch()).logits, atol=0.05)
    assert not torch.equal(evaluated[0], evaluated[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_linear_layer_evaluates_the_contract_to_the_last_bit(bits: int, granularity: str) -> None:
    model = student(bits=f"{bits}-{bits}-{bits}", granularity=granularity)
    layer = model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    assert isinstance(layer, QuantLinear) and isinstance(layer.activation, LearnedActivation)
    x = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(1))
    top = max_code(bits)
    codes, w_scale = layer.weight_codes()
    scale = layer.activation.stored_scale()
    assert w_scale.shape == ((44,) if granularity == "row" else (1,)) and codes.abs().max() == top
    assert float(scale) == float(layer.activation.threshold.detach() / top)
    q = torch.round(x / scale).clamp(-top, top)
    with torch.no_grad():
        expected = (q @ codes.float().T) * w_scale * scale + layer.bias
        assert torch.equal(layer(x), expected)


def test_thresholds_of_a_step_change_the_codes() -> None:
    model = student()
    layer = model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    assert isinstance(layer, QuantLinear)
    before = layer.weight_codes()
    with torch.no_grad():
        layer.weight_threshold.mul_(0.5)
    codes, scale = layer.weight_codes()
    assert torch.equal(scale, before[1] / 2) and not torch.equal(codes, before[0])


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_projections_of_one_tensor_share_a_threshold(family: str) -> None:
    model = student(family)
    names = {name for name in model.state_dict() if name.endswith("activation.threshold")}
    owners = {"bert": "query", "distilbert": "q_lin"}
    assert sum(owners[family] in name for name in names) == 2
    assert not any(f".{name}." in text for name in ("key", "value", "k_lin", "v_lin") for text in names)
    weights, activations = learned_thresholds(model)
    assert len(activations) == len({id(parameter) for parameter in activations})
    assert len(weights) == sum(name.endswith("weight_threshold") for name in model.state_dict())
    thresholds = sum(name.endswith("threshold") for name in model.state_dict())
    assert len(weights) + len(activations) == thresholds


def test_only_word_embeddings_have_a_learned_table() -> None:
    kinds = {
        name.rsplit(".", 1)[-1]: (module.weight_quantizer, module.granularity, module.bits)
        for name, module in quantized_modules(student(embedding_granularity="matrix")).items()
        if isinstance(module, QuantEmbedding)
    }
    assert kinds == {"word_embeddings": ("lsq", "matrix", 4), "position_embeddings": ("minmax", "row", 8)}


@pytest.mark.parametrize("embedding", ["row", "matrix"])
def test_gradients_reach_every_parameter(embedding: str) -> None:
    model = student(embedding_granularity=embedding).train()
    out = model(**batch(), output_hidden_states=True, output_attentions=True)
    loss = out.logits.square().sum() + sum(h.square().mean() for h in out.hidden_states)
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    for parameters in learned_thresholds(model):
        assert all((parameter.grad != 0).any() for parameter in parameters if parameter.grad is not None)


def test_embedding_rows_learn_only_where_they_are_looked_up() -> None:
    table = QuantEmbedding(nn.Embedding(5, 8), bits=4, weight_quantizer="lsq")
    table.set_threshold(threshold_rule(None))
    table(torch.tensor([[1, 3, 3]])).square().sum().backward()
    assert table.weight_threshold.grad is not None
    assert (table.weight_threshold.grad != 0).tolist() == [False, True, False, True, False]


def test_probabilities_below_8_bits_use_every_code_of_their_width() -> None:
    tops = {}
    for bits in ("4-4-4", "2-2-2", "4-4-8"):
        for unsigned in (True, False):
            site = AttentionQuantizers(config(bits, unsigned_probabilities=unsigned)).probabilities
            assert site is not None
            tops[bits, unsigned] = site.top
    assert tops == {
        ("4-4-4", True): 15, ("4-4-4", False): 7, ("2-2-2", True): 3, ("2-2-2", False): 1,
        ("4-4-8", True): 127, ("4-4-8", False): 127,
    }  # fmt: skip


@pytest.mark.parametrize("bits", ["2-2-8", "4-4-4"])
def test_student_folder_loads_the_same_both_ways(tmp_path: Path, bits: str) -> None:
    model = student(bits=bits)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch()).logits
        assert torch.equal(qexport.load(tmp_path)(**batch()).logits, expected)
        other = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(other(**batch()).logits, expected)
    attention = other.bert.encoder.layer[0].attention.self
    assert attention.key.activation is attention.query.activation


@pytest.mark.parametrize(
    "values",
    [
        {"bits": "4-4-4", "activations": "dynamic-token"},
        {"bits": "4-4-4", "learned_activations": False},
        {"bits": "4-4-1"},
        {"bits": "1-1-8"},
        {"activation_clip": 2.5},
        {"embedding_granularity": "block"},
    ],
)
def test_quant_config_refuses_what_learned_steps_cannot_do(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        config(**values)
    assert "\n" not in str(caught.value)


def test_codes_are_whole_numbers_within_the_width() -> None:
    for bits in range(2, 9):
        codes, step = learned_codes(W * 9, torch.tensor([0.6]), max_code(bits))
        assert codes.abs().max() == max_code(bits) and torch.equal(codes, codes.round())
        assert step.tolist() == pytest.approx([0.6 / max_code(bits)])
