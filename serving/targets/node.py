"""Target `node`: onnxruntime-node and onnxruntime-web in Node, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from qexport.errors import EnvironmentProblem, TargetLost, UnsupportedModelError
from qexport.serving.complaints import Complaints
from qexport.serving.guard import Guard
from qexport.serving.targets import npm
from qexport.serving.targets.protocol import Clock, Facts, Say
from qexport.serving.targets.wire import CommandPlace

__all__ = ["TARGET", "NodePlace", "NodeTarget"]

ANSWER_SECONDS = 600.0
"""The longest that one command may take."""

MODES = ("node", "node-wasm", "node-wasm-threads")


def wasm_threads(cores: int) -> int:
    """Threads of a wasm mode "with threads": every core, at least 2 and at most 4."""
    return max(2, min(4, cores))


class NodeTarget:
    """node is onnxruntime-node; node-wasm and node-wasm-threads are onnxruntime-web on its wasm module."""

    name = "node"
    modes = MODES

    def row_limit(self, mode: str) -> int | None:
        """All rows on onnxruntime-node and on one thread of wasm; 64 with threads, to see that they agree."""
        return 64 if mode.endswith("threads") else None

    def clock(self, mode: str) -> Clock:
        """performance.now of Node."""
        return "own"

    def library(self) -> None:
        """Nothing of ours."""

    def check(self) -> None:
        """Look for Node and the packages.

        Raises:
            MissingToolError: either is missing.
        """
        npm.find_node()
        npm.modules_folder(self.name)

    def prepare(self, say: Say) -> dict[str, Any]:
        """Install the packages of the lock file into the cache."""
        return npm.package_versions(npm.install(say))

    def start(self, say: Say) -> NodePlace:
        """Start Node."""
        return NodePlace(npm.find_node(), npm.modules_folder(self.name))


class NodePlace(CommandPlace):
    """A running Node that reads commands from its standard input.

    Args:
        node: path of Node.
        modules: node_modules with the packages.
    Raises:
        EnvironmentProblem: it does not start.
    """

    def __init__(self, node: str, modules: Path) -> None:
        super().__init__()
        self.modules = modules
        self._guard = Guard()
        self._complaints = Complaints()
        try:
            self._process = subprocess.Popen(
                [node, str(npm.SCRIPTS / "node_host.mjs"), str(modules)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints.file, text=True,
                encoding="utf-8", start_new_session=os.name == "posix",
            )  # fmt: skip
        except OSError as error:
            self._guard.release()
            self._complaints.close()
            raise EnvironmentProblem(f"{node} does not start ({error}); install Node again") from error
        self._guard.watch(self._process.pid)
        self._answers: Queue[str | None] = Queue()
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        try:
            self._facts = self.call({"op": "facts"})
        except BaseException:
            self.close()
            raise

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._answers.put(line)
        self._answers.put(None)

    def call(self, command: Mapping[str, Any]) -> Any:
        """One line out, one line in."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": 0, "command": command}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=ANSWER_SECONDS)
        except (OSError, ValueError):
            line = None
        except Empty:
            raise TargetLost(f"Node did not answer within {ANSWER_SECONDS:.0f} s") from None
        if line is None:
            raise TargetLost(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise UnsupportedModelError(" ".join(str(answer["error"]).split())[:300])
        return answer["value"]

    def _last_words(self) -> str:
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "Node closed its output while it was used"
        lines = self._complaints.text().split("\n")
        said = next((line.strip() for line in lines if "rror" in line), "")
        code = self._process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"Node {how} while it was used" + (f" ({said[:200]})" if said else "")

    def engine(self, mode: str, threads: int) -> str:
        """onnxruntime-node with the threads asked for; a wasm module of 1 or several."""
        if mode == "node":
            return f"native-{self.facts().threads['node']}"
        return f"wasm-{self.facts().threads[mode]}"

    def address(self, model: Path) -> str:
        """The path."""
        return str(model.resolve())

    def facts(self) -> Facts:
        """What Node says of itself."""
        said = self._facts
        machine = {"cpu": str(said["cpu"]), "cores": str(said["cores"]), "system": platform.system()}
        versions = {"node": str(said["node"]).lstrip("v"), **npm.package_versions(self.modules)}
        return Facts(machine, versions, dict(zip(MODES, (1, 1, wasm_threads(said["cores"])), strict=True)))

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                if os.name == "posix":
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
        self._process.wait()
        self._guard.release()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._complaints.close()


TARGET = NodeTarget()
