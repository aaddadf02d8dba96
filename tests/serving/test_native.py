"""Which engine a session gets: the fake library here only writes down what it was told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

import qexport
from qexport.cli import main
from qexport.errors import EnvironmentProblem, UnknownNameError, UnsupportedModelError, UsageError
from qexport.serving.native import (
    ISAS,
    Library,
    SessionEngine,
    find_library,
    has_operators,
    library_problem,
)
from qexport.serving.report import json_schema
from qexport.serving.session import Session, load_onnx
from qexport.serving.verify import VerifyConfig, verify

if TYPE_CHECKING:
    from conftest import FakeKernels

MakeFolder = Callable[..., Path]


def test_load_onnx_takes_the_library_and_says_so(marked: Path, fake: FakeKernels) -> None:
    model = qexport.load_onnx(marked, threads=2, batch_size=1)
    assert isinstance(model, Session) and (model.threads, model.batch_size) == (2, 1)
    assert model.engine == SessionEngine("native", "avx2", "0.1.0")
    assert fake.log == ["isa avx2", "register SessionOptions", "isa avx2", "isa avx2"]
    assert model.engine.describe() == "native: kernels 0.1.0, avx2"
    assert [item.label for item in model.predict(["a fine film", "the dull plot"])]


def test_a_session_alone_stays_on_stock(marked: Path, fake: FakeKernels) -> None:
    assert Session(marked).engine == SessionEngine("stock")
    assert load_onnx(marked, kernels="off").engine == SessionEngine("stock")
    assert fake.log == []


def test_an_instruction_set_holds_for_one_session_only(
    marked: Path, fake: FakeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_onnx(marked, isa="scalar").engine.isa == "scalar"
    assert load_onnx(marked).engine.isa == "avx2"
    monkeypatch.setenv("QEXPORT_ISA", "scalar")
    assert load_onnx(marked).engine.isa == "scalar"
    assert load_onnx(marked, isa="avx2").engine.isa == "avx2"  # what is asked for wins
    assert find_library().isa == "scalar" and find_library("avx2").isa == "avx2"
    assert fake.chosen == "scalar"  # for sessions that the program makes without us


def test_an_unknown_instruction_set_is_refused_and_nothing_stays_set(
    marked: Path, fake: FakeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match="unknown instruction set 'avx3'; did you mean 'avx2'"):
        load_onnx(marked, isa="avx3")
    monkeypatch.setenv("QEXPORT_ISA", "avx3")
    with pytest.raises(UnknownNameError, match="unknown instruction set in QEXPORT_ISA 'avx3'"):
        load_onnx(marked)
    assert load_onnx(marked, isa="scalar").engine.isa == "scalar"  # the lock was given up


def test_sessions_made_at_the_same_time_do_not_share_an_instruction_set(
    marked: Path, fake: FakeKernels
) -> None:
    wanted = ["scalar", "avx2"] * 8
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda isa: load_onnx(marked, isa=isa), wanted))
    assert [model.engine.isa for model in made] == wanted


@pytest.mark.usefixtures("no_library")
def test_without_a_library_everything_works_on_stock_and_says_why(marked: Path) -> None:
    assert str(library_problem()).startswith("no kernel library")
    model = load_onnx(marked)
    assert model.engine.name == "stock" and model.engine.isa is None
    assert model.engine.reason == "no kernel library in this install; reinstall qexport"
    assert model.engine.describe() == f"stock ONNX Runtime: {model.engine.reason}"
    assert model.predict(["a fine film"]) == Session(marked).predict(["a fine film"])


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("wanted", [{"kernels": "require"}, {"isa": "avx2"}])
def test_a_library_that_is_required_and_missing_ends_in_4(marked: Path, wanted: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentProblem, match="no kernel library") as caught:
        load_onnx(marked, **wanted)
    assert caught.value.exit_code == 4


@pytest.mark.usefixtures("fake")
def test_a_file_without_our_operators_runs_on_stock(make_folder: MakeFolder, marked: Path) -> None:
    plain = make_folder("plain")
    assert has_operators(marked / "model.onnx") and not has_operators(plain / "model.onnx")
    assert "no operator of ai.qexport" in load_onnx(plain).engine.reason
    with pytest.raises(UnsupportedModelError, match=r"plain/model\.onnx has no operator of .*--inline"):
        load_onnx(plain, kernels="require")


@pytest.mark.usefixtures("fake")
def test_what_cannot_be_is_refused(marked: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown kernels mode 'of'; did you mean 'off'"):
        load_onnx(marked, kernels="of")  # type: ignore[arg-type]  the wrong value is what is tested
    with pytest.raises(UsageError, match="'avx2' needs the kernels, which are off"):
        load_onnx(marked, kernels="off", isa="avx2")
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        load_onnx(marked, batch_size=0)
    (marked / "model.onnx").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        load_onnx(marked)


def answers(model: Session, texts: list[str], times: int) -> Iterator[bytes]:
    """Logits of single texts, again and again, as bytes."""
    for _ in range(times):
        for text in texts:
            yield model.logits(model.encode([text])).tobytes()


TEXTS = ["a fine film", "the dull plot was a film", "fine", "a dull film and a fine plot"]


def test_eight_threads_on_one_session_get_the_bits_of_one(make_folder: MakeFolder) -> None:
    check_concurrency(load_onnx(make_folder(), kernels="off"), TEXTS)


def check_concurrency(model: Session, texts: list[str], times: int = 25) -> None:
    """Eight threads at once, the first use of the tokenizer included, against one thread afterwards."""
    ready = threading.Barrier(8)

    def work(_: int) -> list[bytes]:
        ready.wait()
        return list(answers(model, texts, times))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    alone = list(answers(model, texts, times))
    assert all(one == alone for one in found)
    assert len(set(alone)) == len(texts)  # different texts have different logits


def test_predict_takes_the_same_choices(
    marked: Path, fake: FakeKernels, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(marked), "a fine film", "--json"]
    assert main(words) == 0
    default = capsys.readouterr().out
    assert main([*words, "--kernels", "off", "--batch-size", "1"]) == 0
    assert capsys.readouterr().out == default
    assert main(["-v", *words, "--kernels", "require", "--isa", "scalar"]) == 0
    assert "native: kernels 0.1.0, scalar" in capsys.readouterr().err
    assert main([*words, "--isa", "avx3"]) == 2
    assert "did you mean 'avx2'" in capsys.readouterr().err
    assert main([*words, "--kernels", "no"]) == 2
    assert "unknown kernels mode 'no'" in capsys.readouterr().err
    assert fake.log.count("register SessionOptions") == 2


@pytest.mark.usefixtures("no_library")
def test_predict_ends_in_4_where_the_kernels_are_required_and_missing(
    marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(marked), "a fine film", "--kernels", "require"]) == 4
    assert "no kernel library" in capsys.readouterr().err


REVIEWS = ["the film was great", "a plot is so awful", "dull", "the very very fine plot was a superb film"]


def runs_here(isa: str) -> bool:
    try:
        return find_library(isa).isa == isa
    except EnvironmentProblem:
        return False


def test_the_kernels_give_the_answers_of_stock_and_of_one_thread(
    kernel_library: Library, ternary_folder: Path
) -> None:
    stock, native = load_onnx(ternary_folder, kernels="off"), load_onnx(ternary_folder, kernels="require")
    assert native.engine == SessionEngine("native", kernel_library.isa, qexport.__version__)
    batch = native.encode(REVIEWS)
    logits = native.logits(batch)
    np.testing.assert_array_equal(logits, stock.logits(batch))
    two = load_onnx(ternary_folder, kernels="require", threads=2)
    np.testing.assert_array_equal(two.logits(batch), logits)


@pytest.mark.usefixtures("kernel_library")
def test_each_instruction_set_of_this_cpu_can_be_forced(ternary_folder: Path) -> None:
    here = [isa for isa in ISAS if runs_here(isa)]
    assert "scalar" in here and find_library().isa in here
    scalar = load_onnx(ternary_folder, isa="scalar")
    batch = scalar.encode(REVIEWS)
    for isa in here:
        model = load_onnx(ternary_folder, isa=isa)
        assert model.engine.isa == isa
        np.testing.assert_array_equal(model.logits(batch), scalar.logits(batch))
    elsewhere = [isa for isa in ISAS if isa not in here]
    assert elsewhere  # no CPU is both x86 and arm
    for isa in elsewhere:
        with pytest.raises(EnvironmentProblem, match=isa):
            load_onnx(ternary_folder, isa=isa)
    with pytest.raises(UnknownNameError, match="avx3"):
        load_onnx(ternary_folder, isa="avx3")


@pytest.mark.usefixtures("kernel_library")
@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_on_one_native_session_get_the_bits_of_one(ternary_folder: Path, threads: int) -> None:
    check_concurrency(load_onnx(ternary_folder, kernels="require", threads=threads), REVIEWS)


def test_verify_measures_native_beside_stock_for_real(
    ternary_folder: Path, toy: SimpleNamespace, kernel_library: Library
) -> None:
    config = VerifyConfig(model=ternary_folder, lengths=(8,), iterations=2, warmup=0, processes=1)
    report = verify(config, toy.make_rows(20))
    assert report.main_engine == "native" and report.engines[0].isa == kernel_library.isa
    beside = next(item for item in report.parity if (item.engine, item.against) == ("native", "stock"))
    assert beside.rows == 20 and beside.agreement == 1.0 and beside.max_abs == 0
    assert [process.engine for process in report.processes] == ["native", "stock"]
    assert all(process.load_ms > 0 for process in report.processes)
    assert {cell.engine for cell in report.latency} == {"native", "stock"}
    assert "Same answer as stock ONNX Runtime" in report.to_html()
    jsonschema.validate(report.to_dict(), json_schema())
