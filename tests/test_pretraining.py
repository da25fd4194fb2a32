"""``scripts/pretrain_small.py``: its losses and draws, and that what it writes is the backbone."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import ndimage

from samsans.backbones import load_backbone
from samsans.config import BackboneConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import pretrain_data as data
import pretrain_small as script


def test_narrowness_is_that_of_the_directions():
    """0 where all channels vary alike and apart; log C of one direction, log 2 of half of them; blind to each image's
    mean and to scale."""
    random = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    spread = torch.linalg.svd(random - random.mean(1, keepdim=True), full_matrices=False)[2]  # orthonormal, centred
    every = spread.reshape(1, 8, 8, 8)
    assert script.narrowness(every).item() == pytest.approx(0, abs=1e-5)
    assert script.narrowness(7 * every + 3).item() == pytest.approx(0, abs=1e-4)
    one = every[:, :1].expand(-1, 8, -1, -1)
    assert script.narrowness(one).item() == pytest.approx(math.log(8), abs=1e-4)
    half = torch.cat([every[:, :4], torch.zeros(1, 4, 8, 8)], 1)
    assert script.narrowness(half).item() == pytest.approx(math.log(2), abs=1e-5)


def test_the_dense_loss_weighs_object_and_rest_alike():
    truth = torch.zeros(2, 4, 4)
    truth[0, 0, 0] = 1  # shown, small; the second class is not shown
    right = torch.where(truth > 0, 20.0, -20.0)
    assert script.dense_loss(right, truth).item() == pytest.approx(0, abs=1e-3)
    missed, found = right.clone(), right.clone()
    missed[0, 0, 0] = -2.0
    found[0, 1:, 1:] = 2.0
    assert script.dense_loss(missed, truth) > 0.5 * math.log1p(math.exp(2.0))
    assert script.dense_loss(found, truth) > 0.5 * 9 / 15 * math.log1p(math.exp(2.0))
    nothing = script.dense_loss(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    assert nothing.item() == pytest.approx(0.5 * math.log(2), abs=1e-6)


def test_details_are_colours_lines_and_edges():
    rng = np.random.default_rng(0)
    images = np.full((2, 3, 256, 256), 60, np.uint8)
    images[0, :, 100:103] = 200  # a bright line
    images[1, :, 100:103] = 10  # a dark one
    found = data.details(torch.from_numpy(images))
    assert found.shape == (2, data.DETAILS, data.MASKS, data.MASKS)
    assert torch.isfinite(found).all()
    assert found.abs().amax() <= 4
    row = 101 // 4
    dark, bright = found[:, 3], found[:, 4]  # of the narrower blur
    assert bright[0].mean(1).argmax() == row
    assert dark[1].mean(1).argmax() == row
    assert bright[0, row].mean() > 2 > dark[0, row].mean()
    noise = torch.from_numpy(rng.integers(0, 255, (1, 3, 256, 256)).astype(np.uint8))
    expected = data.PREPROCESS.normalize(noise).unflatten(2, (64, 4)).unflatten(4, (64, 4)).mean((3, 5))
    assert torch.allclose(data.details(noise)[:, :3], expected, atol=1e-5)
    grey = ndimage.gaussian_filter(noise[0].float().mean(0).numpy() / 255, data.BLURS[0], truncate=3)
    slope = np.hypot(*np.gradient(grey)).reshape(64, 4, 64, 4).mean((1, 3))
    slope = ((slope - slope.mean()) / slope.std(ddof=1)).clip(-4, 4)
    assert np.allclose(data.details(noise)[0, 5].numpy(), slope, atol=1e-3)


def test_classes_that_are_shown_are_asked_for_first():
    known = [(0, 0), (0, 1), (0, 2), (1, 3), (2, 4), (2, 5)]
    shown, hidden = torch.ones(2, 2), torch.zeros(2, 2)
    dense = [shown, hidden, shown, hidden, hidden, shown]
    rng = np.random.default_rng(0)
    counts = np.zeros(len(known), int)
    for _ in range(400):
        rows = data.asked_of(known, dense, rng)
        assert len(rows) == len(set(rows)) == 5  # two of image 0, one of 1, two of 2
        counts[rows] += 1
    assert counts[3] == counts[4] == counts[5] == 400
    assert counts[1] < 150 < min(counts[0], counts[2])


def test_it_trains_and_writes_the_backbone(tmp_path, monkeypatch):
    """A few steps on two families of phantoms, and a few more after an interruption."""
    families = {"lesions": data.FAMILIES["lesions"], "fundus": data.FAMILIES["fundus"]}
    monkeypatch.setattr(script, "FAMILIES", families)
    monkeypatch.setattr(script, "POOL", 4)
    (tmp_path / "data").mkdir()
    argv = ["pretrain_small.py", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--batch", "2", "--resume"]
    monkeypatch.setattr(sys, "argv", [*argv, "--clock", "0.02"])
    script.main()
    rows = (tmp_path / "out/curve.csv").read_text().splitlines()
    monkeypatch.setattr(sys, "argv", [*argv, "--clock", "0.05"])
    script.main()
    more = (tmp_path / "out/curve.csv").read_text().splitlines()
    assert len(rows) == 2
    assert more[: len(rows)] == rows
    assert len(more) == 3
    assert int(more[2].split(",")[1]) > int(more[1].split(",")[1])
    file = tmp_path / "out/samsans-small.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["licence"] == "CC BY-SA 4.0"
    trained = load_backbone(BackboneConfig(name=str(file)))
    with torch.no_grad():
        features = trained.encode(torch.zeros(1, 3, 256, 256)).features
    assert features.shape == (1, 128, 16, 16)
    assert torch.isfinite(features).all()
