"""Damaged model files, one after the other, in a process that the kernels may bring down.

    python kernel_fuzz.py LIBRARY FOLDER SEED FIRST COUNT

FOLDER holds NAME.onnx and NAME.npz (the feed). Case i is made of SEED and i alone. Two lines of JSON for each
case go to the standard output: one before it runs, one with what came of it. LIBRARY may be "none".
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

MEMORY = 6 << 30
"""Of the process's address space, so that a tensor that cannot be is refused and not made."""

INTEGERS = (0, 1, -1, 2, 3, 63, 64, 65, 65536, 65537, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1)
NUMBERS = (0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3e38)
TYPES = (TensorProto.INT8, TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.INT32,
         TensorProto.FLOAT16, TensorProto.UINT16, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.STRING,
         TensorProto.UNDEFINED, 99)  # fmt: skip


class Mutator:
    """Damages a model in place."""

    def __init__(self, rng: np.random.Generator, model: onnx.ModelProto) -> None:
        self.rng = rng
        self.model = model
        self.nodes = [node for node in model.graph.node if node.domain == "ai.qexport"]
        self.node = self.pick(self.nodes)

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def mutate(self) -> str:
        """Damage something; what it was."""
        kinds = [
            self.tensor,
            self.tensor,
            self.tensor,
            self.attribute,
            self.attribute,
            self.wiring,
            self.inputs,
        ]
        kind = self.pick(kinds)
        return f"{kind.__name__}: {kind()} of {self.node.op_type}"

    def tensor(self) -> str:
        stored = {item.name: item for item in self.model.graph.initializer}
        names = [name for name in self.node.input if name in stored]
        if not names:
            return self.attribute()
        tensor = stored[self.pick(names)]
        array = numpy_helper.to_array(tensor)
        how = self.pick(
            ["dims", "flip", "fill", "cut", "grow", "shape", "shape", "type", "retype", "resize", "strange"]
        )
        if how == "flip" and array.size:
            data = bytearray(array.tobytes())
            for _ in range(int(self.rng.integers(1, 9))):
                data[int(self.rng.integers(len(data)))] ^= 1 << int(self.rng.integers(8))
            self.replace(tensor, np.frombuffer(bytes(data), array.dtype).reshape(array.shape))
        elif how == "fill":
            value = self.pick([0, 255, 243, 128]) if array.dtype.kind in "ui" else self.pick(NUMBERS)
            self.replace(tensor, np.full(array.shape, value, array.dtype))
        elif how in ("cut", "grow"):
            data = array.tobytes()
            tensor.ClearField("float_data")
            tensor.raw_data = (
                data[: int(self.rng.integers(len(data) + 1))] if how == "cut" else data * 2 + b"x"
            )
        elif how == "dims":  # the data stays
            dims = list(array.shape)
            change = self.pick(["one", "negative", "huge", "more", "less"])
            if change == "more" or not dims:
                dims.append(self.pick([0, 1, 2]))
            elif change == "less":
                dims.pop()
            else:
                at = int(self.rng.integers(len(dims)))
                dims[at] = {
                    "one": dims[at] + self.pick([-1, 1]),
                    "negative": -2,
                    "huge": 2 ** self.pick([31, 40, 62]),
                }[change]
            tensor.ClearField("dims")
            tensor.dims.extend(dims)
        elif how in ("shape", "resize"):  # data and shape fit
            shape = list(array.shape)
            change = self.pick(["flat", "wrap", "deep", "add", "drop", "none", "swap"])
            if change == "flat":
                shape = [array.size]
            elif change == "wrap":
                shape = [1, *shape]
            elif change == "deep":
                shape = [1] * self.pick([6, 7, 8, 9]) + shape
            elif change == "swap":
                shape = shape[::-1]
            elif shape:
                at = int(self.rng.integers(len(shape)))
                shape[at] = {"add": shape[at] + 1, "drop": max(shape[at] - 1, 0), "none": 0}[change]
            else:
                shape = [self.pick([0, 2, 5])]
            self.replace(tensor, np.resize(array, shape) if array.size else np.zeros(shape, array.dtype))
        elif how == "type":  # the data stays
            tensor.data_type = self.pick(TYPES)
        elif how == "retype":
            other = self.pick(
                [np.int8, np.float32, np.int64, np.bool_, np.float16, np.int32, np.uint16, np.float64]
            )
            with np.errstate(all="ignore"):
                self.replace(tensor, array.astype(other))
        else:
            change = self.pick(["external", "no data", "segment", "name"])
            if change == "external":
                tensor.data_location = TensorProto.EXTERNAL
                entry = tensor.external_data.add()
                entry.key, entry.value = "location", self.pick(["", "/etc/hostname", "none", "../x"])
            elif change == "no data":
                tensor.ClearField("raw_data")
            elif change == "segment":
                tensor.segment.begin, tensor.segment.end = 5, -3
            else:
                tensor.name = self.pick(["", "other"])
            how = change
        return f"{how} {tensor.name}"

    @staticmethod
    def replace(tensor: onnx.TensorProto, array: np.ndarray) -> None:
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))

    def attribute(self) -> str:
        if not self.node.attribute:
            return self.wiring()
        attribute = self.pick(self.node.attribute)
        name = attribute.name
        how = self.pick(["value", "value", "value", "near", "remove", "type", "rename", "twice"])
        if how == "remove":
            self.node.attribute.remove(attribute)
        elif how == "rename":
            attribute.name = self.pick(["", name.upper() + "_", "k"])
        elif how == "twice":
            self.node.attribute.append(attribute)
        elif how == "type":
            value = self.pick([b"text", [1, 2], [1.0], numpy_helper.from_array(np.zeros(2)), 1.5, 7])
            attribute.CopyFrom(helper.make_attribute(name, value))
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = attribute.i + self.pick([-1, 1, 4, 64]) if how == "near" else self.pick(INTEGERS)
        else:
            attribute.f = self.pick(NUMBERS)
        return f"{how} {name}"

    def wiring(self) -> str:
        node, graph = self.node, self.model.graph
        how = self.pick(["fewer", "empty", "swap", "other", "more", "input", "outputs", "sibling", "domain"])
        at = int(self.rng.integers(len(node.input)))
        if how == "fewer":
            node.input.pop()
        elif how == "empty":
            node.input[at] = ""
        elif how == "swap":
            other = int(self.rng.integers(len(node.input)))
            node.input[at], node.input[other] = node.input[other], node.input[at]
        elif how == "other":
            node.input[at] = self.pick([*(item.name for item in graph.input), *node.input, "nothing"])
        elif how == "more":
            node.input.append(node.input[at])
        elif how == "input":  # an initializer that a feed may replace
            stored = [item for item in graph.initializer if item.name in node.input]
            if stored:
                tensor = self.pick(stored)
                graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
                if self.rng.random() < 0.5:
                    graph.initializer.remove(tensor)
        elif how == "outputs":
            if self.rng.random() < 0.5 and len(node.output) > 1:
                node.output.pop()
            else:
                node.output[int(self.rng.integers(len(node.output)))] = ""
        elif how == "sibling":
            names = [function.name for function in self.model.functions]
            node.op_type = self.pick(
                [*names, "Int4MatMul", "TernaryMatMul", "Int8Gather", "QuantizedAttentionQK"]
            )
        else:
            node.domain = self.pick(["", "ai.qexport2", "com.microsoft"])
        return how

    def inputs(self) -> str:
        value = self.pick(self.model.graph.input)
        kind = value.type.tensor_type
        how = self.pick(["type", "no shape", "fixed", "rank"])
        if how == "type":
            kind.elem_type = self.pick(TYPES[:9])
        elif how == "no shape":
            kind.ClearField("shape")
        elif how == "fixed":
            for dim in kind.shape.dim:
                dim.dim_value = self.pick([0, 1, -1, 3, 2**40])
        else:
            kind.shape.dim.add()
        return f"{how} of input {value.name}"


