"""BERT's WordPiece in a folder: its settings and vocabulary, or why the tokenizer there is another one.

The samples of `qexport bundle` carry a WordPiece of their own, and `to-onnx --with-tokenizer` puts one in
front of the graph. Both do what BERT's tokenizer.json describes and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qexport.errors import UnsupportedModelError

__all__ = ["WordPiece", "read_wordpiece"]


@dataclass(frozen=True, slots=True)
class WordPiece:
    """BERT's tokenizer: `BertNormalizer`, `BertPreTokenizer`, WordPiece, [CLS] A [SEP] B [SEP]."""

    lowercase: bool
    """Lower case, character by character."""
    strip_accents: bool
    """Decompose and remove combining marks."""
    clean_text: bool
    """Remove control characters, make white space one kind."""
    chinese_chars: bool
    """Make each Chinese character a word."""
    cls: int
    """Id of [CLS]."""
    sep: int
    """Id of [SEP]."""
    unk: int
    """Id of [UNK]."""
    max_length: int
    """Tokens of a text or a pair, special ones counted; what is longer is cut, the longer text first."""
    max_chars: int
    """Longest word in characters; a longer one is unknown."""
    prefix: str
    """Of a piece that is not the first of its word."""
    special_tokens: dict[str, int]
    """Names that count as one token wherever they stand in a text."""
    vocabulary: list[str] = field(repr=False)
    """Token of each id."""

    def to_json(self) -> dict[str, Any]:
        """The settings without the vocabulary, for preprocessing.json."""
        return {name: value for name, value in asdict(self).items() if name != "vocabulary"}


def read_wordpiece(folder: Path, max_length: int) -> WordPiece | str:
    """The tokenizer in `folder`, or one clause that says why it is not BERT's WordPiece.

    Raises:
        UnsupportedModelError: no tokenizer.json, or it is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(
            f"{folder} has no tokenizer.json, which the app needs; copy the tokenizer of the teacher beside "
            "model.onnx"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{path} is not valid JSON ({error}); copy it again") from error
    model, normalizer = _part(content, "model"), _part(content, "normalizer")
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else "no model")
    if kind != "WordPiece":
        return f"its tokenizer is {kind}, not WordPiece"
    for name, wanted in (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        found = _part(content, name).get("type")
        if found != wanted:
            return f"the {name} of its WordPiece is {found}, not {wanted}"
    ids: dict[str, int] = model["vocab"]
    template = _template(_part(content, "post_processor"))
    if template is None:
        return "its special tokens are not placed as [CLS] A [SEP] B [SEP]"
    special = {}
    for token in content.get("added_tokens") or []:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip") or token.get("normalized"):
            return f"its added token {token.get('content')} has rules of its own"
        special[str(token["content"])] = int(token["id"])
    vocabulary = sorted(ids, key=ids.__getitem__)
    known = {**ids, **special}
    names = (*template, str(model.get("unk_token")))
    if [ids[token] for token in vocabulary] != list(range(len(vocabulary))):
        return "the ids of its vocabulary have gaps"
    if any("\n" in token or "\0" in token for token in vocabulary) or any(
        name not in known for name in names
    ):
        return "its vocabulary cannot be written one token a line"
    lowercase, accents = bool(normalizer.get("lowercase")), normalizer.get("strip_accents")
    cls, sep, unk = (known[name] for name in names)
    return WordPiece(
        lowercase=lowercase,
        strip_accents=lowercase if accents is None else bool(accents),
        clean_text=bool(normalizer.get("clean_text")),
        chinese_chars=bool(normalizer.get("handle_chinese_chars")),
        cls=cls,
        sep=sep,
        unk=unk,
        max_length=max_length,
        max_chars=int(model.get("max_input_chars_per_word", 100)),
        prefix=str(model.get("continuing_subword_prefix", "##")),
        special_tokens=special,
        vocabulary=vocabulary,
    )


def _part(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _template(post: Mapping[str, Any]) -> tuple[str, str] | None:
    """Names of the first and the last special token, where they stand as BERT's do."""
    if post.get("type") == "BertProcessing":
        return str(post["cls"][0]), str(post["sep"][0])
    if post.get("type") != "TemplateProcessing":
        return None
    single, pair = ([_place(item) for item in post.get(name, [])] for name in ("single", "pair"))
    if len(single) != 3 or len(pair) != 5:
        return None
    cls, sep = single[0][0], single[2][0]
    wanted = [(cls, 0), ("A", 0), (sep, 0), ("B", 1), (sep, 1)]
    if single != wanted[:3] or pair != wanted:
        return None
    tokens = post.get("special_tokens", {})
    if any(len(_part(tokens, name).get("ids", [])) != 1 for name in (cls, sep)):
        return None
    return cls, sep


def _place(item: Mapping[str, Any]) -> tuple[str, int]:
    (inner,) = item.values()
    return str(inner["id"]), int(inner["type_id"])
