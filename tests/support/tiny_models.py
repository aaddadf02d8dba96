"""Tiny encoders, a tiny tokenizer and a tiny data set, all made here."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

GOOD = ("good", "great", "fine", "superb")
BAD = ("bad", "awful", "poor", "dull")
_WORDS = ("the", "a", "film", "plot", "is", "was", "very", "so", *GOOD, *BAD)
_SIZES = {
    "bert": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 20, "intermediate_size": 44},
    "roberta": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 20, "intermediate_size": 44},
    "electra": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 20,
        "intermediate_size": 44,
        "embedding_size": 12,
    },
    "distilbert": {"n_layers": 2, "n_heads": 2, "dim": 20, "hidden_dim": 44},
}


def tiny_tokenizer() -> Tokenizer:
    vocabulary = {name: index for index, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def tiny_model(
    model_type: str,
    seed: int = 0,
    *,
    spread: float = 0.2,
    head: Any = AutoModelForSequenceClassification,
    **kwargs: Any,
) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        model_type,
        max_position_embeddings=40,
        pad_token_id=0,
        **{"vocab_size": 40, **_SIZES[model_type], **kwargs},
    )
    config.initializer_range = spread
    model: PreTrainedModel = head.from_config(config)
    return model


def save_model(folder: Path, model_type: str = "bert", **kwargs: Any) -> Path:
    tiny_model(model_type, **kwargs).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]", "model_max_length": 40}')
    return folder


def write_reviews(path: Path, rows: int, seed: int = 0, words: int | None = None) -> Path:
    generator = torch.Generator().manual_seed(seed)

    def pick(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for row in range(rows):
            label = row % 2
            text = ["the", ("film", "plot")[pick(2)], ("is", "was")[pick(2)], (BAD, GOOD)[label][pick(4)]]
            extra = pick(4) if words is None else words
            writer.writerow((" ".join([*text, *["very"] * extra]), ("negative", "positive")[label]))
    return path
