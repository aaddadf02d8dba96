"""Ghost modules: their formula, their padding, the surgery, and a run of the method on a tiny task."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from tiny_models import save_model, tiny_model
from tiny_runs import Files, report
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import qexport
from qexport.errors import UnsupportedModelError, UsageError
from qexport.training.ghosts import GhostLinear, ghost_count
from qexport.training.quant_config import QuantConfig
from qexport.training.student import QuantLinear, quantize_model
from qexport.training.trainer import train

config = partial(tiny_runs.config, method="ghostbert", lr=2e-3, logging_steps=2)

FAMILIES = ("bert", "roberta", "distilbert", "electra")


def layer(groups: int = 3, ghosts: int = 2, kernel: int = 3, *, gain: bool = True) -> GhostLinear:
    """8 inputs, 5 outputs, random kernels and gains, evaluation mode."""
    torch.manual_seed(0)
    made = GhostLinear(nn.Linear(8, 5), groups=groups, ghosts=ghosts, kernel=kernel, gain=gain)
    with torch.no_grad():
        for parameter in (made.taps, made.gain):
            if parameter is not None:
                parameter.normal_()
    return made.eval()


def by_hand(ghost: GhostLinear, x: torch.Tensor) -> torch.Tensor:
    """The formula, token by token."""
    length, n_out = x.shape[1], ghost.out_features
    kernels = torch.softmax(ghost.taps, -1).reshape(len(ghost.sizes), n_out, ghost.ghosts, ghost.kernel)
    gains = torch.ones(kernels.shape[:3]) if ghost.gain is None else ghost.gain.reshape(kernels.shape[:3])
    total = ghost.bias.expand(x.shape[0], length, n_out).clone()
    start = 0
    for h, part in enumerate(ghost.parts):
        made = x[..., start : start + ghost.sizes[h]] @ part.weight.T
        start += ghost.sizes[h]
        total += made
        for f in range(ghost.ghosts):
            for token in range(length):
                seen = torch.zeros(x.shape[0], n_out)
                for j in range(ghost.kernel):
                    at = token + j - ghost.kernel // 2
                    if 0 <= at < length:
                        seen += kernels[h, :, f, j] * made[:, at]
                total[:, token] += gains[h, :, f] * seen.clamp(min=0)
    return total


@pytest.mark.parametrize(("groups", "ghosts", "kernel"), [(3, 2, 3), (1, 1, 1), (2, 1, 5)])
@pytest.mark.parametrize("gain", [True, False])
def test_ghost_layer_is_the_formula(groups: int, ghosts: int, kernel: int, gain: bool) -> None:
    ghost = layer(groups, ghosts, kernel, gain=gain)
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = by_hand(ghost, x)
        torch.testing.assert_close(ghost(x), expected, atol=1e-5, rtol=1e-5)
        kernels = ghost.kernels()
        torch.testing.assert_close(kernels.sum(-1), torch.ones(len(kernels), 1))
        torch.testing.assert_close(ghost.train()(x), expected, atol=1e-5, rtol=1e-5)  # by a convolution
        ghost.train(False).fold()
        assert "_folded" in dict(ghost.named_buffers())
        torch.testing.assert_close(ghost(x), expected, atol=1e-5, rtol=1e-5)


def test_gradients_of_a_ghost_layer_are_those_of_its_formula() -> None:
    ghost = layer().double()
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = dict(ghost.named_parameters())

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(ghost, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, tuple(parameters.values()))


@pytest.mark.parametrize(
    ("heads", "kept", "ghosts"), [(12, 12, 1), (12, 9, 1), (12, 6, 1), (12, 3, 3), (12, 1, 11)]
)
def test_ghosts_make_up_for_the_heads_that_were_cut(heads: int, kept: int, ghosts: int) -> None:
    assert ghost_count(heads, kept) == ghosts


def batch(length: int = 9, pad: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 40, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    tail = torch.zeros(3, pad, dtype=torch.int64)
    return {"input_ids": torch.cat([ids * mask, tail], 1), "attention_mask": torch.cat([mask, tail], 1)}


def student(family: str, bits: str = "32-32-32", **values: Any) -> PreTrainedModel:
    """A tiny encoder of four heads cut to two, with random kernels, gains and biases."""
    heads = {"n_heads": 4} if family == "distilbert" else {"num_attention_heads": 4}
    model = tiny_model(family, **heads)
    fields = {"kept_heads": 2, "kept_neurons": 22, "ghosts": 2, "position_bits": 32, **values}
    quantize_model(model, QuantConfig(method="ghostbert", bits=bits, **fields))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith(("taps", "gain")):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_new_ghosts_with_a_gain_change_nothing(family: str) -> None:
    heads = {"n_heads": 4} if family == "distilbert" else {"num_attention_heads": 4}
    plain, ghosts, bare = (
        quantize_model(
            tiny_model(family, **heads),
            QuantConfig(
                method="ghostbert", bits="32-32-32", position_bits=32, kept_heads=2, kept_neurons=21, **values
            ),
        ).eval()
        for values in ({}, {"ghosts": 3}, {"ghosts": 3, "ghost_gain": False})
    )
    assert sum(isinstance(module, GhostLinear) for module in ghosts.modules()) == 4
    with torch.no_grad():
        expected = plain(**batch()).logits
        torch.testing.assert_close(ghosts(**batch()).logits, expected, atol=1e-5, rtol=1e-5)
        assert (bare(**batch()).logits - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", ["32-32-32", "2-2-8"])
def test_logits_do_not_depend_on_padding(family: str, bits: str) -> None:
    model = student(family, bits)
    with torch.no_grad():
        short, long = (model(**batch(pad=pad)).logits for pad in (0, 7))
        torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-5)
        positional = model(*batch(pad=7).values()).logits  # the mask may come without its name
        assert torch.equal(positional, long)
        unmasked = model(batch(pad=7)["input_ids"]).logits
        assert (unmasked - long).abs().max() > 1e-4


def test_a_copy_of_a_student_and_a_folder_compute_the_same(tmp_path: Path) -> None:
    for bits in ("32-32-32", "8-8-8"):
        model, folder = student("bert", bits), tmp_path / bits
        model.save_pretrained(folder)
        with torch.no_grad():
            expected = model(**batch()).logits
            assert torch.equal(copy.deepcopy(model)(**batch()).logits, expected)
            assert torch.equal(qexport.load(folder)(**batch()).logits, expected)
            other = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            assert torch.equal(other(**batch()).logits, expected)


def test_quantised_student_keeps_kernels_float() -> None:
    model = student("bert", "2-2-8")
    ghost = model.get_submodule("bert.encoder.layer.0.output.dense")
    assert isinstance(ghost, GhostLinear) and all(isinstance(part, QuantLinear) for part in ghost.parts)
    assert ghost.taps.dtype == torch.float32 and len(ghost.parts) == 2
    model.train()(**batch()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_cuts_sentences_into_pieces_is_refused() -> None:
    model = tiny_model("bert")
    model.config.chunk_size_feed_forward = 4
    quant = QuantConfig(
        method="ghostbert", bits="32-32-32", position_bits=32, kept_heads=1, kept_neurons=22, ghosts=1
    )
    with pytest.raises(UnsupportedModelError, match="chunk_size_feed_forward 4"):
        quantize_model(model, quant)


def test_ghost_student_is_distilled_fine_tuned_and_quantised(reviews: Files, tmp_path: Path) -> None:
    start = save_model(tmp_path / "start", num_attention_heads=4)
    train(config(reviews, tmp_path / "teacher", method="fp32", model=str(start), epochs=4, lr=4e-3))
    values = {"teacher": str(tmp_path / "teacher"), "epochs": 1, "width": 0.25, "bits": "2-2-8"}
    lines: list[str] = []
    output = tmp_path / "student"
    result = train(config(reviews, output, **values), say=lines.append)
    assert result.metrics["validation/accuracy"] >= 0.85
    found = report(output)
    assert [(stage["name"], stage["teacher"]) for stage in found["stages"]] == [
        ("ghosts", None), ("labels", None), ("quantised", "labels"),
    ]  # fmt: skip
    terms = [
        {key for line in stage["history"] for key in line if key[:5] == "loss_"} for stage in found["stages"]
    ]
    assert terms[:2] == [{"loss_hidden", "loss_logits"}, {"loss_label"}] and len(terms[2]) == 3
    fields = ("bits", "kept_heads", "kept_neurons", "ghosts", "ghost_kernel", "ghost_gain")
    assert [found["quantization"][field] for field in fields] == ["2-2-8", 1, 11, 3, 3, True]
    ghost = qexport.load(output).get_submodule("bert.encoder.layer.1.attention.output.dense")
    assert isinstance(ghost, GhostLinear) and ghost.taps.abs().max() > 0 and ghost.gain.abs().max() > 0
    uneven = {**values, "max_steps": 2, "activations": "static", "asymmetric": "feed-forward"}
    train(config(reviews, tmp_path / "uneven", **uneven))
    quant = report(tmp_path / "uneven")["quantization"]
    assert (quant["asymmetric"], quant["ghosts"]) == ("feed-forward", 3)
    values |= {"bits": None, "max_steps": 2, "ghosts": 1, "ghost_kernel": 5, "as_published": True}
    train(config(reviews, tmp_path / "float", **values), say=lines.append)
    found = report(tmp_path / "float")
    assert [found["quantization"][field] for field in fields] == ["32-32-32", 1, 11, 1, 5, False]
    assert [stage["name"] for stage in found["stages"]] == ["ghosts", "labels"]
    assert lines[-1].startswith("[2/2 labels]")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 1.5}, "--width is a share"),
        ({"ghost_kernel": 4}, "--ghost-kernel must be odd"),
        ({"ghosts": 0}, "--ghosts must be greater than 0"),
        ({"bits": "4-4-8"}, "defines 2, 8 bits for weights and embeddings and 8 for activations"),
        ({"bits": "2-2-4"}, "defines 2, 8 bits"),
        ({"granularity": "row"}, "trains a float model; --granularity row"),
        ({"method": "ternarybert", "width": 0.5}, "has no ghost modules, so --width 0.5"),
        ({"method": "fp32", "ghosts": 2, "teacher": None}, "has no ghost modules, so --ghosts 2"),
        ({"model": "minilm"}, "starts from its teacher; leave --model minilm out"),
    ],
)
def test_what_has_no_meaning_is_refused_before_any_work(
    reviews: Files, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        train(config(reviews, tmp_path / "x", **{"teacher": "t", **values}))
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()
