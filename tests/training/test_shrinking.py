"""A smaller encoder out of a fine-tuned one: the same where nothing is cut, near where it can be, refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_models import tiny_model
from transformers import PreTrainedModel

from qexport.errors import UsageError
from qexport.training.attention import ATTENTION_NAME
from qexport.training.recipes.base import StudentSize
from qexport.training.shrinking import pick_channels, shrink, size_of

FAMILIES = ("bert", "roberta", "electra", "distilbert")


def batches() -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        ids = torch.randint(4, 20, (16, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[3, 5:] = 0
        yield {"input_ids": ids, "attention_mask": mask}


def model(family: str = "bert", **sizes: int) -> PreTrainedModel:
    result = tiny_model(family, **sizes).eval()
    result.set_attn_implementation(ATTENTION_NAME)
    return result


@torch.no_grad()
def outputs(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and scores of the first layer."""
    found = model.eval()(**next(batches()), output_attentions=True)
    return found.logits, found.attentions[0]


def size(layers: int = 2, hidden: int = 20, neurons: int = 44, heads: int = 2) -> StudentSize:
    return StudentSize(layers=layers, hidden_size=hidden, intermediate_size=neurons, heads=heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_student_of_the_teachers_size_is_the_teacher(family: str) -> None:
    teacher = model(family)
    assert size_of(teacher.config) == size()
    student = shrink(teacher, size(), batches)
    assert torch.equal(outputs(student)[0], outputs(teacher)[0])


def test_encoder_without_a_pooler_stays_without() -> None:
    teacher = get_base(model())
    student = shrink(teacher, size(1, 12, 30, 2), batches)
    assert hasattr(student, "pooler") and "pooler" not in dict(student.named_children())
    assert not any("pooler" in name for name in student.state_dict())


def get_base(classifier: PreTrainedModel) -> PreTrainedModel:
    """The encoder as `--task embedding` loads it."""
    base = classifier.base_model
    assert isinstance(base, PreTrainedModel)
    base.register_module("pooler", None)
    return base


@pytest.mark.parametrize("family", FAMILIES)
def test_smaller_student_has_the_size_asked_for(family: str) -> None:
    wanted = size(1, 12, 30, 2)
    student = shrink(model(family), wanted, batches)
    assert size_of(student.config) == wanted
    assert outputs(student)[1].shape[1] == 2
    assert not any(parameter.isnan().any() for parameter in student.parameters())


def test_fewer_layers_are_those_of_the_map() -> None:
    teacher = model(num_hidden_layers=4)
    student = shrink(teacher, size(2), batches)
    for ours, theirs in ((0, 1), (1, 3)):
        name = "bert.encoder.layer.{}.output.dense.weight"
        assert torch.equal(
            student.get_parameter(name.format(ours)), teacher.get_parameter(name.format(theirs))
        )


def test_first_heads_and_neurons_are_kept() -> None:
    student, teacher = shrink(model(), size(heads=2, neurons=40), batches), model()
    up = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(student.get_parameter(up), teacher.get_parameter(up)[:40])
    one = shrink(model(num_attention_heads=4), size(heads=2), batches)  # heads of 5 become heads of 10
    assert torch.allclose(outputs(one)[1], outputs(model(num_attention_heads=4))[1][:, :2], atol=1e-5)


def test_redundant_channels_are_cut_without_a_trace() -> None:
    """Width 20 whose last 8 channels repeat others: 12 explain all, and scores stay what they were."""
    teacher = model(num_hidden_layers=1, num_attention_heads=1)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "embeddings" in name:
                parameter[..., 12:] = parameter[..., :8]
    student = shrink(teacher, size(1, 12, 44, 1), batches)
    assert torch.allclose(
        outputs(student)[1], outputs(teacher)[1], atol=0.02 * float(outputs(teacher)[1].std())
    )


def test_smaller_heads_keep_scores_of_low_rank() -> None:
    teacher = model(num_hidden_layers=1, num_attention_heads=1)
    with torch.no_grad():
        for name in ("query", "key"):
            linear = teacher.get_submodule(f"bert.encoder.layer.0.attention.self.{name}")
            assert isinstance(linear, torch.nn.Linear)
            linear.weight[6:] = 0.0  # a bilinear form of rank 6
            linear.bias.copy_(torch.arange(20) / 20)
            linear.bias[6:] = 0.0
    student = shrink(teacher, size(1, 16, 44, 1), batches)
    errors = (outputs(student)[1] - outputs(teacher)[1]).square().mean().sqrt()
    assert float(errors) < 0.35 * float(outputs(teacher)[1].std())
    assert torch.isfinite(outputs(student)[0]).all()


def test_channels_that_explain_the_others_are_picked() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(500, 3, generator=generator).double()
    columns = torch.stack([base[:, 0], base[:, 1] * 5, base[:, 0] * 0.5, base[:, 2], base[:, 1]], 1)
    assert pick_channels(torch.cov(columns.T), 3).tolist() == [0, 1, 3]
    assert pick_channels(torch.zeros(4, 4).double(), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (size(3), "--layers is 3, the teacher has 2"),
        (size(hidden=24), "--hidden-size is 24, the teacher has 20"),
        (size(neurons=45), "--intermediate-size is 45, the teacher has 44"),
        (size(heads=4), "--heads is 4, the teacher has 2"),
        (size(hidden=15), "--hidden-size must be a multiple of --heads, got 15 and 2"),
    ],
)
def test_size_that_cannot_be_made_is_refused(wanted: StudentSize, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shrink(model(), wanted, batches)
