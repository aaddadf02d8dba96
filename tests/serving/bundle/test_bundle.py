"""`qexport bundle`: what is in the folder, that it is whole, and that the C program and the web page run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from required import missing
from tiny_wordpiece import WORDS, write_wordpiece

from qexport.cli import main
from qexport.errors import (
    EnvironmentProblem,
    MissingToolError,
    OutputExistsError,
    UnknownNameError,
    UnsupportedModelError,
    UsageError,
)
from qexport.serving.bundle import contents
from qexport.serving.bundle.config import BundleConfig
from qexport.serving.bundle.contents import bundle
from qexport.serving.bundle.targets import TARGETS
from qexport.serving.kernels import library_path
from qexport.serving.session import load_onnx
from qexport.serving.targets import npm
from qexport.serving.targets.chromium import Chromium, find_chromium
from qexport.serving.targets.loopback import Loopback


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, ternary_folder: Path) -> Path:
    """A tiny ternary classifier with a WordPiece."""
    folder = tmp_path_factory.mktemp("model") / "onnx"
    shutil.copytree(ternary_folder, folder)
    write_wordpiece(folder)
    return folder


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Libraries come out at once, and are text; gives the targets that were asked for."""
    asked: list[str] = []

    def build(target: Any, folder: Path, **rest: Any) -> None:
        asked.append(target.name)
        folder.mkdir(parents=True)
        (folder / target.file).write_text("library", encoding="utf-8")

    monkeypatch.setattr(contents, "build_kernels", build)
    monkeypatch.setattr(contents, "host_target", lambda: None)
    return asked