def damaged(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    """A damaged file and a few words about it."""
    how = rng.random()
    if how < 0.15:
        data = bytearray(content)
        for _ in range(int(rng.integers(1, 12))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        return bytes(data), "bits of the file"
    if how < 0.2:
        return content[: int(rng.integers(len(content)))], "end of the file"
    model = onnx.load_from_string(content)
    mutator = Mutator(rng, model)
    words = "nothing" if how < 0.3 else mutator.mutate()
    if how > 0.8:
        with contextlib.suppress(Exception):  # what is broken already may not be readable
            words += "; " + mutator.mutate()
    if rng.random() < 0.5:  # so that ONNX Runtime does not refuse a feed before the kernel sees it
        for value in model.graph.input:
            value.type.tensor_type.ClearField("shape")
    return model.SerializeToString(), words


DTYPES = {
    "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int32)": np.int32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16, "tensor(uint16)": np.uint16,
}  # fmt: skip


def feed_of(
    rng: np.random.Generator, session: ort.InferenceSession, stored: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], str]:
    """What the session takes, as a rule; now and then of another size, or with values that cannot be."""
    feed = {}
    for item in session.get_inputs():
        array = stored.get(item.name)
        if array is None:
            array = rng.integers(
                0, 9, [size if isinstance(size, int) and 0 < size < 99 else 3 for size in item.shape or []]
            )
        with np.errstate(all="ignore"):
            feed[item.name] = np.asarray(array).astype(DTYPES.get(item.type, np.float32))
    words = ""
    if rng.random() < 0.35 and feed:
        name = list(feed)[int(rng.integers(len(feed)))]
        array = feed[name]
        change = rng.choice(["empty", "longer", "rank", "values"])
        words = f", feed {name}: {change}"
        if change == "values":
            wild = np.array([0, -1, 1e9, np.nan, np.inf, -np.inf, 1e-40, 3e38])
            with np.errstate(all="ignore"):
                array = np.where(rng.random(array.shape) < 0.3, rng.choice(wild, array.shape), array).astype(
                    array.dtype
                )
        elif change == "rank":
            array = array[None] if rng.random() < 0.5 else array.reshape(-1)
        elif array.ndim:
            shape = list(array.shape)
            shape[int(rng.integers(array.ndim))] = 0 if change == "empty" else int(rng.integers(1, 40))
            array = np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)
        feed[name] = array
    return feed, words


