"""BundleConfig: which folder becomes a bundle, for which platform, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexport.errors import UsageError
from qexport.serving.bundle.targets import BundleTarget, find_target

__all__ = ["BundleConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleConfig:
    """What to hand over, and to whom."""

    model: Path
    """Folder written by `qexport to-onnx`."""
    target: str
    """android, ios, web, linux-arm64, linux-x64, windows-x64 or macos-arm64."""
    output: Path
    """Folder to write."""
    force: bool = False
    """Replace an existing output folder."""
    onnxruntime_web: Path | None = None
    """Target web: folder with the dist files of onnxruntime-web to include; default: those that `qexport
    target prepare web` fetched, and where it was not run, a package.json that pins them."""

    def __post_init__(self) -> None:
        if self.platform().sample != "web" and self.onnxruntime_web is not None:
            raise UsageError(f"--onnxruntime-web is for --target web; leave it out for {self.target}")

    def platform(self) -> BundleTarget:
        """The target.

        Raises:
            UnknownNameError: there is none of that name; the message suggests the nearest.
        """
        return find_target(self.target)
