"""Every operator and a whole encoder inside ONNX Runtime, on every instruction set of x86."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_hooks import Hooks
from kernel_models import agrees, example, feeds, one_node, run

from qexport.graphs.operators import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_agrees_with_its_body(operator: str, emulated: Path) -> None:
    hooks = Hooks(emulated)
    inputs, attributes, stored = example(operator, np.random.default_rng(7))
    model = one_node(operator, inputs, attributes, stored)
    body = run(model, inputs, None)
    for isa in hooks.isas:
        hooks.set_isa(isa)
        one = run(model, inputs, emulated)
        assert agrees(operator, one, body), isa
        two = run(model, inputs, emulated, threads=2)
        assert all(np.array_equal(one[name], two[name]) for name in one), isa


def test_encoder_agrees_with_stock(emulated: Path, ternary_folder: Path) -> None:
    hooks = Hooks(emulated)
    model = (ternary_folder / "model.onnx").read_bytes()
    for feed in feeds(6):
        stock = run(model, feed, None)
        for isa in hooks.isas:
            hooks.set_isa(isa)
            assert agrees("encoder", run(model, feed, emulated, optimize=True, threads=2), stock), isa
