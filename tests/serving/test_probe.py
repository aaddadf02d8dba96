from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qexport.errors import EnvironmentProblem
from qexport.serving import probe as module
from qexport.serving.probe import probe

MakeFolder = Callable[..., Path]


def heavy(path: Path, megabytes: int) -> Path:
    """A file whose one weight takes that many megabytes."""
    rows = megabytes * 250_000 // 1000
    weight = numpy_helper.from_array(np.ones((rows, 1000), np.float32), "weight")
    nodes = [
        helper.make_node("Gather", ["weight", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded"], ["logits"], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "heavy", [ids], [logits], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_peak_memory_is_that_of_the_child_and_grows_with_the_file(tmp_path: Path) -> None:
    ballast = np.ones(300_000_000, np.uint8)  # the parent is heavy: its size must not show in the child
    small, large = probe(heavy(tmp_path / "s.onnx", 1)), probe(heavy(tmp_path / "l.onnx", 80))
    assert small.peak_bytes is not None and large.peak_bytes is not None
    assert small.peak_bytes < 250_000_000 < ballast.nbytes
    assert 70_000_000 < large.peak_bytes - small.peak_bytes < 400_000_000
    assert large.model_bytes is not None and large.model_bytes > 70_000_000
    assert small.runtime_bytes is not None and small.runtime_bytes < small.peak_bytes
    assert small.load_ms > 0 and small.load_cpu_ms > 0 and small.first_run_ms > 0


def test_the_child_imports_neither_torch_nor_qexport(make_folder: MakeFolder) -> None:
    file = make_folder() / "model.onnx"
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['probe', {str(file)!r}, '--length', '8']\n"
        "try:\n"
        f"    runpy.run_path({module.__file__!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    print([name for name in ('torch', 'transformers', 'qexport') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    measured, imported = done.stdout.strip().splitlines()
    assert json.loads(measured)["length"] == 8
    assert imported == "[]"


def test_the_module_can_be_run_by_name(make_folder: MakeFolder) -> None:
    command = [
        sys.executable,
        "-m",
        "qexport.serving.probe",
        str(make_folder() / "model.onnx"),
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["load_ms"] > 0


def test_a_file_that_does_not_load_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(EnvironmentProblem, match="failed") as caught:
        probe(broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(EnvironmentProblem, match="does not exist"):
        probe(tmp_path / "absent.onnx")
