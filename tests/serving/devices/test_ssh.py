"""ssh://: a real sshd on loopback, its connections cut, its disk full, its libraries wrong."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from loopback_ssh import Server, children, free_port
from small_batch import BATCH

from qexport.errors import (
    DiskFullError,
    EnvironmentProblem,
    Interrupted,
    MissingToolError,
    TargetLost,
    UsageError,
)
from qexport.serving.devices.address import parse_address
from qexport.serving.devices.lodging import Lodging
from qexport.serving.devices.ssh import SshConnection
from qexport.serving.runner import python_runner
from qexport.serving.runner.channel import ProcessChannel
from qexport.serving.targets import Job, get_target
from qexport.serving.verify import VerifyConfig, verify

if TYPE_CHECKING:
    from types import SimpleNamespace


def quiet(line: str) -> None:
    """Takes progress."""


def test_a_host_gives_the_logits_of_this_machine_and_its_own_times(
    sshd: Server, ternary_folder: Path, expected: dict[str, Any]
) -> None:
    target = get_target(sshd.address)
    stock, native = target.modes
    place = target.start(quiet)
    try:
        facts = place.facts()
        assert facts.versions == {}  # known when a file is open
        assert (
            facts.machine["system"].startswith("Linux")
            and facts.machine["architecture"] == os.uname().machine
        )
        file = ternary_folder / "model.onnx"
        for mode, name in ((stock, "stock"), (native, "native")):
            found = place.open(file, mode=mode, threads=1).run(BATCH)["logits"]
            np.testing.assert_array_equal(found, expected[name])
        assert place.facts().versions == {"onnxruntime": onnxruntime.__version__}
        jobs = {mode: Job(file, mode, 1) for mode in target.modes}
        times = place.time(jobs, BATCH, rounds=3, warmup=1)
        assert all(taken.shape == (3,) and (taken > 0).all() for taken in times.values())
        measures = {measure.name: measure for measure in place.measures()}
        assert measures[f"peak memory, {native}, 1 thread"].value > 1e6
        assert measures[f"load time, {stock}, 1 thread"].unit == "ms"
    finally:
        place.close()
    assert sshd.left_behind() == []


def test_a_host_can_run_in_its_own_python(
    sshd: Server, ternary_folder: Path, expected: dict[str, Any]
) -> None:
    target = get_target(f"{sshd.address}?runner=python")
    place = target.start(quiet)
    try:
        for mode, name in zip(target.modes, ("stock", "native"), strict=True):
            found = place.open(ternary_folder / "model.onnx", mode=mode, threads=1)
            assert found.facts["runner"].startswith("python")
            np.testing.assert_array_equal(found.run(BATCH)["logits"], expected[name])
        assert any(measure.name.startswith("peak memory") for measure in place.measures())
    finally:
        place.close()
    assert sshd.left_behind() == []


def test_a_connection_lost_while_it_runs_is_one_sentence_and_leaves_nothing(
    sshd: Server, ternary_folder: Path
) -> None:
    target = get_target(sshd.address)
    place = target.start(quiet)
    runner = place.open(ternary_folder / "model.onnx", mode=target.modes[0], threads=1)
    runner.run(BATCH)
    sshd.drop()
    with pytest.raises(TargetLost, match=r"^the connection to ssh://.* was lost while it ran.*run again$"):
        runner.run(BATCH)
    place.close()
    assert sshd.left_behind() == []


def test_a_connection_lost_while_a_file_is_copied_is_one_sentence(sshd: Server, tmp_path: Path) -> None:
    pipe = tmp_path / "model.onnx"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb") as file:
            file.write(bytes(1 << 20))
            file.flush()
            time.sleep(0.3)
            sshd.drop()
            time.sleep(0.3)
            for _ in range(8):
                try:
                    file.write(bytes(1 << 20))
                except BrokenPipeError:
                    return

    connection = SshConnection(parse_address(sshd.address))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(
            TargetLost, match=r"was lost while model.onnx was copied; connect it and run again$"
        ):
            connection.copy(pipe, str(tmp_path / "copy"))
    finally:
        connection.close()
        writer.join()


def test_a_full_disk_there_is_one_sentence_and_leaves_nothing(sshd: Server, small_disk: Path) -> None:
    target = get_target(f"ssh://127.0.0.1:{sshd.port}{small_disk}")
    with pytest.raises(
        DiskFullError, match=r"^no space left on ssh://.* while copying libonnxruntime.* in the address$"
    ):
        target.start(quiet)
    assert os.listdir(small_disk) == []


def test_a_library_of_another_processor_is_named(
    sshd: Server, ternary_folder: Path, arm64_library: Path
) -> None:
    target = get_target(f"{sshd.address}?ort={arm64_library}")
    place = target.start(quiet)
    with pytest.raises(
        EnvironmentProblem, match=r"is for aarch64, this machine is x86_64; give the library for its"
    ):
        place.open(ternary_folder / "model.onnx", mode=target.modes[0], threads=1)
    place.close()
    assert sshd.left_behind() == []


def test_a_missing_libonnxruntime_loses_this_target_and_no_other(
    sshd: Server, ternary_folder: Path, toy: SimpleNamespace
) -> None:
    name = f"{sshd.address}?device-ort=/nowhere/libonnxruntime.so"
    config = VerifyConfig(model=ternary_folder, targets=("stock", name), latency=False, processes=0)
    report = verify(config, toy.make_rows(8))
    by_name = {result.target: result for result in report.targets}
    assert by_name["stock"].status == "ran"
    assert by_name[name].status == "failed"
    assert "cannot open /nowhere/libonnxruntime.so" in str(by_name[name].reason)
    assert [accuracy.engine for accuracy in report.accuracy] == ["stock", "stock-unoptimized"]
    assert sshd.left_behind() == []


def test_a_host_that_does_not_answer_is_one_sentence(sshd: Server) -> None:
    target = get_target(f"ssh://127.0.0.1:{free_port()}")
    with pytest.raises(
        EnvironmentProblem, match=r"cannot be reached \(.*refused\); try: ssh -o BatchMode=yes"
    ):
        target.start(quiet)


def test_a_folder_that_cannot_be_made_is_one_sentence(sshd: Server) -> None:
    target = get_target(f"ssh://127.0.0.1:{sshd.port}/nowhere/at/all")
    with pytest.raises(EnvironmentProblem, match="no temporary folder can be made in /nowhere/at/all"):
        target.start(quiet)


def test_a_folder_of_any_name_is_used_and_removed(sshd: Server) -> None:
    folder = sshd.home / "a b\\t'\"$(touch made) ;"
    folder.mkdir()
    connection = SshConnection(parse_address(sshd.address))
    lodging = Lodging(connection, str(folder))
    assert Path(lodging.folder).parent == folder and Path(lodging.folder).is_dir()
    copied = lodging.copy(sshd.config, "copy")
    assert Path(copied).read_bytes() == sshd.config.read_bytes()
    lodging.close()
    connection.close()
    assert os.listdir(folder) == []
    folder.rmdir()
    assert sshd.left_behind() == []


def test_a_greeting_of_the_login_shell_breaks_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: SshConnection, command: str) -> ProcessChannel:
        return ProcessChannel(["sh", "-c", f"echo welcome to 7 hosts; {command}"])

    monkeypatch.setattr(SshConnection, "start", start)
    connection = SshConnection(parse_address("ssh://host"))
    (tmp_path / "here").write_bytes(b"12345")
    connection.copy(tmp_path / "here", str(tmp_path / "there"))
    connection.close()
    assert (tmp_path / "there").read_bytes() == b"12345"


def at_work(sshd: Server) -> list[str]:
    """Commands of processes, on either side, that have to do with this server; the server itself left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().replace("\0", " ")
            ours = str(sshd.home) in words or "qexport-ssh-" in words
            if ours or path.parent.name in map(str, children(sshd.process.pid)):
                found.append(words)
    return found


