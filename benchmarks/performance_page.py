"""Write the measured tables of docs/performance.md from finished benchmarks.

    python benchmarks/performance_page.py "BERT-base=runs/bench-base/bench.json" runs/bench-minilm/bench.json

Each argument is a bench.json by `qexport bench`, with a title before it or else the name of its folder.
What stands between the two marker lines of the page is replaced; paths in commands keep their last part.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qexport.serving.bench.terminal import mebibytes, milliseconds, percent

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PROFILE_LENGTH, PROFILE_ROWS = 128, 12

Record = dict[str, Any]


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*cells: str) -> list[str]:
    return [row(*cells), row("---", *["---:"] * (len(cells) - 1))]


def with_quartiles(cell: Record | None) -> str:
    if cell is None:
        return "-"
    middle, low, high = (milliseconds(cell[key]) for key in ("p50_ms", "p25_ms", "p75_ms"))
    return f"{middle} [{low}, {high}]"


def with_interval(ratio: Record | None) -> str:
    return "-" if ratio is None else f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def plain_command(command: str) -> str:
    """The command without the folders of one machine."""
    return shlex.join(
        Path(word).name if word.startswith(("/", "..", "~")) else word for word in shlex.split(command)
    )


def facts(report: Record) -> Iterator[str]:
    where = report["environment"]
    flags = ", ".join(where["flags"]) or "unknown"
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    yield f"{where['cpu']}, {where['cores']} cores, instruction sets {flags}; {where['system']}."
    commit = f"commit {report['commit']}" if report["commit"] else "an installed package"
    yield f"Python {where['python']}, {versions}; {commit}, {report['created'][:10]}."
    load = f"Load {where['load_average']} before, {report['load_after']} after."
    cpus = {json.dumps(opening["cpus"]) for opening in report["openings"]}
    pinned = "Processes were not pinned." if cpus == {"null"} else "Every process was kept on the same cores."
    rounds = report["config"]["rounds"]
    yield f"{load} {pinned} {rounds} rounds of up to {report['config']['repeats']} runs."
    if not report["complete"]:
        yield "The run was stopped before its end: this is what was finished."
    yield from (note[0].upper() + note[1:] + "." for note in report["notes"])


def cell_of(report: Record, **wanted: Any) -> Record | None:
    return next((cell for cell in report["cells"] if wanted.items() <= cell.items()), None)


def times(report: Record, threads: int, batch_size: int) -> Iterator[str]:
    """Medians and quartiles, and below each other engine its ratio to the main one with the 95 % interval."""
    place = {"threads": threads, "batch_size": batch_size}
    lengths = list(dict.fromkeys(cell["length"] for cell in report["cells"] if place.items() <= cell.items()))
    yield f"Batch {batch_size}, {threads} thread{'s' * (threads > 1)}: ms, quartiles in brackets"
    yield ""
    yield from head("tokens", *map(str, lengths))
    main = report["main_engine"]
    for engine in report["engines"]:
        cells = [cell_of(report, engine=engine["name"], length=length, **place) for length in lengths]
        shown = map(with_quartiles, cells)
        yield row(f"**{engine['label']}**" if engine["name"] == main else engine["label"], *shown)
    label = next(engine["label"] for engine in report["engines"] if engine["name"] == main)
    for engine in report["engines"]:
        if engine["name"] == main:
            continue
        found = []
        for length in lengths:
            cell = cell_of(report, engine=main, length=length, **place) or {"ratios": []}
            ratio = next((one for one in cell["ratios"] if one["against"] == engine["name"]), None)
            found.append(with_interval(ratio))
        yield row(f"{engine['label']} / {label}", *found)


def memory(report: Record) -> Iterator[str]:
    labels = {engine["name"]: engine for engine in report["engines"]}
    yield from head(
        "engine", "file, MB", "load, ms", "session, MiB", "peak, MiB", "threads", "what the runtime says"
    )
    for opening in report["openings"]:
        engine = labels[opening["engine"]]
        said = [f"{name} {value}" for name, value in opening["settings"].items()]
        said += [f"{name}={value}" for name, value in engine["environment"].items()]
        yield row(
            engine["label"], f"{engine['file_bytes'] / 1e6:.1f}", f"{opening['load_ms']:.0f}",
            mebibytes(opening["session_bytes"]), mebibytes(opening["peak_bytes"]), opening["threads"],
            "; ".join(said) or "-",
        )  # fmt: skip


def profiles(report: Record) -> Iterator[str]:
    labels = {engine["name"]: engine["label"] for engine in report["engines"]}
    for name in dict.fromkeys(profile["engine"] for profile in report["profiles"]):
        known = [profile for profile in report["profiles"] if profile["engine"] == name]
        profile = next((one for one in known if one["length"] == PROFILE_LENGTH), known[-1])
        operators, run = milliseconds(profile["nodes_ms"]), milliseconds(profile["run_ms"])
        yield ""
        what = f"{labels[name]}, {profile['length']} tokens"
        yield f"Where the time goes, {what}: operators {operators} ms of {run} ms"
        yield ""
        yield from head("operator", "nodes", "ms", "share", "of the peak", "of the copy", "of the roofline")
        for one in profile["operators"][:PROFILE_ROWS]:
            peak = percent(one["peak_share"]) if one["macs"] else "-"
            yield row(one["operator"], one["nodes"], milliseconds(one["ms"]), percent(one["share"]), peak,
                      percent(one["copy_share"]), percent(one["roofline_share"]))  # fmt: skip
    for name, roofline in report["rooflines"].items():
        macs, copied = roofline["macs_per_s"] / 1e9, roofline["copy_bytes_per_s"] / 1e9
        yield ""
        peak = f"peak of {roofline['isa']} {macs:.0f} G multiply-accumulates/s"
        yield f"{labels[name]}: {peak}, copy {copied:.1f} GB/s."


def matmuls(report: Record) -> Iterator[str]:
    if not report["matmuls"]:
        return
    labels = {engine["name"]: engine["label"] for engine in report["engines"]}
    yield ""
    yield "Single products, tokens x inputs x outputs; shares leave out the time of a call with nothing to do"
    yield ""
    yield from head("product", "engine", "bits", "threads", "ms", "of the peak", "of the copy")
    for cell in report["matmuls"]:
        yield row(
            cell["shape"], labels[cell["engine"]], cell["bits"], cell["threads"],
            milliseconds(cell["p50_ms"]), percent(cell["peak_share"]), percent(cell["copy_share"]),
        )  # fmt: skip


def section(title: str, report: Record) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    yield "```bash"
    yield plain_command(report["command"])
    yield "```"
    yield ""
    yield from facts(report)
    for threads, batch_size in dict.fromkeys(
        (cell["threads"], cell["batch_size"]) for cell in report["cells"]
    ):
        yield ""
        yield from times(report, threads, batch_size)
    yield ""
    yield from memory(report)
    yield from profiles(report)
    yield from matmuls(report)


def write(page: Path, arguments: Sequence[str]) -> None:
    """Replace the measured part of `page`."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    parts = []
    for argument in arguments:
        title, _, path = argument.rpartition("=")
        report: Record = json.loads(Path(path).read_text(encoding="utf-8"))
        parts.append("\n".join(section(title or Path(path).resolve().parent.name, report)))
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", metavar="[TITLE=]bench.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write into")
    options = parser.parse_args()
    write(options.page, options.reports)
