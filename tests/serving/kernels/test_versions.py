"""The kernels on other versions of ONNX Runtime and of the operators: the same numbers, or a clear refusal.

Interpreters are those of tests/graphs/test_conformance.py: QEXPORT_ORT_PYTHONS, else the cache folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernel_build
import numpy as np
import onnx
import pytest
from kernel_models import example, one_node, write_examples
from kernel_models import run as outputs
from required import missing

from qexport.graphs.operators import DOMAIN, OPERATORS, VERSION

RUNNER = Path(kernel_build.__file__).with_name("kernel_runner.py")
OLDEST = (1, 17)


def interpreters() -> list[str]:
    named = os.environ.get("QEXPORT_ORT_PYTHONS", "")
    if named:
        return [part for part in named.split(os.pathsep) if part]
    cache = Path(os.environ.get("QEXPORT_CACHE") or Path.home() / ".cache" / "qexport")
    return [str(path) for path in sorted(cache.glob("ort-venvs/ort-*/bin/python"))]


def run(python: str, library: Path, models: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [python, str(RUNNER), str(library), str(models), str(out), "scalar"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_other_versions_give_the_same_numbers(library: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_examples(models)
    assert run(sys.executable, library, models, tmp_path / "this").returncode == 0
    if not interpreters():
        missing("no other versions of ONNX Runtime: run tests/graphs/make_ort_venvs.py")
    for index, python in enumerate(interpreters()):
        probe = [python, "-c", "import onnxruntime; print(onnxruntime.__version__)"]
        version = subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip()
        done = run(python, library, models, tmp_path / str(index))
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            assert "qexport's kernels need ONNX Runtime 1.17 or newer" in done.stderr, version
            continue
        assert done.returncode == 0, done.stderr
        for path in (tmp_path / "this").rglob("*.npz"):
            with np.load(path) as here, np.load(tmp_path / str(index) / "scalar" / path.name) as there:
                for name in here.files:
                    assert np.array_equal(here[name], there[name]), (version, path.stem, name)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_of_an_earlier_version_is_left_to_its_function(operator: str, library: Path) -> None:
    """The function is exchanged for one that gives zeros, so that it shows which of the two ran."""
    inputs, attributes, stored = example(operator, np.random.default_rng(1))
    model = onnx.ModelProto.FromString(one_node(operator, inputs, attributes, stored))
    expected = outputs(model.SerializeToString(), inputs, None)
    for function in model.functions:
        results = [f"result_{name}" for name in function.output]
        for node in function.node:
            node.output[:] = [f"result_{name}" if name in function.output else name for name in node.output]
            node.input[:] = [f"result_{name}" if name in function.output else name for name in node.input]
        for name, result in zip(function.output, results, strict=True):
            function.node.append(onnx.helper.make_node("Sub", [result, result], [name]))
    ours = outputs(model.SerializeToString(), inputs, library)
    assert any(y.any() for y in ours.values())
    assert all(np.allclose(ours[name], y) for name, y in expected.items())
    (imported,) = (opset for opset in model.opset_import if opset.domain == DOMAIN)
    assert imported.version == VERSION
    imported.version = VERSION - 1
    theirs = outputs(model.SerializeToString(), inputs, library)
    assert not any(y.any() for y in theirs.values())


def test_an_instruction_set_of_the_environment_is_refused_where_it_is_unknown(library: Path) -> None:
    code = f"""
import onnxruntime as ort
options = ort.SessionOptions()
options.register_custom_ops_library({str(library)!r})
"""
    for name, sentence in (
        ("avx3", "QEXPORT_ISA names no instruction set; known: scalar, avx2"),
        ("neon" if kernel_build.host_arch() == "x86_64" else "amx", "this processor lacks; unset it"),
    ):
        environment = {**os.environ, "QEXPORT_ISA": name}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode and sentence in done.stderr