def run_case(library: str, files: list[Path], seed: int, case: int) -> dict[str, Any]:
    """Load and run one damaged file."""
    rng = np.random.default_rng((seed, case))
    path = files[int(rng.integers(len(files)))]
    content, words = damaged(rng, path.read_bytes())
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(rng.integers(1, 3))
    options.enable_cpu_mem_arena = bool(rng.random() < 0.5) and "ASAN_OPTIONS" not in os.environ
    if rng.random() < 0.5:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library != "none":
        options.register_custom_ops_library(library)
    words = f"{path.stem}: {words}"
    stage = "load"
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        stage = "run"
        feed, more = feed_of(rng, session, arrays)
        words += more
        session.run(None, feed)
    except Exception as error:
        kind = type(error)
        return {
            "words": words,
            "stage": stage,
            "error": f"{kind.__module__}.{kind.__name__}",
            "text": str(error),
        }
    return {"words": words, "stage": "done", "error": "", "text": ""}


def main(library: str, folder: str, seed: int, first: int, count: int) -> None:
    """All cases of this process."""
    if "ASAN_OPTIONS" not in os.environ:  # AddressSanitizer takes terabytes of addresses
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = sorted(Path(folder).glob("*.onnx"))
    for case in range(first, first + count):
        print(json.dumps({"case": case}), flush=True)
        print(json.dumps({"case": case, **run_case(library, files, seed, case)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:]))
