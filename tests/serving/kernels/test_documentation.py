"""The Python and C lines of docs/kernels.md, run on an operator that only the kernels have."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
from kernel_build import host_compiler
from onnx import TensorProto, helper
from required import missing

from qexport.graphs.operators import DOMAIN, VERSION
from qexport.serving.kernels import ISA_NAMES, library_path
from qexport.serving.kernels.crossbuild import TARGETS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "kernels.md").read_text(encoding="utf-8")

SLOTS = {
    3: "OrtStatus* (*CreateEnv)(int level, const char* name, OrtEnv** out)",
    7: "OrtStatus* (*CreateSession)(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**)",
    2: "const char* (*GetErrorMessage)(const OrtStatus*)",
    10: "OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out)",
    100: "void (*ReleaseSessionOptions)(OrtSessionOptions*)",
    228: "OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions*, const ORTCHAR_T*)",
}
"""Functions of ONNX Runtime's C API by their place in its table, of which no slot ever moves."""

MAIN = """
#include <stdio.h>
int main(int count, char** words) {
  const OrtApi* ort = OrtGetApiBase()->GetApi(17);
  OrtEnv* env = 0;
  OrtSession* session = 0;
  OrtStatus* status = ort->CreateEnv(3, "docs", &env);
  if (status == 0) status = open_session(env, words[1], words[2], &session);
  puts(status ? ort->GetErrorMessage(status) : session ? "opened" : "no session");
  return 0;
}
"""


@pytest.fixture(scope="module")
def library() -> Path:
    path = library_path()
    if path is None:
        missing("this installation has no kernel library; install again without QEXPORT_NO_KERNELS")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """QuantizePerToken without the function that a file of qexport carries: no stock runtime can open it."""
    node = helper.make_node("QuantizePerToken", ["x"], ["q", "scale"], domain="ai.qexport", clip=0.0)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [
            helper.make_tensor_value_info("q", TensorProto.UINT8, [2, 8]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, [2, 1]),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def _lines(language: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"docs/kernels.md has {len(blocks)} blocks of {language}"
    return str(blocks[0])


def _header() -> str:
    """As much of onnxruntime_c_api.h as the page's lines use."""
    kinds = ("Status", "Env", "Session", "SessionOptions")
    fields, place = [], 0
    for slot in sorted(SLOTS):
        if slot > place:
            fields.append(f"  void* skipped_{place}[{slot - place}];")
        fields.append(f"  {SLOTS[slot]};")
        place = slot + 1
    return "\n".join(
        [
            "#include <stddef.h>",
            "#include <stdint.h>",
            "typedef char ORTCHAR_T;",
            *(f"typedef struct Ort{kind} Ort{kind};" for kind in kinds),
            "typedef struct OrtApi {",
            *fields,
            "} OrtApi;",
            "typedef struct OrtApiBase { const OrtApi* (*GetApi)(uint32_t); } OrtApiBase;",
            "const OrtApiBase* OrtGetApiBase(void);",
        ]
    )


def test_python_lines_open_a_session_with_the_kernels(library: Path, model: Path) -> None:
    with pytest.raises(Exception, match="QuantizePerToken"):
        onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    done = subprocess.run(
        [sys.executable, "-c", _lines("python") + "print(session.get_outputs()[0].name)"],
        cwd=model.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "q\n"


@pytest.mark.skipif(sys.platform != "linux", reason="links with the wheel's libonnxruntime.so")
def test_c_lines_open_a_session_with_the_kernels(library: Path, model: Path, tmp_path: Path) -> None:
    runtime = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if runtime is None:
        missing("this onnxruntime has no libonnxruntime.so of its own; install a newer one")
    (tmp_path / "onnxruntime_c_api.h").write_text('extern "C" {\n' + _header() + "\n}\n")
    (tmp_path / "main.cpp").write_text(_lines("c") + MAIN)
    program = tmp_path / "program"
    command = [*host_compiler().command, f"-I{tmp_path}", str(tmp_path / "main.cpp"), str(runtime),
               f"-Wl,-rpath,{tmp_path}", "-o", str(program)]  # fmt: skip
    (tmp_path / "libonnxruntime.so.1").symlink_to(runtime)  # the name that it gives itself
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for words, answer in (
        ([str(library), str(model)], "opened"),
        ([str(tmp_path / "gone.so"), str(model)], "gone.so"),
        ([str(library), str(tmp_path / "gone.onnx")], "gone.onnx"),
    ):
        done = subprocess.run([str(program), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert answer in done.stdout


def test_page_names_every_target_and_instruction_set() -> None:
    for name in (*TARGETS, *ISA_NAMES):
        assert f"`{name}`" in PAGE
