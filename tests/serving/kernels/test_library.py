"""Finding, loading and registering the kernel library of this installation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from required import missing

import qexport
from qexport.errors import EnvironmentProblem, ShapeError, UnknownNameError, UsageError
from qexport.serving import kernels as module
from qexport.serving.kernels import ISA_NAMES, Kernels, file_name, library_path, register_kernels


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QEXPORT_ISA", raising=False)
    monkeypatch.delenv("QEXPORT_KERNELS", raising=False)


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    if library_path() is None:
        missing("this installation has no kernel library; install again without QEXPORT_NO_KERNELS")
    library = Kernels()
    yield library
    library.set_isa(None)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package folder without a library, of a package that is not installed."""

    def missing(name: str) -> Any:
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "__path__", [str(tmp_path)])
    monkeypatch.setattr(module, "distribution", missing)
    return tmp_path


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("linux", "libqexport_kernels.so"),
        ("android", "libqexport_kernels.so"),
        ("darwin", "libqexport_kernels.dylib"),
        ("win32", "qexport_kernels.dll"),
    ],
)
def test_file_name_follows_the_system(system: str, name: str) -> None:
    assert file_name(system) == name


def test_library_says_version_and_instruction_sets(kernels: Kernels) -> None:
    assert kernels.path == library_path()
    assert kernels.version == qexport.__version__
    assert kernels.supported_isas[-1] == "scalar"
    assert set(kernels.supported_isas) <= set(ISA_NAMES)
    kernels.set_isa(None)
    assert kernels.isa == kernels.supported_isas[0]


def test_set_isa_holds_every_supported_one(kernels: Kernels) -> None:
    for name in kernels.supported_isas:
        kernels.set_isa(name)
        assert kernels.isa == name
    kernels.set_isa("")
    assert kernels.isa == kernels.supported_isas[0]


def test_set_isa_refuses_what_it_does_not_know_and_what_the_processor_lacks(kernels: Kernels) -> None:
    with pytest.raises(UnknownNameError, match="unknown instruction set 'avx3'; did you mean 'avx2'"):
        kernels.set_isa("avx3")
    other = next(name for name in ISA_NAMES if name not in kernels.supported_isas)
    with pytest.raises(EnvironmentProblem, match=f"lacks the instruction set '{other}'; it has: .*scalar"):
        kernels.set_isa(other)
    with pytest.raises(EnvironmentProblem, match="lacks"):
        kernels.peak(other, 1)
    assert kernels.isa == kernels.supported_isas[0]


def test_peak_counts_more_work_for_more_rounds(kernels: Kernels) -> None:
    for name in kernels.supported_isas:
        assert 0 < kernels.peak(name, 10) < kernels.peak(name, 1000)


def test_stream_copies_exactly(kernels: Kernels) -> None:
    source = np.random.default_rng(0).integers(0, 2**32, 10_003).astype(np.uint32)
    for start, stop in ((0, 10_003), (1, 64), (3, 3), (5, 9_999)):
        target = np.zeros_like(source)
        kernels.stream(target[start:stop], source[start:stop])
        np.testing.assert_array_equal(target[start:stop], source[start:stop])
        assert not target[:start].any() and not target[stop:].any()


def test_stream_refuses_what_it_cannot_copy_whole(kernels: Kernels) -> None:
    with pytest.raises(ShapeError, match="got 8 bytes and room for 4"):
        kernels.stream(np.zeros(4, np.uint8), np.zeros(8, np.uint8))
    with pytest.raises(ShapeError, match="got 7 bytes"):
        kernels.stream(np.zeros(7, np.uint8), np.zeros(7, np.uint8))
    with pytest.raises(ShapeError, match="contiguous"):
        kernels.stream(np.zeros(16, np.uint8)[::2], np.zeros(8, np.uint8))


def test_register_kernels_is_one_line_for_an_own_session(kernels: Kernels) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    assert qexport.register_kernels is register_kernels
    qexport.register_kernels(options)
    with pytest.raises(UsageError, match=r"an onnxruntime\.SessionOptions, got str"):
        register_kernels("model.onnx")


def test_register_kernels_takes_the_instruction_set_of_the_environment(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    monkeypatch.setenv("QEXPORT_ISA", "scalar")
    register_kernels(ort.SessionOptions())
    assert kernels.isa == "scalar"
    monkeypatch.setenv("QEXPORT_ISA", "sse9")
    with pytest.raises(UnknownNameError, match="'sse9'"):
        register_kernels(ort.SessionOptions())


def test_an_old_runtime_is_refused_with_its_version(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(ort, "__version__", "1.16.3")
    with pytest.raises(EnvironmentProblem, match=r"need ONNX Runtime 1\.17 or newer, this is 1\.16\.3"):
        kernels.register(ort.SessionOptions())


def test_no_library_is_none_and_a_clear_error_when_it_is_needed(nothing_installed: Path) -> None:
    assert library_path() is None
    with pytest.raises(EnvironmentProblem, match=r"no kernel library; .* and set QEXPORT_KERNELS"):
        Kernels()


def test_library_path_in_a_checkout_is_the_one_of_the_installed_package(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = file_name(sys.platform)
    installed = tmp_path / "site-packages" / name
    installed.parent.mkdir()
    installed.touch()

    class File(PurePosixPath):
        def locate(self) -> Path:
            return installed.parent / self.name

    files = [File("qexport/serving/kernels/register.cpp"), File(f"qexport/serving/kernels/{name}")]
    monkeypatch.setattr(module, "distribution", lambda _: SimpleNamespace(files=files))
    assert library_path() == installed
    beside = nothing_installed / name
    beside.touch()
    assert library_path() == beside  # an install's own comes first
    installed.unlink()
    beside.unlink()
    assert library_path() is None


def test_a_named_library_wins_and_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = tmp_path / "mine.so"
    monkeypatch.setenv("QEXPORT_KERNELS", str(named))
    with pytest.raises(EnvironmentProblem, match=r"QEXPORT_KERNELS names .*mine\.so, which is no file"):
        library_path()
    named.write_bytes(b"not a library")
    assert library_path() == named
    with pytest.raises(EnvironmentProblem, match="cannot be used as the kernel library here"):
        Kernels()


def test_a_library_of_another_version_is_refused(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qexport, "__version__", "9.9.9")
    with pytest.raises(EnvironmentProblem, match=r"is version .*, but qexport is 9\.9\.9"):
        Kernels()
