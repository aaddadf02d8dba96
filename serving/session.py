"""An ONNX Runtime session for an exported folder: feeds checked, logits out, text in.

    session = Session("out/")                # folder written by `qexport to-onnx`, or a bare .onnx file
    session.predict(["a fine film"])         # [Prediction(label="positive", probability=0.98, ...)]
    session.logits({"input_ids": ids, "attention_mask": mask})       # float32 [B, C]

Nothing here needs torch or transformers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "KNOWN_INPUTS",
    "Batch",
    "Float32Array",
    "Prediction",
    "Session",
    "model_file",
    "read_json",
    "softmax",
]

Batch = Mapping[str, npt.NDArray[Any]]
"""Feeds of one run: input_ids, attention_mask and, for some models, token_type_ids; int64 [B, S] each."""

Float32Array = npt.NDArray[np.float32]

KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs that an encoder exported for transformers, optimum or qexport may have, all int64 [B, S]."""

OUTPUT = "logits"
"""The output that every supported graph has: float32 [B, C]."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says about one text."""

    label: str
    """Name of the most probable class; "score" for a regression model."""
    probability: float | None
    """Softmax probability of `label`; None for a regression model."""
    scores: dict[str, float]
    """Classification: label -> probability, in id order. Regression: {"score": the predicted value}."""


def softmax(logits: Float32Array) -> Float32Array:
    """Softmax over the last axis, float32, shifted by the row maximum."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)


def model_file(folder_or_file: str | Path) -> Path:
    """The ONNX file that a path names: itself, or `model.onnx` inside the folder.

    Raises:
        UnsupportedModelError: the path does not exist, or the folder has no model.onnx.
    """
    path = Path(folder_or_file)
    if path.is_dir():
        inside = path / "model.onnx"
        if not inside.is_file():
            raise UnsupportedModelError(
                f"{path} has no model.onnx; give a folder written by qexport to-onnx, or an .onnx file"
            )
        return inside
    if not path.is_file():
        raise UnsupportedModelError(f"{path} does not exist; give a folder written by qexport to-onnx")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} when there is no such file.

    Raises:
        UnsupportedModelError: the file is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{path} is not valid JSON ({error}); export the model again") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def runtime_errors() -> tuple[type[Exception], ...]:
    """The exception classes of ONNX Runtime, which share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (getattr(state, name) for name in dir(state))
    return tuple(kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))