@pytest.fixture
def web_files(tmp_path: Path) -> Path:
    """A folder that could be the dist folder of onnxruntime-web."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in contents.WEB_FILES:
        (dist / name).write_text(name, encoding="utf-8")
    (tmp_path / "package" / "package.json").write_text('{"version": "9.8.7"}', encoding="utf-8")
    return dist


def make(model: Path, target: str, output: Path, **more: Any) -> contents.BundleResult:
    return bundle(BundleConfig(model=model, target=target, output=output, **more))


def test_every_target_gets_model_tokenizer_sample_licence_and_sums(
    model: Path, tmp_path: Path, no_compiler: list[str], web_files: Path
) -> None:
    samples = {
        "c": "main.c",
        "web": "classifier.js",
        "android": "app/build.gradle.kts",
        "ios": "Package.swift",
    }
    for name, target in TARGETS.items():
        more = {"onnxruntime_web": web_files} if name == "web" else {}
        found = make(model, name, tmp_path / name, **more)
        folder = tmp_path / name
        listed = dict(
            reversed(line.split("  ", 1))
            for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        )
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert listed.keys() == files - {"SHA256SUMS"} and len(listed) == found.files
        for path, digest in listed.items():
            assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest
        model_files = ("model.onnx", "tokenizer.json", "vocab.txt", "unicode.txt", "preprocessing.json")
        needed = {"LICENSES/qexport.txt", "README.md", samples[target.sample]}
        needed |= {f"model/{name}" for name in model_files}
        assert needed <= files
        assert not [path for path in files if path.endswith(".j2")]
        page = (folder / "README.md").read_text(encoding="utf-8")
        assert len(page.splitlines()) < 60 and "{{" not in page
        assert (folder / "model" / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()
        assert found.tokenizer == "wordpiece"
        if target.kernels is None:
            assert found.library is None and target.no_kernels in page
        else:
            assert found.library in files and f"`{found.library}`" in page
    assert no_compiler == [target.kernels for target in TARGETS.values() if target.kernels]
    assert "onnxruntime-web 9.8.7" in (tmp_path / "web" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "web" / "LICENSES" / "onnxruntime-web.txt").is_file()
    for name in ("android", "ios", "windows-x64", "macos-arm64", "linux-arm64"):
        assert re.search(r"[Nn]ot run|not run", (tmp_path / name / "README.md").read_text(encoding="utf-8"))


def test_preprocessing_json_says_what_the_samples_need(
    model: Path, tmp_path: Path, no_compiler: list[str]
) -> None:
    make(model, "android", tmp_path / "app")
    about = json.loads((tmp_path / "app" / "model" / "preprocessing.json").read_text(encoding="utf-8"))
    session = load_onnx(model, kernels="off")
    assert about["labels"] == list(session.labels) and about["kind"] == "classification"
    assert about["inputs"] == list(session.inputs) and about["max_length"] == session.max_length
    words = about["tokenizer"]
    assert (words["type"], words["cls"], words["sep"], words["unk"]) == ("wordpiece", 2, 3, 1)
    assert words["strip_accents"] is True and words["special_tokens"]["[SEP]"] == 3
    vocabulary = (tmp_path / "app" / "model" / "vocab.txt").read_text(encoding="utf-8")
    assert vocabulary.splitlines() == WORDS


def runtime_library() -> Path:
    found = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if found is None:
        missing("this onnxruntime has no libonnxruntime.so of its own; install a newer one")
    return found


def compiled(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Build the C sample by its Makefile; gives a function that runs it."""
    for tool in ("make", "gcc"):
        if shutil.which(tool) is None:
            missing(f"there is no {tool}: apt-get install make gcc")
    flags = "CFLAGS=-O1 -g -Wall -Wextra -Werror"
    built = subprocess.run(["make", "CC=gcc", flags], cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return lambda *words: subprocess.run(
        [str(folder / "classify"), *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="runs the sample with the wheel's libonnxruntime.so")
def test_c_program_gives_the_label_and_probability_of_predict(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library_path() is None:
        missing("this installation has no kernel library")
    here = contents.host_target()
    target = next((name for name, known in TARGETS.items() if here and known.kernels == here.name), None)
    if target is None:
        missing("no target of qexport bundle fits this processor and system")
    found = make(model, target, tmp_path / "box")
    assert found.library == "lib/libqexport_kernels.so"
    run, runtime = compiled(tmp_path / "box"), str(runtime_library())
    session = load_onnx(model, kernels="off")
    for texts in (["A FÍNE, films"], ["a dull plot", "fine é"], ["x"], [""]):
        (wanted,) = session.predict(texts[:1], texts[1:] or None)
        for options in ((), ("--kernels", "none"), ("--threads", "2")):
            done = run("--runtime", runtime, *options, *texts)
            assert done.returncode == 0, done.stderr
            label, probability = done.stdout.split()
            assert label == wanted.label
            assert float(probability) == pytest.approx(wanted.probability, abs=2e-6)
    with_ids = run("--runtime", runtime, "--ids", "2,4,5,3")
    assert with_ids.stdout == run("--runtime", runtime, "a fine").stdout != ""
    for words, said in (
        (("--runtime", "gone.so", "a"), "cannot open ONNX Runtime, give its file with --runtime"),
        (("--runtime", runtime, "--kernels", "gone.so", "a"), "kernel library"),
        (("--runtime", runtime, "--model", "gone.onnx", "a"), "gone.onnx"),
        ((), "usage:"),
    ):
        done = run(*words)
        assert done.returncode == 1 and said in done.stderr


def test_web_page_gives_the_label_and_probability_of_predict(model: Path, tmp_path: Path) -> None:
    try:
        path = find_chromium()
        npm.install(lambda line: None)
    except (MissingToolError, EnvironmentProblem) as error:
        missing(str(error))
    result = make(model, "web", tmp_path / "page")
    assert "ort/ holds onnxruntime-web" in " ".join(result.notes)
    (wanted,) = load_onnx(model, kernels="off").predict(["A FÍNE, films"])
    server = Loopback({"": tmp_path / "page"})
    with contextlib.closing(server), contextlib.closing(Chromium(path)) as browser:
        browser.open(f"{server.url}index.html")
        browser.wait_for("document.querySelector('output')?.value.match(/^(ready|cannot)/)")
        browser.evaluate(
            "(document.forms[0].text.value = 'A FÍNE, films', document.forms[0].requestSubmit(), true)"
        )
        browser.wait_for("document.querySelector('output').value.match(/ 0|cannot/)")
        shown = str(browser.evaluate("document.querySelector('output').value"))
        (tmp_path / "page" / "other.html").write_text("<p>a page of one's own")
        browser.open(f"{server.url}other.html")
        browser.wait_for("document.querySelector('p')?.innerText")
        ask = "import('./classifier.js').then((m) => m.load()).then((c) => c.classify('A FÍNE, films'))"
        elsewhere = browser.evaluate(ask)
    label, probability = shown.split()
    assert label == wanted.label == elsewhere["label"]
    assert elsewhere["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    assert float(probability) == pytest.approx(wanted.probability, abs=1e-5)


def test_without_a_copy_of_onnxruntime_web_the_page_pins_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "empty"))
    result = make(model, "web", tmp_path / "page")
    assert "npm ci && npm run ort" in " ".join(result.notes)
    asked = json.loads((tmp_path / "page" / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((tmp_path / "page" / "package-lock.json").read_text(encoding="utf-8"))
    version = asked["dependencies"]["onnxruntime-web"]
    pinned = lock["packages"]["node_modules/onnxruntime-web"]
    assert pinned["version"] == version and pinned["integrity"].startswith("sha512-")
    targets = json.loads((npm.SCRIPTS / "package.json").read_text(encoding="utf-8"))
    assert targets["dependencies"]["onnxruntime-web"] == version
    with pytest.raises(UsageError, match="is for --target web; leave it out for android"):
        make(model, "android", tmp_path / "other", onnxruntime_web=tmp_path)
    with pytest.raises(UsageError, match="dist folder of onnxruntime-web"):
        make(model, "web", tmp_path / "other", onnxruntime_web=tmp_path)


def test_another_tokenizer_makes_a_sample_that_takes_token_ids(
    ternary_folder: Path, tmp_path: Path, no_compiler: list[str]
) -> None:
    result = make(ternary_folder, "linux-x64", tmp_path / "box")
    assert result.tokenizer == "token ids"
    assert result.notes == ["The sample takes token ids, because its tokenizer is WordLevel, not WordPiece."]
    assert not (tmp_path / "box" / "wordpiece.c").exists()
    (tmp_path / "box" / "lib" / "libqexport_kernels.so").unlink()
    run = compiled(tmp_path / "box")
    done = run("--runtime", str(runtime_library()), "--ids", "2,4,5,3")
    assert done.returncode == 0 and done.stdout, done.stderr
    assert "give token ids with --ids" in run("a text").stderr


def test_a_regression_prints_its_number(
    make_folder: Callable[..., Path], toy: SimpleNamespace, tmp_path: Path
) -> None:
    folder = make_folder(labels=("LABEL_0",))
    result = make(folder, "linux-x64", tmp_path / "box")
    assert "the model has no operator of ai.qexport" in " ".join(result.notes)
    (wanted,) = load_onnx(folder, kernels="off").predict(["a fine film"])
    done = compiled(tmp_path / "box")("--runtime", str(runtime_library()), "--ids", "2,4,5,6,3")
    name, value = done.stdout.split()
    assert name == "score" and float(value) == pytest.approx(wanted.scores["score"], abs=1e-5)


def test_refusals_name_the_way_out(model: Path, tmp_path: Path, no_compiler: list[str]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'linux-x64'"):
        BundleConfig(model=model, target="linux-x86", output=tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputExistsError, match="--force"):
        make(model, "ios", tmp_path / "full")
    make(model, "ios", tmp_path / "full", force=True)
    assert not (tmp_path / "full" / "file").exists()
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        make(other, "ios", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_that_answers_questions_is_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder()
    graph = onnx.load(folder / "model.onnx")
    graph.graph.node.append(helper.make_node("ReduceSum", ["kept", "last"], ["start_logits"], keepdims=0))
    graph.graph.node.append(helper.make_node("Neg", ["start_logits"], ["end_logits"]))
    del graph.graph.output[:]
    for name in ("start_logits", "end_logits"):
        graph.graph.output.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence"])
        )
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(UnsupportedModelError, match="show text classification and regression only"):
        make(folder, "ios", tmp_path / "new")


def test_a_failed_build_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_compiler: list[str]
) -> None:
    def fail(*words: Any, **more: Any) -> None:
        raise EnvironmentProblem("ziglang cannot build register.cpp")

    monkeypatch.setattr(contents, "build_kernels", fail)
    assert main(["-q", "bundle", str(model), "--target", "android", "--output", str(tmp_path / "app")]) == 4
    assert list(tmp_path.iterdir()) == []


def test_command_prints_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-q", "bundle", str(model), "-t", "ios", "-o", str(tmp_path / "app"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == "ios" and found["library"] is None and found["files"] > 10
