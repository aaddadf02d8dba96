"""`qexport to-onnx`: a model folder becomes a folder with one ONNX file, checked against PyTorch."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import transformers
from transformers import PreTrainedModel

import qexport
from qexport.atomic import atomic_folder, check_output
from qexport.digests import weights_sha256
from qexport.errors import UnsupportedModelError
from qexport.graphs import folder as folders
from qexport.graphs.config import ExportConfig
from qexport.graphs.export_modules import ExportWrapper, replace_by_twins
from qexport.graphs.inventory import Inventory, format_bytes, inspect_file
from qexport.graphs.pipeline import finish, layer_norm_outputs, lower
from qexport.graphs.text_input import TEXT_FILE, require_wordpiece, text_parity, with_wordpiece
from qexport.serving.kinds import OutputKind
from qexport.serving.kinds import get_kind as serving_kind
from qexport.serving.kinds.base import LOOSE_PARITY_LIMIT, PARITY_LIMIT
from qexport.training.data import load_tokenizer, pad_token_id
from qexport.training.kinds import KINDS, Kind, get_kind, kind_of_config
from qexport.training.models import load_encoder, resolve_model
from qexport.training.sentence_folder import stated_length, write_sentence_files

__all__ = ["PARITY_TEXTS", "ExportResult", "Parity", "export_graph", "to_onnx"]

Feeds = dict[str, npt.NDArray[np.int64]]

PARITY_TEXTS = (
    "A film of rare warmth, funny and sad at once.",
    "Two hours of my life that nobody will give back.",
    "fine",
    "The plot is thin, the songs are not, and the third act almost saves it: almost.",
    "Was it worth the ticket? For the night scenes alone, yes.",
    "It is neither good nor bad, it simply ends.",
    "Éric's café, 3 km away, charges €4.50 for tea!",
    "I had read the novel before I saw this, and I kept waiting for the moment at which the people on the "
    "screen would start to sound like the people on the page; it never came, though the costumes are lovely.",
)
"""What the exported file is run on once, as one padded batch."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The exported file on ONNX Runtime against PyTorch, on `PARITY_TEXTS`."""

    rows: int
    """Sentences compared."""
    max_abs_difference: float
    """Largest difference of two logits."""
    mean_abs_difference: float
    """Mean difference of two logits."""
    agreement: float
    """Part of the sentences with the same largest logit (1 for one-output models); see `same_rows` of the
    kind of model."""

    def to_json(self) -> dict[str, float]:
        """The fields."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What `to_onnx` wrote and measured."""

    output: Path
    """The folder."""
    file_bytes: int
    """Size of model.onnx."""
    inventory: Inventory
    """What the file is made of."""
    parity: Parity | None
    """None when the check was switched off."""
    seconds: float
    """Wall clock."""

    def to_json(self) -> dict[str, Any]:
        """Machine-readable, for `--json`."""
        return {
            "output": str(self.output),
            "file_bytes": self.file_bytes,
            "parity": self.parity.to_json() if self.parity else None,
            "seconds": round(self.seconds, 2),
            "inventory": self.inventory.to_json(),
        }

    def summary(self) -> str:
        """One line for people."""
        line = f"{self.output / folders.MODEL_FILE}: {format_bytes(self.file_bytes)} in {self.seconds:.0f} s"
        if self.parity is None:
            return f"{line}, not compared with PyTorch"
        return (
            f"{line}, largest logit difference to PyTorch {self.parity.max_abs_difference:.1e} on "
            f"{self.parity.rows} sentences, agreement {self.parity.agreement:.0%}"
        )