class Session:
    """One ONNX file opened on ONNX Runtime's CPU provider.

    Args:
        folder_or_file: a folder with model.onnx, or an .onnx file.
        threads: threads inside one operator; 1 makes timings comparable between machines.
        optimize: False runs the graph as it is stored, function bodies unfolded.
        extra_outputs: names of inner values that `run` returns too; float32, any shape.
    Raises:
        UnsupportedModelError: no such file, not an ONNX file, damaged, an operator this runtime lacks, or a
            graph that is not a text classifier (inputs other than `KNOWN_INPUTS`, or no `logits` output).
        UsageError: `threads` is below 1.
    """

    def __init__(
        self,
        folder_or_file: str | Path,
        *,
        threads: int = 1,
        optimize: bool = True,
        extra_outputs: Sequence[str] = (),
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self.path = model_file(folder_or_file)
        self.folder = self.path.parent
        self.threads = threads
        self._extra = tuple(extra_outputs)
        self._tokenizer: Tokenizer | None = None
        self._session = self._open(optimize)
        self.inputs: tuple[str, ...] = tuple(node.name for node in self._session.get_inputs())
        """Names of the graph's inputs, in graph order."""
        self._check_contract()

    def _open(self, optimize: bool) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong comes back as an exception, once
        # Sessions are timed in turns: threads that spin after a run would disturb the next engine.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        source: str | bytes = str(self.path)
        if self._extra:
            source = _with_outputs(self.path, self._extra)
        begin = time.perf_counter()
        try:
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except runtime_errors() as error:
            reason = " ".join(str(error).split())
            raise UnsupportedModelError(
                f"ONNX Runtime {ort.__version__} cannot load {self.path} ({reason[:300]}); "
                "export it again, or use a newer onnxruntime"
            ) from error
        self.load_ms = (time.perf_counter() - begin) * 1e3
        """Milliseconds that ONNX Runtime took to open the file."""
        return session

    def _check_contract(self) -> None:
        outputs = [node.name for node in self._session.get_outputs()]
        foreign = [name for name in self.inputs if name not in KNOWN_INPUTS]
        if foreign or "input_ids" not in self.inputs or OUTPUT not in outputs:
            raise UnsupportedModelError(
                f"{self.path} is not a text classifier: inputs must be among {', '.join(KNOWN_INPUTS)} and "
                f"an output must be called {OUTPUT}, got inputs {list(self.inputs)} and outputs {outputs}; "
                "export it with qexport to-onnx"
            )
        for node in self._session.get_inputs():
            if node.type != "tensor(int64)" or len(node.shape) != 2:
                raise UnsupportedModelError(
                    f"{self.path}: input {node.name} must be int64 [batch, sequence], got {node.type} "
                    f"{node.shape}; export it with qexport to-onnx"
                )
        self.num_labels = self._num_labels()
        """Columns of the logits; 0 when the graph does not say."""

    def _num_labels(self) -> int:
        shape = next(node.shape for node in self._session.get_outputs() if node.name == OUTPUT)
        if len(shape) != 2:
            raise UnsupportedModelError(
                f"{self.path}: output {OUTPUT} must be [batch, labels], got {shape}; "
                "only sequence classification and regression are supported"
            )
        return shape[1] if isinstance(shape[1], int) else 0

    def _feeds(self, batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
        if "input_ids" not in batch:
            raise ShapeError(f"a batch must hold input_ids, got {sorted(batch)}")
        ids = np.ascontiguousarray(batch["input_ids"], dtype=np.int64)
        if ids.ndim != 2:
            raise ShapeError(f"input_ids must be [batch, sequence], got shape {list(ids.shape)}")
        feeds: dict[str, npt.NDArray[np.int64]] = {}
        for name in self.inputs:
            if name in batch:
                feeds[name] = np.ascontiguousarray(batch[name], dtype=np.int64)
            else:
                feeds[name] = np.ones_like(ids) if name == "attention_mask" else np.zeros_like(ids)
            if feeds[name].shape != ids.shape:
                raise ShapeError(
                    f"{name} must have input_ids' shape {list(ids.shape)}, got {list(feeds[name].shape)}"
                )
        return feeds

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Run one batch; inputs the graph does not have are dropped.

        Args:
            batch: int64 [B, S] arrays. A missing attention_mask means all ones, token_type_ids all zeros.
        Returns:
            logits, float32 [B, C], and the extra outputs, by name.
        Raises:
            ShapeError: no input_ids, or arrays of different shapes.
            UnsupportedModelError: the runtime failed on these inputs.
        """
        names = [OUTPUT, *self._extra]
        try:
            values = self._session.run(names, self._feeds(batch))
        except runtime_errors() as error:
            reason = " ".join(str(error).split())
            shape = list(np.shape(batch["input_ids"]))
            raise UnsupportedModelError(
                f"{self.path} failed on a batch of shape {shape} ({reason[:300]}); check that the token ids "
                "and the length fit the model"
            ) from error
        return dict(zip(names, values, strict=True))

    def logits(self, batch: Batch) -> Float32Array:
        """Logits, float32 [B, C], of one batch; see `run`."""
        return np.asarray(self.run(batch)[OUTPUT], dtype=np.float32)

    @property
    def config(self) -> dict[str, Any]:
        """config.json beside the model, {} when absent."""
        return read_json(self.folder / "config.json")

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in id order from config.json's id2label; LABEL_0, ... when it has none."""
        names = self.config.get("id2label")
        if isinstance(names, dict) and names:
            return tuple(str(names[key]) for key in sorted(names, key=int))
        return tuple(f"LABEL_{index}" for index in range(self.num_labels))

    @property
    def max_length(self) -> int:
        """Tokens per text: max_length of qexport.json, else the model's position count, else 512."""
        stated = read_json(self.folder / "qexport.json").get("max_length")
        return stated if isinstance(stated, int) else self.position_limit

    @property
    def position_limit(self) -> int:
        """Longest text that the model has positions for, from config.json; 512 when it does not say."""
        positions = self.config.get("max_position_embeddings", 512)
        offset = 2 if self.config.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
        return int(positions) - offset

    @property
    def tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` of tokenizer.json, truncating at `max_length`, without padding.

        Raises:
            UnsupportedModelError: tokenizer.json is absent or damaged.
        """
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            path = self.folder / "tokenizer.json"
            if not path.is_file():
                raise UnsupportedModelError(
                    f"{self.folder} has no tokenizer.json, so text cannot be read; copy the tokenizer of the "
                    "teacher beside model.onnx"
                )
            try:
                tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the Rust side raises bare Exception
                raise UnsupportedModelError(f"{path} cannot be read ({error}); copy it again") from error
            tokenizer.no_padding()
            tokenizer.enable_truncation(self.max_length, strategy="longest_first")
            self._tokenizer = tokenizer
        return self._tokenizer

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Token ids of `texts`, padded to the longest; int64 [B, S] each.

        Raises:
            UsageError: `pairs` has another length than `texts`.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise UsageError(f"there must be one second text per text, got {len(pairs)} for {len(texts)}")
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encoded = self.tokenizer.encode_batch(rows)
        shape = (len(rows), max((len(row.ids) for row in encoded), default=0))
        ids = np.full(shape, int(self.config.get("pad_token_id") or 0), dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        for index, row in enumerate(encoded):
            ids[index, : len(row.ids)] = row.ids
            mask[index, : len(row.ids)] = 1
            types[index, : len(row.ids)] = row.type_ids
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> list[Prediction]:
        """Label and probability of each text.

        Args:
            texts: what to classify.
            pairs: second texts for a pair task, one per text.
            batch_size: texts per run.
        Raises:
            UnsupportedModelError: the folder has no tokenizer.json.
            UsageError: `pairs` has another length than `texts`.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise UsageError(f"there must be one second text per text, got {len(pairs)} for {len(texts)}")
        found: list[Prediction] = []
        for start in range(0, len(texts), batch_size):
            stop = start + batch_size
            logits = self.logits(self.encode(texts[start:stop], None if pairs is None else pairs[start:stop]))
            found.extend(self._prediction(row) for row in logits)
        return found

    def _prediction(self, row: Float32Array) -> Prediction:
        if row.shape[0] == 1:
            return Prediction("score", None, {"score": float(row[0])})
        probabilities = softmax(row)
        names = self.labels
        if len(names) != row.shape[0]:
            raise UnsupportedModelError(
                f"{self.folder / 'config.json'} names {len(names)} labels but the model has {row.shape[0]} "
                "logits; export the model again"
            )
        best = int(probabilities.argmax())
        scores = {name: float(value) for name, value in zip(names, probabilities, strict=True)}
        return Prediction(names[best], float(probabilities[best]), scores)


def _with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """The model in `path` with inner values `names` as further graph outputs.

    Raises:
        UnsupportedModelError: the file cannot be read, or a name is not a value of the main graph.
    """
    import onnx

    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's DecodeError lives in a private module
        raise UnsupportedModelError(f"{path} is not a readable ONNX file ({error})") from error
    produced = {value for node in model.graph.node for value in node.output}
    missing = [name for name in names if name not in produced]
    if missing:
        raise UnsupportedModelError(
            f"{path} has no value called {missing[0]}; its layer list belongs to another file"
        )
    present = {value.name for value in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(model.SerializeToString())
