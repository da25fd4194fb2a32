"""Support banks are refused by a method whose options would have made others."""

from __future__ import annotations

from typing import Any

import pytest

from samsans import config as configuration
from samsans.methods import build

SMALL = {"proxy_prompt": {"csm.encoder.depth": 1, "ccm.ffn": 32}, "vrp_sam": {"features": "backbone", "queries": 4}}


def print_of(method: str, **model: Any) -> str:
    backbone = "sam2-tiny-test" if method == "medical_sam2" else "tiny"
    options = {f"model.{key}": value for key, value in (SMALL.get(method, {}) | model).items()}
    made = build(configuration.from_dict({"backbone.name": backbone, **options}, method=method), ("a",))
    return str(made.fingerprint())


@pytest.mark.parametrize(
    ("method", "changed", "kept"),
    [
        ("proxy_prompt", {"csm.mask_gain": 2.0}, {"k_test": 3, "scan": "sequential"}),
        ("proxy_prompt", {"csm.cbam_residual": False}, {}),
        ("vrp_sam", {"mask_gain": 3.0}, {"k_test": 3, "resnet": "elsewhere"}),
        ("vrp_sam", {"heads": 4}, {}),
        ("vrp_sam", {"resnet_size": 256}, {}),
        ("medical_sam2", {"scores": 0.5}, {"k_test": 3, "bank": "none", "size": 2, "gate_by_object_score": True}),
    ],
)
def test_options_that_change_banks_change_the_fingerprint(
    method: str, changed: dict[str, Any], kept: dict[str, Any]
) -> None:
    own = print_of(method)
    assert print_of(method, **kept) == own
    assert print_of(method, **changed) != own