def to_onnx(config: ExportConfig, *, report: Callable[[str], None] = lambda line: None) -> ExportResult:
    """Export a model folder. The output folder appears when everything succeeded, else it is as it was.

    Args:
        config: what, where to, and for which runtime.
        report: called with one line per stage.
    Raises:
        UnsupportedModelError: not a model folder, no weights, not a supported encoder or task, a module that
            no rule lowers, or a file that does not compute what PyTorch does.
        OutputExistsError: the output exists and `force` is not set.
        DiskFullError: no space for the output.
    """
    start = time.perf_counter()
    check_output(config.output, force=config.force)
    source = Path(resolve_model(str(config.model)))
    if not source.is_dir():
        raise UnsupportedModelError(
            f"{config.model}: no such model folder; download a hub model, or train one with qexport train"
        )
    _check_task(source)
    load_tokenizer(source)
    model = load_encoder(str(source))
    model.train(False)
    report(f"loaded {config.model}: {model.config.model_type}, {_describe(model)}")
    feeds = _parity_feeds(source, model)
    expected = _torch_outputs(model, feeds) if config.check else None
    description = _description(source, model)
    longest = description["max_length"] or ExportWrapper.longest(model)
    if config.with_tokenizer and description["kind"] not in ("classification", "regression"):
        raise UnsupportedModelError(
            f"{source}: --with-tokenizer is for models that label a text, this is one for "
            f"{description['kind']}; leave the option out"
        )
    words = require_wordpiece(source, longest) if config.with_tokenizer else None
    target = config.target()
    proto, layer_norms = export_graph(model, config, _metadata(description))
    report(
        f"graph of {len(proto.graph.node)} nodes, opset {target.opset}, "
        f"{len(proto.functions)} operator definitions ({time.perf_counter() - start:.0f} s)"
    )
    with atomic_folder(config.output, force=config.force) as part:
        path = part / folders.MODEL_FILE
        path.write_bytes(proto.SerializeToString(deterministic=True))
        parity = None
        if expected is not None:
            limit = PARITY_LIMIT if _has_exact_activation(model) else LOOSE_PARITY_LIMIT
            parity = _compare(path, feeds, expected, serving_kind(description["kind"]), limit)
            report(f"ONNX Runtime {onnxruntime.__version__} against PyTorch: {parity.max_abs_difference:.1e}")
        text = None
        if words is not None:
            (part / TEXT_FILE).write_bytes(with_wordpiece(proto, words).SerializeToString(deterministic=True))
            text = text_parity(path, part / TEXT_FILE, feeds, PARITY_TEXTS)
            report(f"{TEXT_FILE}: the logits of {text['same_logits']} of {text['rows']} sentences are equal")
        inventory = inspect_file(path)
        folders.write_config(source, part)
        folders.copy_tokenizer(source, part)
        if description["kind"] == "embedding":
            length = int(description["max_length"] or ExportWrapper.longest(model))
            write_sentence_files(part, width=int(model.config.hidden_size), max_length=length)
        folders.write_ort_config(part, opset=target.opset, description=description)
        folders.write_manifest(
            part,
            {
                **description,
                "target": {"opset": target.opset, "ir_version": target.ir_version, "inline": target.inline,
                           "min_ort": config.min_ort},
                "parity": parity.to_json() if parity else None,
                **({"text_input": text} if text else {}),
                "inventory": inventory.to_json()["rows"],
                "layer_norms": layer_norms,
                "source": {"path": str(config.model), "weights_sha256": weights_sha256(source)},
                "versions": _versions(),
            },
        )  # fmt: skip
    inventory = inspect_file(config.output / folders.MODEL_FILE)
    return ExportResult(config.output, inventory.file_bytes, inventory, parity, time.perf_counter() - start)


def export_graph(
    model: PreTrainedModel, config: ExportConfig, metadata: dict[str, str]
) -> tuple[onnx.ModelProto, list[dict[str, str]]]:
    """The ONNX model of a PyTorch one, and its LayerNorm outputs; `model` is taken apart.

    Args:
        model: in evaluation mode; quantised modules or not.
        config: for the target only.
        metadata: for `metadata_props`.
    Raises:
        UnsupportedModelError: torch cannot export it, or see `qexport.graphs.pipeline.lower`.
    """
    target = config.target()
    twins = replace_by_twins(model)
    wrapper = ExportWrapper(model, _kind(model)).eval()
    graph = _trace(wrapper, target.opset)
    for value in list(graph.graph.initializers.values()):
        value.name = str(value.name).removeprefix("model.")
    lower(graph, {name: type(twin).__name__.replace("Twin", "Quant") for name, twin in twins.items()})
    proto = finish(graph, target, metadata, qexport.__version__)
    return proto, layer_norm_outputs(proto)


