"""What a student answers with PyTorch's own softmax, GELU and LayerNorm, and with those of the exported file.

    python benchmarks/evaluation_gap.py runs/grid/cola-kdlsq-2-2-4-*/model --task cola --data-dir $GLUE

A student is trained with the first and evaluated with the second (docs/decisions/same-bits.md). Prints the
task's main metric of both, and on how many rows the answers are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import qexport
from qexport.training import attention, exact
from qexport.training.data import encode, load_task_data, load_tokenizer, pad_token_id
from qexport.training.metrics import compute_metrics
from qexport.training.trainer import predict_logits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_task_data(options.task, data_dir=options.data_dir)
    if data.task.kind != "classification":
        parser.error(f"task {data.task.name} must be one of classification")
    name, rows = next(iter(data.evals.items()))
    encoded = encode(rows, load_tokenizer(options.student), data.task.max_length)
    student, pad = qexport.load(options.student), pad_token_id(options.student)
    answers = []
    for title in ("as exported", "PyTorch's own"):
        if title != "as exported":
            attention.exact_softmax = lambda scores: scores.softmax(-1)
            exact.exact_gelu = nn.functional.gelu
            exact.ExactLayerNorm.forward = nn.LayerNorm.forward
        with torch.no_grad():
            logits = predict_logits(student, encoded, pad_id=pad, batch_size=32)
        answers.append(logits.argmax(1))
        score = compute_metrics(data.task, logits, rows.labels)[data.task.main_metric]
        print(f"{title}: {data.task.main_metric} {100 * score:.2f} on {len(rows)} rows of {name}")
    print(f"the same answer on {int((answers[0] == answers[1]).sum())} of {len(rows)}")


if __name__ == "__main__":
    main()
