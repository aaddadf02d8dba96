"""A graph that reads text: BERT's WordPiece, an operator of onnxruntime-extensions, in front of an encoder.

    text string [1] or [2]  ->  ai.onnx.contrib::BertTokenizer  ->  ids, types, mask int64 [S]  ->  the graph

One text, or the two of a pair, a run. The file runs where onnxruntime-extensions is registered. What its
operator does otherwise than Hugging Face's tokenizers is in docs/bundle.md.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.compose
import onnx.parser
from onnx import TensorProto, helper

from qexport.errors import MissingPackageError, UnsupportedModelError
from qexport.wordpiece import WordPiece, read_wordpiece

__all__ = ["DOMAIN", "TEXT_FILE", "TEXT_INPUT", "require_wordpiece", "text_parity", "with_wordpiece"]

TEXT_FILE = "model-text.onnx"
"""The second file that `to-onnx --with-tokenizer` writes."""

TEXT_INPUT = "text"
"""Its only input."""

DOMAIN = "ai.onnx.contrib"
"""Operators of onnxruntime-extensions."""

_OUTPUTS = {"input_ids": "ids", "token_type_ids": "types", "attention_mask": "mask"}
"""Input of an encoder -> the operator's output that becomes it; names without the prefix."""

_PREFIX = "qexport.text."

_CUT = """
<ir_version: 8, opset_import: ["" : 18]>
cut (int64[S] ids, int64[S] types) => (int64[T] kept)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64 first = {0}, int64 step = {1},
 int64[1] longest = {LENGTH}>
{
    length = Shape (ids)
    typed = ReduceSum (types, zero)
    n_second = Max (typed, zero)
    is_pair = Min (typed, one)
    n_b = Sub (n_second, is_pair)
    n_with_ends = Sub (length, typed)
    n_a = Sub (n_with_ends, two)
    without_ends = Sub (longest, two)
    room = Sub (without_ends, is_pair)
    few = Min (n_a, n_b)
    many = Max (n_a, n_b)
    half = Div (room, two)
    few_kept = Min (few, half)
    rest = Sub (room, few_kept)
    many_kept = Min (many, rest)
    a_is_longer = Greater (n_a, n_b)
    a_kept = Where (a_is_longer, many_kept, few_kept)
    b_kept = Where (a_is_longer, few_kept, many_kept)
    count = Squeeze (length)
    places = Range (first, count, step)
    a_end = Add (a_kept, one)
    sep = Add (n_a, one)
    b_begin = Add (n_a, two)
    b_end = Add (b_begin, b_kept)
    last = Sub (length, is_pair)
    a_places = Slice (places, zero, a_end)
    sep_place = Slice (places, sep, b_begin)
    b_places = Slice (places, b_begin, b_end)
    last_place = Slice (places, last, length)
    kept = Concat <axis = 0> (a_places, sep_place, b_places, last_place)
}
"""
"""Places to keep of [CLS] A [SEP] B [SEP], longest first as transformers cuts: few' = min(few, room // 2) ids
of the shorter text and min(many, room - few') of the longer. BertTokenizer has a max_length that does not cut
(0.15.2)."""


def require_wordpiece(source: Path, max_length: int) -> WordPiece:
    """The tokenizer to put in front, found before any work starts.

    Raises:
        UnsupportedModelError: it is not BERT's WordPiece.
        MissingPackageError: onnxruntime-extensions is not installed, so the file could not be tried.
    """
    words = read_wordpiece(source, max_length)
    if isinstance(words, str):
        raise UnsupportedModelError(
            f"{source}: --with-tokenizer puts BERT's WordPiece in front of the graph, and {words}; leave the "
            "option out"
        )
    if importlib.util.find_spec("onnxruntime_extensions") is None:
        raise MissingPackageError(
            "--with-tokenizer needs onnxruntime-extensions to try the file; install it with: pip install "
            '"qexport[tokenizer]"'
        )
    return words


