"""Grid: the runs that a YAML file asks for, in the order in which they are done."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import UsageError
from qexport.sweep.document import Node, read_document
from qexport.sweep.run import WITHOUT_EFFECT, Run, variables
from qexport.sweep.settings import convert, plain_names
from qexport.training.config import TrainConfig
from qexport.training.recipes import RECIPES, get_recipe
from qexport.training.tasks import TASKS, fold_name, get_task
from qexport.verification import VerificationConfig

__all__ = ["KEEP", "Sweep", "read_sweep"]

TEACHER = "fp32"
"""The method whose runs are the teachers of all others, unless `teacher` says otherwise."""

KEEP = ("all", "onnx", "reports")
"""What stays of a finished run: everything, all but the PyTorch model, or log and report only."""

_TOP = (
    "output",
    "table",
    "launcher",
    "jobs",
    "keep",
    "defaults",
    "methods",
    "tasks",
    "verify",
    "grids",
    "runs",
)
_SPECIAL = ("teacher", "teacher_seed")
_OWN = {"output", "method", "task", "bits", "seed", "resume", "force", "teacher"}
_OPTIONS = {field.name for field in dataclasses.fields(TrainConfig)} - _OWN
_VERIFY = {
    field.name for field in dataclasses.fields(VerificationConfig)
} - {"model", "student", "teacher", "report", "task"}  # fmt: skip
_GROUP = "results"
_SEED = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What one file asks for."""

    file: Path
    runs: tuple[Run, ...]
    """In order; a teacher stands before its first student."""
    output: str | None
    """Folder of the runs."""
    table: Path | None
    """The table, beside the file unless its path is absolute."""
    launcher: str
    """Words before `-m qexport train`; empty: this Python."""
    jobs: int
    """Runs at a time."""
    keep: str
    verify: Mapping[str, Any]
    """Fields of VerificationConfig."""


def read_sweep(file: Path) -> Sweep:
    """Read and check a whole file before anything runs.

    Raises:
        UsageError: names the file, the line and what must be there.
    """
    root = read_document(file)
    root.only(_TOP, "a sweep")
    top = root.mapping("a sweep")
    reader = _Reader(root)
    runs: dict[str, Run] = {}
    for part in [name for name in top if name in ("grids", "runs")]:  # in the order of the file
        for entry in top[part].items(part):
            for run in reader.grid(entry) if part == "grids" else reader.single(entry):
                for each in _with_teachers(run):
                    known = runs.get(each.key)
                    runs[each.key] = known.grouped(each.groups) if known else each
    if not runs:
        raise root.error("there is nothing to run; write grids: or runs:")
    table = top["table"].text("table") if "table" in top else None
    return Sweep(
        file=file,
        runs=tuple(_teachers_first(runs)),
        output=top["output"].text("output") if "output" in top else None,
        table=None if table is None else file.parent / table,
        launcher=top["launcher"].text("launcher") if "launcher" in top else "",
        jobs=reader.jobs(),
        keep=reader.keep(),
        verify=reader.verify(),
    )


def _with_teachers(run: Run) -> Iterator[Run]:
    if isinstance(run.teacher, Run):
        yield from _with_teachers(run.teacher)
    yield run


def _teachers_first(runs: Mapping[str, Run]) -> Iterator[Run]:
    """The runs, each once; a teacher that the file asks for later moves up to its first student."""
    seen: set[str] = set()
    for run in runs.values():
        for each in _with_teachers(run):
            if each.key not in seen:
                seen.add(each.key)
                yield runs[each.key]


def _text(node: Node) -> str:
    return "default" if node.value is None else str(node.value)


