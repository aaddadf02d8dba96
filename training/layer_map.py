"""LayerMap: which layer of a teacher each layer of a student is compared with.

Source: TinyBERT (Jiao et al. 2020), section 3.2: the uniform map g(m) = m * N / M from a student of M layers
to a teacher of N. Its released code takes whole numbers N / M only; else the nearest layer is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from qexport.errors import UsageError

__all__ = ["LayerMap", "uniform_map"]


@dataclass(frozen=True, slots=True)
class LayerMap:
    """For each layer of a student one of its teacher, counted from 1; 0 is the output of the embeddings."""

    layers: tuple[int, ...]
    """g(1) ... g(M), increasing; g(M) is the last layer of the teacher."""

    @property
    def states(self) -> tuple[int, ...]:
        """For each hidden state of the student, embeddings first, the index of the teacher's."""
        return (0, *self.layers)

    @property
    def attentions(self) -> tuple[int, ...]:
        """For each attention map of the student the index of the teacher's."""
        return tuple(layer - 1 for layer in self.layers)


def uniform_map(student: int, teacher: int) -> LayerMap:
    """Spread the layers of a student over those of its teacher: m * N / M, rounded to nearest, halves up.

    Args:
        student, teacher: how many layers each has.
    Raises:
        UsageError: the student has more layers than the teacher.
    """
    if student > teacher:
        raise UsageError(
            f"a student of {student} layers cannot learn layer by layer from a teacher of {teacher}; take a "
            "deeper teacher, or leave these losses out: --hidden-weight 0 --attention-weight 0"
        )
    return LayerMap(tuple((2 * m * teacher + student) // (2 * student) for m in range(1, student + 1)))
