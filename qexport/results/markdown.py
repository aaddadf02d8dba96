"""Joined tables as Markdown: a table a task, the averages, failures, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qexport.results.joined import Cell, Group, Joined, Number
from qexport.results.papers import PaperDrop

__all__ = ["Sources", "cell_texts", "drop_text", "markdown", "paper_text", "value_text"]


class Sources:
    """Footnotes for the papers' numbers: each source gets the next number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, source: str) -> str:
        """ "[2]"."""
        return f"[{self.numbers.setdefault(source, len(self.numbers) + 1)}]"


def value_text(number: Number, digits: int = 2) -> str:
    """ "85.29 ± 0.41" over seeds, "85.29 [81.5, 88.4]" for one."""
    text = f"{number.mean:.{digits}f}"
    if number.spread is not None:
        return f"{text} ± {number.spread:.{digits}f}"
    if number.low is not None and number.high is not None:
        return f"{text} [{number.low:.{digits}f}, {number.high:.{digits}f}]"
    return text


def drop_text(number: Number | None) -> str:
    """Points lost; a gain has a minus."""
    return "-" if number is None else value_text(number)


def paper_text(drop: PaperDrop | None, metric: str, sources: Sources) -> str:
    """The paper's drop, its metric where that is another one, and its footnote."""
    if drop is None:
        return "-"
    other = "" if drop.metric == metric else f" ({drop.metric})"
    return f"{drop.points:.2f}{other} {sources.mark(drop.source)}"


def cell_texts(label: str, cell: Cell, sources: Sources, lengths: list[str]) -> list[str]:
    """The cells of one line of a task's table, in the order of `_head`."""
    same = f"{cell.rows_equal} of {cell.rows_compared}" if cell.rows_compared else "-"
    largest = "-" if cell.largest_difference is None else f"{cell.largest_difference:.1e}"
    latency = [f"{cell.latency[length]:.2f}" if length in cell.latency else "-" for length in lengths]
    return [
        label, ", ".join(str(row["seed"]) for row in cell.rows), cell.steps, value_text(cell.value),
        drop_text(cell.drop), paper_text(cell.paper, cell.metric, sources), same, largest,
        f"{cell.file_bytes / 1e6:.2f}", *latency,
    ]  # fmt: skip


def task_head(metric: str, lengths: list[str]) -> list[str]:
    """Titles of a task's table."""
    return [
        "model", "seeds", "steps", f"{metric}, %", "drop, points", "paper's drop", "same answer as PyTorch",
        "largest logit difference", "file, MB", *(f"ms, {length}" for length in lengths),
    ]  # fmt: skip


def latency_lengths(group: Group) -> list[str]:
    """ "128 tokens, stock" and so on, for every length and engine that some row of the group was timed at."""
    found = {length for cell in group.cells.values() for length in cell.latency}
    return sorted(found, key=lambda text: (text.rpartition(" ")[2] != "stock", int(text.split()[0])))


def markdown(joined: Joined, *, command: str) -> str:
    """The whole text.

    Args:
        joined: the rows.
        command: the command line that gives it.
    """
    return "\n".join(_lines(joined, command)) + "\n"


def _lines(joined: Joined, command: str) -> Iterator[str]:
    sources = Sources()
    yield f"    {command}"
    for group in joined.groups:
        yield ""
        yield f"## {group.name}"
        yield from _averages(group)
        for task in group.tasks:
            metric = joined.metric(task)
            lengths = latency_lengths(group)
            yield ""
            yield f"### {task}"
            yield ""
            yield from _table(
                task_head(metric, lengths),
                [
                    cell_texts(variant.label, group.cells[variant, task], sources, lengths)
                    for variant in group.variants
                    if (variant, task) in group.cells
                ],
            )
            yield ""
            for fact in joined.facts(group, task):
                yield f"{task}: {fact}."
    yield ""
    yield "One seed: the 95 % interval on the evaluation rows; several: mean ± standard deviation over them."
    yield "Drops are paired with the teacher on the same rows; above 0 is worse than the teacher."
    yield ""
    for machine in joined.machines():
        yield f"- {machine}"
    if sources.numbers:
        yield ""
        for source, number in sources.numbers.items():
            yield f"- [{number}] {source}"
    if joined.failed:
        yield ""
        yield "## Runs that failed"
        yield ""
        for row in joined.failed:
            yield f"- {row['name']}, in {row['stage']}: {row['error']}"


def _averages(group: Group) -> Iterator[str]:
    if len(group.tasks) < 2:
        return
    lengths = latency_lengths(group)
    rows = []
    for average in group.averages():
        tasks = "all" if len(average.tasks) == len(group.tasks) else ", ".join(average.tasks)
        paper = "-" if average.paper is None else f"{average.paper:.2f}"
        rows.append(
            [average.variant.label, tasks, value_text(average.value), drop_text(average.drop), paper,
             f"{average.file_bytes / 1e6:.2f}", *_latency(average.latency, lengths)]
        )  # fmt: skip
    yield ""
    yield f"Average over {', '.join(group.tasks)}; only rows of all of them compare:"
    yield ""
    heads = ["model", "tasks", "main metric, %", "drop, points", "papers' drop there", "file, MB"]
    yield from _table([*heads, *(f"ms, {length}" for length in lengths)], rows)


def _latency(found: Mapping[str, float], lengths: list[str]) -> list[str]:
    return [f"{found[length]:.2f}" if length in found else "-" for length in lengths]


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cells) + " |"
