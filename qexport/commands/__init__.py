"""One module per command: read options, call one public function, show the result.

Heavy packages are imported inside the functions: `qexport --help` needs neither torch nor onnxruntime.
"""
