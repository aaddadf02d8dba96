"""Text in, logits out: WordPiece of onnxruntime-extensions in front of an exported graph."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from required import missing
from tiny_students import save_student
from tiny_wordpiece import write_wordpiece
from wordpiece_programs import expected

import qexport
from qexport.errors import MissingPackageError, UnsupportedModelError
from qexport.graphs.config import ExportConfig
from qexport.graphs.export import to_onnx
from qexport.graphs.text_input import require_wordpiece, with_wordpiece


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_student(tmp_path_factory.mktemp("student") / "student")
    write_wordpiece(folder)
    return folder


@pytest.fixture(scope="module")
def exported(student: Path) -> Path:
    if importlib.util.find_spec("onnxruntime_extensions") is None:
        missing('onnxruntime-extensions is missing: pip install "qexport[tokenizer]"')
    output = student.parent / "onnx"
    to_onnx(ExportConfig(model=student, output=output, with_tokenizer=True))
    return output


def test_the_text_file_gives_the_labels_of_the_plain_one(exported: Path) -> None:
    plain, text = qexport.load_onnx(exported), qexport.load_onnx(exported / "model-text.onnx")
    texts = ["A FINE, films", "dull plot", "", "a plot é zzz FÍNE"]
    assert text.engine.name == plain.engine.name
    for one in texts:  # alone: in a batch the padding of others changes the last bits
        assert text.predict([one]) == plain.predict([one])
    assert text.predict(texts[:2], texts[1:3])[0] == plain.predict(texts[:1], texts[1:2])[0]
    assert len(text.predict(texts)) == len(texts)
    with pytest.raises(UnsupportedModelError, match="takes text, not token ids"):
        text.logits(plain.encode(texts))


def test_the_plain_file_is_as_without_the_option_and_the_manifest_has_both(exported: Path) -> None:
    model, text = onnx.load(exported / "model.onnx"), onnx.load(exported / "model-text.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "ai.onnx.contrib" not in {item.domain for item in model.opset_import}
    assert [value.name for value in text.graph.input] == ["text"]
    assert list(text.graph.output) == list(model.graph.output)
    written = json.loads((exported / "qexport.json").read_text(encoding="utf-8"))
    assert {"model.onnx", "model-text.onnx"} <= written["files"].keys()
    assert written["text_input"]["rows"] == 8
    # Twelve pieces know the beginnings of many words and not their ends: there the operator keeps the
    # beginning before [UNK], and Hugging Face's does not (docs/bundle.md).
    assert 0 < written["text_input"]["same_logits"] < 8


@pytest.mark.parametrize("longest", [16, 17])
def test_long_texts_and_pairs_are_cut_as_transformers_cuts(tmp_path: Path, longest: int) -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    write_wordpiece(tmp_path)
    words = require_wordpiece(tmp_path, longest)
    names = ("input_ids", "token_type_ids")
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in names]
    outs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.INT64, ["b", "s"]) for name in names]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names]
    plain = helper.make_model(
        helper.make_graph(nodes, "ids", ids, outs), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(extensions.get_library_path())
    session = onnxruntime.InferenceSession(with_wordpiece(plain, words).SerializeToString(), options)
    sizes = (0, 1, 3, 6, 7, 8, 13, 14, 15, 40)
    rows = [(" ".join(["film"] * size), None) for size in sizes]
    rows += [(" ".join(["film"] * a), " ".join(["plot"] * b)) for a in sizes[1:] for b in sizes[1:]]
    for row, wanted in zip(rows, expected(tmp_path, longest, rows), strict=True):
        found = session.run(
            None, {"text": np.array([text for text in row if text is not None], dtype=object)}
        )
        assert (found[0][0].tolist(), found[1][0].tolist()) == wanted


def test_another_tokenizer_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student")
    with pytest.raises(UnsupportedModelError, match="its tokenizer is WordLevel, not WordPiece; leave the"):
        require_wordpiece(folder, 32)


def test_without_the_package_both_ends_say_what_to_install(
    student: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    with pytest.raises(MissingPackageError, match=r"qexport\[tokenizer\]"):
        require_wordpiece(student, 32)
    with pytest.raises(MissingPackageError, match=r"qexport\[tokenizer\]"):
        qexport.load_onnx(exported / "model-text.onnx")
