"""Every operator and a whole encoder inside ONNX Runtime, on every instruction set of x86."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_hooks import Hooks
from kernel_models import example, feeds, one_node, run, same

from qexport.graphs.operators import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_equals_its_body(operator: str, emulated: Path) -> None:
    hooks = Hooks(emulated)
    inputs, attributes, stored = example(operator, np.random.default_rng(7))
    model = one_node(operator, inputs, attributes, stored)
    body = run(model, inputs, None)
    for isa in hooks.isas:
        hooks.set_isa(isa)
        one = run(model, inputs, emulated)
        assert same(one, body), isa
        two = run(model, inputs, emulated, threads=2)
        assert same(two, one), isa


def test_encoder_equals_stock(emulated: Path, ternary_folder: Path) -> None:
    hooks = Hooks(emulated)
    model = (ternary_folder / "model.onnx").read_bytes()
    for feed in feeds(6):
        stock = run(model, feed, None)
        for isa in hooks.isas:
            hooks.set_isa(isa)
            assert same(run(model, feed, emulated, optimize=True, threads=2), stock), isa
