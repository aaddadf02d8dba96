"""Load a folder with optimum and print what it says, as JSON; runs in an environment that has no qexport.

python optimum_runner.py FOLDER TEXT ...
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Logits by ORTModel, label and score by transformers' pipeline."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    folder, texts = sys.argv[1], sys.argv[2:]
    model = ORTModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    feeds = tokenizer(texts, padding=True, return_tensors="pt")
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    found = {"logits": model(**feeds).logits.tolist(), "pipeline": classify(texts)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
