"""Operators that torch does not have: the selective scan of Mamba."""

from samsans.ops.selective_scan import selective_scan

__all__ = ["selective_scan"]
