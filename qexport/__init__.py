"""qexport: low-bit BERT-family models, from distillation to one small ONNX file, with proof."""

from __future__ import annotations

__version__ = "0.1.0"
