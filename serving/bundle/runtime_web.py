"""The files of onnxruntime-web that a web bundle includes."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from qexport.errors import MissingToolError, UsageError
from qexport.serving.session import read_json
from qexport.serving.targets.npm import modules_folder

__all__ = ["WEB_FILES", "WEB_VERSION", "find_web_runtime"]

WEB_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Of its dist folder: the module, the loader, and the WebAssembly itself."""


def _pinned() -> str:
    text = (resources.files("qexport.serving.bundle") / "samples" / "web" / "package.json").read_text("utf-8")
    return str(json.loads(text)["dependencies"]["onnxruntime-web"])


WEB_VERSION = _pinned()
"""The version that package.json of the sample names."""


def find_web_runtime(asked: Path | None) -> tuple[Path, str] | None:
    """The folder with `WEB_FILES` and its version, or None where there is no copy on this machine.

    Args:
        asked: the folder that the user named; None takes what `qexport target prepare web` fetched.
    Raises:
        UsageError: it lacks one of the files.
    """
    if asked is None:
        try:
            asked = modules_folder("web") / "onnxruntime-web" / "dist"
        except MissingToolError:
            return None
    for name in WEB_FILES:
        if not (asked / name).is_file():
            raise UsageError(
                f"--onnxruntime-web must name the dist folder of onnxruntime-web, {asked} has no {name}"
            )
    about = read_json(asked.parent / "package.json")
    return asked, str(about.get("version", "of a version that is not known"))
