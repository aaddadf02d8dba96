"""Runs of lsq, lsq-kd and kdlsq on a tiny task: what is learned, at which rates, refused, resumed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from tiny_models import save_model, tiny_model
from tiny_runs import Files, StopAt

import qexport
from qexport.errors import Interrupted, UsageError
from qexport.training.calibration import initialise_thresholds, learned_thresholds
from qexport.training.callbacks import Thresholds
from qexport.training.config import TrainConfig
from qexport.training.quantizers.learned import THRESHOLD_FLOOR
from qexport.training.recipes import RECIPES, get_recipe
from qexport.training.recipes.base import LearnedSteps
from qexport.training.step_rates import set_step_rates
from qexport.training.student import QuantLinear, quantize_model
from qexport.training.trainer import train

config = partial(tiny_runs.config, method="kdlsq", lr=2e-3, logging_steps=4)

METHODS = ("lsq", "lsq-kd", "kdlsq")
WIDTHS = ("2-2-8", "4-4-8", "6-6-8", "8-8-8", "2-2-4", "4-4-4", "2-2-2", "4-4-2", "4-4-6")


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture
def teacher(reviews: Files, teacher_folder: Path) -> Path:
    """A float model that knows the task, trained once."""
    if not (teacher_folder / "model" / "qexport_train.json").exists():
        start = save_model(teacher_folder / "start")
        train(config(reviews, teacher_folder / "model", method="fp32", model=str(start), lr=3e-3, epochs=6))
    return teacher_folder / "model"


def thresholds(folder: Path) -> dict[str, torch.Tensor]:
    state = load_file(folder / "model.safetensors")
    return {name: value for name, value in state.items() if name.endswith("threshold")}


@pytest.mark.parametrize(
    ("method", "bits"),
    [("lsq", "2-2-8"), ("lsq-kd", "4-4-4"), ("kdlsq", "2-2-8"), ("kdlsq", "4-4-4"), ("kdlsq", "8-8-8")],
)
def test_student_keeps_what_its_teacher_knows(
    reviews: Files, teacher: Path, tmp_path: Path, method: str, bits: str
) -> None:
    output = tmp_path / "student"
    lines: list[str] = []
    run = config(reviews, output, method=method, bits=bits, teacher=str(teacher), epochs=5)
    result = train(run, say=lines.append)
    assert result.metrics["validation/accuracy"] >= 0.85
    assert "initial steps: least error, activations on 16 rows" in lines
    report = json.loads((output / "qexport_train.json").read_text())
    expected = RECIPES[method].losses
    assert {name for name, weight in report["losses"].items() if weight} == {
        name for name in ("hidden", "attention", "logits", "label") if getattr(expected, name)
    }
    assert (report["method"], report["bits"]) == (method, bits)
    start = quantize_model(qexport.load(teacher), get_recipe(method).quant_config(run))
    assert set(thresholds(output)) == {name for name in start.state_dict() if name.endswith("threshold")}
    assert all((value > 0).all() for value in thresholds(output).values())


def test_thresholds_begin_where_algorithm_1_puts_them_and_are_trained(
    reviews: Files, teacher: Path, tmp_path: Path
) -> None:
    """Rates too small to move anything leave the initial values; the published rates do not."""
    still = {"weight_step_lr": 1e-12, "activation_step_lr": 1e-12, "lr": 1e-12, "max_steps": 2,
             "truncation": 0.05}  # fmt: skip
    found = {}
    for name, values in (
        ("still", still),
        ("wide", {**still, "truncation": 0.0}),
        ("mean", {**still, "truncation": None, "initial_step": "mean"}),
        ("moved", {"max_steps": 8}),
    ):
        train(config(reviews, tmp_path / name, teacher=str(teacher), **values))
        found[name] = thresholds(tmp_path / name)
    layer = qexport.load(teacher).get_submodule("bert.encoder.layer.1.output.dense")
    largest = layer.weight.detach().abs().amax(-1)
    key = "bert.encoder.layer.1.output.dense.weight_threshold"
    torch.testing.assert_close(found["wide"][key], largest)
    torch.testing.assert_close(found["mean"][key], 2 * layer.weight.detach().abs().mean(-1))  # 2 bits
    assert (found["still"][key] <= largest).all() and (found["still"][key] < largest).any()
    for name, value in found["still"].items():
        assert (found["wide"][name] >= value).all()
        assert not torch.equal(found["moved"][name], value)


def test_thresholds_have_their_own_rates_and_no_decay() -> None:
    model = quantize_model(
        tiny_model("bert"),
        get_recipe("kdlsq").quant_config(TrainConfig(method="kdlsq", output=Path("x"), task="x")),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    set_step_rates(
        optimizer, model, LearnedSteps(weight_lr=1e-3, activation_lr=3e-2, published_truncation=0.05)
    )
    rest, weights, activations = optimizer.param_groups
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, 1e-3, 3e-2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]
    for group, expected in zip((weights, activations), learned_thresholds(model), strict=True):
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(everything) == len({id(p) for p in everything}) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert not any(names[id(parameter)].endswith("threshold") for parameter in rest["params"])


def test_thresholds_stay_above_zero_whatever_a_step_does() -> None:
    model = quantize_model(
        tiny_model("bert"),
        get_recipe("lsq").quant_config(TrainConfig(method="lsq", output=Path("x"), task="x")),
    )
    ids = torch.randint(4, 40, (2, 5))
    initialise_thresholds(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    callback = Thresholds(model)
    with torch.no_grad():
        for parameter in callback.thresholds[::2]:
            parameter.sub_(100)
    kept = [parameter.detach().clone() for parameter in callback.thresholds[1::2]]
    callback.on_optimizer_step(None, None, None)
    assert all((parameter == THRESHOLD_FLOOR).all() for parameter in callback.thresholds[::2])
    assert all(torch.equal(a, b) for a, b in zip(callback.thresholds[1::2], kept, strict=True))


def test_interrupted_run_resumes_to_the_same_end(reviews: Files, teacher: Path, tmp_path: Path) -> None:
    values = {"teacher": str(teacher), "max_steps": 24, "eval_steps": 8, "dropout": 0.1, "bits": "4-4-4"}
    train(config(reviews, tmp_path / "whole", **values))
    with pytest.raises(Interrupted, match="--resume"):
        train(config(reviews, tmp_path / "cut", **values), say=StopAt("step 8/24  evaluation"))
    train(config(reviews, tmp_path / "cut", **values, resume=True))
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_as_published_takes_the_released_quantiser(reviews: Files, teacher: Path, tmp_path: Path) -> None:
    train(config(reviews, tmp_path / "s", bits="4-4-4", teacher=str(teacher), as_published=True, max_steps=2))
    model = qexport.load(tmp_path / "s")
    layer = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert isinstance(layer, QuantLinear)
    assert layer.weight_codes()[1].shape == (1,) and not layer.gradient_scale
    attention = model.get_submodule("bert.encoder.layer.0.attention.self.qexport_attention")
    assert attention.probabilities.top == 7
    assert type(model.get_submodule("bert.embeddings.position_embeddings")) is torch.nn.Embedding


@pytest.mark.parametrize(
    ("values", "truncation"),
    [({}, None), ({"as_published": True}, 0.05), ({"as_published": True, "truncation": 0.0}, 0.0),
     ({"truncation": 0.1}, 0.1)],
)  # fmt: skip
def test_truncation_is_the_published_one_only_when_asked(
    values: dict[str, Any], truncation: float | None
) -> None:
    steps = get_recipe("kdlsq").learned_steps(
        TrainConfig(method="kdlsq", output=Path("x"), task="x", **values)
    )
    assert steps is not None and steps.truncation == truncation


@pytest.mark.parametrize("published", [False, True])
def test_mean_start_has_no_truncation(published: bool) -> None:
    run = TrainConfig(method="lsq", output=Path("x"), task="x", initial_step="mean", as_published=published)
    steps = get_recipe("lsq").learned_steps(run)
    assert steps is not None and (steps.initial, steps.truncation) == ("mean", None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_is_defined(method: str, bits: str) -> None:
    quant = get_recipe(method).quant_config(TrainConfig(method=method, output=Path("x"), task="x", bits=bits))
    assert quant is not None and (quant.bits, quant.learns_activations) == (bits, True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", ["1-1-8", "2-1-8", "32-2-8", "2-2-1", "2-2-32"])
def test_a_width_that_is_not_defined_is_refused_in_one_sentence(method: str, bits: str) -> None:
    run = TrainConfig(method=method, output=Path("x"), task="x", bits=bits)
    with pytest.raises(UsageError) as caught:
        get_recipe(method).quant_config(run)
    message = str(caught.value)
    assert message.startswith(f"method {method} defines 2, 3, 4, 5, 6, 7, 8 bits for weights")
    assert message.endswith(f"got --bits {bits}") and "\n" not in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bits": "4-4-4", "activations": "dynamic-token"}, "dynamic-token"),
        ({"activation_clip": 2.5}, "--activation-clip"),
        ({"truncation": 1.0}, "--truncation"),
        ({"initial_step": "mean", "truncation": 0.1}, "--initial-step mean cuts nothing off"),
        ({"initial_step": "median"}, "--initial-step"),
        ({"method": "ternarybert", "initial_step": "mean"}, "--initial-step"),
        ({"weight_step_lr": 0.0}, "--weight-step-lr"),
        ({"activation_step_lr": -1.0}, "--activation-step-lr"),
        ({"method": "ternarybert", "truncation": 0.1}, "--truncation"),
        ({"method": "q8bert", "weight_step_lr": 0.1}, "--weight-step-lr"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    reviews: Files, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        train(config(reviews, tmp_path / "x", teacher="t", **values))
    assert not (tmp_path / "x").exists()


def test_learned_weights_go_with_dynamic_activations(reviews: Files, teacher: Path, tmp_path: Path) -> None:
    train(config(reviews, tmp_path / "s", teacher=str(teacher), activations="dynamic-token", max_steps=2))
    model = qexport.load(tmp_path / "s")
    weights, activations = learned_thresholds(model)
    assert weights and not activations
