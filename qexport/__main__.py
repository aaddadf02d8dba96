"""`python -m qexport`, from an install of any kind and from a bare checkout."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from qexport.cli import main

    sys.exit(main())
