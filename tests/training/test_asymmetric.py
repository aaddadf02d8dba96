"""Asymmetric activations: the known vector, ONNX Runtime's own operator, gradients, where they are put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_models import tiny_model
from tiny_students import save_student

from qexport.errors import UsageError
from qexport.training.calibration import initialise_thresholds, learned_offsets, learned_thresholds
from qexport.training.callbacks import Thresholds
from qexport.training.config import TrainConfig
from qexport.training.exact import exact_gelu
from qexport.training.models import load
from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers import (
    AsymmetricActivation,
    LearnedAsymmetricActivation,
    ternary_weight_network,
)
from qexport.training.quantizers.learned import LearnedActivation, fitted_threshold, mean_threshold
from qexport.training.recipes import get_recipe
from qexport.training.step_rates import set_step_rates
from qexport.training.student import QuantLinear, quantize_model

X = torch.tensor([-0.17, 0, 0.5, 1.3])


def learned(bits: int, threshold: float, offset: float) -> LearnedAsymmetricActivation:
    quantizer = LearnedAsymmetricActivation(bits=bits)
    quantizer.threshold.data.fill_(threshold)
    quantizer.offset.data.fill_(offset)
    return quantizer


def test_the_known_vector_has_the_codes_of_the_papers_and_the_values_of_onnx() -> None:
    """The papers' values are code * step + low, where low is 29.4898 steps below 0, no whole number."""
    quantizer = AsymmetricActivation("dynamic-tensor")
    whole, step = quantizer.codes(X)
    assert float(step) == pytest.approx(0.00576471, abs=1e-8)
    codes = whole + 29
    assert codes.tolist() == [0, 29, 116, 255]
    published = [-0.17, -0.002824, 0.498706, 1.3]
    assert (codes * step + X.min()).tolist() == pytest.approx(published, abs=1e-6)
    expected = [-0.167176, 0, 0.501529, 1.302824]
    assert quantizer(X).tolist() == pytest.approx(expected, abs=1e-6)
    assert learned(8, 1.47, -0.17)(X).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def runtime() -> onnxruntime.InferenceSession:
    """DynamicQuantizeLinear of the machine's ONNX Runtime."""
    floats, byte = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    names = {"q": byte, "scale": floats, "zero": byte}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("DynamicQuantizeLinear", ["x"], list(names))],
        "g",
        [onnx.helper.make_tensor_value_info("x", floats, [None])],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in names.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString())


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
    )
)
@settings(deadline=None, max_examples=200)
def test_codes_found_at_run_time_are_those_of_onnx_runtime(
    runtime: onnxruntime.InferenceSession, x: np.ndarray
) -> None:
    low, high = min(x.min(), 0), max(x.max(), 0)
    assume(high == low or (high - low) / np.float32(255) >= np.finfo(np.float32).tiny)  # no denormal step
    codes, scale = AsymmetricActivation("dynamic-tensor").codes(torch.from_numpy(x))
    q, expected, zero = runtime.run(None, {"x": x})
    assert np.float32(scale) == expected
    np.testing.assert_array_equal(codes.numpy(), q.astype(np.float32) - np.float32(zero))


@pytest.mark.parametrize("x", [torch.zeros(3), torch.tensor([1.0, 3.0]), torch.tensor([-3.0, -1.0])])
def test_zero_is_always_a_level(x: torch.Tensor) -> None:
    quantizer = AsymmetricActivation("dynamic-tensor")
    codes, scale = quantizer.codes(torch.cat([x, torch.zeros(1)]))
    assert codes[-1] == 0 and torch.isfinite(codes).all() and scale > 0
    torch.testing.assert_close(quantizer(x), x, rtol=0, atol=float(scale) / 2)


def test_stored_ranges_are_averages_of_the_training_and_frozen_in_evaluation() -> None:
    quantizer = AsymmetricActivation("static", ema=0.5)
    quantizer(torch.tensor([-1.0, 4.0]))
    quantizer(torch.tensor([-3.0, 2.0]))
    assert (float(quantizer.low), float(quantizer.high)) == (-2, 3)
    quantizer.train(False)
    codes, scale = quantizer.codes(torch.tensor([-100.0, 100.0]))
    assert float(quantizer.high) == 3 and float(scale) == pytest.approx(5 / 255)
    assert quantizer.stored_zero() == 102 and codes.tolist() == [-102, 153]