def _trace(wrapper: ExportWrapper, opset: int) -> ir.Model:
    """torch.onnx's graph with symbolic batch and sequence axes."""
    batch = torch.export.Dim("batch", min=1, max=2**24)
    sequence = torch.export.Dim("sequence", min=1, max=wrapper.max_length)
    width = min(7, wrapper.max_length)
    example = tuple(torch.ones(2, width, dtype=torch.int64) for _ in wrapper.input_names)
    try:
        with _quiet_torch(), torch.no_grad():
            program = torch.onnx.export(
                wrapper,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=wrapper.input_names,
                output_names=list(wrapper.kind.outputs),
                dynamic_shapes=(tuple({0: batch, 1: sequence} for _ in example),),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnsupportedModelError(
            f"torch.onnx cannot export this {wrapper.model.config.model_type} model: {first[:300]}"
        ) from error
    if program is None:
        raise UnsupportedModelError("torch.onnx returned no program; please report this model")
    graph: ir.Model = program.model
    return graph


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence the exporter's own remarks (axis names it keeps anyway, optional packages it does not need)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_task(source: Path) -> None:
    """Refuse a folder whose architecture has another head; transformers would put a random one on it.

    Raises:
        UnsupportedModelError: the folder's model is not a sequence classifier.
    """
    from optimum.exporters.tasks import TasksManager

    for name in folders.read_json(source / "config.json").get("architectures") or []:
        model_class = getattr(transformers, name, None)
        if model_class is None:
            continue
        task = TasksManager.infer_task_from_model(model_class, library_name="transformers")
        if not any(kind.heads(name) for kind in KINDS.values()):
            kinds = " or ".join(dict.fromkeys(f"{kind.model}s" for kind in KINDS.values()))
            raise UnsupportedModelError(
                f"{source}: holds a {name} ({task}), only {kinds} can be exported; "
                "fine-tune it first with qexport train --method fp32"
            )


def _describe(model: PreTrainedModel) -> str:
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is None:
        return "float32"
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if values["bits"] == "32-32-32":
        return f"{values['method']}, float32"
    return f"{values['method']} {values['bits']}, {values['activations']}"


def _description(source: Path, model: PreTrainedModel) -> dict[str, Any]:
    """Method, bits, task, labels and metrics, from config.json and the training report where there is one."""
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    file = source / "qexport_train.json"
    trained: dict[str, Any] = folders.read_json(file) if file.is_file() else {}
    labels = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    return {
        "method": quantization["method"] if quantization else trained.get("method", "fp32"),
        "bits": quantization["bits"] if quantization else "32-32-32",
        "quantization": quantization,
        "model_type": model.config.model_type,
        "task": trained.get("task"),
        "kind": trained.get("kind", _kind(model).name),
        "labels": trained.get("labels", labels),
        "max_length": trained.get("max_length") or stated_length(source),
        "decoding": trained.get("decoding"),
        "metrics": trained.get("metrics"),
        "main_metric": trained.get("main_metric"),
        "teacher": trained.get("teacher"),
        "seed": trained.get("seed"),
        "data": trained.get("data"),
    }


def _metadata(description: dict[str, Any]) -> dict[str, str]:
    """The short part of the description that travels inside the file."""
    keys = ("method", "bits", "task", "kind", "labels", "max_length", "decoding", "metrics")
    found = {key: description[key] for key in keys if description[key] is not None}
    if description["bits"] != "32-32-32":
        found["activations"] = description["quantization"]["activations"]
        found["granularity"] = description["quantization"]["granularity"]
    return {
        f"qexport.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in found.items()
    }


def _versions() -> dict[str, str]:
    return {
        "qexport": qexport.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
    }


def _parity_feeds(source: Path, model: PreTrainedModel) -> Feeds:
    """`PARITY_TEXTS` as one padded batch of real token ids, cut to what the model can read."""
    tokenizer = load_tokenizer(source)
    longest = min(64, ExportWrapper.longest(model))
    tokenizer.enable_truncation(longest)
    rows = [np.array(tokenizer.encode(text).ids, np.int64) for text in PARITY_TEXTS]
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_token_id(source), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _kind(model: PreTrainedModel) -> Kind:
    """The kind of the model's head; a model that does not say is a sequence classifier."""
    return kind_of_config(model.config) or get_kind("classification")


def _torch_outputs(model: PreTrainedModel, feeds: Feeds) -> dict[str, npt.NDArray[np.float32]]:
    """The outputs by name, 0 where an output of each token belongs to padding."""
    tensors = {name: torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = _kind(model).read(model(**tensors), tensors)
    return {name: value.float().numpy() for name, value in found.items()}


def _has_exact_activation(model: PreTrainedModel) -> bool:
    """Whether the activation function is one whose bits do not depend on a library."""
    name = getattr(model.config, "hidden_act", None) or getattr(model.config, "activation", None)
    return name in ("gelu", "relu")


def _run(
    path: Path, feeds: Feeds, outputs: list[str], *, plain: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    """Outputs by name, in a session of its own; `plain`: one thread, and no graph optimisation.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot load the file or run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if plain else torch.get_num_threads()
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {value.name for value in session.get_inputs()}
        found = session.run(outputs, {name: feeds[name] for name in feeds if name in names})
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        first = str(error).strip().splitlines()[0][:300]
        raise UnsupportedModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the exported file: {first}"
        ) from error
    return dict(zip(outputs, found, strict=True))


def _compare(
    path: Path,
    feeds: Feeds,
    expected: Mapping[str, npt.NDArray[np.float32]],
    reader: OutputKind,
    limit: float,
) -> Parity:
    """Run the file.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot load it, or an output is more than `limit` from PyTorch's.
    """
    wanted = reader.join(expected, feeds)

    def distance(found: npt.NDArray[np.float32]) -> float:
        if found.shape != wanted.shape or not np.isfinite(found).all():
            return np.inf
        return float(np.abs(found - wanted).max())

    found = reader.join(_run(path, feeds, list(expected)), feeds)
    if not distance(found) <= limit:
        again, plain = (
            distance(reader.join(_run(path, feeds, list(expected), plain=plain), feeds))
            for plain in (False, True)
        )
        raise UnsupportedModelError(
            "the exported file does not compute what PyTorch does: logits differ by "
            f"{distance(found):.3g} (in a second session by {again:.3g}, in one without graph optimisation "
            f"and threads by {plain:.3g}), "
            f"{limit:.3g} is the most that rounding explains; pass --no-check to write it all the same"
        )
    difference = np.abs(found - wanted)
    same = reader.same_rows(found, wanted)
    return Parity(len(found), float(difference.max()), float(difference.mean()), float(same.mean()))
