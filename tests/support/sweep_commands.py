"""Stand-ins for the child processes of a sweep: they write what train, to-onnx and verify write."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from qexport.sweep import jobs, work


class Commands:
    """Takes the place of `qexport.sweep.work.Command` and remembers what was started and when it ended."""

    def __init__(self, polls: int = 0) -> None:
        """Nothing was started yet.

        Args:
            polls: how often a command says that it has not ended yet.
        """
        self.polls = polls
        self.calls: list[str] = []
        """One entry a command, such as "train rte-kdlsq-2-2-8-s1"."""
        self.events: list[str] = []
        """The same with "+" when it starts and "-" when it ends."""
        self.fail: dict[str, Exception] = {}
        """Call -> how it ends, once."""
        self.gates: list[dict[str, Any]] = []
        """What verify writes of its gates."""
        self.interrupt: dict[str, int] = {}
        """Call -> how often this process gets SIGTERM when it starts; it ends only when it is stopped."""

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Commands:
        """New ones in the place of the real ones; `folder` becomes the working directory."""
        found = cls()
        monkeypatch.setattr(work, "Command", found)
        monkeypatch.setattr(jobs, "_POLL_S", 0)
        monkeypatch.chdir(folder)
        return found

    def __call__(self, words: list[str], log: Path, **options: Any) -> _Child:
        name = next(part for part in log.parts if part.startswith("rte-"))
        call = f"{words[0]} {name.rpartition('-')[0]}" + " --resume" * ("--resume" in words)
        self.calls.append(call)
        self.events.append(f"+{call}")
        log.parent.mkdir(parents=True, exist_ok=True)
        child = _Child(self, call, log.parent)
        for _ in range(self.interrupt.get(call, 0)):
            signal.raise_signal(signal.SIGTERM)
        return child

    @property
    def most_at_once(self) -> int:
        """The largest number of commands that ran at the same time."""
        running = most = 0
        for event in self.events:
            running += 1 if event[0] == "+" else -1
            most = max(most, running)
        return most

    def finish(self, call: str, folder: Path) -> None:
        """Write what the command leaves.

        Raises:
            Exception: the one that `fail` holds for it.
        """
        if call in self.fail:
            if call.startswith("train"):
                self._checkpoint(folder)
            raise self.fail.pop(call)
        {"train": self._train, "to-onnx": self._export, "verify": self._verify}[call.split()[0]](folder)

    def _checkpoint(self, folder: Path) -> None:
        self._write(folder / "model" / "checkpoints" / "checkpoint-1" / "trainer_state.json", {})

    def _train(self, folder: Path) -> None:
        self._write(folder / "model" / "qexport_train.json", {
            "data": {"source": "a file", "fingerprint": "ab", "train_rows": 7}, "steps": 2, "seed": 42,
            "arguments": {"train_samples": 7}, "machine": {"threads": 1, "cuda": False},
        })  # fmt: skip

    def _export(self, folder: Path) -> None:
        self._write(folder / "onnx" / "qexport.json", {})

    def _verify(self, folder: Path) -> None:
        def score(engine: str, value: float) -> dict[str, Any]:
            metric = {"metric": "accuracy", "value": value, "low": value - 0.1, "high": value + 0.1}
            return {"engine": engine, "split": "validation", "metrics": [metric]}

        self._write(folder / "report" / "report.json", {
            "data": [{"split": "validation", "rows": 10, "main_metric": "accuracy", "source": "b",
                      "fingerprint": "cd"}],
            "main_engine": "stock", "gates": self.gates,
            "accuracy": [score("stock", 0.7), score("student", 0.7), score("teacher", 0.8)],
            "parity": [{"engine": "stock", "against": "student", "rows": 10, "disagreements": 1,
                        "max_abs": 0.5}],
            "drops": [{"engine": "stock", "against": "teacher", "metric": "accuracy", "points": 10.0,
                       "low": 1.0, "high": 19.0, "method": "m"}],
            "model": {"file_bytes": 1000, "sha256": "00"},
            "environment": {"cpu": "c", "architecture": "x86_64", "flags": [], "cores": 2, "system": "s",
                            "python": "3.11", "versions": {"torch": "2"}},
        })  # fmt: skip

    @staticmethod
    def _write(path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


class _Child:
    def __init__(self, commands: Commands, call: str, folder: Path) -> None:
        self.commands, self.call, self.folder = commands, call, folder
        self.polls, self.stops, self.over = commands.polls, 0, False

    def ended(self) -> bool:
        self.polls -= 1
        stays = self.call in self.commands.interrupt
        if self.over or (self.stops == 0 and (stays or self.polls >= 0)):
            return self.over
        if self.stops:
            self.commands._checkpoint(self.folder)
            self.commands.interrupt.pop(self.call, None)
        self.over = True
        self.commands.events.append(f"-{self.call}")
        return True

    def stop(self) -> None:
        self.stops += 1

    def check(self) -> None:
        self.commands.finish(self.call, self.folder)
