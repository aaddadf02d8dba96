"""The runner: a small program that runs an ONNX file on another machine and speaks through its streams."""
