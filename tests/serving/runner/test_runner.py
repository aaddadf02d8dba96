"""The runner's streams and exit codes, and what our side makes of them; in C++ and in Python."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from required import missing

from qexport.errors import (
    EnvironmentProblem,
    MissingToolError,
    QexportError,
    TargetLost,
    UnsupportedModelError,
)
from qexport.serving.kernels import crossbuild
from qexport.serving.kernels.binary import read_binary
from qexport.serving.runner import build, python_runner
from qexport.serving.runner.channel import ProcessChannel
from qexport.serving.runner.client import RunnerClient
from qexport.serving.runner.runtime import find_library

IDS = np.array([[2, 5, 3], [2, 3, 0]])


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    """How to start each runner, without a file."""
    host = crossbuild.host_target()
    library = find_library(host.machine) if host else None
    if host is None or host.name not in build.RUNNERS or library is None:
        missing("the runner is written for Linux on x86-64 and arm64, with the wheel of onnxruntime")
    program = build.build_runner(host.name)
    return {
        "c": [str(program), "--runtime", str(library)],
        "python": [sys.executable, python_runner.__file__],
    }


@pytest.mark.parametrize("kind", ["c", "python"])
def test_outputs_times_and_facts_come_back(
    kind: str, commands: dict[str, list[str]], ternary_folder: Path
) -> None:
    model = ["--model", str(ternary_folder / "model.onnx"), "--threads", "2"]
    client = RunnerClient(ProcessChannel([*commands[kind], *model]), "here")
    outputs, times = client.timed({"input_ids": IDS}, repeats=3)
    assert outputs["logits"].shape == (2, 2) and outputs["logits"].dtype == np.float32
    assert times.shape == (3,) and (times > 0).all()
    assert client.facts["threads"] == 2 and client.facts["outputs"] == ["logits"]
    last = client.finish()
    assert last["peak_bytes"] > 1e6 and "cpu" in last
    with pytest.raises(TargetLost, match="closed"):
        client.run({"input_ids": IDS})


@pytest.mark.parametrize(
    ("kind", "words", "code", "said"),
    [
        ("c", ["--model"], 2, "--model needs a value"),
        ("c", ["--model", "m", "--speed", "9"], 2, "unknown option --speed"),
        ("c", ["--model", "m", "--optimize", "yes"], 2, "--optimize takes 0 or 1, got yes"),
        ("c", ["--runtime", "/nowhere.so", "--model", "m"], 20, "cannot open /nowhere.so"),
        ("c", ["--runtime", "{model}", "--model", "m"], 20, "is no shared library"),
        ("c", ["--runtime", "{arm64}", "--model", "m"], 21, "is for aarch64, this machine is x86_64"),
        ("c", ["--model", "/nowhere.onnx"], 25, "cannot open /nowhere.onnx"),
        ("c", ["--model", "{damaged}"], 25, "damaged.onnx cannot be loaded"),
        ("c", ["--model", "{model}", "--kernels", "{damaged}"], 23, "is no shared library"),
        ("c", ["--model", "{model}"], 26, "the input is no tensor stream"),
        ("c", ["--model", "{model}", "--output", "/dev/full"], 28, "no space left for the output"),
        ("python", ["--model", "{damaged}"], 25, "damaged.onnx cannot be loaded"),
        ("python", ["--model", "{model}"], 26, "the input ends in the middle"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_a_code(
    kind: str, words: list[str], code: int, said: str, commands: dict[str, list[str]],
    ternary_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "damaged.onnx").write_bytes((ternary_folder / "model.onnx").read_bytes()[:3000])
    (tmp_path / "arm64.so").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00" + bytes(100))
    files = {
        "{model}": str(ternary_folder / "model.onnx"),
        "{damaged}": str(tmp_path / "damaged.onnx"),
        "{arm64}": str(tmp_path / "arm64.so"),
    }
    command = [*commands[kind], *(files.get(word, word) for word in words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == code and len(lines) == 1 and said in lines[0], (done.returncode, lines)


@pytest.mark.parametrize("kind", ["c", "python"])
def test_results_that_nobody_reads_are_told(
    kind: str, commands: dict[str, list[str]], ternary_folder: Path
) -> None:
    command = [*commands[kind], "--model", str(ternary_folder / "model.onnx")]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.returncode == 29 and done.stderr.startswith(b"qexport-runner: "), done


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("echo welcome to this host", EnvironmentProblem, "its login shell must print nothing"),
        ("exit 127", EnvironmentProblem, "what it needs to start is missing there"),
        ("kill -9 $$", TargetLost, "ended by signal 9, it may have been out of memory"),
        ("exit 255", TargetLost, "the connection to box was lost"),
        ("echo 'qexport-runner: bad file' >&2; exit 25", UnsupportedModelError, "^box: bad file$"),
    ],
)
def test_a_runner_that_does_not_start_is_one_sentence(
    script: str, error: type[QexportError], said: str
) -> None:
    with pytest.raises(error, match=said):
        RunnerClient(ProcessChannel(["sh", "-c", script]), "box")


def test_a_program_that_cannot_be_started_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingToolError, match=r"there is no program .*absent"):
        ProcessChannel([str(tmp_path / "absent")])
    (tmp_path / "plain").write_text("no program")
    with pytest.raises(EnvironmentProblem, match=r"plain does not start \(.*ermission denied"):
        ProcessChannel([str(tmp_path / "plain")])


def test_a_stream_holds_every_type_and_shape() -> None:
    rng = np.random.default_rng(0)
    record = {
        name: np.asarray(rng.integers(0, 2, size=shape)).astype(name)
        for name, shape in zip(python_runner.TYPES.values(), [(), (0,), (2, 3), (1, 1, 1)] * 3, strict=True)
    }
    file = io.BytesIO()
    python_runner.write_record(file, record)
    python_runner.write_record(file, {})
    file.seek(0)
    found = python_runner.read_record(file)
    assert list(found) == list(record) and python_runner.read_record(file) == {}
    for name, value in record.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)
    cut = io.BytesIO(file.getvalue()[:-9])
    with pytest.raises(python_runner.StreamEnded):
        python_runner.read_record(cut)


@pytest.mark.slow
@pytest.mark.parametrize("name", build.RUNNERS)
def test_every_kind_of_machine_has_a_runner(name: str) -> None:
    """Its loader and libraries are those of the target, and nothing else is needed."""
    data = build.build_runner(name).read_bytes()
    target, found = build.RUNNERS[name], read_binary(data)
    assert found.machine == target.machine and set(found.needed) == set(target.stubs)
    assert target.loader.encode() in data
