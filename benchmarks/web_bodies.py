"""Which body of a linear layer is fastest on onnxruntime-web: integer, float, or packed to 2, 4 or 8 bits.

    qexport target prepare web
    python benchmarks/web_bodies.py --engine web
    python benchmarks/web_bodies.py --engine node --rounds 9 --tokens 32,128

Every body has the same ternary weight [K, N] and gives the same numbers on whole-number inputs. Milliseconds,
median of rounds in turns by performance.now, one thread of wasm SIMD.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qexport.serving.machine import environment
from qexport.serving.targets.node import NodeTarget
from qexport.serving.targets.web import WebTarget
from qexport.serving.targets.wire import to_wire

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))
BLOCK = 128
ENGINE = "wasm-1"


def save(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], k: int, n: int) -> None:
    """One graph: x float32 [m, K] -> y float32 [m, N]."""
    graph = helper.make_graph(
        list(nodes), "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def packed(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Codes [N, K] as MatMulNBits stores them, uint8 [N, K / BLOCK, BLOCK * bits / 8]."""
    n, k = codes.shape
    per = 8 // bits
    parts = codes.reshape(n, k // BLOCK, BLOCK // per, per).astype(np.uint8)
    return np.bitwise_or.reduce([parts[..., i] << np.uint8(bits * i) for i in range(per)])


def write_bodies(folder: Path, k: int, n: int) -> dict[str, Path]:
    """One file per body."""
    weight = np.random.default_rng(0).integers(-1, 2, (k, n)).astype(np.int8)
    scale = np.float32(0.02)
    after = [
        helper.make_node("Cast", ["acc"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    before = helper.make_node("Cast", ["x"], ["codes"], to=TensorProto.UINT8)
    bodies: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
        "MatMulInteger": (
            [before, helper.make_node("MatMulInteger", ["codes", "w", "zero"], ["acc"]), *after],
            {"w": weight, "zero": np.uint8(128), "s": scale},
        ),
        "MatMul float32": (
            [helper.make_node("MatMul", ["x", "w"], ["f"]), after[1]],
            {"w": weight.astype(np.float32), "s": scale},
        ),
        "DequantizeLinear + MatMul": (
            [
                helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
                helper.make_node("MatMul", ["x", "f"], ["y"]),
            ],
            {"w": weight, "s": scale},
        ),
    }
    for bits in (2, 4, 8):
        for level in (0, 4):
            node = helper.make_node(
                "MatMulNBits", ["x", "w", "scales"], ["y"], domain="com.microsoft", K=k, N=n, bits=bits,
                block_size=BLOCK, accuracy_level=level,
            )  # fmt: skip
            codes = weight.T.astype(np.int16) + (1 << (bits - 1))
            scales = np.full(n * k // BLOCK, scale, np.float32)
            bodies[f"MatMulNBits {bits} bits, accuracy {level}"] = (
                [node],
                {"w": packed(codes, bits), "scales": scales},
            )
    found = {}
    for index, (name, (nodes, weights)) in enumerate(bodies.items()):
        found[name] = folder / f"{k}x{n}-{index}.onnx"
        save(found[name], nodes, weights, k, n)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("web", "node"), default="web")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", default="128", help="rows of x, comma-separated")
    asked = parser.parse_args()
    target: Any = {"web": WebTarget, "node": NodeTarget}[asked.engine]()
    target.check()
    table: dict[str, list[str]] = {}
    titles = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.closing(target.start(print)) as place,
    ):
        for tokens in map(int, asked.tokens.split(",")):
            for k, n in SHAPES:
                titles.append(f"{tokens} x {k} x {n}")
                files = write_bodies(Path(scratch), k, n)
                x = np.random.default_rng(1).integers(0, 256, (tokens, k)).astype(np.float32)
                jobs = []
                for name, path in files.items():
                    key = f"{tokens}-{path.stem}"
                    command = {"op": "open", "engine": ENGINE, "key": key, "url": place.address(path)}
                    place.call(command)
                    jobs.append({"name": name, "engine": ENGINE, "key": key})
                times = place.turns(jobs, {"x": to_wire(x)}, rounds=asked.rounds, warmup=2)
                for job in jobs:
                    table.setdefault(job["name"], []).append(f"{statistics.median(times[job['name']]):.2f}")
                    place.call({"op": "release", "engine": ENGINE, "key": job["key"]})
        versions = ", ".join(f"{name} {version}" for name, version in place.facts().versions.items())
    where = environment()
    print(f"{versions}; {where.cpu}, load {where.load_average}")
    print("| body | " + " | ".join(titles) + " |\n| --- |" + " ---: |" * len(titles))
    for name, cells in table.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
