"""`qexport train`: fine-tune a teacher, or distil a low-bit student from it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from qexport import console
from qexport.errors import Interrupted
from qexport.options import Option, takes_config
from qexport.training.config import TrainConfig

__all__ = ["train"]

OPTIONS = {
    "output": Option(("--output", "-o")),
    "model": Option(("--model", "-m")),
    "bits": Option(("--bits", "-b"), metavar="W-E-A"),
    "train_file": Option(("--data",)),
    "eval_file": Option(("--eval",)),
}

PANELS = {
    "Quantisation": ("bits", "activations", "granularity", "activation_clip", "asymmetric", "position_bits",
                     "embedding_granularity", "solver", "initial_step", "truncation", "as_published"),
    "Size": ("layers", "hidden_size", "intermediate_size", "heads", "width", "ghosts", "ghost_kernel"),
    "Data": ("data_dir", "train_file", "eval_file", "text_column", "text_pair_column", "label_column",
             "regression", "eval_articles", "train_samples", "eval_samples", "max_length"),
    "Augmentation": ("augment", "augment_model", "augment_probability", "augment_candidates", "glove"),
    "Optimisation": ("epochs", "max_steps", "lr", "weight_step_lr", "activation_step_lr", "batch_size",
                     "eval_batch_size", "gradient_accumulation", "warmup", "weight_decay", "dropout", "seed",
                     "bf16", "threads", "group_by_length"),
    "Distillation": ("hidden_weight", "attention_weight", "logits_weight", "label_weight", "temperature"),
    "Run": ("eval_steps", "early_stopping", "logging", "logging_steps", "resume", "force"),
}  # fmt: skip


@takes_config(TrainConfig, OPTIONS, panels=PANELS)
def train(
    config: TrainConfig,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Fine-tune a teacher, or distil a low-bit student from it.

    Examples:

      qexport train --method fp32 --model minilm --task rotten_tomatoes -o teacher

      qexport train --method ternarybert --teacher teacher --task sst2 -o student

      qexport train --method binarybert --teacher teacher --task sst2 -o binary

      qexport train --method tinybert --teacher teacher --task sst2 -o small

      qexport train --method kdlsq --model small --teacher teacher --task sst2 -o small-quantised

      qexport train --method ghostbert --width 0.5 --teacher teacher --task sst2 -o narrow

      qexport train --method ternarybert --teacher teacher --task rte -o student
      --augment 30 --augment-model bert-base-uncased

      qexport train --method fp32 --model minilm --data train.csv --eval eval.csv
      --text-column text --label-column label -o own

    Option names of Hugging Face's example scripts are accepted too: --learning_rate, --num_train_epochs,
    --per_device_train_batch_size, --max_seq_length, --task_name, --output_dir, --model_name_or_path.
    """
    from qexport.training.trainer import train as run

    try:
        result = run(config, say=console.say)
    except KeyboardInterrupt:
        kept = ("checkpoints/**/checkpoint-*", "checkpoints/*/model")
        if any(any(config.output.glob(name)) for name in kept):
            raise Interrupted(
                f"training stopped; go on from the newest checkpoint in {config.output} with the same "
                "command and --resume"
            ) from None
        raise
    if json:
        console.print_json(dataclasses.asdict(result))
        return
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    console.show(f"{config.method}: {scores}; {result.seconds:.0f} s", f"model in {result.output}")
