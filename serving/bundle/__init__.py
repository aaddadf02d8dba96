"""Bundles: what an app developer needs to run an exported model on one platform."""

from __future__ import annotations

from qexport.serving.bundle.config import BundleConfig
from qexport.serving.bundle.contents import BundleResult, bundle
from qexport.serving.bundle.targets import TARGETS

__all__ = ["TARGETS", "BundleConfig", "BundleResult", "bundle"]
