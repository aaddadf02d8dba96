"""The targets of one verification while they run: started when needed, lost one by one, closed together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from qexport.errors import (
    EnvironmentProblem,
    Interrupted,
    MissingToolError,
    QexportError,
    UnsupportedModelError,
)
from qexport.serving.evaluate import Runner
from qexport.serving.matrix import TargetResult
from qexport.serving.native import Library
from qexport.serving.targets import Choice, Clock, Facts, Measure, Place, Target

__all__ = ["RunningTargets"]

LOSES_A_TARGET = (EnvironmentProblem, UnsupportedModelError)
"""What ends one target and leaves the others alone."""


class RunningTargets:
    """Every target of a choice, with what it holds open.

    Args:
        choice: the targets.
        model: the .onnx file that they run.
        say: takes one line of progress.
    """

    def __init__(self, choice: Choice, model: Path, say: Callable[[str], None]) -> None:
        self.choice, self.model, self.say = choice, model, say
        self.modes: dict[str, Target] = {mode: one for one in choice.targets for mode in one.modes}
        """Mode -> its target, of the targets that were not lost."""
        self.asked_modes = dict(self.modes)
        """The same of all targets."""
        self._places: dict[str, Place] = {}
        self._facts: dict[str, Facts] = {}
        self._errors: dict[str, QexportError] = {}
        self._partly: dict[str, QexportError] = {}
        """Targets that go on without a further mode, which cannot run the file."""
        self._measures: dict[str, list[Measure]] = {}
        self.interrupted = False
        """Ctrl-C came: nothing more is started, what was finished is kept."""
        for one in choice.unusable:
            say(f"target {one.name} cannot be used: {one.error}")

    def place(self, target: Target) -> Place:
        """The running place of a target, started now if it was not."""
        if target.name not in self._places:
            place = self._places[target.name] = target.start(self.say)
            facts = self._facts[target.name] = place.facts()
            for mode, reason in facts.left_out.items():
                self.modes.pop(mode, None)
                self.asked_modes.pop(mode, None)
                self.say(f"{mode} was left out: {reason}")
        return self._places[target.name]

    def has(self, mode: str) -> bool:
        """Whether a mode runs here: its target (started now) is not lost and does not leave it out."""
        if self.interrupted:
            return False
        if mode in self.modes:
            self.place(self.modes[mode])
        return mode in self.modes

    def open(self, mode: str, *, threads: int) -> Runner:
        """The file in one mode."""
        target = self.asked_modes[mode]
        place = self.place(target)
        runner = place.open(self.model, mode=mode, threads=threads)
        self._facts[target.name] = place.facts()  # a device knows its runtime's version from now on
        return runner

    def open_first(self, *, threads: int) -> tuple[str, Runner]:
        """The first mode of the first target that opens the file.

        Raises:
            EnvironmentProblem, UnsupportedModelError: none does; what the first one said.
            KeyboardInterrupt: Ctrl-C.
        """
        for target in self.choice.targets:
            with self.guard(target.modes[0]):
                return target.modes[0], self.open(target.modes[0], threads=threads)
            if self.interrupted:
                raise KeyboardInterrupt
        raise self.first_error()

    def first_error(self) -> QexportError:
        """What the first lost target said."""
        return next(iter(self._errors.values()))

    @contextlib.contextmanager
    def guard(self, mode: str) -> Iterator[None]:
        """Lose the target of `mode`, and no other, when it fails inside; at Ctrl-C also see `interrupt`.

        A further mode that refuses the file is lost alone, and its target counts as failed.
        """
        target = self.asked_modes.get(mode)
        if target is None or target.name in self._errors:
            yield
            return
        try:
            yield
        except LOSES_A_TARGET as error:
            further = mode != target.modes[0] and target.name in self._places
            if further and isinstance(error, UnsupportedModelError):
                self.say(f"{mode} was lost: {error}")
                self._partly.setdefault(target.name, error)
                self.modes.pop(mode, None)
                return
            self.say(f"target {target.name} was lost: {error}")
            self._lose(target, error)
        except KeyboardInterrupt:
            self.interrupt()
            self._lose(target, Interrupted("Ctrl-C came before it was done"))

    def _lose(self, target: Target, error: QexportError) -> None:
        self._errors[target.name] = error
        for name in target.modes:
            self.modes.pop(name, None)
        self._end(target.name)

    def interrupt(self) -> None:
        """Ctrl-C: targets that were not started are not run any more; those that ran keep their results."""
        self.interrupted = True
        self.say("interrupted: what was finished goes into the report; press Ctrl-C again to stop at once")
        for target in self.choice.targets:
            if target.name not in self._places and target.name not in self._errors:
                self._lose(target, Interrupted("Ctrl-C came before it was started"))

    def clock(self, mode: str) -> Clock:
        """Whose clock times a mode."""
        return self.asked_modes[mode].clock(mode)

    def row_limit(self, mode: str) -> int | None:
        """Rows that a mode runs by default."""
        return self.asked_modes[mode].row_limit(mode)

    def library(self, mode: str) -> Library | None:
        """The kernel library that a mode runs in this process."""
        return self.asked_modes[mode].library()

    def threads(self, mode: str, asked: int) -> int:
        """Threads of a mode: its own number, or what was asked for."""
        facts = self._facts.get(self.asked_modes[mode].name, Facts())
        return facts.threads.get(mode, asked)

    def fixed_threads(self, target: Target) -> dict[str, int]:
        """Modes of a target that fix their own number of threads."""
        return self._facts.get(target.name, Facts()).threads

    def host_versions(self) -> dict[str, str]:
        """Versions of what ran in this process."""
        found: dict[str, str] = {}
        for target in self.choice.targets:
            if not self._own_machine(target):
                found |= self._facts.get(target.name, Facts()).versions
        return found

    def _own_machine(self, target: Target) -> bool:
        return bool(self._facts.get(target.name, Facts()).machine)

    def measure(self) -> None:
        """Ask every running target for its further numbers."""
        for target in dict.fromkeys(self.modes.values()):
            if self.interrupted:
                return
            with self.guard(target.modes[0]):
                if target.name in self._places:
                    self._measures[target.name] = self._places[target.name].measures()

    def results(self) -> list[TargetResult]:
        """What became of each target, in the order asked for; the unusable ones last."""
        found = []
        for target in self.choice.targets:
            error = self._errors.get(target.name) or self._partly.get(target.name)
            facts = self._facts.get(target.name, Facts())
            clocks = {target.clock(mode) for mode in target.modes} - {"none"}
            found.append(
                TargetResult(
                    target=target.name, status="failed" if error else "ran",
                    modes=[mode for mode in target.modes if mode not in facts.left_out],
                    reason=str(error) if error else "; ".join(
                        f"{mode} was left out: {why}" for mode, why in facts.left_out.items()) or None,
                    fix=getattr(error, "fix", None), exit_code=error.exit_code if error else 0,
                    clock="host" if "host" in clocks else "own" if clocks else "none",
                    machine=facts.machine, versions=facts.versions,
                    measures=self._measures.get(target.name, []),
                )
            )  # fmt: skip
        for one in self.choice.unusable:
            fix = one.error.fix if isinstance(one.error, MissingToolError) else None
            found.append(
                TargetResult(
                    target=one.name, status="failed" if one.asked else "missing", modes=[], fix=fix,
                    reason=str(one.error), exit_code=one.error.exit_code if one.asked else 0,
                )
            )  # fmt: skip
        return found

    def _end(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is not None:
            place.close()

    def close(self) -> None:
        """End everything that was started."""
        for name in list(self._places):
            self._end(name)
