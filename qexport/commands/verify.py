"""`qexport verify`: an exported folder against its task, its PyTorch student, its teacher."""

from __future__ import annotations

from typing import Annotated

import typer

from qexport import console
from qexport.options import Option, takes_config
from qexport.verification import VerificationConfig

__all__ = ["verify"]

OPTIONS = {
    "model": Option(argument=True, metavar="FOLDER"),
    "eval_file": Option(("--eval",)),
    "targets": Option(("--targets", "--target"), comma=True),
    "lengths": Option(comma=True),
    "threads": Option(comma=True),
}

PANELS = {
    "References": ("student", "teacher", "baseline", "layers"),
    "Data": ("data_dir", "eval_file", "text_column", "text_pair_column", "label_column", "regression",
             "eval_articles", "eval_samples", "max_length", "seed"),
    "Measuring": ("targets", "target_rows", "mobile_check", "latency", "lengths", "threads", "batch_size",
                  "iterations", "warmup"),
    "Gates: exit code 3 when one does not pass": (
        "max_drop", "min_agreement", "max_latency_ms", "max_size_mb"),
}  # fmt: skip


@takes_config(VerificationConfig, OPTIONS, panels=PANELS)
def verify(
    config: VerificationConfig,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Measure accuracy, agreement, latency, load time, memory and size of an exported folder; judge gates.

    Examples:

      qexport verify onnx --task rotten_tomatoes

      qexport verify onnx --task sst2 --data-dir glue --max-drop 1.0 --min-agreement 99.9

      qexport verify onnx --task sst2 --mobile-check

      qexport verify onnx --targets stock,reference --layers --threads 1,2
    """
    from qexport.verification import verify_folder

    report = verify_folder(config, command=console.command_line(), say=console.say)
    if json:
        console.print_json(report.to_dict())
    else:
        report.print(console.results())
        console.show(f"report: {config.report_folder / 'report.html'}")
    report.raise_for_gates()
