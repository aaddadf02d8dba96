"""Packed layouts, the `ai.qexport` operator set, export, graph rewriting, inspection."""
