from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from qexport.errors import UnsupportedModelError
from qexport.serving.facts import describe_model, file_bytes
from qexport.serving.machine import cpu_flags, environment, has_vnni

MakeFolder = Callable[..., Path]


def test_model_facts_come_from_the_file_and_its_manifest(make_folder: MakeFolder) -> None:
    folder = make_folder()
    found = describe_model(folder)
    data = (folder / "model.onnx").read_bytes()
    assert (found.method, found.bits, found.opset, found.functions) == ("ternarybert", "2-2-8", 18, 0)
    assert (found.file_bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(row["n_bytes"] for row in found.tensors) == len(data)


def test_a_bare_file_has_no_method(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "qexport.json").unlink()
    found = describe_model(folder / "model.onnx")
    assert (found.method, found.bits, found.file) == (None, None, "model.onnx")


def test_external_data_counts_and_must_be_there(make_folder: MakeFolder) -> None:
    folder = make_folder()
    path = folder / "model.onnx"
    whole = path.stat().st_size
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert path.stat().st_size < whole < file_bytes(path) + 2_000
    assert file_bytes(path) >= path.stat().st_size + 12 * 16 * 4
    (folder / "weights.bin").unlink()
    with pytest.raises(UnsupportedModelError, match=r"weights\.bin"):
        file_bytes(path)


def test_a_truncated_file_is_refused(make_folder: MakeFolder) -> None:
    path = make_folder() / "model.onnx"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UnsupportedModelError, match="not a complete ONNX file"):
        describe_model(path)


def test_environment_names_versions_and_neither_host_nor_user() -> None:
    found = environment()
    assert found.cores >= 1 and found.cpu and found.architecture
    assert {"onnxruntime", "onnx", "numpy", "qexport"} <= set(found.versions)
    text = json.dumps(found.__reduce__()[2:] or str(found))
    assert str(Path.home()) not in text


def test_vnni_follows_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    from qexport.serving import machine

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for flags, expected in (("avx avx2 fma", False), ("avx2 avx512_vnni", True), ("avx2 avx_vnni", True)):
        monkeypatch.setattr(
            machine, "_cpuinfo", lambda flags=flags: f"model name\t: test\nflags\t\t: {flags}\n"
        )
        assert has_vnni() is expected
        assert set(cpu_flags()) == set(flags.split())
    monkeypatch.setattr(machine, "_cpuinfo", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_vnni() and cpu_flags() == []
