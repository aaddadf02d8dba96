"""The quickstart's own logic; what its stages do is tested with each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from qexport import quickstart, verification
from qexport.errors import Interrupted


def test_ctrl_c_while_it_verifies_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_need_packages", "_train", "_export"):
        monkeypatch.setattr(quickstart, name, lambda *given, **more: None)
    cut = SimpleNamespace(status="interrupted")
    monkeypatch.setattr(verification, "verify_folder", lambda *given, **more: cut)
    with pytest.raises(Interrupted):
        quickstart.quickstart(quickstart.QuickstartConfig(work=tmp_path))
