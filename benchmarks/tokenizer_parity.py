"""Token ids of the bundles' WordPiece and of onnxruntime-extensions against Hugging Face's tokenizers.

    python benchmarks/tokenizer_parity.py FOLDER [--data-dir GLUE] [--nasty 20000] [--length 128]

FOLDER has a tokenizer.json of BERT. Rows: the evaluation splits of GLUE where --data-dir names them, and
seeded texts of combining marks, emoji, right-to-left and control characters, long words. A row is equal when
all token ids and type ids are. Prints a Markdown table, and rows on which onnxruntime-extensions differs.
Swift has a column where swiftc is on the PATH.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_extensions
import tokenizers
from onnx import TensorProto, helper

from qexport.graphs.text_input import TEXT_INPUT, with_wordpiece
from qexport.serving.bundle.contents import SAMPLES
from qexport.serving.targets.npm import find_node
from qexport.wordpiece import WordPiece, read_wordpiece

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from wordpiece_programs import (
    Ids,
    Row,
    compile_c,
    compile_swift,
    expected,
    glue_texts,
    nasty_texts,
    run_javascript,
    run_records,
    swift_command,
    write_files,
)


def extensions(words: WordPiece) -> onnxruntime.InferenceSession:
    """The graph of --with-tokenizer with nothing behind the tokenizer."""
    names = ["input_ids", "token_type_ids"]
    shape = ["batch", "sequence"]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names]
    outputs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.INT64, shape) for name in names]
    graph = helper.make_graph(nodes, "ids", inputs, outputs)
    opsets = [helper.make_opsetid("", 18)]
    model = with_wordpiece(helper.make_model(graph, opset_imports=opsets, ir_version=8), words)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run_extensions(session: onnxruntime.InferenceSession, rows: Sequence[Row]) -> list[Ids]:
    """One run for each row."""
    found: list[Ids] = []
    for text, pair in rows:
        texts = [text] if pair is None else [text, pair]
        ids, types = session.run(None, {TEXT_INPUT: np.array(texts, dtype=object)})
        found.append((ids[0].tolist(), types[0].tolist()))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--nasty", type=int, default=20000)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    words = read_wordpiece(options.folder, options.length)
    if isinstance(words, str):
        raise SystemExit(f"{options.folder}: {words}")
    sets = glue_texts(options.data_dir) if options.data_dir else {}
    sets[f"nasty Unicode, seed 0, {options.nasty} texts"] = nasty_texts(options.nasty)
    print(
        f"tokenizers {tokenizers.__version__}, onnxruntime-extensions {onnxruntime_extensions.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}\n"
    )
    session = extensions(words)
    examples: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_files(words, work)
        program = compile_c("cc", work, "-O2")
        in_c = [str(program), str(work / "vocab.txt"), str(SAMPLES / "unicode.txt")]
        columns: dict[str, Callable[[Sequence[Row]], list[Ids]]] = {
            "JavaScript": lambda rows: run_javascript(find_node(), work, rows),
            "C": lambda rows: run_records(in_c, rows),
        }
        if swiftc := shutil.which("swiftc"):
            in_swift = swift_command(compile_swift(swiftc, work), work)
            columns["Swift"] = lambda rows: run_records(in_swift, rows)
        columns["onnxruntime-extensions"] = lambda rows: run_extensions(session, rows)
        print(f"| texts | rows | {' | '.join(columns)} |\n| --- | ---{' | ---' * len(columns)} |")
        for name, rows in sets.items():
            wanted = expected(options.folder, options.length, rows)
            counts = []
            for run in columns.values():
                equal = [one == other for one, other in zip(run(rows), wanted, strict=True)]
                counts.append(str(sum(equal)))
            different = [row for row, same in zip(rows, equal, strict=True) if not same]
            examples += [f"{name}: {row!r}" for row in different[:2]]
            print(f"| {name} | {len(rows)} | {' | '.join(counts)} |", flush=True)
    print("\nonnxruntime-extensions differs on, for example:\n")
    print("\n".join(examples))


if __name__ == "__main__":
    main()
