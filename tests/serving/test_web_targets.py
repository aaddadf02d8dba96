"""onnxruntime-web and onnxruntime-node, for real: one Node and one Chromium serve every test of this file."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from required import missing
from small_batch import BATCH

from qexport.errors import EnvironmentProblem, MissingToolError, TargetLost, UnsupportedModelError
from qexport.serving.session import Session
from qexport.serving.targets import Job, get_target, npm, wire
from qexport.serving.targets.loopback import Loopback
from qexport.serving.targets.node import NodePlace, NodeTarget
from qexport.serving.targets.web import WebPlace, WebTarget
from qexport.serving.verify import VerifyConfig, verify

MakeFolder = Callable[..., Path]

LOGIT_TOLERANCE = 1e-5
"""A tiny encoder: LayerNorm, GELU and softmax of wasm round otherwise than those of x86, some 1e-7 each."""


@pytest.fixture(scope="session")
def modules() -> Path:
    """node_modules of the lock file, installed once into the cache."""
    try:
        return npm.install(lambda line: None)
    except EnvironmentProblem as error:
        missing(str(error))


@pytest.fixture(scope="session")
def node(modules: Path) -> Iterator[NodePlace]:
    """A running Node."""
    with contextlib.closing(NodeTarget().start(lambda line: None)) as place:
        yield place


@pytest.fixture(scope="session")
def web(modules: Path) -> Iterator[WebPlace]:
    """A running Chromium."""
    try:
        WebTarget().check()
    except MissingToolError as error:
        missing(str(error))
    with contextlib.closing(WebTarget().start(lambda line: None)) as place:
        yield place


def shared(monkeypatch: pytest.MonkeyPatch, **places: Any) -> None:
    """Let verify start the running places instead of new ones, and leave them open."""
    for name, place in places.items():
        kind = type(get_target(name))
        monkeypatch.setattr(kind, "start", lambda self, say, place=place: place)
        monkeypatch.setattr(type(place), "close", lambda self: None)


def test_one_report_has_node_and_the_browser_beside_this_process(
    monkeypatch: pytest.MonkeyPatch, node: NodePlace, web: WebPlace, ternary_folder: Path,
    make_folder: MakeFolder, toy: SimpleNamespace,
) -> None:  # fmt: skip
    shared(monkeypatch, node=node, web=web)
    config = VerifyConfig(
        model=ternary_folder, baseline=make_folder("fp32"), int8=False, targets=("stock", "node", "web"),
        lengths=(8,), iterations=2, warmup=1, processes=0,
    )  # fmt: skip
    report = verify(config, toy.make_rows(16))
    assert report.status == "measured"
    matrix = {column.engine: column for column in report.matrix}
    engines = ["node", "node-wasm", "node-wasm-threads", "web", "web-threads"]
    assert [name for name in matrix if not name.startswith("stock")] == engines
    for name in engines:
        column = matrix[name]
        assert (column.rows, column.same) == (16, 16), name
        assert column.max_abs is not None and column.max_abs < LOGIT_TOLERANCE, name
        assert column.latency_ms is not None and column.clock == column.target
    assert [matrix[name].threads for name in ("node-wasm", "web")] == [1, 1]
    assert (matrix["web-threads"].threads or 0) >= 2
    timed = {cell.engine: cell.clock for cell in report.latency}
    assert timed["fp32-web"] == "web" and timed["fp32-node"] == "node" and timed["fp32"] == "host"
    result = {target.target: target for target in report.targets}
    assert result["web"].machine["cross-origin isolated"] == "yes"
    assert result["web"].versions["onnxruntime-web"] == result["node"].versions["onnxruntime-web"] == "1.30.0"
    if result["web"].machine["WebGPU"] == "no adapter":
        assert "web-webgpu was left out: the browser offers no WebGPU adapter here" in str(
            result["web"].reason
        )


def test_every_output_comes_back_by_name_and_type(node: NodePlace, make_folder: MakeFolder) -> None:
    file = make_folder() / "model.onnx"
    found = node.open(file, mode="node", threads=1).run(BATCH)
    assert list(found) == ["logits"] and found["logits"].dtype == np.float32
    np.testing.assert_allclose(found["logits"], Session(file).logits(BATCH), atol=1e-6)
    for array in (
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.array([[True], [False]]),
        np.float32([[1.5]]),
    ):
        again = wire.from_wire(json.loads(json.dumps(wire.to_wire(array))))
        assert again.dtype == array.dtype and np.array_equal(again, array)


def test_a_damaged_file_is_refused_and_the_place_goes_on(
    node: NodePlace, web: WebPlace, make_folder: MakeFolder
) -> None:
    good, bad = make_folder() / "model.onnx", make_folder("bad") / "model.onnx"
    bad.write_bytes(bad.read_bytes()[:200])
    batch = {"input_ids": np.array([[2, 5, 3]])}
    for place, mode in ((node, "node"), (node, "node-wasm"), (web, "web")):
        with pytest.raises(UnsupportedModelError, match=f"{mode} cannot load"):
            place.open(bad, mode=mode, threads=1)
        assert place.open(good, mode=mode, threads=1).run(batch)["logits"].shape == (1, 2)


def test_every_round_is_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch, node: NodePlace) -> None:
    """One command has a time limit, which many rounds of a large model would pass."""
    commands: list[Any] = []

    def call(command: Any) -> Any:
        commands.append(command)
        return {job["name"]: float(len(commands)) for job in command["jobs"]}

    monkeypatch.setattr(node, "call", call)
    times = node.turns([{"name": "a"}, {"name": "b"}], {}, rounds=3, warmup=2)
    assert [command["first"] for command in commands] == [0, 0, 0, 1, 2]
    assert {name: list(taken) for name, taken in times.items()} == {"a": [3, 4, 5], "b": [3, 4, 5]}


def test_turns_rotate_so_that_no_engine_is_always_first(node: NodePlace, make_folder: MakeFolder) -> None:
    file = make_folder() / "model.onnx"
    batch = {"input_ids": np.array([[2, 5, 3]])}
    times = node.time({name: Job(file, "node", 1) for name in "ab"}, batch, rounds=4, warmup=1)
    assert {name: taken.shape for name, taken in times.items()} == {"a": (4,), "b": (4,)}
    assert all((taken > 0).all() for taken in times.values())


def test_every_package_is_pinned_and_no_host_is_named() -> None:
    lock = json.loads((npm.SCRIPTS / "package-lock.json").read_text(encoding="utf-8"))
    asked = json.loads((npm.SCRIPTS / "package.json").read_text(encoding="utf-8"))["dependencies"]
    packages = {name: facts for name, facts in lock["packages"].items() if name}
    assert set(asked) == {"onnxruntime-node", "onnxruntime-web"}
    for name, version in asked.items():
        assert packages[f"node_modules/{name}"]["version"] == version
    for name, facts in packages.items():
        assert facts["integrity"].startswith("sha512-") and "resolved" not in facts, name


def test_what_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QEXPORT_NODE", str(tmp_path / "node"))
    with pytest.raises(MissingToolError, match=r"Node 18 or newer .*; run: apt-get install nodejs npm"):
        get_target("node").check()
    monkeypatch.setenv("QEXPORT_CHROMIUM", str(tmp_path / "chromium"))
    with pytest.raises(MissingToolError, match=r"Chromium is needed .*; run: apt-get install chromium"):
        get_target("web").check()
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho v12.1.0\n")
    old.chmod(0o755)
    for name in ("QEXPORT_NODE", "QEXPORT_CHROMIUM"):
        monkeypatch.setenv(name, str(old))
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "empty"))
    with pytest.raises(EnvironmentProblem, match=r"is Node v12\.1\.0; 18 or newer is needed"):
        get_target("node").check()
    with pytest.raises(MissingToolError, match="not in the cache; run: qexport target prepare web"):
        get_target("web").check()
    monkeypatch.setattr(npm, "find_node", lambda: "node")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="run: apt-get install npm"):
        get_target("web").prepare(lambda line: None)
    npm_that_fails = tmp_path / "npm"
    npm_that_fails.write_text("#!/bin/sh\necho 'npm error code EINTEGRITY' >&2\nexit 1\n")
    npm_that_fails.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match=r"npm ci failed \(npm error code EINTEGRITY\)"):
        get_target("web").prepare(lambda line: None)
    assert not list((tmp_path / "empty").rglob("node_modules"))


def test_a_browser_that_ends_at_once_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries: libnss3.so' >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match=r"does not start \(error while loading.*libnss3"):
        WebPlace(str(broken), tmp_path)


def test_the_server_gives_isolated_pages_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("hello" * 100)
    (tmp_path / "secret.txt").write_text("no")
    model = tmp_path / "my model #1?ä.onnx"
    model.write_bytes(b"onnx")
    with contextlib.closing(Loopback({"": tmp_path / "page"}, compress=True)) as server:
        with urllib.request.urlopen(server.url) as reply:
            assert gzip.decompress(reply.read()) == b"hello" * 100
            assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with urllib.request.urlopen(server.url + server.add(model)) as reply:
            assert reply.read() == b"onnx" and reply.headers["Content-Encoding"] is None
        assert server.add(model) == server.add(model)
        root = server.url[: server.url.index("/", 8)]
        for path in (
            f"{server.url}../secret.txt",
            f"{server.url}nothing",
            f"{root}/",
            f"{root}/wrong/index.html",
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(path)


def test_node_that_is_killed_loses_itself_only(
    monkeypatch: pytest.MonkeyPatch, modules: Path, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    place = NodePlace(npm.find_node(), modules)
    real = place.call

    def call(command: Any) -> Any:
        if command["op"] == "run":
            os.kill(place._process.pid, signal.SIGKILL)
        return real(command)

    monkeypatch.setattr(place, "call", call)
    monkeypatch.setattr(NodeTarget, "start", lambda self, say: place)
    config = VerifyConfig(model=make_folder(), targets=("stock", "node"), latency=False, processes=0)
    report = verify(config, toy.make_rows(16))
    assert [target.status for target in report.targets] == ["ran", "failed"]
    assert report.targets[1].reason == "Node was ended by signal 9 while it was used"


def test_chromium_that_is_killed_is_noticed_at_once_and_loses_itself_only(
    monkeypatch: pytest.MonkeyPatch, web: WebPlace, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    """The last test of this file: it ends the browser that the others share."""
    shared(monkeypatch, web=web)
    real, runs = web.call, []

    def call(command: Any) -> Any:
        runs.append(command["op"])
        if runs.count("run") == 2:
            os.killpg(web.browser._process.pid, signal.SIGKILL)
        return real(command)

    monkeypatch.setattr(web, "call", call)
    config = VerifyConfig(model=make_folder(), targets=("web", "stock"), latency=False, processes=0)
    report = verify(config, toy.make_rows(16))
    assert report.main_engine == "stock" and report.status == "incomplete"
    assert report.targets[0].reason == "Chromium was ended by signal 9 while it was used"
    assert "web" not in {item.engine for item in report.accuracy}
    with pytest.raises(EnvironmentProblem, match="target web: Chromium was ended by signal 9"):
        report.raise_for_gates()
    with pytest.raises(TargetLost):
        web.browser.page("Page.enable")
