"""One benchmark from end to end: the FP32 export that others are made of, and serving's `bench`.

Making an FP32 export needs torch, which serving must not; so that is here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import UsageError

if TYPE_CHECKING:
    from qexport.serving.bench.config import BenchConfig
    from qexport.serving.bench.report import BenchReport

__all__ = ["bench_folder"]

_SIZES = (
    "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "dim", "n_layers", "hidden_dim",
)  # fmt: skip

_NOT_ARCHITECTURE = (
    "_name_or_path", "architectures", "id2label", "label2id", "quantization_config", "transformers_version",
    "dtype", "torch_dtype",
)  # fmt: skip


def bench_folder(
    config: BenchConfig,
    *,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> BenchReport:
    """Benchmark one exported folder and write the report.

    Args:
        config: what to do.
        command: command line that repeats it, for the report.
        say: takes one line per step.
        progress: takes rounds done, rounds in all, and what is being timed.
    Returns:
        the report, written to `config.folder`.
    Raises:
        UsageError: an engine needs an FP32 export and there is neither one nor a config.json.
        MissingPackageError: OpenVINO or NNCF is missing.
        EnvironmentProblem, UnsupportedModelError: an engine that cannot run here, or not this file.
        Interrupted: Ctrl-C; finished cells are in the folder.
    """
    from qexport.serving.bench.files import cache_folder, check_packages, engine_files
    from qexport.serving.bench.measure import bench, check_model

    specs = config.specs()
    check_packages(specs)
    model = check_model(config)
    cache = cache_folder()
    fp32, how = None, ""
    notes: list[str] = []
    if any(not spec.ours for spec in specs):
        if config.fp32 is not None:
            fp32, how = _given_fp32(model, config.fp32), "FP32 export given by --fp32"
        else:
            fp32 = _random_fp32(model, cache, say)
            how = "FP32 export of the same architecture with random weights"
            notes.append(
                "the FP32 export, and what is made of it, has random weights of the same architecture: "
                "times do not depend on them, and its answers mean nothing"
            )
    files = engine_files(model, fp32, [spec.file for spec in specs], cache=cache, how_fp32=how, say=say)
    return bench(config, files, command=command, notes=notes, say=say, progress=progress)


def _given_fp32(model: Path, folder: Path) -> Path:
    """The FP32 export that the user named, once it is known to fit the model.

    Raises:
        UsageError: it is a low-bit export, or of another architecture.
        UnsupportedModelError: it cannot be loaded, or is not a text classifier.
    """
    from qexport.serving.native import has_operators
    from qexport.serving.session import Session, model_file, read_json

    file = model_file(folder)
    if has_operators(file):
        raise UsageError(f"--fp32 takes a float export, but {file} holds low-bit weights; export the teacher")
    Session(file, kernels="off", optimize=False)
    ours, theirs = (read_json(path.parent / "config.json") for path in (model, file))
    for name in _SIZES:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise UsageError(
                f"--fp32 must have the architecture of the model: {name} is {theirs[name]} there and "
                f"{ours[name]} here; leave --fp32 out to have one made"
            )
    return file


def _random_fp32(model: Path, cache: Path, say: Callable[[str], None]) -> Path:
    """An FP32 export with random weights, made once per architecture.

    Raises:
        UsageError: there is no config.json beside the model.
        UnsupportedModelError: the architecture cannot be exported.
    """
    from qexport.serving.session import read_json

    described = read_json(model.parent / "config.json")
    if not described.get("model_type"):
        raise UsageError(
            f"{model.parent} has no config.json to make an FP32 model from; give an FP32 export with --fp32"
        )
    labels = len(described.get("id2label") or {}) or 2
    shape = {name: value for name, value in described.items() if name not in _NOT_ARCHITECTURE}
    key = hashlib.sha256(json.dumps([shape, labels], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"fp32-{key}"
    if not (folder / "model.onnx").is_file():
        say("exporting an FP32 model of the same architecture with random weights")
        _export(shape, labels, model.parent, folder)
    return folder / "model.onnx"


def _export(shape: dict[str, Any], labels: int, tokenizer: Path, folder: Path) -> None:
    import shutil
    import tempfile

    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from qexport.graphs.config import ExportConfig
    from qexport.graphs.export import to_onnx
    from qexport.training.data import TOKENIZER_FILES

    torch.manual_seed(0)
    values = {name: value for name, value in shape.items() if name != "model_type"}
    architecture = AutoConfig.for_model(shape["model_type"], num_labels=labels, **values)
    factory: Any = AutoModelForSequenceClassification
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        factory.from_config(architecture).save_pretrained(scratch)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copy(tokenizer / name, scratch)
        to_onnx(ExportConfig(model=Path(scratch), output=folder, check=False, force=True))