class _Reader:
    """The parts of a file that grids and runs are composed from."""

    def __init__(self, root: Node) -> None:
        top = root.mapping("a sweep")
        nothing = Node(None, root.file, root.line)
        self.top, self.root = top, root
        self.defaults = self._options(top.get("defaults", nothing), "defaults")
        self.methods = {
            self._method(name, node): self._options(node, f"methods.{name}")
            for name, node in top.get("methods", nothing).mapping("methods").items()
        }
        self.tasks: dict[str, dict[str, Node]] = {}
        self.pairs: dict[tuple[str, str], dict[str, Node]] = {}
        for name, node in top.get("tasks", nothing).mapping("tasks").items():
            inner = dict(plain_names(node, f"tasks.{name}").mapping(f"tasks.{name}"))
            special = inner.pop("methods", nothing).mapping(f"tasks.{name}.methods")
            options = self._options(Node(inner, node.file, node.line), f"tasks.{name}", also=("methods",))
            task = self._task(name, options, node)
            self.tasks[task] = options
            for method, given in special.items():
                pair = self._method(method, given), task
                self.pairs[pair] = self._options(given, f"tasks.{name}.methods.{method}")

    def jobs(self) -> int:
        node = self.top.get("jobs")
        if node is None:
            return 1
        if isinstance(node.value, bool) or not isinstance(node.value, int) or node.value < 1:
            raise node.error(f"jobs must be a whole number of at least 1, got '{node.value}'")
        return node.value

    def keep(self) -> str:
        node = self.top.get("keep")
        if node is None:
            return KEEP[0]
        if node.value not in KEEP:
            raise node.error(f"keep must be one of {', '.join(KEEP)}, got '{node.value}'")
        return str(node.value)

    def verify(self) -> dict[str, Any]:
        node = self.top.get("verify")
        if node is None:
            return {}
        given = plain_names(node, "verify")
        given.only(_VERIFY, "verify")
        return {
            name: convert(VerificationConfig, name, value) for name, value in given.mapping("verify").items()
        }

    def grid(self, node: Node) -> Iterator[Run]:
        """The product of one grid: method, bits, further lists, seed, and tasks innermost."""
        given = dict(plain_names(node, "a grid").mapping("a grid"))
        node = Node(given, node.file, node.line)
        node.only({"name", "methods", "tasks", "bits", "seeds", *_OPTIONS, *_SPECIAL}, "a grid")
        for needed in ("methods", "tasks"):
            if needed not in given:
                raise node.error(f"a grid needs {needed}: a list of names")
        group = given["name"].text("name") if "name" in given else _GROUP
        options = {name: value for name, value in given.items() if name in _OPTIONS or name in _SPECIAL}
        axes = {
            name: value.items(name) if isinstance(value.value, list) else [value]
            for name, value in options.items()
        }
        for name, several in axes.items():
            if name in WITHOUT_EFFECT and len(several) > 1:
                raise options[name].error(
                    f"{name} does not change what comes out, so a list of it is one run given several times; "
                    "give one value"
                )
        nothing = [Node(None, node.file, node.line)]
        bits = given["bits"].items("bits") if "bits" in given else nothing
        seeds = given["seeds"].items("seeds") if "seeds" in given else nothing
        for method, width, *values in itertools.product(
            given["methods"].items("methods"), bits, *axes.values()
        ):
            for seed, task in itertools.product(seeds, given["tasks"].items("tasks")):
                own = dict(zip(axes, values, strict=True))
                varied = tuple(f"{name}={_text(own[name])}" for name in axes if len(axes[name]) > 1)
                run = self._run(node, group, method, task, width, seed, own)
                yield dataclasses.replace(run, varied=varied)

    def single(self, node: Node) -> Iterator[Run]:
        """One entry of `runs`."""
        given = dict(plain_names(node, "a run").mapping("a run"))
        node = Node(given, node.file, node.line)
        node.only({"name", "method", "task", "bits", "seed", *_OPTIONS, *_SPECIAL}, "a run")
        for needed in ("method", "task"):
            if needed not in given:
                raise node.error(f"a run needs {needed}: a name")
        group = given["name"].text("name") if "name" in given else _GROUP
        nothing = Node(None, node.file, node.line)
        own = {name: value for name, value in given.items() if name in _OPTIONS or name in _SPECIAL}
        bits, seed = given.get("bits", nothing), given.get("seed", nothing)
        yield self._run(node, group, given["method"], given["task"], bits, seed, own)

    def _run(
        self,
        node: Node,
        group: str,
        method: Node,
        task: Node,
        bits: Node,
        seed: Node,
        own: Mapping[str, Node],
    ) -> Run:
        name = self._method(method.text("method"), method)
        where = self._task(task.text("task"), {**self.defaults, **own}, task)
        if seed.value is not None and (isinstance(seed.value, bool) or not isinstance(seed.value, int)):
            raise seed.error(f"a seed must be a whole number, got '{seed.value}'")
        return self._composed(node, (group,), name, where, bits.value and bits.text("bits"), seed.value, own)

    def _composed(
        self, node: Node, groups: tuple[str, ...], method: str, task: str, bits: str | None, seed: int | None,
        own: Mapping[str, Node],
    ) -> Run:  # fmt: skip
        """A run with its options: defaults, task, method, method on that task, its own, later ones first."""
        merged = {
            **self.defaults, **self.tasks.get(task, {}), **self.methods.get(method, {}),
            **self.pairs.get((method, task), {}), **own,
        }  # fmt: skip
        options = {
            name: value
            for name, found in sorted(merged.items())
            if name not in _SPECIAL and (value := convert(TrainConfig, name, found)) is not None
        }
        for name in options:
            self._need_variables(merged[name])
        recipe = get_recipe(method)
        quantised = bool(recipe.weight_bits)
        run = Run(
            method=method,
            task=task,
            bits=(bits or recipe.default_bits) if quantised else "32-32-32",
            seed=_SEED if seed is None else seed,
            options=options,
            teacher=self._teacher(node, groups, method, task, merged),
            groups=groups,
            quantised=quantised,
            registered=task in TASKS,
        )
        self._check(run, node)
        return run

    def _teacher(
        self, node: Node, groups: tuple[str, ...], method: str, task: str, merged: Mapping[str, Node]
    ) -> Run | str | None:
        given = merged.get("teacher")
        wanted = TEACHER if given is None or given.value is None else given.text("teacher")
        if method == TEACHER or wanted == "none":
            return None
        if wanted not in RECIPES:
            self._need_variables(given or node)
            return wanted
        if wanted == method:
            raise (given or node).error(
                f"method {method} cannot be its own teacher; name another or a folder"
            )
        seed = merged.get("teacher_seed")
        number = _SEED if seed is None or seed.value is None else seed.value
        if isinstance(number, bool) or not isinstance(number, int):
            raise (seed or node).error(f"teacher_seed must be a whole number, got '{number}'")
        return self._composed(node, groups, wanted, task, None, number, {})

    def _check(self, run: Run, node: Node) -> None:
        """Let the training's own configuration and method judge the values."""
        values: dict[str, Any] = dict(run.options)
        for name in ("data_dir", "train_file", "eval_file"):
            if name in values:
                values[name] = Path(values[name])
        try:
            config = TrainConfig(
                method=run.method, output=Path("model"), task=run.task if run.registered else None,
                bits=run.bits if run.quantised else None, seed=run.seed, **values,
            )  # fmt: skip
            get_recipe(run.method).quant_config(config)
            get_recipe(run.method).learned_steps(config)
        except UsageError as error:
            raise node.error(f"{run.title}: {error}") from error

    def _options(self, node: Node, where: str, also: Iterable[str] = ()) -> dict[str, Node]:
        given = plain_names(node, where)
        given.only({*_OPTIONS, *_SPECIAL, *also}, where)
        return given.mapping(where)

    def _method(self, name: str, node: Node) -> str:
        try:
            return get_recipe(name).name
        except UsageError as error:
            raise node.error(str(error)) from error

    def _task(self, name: str, options: Mapping[str, Node], node: Node) -> str:
        """The registered name, or that of the user's own files."""
        folded = {fold_name(known): known for known in [*self.tasks, *TASKS]}
        if fold_name(name) in folded:
            return folded[fold_name(name)]
        if "train_file" in options:
            return name
        try:
            return get_task(name).name
        except UsageError as error:
            raise node.error(str(error)) from error

    def _need_variables(self, node: Node) -> None:
        for name in variables(str(node.value)):
            if name not in os.environ:
                raise node.error(f"${name} is not set; export {name}=... before the sweep")
