"""Sessions, evaluation, parity, latency and reports over ONNX Runtime. Needs no torch."""
