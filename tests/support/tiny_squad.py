"""Questions in the layout of SQuAD that a tiny model can learn: the answer is the adjective of the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import BAD, GOOD


def squad_file(path: Path, articles: list[tuple[str, list[dict[str, Any]]]]) -> Path:
    """Write titles with paragraphs {"context", "qas"}."""
    data = [{"title": title, "paragraphs": paragraphs} for title, paragraphs in articles]
    path.write_text(json.dumps({"version": "made here", "data": data}), encoding="utf-8")
    return path


def question(
    key: str, context: str, *answers: str, text: str = "the film", impossible: bool = False
) -> dict[str, Any]:
    """One entry of "qas"; answers stand where they are first found."""
    found = [{"text": answer, "answer_start": context.find(answer)} for answer in answers]
    return {"id": key, "question": text, "answers": found, "is_impossible": impossible}


def write_questions(
    path: Path, articles: int, each: int = 8, *, seed: int = 0, empty: float = 0.0, words: int = 3
) -> Path:
    """Write `articles` with `each` paragraphs of one question; a part of them has no answer."""
    rng = np.random.default_rng(seed)
    made = []
    for article in range(articles):
        paragraphs = []
        for number in range(each):
            key = f"{seed}-{article}-{number}"
            before, after = ("very " * int(count) for count in rng.integers(0, words, 2))
            if rng.random() < empty:
                context = f"the {rng.choice(['film', 'plot'])} is {before}so {after}".strip()
                paragraphs.append({"context": context, "qas": [question(key, context, impossible=True)]})
            else:
                word = str(rng.choice([*GOOD, *BAD]))
                context = f"the {rng.choice(['film', 'plot'])} is {before}{word} so {after}".strip()
                paragraphs.append({"context": context, "qas": [question(key, context, word)]})
        made.append((f"article {seed}-{article}", paragraphs))
    return squad_file(path, made)
