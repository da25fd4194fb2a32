"""Metrics with named conventions, and the evaluation report."""

from __future__ import annotations

from samsans.metrics.conventions import CONVENTIONS, METRICS, Convention
from samsans.metrics.evaluate import Summary, evaluate

__all__ = ["CONVENTIONS", "METRICS", "Convention", "Summary", "evaluate"]
