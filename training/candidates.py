"""Candidates: what a masked language model, or word vectors, would put in the place of the words of a text.

Source: TinyBERT (Jiao et al. 2020), algorithm 1, as in its released code. A word of one token is masked,
and the model reads the masked text and the original one as a pair; its likeliest tokens are the candidates,
without those that go on a word. A word of several tokens has its nearest neighbours among word vectors, or
none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedModel

from qexport.atomic import disk_errors
from qexport.cache import cache_folder
from qexport.errors import UnsupportedModelError, UsageError
from qexport.training.augmentation import Word, augment_split, is_replaceable
from qexport.training.config import TrainConfig
from qexport.training.data import TaskData, load_tokenizer
from qexport.training.glove import WordVectors
from qexport.training.models import load_masked_lm, resolve_model

__all__ = ["CandidateFinder", "augment_data"]

_FORMAT = "qexport-candidates-1"
_BATCH = 32
_TEXTS = 64  # between two writes to the cache


class CandidateFinder:
    """Finds the words of texts that can be replaced, and what by; remembers texts on disk."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        count: int = 15,
        vectors: WordVectors | None = None,
        cache: Path | None = None,
    ) -> None:
        """Take a masked language model over.

        Args:
            model: from `load_masked_lm`.
            tokenizer: of the model.
            count: tokens, or neighbours, that are looked at for a word.
            vectors: for words of several tokens; None: those stay.
            cache: folder of results; default: that of token ids.
        Raises:
            UnsupportedModelError: a tokenizer without a mask token.
        """
        self.model, self.count, self.vectors = model, count, vectors
        content = json.loads(tokenizer.to_str())
        self._kind = content["model"]["type"]
        self._prefix = content["model"].get("continuing_subword_prefix") or "##"
        self._special = {token["id"] for token in content["added_tokens"] if token["special"]}
        masks = [tokenizer.token_to_id(token) for token in ("[MASK]", "<mask>")]
        found = [mask for mask in masks if mask is not None]
        if not found:
            raise UnsupportedModelError(
                "the tokenizer of --augment-model has no mask token; name a masked language model such as "
                "bert-base-uncased"
            )
        self._mask = int(found[0])
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pairs = Tokenizer.from_str(self._tokenizer.to_str())
        positions = int(model.config.max_position_embeddings)
        self._pairs.enable_truncation(positions - 2, strategy="longest_first")  # RoBERTa leaves out two
        key = hashlib.sha256("\n".join((_FORMAT, str(count), vectors.digest if vectors else "",
                                        self._tokenizer.to_str())).encode())  # fmt: skip
        for name, tensor in model.state_dict().items():
            key.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self._file = (cache_folder() if cache is None else cache) / "candidates" / f"{key.hexdigest()}.jsonl"

    def find(self, texts: Sequence[str], say: Callable[[str], None] = lambda line: None) -> list[list[Word]]:
        """The replaceable words of each text, in order.

        Results are appended to the cache as they come, so a run that was cut off goes on where it was; its
        last line may be half written, and is then found again.

        Args:
            texts: any number, the same ones more than once too.
            say: takes a line of progress from time to time.
        """
        known = self._remembered()
        missing = [text for text in dict.fromkeys(texts) if _digest(text) not in known]
        started = last = time.monotonic()
        for done in range(0, len(missing), _TEXTS):
            if time.monotonic() - last > 10:
                last = time.monotonic()
                left = (last - started) / done * (len(missing) - done)
                say(f"augmentation: candidates of {done}/{len(missing)} texts, {left:.0f} s left")
            some = missing[done : done + _TEXTS]
            found = {_digest(text): words for text, words in zip(some, self._search(some), strict=True)}
            known.update(found)
            self._remember(found)
        return [known[_digest(text)] for text in texts]

    def _remembered(self) -> dict[str, list[Word]]:
        known: dict[str, list[Word]] = {}
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return known
        for line in lines:
            try:
                digest, words = json.loads(line)
                known[digest] = [Word(start, end, tuple(choices)) for start, end, choices in words]
            except (ValueError, TypeError):
                continue
        return known

    def _remember(self, found: dict[str, list[Word]]) -> None:
        if int(os.environ.get("RANK", "0")) > 0:
            return
        lines = [
            json.dumps([digest, [[word.start, word.end, word.choices] for word in words]])
            for digest, words in found.items()
        ]
        with disk_errors(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" + "\n".join(lines) + "\n")  # a half line before it stays alone

    def _search(self, texts: Sequence[str]) -> list[list[Word]]:
        pairs = self._pairs.encode_batch([(text, text) for text in texts])
        results: list[list[Word]] = [[] for _ in texts]
        asked: list[tuple[int, int, int, int]] = []  # text, start, end, position in the pair
        for number, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
            first = [place for place, part in enumerate(pair.sequence_ids) if part == 0]
            for start, end, tokens in self._words(text):
                if len(tokens) == 1 and tokens[0] < len(first):
                    asked.append((number, start, end, first[tokens[0]]))
                elif len(tokens) > 1 and self.vectors is not None:
                    word = text[start:end].lower()
                    near = self.vectors.nearest(word, self.count)
                    if near:
                        results[number].append(Word(start, end, near))
        asked.sort(key=lambda one: len(pairs[one[0]].ids))
        for begin in range(0, len(asked), _BATCH):
            some = asked[begin : begin + _BATCH]
            choices = self._predict([(pairs[number], place) for number, _, _, place in some])
            for (number, start, end, _), chosen in zip(some, choices, strict=True):
                if chosen:
                    results[number].append(Word(start, end, chosen))
        return [sorted(words, key=lambda word: word.start) for words in results]

    def _words(self, text: str) -> Iterator[tuple[int, int, list[int]]]:
        """Characters and tokens of each word that may be replaced."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        tokens: dict[int, list[int]] = {}
        for token, word in enumerate(encoding.word_ids):
            if word is not None:
                tokens.setdefault(word, []).append(token)
        for places in tokens.values():
            start, end = encoding.offsets[places[0]][0], encoding.offsets[places[-1]][1]
            start += len(text[start:end]) - len(text[start:end].lstrip())
            if is_replaceable(text[start:end]):
                yield start, end, places

    @torch.no_grad()
    def _predict(self, masked: Sequence[tuple[Encoding, int]]) -> list[tuple[str, ...]]:
        """The words that the model puts at one position of each pair."""
        width = max(len(pair.ids) for pair, _ in masked)
        ids, types, mask = (torch.zeros(len(masked), width, dtype=torch.int64) for _ in range(3))
        for row, (pair, place) in enumerate(masked):
            length = len(pair.ids)
            ids[row, :length] = torch.tensor(pair.ids)
            types[row, :length] = torch.tensor(pair.type_ids)
            mask[row, :length] = 1
            ids[row, place] = self._mask
        features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            features["token_type_ids"] = types
        logits = self.model(**features).logits
        places = torch.tensor([place for _, place in masked])
        best = logits[torch.arange(len(masked)), places].topk(min(self.count, logits.shape[-1])).indices
        return [tuple(filter(None, map(self._text, row))) for row in best.tolist()]

    def _text(self, token: int) -> str:
        """A token as a word; empty for one that goes on a word, or is none."""
        name = self._tokenizer.id_to_token(token)
        if name is None or token in self._special:
            return ""
        if self._kind == "WordPiece":
            return "" if name.startswith(self._prefix) else str(name)
        if self._kind == "WordLevel":
            return str(name)
        return str(self._tokenizer.decode([token])).strip() if name[0] in "\u0120\u2581" else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def augment_data(
    config: TrainConfig, data: TaskData, source: str, say: Callable[[str], None] = lambda line: None
) -> TaskData:
    """The rows of a run with those that --augment asks for, and what was done in `augmentation`.

    Args:
        config: the run.
        data: with training rows of one text or two.
        source: where the run's model starts from, which is the default of --augment-model.
        say: takes lines of progress.
    Raises:
        UsageError: a task of another kind.
        UnsupportedModelError, EnvironmentProblem, DataError: see `load_masked_lm` and `WordVectors`.
    """
    split = data.train
    if not config.augment or split is None:
        return data
    if data.task.kind not in ("classification", "regression"):
        raise UsageError(
            f"--augment is for sentences and pairs, task {data.task.name} has others; leave it out"
        )
    name = config.augment_model or source
    model = load_masked_lm(name)
    vectors = None if config.glove is None else WordVectors(config.glove)
    tokenizer = load_tokenizer(Path(resolve_model(name)))
    finder = CandidateFinder(model, tokenizer, count=config.augment_candidates, vectors=vectors)
    columns = [split.texts, *([] if split.pairs is None else [split.pairs])]
    words = [finder.find(column, say) for column in columns]
    grown = augment_split(
        split, words, count=config.augment, probability=config.augment_probability, seed=config.seed
    )
    say(f"augmentation: {len(grown) - len(split)} copies of {len(split)} rows, words by {name}")
    record = {
        "model": name,
        "copies": config.augment,
        "candidates": config.augment_candidates,
        "probability": config.augment_probability,
        "glove": None if vectors is None else {"file": str(config.glove), "sha256": vectors.digest},
        "rows": len(split),
        "added": len(grown) - len(split),
        "fingerprint": grown.digest,
    }
    return dataclasses.replace(data, train=grown, augmentation=record)
