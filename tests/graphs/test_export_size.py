"""The size promise: BERT-base at 2-2-8 in a whole file of at most 23 MiB, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from random_weights import materialise
from transformers import BertConfig, BertForSequenceClassification

from qexport.graphs.config import ExportConfig
from qexport.graphs.export import export_graph
from qexport.graphs.inventory import inspect_file
from qexport.training.quant_config import QuantConfig
from qexport.training.student import quantize_model

MIB = 2**20


def test_bert_base_2_2_8_is_at_most_23_mib(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    model = materialise(model)
    # the largest 2-2-8 file: one scale for a matrix saves little, a float position table costs 1.1 MiB
    quantize_model(model, QuantConfig(method="ternarybert", bits="2-2-8", granularity="row", position_bits=8))
    float_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    proto, _ = export_graph(model.eval(), ExportConfig(model=tmp_path, output=tmp_path / "out"), {})
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    inventory = inspect_file(path)
    assert inventory.file_bytes <= 22.2 * MIB
    assert float_bytes / inventory.file_bytes > 18
    structure = next(row for row in inventory.rows if row.kind == "graph structure")
    # the published setting (float positions, one scale a matrix) has tensors of 22.92 MiB: 80 kB are left
    assert structure.n_bytes < 76_000
    rows = {(row.kind, row.storage) for row in inventory.rows}
    assert ("encoder weights", "ternary, 5 trits a byte") in rows
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(0, 30522, (1, 16))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    assert np.isfinite(session.run(None, feeds)[0]).all()
