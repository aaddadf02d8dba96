"""The platforms that a bundle can be made for."""

from __future__ import annotations

from dataclasses import dataclass

from qexport.errors import UnknownNameError

__all__ = ["TARGETS", "BundleTarget", "find_target"]


@dataclass(frozen=True, slots=True)
class BundleTarget:
    """One platform: its sample program, and the kernel library that fits it."""

    name: str
    """As on the command line."""
    shown: str
    """For people: "Android"."""
    sample: str
    """Folder of the sample program: "c", "web", "android", "ios"."""
    kernels: str | None
    """Target of `qexport kernels build`; None where none can be built."""
    library_folder: str = "lib"
    """Where the library goes in the bundle."""
    no_kernels: str = ""
    """Why there is no library, one sentence."""


_NO_IOS = "No kernel library for iOS is included, because building one needs Apple's SDK."
_NO_WEB = "No kernel library is included, because onnxruntime-web cannot load native code."

TARGETS = {
    target.name: target
    for target in (
        BundleTarget("android", "Android", "android", "aarch64-linux-android", "lib/arm64-v8a"),
        BundleTarget("ios", "iOS", "ios", None, no_kernels=_NO_IOS),
        BundleTarget("web", "the web", "web", None, no_kernels=_NO_WEB),
        BundleTarget("linux-arm64", "Linux on 64-bit Arm", "c", "aarch64-linux-gnu"),
        BundleTarget("linux-x64", "Linux on x86-64", "c", "x86_64-linux-gnu"),
        BundleTarget("windows-x64", "Windows on x86-64", "c", "x86_64-windows"),
        BundleTarget("macos-arm64", "macOS on Apple silicon", "c", "aarch64-macos"),
    )
}


def find_target(name: str) -> BundleTarget:
    """The platform called `name`.

    Raises:
        UnknownNameError: no such platform.
    """
    if name not in TARGETS:
        raise UnknownNameError("bundle target", name, TARGETS)
    return TARGETS[name]
