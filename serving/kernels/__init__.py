"""The kernel library: where it is, the instruction set it uses, how a session gets it.

    options = onnxruntime.SessionOptions()
    qexport.register_kernels(options)        # then onnxruntime.InferenceSession("model.onnx", options)

The library, libqexport_kernels, is built with the package. QEXPORT_KERNELS=FILE names another one,
QEXPORT_ISA=NAME forces an instruction set. Without a library every file runs on stock ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import EnvironmentProblem, ShapeError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["ISA_NAMES", "Kernels", "file_name", "library_path", "register_kernels"]

ISA_NAMES = ("scalar", "avx2", "avx-vnni", "avx512-vnni", "amx", "neon", "dotprod", "i8mm")
"""Every instruction set that the library has code for, on any processor."""

OLDEST_ORT = (1, 17)
"""The first ONNX Runtime with the calls that the library makes."""


def file_name(system: str) -> str:
    """Name of the library's file on a system, as `sys.platform` spells it."""
    return {"darwin": "libqexport_kernels.dylib", "win32": "qexport_kernels.dll"}.get(
        system, "libqexport_kernels.so"
    )


def library_path() -> Path | None:
    """The library's file; None where this installation has none.

    $QEXPORT_KERNELS when it is set, else the file beside this module, where every install puts it, else, in
    a run from a checkout, the file of the installed package.

    Raises:
        EnvironmentProblem: $QEXPORT_KERNELS names no file.
    """
    named = os.environ.get("QEXPORT_KERNELS")
    if named:
        path = Path(named)
        if not path.is_file():
            raise EnvironmentProblem(
                f"QEXPORT_KERNELS names {named}, which is no file; build one with: qexport kernels build "
                "--target host --output DIR, or unset the variable"
            )
        return path.absolute()
    name = file_name(sys.platform)
    for folder in __path__:  # an editable install has two: the checkout's and the one with the library
        path = Path(folder, name)
        if path.is_file():
            return path.absolute()
    try:
        files = distribution("qexport").files or []
    except PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == name)
    return next((path for path in found if path.is_file()), None)


