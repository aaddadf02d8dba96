"""Sentence embeddings: the mean over tokens of the last hidden states, scaled to length 1.

As the sentence-transformers models with the modules Transformer, Pooling (mean) and Normalize (Reimers and
Gurevych 2019, section 3). There are no labels: a student learns its teacher's vectors, by cosine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

from qexport.training.kinds.base import Kind, Named

__all__ = ["EMBEDDING", "Embedding", "Encoder", "mean_pool"]


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each row, scaled to length 1.

    Args:
        hidden: float32 [B, S, D].
        mask: [B, S], 0 on padding.
    Returns:
        float32 [B, D].
    """
    kept = mask.to(hidden.dtype).unsqueeze(-1)  # (B, S, 1)
    mean = (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1e-9)
    length = (mean * mean).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
    return mean / length


class Encoder:
    """Loads an encoder without a head; BERT's pooler, which nothing here reads, is left out."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """As transformers' AutoModel."""
        model: PreTrainedModel = AutoModel.from_pretrained(*args, **kwargs)
        if getattr(model, "pooler", None) is not None:
            model.register_module("pooler", None)
        return model


class Embedding(Kind):
    """A vector for each sentence."""

    name = "embedding"
    outputs = ("sentence_embedding", "last_hidden_state")
    architecture = "Model"
    soft = False
    labelled = False
    model = "sentence encoder"
    auto_class = Encoder

    def heads(self, architecture: str) -> bool:
        """An encoder without a head: BertModel, not BertLMHeadModel."""
        return architecture.endswith(self.architecture) and "Head" not in architecture

    def read(self, found: Any, features: Named) -> dict[str, Tensor]:
        """sentence_embedding float32 [B, D] and last_hidden_state float32 [B, S, D]."""
        hidden = found.last_hidden_state
        return {
            "sentence_embedding": mean_pool(hidden, features["attention_mask"]),
            "last_hidden_state": hidden,
        }

    def label_loss(self, named: Named, labels: Tensor) -> Tensor:
        """How far the rows of a batch are from each other, mean squared cosine of two rows.

        No loss of a training: sentences have no labels. Methods that rank heads and neurons read its
        gradient, and an evaluation reports it: it falls as the vectors spread.
        """
        vectors = named["sentence_embedding"]
        return (vectors @ vectors.T).square().mean()

    def logits_loss(self, student: Named, teacher: Named, *, features: Named, temperature: float) -> Tensor:
        """1 minus the cosine between the two vectors of a sentence, mean over sentences.

        Vectors of two widths have no cosine: then the cosines between the sentences of a batch are compared,
        by their mean squared difference (after Tung and Mori 2019).
        """
        ours, theirs = student["sentence_embedding"], teacher["sentence_embedding"]
        if ours.shape != theirs.shape:
            return functional.mse_loss(ours @ ours.T, theirs @ theirs.T)
        return torch.mean(1.0 - functional.cosine_similarity(ours, theirs))


EMBEDDING = Embedding()
