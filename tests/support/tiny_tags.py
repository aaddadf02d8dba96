"""A made-up world of names and places: tagged sentences that a tiny model can learn, and scored pairs."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import tiny_model, tiny_tokenizer

PEOPLE, PLACES = ("good", "great", "fine"), ("bad", "awful", "poor")
"""Words of the tiny vocabulary that stand for names."""


def write_conll(path: Path, sentences: int, seed: int = 0) -> Path:
    """PER is one or two of PEOPLE, LOC one of PLACES; IOB2, four columns, documents of five sentences."""
    generator = torch.Generator().manual_seed(seed)

    def pick(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    lines = []
    for number in range(sentences):
        if number % 5 == 0:
            lines += ["-DOCSTART- -X- -X- O", ""]
        rows = [("the", "O"), (pick(("film", "plot")), "O"), (pick(("is", "was")), "O")]
        rows.append((pick(PEOPLE), "B-PER"))
        if number % 2:
            rows.append((pick(PEOPLE), "I-PER"))
        rows += [("very", "O"), (pick(PLACES), "B-LOC")]
        lines += [*(f"{word} X Y {tag}" for word, tag in rows), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_pairs(path: Path, pairs: int, seed: int = 0) -> Path:
    """Two texts and the part of their words that they share, 0 to 5."""
    generator = torch.Generator().manual_seed(seed)
    words = ("the", "film", "plot", "is", "was", "very", "so", *PEOPLE, *PLACES)
    lines = ["sentence1\tsentence2\tscore"]
    for _ in range(pairs):
        both = [torch.randint(len(words), (5,), generator=generator).tolist() for _ in range(2)]
        shared = int(torch.randint(6, (1,), generator=generator))
        both[1][:shared] = both[0][:shared]
        texts = [" ".join(words[index] for index in row) for row in both]
        lines.append(f"{texts[0]}\t{texts[1]}\t{shared}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_encoder(folder: Path, model_type: str = "bert") -> Path:
    """An encoder without a head, as sentence encoders are published."""
    model = tiny_model(model_type)
    getattr(model, model.base_model_prefix).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = '{"pad_token": "[PAD]", "model_max_length": 40, "tokenizer_class": "PreTrainedTokenizerFast"}'
    (folder / "tokenizer_config.json").write_text(settings)
    return folder
