"""Studies of support pairs: draws that are merges, the grid, stability, relevance, qualities, choosing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from proxy_training import train_beside, two_objects
from samsans.config import DataConfig
from samsans.data.phantoms import make, write
from samsans.errors import InputError
from samsans.experiments import Request, draws, grid, published_proxy_prompt, run
from samsans.experiments.ablation import ARMS
from samsans.experiments.context_encoders import HEAD, count
from samsans.experiments.qualities import masks_dice, redrawn
from samsans.methods.proxy_prompt.pairs import choose_pairs, read_pairs, segment_draws


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_objects(tmp_path_factory.mktemp("two"), 16)


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return train_beside(data, steps=3, test=0.2)


def asked(data: Path, trained: Path, out: Path, **options: object) -> Request:
    return Request(DataConfig(path=str(data)), trained, out, **options)  # type: ignore[arg-type]


def test_a_draw_of_pairs_read_once_is_what_predict_gives(data: Path, trained: Path, tmp_path: Path) -> None:
    this = draws.study(asked(data, trained, tmp_path))
    bank = this.bank(this.order[:6])
    image = draws.slice_batch(this, draws.open_case(this, this.cases[0]), 0)
    method = this.segmenter.method
    chosen = [(0,), (1, 4), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)]
    with torch.inference_mode():
        embedding = method.backbone.encode(image.images)
        merged = segment_draws(method, embedding, read_pairs(method, embedding.features, bank), chosen, 2)
    for draw, logits in zip(chosen, merged, strict=True):
        together = method.predict(image, bank.select(draw))[0]
        torch.testing.assert_close(logits, together, atol=1e-5, rtol=1e-5)


def test_scores_of_draws_are_those_of_predicted_masks(data: Path, trained: Path, tmp_path: Path) -> None:
    request = asked(data, trained, tmp_path)
    this = draws.study(request)
    bank = this.bank(this.order[:4])
    counts = draws.score_draws(request, this, bank, [(1, 2), (3,), (1, 2)], "test")
    assert counts.dice.shape == (3, len(this.cases), 2)
    assert np.array_equal(counts.dice[0], counts.dice[2], equal_nan=True)
    for c, case in enumerate(this.cases):
        truth = this.dataset.read_labels(case).array
        found = this.segmenter.predict(
            this.dataset.read_image(case), bank.select([3]), probabilities=True
        ).probabilities
        assert found is not None
        for n, info in enumerate(this.dataset.classes):
            mine, wanted = found[n] > 0.5, np.isin(truth, info.values)
            both = 2 * (mine & wanted).sum() / (mine.sum() + wanted.sum())
            assert counts.dice[1, c, n] == pytest.approx(both, abs=0.02)  # float16 probabilities


def test_grid(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "DRAWS", 5)
    text = run("grid", DataConfig(path=str(data)), trained, tmp_path, limit=2)
    told = json.loads((tmp_path / "grid.json").read_text())
    cells = {(row["M"], row["K"]) for row in told["rows"]}
    assert cells == {(m, k) for m in (2, 4, 8) for k in (1, 2, 4, 8) if k <= m}
    for row in told["rows"]:
        assert row["std"] == pytest.approx(np.std(row["draws"], ddof=1))
        assert row["M"] > row["K"] or row["std"] == pytest.approx(0, abs=1e-9)  # one draw there is
    assert (tmp_path / "grid.png").stat().st_size > 10_000
    assert "M = 8" in text
    assert "not comparable" in text


def test_stability(data: Path, trained: Path, tmp_path: Path) -> None:
    text = run("stability", DataConfig(path=str(data)), trained, tmp_path)
    told = json.loads((tmp_path / "stability.json").read_text())
    averages = np.mean([row["dice"] for row in told["rows"]], axis=0)
    assert len(told["pairs"]) == 5 == len(set(told["pairs"]))
    assert told["std"] == pytest.approx(averages.std(ddof=1))
    assert told["range"] == pytest.approx(np.ptp(averages))
    assert "has learned from these pairs" in text
    assert (tmp_path / "stability.png").is_file()


def test_relevance(data: Path, trained: Path, tmp_path: Path) -> None:
    write("fundus", tmp_path / "fundus", n=1, size=64)
    image, mask = (next((tmp_path / "fundus" / kind).glob("*.png")) for kind in ("images", "masks"))
    out = tmp_path / "out"
    text = run("relevance", DataConfig(path=str(data)), trained, out, limit=2, unrelated=f"{image}:{mask}")
    rows = {row["support"]: row for row in json.loads((out / "relevance.json").read_text())["rows"]}
    assert list(rows) == ["the target itself", "nearest", "median", "farthest", "unrelated"]
    assert rows["the target itself"]["mse"] == [0.0, 0.0]
    assert all(a < b for a, b in zip(rows["nearest"]["mse"], rows["farthest"]["mse"], strict=True))
    assert (out / "relevance.png").stat().st_size > 10_000
    assert "65.2" in text


def test_redrawn_masks_reach_the_quality_asked_for() -> None:
    phantoms = list(make("two_objects", 4, size=64))
    masks = torch.stack([torch.from_numpy(np.stack([p.labels[0][0] == v for v in (1, 2)])) for p in phantoms])
    for level in (0.666, 0.816, 0.883):
        assert masks_dice(redrawn(masks, level, 0), masks) == pytest.approx(level, abs=0.02)
    assert torch.equal(redrawn(masks, 1.0, 0), masks)
    assert not redrawn(masks, 0.0, 0).any()
    assert torch.equal(redrawn(masks, 0.816, 3), redrawn(masks, 0.816, 3))


def test_choosing(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samsans.experiments.choosing.DRAWS", 3)
    text = run("choosing", DataConfig(path=str(data)), trained, tmp_path, limit=3)
    told = json.loads((tmp_path / "choosing.json").read_text())
    assert [row["K"] for row in told["rows"]] == [1, 2, 4, 8]
    assert all(row["low"] <= row["gain"] <= row["high"] for row in told["rows"])
    assert "all 13" in text


def test_chosen_pairs_are_similar_and_cover() -> None:
    close = torch.tensor([[-1.0, -9, -9], [-2, -2, -9], [-9, -9, -1], [-3, -3, -3]])
    assert choose_pairs(close, 1, range(4)) == (3,)  # the best alone: mean -3 against -6.3, -4.3, -6.3
    assert choose_pairs(close, 2, [0, 1, 2]) == (1, 2)
    assert choose_pairs(close, 9, [2, 0]) == (0, 2)
    assert choose_pairs(close, 2, range(4)) == (1, 2) or 3 in choose_pairs(close, 2, range(4))


def test_context_encoders_count_to_the_unit(data: Path, trained: Path, tmp_path: Path) -> None:
    assert (count("vim"), count("vit_b"), count("resnet50")) == (7_752_960, 88_990_464, 8_546_432)
    assert count("vim") + HEAD == 7_945_960
    text = run("context-encoders", DataConfig(path=str(data)), trained, tmp_path, limit=1)
    assert "88,990,464" in text
    assert "the run's own: vim" in text


def test_published_rows_are_consistent() -> None:
    for name in ("modules", "context", "strategies", "pretrained"):
        for key, row in published_proxy_prompt.TABLES[name].rows.items():
            wrong = key == "medsam-vit-b, box"  # printed 74.5, the mean of its row is 76.6
            assert (abs(np.mean(row.objects) - row.average) > 0.11) == wrong, key
    assert all(set(ARMS[name]) == set(published_proxy_prompt.TABLES[name].rows) for name in ARMS)
    printed = [float(row.more.split()[1]) for row in published_proxy_prompt.TABLES["modules"].rows.values()]
    ours = [np.std(row.objects) for row in published_proxy_prompt.TABLES["modules"].rows.values()]
    assert np.allclose(printed, ours, atol=0.06)  # ddof 0


def test_options_of_other_experiments_are_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--retrain for the experiment stability"):
        run("stability", DataConfig(path=str(data)), trained, tmp_path, retrain=True)
    with pytest.raises(InputError, match="without --retrain"):
        run("grid", DataConfig(path=str(data)), trained, tmp_path, steps=3)
    with pytest.raises(InputError, match="table 'all'"):
        run("ablation", DataConfig(path=str(data)), trained, tmp_path, table="all")
