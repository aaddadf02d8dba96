"""What a low-bit file is compared with: ONNX Runtime's own dynamic int8 quantisation of the FP32 export."""

from __future__ import annotations

import logging
from pathlib import Path

from qexport.errors import UnsupportedModelError
from qexport.serving.machine import has_vnni

__all__ = ["dynamic_int8"]


def dynamic_int8(fp32: Path, folder: Path) -> tuple[Path, str]:
    """Quantise an FP32 ONNX file with `onnxruntime.quantization.quantize_dynamic`.

    Weights are signed with one scale per column where the CPU has VNNI (or is arm64), else unsigned with one
    scale per matrix, as ONNX Runtime's documentation advises: signed ones saturate there.

    Args:
        fp32: the .onnx file.
        folder: where model.onnx is written; made when absent.
    Returns:
        the file, and one line that says how it was made.
    Raises:
        UnsupportedModelError: the quantiser failed on this file.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "model.onnx"
    signed = has_vnni()
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a pre-processing step that changes nothing for transformers
    try:
        quantize_dynamic(
            fp32, output, per_channel=signed, weight_type=QuantType.QInt8 if signed else QuantType.QUInt8
        )
    except Exception as error:  # ValueError, RuntimeError, DecodeError: the quantiser has no error type
        raise UnsupportedModelError(f"ONNX Runtime cannot quantise {fp32} to int8 ({error})") from error
    finally:
        logger.setLevel(level)
    kind = "int8 per column" if signed else "uint8 per matrix"
    return output, f"quantize_dynamic of the FP32 export ({kind} weights) on ONNX Runtime"
