"""`serving.bench`: engines by name, processes, turns, profile, report; tiny models, few rounds."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from qexport.errors import (
    EnvironmentProblem,
    Interrupted,
    MissingPackageError,
    UnknownNameError,
    UnsupportedModelError,
    UsageError,
)
from qexport.serving import schema
from qexport.serving.bench import files, measure
from qexport.serving.bench.config import BenchConfig, MatmulShape
from qexport.serving.bench.engines import choose_engines
from qexport.serving.bench.files import EngineFile, check_packages, engine_files
from qexport.serving.bench.matmul import FLOAT_BITS, matmul_bytes, matmul_feeds, matmul_file
from qexport.serving.bench.processes import EngineProcess, empty_model, pinned
from qexport.serving.bench.profile import node_macs, read_profile
from qexport.serving.bench.report import BenchReport, bench_schema
from qexport.serving.bench.roofline import Roofline
from qexport.serving.bench.terminal import milliseconds, print_report
from qexport.serving.bench.worker import TensorSpec, WorkerSpec

MakeFolder = Callable[..., Path]

CHECKOUT = Path(__file__).resolve().parents[2]


def names(*arguments: Any) -> list[str]:
    return [spec.name for spec in choose_engines(*arguments)]


def test_engines_are_ours_first_then_the_others_each_once() -> None:
    assert names(["native", "stock"], ["fp32", "int8", "stock"]) == ["native", "stock", "fp32", "int8"]


def test_an_instruction_set_holds_the_kernels_and_openvino_too() -> None:
    found = choose_engines(["native"], ["openvino"], ["avx2", "scalar"])
    assert [spec.name for spec in found] == [
        "native", "native-avx2", "native-scalar", "openvino", "openvino-avx2"
    ]  # fmt: skip
    assert found[1].isa == "avx2" and found[1].kernels and found[1].ours
    assert found[-1].environment == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert names(["native"], ["fp32"], ["avx2"]) == ["native", "native-avx2", "fp32"]


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ((["nativ"], []), "native"),
        ((["native"], ["openvinno"]), "openvino"),
        ((["native"], [], ["avx512vnni"]), "avx512-vnni"),
    ],
)
def test_an_unknown_engine_names_the_nearest(arguments: Any, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{near}'"):
        choose_engines(*arguments)


def test_the_first_engine_runs_the_file_under_test() -> None:
    for engines in ([], ["fp32"]):
        with pytest.raises(UsageError, match="--engines must begin with"):
            choose_engines(engines, ["int8"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lengths": ()}, "--lengths"),
        ({"batch_sizes": (0,)}, "--batch-sizes"),
        ({"threads": (1, 1)}, "twice"),
        ({"rounds": 0}, "--rounds"),
        ({"repeats": 0}, "--repeats"),
        ({"warmup": -1}, "--warmup"),
        ({"matmul_bits": 9}, "--matmul-bits"),
        ({"matmul": ("128x768",)}, "--matmul takes shapes"),
        ({"matmul": ("0x1x1",)}, "--matmul takes shapes"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        BenchConfig(model=Path("x"), **changes)


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'openvino and nncf; run: pip install "qexport\[bench\]"'):
        check_packages(choose_engines(["stock"], ["openvino"]))
    with pytest.raises(MissingPackageError, match="package openvino;"):
        check_packages(choose_engines(["stock"], ["openvino-fp32"]))
    check_packages(choose_engines(["stock"], ["fp32", "int8"]))


def test_engines_made_of_fp32_need_it(make_folder: MakeFolder, tmp_path: Path) -> None:
    model = make_folder() / "model.onnx"
    with pytest.raises(UsageError, match="--fp32"):
        engine_files(model, None, ["model", "int8"], cache=tmp_path, how_fp32="")
    found = engine_files(model, None, ["model"], cache=tmp_path, how_fp32="")
    assert list(found) == ["model"] and found["model"].path == model


def test_int8_is_made_once_for_a_file_and_again_for_another(make_folder: MakeFolder, tmp_path: Path) -> None:
    cache, said = tmp_path / "cache", []
    first, second = (make_folder(f"fp32-{seed}", seed=seed) / "model.onnx" for seed in (1, 2))
    made = [
        engine_files(first, fp32, ["int8"], cache=cache, how_fp32="", say=said.append)["int8"]
        for fp32 in (first, first, second)
    ]
    assert made[0] == made[1] and made[0].path != made[2].path
    assert len(said) == 2
    assert "quantize_dynamic" in made[0].how and made[0].n_bytes > 0


def specification(path: Path, empty: Path, **changes: Any) -> WorkerSpec:
    return WorkerSpec(**{"path": str(path), "empty": str(empty), **changes})


IDS = {
    "input_ids": TensorSpec(shape=[1, 8], low=0, high=11),
    "attention_mask": TensorSpec(shape=[1, 8], low=1, high=1),
    "token_type_ids": TensorSpec(shape=[1, 8]),
}


def test_a_process_takes_turns_and_tells_its_memory(make_folder: MakeFolder) -> None:
    with (
        empty_model() as empty,
        EngineProcess("stock", specification(make_folder() / "model.onnx", empty), {}) as process,
    ):
        process.feed(IDS)
        assert process.turn() > 0 and process.turn(3) > 0
        assert process.opened.load_ms > 0 and process.opened.call_ms > 0
        state = process.state()
        assert state.settings == {}
        if sys.platform == "linux":
            assert state.peak_bytes is not None and state.resident_bytes is not None
            assert state.peak_bytes >= state.resident_bytes >= (process.opened.empty_bytes or 0) > 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes")
def test_a_process_stays_on_its_processors(make_folder: MakeFolder) -> None:
    cpus = pinned(1)
    assert cpus is not None and len(cpus) == 1
    assert pinned(10_000) is None
    with (
        empty_model() as empty,
        EngineProcess("stock", specification(make_folder() / "model.onnx", empty, cpus=cpus), {}) as process,
    ):
        assert os.sched_getaffinity(process.pid) == set(cpus)
    assert os.sched_getaffinity(0) >= set(cpus)


def test_a_file_that_does_not_load_is_an_error_of_its_class_that_names_the_engine(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with empty_model() as empty, pytest.raises(UnsupportedModelError, match=r"engine stock: .* cannot load"):
        EngineProcess("stock", specification(broken, empty), {})


def test_a_process_that_dies_is_an_error_with_its_last_words(make_folder: MakeFolder) -> None:
    with (
        empty_model() as empty,
        EngineProcess("stock", specification(make_folder() / "model.onnx", empty), {}) as process,
    ):
        os.kill(process.pid, 9)
        with pytest.raises(EnvironmentProblem, match="engine stock ended: exit code"):
            process.turn()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_environment_of_an_engine_is_its_own(make_folder: MakeFolder) -> None:
    held = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    with (
        empty_model() as empty,
        EngineProcess("stock", specification(make_folder() / "model.onnx", empty), held) as process,
    ):
        variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    assert b"ONEDNN_MAX_CPU_ISA=AVX2" in variables
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_the_worker_imports_neither_torch_nor_transformers_nor_onnx(make_folder: MakeFolder) -> None:
    with empty_model() as empty:
        spec = json.dumps(asdict(specification(make_folder() / "model.onnx", empty)))
        code = (
            f"import sys; from qexport.serving.bench import worker; worker.main([{spec!r}]);"
            "heavy = {'torch', 'transformers', 'onnx', 'matplotlib', 'jinja2'};"
            "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input='{"do": "open"}\n', capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["load_ms"] > 0


def test_the_same_seed_gives_the_same_inputs_in_every_process() -> None:
    from qexport.serving.bench.worker import _tensor

    spec = TensorSpec(shape=[2, 5], low=3, high=9, seed=7)
    first, second = _tensor(spec), _tensor(spec)
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.int64 and first.min() >= 3 and first.max() <= 9
    assert (_tensor(TensorSpec(shape=[3], low=1, high=1)) == 1).all()
    assert _tensor(TensorSpec(shape=[3], dtype="float32", low=-1, high=1)).dtype == np.float32


@pytest.fixture
def stock_files(make_folder: MakeFolder) -> dict[Any, EngineFile]:
    return {
        "model": EngineFile(make_folder() / "model.onnx", "the file under test"),
        "fp32": EngineFile(make_folder("fp32", noise=0.1) / "model.onnx", "given"),
    }


def config(model: Path, output: Path, **changes: Any) -> BenchConfig:
    values: dict[str, Any] = {
        "engines": ("stock",), "against": ("fp32",), "lengths": (8, 16), "batch_sizes": (1, 2),
        "threads": (1,), "rounds": 3, "warmup": 1, "repeats": 2, **changes,
    }  # fmt: skip
    return BenchConfig(model=model, output=output, **values)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "out"


@pytest.fixture(scope="module")
def report(toy: SimpleNamespace, output: Path) -> BenchReport:
    """One benchmark with everything in it, shared by the tests that only look."""
    model = toy.write_folder(output.parent / "model", toy.classifier())
    fp32 = toy.write_folder(output.parent / "fp32", toy.classifier(noise=0.1))
    found: dict[Any, EngineFile] = {
        "model": EngineFile(model / "model.onnx", "the file under test"),
        "fp32": EngineFile(fp32 / "model.onnx", "given"),
    }
    chosen = config(model, output, profile=True, matmul=("2x32x16",))
    return measure.bench(chosen, found, command="qexport bench x", notes=["a note"])


def test_every_engine_has_a_cell_for_every_length_and_batch(report: BenchReport) -> None:
    found = [(cell.engine, cell.length, cell.batch_size, cell.threads) for cell in report.cells]
    assert found == [
        (engine, length, batch, 1) for batch in (1, 2) for length in (8, 16) for engine in ("stock", "fp32")
    ]
    for cell in report.cells:
        assert 0 < cell.min_ms <= cell.p10_ms <= cell.p25_ms <= cell.p50_ms <= cell.p75_ms <= cell.p90_ms
        assert len(cell.times_ms) == cell.rounds == 3 and cell.repeats == 2
        assert [one.against for one in cell.ratios] == (["fp32"] if cell.engine == "stock" else [])


def test_ratios_are_formed_within_a_round(report: BenchReport) -> None:
    ours = report.cell("stock", length=8, batch_size=1, threads=1)
    theirs = report.cell("fp32", length=8, batch_size=1, threads=1)
    assert ours is not None and theirs is not None
    each = np.array(theirs.times_ms) / np.array(ours.times_ms)
    assert math.isclose(ours.ratios[0].median, float(np.median(each)), rel_tol=1e-2)


def test_bench_json_is_valid_against_the_shipped_schema(report: BenchReport, output: Path) -> None:
    written = json.loads((output / "bench.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_dict()))
    jsonschema.Draft202012Validator.check_schema(bench_schema())
    jsonschema.validate(written, bench_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**written, "schema_version": "9.0"}, bench_schema())


def test_the_shipped_schema_and_its_page_are_those_of_the_code() -> None:
    assert bench_schema() == schema.build_schema(BenchReport)
    page = CHECKOUT / "docs" / "bench-schema.md"
    assert page.read_text(encoding="utf-8").endswith(schema.markdown(BenchReport).rstrip() + "\n"), (
        "run: python -m qexport.serving.schema --bench --markdown"
    )


def test_the_page_shows_plots_tables_and_the_command(report: BenchReport, output: Path) -> None:
    page = (output / "bench.html").read_text(encoding="utf-8")
    for text in ("<svg", "qexport bench x", "a note", "Where the time goes", "Single products", "stock ONNX"):
        assert text in page
    assert "http://" not in page and "<script" not in page
    assert page.count("<figure>") == 4  # times and ratios, two batch sizes


def test_the_page_of_the_docs_takes_its_tables_from_bench_json(
    report: BenchReport, output: Path, tmp_path: Path
) -> None:
    script, docs = CHECKOUT / "benchmarks" / "performance_page.py", CHECKOUT / "docs" / "performance.md"
    page = tmp_path / "performance.md"
    page.write_bytes(docs.read_bytes())
    for _ in range(2):  # the second time it replaces what the first one wrote
        command = [sys.executable, script, f"Tiny=model={output / 'bench.json'}", "--page", page]
        subprocess.run(command, check=True)
    text = page.read_text(encoding="utf-8")
    assert text.count("### Tiny=model") == 1 and text.count("Batch 2, 1 thread") == 1
    cell = report.cell("fp32", length=16, batch_size=2, threads=1)
    assert cell is not None and "| ORT FP32 | " in text and f"{milliseconds(cell.p50_ms)} [" in text
    assert "Not measured yet" not in text and str(output.parent) not in text


def test_the_terminal_shows_every_engine_and_its_ratio(
    report: BenchReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_report(report)
    text = capsys.readouterr().out
    for part in (
        "Median ms ± half the quartile distance, batch 2",
        "ORT FP32 / stock ONNX Runtime",
        "session MiB",
        "note: a note",
    ):
        assert part in text


def test_the_profile_adds_up_and_counts_the_products(report: BenchReport) -> None:
    assert [(one.engine, one.length) for one in report.profiles] == [
        (engine, length) for engine in ("stock", "fp32") for length in (8, 16)
    ]
    for profile in report.profiles:
        assert profile.runs == 10
        assert sum(row.share for row in profile.operators) == pytest.approx(1.0, abs=0.35)
        product = next(row for row in profile.operators if row.operator in ("MatMul", "FusedMatMul"))
        assert product.macs == 16 * 2  # the head, hidden 16, two labels


def test_products_are_timed_on_our_operator_and_in_float(report: BenchReport) -> None:
    ours, float32 = report.matmuls
    assert (ours.engine, ours.bits, ours.macs) == ("stock", 2, 2 * 32 * 16)
    assert (float32.engine, float32.bits) == ("fp32", FLOAT_BITS)
    assert ours.p50_ms > 0 and ours.call_ms > 0 and [one.against for one in ours.ratios] == ["fp32"]


def test_lengths_and_threads_that_do_not_fit_are_left_out_with_a_note(
    stock_files: dict[Any, EngineFile], tmp_path: Path
) -> None:
    chosen = config(
        stock_files["model"].path, tmp_path / "out", lengths=(8, 65), batch_sizes=(1,), threads=(1, 4096),
        rounds=1, warmup=0, repeats=1, pin=False,
    )  # fmt: skip
    found = measure.bench(chosen, stock_files)
    assert {cell.length for cell in found.cells} == {8} and {cell.threads for cell in found.cells} == {1}
    assert any("above 64 tokens" in note for note in found.notes)
    assert any("4096 threads were left out" in note for note in found.notes)
    assert all(opening.cpus is None for opening in found.openings)


@pytest.mark.parametrize(
    ("stop", "raised"), [(KeyboardInterrupt(), Interrupted), (EnvironmentProblem("gone"), EnvironmentProblem)]
)
def test_what_was_measured_is_kept_when_it_is_stopped(
    stop: BaseException,
    raised: type[BaseException],
    stock_files: dict[Any, EngineFile],
    tmp_path: Path,
) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if what.startswith("16 tokens"):
            raise stop

    chosen = config(stock_files["model"].path, tmp_path / "out")
    with pytest.raises(raised):
        measure.bench(chosen, stock_files, progress=progress)
    written = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    jsonschema.validate(written, bench_schema())
    assert written["complete"] is False
    assert [cell["length"] for cell in written["cells"]] == [8, 8]


def test_nothing_is_written_when_nothing_was_measured(
    stock_files: dict[Any, EngineFile], tmp_path: Path
) -> None:
    def progress(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure.bench(config(stock_files["model"].path, tmp_path / "out"), stock_files, progress=progress)
    assert not (tmp_path / "out").exists()


def test_progress_ends_at_the_total(stock_files: dict[Any, EngineFile], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    chosen = config(stock_files["model"].path, tmp_path / "out", lengths=(8,), warmup=2)
    measure.bench(chosen, stock_files, progress=lambda done, total, what: steps.append((done, total)))
    assert steps[-1] == (10, 10)  # two cells of 2 + 3 rounds
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_a_foreign_file_is_refused_before_any_work(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        measure.check_model(config(tmp_path / "absent", tmp_path))
    foreign = make_folder("foreign", inputs=("input_ids", "attention_mask", "speaker"))
    with pytest.raises(UnsupportedModelError, match="not an encoder"):
        measure.check_model(config(foreign, tmp_path))


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "macs"),
    [
        ("TernaryMatMul", [("uint8", (1, 16, 384)), ("uint8", (1536, 77))], [("float", (1, 16, 1536))],
         16 * 384 * 1536),
        ("MatMulIntegerToFloat", [("uint8", (2, 8, 64))], [("float", (2, 8, 32))], 2 * 8 * 64 * 32),
        ("Gemm", [("float", (1, 10))], [("float", (1, 2))], 20),
        ("QuantizedAttention", [("float", (1, 8, 384))] * 3, [("float", (1, 8, 384))], 2 * 8 * 8 * 384),
        ("QuantizedAttentionStaticQK", [("float", (1, 8, 384))], [("float", (1, 8, 384))], 2 * 8 * 8 * 384),
        ("Softmax", [("float", (1, 2, 3))], [("float", (1, 2, 3))], 0),
        ("MatMul", [], [], 0),
    ],
)  # fmt: skip
def test_multiply_accumulates_of_a_node(operator: str, inputs: Any, outputs: Any, macs: int) -> None:
    assert node_macs(operator, inputs, outputs) == macs


def profile_events() -> list[dict[str, Any]]:
    """Three runs of 100 microseconds with a product of 60 (40 in the last) and an addition of 20."""
    events: list[dict[str, Any]] = []
    for run in range(3):
        start = 1000 * run
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 100})
        for name, operator, at, taken in (
            ("a_kernel_time", "TernaryMatMul", 10, 40 if run == 2 else 60), ("b_kernel_time", "Add", 75, 20)
        ):  # fmt: skip
            shapes = {
                "op_name": operator,
                "input_type_shape": [{"uint8": [10, 100]}, {"uint8": [50, 20]}],
                "output_type_shape": [{"float": [10, 50]}],
            }
            events.append({"cat": "Node", "name": name, "ts": start + at, "dur": taken, "args": shapes})
    return events


def test_a_profile_is_the_median_over_the_runs_that_count(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_events()))
    roofline = Roofline("avx2", macs_per_s=2e9, copy_bytes_per_s=1e9)
    found = read_profile(path, engine="native", length=10, batch_size=1, threads=1, skip=1, roofline=roofline)
    assert found.runs == 2 and found.run_ms == pytest.approx(0.1)
    product, addition = found.operators
    assert product.operator == "TernaryMatMul" and product.ms == pytest.approx(0.05)
    assert product.macs == 10 * 100 * 50 and product.n_bytes == 1000 + 1000 + 2000
    assert product.peak_share == pytest.approx(50_000 / 50e-6 / 2e9)
    assert product.copy_share == pytest.approx(4000 / 50e-6 / 1e9)
    assert product.roofline_share == pytest.approx(max(product.peak_share, product.copy_share))
    assert addition.macs == 0 and addition.ms == pytest.approx(0.02)
    assert found.nodes_ms == pytest.approx(0.07)


def test_without_the_library_a_profile_has_no_shares(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_events()))
    found = read_profile(path, engine="stock", length=10, batch_size=1, threads=1, skip=0, roofline=None)
    assert {row.peak_share for row in found.operators} == {None}


def test_the_roofline_is_arithmetic_or_memory_whichever_is_slower() -> None:
    roofline = Roofline("avx2", macs_per_s=1e9, copy_bytes_per_s=1e8)
    assert roofline.bound_ms(1e6, 0) == pytest.approx(1.0)
    assert roofline.bound_ms(1e6, 1e6) == pytest.approx(10.0)
    assert roofline.bound_ms(1e6, 0, threads=2) == pytest.approx(0.5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, FLOAT_BITS])
def test_the_model_of_a_product_runs_with_the_feeds_made_for_it(bits: int, tmp_path: Path) -> None:
    shape = MatmulShape.parse("3x40x24")
    path = matmul_file(tmp_path, shape, bits, seed=0)
    with empty_model() as empty, EngineProcess("stock", specification(path, empty), {}) as process:
        process.feed(matmul_feeds(shape, seed=0))
        assert process.turn() > 0
    weight = {1: 24 * 5, 2: 24 * 8, 4: 24 * 20, 8: 24 * 40, FLOAT_BITS: 4 * 40 * 24}[bits]
    rows = 3 * 40 * (4 if bits == FLOAT_BITS else 1)
    assert matmul_bytes(shape, bits) == rows + weight + 4 * 3 * 24
