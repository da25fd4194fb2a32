"""Experiments on methods that see volumes: prompts that MaskSAM made, and mirroring off and on."""

from __future__ import annotations

import csv
import io as streams
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import samsans
from samsans import cli
from samsans.config import PatchConfig
from samsans.data.phantoms import make
from samsans.data.volumes import PreparedVolume
from samsans.errors import InputError
from samsans.experiments import prompts
from samsans.experiments.prompts import scene, sure_queries
from samsans.methods.masksam.matching import mask_boxes
from samsans.methods.masksam.outputs import Outputs
from samsans.types import Batch, ClassInfo
from volume_method import volume_set

TINY = ("--backbone", "tiny", "--input-size", "32", "--train.pictures_every", "0", "--train.accelerator", "cpu")
SMALL = ("--model.widths", "[8,8,8,8]", "--model.fusions", "0", "--model.queries", "4", "--train.steps", "2")
SPLIT = (
    "--split.val",
    "0.25",
    "--split.test",
    "0.5",
    "--patches.size",
    "[4,32,32]",
    "--data.classes",
    "{cube: [1], rod: [2]}",
)
CLASSES = (ClassInfo("cube", 1, (1,)), ClassInfo("rod", 2, (2,)))


def run(*argv: object) -> int:
    return cli.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_set(tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, blocks: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", "masksam", blocks, "-o", out, "--preset", "scratch", *TINY, *SMALL, *SPLIT) == 0
    return out


class Perfect:
    """Query 2 says the first object, query 0 the second, others nothing; masks and tight boxes are the truth."""

    def explain(self, batch: Batch) -> Outputs:
        assert batch.masks is not None
        truth = batch.masks[0].float().transpose(0, 1)  # (T, 2, H, W)
        empty = torch.zeros_like(truth[:, :1])
        masks = 20 * torch.cat([truth[:, 1:], 1 - truth.sum(1, keepdim=True), truth[:, :1], empty], 1) - 10
        classes = torch.tensor([[0, 0, 9, 0], [9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 9]]).float()
        return Outputs(classes.expand(len(masks), -1, -1), masks, masks, mask_boxes(masks > 0), len(masks))


def perfect(size: list[int]) -> Any:
    config = SimpleNamespace(patches=PatchConfig(size=size, spacing=[3.0, 1.0, 1.0]))
    device = torch.device("cpu")
    return SimpleNamespace(method=Perfect(), config=config, classes=CLASSES, device=device, precision="fp32")


def block() -> PreparedVolume:
    """Slice 6 of 9 shows most; a cube in rows 3-8 and columns 2-6, a rod in rows 10-12 and columns 11-18."""
    labels = np.zeros((9, 20, 24), np.uint8)
    labels[4:8, 3:9, 2:7] = 1
    labels[6, 10:13, 11:19] = 2
    image = np.random.default_rng(0).normal(size=(1, *labels.shape)).astype(np.float32)
    return PreparedVolume(image, labels, (), "p", "p")


@pytest.mark.parametrize(
    ("size", "corner", "shape"), [([4, 32, 32], (0, 0), (20, 24)), ([3, 16, 18], (0, 1), (16, 18))]
)
def test_boxes_lie_where_the_objects_are(size: list[int], corner: tuple[int, int], shape: tuple[int, int]) -> None:
    """Volumes smaller and larger than a patch; by hand."""
    volume = block()
    found = scene(perfect(size), volume)
    assert (found.place, found.depth, found.corner, found.truth.shape) == (6, 9, corner, shape)
    rows, columns = (slice(c, c + n) for c, n in zip(corner, shape, strict=True))
    np.testing.assert_array_equal(found.truth, volume.labels[6, rows, columns])
    np.testing.assert_array_equal(found.image, volume.image[0, 6, rows, columns])
    np.testing.assert_array_equal(found.found, found.truth)
    assert [found.dice(k) for k in (1, 2)] == [1, 1]
    cube, rod = found.queries
    assert (cube.number, cube.label, rod.number, rod.label) == (2, 1, 0, 2)
    for query, (x0, y0, x1, y1) in ((cube, (2, 3, 6, 8)), (rod, (11, 10, 18, 12))):
        assert query.probability > 0.99
        np.testing.assert_array_equal(query.prompt, found.truth == query.label)
        np.testing.assert_array_equal(query.mask, query.prompt)
        left, top = x0 - corner[1], y0 - corner[0]
        assert query.box == (left, top, x1 - corner[1], y1 - corner[0])
        assert query.edges == (left - 0.5, top - 0.5, x1 - x0 + 1, y1 - y0 + 1)
    told = prompts._told(found, CLASSES)
    assert [q["box"] for q in told["queries"]] == [[2, 3, 6, 8], [11, 10, 18, 12]]
    assert [q["class"] for q in told["queries"]] == ["cube", "rod"]
    assert [(q["prompt_dice"], q["mask_dice"]) for q in told["queries"]] == [(1, 1), (1, 1)]


def test_the_picture_frames_the_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frame of the cube, in its colour, is the rectangle around its pixels, in a panel of about 300 pixels."""
    from matplotlib.figure import Figure

    kept: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))[1])
    png = prompts._draw([scene(perfect([4, 32, 32]), block())], CLASSES)
    panels = kept[0].axes
    assert [axis.get_title() for axis in panels[:3]] == ["image", "truth", "prompts made"]
    assert panels[4].get_title() == "label map, Dice 1.000"
    assert panels[2].get_xlim() == (-0.5, 23.5)
    assert panels[2].get_ylim() == (19.5, -0.5)
    picture = np.asarray(Image.open(streams.BytesIO(png)).convert("RGB")).astype(int)
    scale = prompts.DPI / kept[0].dpi
    across = [panels[2].transData.transform((x, 5.5))[0] * scale for x in (-0.5, 1.5, 6.5, 23.5)]
    assert 280 < across[3] - across[0] < 320
    row = round(len(picture) - panels[2].transData.transform((0, 5.5))[1] * scale)
    colour = np.array(prompts.color(1))
    for edge in across[1:3]:
        nearby = picture[row, round(edge) - 2 : round(edge) + 3]
        assert np.abs(nearby - colour).sum(-1).min() < 60


def test_unsure_queries_are_left_out() -> None:
    logits = torch.tensor([[0.0, 0.1, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])[None]
    masks = torch.ones(1, 3, 8, 8)
    made = sure_queries(Outputs(logits, masks, masks, torch.rand(1, 3, 4), 1), 0, (slice(0, 8), slice(0, 8)))
    assert [(q.number, q.label) for q in made] == [(1, 1)]
    assert made[0].probability == pytest.approx(float(logits[0, 1].softmax(0)[1]))


def test_boxes_are_the_mean_of_two(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that says the corner (0, 0) they are half of the tight boxes, in whole pixels."""
    segmenter = samsans.load(trained, device="cpu")
    generator = segmenter.method.generator
    monkeypatch.setattr(prompts, "SURE", 0.0)

    def nowhere(levels: Any) -> Tensor:
        return levels[-1].new_zeros(1, 4, 4, 4)

    monkeypatch.setattr(generator, "network_boxes", nowhere)
    volume = PreparedVolume(block().image[:, :, :4, :], block().labels[:, :4, :], (), "p", "p")
    found = scene(segmenter, volume)
    assert found.truth.shape == (4, 24)
    assert len(found.queries) == 4
    padded = np.zeros((1, 1, 4, 32, 32), np.float32)
    padded[0, 0, :, 14:18, 4:28] = volume.image[0, 2:6]  # slice 4 is the first of those that show most
    outputs = segmenter.method.explain(Batch(torch.from_numpy(padded), None, ("p",), ("cube", "rod")))
    for query in found.queries:
        y, x = np.nonzero(outputs.auxiliary_logits[2, query.number].numpy() > 0)
        tight = [x.min(), y.min(), x.max(), y.max()] if len(x) else [0, 0, 0, 0]
        x0, y0, x1, y1 = (int(v / 2) for v in tight)
        assert query.box == (x0 - 4, y0 - 14, x1 - 4, y1 - 14)


def test_prompts_from_the_command_line(
    trained: Path, blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("experiment", "prompts", blocks, "--run", trained, "-o", tmp_path / "out", "--split", "test")
    assert run(*argv) == 0
    shown = capsys.readouterr().out
    assert shown.count("cube") == 2
    cases = json.loads((tmp_path / "out" / "prompts.json").read_text())["cases"]
    assert [case["id"] for case in cases] == json.loads((trained / "split.json").read_text())["test"]
    assert all(case["dice"].keys() == {"cube", "rod"} for case in cases)
    assert Image.open(tmp_path / "out" / "prompts.png").size[0] > 1500
    assert run(*argv, "--convention", "nnunet") == 2
    assert run(*argv, "--data.classes", "{rod: [2], cube: [1]}") == 2
    assert "those of the run, in order" in capsys.readouterr().err


def test_mirroring(trained: Path, blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("experiment", "mirroring", blocks, "--run", trained, "-o", tmp_path / "out", "--limit", 1)
    assert run(*argv, "--split", "test") == 0
    shown = capsys.readouterr().out
    assert "off          on" in shown
    assert "seconds a case" in shown
    rows = json.loads((tmp_path / "out" / "mirroring.json").read_text())["rows"]
    assert [(row["mirroring"], row["class"]) for row in rows] == [
        (way, name) for way in ("off", "on") for name in ("cube", "rod", "mean")
    ]
    for way in ("off", "on"):
        made = tmp_path / "out" / "masks" / way / "manifest.json"
        assert json.loads(made.read_text())["options"]["mirror"] is (way == "on")
        report = json.loads((tmp_path / "out" / "reports" / "default" / way / "summary.json").read_text())
        (mean,) = [row for row in rows if (row["mirroring"], row["class"]) == (way, "mean")]
        assert (mean["dice"], mean["hd95"]) == (report["mean"]["dice"], report["mean"]["hd95_mm"])
        assert mean["seconds"] > 0
    with (tmp_path / "out" / "mirroring.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "seconds a case: off" in (tmp_path / "out" / "mirroring.md").read_text()
    assert Image.open(tmp_path / "out" / "panels.png").size[0] > 1000


def test_other_methods_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, phantom in enumerate(make("fundus", 2, size=32)):
        for name, array in (("images", phantom.image[0]), ("masks", phantom.labels[0])):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.squeeze().astype(np.uint8)).save(tmp_path / "data" / name / f"{number}.png")
    data, boxes = tmp_path / "data", tmp_path / "run"
    assert run("train", "prompted", data, "-o", boxes, "--preset", "box", "--backbone", "tiny") == 0
    capsys.readouterr()
    for name, message in (("prompts", "makes no prompts of its own"), ("mirroring", "sees slices")):
        assert run("experiment", name, data, "--run", boxes, "-o", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_from_the_truth_are_nothing_to_show(trained: Path) -> None:
    method = samsans.load(trained, device="cpu").method
    method.generator = None
    with pytest.raises(InputError, match=r"from the true masks.*generated"):
        method.explain(Batch(torch.zeros(1, 1, 4, 32, 32), None, ("p",), ("cube", "rod")))