def test_the_clip_comes_first_and_stops_gradients() -> None:
    x = torch.tensor([-3.0, 0.2, 1.0], requires_grad=True)
    y = AsymmetricActivation("dynamic-tensor", clip=2.5)(x)
    y.sum().backward()
    assert float(y[0].detach()) == pytest.approx(-2.5, abs=1e-2)
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("span", "start"), [(2.0, -0.4), (1.5, 0.0), (1.0, -1.0)])
def test_gradients_of_learned_ranges_are_those_of_the_surrogate(bits: int, span: float, start: float) -> None:
    """What rounding adds to the value, in steps, is held fixed; the zero point lies where the offset says."""
    generator = torch.Generator().manual_seed(bits)
    x, upstream = (torch.randn(6, 50, generator=generator) for _ in range(2))
    quantizer, latent = learned(bits, span, start), x.clone().requires_grad_()
    quantizer.gradient_scale = False
    (quantizer(latent) * upstream).sum().backward()
    top, step = quantizer.top, span / quantizer.top
    zero = float(np.clip(np.rint(-start / step), 0, top))
    ratio = (x / torch.tensor(step)).double()
    inside = (ratio >= -zero) & (ratio <= top - zero)
    added = (ratio.round() - ratio) * inside

    def surrogate(alpha: float, beta: float) -> float:
        value = torch.where(inside, x.double() + added * alpha / top, beta)
        return float((torch.where(ratio > top - zero, alpha + beta, value) * upstream).sum())

    eps = 1e-5
    spans = (surrogate(span + eps, start) - surrogate(span - eps, start)) / (2 * eps)
    starts = (surrogate(span, start + eps) - surrogate(span, start - eps)) / (2 * eps)
    assert quantizer.threshold.grad is not None and quantizer.offset.grad is not None
    assert float(quantizer.threshold.grad) == pytest.approx(spans, rel=2e-3, abs=2e-3)
    assert float(quantizer.offset.grad) == pytest.approx(starts, rel=2e-3, abs=2e-3)
    assert latent.grad is not None and torch.equal(latent.grad, upstream * inside)


@pytest.mark.parametrize("rule", [fitted_threshold, mean_threshold])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_learned_range_of_gelus_output_begins_better_than_a_symmetric_one(rule: Any, bits: int) -> None:
    x = exact_gelu(torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 1.5)
    errors = []
    for quantizer in (LearnedAsymmetricActivation(bits=bits), LearnedActivation(bits=bits)):
        quantizer.observe(x, rule)
        errors.append(float((quantizer(x).detach() - x).square().mean()))
    assert errors[0] < 0.6 * errors[1], errors


def test_zero_stays_within_a_learned_range() -> None:
    model = torch.nn.Sequential(learned(4, 2.0, 0.5), learned(4, 2.0, -3.0), learned(4, 2.0, -0.25))
    Thresholds(model).on_optimizer_step(None, None, None)
    assert [float(part.offset.detach()) for part in model] == [0.0, -2.0, -0.25]


def test_a_learned_range_begins_within_what_was_seen() -> None:
    quantizer = LearnedAsymmetricActivation(bits=4)
    quantizer.observe(torch.tensor([-0.125, 0.0, 0.5, 2.0]), mean_threshold)
    low, span = float(quantizer.offset.detach()), float(quantizer.threshold.detach())
    assert low >= -0.125 and low + span <= 2.0
    quantizer.observe(torch.zeros(3), fitted_threshold)
    assert torch.isfinite(quantizer(torch.ones(3))).all()


@pytest.mark.parametrize(
    "quantizer", [AsymmetricActivation("dynamic-tensor"), learned(4, 3.0, -0.7)], ids=["found", "learned"]
)
def test_a_linear_layer_evaluates_the_contract_to_the_last_bit(quantizer: Any) -> None:
    torch.manual_seed(0)
    layer = QuantLinear(torch.nn.Linear(70, 9), bits=2, granularity="row", activation=quantizer)
    layer.train(False)
    x = torch.randn(5, 70) + 0.8
    with torch.no_grad():
        found = layer(x).numpy()
        (codes, scale), (a, step) = ternary_weight_network(layer.weight, "row"), quantizer.codes(x)
        training = layer.train()(x)
    acc = a.numpy().astype(np.int64) @ codes.numpy().astype(np.int64).T
    expected = acc.astype(np.float32) * scale.numpy() * np.float32(step) + layer.bias.detach().numpy()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(training.numpy(), expected, rtol=1e-4, atol=1e-4)


