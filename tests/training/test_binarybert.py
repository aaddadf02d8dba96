"""BinaryBERT runs on a tiny task: five stages, what each is made of, interrupted and resumed, refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from tiny_models import save_model
from tiny_runs import Files, StopAt, report

import qexport
from qexport.errors import Interrupted, UsageError
from qexport.training.batches import predict_logits
from qexport.training.data import encode, load_task_data, load_tokenizer
from qexport.training.models import load_encoder
from qexport.training.pairing import quantization_of
from qexport.training.splitting import SplitLinear
from qexport.training.stages import RANKING_ROWS
from qexport.training.student import QuantEmbedding, QuantLinear, quantized_modules
from qexport.training.trainer import train
from qexport.training.width import layer_sizes

config = partial(tiny_runs.config, method="binarybert", lr=1e-3, logging_steps=2)

STAGES = ["half width", "ternary layers", "ternary prediction", "binary layers", "binary prediction"]


@pytest.fixture
def teacher(reviews: Files, tmp_path: Path) -> Path:
    start = save_model(tmp_path / "start")
    train(config(reviews, tmp_path / "teacher", method="fp32", model=str(start), epochs=6, lr=3e-3))
    return tmp_path / "teacher"


def test_binary_student_keeps_what_its_teacher_knows(reviews: Files, teacher: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    output = tmp_path / "student"
    result = train(config(reviews, output, teacher=str(teacher), epochs=3), say=lines.append)
    assert result.metrics["validation/accuracy"] >= 0.85
    values = report(output)
    assert [stage["name"] for stage in values["stages"]] == STAGES
    assert [stage["teacher"] for stage in values["stages"]] == [None, *["half width"] * 4]
    assert values["bits"] == "1-1-8" and values["quantization"]["split_weights"]
    for number, name in enumerate(STAGES, 1):
        assert any(line.startswith(f"[{number}/5 {name}] step ") for line in lines)
    assert any(line.startswith("[3/5 ternary prediction] student: 2-1-8") for line in lines)
    peaks = [max(line.get("learning_rate", 0) for line in stage["history"]) for stage in values["stages"]]
    assert peaks[3] == pytest.approx(2.5 * peaks[4], rel=0.1)
    terms = [
        {key for line in stage["history"] for key in line if key[:5] == "loss_"} for stage in values["stages"]
    ]
    layers, logits = {"loss_hidden", "loss_attention"}, {"loss_logits"}
    assert terms == [{"loss_hidden", "loss_logits"}, layers, logits, layers, logits]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in output.iterdir()}
    assert not (output / "checkpoints").exists()
    model = qexport.load(output)
    layer = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert isinstance(layer, SplitLinear) and layer.first.weight.shape == (10, 20)
    widths = {
        type(module).__name__: module.bits
        for name, module in quantized_modules(model).items()
        if isinstance(module, QuantLinear | QuantEmbedding) and "position" not in name
    }
    assert widths == {"QuantLinear": 1, "QuantEmbedding": 1}


def test_student_of_4_bit_activations_learns_its_steps(reviews: Files, teacher: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    output = tmp_path / "student"
    values = {"bits": "1-1-4", "epochs": 3, "activation_step_lr": 1e-2}
    result = train(config(reviews, output, teacher=str(teacher), **values), say=lines.append)
    assert result.metrics["validation/accuracy"] >= 0.8
    assert [line[:5] for line in lines if "initial steps" in line] == ["[2/5 "]
    quant = report(output)["quantization"]
    assert (quant["bits"], quant["activations"], quant["learned_activations"]) == ("1-1-4", "static", True)
    state = load_file(output / "model.safetensors")
    thresholds = [value for name, value in state.items() if name.endswith("threshold")]
    # one for each tensor that is quantised: 2 layers of Q, K, V, probabilities and 4 inputs, and the pooler's
    assert len(thresholds) == 2 * (4 + 4) + 1 and all(value > 0 for value in thresholds)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_interrupted_stage_resumes_in_that_stage_to_the_same_end(
    reviews: Files, teacher: Path, tmp_path: Path, number: int
) -> None:
    name = STAGES[number - 1]
    values = {"teacher": str(teacher), "max_steps": 6, "eval_steps": 2, "dropout": 0.1}
    train(config(reviews, tmp_path / "whole", **values))
    stop = StopAt(f"[{number}/5 {name}] step 2/6")
    with pytest.raises(Interrupted, match=rf"in stage {name} \({number} of 5\).*--resume"):
        train(config(reviews, tmp_path / "cut", **values), say=stop)
    kept = sorted(path.parent.name for path in (tmp_path / "cut" / "checkpoints").glob("*/model"))
    assert kept == [f"{n}-{STAGES[n - 1].replace(' ', '-')}" for n in range(1, number)]
    lines: list[str] = []
    train(config(reviews, tmp_path / "cut", **values, resume=True), say=lines.append)
    assert lines[2].startswith(f"[{number}/5 {name}] resuming from checkpoint-")
    assert not any(line.startswith(f"[{n}/5") for n in range(1, number) for line in lines)
    whole, cut = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert [stage["steps"] for stage in report(tmp_path / "cut")["stages"]] == [6] * 5


def test_a_stage_that_never_wrote_a_checkpoint_starts_anew(
    reviews: Files, teacher: Path, tmp_path: Path
) -> None:
    """A process killed between two stages leaves finished models and nothing of the next stage."""
    values = {"teacher": str(teacher), "max_steps": 4}
    stop = StopAt("[3/5 ternary prediction] step")
    with pytest.raises(Interrupted):
        train(config(reviews, tmp_path / "cut", **values), say=stop)
    for path in (tmp_path / "cut" / "checkpoints" / "3-ternary-prediction").glob("checkpoint-*"):
        (path / "trainer_state.json").unlink()  # as if it had been killed while it wrote
    lines: list[str] = []
    train(config(reviews, tmp_path / "cut", **values, resume=True), say=lines.append)
    assert lines[1].startswith("[3/5 ternary prediction] student") and "resuming" not in "".join(lines)


def test_stage_stopped_at_its_last_step_is_not_trained_again(
    reviews: Files, teacher: Path, tmp_path: Path
) -> None:
    values = {"teacher": str(teacher), "max_steps": 3, "eval_steps": 3}
    stop = StopAt("[1/5 half width] step 3/3  evaluation")
    with pytest.raises(Interrupted, match=r"stage half width \(1 of 5\) at step 3 of 3"):
        train(config(reviews, tmp_path / "cut", **values), say=stop)
    lines: list[str] = []
    train(config(reviews, tmp_path / "cut", **values, resume=True), say=lines.append)
    assert lines[1].startswith("[2/5 ternary layers] student")
    assert [stage["steps"] for stage in report(tmp_path / "cut")["stages"]] == [3] * 5


def test_half_width_start_is_the_best_half_of_the_teacher(
    reviews: Files, teacher: Path, tmp_path: Path
) -> None:
    values = {"teacher": str(teacher), "max_steps": 2, "lr": 1e-12}
    stop = StopAt("[2/5 ternary layers] step")
    with pytest.raises(Interrupted):
        train(config(reviews, tmp_path / "cut", **values), say=stop)
    half = load_encoder(str(tmp_path / "cut" / "checkpoints" / "1-half-width" / "model"))
    full = load_encoder(str(teacher))
    assert layer_sizes(half) == (1, 22) and layer_sizes(full) == (2, 44)
    quant = quantization_of(half)
    assert (
        quant is not None and quant.bits == "32-32-32" and (quant.kept_heads, quant.kept_neurons) == (1, 22)
    )
    name = "bert.encoder.layer.0.intermediate.dense"
    kept, all_rows = half.get_submodule(name).weight, full.get_submodule(name).weight
    assert all((row - all_rows).abs().sum(1).min() < 1e-6 for row in kept)
    assert RANKING_ROWS >= 256  # every row of the tiny task is used
    data = load_task_data(None, train_file=reviews[0], eval_file=reviews[1])
    rows = encode(data.evals["validation"], load_tokenizer(teacher), 40)
    best, other = (predict_logits(model, rows, pad_id=0, batch_size=16) for model in (half, full))
    assert (best.argmax(-1) == other.argmax(-1)).mean() > 0.6


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bits": "2-2-8"}, "defines 1 bits for weights and 1, 2, 8 for embeddings and 4, 8 for activations"),
        ({"bits": "1-4-8"}, "1, 2, 8 for embeddings"),
        ({"bits": "1-2-8", "as_published": True}, "only 1-bit weights are split"),
        ({"bits": "1-1-2"}, "4, 8 for activations"),
        ({"bits": "1-1-4", "activations": "dynamic-token"}, "where their steps are learned"),
        ({"activation_step_lr": 0.1}, "no learned steps with 8-bit activations"),
        ({"model": "minilm"}, "leave --model minilm out"),
        ({"teacher": None}, "needs --teacher"),
        ({"logits_weight": 0.0}, "stage 'ternary prediction' of binarybert"),
    ],
)
def test_what_the_method_does_not_define_is_refused_before_any_work(
    reviews: Files, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        train(config(reviews, tmp_path / "x", **{"teacher": "t", **values}))
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_teacher_with_a_single_head_is_refused(reviews: Files, tmp_path: Path) -> None:
    start = save_model(tmp_path / "one", num_attention_heads=1)
    with pytest.raises(UsageError, match="1 attention head"):
        train(config(reviews, tmp_path / "x", teacher=str(start)))


def test_published_setting_splits_the_embedding_too(reviews: Files, teacher: Path, tmp_path: Path) -> None:
    train(config(reviews, tmp_path / "student", teacher=str(teacher), max_steps=2, as_published=True))
    state = load_file(tmp_path / "student" / "model.safetensors")
    assert {
        "bert.embeddings.word_embeddings.first.weight",
        "bert.embeddings.word_embeddings.second.weight",
    } <= {*state}
    quant = report(tmp_path / "student")["quantization"]
    assert (quant["granularity"], quant["activations"], quant["activation_clip"]) == (
        "matrix",
        "dynamic-tensor",
        2.5,
    )
