"""`python -m qexport`, from an install of any kind and from a bare checkout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _join_checkout() -> None:
    """In a checkout, let `qexport.training` and its siblings be found beside the folder `qexport/`.

    `python -m` puts the checkout first on sys.path, so the `qexport` that runs may be the source folder. It
    holds neither training/ nor graphs/ nor serving/: an install puts those inside it.
    """
    if importlib.util.find_spec("qexport.training") is None:
        import qexport

        checkout = Path(__file__).resolve().parents[1]
        if (checkout / "training" / "__init__.py").is_file():
            qexport.__path__.append(str(checkout))


if __name__ == "__main__":
    _join_checkout()
    from qexport.cli import main

    sys.exit(main())