def sites(model: Any) -> set[str]:
    kinds = (AsymmetricActivation, LearnedAsymmetricActivation)
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, QuantLinear))
    return {name for name, module in found if isinstance(module.activation, kinds)}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("activations", ["static", "dynamic-tensor"])
def test_feed_forward_means_what_reads_gelu(family: str, activations: str) -> None:
    options = {"method": "x", "bits": "2-2-8", "activations": activations}
    few = quantize_model(tiny_model(family), QuantConfig(asymmetric="feed-forward", **options))
    names = sites(few)
    assert len(names) == 2
    for name in names:
        layer = few.get_submodule(name)
        assert isinstance(layer, QuantLinear) and layer.in_features > layer.out_features, name
    every = quantize_model(tiny_model(family), QuantConfig(asymmetric="all", **options))
    assert sites(every) == {name for name, module in every.named_modules() if isinstance(module, QuantLinear)}
    assert not sites(quantize_model(tiny_model(family), QuantConfig(**options)))


def test_offsets_learn_at_the_rate_of_weight_steps_and_start_from_data() -> None:
    run = TrainConfig(method="kdlsq", output=Path("x"), task="x", bits="2-2-4", asymmetric="feed-forward")
    recipe = get_recipe("kdlsq")
    quant, steps = recipe.quant_config(run), recipe.learned_steps(run)
    assert quant is not None and steps is not None
    model = quantize_model(tiny_model("bert"), quant)
    ids = torch.randint(4, 20, (4, 9), generator=torch.Generator().manual_seed(0))
    initialise_thresholds(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    offsets = learned_offsets(model)
    assert len(offsets) == 2 and all(-0.171 <= float(offset) < 0 for offset in offsets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    set_step_rates(optimizer, model, steps)
    weights, activations = learned_thresholds(model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(offset)] for offset in offsets} == {rates[id(weights[0])]} == {steps.weight_lr}
    assert rates[id(activations[0])] == steps.activation_lr
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("activations", ["static", "dynamic-tensor"])
def test_a_saved_student_computes_the_same(tmp_path: Path, activations: str) -> None:
    folder = save_student(tmp_path / "student", activations=activations, asymmetric="all")
    model, again = load(folder), load(folder)
    assert len(sites(model)) > 10
    ids = torch.randint(4, 20, (3, 8), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        first, second = (
            part(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for part in (model, again)
        )
    assert torch.equal(first, second)
    if activations == "static":
        ranges = [module for module in model.modules() if isinstance(module, AsymmetricActivation)]
        assert all(float(part.high) > 0 for part in ranges)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "ternarybert"}, "--asymmetric all needs .* dynamic-tensor, got 2-2-8 with dynamic-token"),
        ({"method": "fp32"}, "fp32 trains a float model; --asymmetric all has no meaning"),
        ({"method": "kdlsq", "asymmetric": "some"}, "--asymmetric must be one of none, feed-forward, all"),
    ],
)
def test_what_has_no_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run = TrainConfig(**{"output": Path("x"), "task": "x", "asymmetric": "all", **values})
        get_recipe(run.method).quant_config(run)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "none"),
        ({"as_published": True}, "feed-forward"),
        ({"as_published": True, "bits": "1-1-4"}, "feed-forward"),
        ({"as_published": True, "asymmetric": "none"}, "none"),
        ({"as_published": True, "activations": "dynamic-token"}, "none"),
        ({"activations": "dynamic-tensor", "asymmetric": "all"}, "all"),
    ],
)
def test_binarybert_as_published_is_asymmetric_behind_gelu(options: dict[str, Any], expected: str) -> None:
    run = TrainConfig(method="binarybert", output=Path("x"), task="x", **options)
    quant = get_recipe("binarybert").quant_config(run)
    assert quant is not None and quant.asymmetric == expected
