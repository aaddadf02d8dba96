"""Register qexport's quantisation method when transformers is imported, without importing it (or torch).

`import qexport` must make AutoModel…from_pretrained(student) work and must stay quick on a device that has no
torch. So a finder waits for `transformers.quantizers.auto`, the module that holds transformers' registry, and
runs our registration right after that module has been executed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["install"]

_REGISTRY = "transformers.quantizers.auto"


class _ThenRegister(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


def _register() -> None:
    import qexport.training.hf_quantizer  # noqa: F401  importing it registers


def install() -> None:
    """Register now when transformers' registry is loaded already, else as soon as it is."""
    if _REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
