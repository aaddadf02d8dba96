"""Every operator body on every runtime at hand, against its numpy reference.

The ONNX Runtime of this interpreter and onnx.reference always run, onnxruntime-web where there is Node. Other
ONNX Runtime versions run in the interpreters of QEXPORT_ORT_PYTHONS (joined by the path separator;
`make_ort_venvs.py` makes them), or of the cache folder `ort-venvs`. What is demanded:

array_equal, graph optimisation off and on. Of onnx.reference on a sentence without tokens 1e-29, since its
QuantizeLinear overflows where the scale is the smallest one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
from onnx.reference import ReferenceEvaluator
from required import missing

from qexport.errors import EnvironmentProblem, UnsupportedModelError
from qexport.formats import ACTIVATION_MODES
from qexport.graphs.operators import OPERATORS, attention_name, gather_name, matmul_name
from qexport.graphs.operators.single import operator_model
from qexport.graphs.packing import pack
from qexport.serving.targets import npm
from qexport.serving.targets.node import NodeTarget
from qexport.serving.targets.wire import from_wire, to_wire

OLDEST = (1, 16)
"""The oldest ONNX Runtime that runs the bodies."""

RECENT = (1, 24)

RUNNER = Path(__file__).with_name("conformance_runner.py")


@dataclass
class Case:
    """One operator on one input."""

    name: str
    operator: str
    inputs: list[np.ndarray]
    attributes: dict[str, int | float]
    constants: tuple[str, ...] = ()
    opset: int = 18
    inline: bool = False
    expected: dict[str, np.ndarray] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        model = operator_model(
            OPERATORS, self.operator, self.inputs, self.attributes, opset=self.opset, constants=self.constants
        )
        return onnx.inliner.inline_local_functions(model) if self.inline else model

    def feed(self) -> dict[str, np.ndarray]:
        names = OPERATORS[self.operator].inputs
        pairs = zip(names, self.inputs, strict=True)
        return {name: array for name, array in pairs if name not in self.constants}


def random_codes(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> np.ndarray:
    if bits == 1:
        return (rng.integers(0, 2, shape) * 2 - 1).astype(np.int8)
    top = 1 if bits == 2 else 2 ** (bits - 1) - 1
    return rng.integers(-top, top + 1, shape).astype(np.int8)


def matmul_cases(rng: np.random.Generator) -> Iterator[Case]:
    stored = ("a_zero_point", "B", "b_scale", "bias")
    zero = np.array(128, np.uint8)
    for bits in range(1, 9):
        for n, k, label in ((9, 33, "row"), (1, 12, "one"), (7, 40, "matrix")):
            for scale in ("token", "tensor"):
                a = rng.integers(1, 256, (2, 7, k)).astype(np.uint8)
                a_scale = rng.random((2, 7, 1) if scale == "token" else (), np.float32)
                b_scale = rng.random(1 if label == "matrix" else n, np.float32)
                codes = pack(random_codes(rng, (n, k), bits), bits)
                inputs = [a, np.asarray(a_scale, np.float32), zero, codes, b_scale, rng.normal(size=n) * 9]
                inputs[5] = inputs[5].astype(np.float32)
                name = matmul_name(bits)
                yield Case(f"{name}-{label}-{scale}", name, inputs, {"K": k}, stored)
                if label == "row":
                    for opset in (17, 21):
                        yield Case(f"{name}-{scale}-{opset}", name, inputs, {"K": k}, stored, opset)
                    yield Case(f"{name}-{scale}-inlined", name, inputs, {"K": k}, stored, inline=True)
                    yield Case(f"{name}-{scale}-inputs", name, inputs, {"K": k})
        top = 1 if bits <= 2 else 2 ** (bits - 1) - 1
        a = np.where(rng.random((1, 3, 1536)) < 0.5, 255, 1).astype(np.uint8)
        a[0, 0] = 255
        codes = np.full((2, 1536), top, np.int8)
        codes[1] = random_codes(rng, (1, 1536), 1) * top
        inputs = [a, np.ones((1, 3, 1), np.float32), zero, pack(codes, bits), np.ones(1, np.float32)]
        inputs.append(np.zeros(2, np.float32))
        yield Case(f"{matmul_name(bits)}-extreme", matmul_name(bits), inputs, {"K": 1536}, stored)


def gather_cases(rng: np.random.Generator) -> Iterator[Case]:
    for bits in range(1, 9):
        name = gather_name(bits)
        packed = pack(random_codes(rng, (13, 33), bits), bits)
        indices = rng.integers(0, 13, (2, 5))
        for label, scale in (("row", rng.random(13, np.float32)), ("matrix", rng.random(1, np.float32))):
            inputs = [indices, packed, scale]
            yield Case(f"{name}-{label}", name, inputs, {"K": 33}, ("table", "scale"))
        for opset in (17, 21):
            yield Case(f"{name}-{opset}", name, inputs, {"K": 33}, ("table", "scale"), opset)
        yield Case(f"{name}-inlined", name, inputs, {"K": 33}, ("table", "scale"), inline=True)


def quantizer_cases(rng: np.random.Generator) -> Iterator[Case]:
    x = rng.normal(size=(2, 7, 33)).astype(np.float32) * 3
    x[1, 3] = 0
    x[0, 1] *= 1e6
    for name in ("QuantizePerToken", "QuantizePerTensor"):
        for clip in (0.0, 2.5):
            for opset in (17, 18, 21):
                yield Case(f"{name}-{clip}-{opset}", name, [x], {"clip": clip}, opset=opset)
            yield Case(f"{name}-{clip}-inlined", name, [x], {"clip": clip}, inline=True)


def attention_cases(rng: np.random.Generator) -> Iterator[Case]:
    mask = np.ones((3, 1, 1, 9), bool)
    mask[1, ..., 4:] = False
    mask[2] = False
    for activation in ACTIVATION_MODES:
        for pv in (True, False):
            inputs = [rng.normal(size=(3, 9, 32)).astype(np.float32) for _ in range(3)] + [mask]
            attributes: dict[str, int | float] = {"num_heads": 2, "scaling": 0.25}
            if activation == "static":
                inputs += [np.array(s, np.float32) for s in (0.02, 0.02, 1 / 127, 0.02)[: 4 if pv else 2]]
            else:
                attributes["clip"] = 2.0
            name = attention_name(activation, quantize_pv=pv)
            for opset in (17, 18, 21):
                yield Case(f"{name}-{opset}", name, inputs, attributes, opset=opset)
            yield Case(f"{name}-inlined", name, inputs, attributes, inline=True)
    name = attention_name("static", bounded=True)
    for top, p_top in ((1, 1), (7, 15), (31, 31)):
        scales = [np.array(s, np.float32) for s in (2 / top, 2 / top, 0.5 / p_top, 2 / top)]
        limits: dict[str, int | float] = {"num_heads": 2, "scaling": 0.25, "top": top, "p_top": p_top}
        for opset in (17, 18, 21):
            yield Case(f"{name}-{top}-{opset}", name, [*inputs[:4], *scales], limits, opset=opset)
        yield Case(f"{name}-{top}-inlined", name, [*inputs[:4], *scales], limits, inline=True)


def fused_cases(rng: np.random.Generator) -> Iterator[Case]:
    x = rng.normal(size=(2, 7, 33)).astype(np.float32) * 3
    x[1, 3] = 0
    gamma, beta = (rng.normal(size=33).astype(np.float32) for _ in range(2))
    for rows, label in ((2, "same"), (1, "positions")):
        residual = rng.normal(size=(rows, 7, 33)).astype(np.float32)
        norm = [x, residual, gamma, beta]
        for name, inputs in (("Gelu", [x]), ("AddLayerNorm", norm)):
            if name == "Gelu" and label == "positions":
                continue
            epsilon: dict[str, int | float] = {} if name == "Gelu" else {"epsilon": 1e-12}
            forms: list[tuple[str, list[np.ndarray], dict[str, int | float]]] = [
                (f"{name}QuantizeLinear", [*inputs, np.array(0.02, np.float32)], epsilon)
            ]
            if name == "Gelu":
                forms.append(("Gelu", inputs, {}))
            elif label == "same":
                forms.append(("LayerNorm", [x, gamma, beta], epsilon))
            forms += [(f"{name}QuantizePerToken", inputs, {**epsilon, "clip": clip}) for clip in (0.0, 2.5)]
            for operator, values, attributes in forms:
                stored = tuple(key for key in ("gamma", "beta", "scale") if key in OPERATORS[operator].inputs)
                case = f"{operator}-{label}-{attributes.get('clip', '')}"
                for opset in (17, 18, 21):
                    yield Case(f"{case}-{opset}", operator, values, attributes, stored, opset)
                yield Case(f"{case}-inlined", operator, values, attributes, stored, inline=True)


def all_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    makers = (matmul_cases, gather_cases, quantizer_cases, attention_cases, fused_cases)
    cases = [case for maker in makers for case in maker(rng)]
    for case in cases:
        operator = OPERATORS[case.operator]
        results = operator.reference(*case.inputs, **case.attributes)
        case.expected = dict(zip(operator.outputs, results, strict=True))
    return cases


def problems(case: Case, level: str, outputs: dict[str, np.ndarray]) -> list[str]:
    """Sentences about every output that breaks its bound."""
    found = []
    for name, expected in case.expected.items():
        if name not in outputs:
            found.append(f"{case.name} {level}: no output {name}")
            continue
        y = outputs[name]
        if y.shape != expected.shape or y.dtype != expected.dtype:
            found.append(
                f"{case.name} {level} {name}: {y.dtype} {y.shape}, not {expected.dtype} {expected.shape}"
            )
            continue
        difference = np.abs(y.astype(np.float64) - expected.astype(np.float64))
        if not (difference <= (1e-29 if level == "reference" else 0)).all():
            found.append(f"{case.name} {level} {name}: differs by up to {difference.max():.3g}")
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    folder = tmp_path_factory.mktemp("cases")
    listed = all_cases()
    for case in listed:
        onnx.save(case.model(), folder / f"{case.name}.onnx")
        np.savez(folder / f"{case.name}.npz", **case.feed())
    return folder, listed


def interpreters() -> list[Path]:
    """This one, and those of other ONNX Runtime versions."""
    named = os.environ.get("QEXPORT_ORT_PYTHONS", "")
    if named:
        others = [Path(part) for part in named.split(os.pathsep) if part]
    else:
        cache = Path(os.environ.get("QEXPORT_CACHE") or Path.home() / ".cache" / "qexport")
        others = sorted(cache.glob("ort-venvs/ort-*/bin/python"))
    return [Path(sys.executable), *others]


def label(python: Path) -> str:
    return "this" if python == Path(sys.executable) else python.parents[1].name


@pytest.mark.parametrize("python", interpreters(), ids=label)
def test_onnxruntime(python: Path, cases: tuple[Path, list[Case]], tmp_path: Path) -> None:
    folder, listed = cases
    command = [str(python), str(RUNNER), str(folder), str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    version = tuple(int(part) for part in summary["onnxruntime"].split(".")[:2])
    found = []
    for case in listed:
        if case.opset > 19 and version < (1, 18):
            continue
        with np.load(tmp_path / f"{case.name}.npz") as stored:
            for level in ("off", "on"):
                message = summary["errors"].get(f"{case.name}/{level}")
                if message:
                    found.append(f"{case.name} {level}: {message}")
                    continue
                outputs = {name: stored[f"{level}/{name}"] for name in case.expected}
                found += problems(case, level, outputs)
    assert not found, f"onnxruntime {summary['onnxruntime']}:\n" + "\n".join(found)


def test_onnxruntime_web(cases: tuple[Path, list[Case]]) -> None:
    """The wasm module that a browser runs, in Node: two cases of each operator."""
    try:
        npm.install(lambda line: None)
        node = NodeTarget().start(lambda line: None)
    except EnvironmentProblem as error:
        missing(str(error))
    folder, listed = cases
    few = [case for name in OPERATORS for case in [one for one in listed if one.operator == name][:2]]
    found = []
    with contextlib.closing(node):
        for case in few:
            feeds = {name: to_wire(array) for name, array in case.feed().items()}
            for level, engine in (("off", "wasm-1-disabled"), ("on", "wasm-1")):
                place = {"engine": engine, "key": case.name}
                try:
                    node.call({"op": "open", "url": str(folder / f"{case.name}.onnx"), **place})
                    answer = node.call({"op": "run", "feeds": feeds, **place})
                    node.call({"op": "release", **place})
                except UnsupportedModelError as error:
                    found.append(f"{case.name} {level}: {error}")
                    continue
                outputs = {name: from_wire(tensor) for name, tensor in answer.items()}
                found += problems(case, level, outputs)
    assert not found, "\n".join(found)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_reference_evaluator(cases: tuple[Path, list[Case]]) -> None:
    folder, listed = cases
    found = []
    for case in listed:
        evaluator = ReferenceEvaluator(str(folder / f"{case.name}.onnx"))
        outputs = dict(zip(evaluator.output_names, evaluator.run(None, case.feed()), strict=True))
        found += problems(case, "reference", outputs)
    assert not found, "\n".join(found)


def test_all_operators_have_cases(cases: tuple[Path, list[Case]]) -> None:
    assert {case.operator for case in cases[1]} == set(OPERATORS)


def test_the_versions_that_must_be_there() -> None:
    """The oldest version and a recent one, where everything is demanded."""
    found = set()
    for python in interpreters():
        probe = [str(python), "-c", "import onnxruntime; print(onnxruntime.__version__)"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.add(tuple(int(part) for part in done.stdout.split(".")[:2]))
    absent = {OLDEST, RECENT} - found
    if absent:
        missing(
            f"no interpreter with onnxruntime {sorted(absent)}: run tests/graphs/make_ort_venvs.py and set "
            "QEXPORT_ORT_PYTHONS to what it prints"
        )


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_bodies_leave_no_library_a_choice(name: str) -> None:
    """Reciprocal is an approximation on Arm, Sqrt in old versions; WebGPU refuses a file with any float64."""
    body = OPERATORS[name].function().node
    makers = {output: node for node in body for output in node.output}
    approximate = {"Reciprocal", "Pow", "Softmax", "Gelu", "LayerNormalization", "ReduceMean", "Tanh"}
    assert not approximate & {node.op_type for node in body}
    for node in body:
        if node.op_type == "Sqrt":
            assert makers[node.input[0]].op_type == "Round"
            assert [x.op_type for x in body if node.output[0] in x.input] == ["Round"]
    doubles = [
        node for node in body if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.DOUBLE
    ]
    assert bool(doubles) == name.endswith("QK")
