"""An ONNX Runtime session for an exported folder: feeds checked, logits out, text in.

    session = Session("out/")                # folder written by `qexport to-onnx`, or a bare .onnx file
    session.predict(["a fine film"])         # [Prediction(label="positive", probability=0.98, ...)]
    session.logits({"input_ids": ids, "attention_mask": mask})       # float32 [B, C]
    load_onnx("out/", threads=2).predict(["a fine film"])            # the same on the kernel library

Nothing here needs torch or transformers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError, UnsupportedModelError, UsageError
from qexport.serving.extensions import TEXT_INPUT, register_extensions
from qexport.serving.inner_values import with_outputs
from qexport.serving.kinds import KNOWN_INPUTS, OutputKind, decoding_of, kind_of_graph
from qexport.serving.model_files import model_file, read_json
from qexport.serving.native import SessionEngine, kernels_in

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from qexport.serving.entities import Entity
    from qexport.serving.kinds.span import Answer

__all__ = [
    "KNOWN_INPUTS",
    "Batch",
    "Float32Array",
    "Prediction",
    "Session",
    "load_onnx",
    "model_file",
    "read_json",
    "session_options",
    "softmax",
]

Batch = Mapping[str, npt.NDArray[Any]]
"""Feeds of one run: input_ids, attention_mask and, for some models, token_type_ids; int64 [B, S] each."""

Float32Array = npt.NDArray[np.float32]


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


def runtime_errors() -> tuple[type[Exception], ...]:
    """The exception classes of ONNX Runtime, which share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (getattr(state, name) for name in dir(state))
    return tuple(kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))


