"""Methods by name: quantisers, losses and defaults, one file each."""

from __future__ import annotations

from qexport.errors import UnknownNameError
from qexport.training.recipes.base import Recipe
from qexport.training.recipes.binarybert import BINARYBERT
from qexport.training.recipes.fp32 import FP32
from qexport.training.recipes.ghostbert import GHOSTBERT
from qexport.training.recipes.kdlsq import KDLSQ
from qexport.training.recipes.lsq import LSQ
from qexport.training.recipes.lsq_kd import LSQ_KD
from qexport.training.recipes.q8bert import Q8BERT
from qexport.training.recipes.ternarybert import TERNARYBERT, TERNARYBERT_LAT
from qexport.training.recipes.tinybert import TINYBERT

__all__ = ["RECIPES", "Recipe", "get_recipe"]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        FP32,
        Q8BERT,
        TERNARYBERT,
        TERNARYBERT_LAT,
        LSQ,
        LSQ_KD,
        KDLSQ,
        BINARYBERT,
        GHOSTBERT,
        TINYBERT,
    )
}


def get_recipe(name: str) -> Recipe:
    """Look a method up.

    Raises:
        UnknownNameError: no such method; suggests the nearest.
    """
    if name not in RECIPES:
        raise UnknownNameError("method", name, RECIPES)
    return RECIPES[name]
