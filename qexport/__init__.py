"""qexport: low-bit BERT-family models, from distillation to one small ONNX file, with proof.

    import qexport
    model = qexport.load("student-folder")          # a transformers model, evaluation mode

After `import qexport`, transformers' AutoModelForSequenceClassification.from_pretrained loads students too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport import _autoload

if TYPE_CHECKING:
    from qexport.training.models import load as load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"

_autoload.install()


def __getattr__(name: str) -> Any:
    if name == "load":  # imported on first use: it brings torch
        from qexport.training.models import load

        return load
    raise AttributeError(f"module 'qexport' has no attribute '{name}'")
