"""Rewrite rules of the exporter, one per file: pattern, check, rewrite; the module docstring is the spec.

The lowering rules turn the export IR, nodes of domain `qexport` that `qexport.graphs.export_modules` puts in
the graph, into operators of `ai.qexport` and `ai.onnx`. Their order is in `qexport.graphs.pipeline`.
"""

from __future__ import annotations

EXPORT_DOMAIN = "qexport"
"""Domain of the export IR; no node of it may be left in a file."""
