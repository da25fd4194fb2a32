"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other on small machines


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images: ``SAMSANS_TEST_DATA``, or ``../shared/data`` beside the checkout; skips where absent."""
    here = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("SAMSANS_TEST_DATA", here.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set SAMSANS_TEST_DATA to a folder that holds them")
    return folder
