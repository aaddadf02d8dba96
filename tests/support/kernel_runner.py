"""Run every model of a folder on the kernels: kernel_runner.py LIBRARY FOLDER OUT ISA ...

FOLDER has NAME.onnx and NAME.npz (the feed); OUT gets ISA/NAME.npz. Needs numpy and onnxruntime only.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(library: str, folder: Path, out: Path, isas: list[str]) -> None:
    """All models on all instruction sets, two threads."""
    for isa in isas:
        assert ctypes.CDLL(library).qexport_set_isa(isa.encode()) == 0, isa
        (out / isa).mkdir(parents=True)
        for path in sorted(folder.glob("*.onnx")):
            options = ort.SessionOptions()
            options.intra_op_num_threads = 2
            options.log_severity_level = 4
            options.register_custom_ops_library(library)
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            with np.load(path.with_suffix(".npz")) as stored:
                feed = {item.name: stored[item.name] for item in session.get_inputs()}
            names = [item.name for item in session.get_outputs()]
            np.savez(
                out / isa / f"{path.stem}.npz", **dict(zip(names, session.run(names, feed), strict=True))
            )
        print(isa, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
