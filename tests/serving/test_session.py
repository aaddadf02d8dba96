from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qexport.errors import ShapeError, UnsupportedModelError, UsageError
from qexport.serving.session import Session, softmax

MakeFolder = Callable[..., Path]


def test_predict_gives_the_softmax_of_the_logits_in_label_order(make_folder: MakeFolder) -> None:
    session = Session(make_folder())
    texts = ["a fine film", "the dull plot was", "fine"]
    found = session.predict(texts)
    logits = session.logits(session.encode(texts))
    expected = softmax(logits)
    for row, prediction in zip(expected, found, strict=True):
        assert list(prediction.scores) == ["negative", "positive"]
        np.testing.assert_allclose(list(prediction.scores.values()), row, rtol=1e-6)
        assert prediction.probability == max(prediction.scores.values())
        assert prediction.label == ("negative", "positive")[int(row.argmax())]


def test_predict_takes_pairs_and_marks_the_second_text(make_folder: MakeFolder) -> None:
    session = Session(make_folder())
    batch = session.encode(["a film"], ["fine plot"])
    assert batch["input_ids"].tolist() == [[2, 4, 6, 3, 5, 8, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert len(session.predict(["a film"], ["fine plot"])) == 1
    with pytest.raises(UsageError, match="one second text per text, got 1 for 2"):
        session.predict(["a", "film"], ["fine"])


def test_predict_gives_a_score_when_the_model_is_a_regression(make_folder: MakeFolder) -> None:
    session = Session(make_folder(labels=("score",)))
    (found,) = session.predict(["a fine film"])
    assert (found.label, found.probability) == ("score", None)
    assert found.scores["score"] == pytest.approx(
        float(session.logits(session.encode(["a fine film"]))[0, 0])
    )


def test_predict_of_no_text_is_empty(make_folder: MakeFolder) -> None:
    assert Session(make_folder()).predict([]) == []


def test_encode_truncates_at_the_length_the_model_was_trained_with(make_folder: MakeFolder) -> None:
    session = Session(make_folder())
    assert session.max_length == 16
    assert session.encode(["film " * 40])["input_ids"].shape == (1, 16)


def test_padding_does_not_change_a_row_beyond_rounding(make_folder: MakeFolder) -> None:
    session = Session(make_folder())
    alone = session.logits(session.encode(["fine"]))
    beside = session.logits(session.encode(["fine", "the dull plot was a film and a film"]))
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


@pytest.mark.parametrize(
    "inputs", [("input_ids", "attention_mask"), ("attention_mask", "input_ids", "token_type_ids")]
)
def test_only_the_inputs_of_the_graph_are_fed(
    tmp_path: Path, toy: SimpleNamespace, inputs: tuple[str, ...]
) -> None:
    session = Session(toy.write_folder(tmp_path / "m", toy.classifier(inputs=inputs)))
    assert session.inputs == inputs
    ids = np.array([[2, 5, 3]])
    full = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "extra": ids,
    }
    np.testing.assert_array_equal(session.logits(full), session.logits({"input_ids": ids}))


def test_run_refuses_arrays_of_different_shapes(make_folder: MakeFolder) -> None:
    session = Session(make_folder())
    with pytest.raises(ShapeError, match=r"attention_mask must have input_ids' shape \[1, 3\], got \[1, 2\]"):
        session.run({"input_ids": np.ones((1, 3)), "attention_mask": np.ones((1, 2))})
    with pytest.raises(ShapeError, match="must hold input_ids"):
        session.run({"attention_mask": np.ones((1, 2))})


def test_run_names_the_batch_when_a_token_id_is_outside_the_vocabulary(make_folder: MakeFolder) -> None:
    session = Session(make_folder())
    with pytest.raises(
        UnsupportedModelError, match=r"failed on a batch of shape \[1, 2\].*token ids"
    ) as caught:
        session.run({"input_ids": np.array([[1, 10_000]])})
    assert caught.value.exit_code == 5


def test_extra_outputs_give_inner_values(make_folder: MakeFolder) -> None:
    session = Session(make_folder(), extra_outputs=["norm_0", "norm_1"])
    values = session.run({"input_ids": np.array([[2, 5, 3]])})
    assert values["norm_0"].shape == (1, 3, 16)
    assert values["norm_1"].shape == (1, 16)
    with pytest.raises(UnsupportedModelError, match="no value called nothing"):
        Session(session.folder, extra_outputs=["nothing"])


def test_unoptimized_session_gives_the_same_numbers(make_folder: MakeFolder) -> None:
    folder = make_folder()
    batch = {"input_ids": np.array([[2, 5, 3]])}
    np.testing.assert_allclose(
        Session(folder).logits(batch), Session(folder, optimize=False).logits(batch), atol=1e-5
    )


def test_open_refuses_what_is_not_a_classifier(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["boxes"])], "detector", [x], [y])
    path = tmp_path / "detector.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    with pytest.raises(UnsupportedModelError, match=r"not an encoder.*pixels.*boxes") as caught:
        Session(path)
    assert caught.value.exit_code == 5


def test_open_refuses_a_truncated_file(make_folder: MakeFolder) -> None:
    file = make_folder() / "model.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UnsupportedModelError, match="cannot load") as caught:
        Session(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello, this is not an ONNX file", bytes(1000)])
def test_open_refuses_a_file_that_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError):
        Session(path)


def test_open_names_what_is_missing(tmp_path: Path, make_folder: MakeFolder) -> None:
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        Session(tmp_path / "nowhere")
    with pytest.raises(UnsupportedModelError, match=r"has no model\.onnx"):
        Session(tmp_path)
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        Session(make_folder(), threads=0)
    folder = make_folder("bare")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        Session(folder).predict(["a"])


def test_predict_refuses_a_config_with_another_number_of_labels(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "config.json").write_text(
        json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}), encoding="utf-8"
    )
    with pytest.raises(UnsupportedModelError, match="names 3 labels but the model has 2 logits"):
        Session(folder).predict(["a"])


def test_a_damaged_config_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=r"config\.json is not valid JSON"):
        Session(folder).predict(["a"])


def test_label_names_fall_back_when_there_is_no_config(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "config.json").unlink()
    assert Session(folder).labels == ("LABEL_0", "LABEL_1")


def test_position_limit_leaves_out_the_two_reserved_positions_of_roberta(make_folder: MakeFolder) -> None:
    folder = make_folder()
    config = {"model_type": "roberta", "max_position_embeddings": 514}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert Session(folder).position_limit == 512


def test_serving_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, qexport.serving.verify, qexport.serving.page, qexport.serving.terminal\n"
        "print([name for name in ('torch', 'transformers', 'qexport.training') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
