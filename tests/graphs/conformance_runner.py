"""Run ONNX cases on the ONNX Runtime of this interpreter: `python conformance_runner.py CASES RESULTS`.

Needs numpy and onnxruntime only, so that it runs in an environment of any version. CASES holds pairs
NAME.onnx and NAME.npz (an array for each input). RESULTS gets NAME.npz with the arrays "off/OUTPUT" and
"on/OUTPUT" (graph optimisation off and on), and summary.json with the versions and the message of each
case that failed.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def run(model, feed, optimize):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return {value.name: session.run([value.name], feed)[0] for value in session.get_outputs()}


def main(cases, results):
    results.mkdir(parents=True, exist_ok=True)
    errors = {}
    for model in sorted(cases.glob("*.onnx")):
        with np.load(str(model.with_suffix(".npz"))) as stored:
            feed = {name: stored[name] for name in stored.files}
        arrays = {}
        for level in ("off", "on"):
            try:
                outputs = run(model, feed, level == "on")
            except Exception as error:
                errors[model.stem + "/" + level] = type(error).__name__ + ": " + str(error)
                continue
            arrays.update({level + "/" + name: value for name, value in outputs.items()})
        np.savez(str(results / (model.stem + ".npz")), **arrays)
    summary = {"onnxruntime": ort.__version__, "numpy": np.__version__, "errors": errors}
    (results / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
