"""Target `web`: onnxruntime-web in headless Chromium, page and worker served on loopback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qexport.serving.targets import npm
from qexport.serving.targets.chromium import Chromium, find_chromium
from qexport.serving.targets.loopback import Loopback
from qexport.serving.targets.node import ANSWER_SECONDS, wasm_threads
from qexport.serving.targets.protocol import Clock, Facts, Say
from qexport.serving.targets.wire import CommandPlace

__all__ = ["TARGET", "WebPlace", "WebTarget"]

MODES = ("web", "web-threads", "web-webgpu")


class WebTarget:
    """web is wasm SIMD on 1 thread, web-threads on several, web-webgpu the GPU where the browser has one."""

    name = "web"
    modes = MODES

    def row_limit(self, mode: str) -> int | None:
        """All rows on one thread, 64 in the other modes, to see that they agree."""
        return None if mode == "web" else 64

    def clock(self, mode: str) -> Clock:
        """performance.now of the page's workers."""
        return "own"

    def library(self) -> None:
        """Nothing of ours."""

    def check(self) -> None:
        """Look for Chromium and the packages.

        Raises:
            MissingToolError: either is missing.
        """
        find_chromium()
        npm.modules_folder(self.name)

    def prepare(self, say: Say) -> dict[str, Any]:
        """Install the packages of the lock file into the cache, and look for the browser."""
        versions = npm.package_versions(npm.install(say))
        return {"chromium": find_chromium(), **versions}

    def start(self, say: Say) -> WebPlace:
        """Start the server and the browser."""
        return WebPlace(find_chromium(), npm.modules_folder(self.name))


class WebPlace(CommandPlace):
    """A page in a browser that answers commands.

    Args:
        chromium: path of the browser.
        modules: node_modules with onnxruntime-web.
    Raises:
        EnvironmentProblem: the browser does not start, or the page does not load in it.
    """

    def __init__(self, chromium: str, modules: Path) -> None:
        super().__init__()
        self.modules = modules
        self.server = Loopback({"": npm.SCRIPTS, "dist": modules / "onnxruntime-web" / "dist"})
        try:
            self.browser = Chromium(chromium)
        except BaseException:
            self.server.close()
            raise
        try:
            self.browser.open(self.server.url)
            self.browser.wait_for("globalThis.host")
            self._facts = self.call({"op": "facts"})
        except BaseException:
            self.close()
            raise

    def call(self, command: Mapping[str, Any]) -> Any:
        """Evaluate host.handle(command) in the page."""
        return self.browser.evaluate(f"host.handle({json.dumps(command)})", timeout=ANSWER_SECONDS)

    def engine(self, mode: str, threads: int) -> str:
        """A worker each, by its number of threads."""
        return "webgpu" if mode == "web-webgpu" else f"wasm-{self.facts().threads[mode]}"

    def address(self, model: Path) -> str:
        """The URL."""
        return self.server.url + self.server.add(model)

    def facts(self) -> Facts:
        """What the page says of the browser."""
        said = self._facts
        left_out = {}
        if not said["gpu"]:
            left_out["web-webgpu"] = "the browser offers no WebGPU adapter here"
        if not said["isolated"]:
            left_out["web-threads"] = (
                "the page is not cross-origin isolated, so the browser gives it no threads"
            )
        machine = {
            "browser": str(said["agent"]), "cores": str(said["cores"]),
            "cross-origin isolated": "yes" if said["isolated"] else "no",
            "WebGPU": str(said["gpu"] or "no adapter"),
        }  # fmt: skip
        versions = {
            "Chromium": self.browser.version,
            "onnxruntime-web": npm.package_versions(self.modules)["onnxruntime-web"],
        }
        threads = {"web": 1, "web-threads": wasm_threads(int(said["cores"])), "web-webgpu": 1}
        return Facts(machine, versions, threads, left_out)

    def close(self) -> None:
        """End the browser and the server."""
        self.browser.close()
        self.server.close()


TARGET = WebTarget()