class Kernels:
    """The library, loaded into this process.

    Args:
        path: the library's file; None for the one of this installation.
    Raises:
        EnvironmentProblem: there is no library, it cannot be loaded here, or it is of another version than
            this package.
    """

    def __init__(self, path: Path | None = None) -> None:
        from qexport import __version__

        found = path or library_path()
        if found is None:
            raise EnvironmentProblem(
                "this installation has no kernel library; install qexport again where it can be compiled, "
                "without QEXPORT_NO_KERNELS, or build one with: qexport kernels build --target host --output "
                "DIR, and set QEXPORT_KERNELS to its path"
            )
        self.path = found
        """The library's file."""
        try:
            self.library = ctypes.CDLL(str(found))
            """The functions themselves, for tests."""
            self._declare()
        except (OSError, AttributeError) as error:
            raise EnvironmentProblem(
                f"{found} cannot be used as the kernel library here ({error}); build one for this machine "
                "with: qexport kernels build --target host --output DIR"
            ) from error
        self.version = self._text("qexport_kernels_version")
        """Version of the library, the same as the package's."""
        if self.version != __version__:
            raise EnvironmentProblem(
                f"{found} is version {self.version}, but qexport is {__version__}; install qexport again"
            )

    def _declare(self) -> None:
        for name in ("qexport_kernels_version", "qexport_supported_isas", "qexport_isa"):
            function = getattr(self.library, name)
            function.restype, function.argtypes = ctypes.c_char_p, []
        self.library.qexport_set_isa.restype = ctypes.c_int
        self.library.qexport_set_isa.argtypes = [ctypes.c_char_p]
        self.library.qexport_peak.restype = ctypes.c_longlong
        self.library.qexport_peak.argtypes = [ctypes.c_char_p, ctypes.c_longlong]
        self.library.qexport_stream.restype = None
        self.library.qexport_stream.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong]

    def _text(self, function: str) -> str:
        value: bytes = getattr(self.library, function)()
        return value.decode("ascii")

    @property
    def supported_isas(self) -> tuple[str, ...]:
        """Instruction sets that this processor can run, best first; "scalar" is always the last."""
        return tuple(self._text("qexport_supported_isas").split())

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._text("qexport_isa")

    def set_isa(self, name: str | None) -> None:
        """Choose the instruction set of the sessions that are opened from now on, in the whole process.

        Args:
            name: one of `supported_isas`; None or "" for the best.
        Raises:
            UnknownNameError: there is no such instruction set.
            EnvironmentProblem: this processor lacks it.
        """
        result = self.library.qexport_set_isa(None if name is None else name.encode())
        if result == 1:
            raise UnknownNameError("instruction set", str(name), ISA_NAMES)
        if result:
            raise EnvironmentProblem(self._lacks(str(name)))

    def peak(self, isa: str, rounds: int) -> int:
        """Run the multiply loop of an instruction set that never waits for memory, on the calling thread.

        Args:
            isa: one of `supported_isas`.
            rounds: rounds of the loop.
        Returns:
            8-bit multiply-accumulates done.
        Raises:
            EnvironmentProblem: this processor lacks the instruction set.
        """
        done: int = self.library.qexport_peak(isa.encode(), rounds)
        if done < 0:
            raise EnvironmentProblem(self._lacks(isa))
        return done

    def stream(self, target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
        """Copy `source` over `target` with wide loads and stores, on the calling thread.

        Args:
            target: as many bytes as `source`; both contiguous, any dtype.
            source: what to copy, a multiple of 4 bytes.
        Raises:
            ShapeError: different sizes, a size that is no multiple of 4, or an array with gaps.
        """
        whole = target.flags.c_contiguous and source.flags.c_contiguous and source.nbytes % 4 == 0
        if not whole or target.nbytes != source.nbytes:
            raise ShapeError(
                "stream copies between contiguous arrays of one size, a multiple of 4 bytes; got "
                f"{source.nbytes} bytes and room for {target.nbytes}"
            )
        self.library.qexport_stream(target.ctypes.data, source.ctypes.data, source.nbytes)

    def _lacks(self, isa: str) -> str:
        return f"this processor lacks the instruction set '{isa}'; it has: {', '.join(self.supported_isas)}"

    def register(self, session_options: Any) -> None:
        """Let sessions that are opened with `session_options` use the kernels.

        Args:
            session_options: an `onnxruntime.SessionOptions`.
        Raises:
            UsageError: `session_options` is something else.
            EnvironmentProblem: this ONNX Runtime is older than 1.17, or refuses the library.
        """
        import onnxruntime as ort

        from qexport.serving.session import runtime_errors

        if not isinstance(session_options, ort.SessionOptions):
            raise UsageError(
                "kernels are registered in an onnxruntime.SessionOptions, got "
                f"{type(session_options).__name__}"
            )
        if tuple(int(part) for part in ort.__version__.split(".")[:2]) < OLDEST_ORT:
            oldest = ".".join(map(str, OLDEST_ORT))
            raise EnvironmentProblem(
                f"the kernels need ONNX Runtime {oldest} or newer, this is {ort.__version__}; upgrade it "
                "with: pip install -U onnxruntime, or open the session without them"
            )
        try:
            session_options.register_custom_ops_library(str(self.path))
        except runtime_errors() as error:
            reason = " ".join(str(error).split())
            raise EnvironmentProblem(
                f"ONNX Runtime {ort.__version__} refuses {self.path} ({reason[:300]}); open the session "
                "without the kernels"
            ) from error


def register_kernels(session_options: Any) -> None:
    """Let sessions that are opened with an `onnxruntime.SessionOptions` use the kernels of this installation.

    Raises:
        UsageError: `session_options` is something else.
        EnvironmentProblem: there is no library, it cannot be used, the processor lacks $QEXPORT_ISA, or ONNX
            Runtime is older than 1.17.
        UnknownNameError: $QEXPORT_ISA is no instruction set.
    """
    kernels = Kernels()
    wanted = os.environ.get("QEXPORT_ISA")
    if wanted:
        kernels.set_isa(wanted)
    kernels.register(session_options)
