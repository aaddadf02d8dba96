"""Pooling and the losses of the two kinds, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qexport.serving.word_pieces import IGNORED
from qexport.training.config import TrainConfig
from qexport.training.kinds import get_kind, kind_of_config
from qexport.training.kinds.embedding import EMBEDDING, mean_pool
from qexport.training.kinds.tokens import TOKENS
from qexport.training.recipes import get_recipe
from qexport.training.stages import plan_stages


def test_mean_pool_leaves_padding_out_and_has_length_1() -> None:
    hidden = torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]], [[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]]])
    found = mean_pool(hidden, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    assert torch.isfinite(mean_pool(torch.zeros(1, 2, 2), torch.zeros(1, 2))).all()


def test_embedding_loss_is_one_minus_the_mean_cosine() -> None:
    student = {"sentence_embedding": torch.tensor([[1.0, 0.0], [0.6, 0.8]])}
    teacher = {"sentence_embedding": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    loss = EMBEDDING.logits_loss(student, teacher, features={}, temperature=1.0)
    assert float(loss) == pytest.approx(0.1)


def test_embeddings_of_other_widths_are_compared_by_the_cosines_between_sentences() -> None:
    student = {"sentence_embedding": torch.tensor([[1.0, 0.0], [0.6, 0.8]])}
    teacher = {"sentence_embedding": torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])}
    loss = EMBEDDING.logits_loss(student, teacher, features={}, temperature=1.0)
    assert float(loss) == pytest.approx((0 + 0.6**2 + 0.6**2 + 0) / 4)


def test_stages_that_learn_from_labels_only_are_left_out() -> None:
    config = TrainConfig(method="ghostbert", bits="2-2-8", task="embedding", teacher="t", output=Path("out"))
    plan = plan_stages(get_recipe("ghostbert"), config)
    assert [(stage.name, stage.teacher) for stage in plan] == [("ghosts", ""), ("quantised", "ghosts")]
    assert all(stage.losses.label == 0 for stage in plan)


def test_token_losses_leave_padding_and_other_pieces_out() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)], [50.0, -50.0]]])
    labels = torch.tensor([[IGNORED, 1, IGNORED]])
    assert float(TOKENS.label_loss({"logits": logits}, labels)) == pytest.approx(-math.log(0.75))
    features = {"attention_mask": torch.tensor([[1, 1, 0]])}
    teacher = {"logits": torch.zeros(1, 3, 2)}
    loss = TOKENS.logits_loss({"logits": logits}, teacher, features=features, temperature=1.0)
    by_hand = -(2 * 0.5 * math.log(0.5) + 0.5 * math.log(0.25) + 0.5 * math.log(0.75)) / 4
    assert float(loss) == pytest.approx(by_hand)


class _Config:
    num_labels = 3

    def __init__(self, name: str) -> None:
        self.architectures = [name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("BertModel", "embedding"), ("RobertaForTokenClassification", "tokens"), ("BertLMHeadModel", None)],
)
def test_kind_is_told_by_the_architecture(name: str, kind: str | None) -> None:
    assert kind_of_config(_Config(name)) is (None if kind is None else get_kind(kind))
