"""Distillation losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from qexport.training.distill import attention_loss, hidden_loss, label_loss, logits_loss


def test_hidden_loss_sums_the_means_of_all_layers() -> None:
    student = [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)]
    teacher = [torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 3.0)]
    assert float(hidden_loss(student, teacher)) == pytest.approx(4 + 9)


def test_hidden_loss_refuses_another_number_of_layers() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        hidden_loss([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)])


def test_attention_loss_counts_masked_keys_as_zero_on_both_sides() -> None:
    student = [torch.tensor([[[[1.0, -9999.0]]]])]
    teacher = [torch.tensor([[[[3.0, -10003.0]]]])]
    assert float(attention_loss(student, teacher)) == pytest.approx(4 / 2)


def test_logits_loss_is_the_soft_cross_entropy_over_classes() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    assert float(logits_loss(student, teacher)) == pytest.approx(math.log(2) / 2)
    hot = logits_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]]), temperature=2.0)
    log_p = torch.log_softmax(torch.tensor([1.0, 0.0]), 0)
    assert float(hot) == pytest.approx(float(-(0.75 * log_p[0] + 0.25 * log_p[1]) / 2))


def test_logits_loss_of_a_single_output_is_the_squared_difference() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])
    assert float(logits_loss(student, teacher, regression=True)) == pytest.approx(2.5)
    assert float(logits_loss(student, teacher)) == 0  # why regression needs its own rule


def test_label_loss_handles_classes_and_numbers() -> None:
    assert float(label_loss(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))) == pytest.approx(math.log(2))
    assert float(label_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 3.0]), regression=True)) == 0.5
