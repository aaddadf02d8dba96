"""Small ONNX classifiers in the shape of an exported folder: embedding, LayerNorm, mean, MatMul, logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from required import missing

from qexport.errors import EnvironmentProblem, UnknownNameError
from qexport.serving import native
from qexport.serving.evaluate import EvalRows

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "film", "dull", "plot", "and", "the", "was"]


def classifier(
    *, seed: int = 0, labels: int = 2, hidden: int = 16, noise: float = 0.0, inputs: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """A text classifier; `noise` perturbs the weights of the head, so that a second model nearly agrees."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((len(VOCABULARY), hidden)).astype(np.float32)
    head = rng.standard_normal((hidden, labels)).astype(np.float32)
    head += noise * np.random.default_rng(seed + 1).standard_normal(head.shape).astype(np.float32)
    names = inputs or ("input_ids", "attention_mask", "token_type_ids")
    weights: dict[str, Any] = {
        "table": table,
        "gain": np.ones(hidden, np.float32),
        "shift": np.zeros(hidden, np.float32),
        "head": head,
        "last": np.array([-1], np.int64),
        "one": np.array([1], np.int64),
        "least": np.array(1.0, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node(
            "LayerNormalization", ["embedded", "gain", "shift"], ["norm_0"], axis=-1, epsilon=1e-5
        ),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
        helper.make_node("Mul", ["norm_0", "mask_3d"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["summed"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "least"], ["tokens"]),
        helper.make_node("Div", ["summed", "tokens"], ["mean"]),
        helper.make_node("LayerNormalization", ["mean", "gain", "shift"], ["norm_1"], axis=-1, epsilon=1e-5),
        helper.make_node("MatMul", ["norm_1", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def write_folder(
    folder: Path, model: onnx.ModelProto, *, labels: tuple[str, ...] = ("negative", "positive")
) -> Path:
    """A folder in the shape that `qexport to-onnx` writes, tokenizer included."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "bert",
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "id2label": {str(index): name for index, name in enumerate(labels)},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    described = {
        "format_version": 1,
        "method": "ternarybert",
        "bits": "2-2-8",
        "max_length": 16,
        "layer_norms": [{"module": "embeddings.LayerNorm", "value": "norm_0"}],
    }
    (folder / "qexport.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def wilson(correct: int, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson interval of a share."""
    share = correct / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return float(centre - half), float(centre + half)


def accuracy(logits: Any, labels: Any) -> dict[str, float]:
    """The one metric of these tests."""
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def paired(metric: str, first: Any, second: Any, labels: Any) -> SimpleNamespace:
    """Difference of two accuracies on the same rows, with the normal interval of the paired difference."""
    change = (first.argmax(-1) == labels).astype(float) - (second.argmax(-1) == labels)
    half = 1.959964 * change.std(ddof=1) / np.sqrt(len(change))
    return SimpleNamespace(drop=change.mean(), low=change.mean() - half, high=change.mean() + half)


def make_rows(
    rows: int = 40, *, seed: int = 0, batch: int = 8, shuffled: bool = False, **changes: Any
) -> EvalRows:
    """Random token rows of several lengths with labels that the seed-0 classifier mostly gets right."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, rows)
    order = np.random.default_rng(seed + 1).permutation(rows) if shuffled else np.arange(rows)
    ids = [rng.integers(4, len(VOCABULARY), length) for length in lengths]
    batches = []
    for start in range(0, rows, batch):
        chosen = order[start : start + batch]
        width = max(lengths[row] for row in chosen)
        feeds = {name: np.zeros((len(chosen), width), np.int64) for name in ("input_ids", "attention_mask")}
        for index, row in enumerate(chosen):
            feeds["input_ids"][index, : lengths[row]] = ids[row]
            feeds["attention_mask"][index, : lengths[row]] = 1
        batches.append(feeds)
    values: dict[str, Any] = {
        "task": "toy",
        "batches": batches,
        "labels": rng.integers(0, 2, rows),
        "order": order.astype(np.int64),
        "texts": [f"row {row}" for row in range(rows)],
        "main_metric": "accuracy",
        "metrics": accuracy,
        "interval": lambda metric, logits, labels: wilson(
            int((logits.argmax(-1) == labels).sum()), len(labels)
        ),
        "paired_drop": paired,
    }
    return EvalRows(**{**values, **changes})


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """The functions of this file: classifier, write_folder, make_rows, wilson, paired."""
    return SimpleNamespace(
        classifier=classifier, write_folder=write_folder, make_rows=make_rows, wilson=wilson, paired=paired
    )


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder(name, labels, **classifier arguments) writes a folder and gives its path."""

    def make(
        name: str = "model", labels: tuple[str, ...] = ("negative", "positive"), **arguments: Any
    ) -> Path:
        return write_folder(tmp_path / name, classifier(labels=len(labels), **arguments), labels=labels)

    return make


class FakeKernels:
    """A library with two instruction sets that registers nothing; one setting for all, as in the real one."""

    path = Path("libqexport_kernels.so")
    version = "0.1.0"
    log: list[str]
    chosen: str

    def __init__(self) -> None:
        self.log, self.chosen = [], "avx2"

    @property
    def isa(self) -> str:
        return self.chosen

    def set_isa(self, name: str | None) -> None:
        if name not in (None, "", "avx2", "scalar"):
            raise UnknownNameError("instruction set", name, ["avx2", "scalar"])
        self.chosen = name or "avx2"
        self.log.append(f"isa {self.chosen}")

    def register(self, options: Any) -> None:
        self.log.append(f"register {type(options).__name__}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeKernels:
    """Sessions get a library that writes down what it is told, and ONNX Runtime runs the functions."""
    kernels = FakeKernels()
    monkeypatch.setattr(native, "_load", lambda: kernels)
    monkeypatch.delenv("QEXPORT_ISA", raising=False)
    return kernels


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no library was built for the machine."""

    def missing() -> None:
        raise EnvironmentProblem("no kernel library in this install; reinstall qexport")

    monkeypatch.setattr(native, "_load", missing)


@pytest.fixture
def marked(make_folder: Callable[..., Path]) -> Path:
    """A toy folder whose last product is an operator of `ai.qexport`, defined in the file."""
    folder = make_folder()
    model = onnx.load(folder / "model.onnx")
    last = model.graph.node[-1]
    assert last.op_type == "MatMul"
    last.op_type, last.domain = "Product", "ai.qexport"
    body = [helper.make_node("MatMul", ["a", "b"], ["y"])]
    opset = helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("ai.qexport", "Product", ["a", "b"], ["y"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("ai.qexport", 1))
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def kernel_library() -> native.Library:
    """The real library; without it a test is skipped, or fails where QEXPORT_REQUIRE_ALL is 1."""
    problem = native.library_problem()
    if problem is not None:
        missing(str(problem))
    return native.find_library()


@pytest.fixture(scope="session")
def ternary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ternary encoder as `qexport to-onnx` writes it."""
    from tiny_students import save_student

    from qexport.graphs.config import ExportConfig
    from qexport.graphs.export import to_onnx

    root = tmp_path_factory.mktemp("ternary")
    student = save_student(root / "student")
    to_onnx(ExportConfig(model=student, output=root / "onnx"))
    return root / "onnx"