@pytest.mark.parametrize("moment", ["copies", "runs"])
def test_ctrl_c_keeps_what_was_finished_and_leaves_nothing(
    moment: str, sshd: Server, ternary_folder: Path, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []

    def press(write: Callable[..., Any], *given: Any) -> Any:
        writes.append(1)
        done = write(*given)
        if len(writes) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return done

    class Stdin:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def write(self, data: bytes) -> Any:
            return press(self.stream.write, data)

    plain_start, plain_write = SshConnection.start, python_runner.write_record

    def start(self: SshConnection, command: str) -> ProcessChannel:
        channel = plain_start(self, command)
        if command.startswith("cat > "):
            monkeypatch.setattr(channel, "stdin", Stdin(channel.stdin))
        return channel

    if moment == "copies":
        monkeypatch.setattr(SshConnection, "start", start)
    else:
        monkeypatch.setattr(python_runner, "write_record", functools.partial(press, plain_write))
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        config = VerifyConfig(model=ternary_folder, targets=("stock", sshd.address, "reference"), processes=0)
        report = verify(config, toy.make_rows(64))
    finally:
        signal.signal(signal.SIGINT, old)
    assert len(writes) >= 3 and report.status == "interrupted" and report.latency == []
    assert [(one.status, one.exit_code) for one in report.targets] == [
        ("ran", 0),
        ("failed", 130),
        ("failed", 130),
    ]
    assert [item.engine for item in report.accuracy] == ["stock", "stock-unoptimized"]
    with pytest.raises(Interrupted, match=r"^interrupted; the report holds what was finished before$"):
        report.raise_for_gates()
    assert sshd.left_behind() == []
    end = time.monotonic() + 10
    while at_work(sshd) and time.monotonic() < end:
        time.sleep(0.05)
    assert at_work(sshd) == []


def test_nothing_is_left_when_we_are_killed(sshd: Server) -> None:
    code = (
        "import sys, time\n"
        "from qexport.serving.devices.address import parse_address\n"
        "from qexport.serving.devices.lodging import Lodging\n"
        "from qexport.serving.devices.ssh import SshConnection\n"
        "lodging = Lodging(SshConnection(parse_address(sys.argv[1])))\n"
        "print(lodging.folder, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "TMPDIR": str(sshd.home)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, sshd.address], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout
    folder = process.stdout.readline().decode().strip()
    assert os.path.isdir(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 10
    while os.path.exists(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(folder)
    assert sshd.left_behind() == []  # neither the folder of the connection's socket, which is on our side


def test_without_ssh_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingToolError, match="apt-get install openssh-client"):
        get_target("ssh://host").check()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ssh://", "must be ssh://user@host"),
        ("ssh://user:secret@host", "with a key that needs no password"),
        ("ssh://host:port", "is no address"),
        ("ssh://host?speed=9", "unknown option 'speed'"),
        ("ssh://host?ort=/nowhere", "there is no file /nowhere"),
        ("ssh://-oProxyCommand=x", "must be ssh://user@host"),
        ("adb://1234?runner=java", "runner is c or python"),
    ],
)
def test_an_address_that_cannot_be_is_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        get_target(text)