def with_wordpiece(model: onnx.ModelProto, words: WordPiece) -> onnx.ModelProto:
    """A copy of `model` whose one input is `text`, string [1] or [2]; its outputs stay as they are.

    Args:
        model: inputs among input_ids, attention_mask and token_type_ids, int64 [batch, sequence].
        words: the vocabulary.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    inputs = [value.name for value in graph.input]
    by_id = {**{number: name for name, number in words.special_tokens.items()}}
    by_id.update(enumerate(words.vocabulary))
    unknown = by_id[words.unk]
    known = set(words.vocabulary)
    tokenize = helper.make_node(
        "BertTokenizer",
        [TEXT_INPUT],
        [_PREFIX + name for name in _OUTPUTS.values()],
        name=f"{_PREFIX}tokenize",
        domain=DOMAIN,
        vocab_file="\n".join(words.vocabulary),
        do_lower_case=int(words.lowercase),
        strip_accents=int(words.strip_accents),
        tokenize_chinese_chars=int(words.chinese_chars),
        unk_token=unknown,
        cls_token=by_id[words.cls],
        sep_token=by_id[words.sep],
        # The operator insists on these two and never writes them.
        pad_token="[PAD]" if "[PAD]" in known else unknown,
        mask_token="[MASK]" if "[MASK]" in known else unknown,
        suffix_indicator=words.prefix,
    )
    cut = onnx.compose.add_prefix(
        onnx.parser.parse_model(_CUT.replace("LENGTH", str(words.max_length))), _PREFIX
    )
    rows = []
    for name in inputs:
        row = f"{_PREFIX}{name}"
        rows.append(helper.make_node("Gather", [_PREFIX + _OUTPUTS[name], f"{_PREFIX}kept"], [row], name=row))
        rows.append(helper.make_node("Unsqueeze", [row, f"{_PREFIX}zero"], [name], name=f"{row}.row"))
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([tokenize, *cut.graph.node, *rows, *body])
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(TEXT_INPUT, TensorProto.STRING, ["texts"]))
    graph.initializer.extend(cut.graph.initializer)
    made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made


def text_parity(
    plain: Path, with_text: Path, feeds: Mapping[str, npt.NDArray[np.int64]], texts: tuple[str, ...]
) -> dict[str, Any]:
    """The file that reads text against the plain one, row by row on stock ONNX Runtime.

    Args:
        plain: model.onnx.
        with_text: model-text.onnx.
        feeds: what Hugging Face's tokenizer makes of `texts`, padded; int64 [B, S].
        texts: B texts.
    Returns:
        rows, same_logits (rows with equal bits) and max_abs_difference, for qexport.json.
    Raises:
        UnsupportedModelError: onnxruntime-extensions or ONNX Runtime refuses the file.
    """
    import onnxruntime
    import onnxruntime_extensions

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    providers = ["CPUExecutionProvider"]
    try:
        text_session = onnxruntime.InferenceSession(str(with_text), options, providers=providers)
        session = onnxruntime.InferenceSession(str(plain), options, providers=providers)
        names = {value.name for value in session.get_inputs()}
        same, largest = 0, 0.0
        for row, text in enumerate(texts):
            length = int(feeds["attention_mask"][row].sum())
            ids = {name: array[row : row + 1, :length] for name, array in feeds.items() if name in names}
            a = np.asarray(session.run(["logits"], ids)[0])
            b = np.asarray(text_session.run(["logits"], {TEXT_INPUT: np.array([text], dtype=object)})[0])
            same += int(np.array_equal(a, b))
            largest = max(largest, float(np.abs(a - b).max()))
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        first = str(error).strip().splitlines()[0][:300]
        raise UnsupportedModelError(
            f"onnxruntime-extensions {onnxruntime_extensions.__version__} cannot run the file with the "
            f"tokenizer ({first}); leave --with-tokenizer out"
        ) from error
    return {
        "file": TEXT_FILE, "rows": len(texts), "same_logits": same, "max_abs_difference": largest,
        "onnxruntime_extensions": str(onnxruntime_extensions.__version__),
    }  # fmt: skip
