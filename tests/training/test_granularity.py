"""One scale for a row, a matrix or a table: what each method takes, by default and as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

import qexport
from qexport.errors import UsageError
from qexport.training.config import TrainConfig
from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers import loss_aware_ternary_exact, ternary_weight_network
from qexport.training.recipes import RECIPES, get_recipe
from qexport.training.splitting import split_student
from qexport.training.student import QuantEmbedding, QuantLinear, quantize_model, quantized_modules


def quant(method: str, **values: Any) -> QuantConfig:
    config = TrainConfig(method=method, output=Path("x"), task="sst2", **values)
    found = get_recipe(method).quant_config(config)
    assert found is not None
    return found


QUANTISING = [
    name for name, recipe in RECIPES.items() if recipe.weight_bits and recipe.default_bits[0] != "3"
]


@pytest.mark.parametrize("method", QUANTISING)
def test_every_method_takes_both_granularities(method: str) -> None:
    assert quant(method).granularity == "row"
    assert quant(method, as_published=True).granularity == "matrix"
    assert quant(method, as_published=True, granularity="row").granularity == "row"
    for name in ("row", "matrix"):
        found = quant(method, granularity=name, embedding_granularity=name)
        assert (found.granularity, found.embedding_granularity) == (name, name)


def test_word_embedding_has_the_granularity_of_its_paper() -> None:
    found = {name: quant(name, as_published=True).embedding_granularity for name in QUANTISING}
    tables = {"q8bert", "lsq", "lsq-kd", "kdlsq"}
    assert {name for name, granularity in found.items() if granularity == "matrix"} == tables


def test_solver_is_an_option_of_lat_only() -> None:
    assert quant("ternarybert-lat").ternary_solver == "alternating"
    assert quant("ternarybert-lat", solver="exact").ternary_solver == "exact"
    for method in ("ternarybert", "q8bert", "kdlsq"):
        with pytest.raises(UsageError, match="--solver has no meaning"):
            quant(method, solver="exact")
    with pytest.raises(UsageError, match="--solver must be one of alternating, exact"):
        quant("ternarybert-lat", solver="sort")


def student(**values: Any) -> Any:
    return quantize_model(tiny_model("bert"), QuantConfig(**{"method": "test", "bits": "2-2-8", **values}))


def test_exact_student_has_the_codes_of_the_exact_solver(tmp_path: Path) -> None:
    model = student(weight_quantizer="lat", ternary_solver="exact")
    name = "bert.encoder.layer.0.intermediate.dense"
    layer = model.get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in quantized_modules(model).values():
            if isinstance(module, QuantLinear | QuantEmbedding) and module.uses_curvature:
                module.curvature.copy_(torch.randn(module.curvature.shape, generator=generator).exp())
    codes, scale = loss_aware_ternary_exact(layer.weight.detach(), "row", layer.curvature)
    model.train(False)
    assert torch.equal(layer.weight_codes()[0].float(), codes) and torch.equal(layer.weight_codes()[1], scale)
    model.train()
    torch.testing.assert_close(layer.fake_weight(), codes * scale.unsqueeze(-1))
    model.save_pretrained(tmp_path)
    again = qexport.load(tmp_path).get_submodule(name)
    assert isinstance(again, QuantLinear) and torch.equal(again.weight_codes()[0].float(), codes)


@pytest.mark.parametrize(("bits", "rule"), [(2, "twn"), (2, "lat"), (8, "minmax"), (1, "bwn"), (4, "minmax")])
def test_table_with_one_scale_computes_the_same_in_training_and_evaluation(bits: int, rule: str) -> None:
    torch.manual_seed(0)
    table = QuantEmbedding(nn.Embedding(9, 12), bits=bits, granularity="matrix", weight_quantizer=rule)
    ids = torch.tensor([[1, 4], [4, 8]])
    with torch.no_grad():
        trained, evaluated = table.train()(ids), table.eval()(ids)
        assert torch.equal(trained, evaluated)
        codes, scale = table.weight_codes()
        assert scale.shape == (1,) and torch.equal(codes[ids].float() * scale, evaluated)
        table.train()
        table.weight.data.mul_(2)  # a step that leaves no trace in _version
        torch.testing.assert_close(table(ids), 2 * trained)


def test_split_table_with_one_scale_adds_up_to_the_ternary_one() -> None:
    values = {"method": "binarybert", "weight_quantizer": "bwn", "embedding_granularity": "matrix"}
    model = quantize_model(tiny_model("bert"), QuantConfig(bits="2-2-8", **values)).eval()
    words = model.get_submodule("bert.embeddings.word_embeddings")
    codes, scale = ternary_weight_network(words.weight.detach(), "matrix")
    final = QuantConfig(bits="1-1-8", split_weights=True, split_embedding=True, **values)
    split_student(model, final).eval()
    ids = torch.arange(40)
    with torch.no_grad():
        found = model.get_submodule("bert.embeddings.word_embeddings")(ids)
    torch.testing.assert_close(found, codes * scale, atol=1e-6, rtol=0)
