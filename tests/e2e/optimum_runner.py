"""Load a folder with optimum and print what it says, as JSON; runs in an environment that has no qexport.

python optimum_runner.py FOLDER TEXT ...
python optimum_runner.py --question FOLDER QUESTION CONTEXT
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


def answer() -> None:
    """Start and end logits by ORTModelForQuestionAnswering, answer by transformers' pipeline."""
    from optimum.onnxruntime import ORTModelForQuestionAnswering
    from transformers import AutoTokenizer, pipeline

    folder, question, context = sys.argv[2:]
    model = ORTModelForQuestionAnswering.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = model(**tokenizer(question, context, return_tensors="pt"))
    ask = pipeline("question-answering", model=model, tokenizer=tokenizer)
    found = {"start_logits": given.start_logits.tolist(), "end_logits": given.end_logits.tolist()}
    print(json.dumps({**found, "pipeline": ask(question=question, context=context)}))


if __name__ == "__main__":
    answer() if sys.argv[1] == "--question" else main()