def session_options(threads: int) -> Any:
    """The `onnxruntime.SessionOptions` of every session here.

    Args:
        threads: threads inside one operator.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes back as an exception, once
    # Sessions are timed in turns: threads that spin after a run would disturb the next engine.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class Session:
    """One ONNX file opened on ONNX Runtime's CPU provider.

    A session has no state that a run changes: one may be used from many threads at once, each of which gets
    the bits that it would get alone.

    Args:
        folder_or_file: a folder with model.onnx, or an .onnx file.
        threads: threads inside one operator; 1 makes timings comparable between machines.
        optimize: False runs the graph as it is stored, function bodies unfolded.
        extra_outputs: names of inner values that `run` returns too; float32, any shape.
        kernels: "off" for ONNX Runtime alone, "auto" for the kernel library where it fits, "require" to
            insist on it; see `engine`.
        isa: instruction set to hold the kernels to: "avx2"; None takes QEXPORT_ISA, else the CPU's best.
        batch_size: texts per run of `predict`.
    Raises:
        UnsupportedModelError: no such file, not an ONNX file, damaged, an operator this runtime lacks, or a
            graph of no known kind (inputs other than `KNOWN_INPUTS`, or the outputs of no kind);
            or kernels are required and the file has no operator for them.
        UsageError: `threads` or `batch_size` is below 1, or `isa` is given with kernels off.
        UnknownNameError: no such `kernels` mode or `isa`.
        EnvironmentProblem: kernels are required and there are none for this machine, or it lacks `isa`.
    """

    def __init__(
        self,
        folder_or_file: str | Path,
        *,
        threads: int = 1,
        optimize: bool = True,
        extra_outputs: Sequence[str] = (),
        kernels: str = "off",
        isa: str | None = None,
        batch_size: int = 32,
    ) -> None:
        for name, value in (("threads", threads), ("batch_size", batch_size)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.path = model_file(folder_or_file)
        self.folder = self.path.parent
        self.threads = threads
        self.batch_size = batch_size
        self._extra = tuple(extra_outputs)
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_lock = threading.Lock()
        self._session = self._open(optimize, kernels, isa)
        self.inputs: tuple[str, ...] = tuple(node.name for node in self._session.get_inputs())
        """Names of the graph's inputs, in graph order."""
        self._check_contract()

    def _open(self, optimize: bool, kernels: str, isa: str | None) -> Any:
        import onnxruntime as ort

        options = session_options(self.threads)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        source: str | bytes = str(self.path)
        if self._extra:
            source = with_outputs(self.path, self._extra)
        register_extensions(options, self.path)
        with kernels_in(options, self.path, mode=kernels, isa=isa) as engine:
            self.engine: SessionEngine = engine
            """What runs the `ai.qexport` operators: `name` is "native" or "stock"; `isa`, `version`."""
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
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        stated = read_json(self.folder / "qexport.json").get("kind")
        self.takes_text: bool = self.inputs == (TEXT_INPUT,)
        """Whether the graph tokenises by itself; `predict` works, `run` and `logits` do not."""
        inputs = ("input_ids",) if self.takes_text else self.inputs
        self.kind: OutputKind = kind_of_graph(self.path, inputs, outputs, stated)
        """What kind of model it is, by its outputs."""
        for node in self._session.get_inputs() if not self.takes_text else []:
            if node.type != "tensor(int64)" or len(node.shape) != 2:
                raise UnsupportedModelError(
                    f"{self.path}: input {node.name} must be int64 [batch, sequence], got {node.type} "
                    f"{node.shape}; export it with qexport to-onnx"
                )
        last = outputs[self.kind.outputs[0]][-1]
        self.num_labels = last if isinstance(last, int) else 0
        """Columns of the logits; 0 when the graph does not say."""

    def _feeds(self, batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
        if self.takes_text:
            raise UnsupportedModelError(
                f"{self.path} takes text, not token ids; call predict with texts, or use model.onnx beside it"
            )
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
            the outputs of the model's kind (logits, float32 [B, C], of a classifier) and the extra ones, by
            name.
        Raises:
            ShapeError: no input_ids, or arrays of different shapes.
            UnsupportedModelError: the runtime failed on these inputs.
        """
        names = [*self.kind.outputs, *self._extra]
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
        """Logits, float32 [B, C], of one batch; see `run`.

        Raises:
            UnsupportedModelError: the model has no such output.
        """
        self._need("logits" in self.kind.outputs, "logits")
        return np.asarray(self.run(batch)["logits"], dtype=np.float32)

    def _need(self, fits: bool, what: str) -> None:
        if not fits:
            raise UnsupportedModelError(
                f"{self.path} is a {self.kind.title} model and gives no {what}; {self.kind.use}"
            )

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json beside the model, {} when absent; read once."""
        return read_json(self.folder / "config.json")

    @cached_property
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
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = self._read_tokenizer()
            return self._tokenizer

    def _read_tokenizer(self) -> Tokenizer:
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
        # Set here and never again: another thread may be encoding with it.
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length, strategy="longest_first")
        return tokenizer

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

    def run_texts(self, texts: tuple[str, ...]) -> Float32Array:
        """Logits of one text or pair, float32 [1, C], where the graph `takes_text`; raises as `run`."""
        try:
            (found,) = self._session.run([self.kind.outputs[0]], {TEXT_INPUT: np.array(texts, dtype=object)})
        except runtime_errors() as error:
            reason = " ".join(str(error).split())[:300]
            raise UnsupportedModelError(f"{self.path} failed on a text ({reason}); use model.onnx") from error
        return np.asarray(found, dtype=np.float32)

    @cached_property
    def decoding(self) -> dict[str, float]:
        """How outputs are read, from qexport.json; read once."""
        return decoding_of(self.folder)

    def answer(self, question: str, context: str) -> Answer:
        """Find the answer to a question in a text, of a question answering model.

        Args:
            question: one question.
            context: the text; longer than the model's window it is read in parts.
        Raises:
            DataError: a question or context without text.
            UsageError: a question that leaves no room for its context.
            UnsupportedModelError: another kind of model, or the folder has no tokenizer.json.
        """
        self._need(self.kind.name == "span", "answers to questions")
        from qexport.serving.kinds import span

        return span.answer(self, question, context)

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int | None = None
    ) -> list[Prediction]:
        """Label and probability of each text, in order.

        Args:
            texts: what to classify.
            pairs: second texts for a pair task, one per text.
            batch_size: texts per run; None takes the session's.
        Raises:
            UnsupportedModelError: the folder has no tokenizer.json.
            UsageError: `pairs` has another length than `texts`, `texts` is one string, or `batch_size` is
                below 1.
        """
        if isinstance(texts, str):
            raise UsageError(f"texts must be a list, got the one text {texts[:40]!r}; write [text]")
        self._need(self.kind.name in ("classification", "regression"), "labels of whole texts")
        step = self.batch_size if batch_size is None else batch_size
        if step < 1:
            raise UsageError(f"batch_size must be at least 1, got {step}")
        if pairs is not None and len(pairs) != len(texts):
            raise UsageError(f"there must be one second text per text, got {len(pairs)} for {len(texts)}")
        found: list[Prediction] = []
        for start in range(0, len(texts), step):
            stop = start + step
            more = None if pairs is None else pairs[start:stop]
            if self.takes_text:
                rows = zip(texts[start:stop], *([] if more is None else [more]), strict=True)
                logits = np.concatenate([self.run_texts(row) for row in rows])
            else:
                logits = self.logits(self.encode(texts[start:stop], more))
            found.extend(self._prediction(row) for row in logits)
        return found

    def entities(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The entities of each text, in order, with their places in it; of a token classifier.

        A text is split into words at blanks and marks, and a long one into windows.

        Args:
            texts: raw texts.
        Raises:
            UnsupportedModelError: the model is of another kind, or the folder has no tokenizer.json.
            UsageError: `texts` is one string.
        """
        from qexport.serving.kinds.tokens import find_entities

        self._need_kind("tokens", texts)
        return find_entities(self, texts)

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """The embedding of each text, float32 [texts, D], of length 1; of a sentence encoder.

        Args:
            texts: raw texts; a long one is cut to `max_length` tokens.
        Raises:
            UnsupportedModelError: the model is of another kind, or the folder has no tokenizer.json.
            UsageError: `texts` is one string.
        """
        from qexport.serving.kinds.embedding import embed_texts

        self._need_kind("embedding", texts)
        return embed_texts(self, texts)

    def _need_kind(self, kind: str, texts: Sequence[str]) -> None:
        if self.kind.name != kind:
            raise UnsupportedModelError(f"{self.path} is a {self.kind.title} model; {self.kind.use}")
        if self.takes_text:
            raise UnsupportedModelError(f"{self.path} tokenises by itself, text by text; use model.onnx")
        if isinstance(texts, str):
            raise UsageError(f"texts must be a list, got the one text {texts[:40]!r}; write [text]")

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


def load_onnx(
    folder_or_file: str | Path,
    *,
    threads: int = 1,
    isa: str | None = None,
    kernels: Literal["auto", "require", "off"] = "auto",
    batch_size: int = 32,
) -> Session:
    """Open a folder written by `qexport to-onnx` and run it on the kernel library.

        model = qexport.load_onnx("student-onnx", threads=2)
        model.engine                        # SessionEngine(name="native", isa="avx2", version="0.1.0", ...)
        model.predict(["a fine film"])      # [Prediction(label="positive", probability=0.98, scores={...})]
        model.predict(["He left."], ["He went away."])       # a pair task: one second text per text
        model.logits(model.encode(["a fine film"]))          # float32 [1, 2]

    Needs neither torch nor transformers. One object serves many threads at once.

    Args:
        folder_or_file: the folder, or the .onnx file in it.
        threads: threads inside one operator; with many callers at once, 1 gives the most texts per second.
        isa: instruction set to hold the kernels to: "avx2"; None takes QEXPORT_ISA, else the CPU's best.
        kernels: "auto" takes the kernel library where it fits this machine and file, else stock ONNX Runtime
            (`engine.reason` says why); "require" makes that an error; "off" is stock ONNX Runtime.
        batch_size: texts per run of `predict`.
    Raises:
        See `Session`.
    """
    return Session(folder_or_file, threads=threads, isa=isa, kernels=kernels, batch_size=batch_size)
