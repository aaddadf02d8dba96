"""qexport: low-bit BERT-family models, from distillation to one small ONNX file, with proof.

    import qexport
    model = qexport.load("student-folder")          # a transformers model, evaluation mode
    model = qexport.load_onnx("onnx-folder")        # the exported file on the kernel library, without torch
    model.predict(["a fine film"])                  # [Prediction(label="positive", probability=0.98, ...)]
    qexport.register_kernels(session_options)       # the kernel library, for your own onnxruntime session

After `import qexport`, transformers' AutoModelForSequenceClassification.from_pretrained loads students too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport import _autoload

if TYPE_CHECKING:
    from qexport.serving.kernels import register_kernels as register_kernels
    from qexport.serving.session import load_onnx as load_onnx
    from qexport.training.models import load as load

__all__ = ["__version__", "load", "load_onnx", "register_kernels"]

__version__ = "0.1.0"


def _join_checkout() -> None:
    """Beside a checkout's folders `training/`, `graphs/` and `serving/`, find them as parts of this package.

    Python puts the current folder first on sys.path, so in a checkout the `qexport` that is imported may be
    the source folder, which an install would have filled with the other three.
    """
    here = Path(__file__).parent
    if not (here / "training").is_dir() and (here.parent / "training" / "quant_config.py").is_file():
        __path__.append(str(here.parent))


_join_checkout()
_autoload.install()


def __getattr__(name: str) -> Any:
    if name == "load":  # imported on first use: it brings torch
        from qexport.training.models import load

        return load
    if name == "load_onnx":  # it brings onnxruntime when it is called
        from qexport.serving.session import load_onnx

        return load_onnx
    if name == "register_kernels":
        from qexport.serving.kernels import register_kernels

        return register_kernels
    raise AttributeError(f"module 'qexport' has no attribute '{name}'")
