"""Samples: draws by slice alone, their maps on the grid of the input, their files, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import samsans
from sampling_method import LESION, levels, segmenter, slope
from samsans import cli, io, methods
from samsans import config as configuration
from samsans.data.classes import write_classes
from samsans.errors import InputError
from samsans.inference import Manifest
from samsans.inference import samples as drawing
from samsans.inference.samples import bits, seed_of
from samsans.methods.weights import save_weights
from threshold_method import DISC_CUP
from threshold_method import segmenter as without_samples

MADE = {"classes.json", "config.yaml", "manifest.json"}


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(slope(seed, 20 + seed, 24)).save(folder / name)
    return folder


# -- one image --------------------------------------------------------------------------------------------------------


def test_samples_their_mean_and_its_entropy() -> None:
    image = slope(1, 24, 24)  # the method's own size
    made = segmenter().predict(image, samples=5)
    logits = 20 * (image / 255 - levels("image", 5)[:, None, None])
    assert made.samples is not None
    assert made.probabilities is not None
    assert made.entropy is not None
    assert (made.samples.shape, made.samples.dtype) == ((5, 1, 24, 24), np.uint8)
    assert (made.entropy.shape, made.entropy.dtype) == (made.probabilities.shape, np.float16)
    np.testing.assert_array_equal(made.samples[:, 0], 3 * (logits > 0))
    np.testing.assert_array_equal(made.labels[0], 3 * (image > 127.5))  # of the mean prompt
    mean = (1 / (1 + np.exp(-logits))).mean(0)
    np.testing.assert_allclose(made.probabilities[0, 0], mean, atol=1e-3)
    entropy = -(mean * np.log2(mean) + (1 - mean) * np.log2(1 - mean))
    np.testing.assert_allclose(made.entropy[0, 0], entropy, atol=2e-3)
    assert len(np.unique(made.samples.reshape(5, -1), axis=0)) > 2


def test_without_samples_there_is_the_mean_prompt_alone() -> None:
    model = segmenter()
    alone, both = model.predict(slope(1), probabilities=True), model.predict(slope(1), samples=2)
    assert alone.samples is None
    assert alone.entropy is None
    np.testing.assert_array_equal(alone.labels, both.labels)
    assert not np.array_equal(alone.probabilities, both.probabilities)
    assert len(model.method.batches) == 1


def test_entropy_in_bits() -> None:
    p = torch.tensor([0.0, 0.5, 1.0, 0.25])
    quarter = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    torch.testing.assert_close(bits(p), torch.tensor([0.0, 1.0, 0.0, quarter]))


def test_seed_of_a_slice() -> None:
    digest = hashlib.sha256(b"7:sub/case#003").hexdigest()
    assert seed_of(7, "sub/case#003") == int(digest[:16], 16) >> 1
    names = [f"case#{n:03d}" for n in range(500)]
    seeds = {seed_of(seed, name) for seed in (0, 1) for name in names}
    assert len(seeds) == 1000
    assert 0 <= min(seeds) <= max(seeds) < 2**63
    assert max(seeds) > 2**62


def test_few_draws_are_the_first_of_many_and_seeds_differ() -> None:
    model = segmenter()
    many, few, other = (model.predict(slope(0), samples=k, seed=s).samples for k, s in ((8, 0), (3, 0), (8, 1)))
    assert many is not None
    assert few is not None
    assert other is not None
    np.testing.assert_array_equal(many[:3], few)
    assert not np.array_equal(many, other)


def test_slices_come_to_their_own_size_before_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    image = slope(2, 45, 60)
    model = segmenter()
    whole = model.predict(image, samples=6)
    monkeypatch.setattr(drawing, "NATIVE_PIXELS", 2 * image.size)  # two draws at a time
    parts = model.predict(image, samples=6)
    assert whole.samples is not None
    assert parts.samples is not None
    np.testing.assert_array_equal(whole.samples, parts.samples)
    np.testing.assert_allclose(whole.probabilities, parts.probabilities, atol=1e-3)
    mean = model.predict(image, probabilities=True)
    at_half = np.flatnonzero(levels("image", 6) < 0.5)
    assert all((whole.samples[k] >= mean.labels).all() for k in at_half)
    assert len(np.unique(whole.samples[0, 0, :, 30:].sum(0))) > 1  # finer than the 24 columns of the model


def test_largest_component_of_every_sample() -> None:
    image = np.zeros((24, 24), np.uint8)
    image[2:8, 2:8], image[12:22, 12:22] = 200, 255
    made = segmenter().predict(image, samples=4, largest_component=True)
    plain = segmenter().predict(image, samples=4)
    assert made.samples is not None
    assert plain.samples is not None
    assert not made.samples[:, 0, 2:8, 2:8].any()
    assert plain.samples[:, 0, 2:8, 2:8].any()
    np.testing.assert_array_equal(made.samples[:, :, 10:], plain.samples[:, :, 10:])
    np.testing.assert_array_equal(made.probabilities, plain.probabilities)


def test_what_cannot_be_asked_for() -> None:
    model = segmenter()
    for options, said in (({"samples": -1}, "at least 1"), ({"samples": 2, "view": "other"}, "of the view 'other'")):
        with pytest.raises(InputError, match=said):
            model.predict(slope(0), **options)
    with pytest.raises(InputError, match="4 samples of threshold"):
        without_samples().predict(slope(0), [(slope(0), (slope(0) > 90).astype(np.uint8))], samples=4)
    with pytest.raises(InputError, match="4 samples of 2 objects"):
        segmenter(classes=DISC_CUP).predict(slope(0), samples=4, objects=["cup"])


def test_memory_of_samples() -> None:
    depth, side, count = 40, 64, 8
    volume = np.broadcast_to(slope(0, side, side), (depth, side, side)).copy()
    model = segmenter(size=side)
    tracemalloc.start()
    made = model.predict(volume[..., None], samples=count, batch_size=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.samples is not None
    assert peak < (count + 16) * volume.nbytes  # in float16 the samples alone would take 2 * count


# -- geometry and company ---------------------------------------------------------------------------------------------


def oblique(folder: Path) -> Path:
    """``head.nii.gz`` with unlike axes and an oblique affine."""
    array = np.stack([slope(k, 18, 15) for k in range(5)], -1).astype(np.int16)
    turn, _ = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(0).standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) @ np.diag([1.0, 1.2, 4.0])
    affine[:3, 3] = [-40.5, 13.25, 7.125]
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / "head.nii.gz")
    return folder / "head.nii.gz"


def test_oblique_and_permuted_grids(tmp_path: Path) -> None:
    path = oblique(tmp_path / "in")
    model = segmenter()
    model.predict_folder([path], tmp_path / "out", samples=3)
    names = ("head.nii.gz", "head_samples.nii.gz", "probabilities/head_lesion.nii.gz", "entropy/head_lesion.nii.gz")
    assert files(tmp_path / "out") == MADE | set(names)
    straight = [nibabel.load(tmp_path / "out" / name) for name in names]
    assert [image.shape for image in straight] == [(18, 15, 5), (18, 15, 5, 3), (18, 15, 5), (18, 15, 5)]
    assert straight[1].get_data_dtype() == np.uint8
    source = nibabel.load(path).header
    for image in straight:
        for name in ("srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "quatern_b", "qoffset_x"):
            assert source[name].tobytes() == image.header[name].tobytes(), name
    draws = np.asarray(straight[1].dataobj)
    assert len(np.unique(draws.reshape(-1, 3).T, axis=0)) == 3
    turns = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
    for number, (axes, signs) in enumerate(turns[3::9]):
        to, folder = np.column_stack([axes, signs]), tmp_path / f"turn{number}"
        folder.mkdir()
        nibabel.save(nibabel.load(path).as_reoriented(to), folder / "head.nii.gz")
        model.predict_folder([folder / "head.nii.gz"], folder / "out", samples=3)
        for name, want in zip(names, straight, strict=True):
            found = nibabel.load(folder / "out" / name)
            np.testing.assert_allclose(found.affine, nibabel.load(folder / "head.nii.gz").affine, atol=1e-5)
            turned = nibabel.orientations.apply_orientation(np.asarray(want.dataobj), to)
            np.testing.assert_array_equal(np.asarray(found.dataobj), turned)


def test_draws_do_not_depend_on_batch_order_or_company(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", "a.png", "b.png", "c.png", "sub/d.png")
    Image.fromarray(slope(9)).save(data / "e.png")
    written = {}
    paths = sorted(data.glob("*.png"))
    for name, inputs, size in (("all", data, 3), ("ones", data, 1), ("some", paths[::-2], 2)):
        model = segmenter()
        model.predict_folder(inputs, tmp_path / name, samples=4, batch_size=size)
        written[name] = {f: (tmp_path / name / f).read_bytes() for f in files(tmp_path / name) - MADE}
    assert written["all"] == written["ones"]
    assert len(written["all"]) == 5 * (1 + 4 + 2)
    assert {f.split("/")[-1].split("_")[0] for f in written["some"]} == {"e.png", "b.png", "e", "b"}
    assert all(written["all"][file] == content for file, content in written["some"].items())
    sample = io.read_labels(tmp_path / "all/sub/d_sample02.png").array
    logits = 20 * (slope(3, 23, 24) / 255 - levels("sub/d", 4)[2])
    assert np.mean((logits > 0) == (sample[0] > 0)) > 0.97  # seen at 24 x 24 pixels


# -- folders ----------------------------------------------------------------------------------------------------------


def test_files_of_pictures_and_manifest(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", "x.png")
    segmenter().predict_folder(data, tmp_path / "out", samples=2, seed=7)
    want = {"x_sample00.png", "x_sample01.png", "probabilities/x_lesion.png", "entropy/x_lesion.png"}
    assert files(tmp_path / "out") == {"x.png"} | want | MADE
    told = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (told["options"]["samples"], told["options"]["seed"]) == (2, 7)
    assert set(told["cases"]["x"]["beside"]) == want
    made = segmenter().predict(data / "x.png", samples=2, seed=7)
    assert made.samples is not None
    assert made.entropy is not None
    with Image.open(tmp_path / "out/x_sample01.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), made.samples[1, 0])
    with Image.open(tmp_path / "out/entropy/x_lesion.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.rint(made.entropy[0, 0].astype(np.float32) * 65535))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".tif"])
def test_samples_of_other_volumes(tmp_path: Path, ending: str) -> None:
    volume = np.stack([slope(k) for k in range(3)])
    affine = np.array([[0, 0, 3, 1], [0, 2, 0, 5], [-1.0, 0, 0, 9], [0, 0, 0, 1]])
    like = samsans.Volume(volume[..., None], None if ending == ".tif" else affine)
    path = io.write_image(tmp_path / f"v{ending}", volume, like)
    model = segmenter(slice_axis="0")
    model.predict_folder([path], tmp_path / "out", samples=2)
    made = model.predict(path, samples=2)
    assert made.samples is not None
    for number, sample in enumerate(made.samples):
        found = io.read_labels(tmp_path / f"out/v_sample{number:02d}{ending}")
        np.testing.assert_array_equal(found.array, sample)
        assert found.affine is None if ending == ".tif" else np.allclose(found.affine, affine)
    assert (tmp_path / f"out/entropy/v_lesion{ending}").is_file()


def test_a_case_is_done_when_all_its_files_are_there(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", "a.png", "b.png", "c.png")
    segmenter().predict_folder(data, tmp_path / "out", samples=2)
    before = {f: (tmp_path / "out" / f).read_bytes() for f in files(tmp_path / "out") - MADE}
    (tmp_path / "out/a_sample01.png").unlink()
    (tmp_path / "out/entropy/b_lesion.png").unlink()
    model = segmenter()
    assert model.predict_folder(data, tmp_path / "out", samples=2).skipped == ("c",)
    assert [name for ids in model.method.batches for name in ids] == ["a", "b"]
    assert before == {f: (tmp_path / "out" / f).read_bytes() for f in files(tmp_path / "out") - MADE}
    for options in ({"samples": 3}, {"samples": 0}, {"samples": 2, "seed": 5}):
        with pytest.raises(InputError, match="other weights, supports or options"):
            segmenter().predict_folder(data, tmp_path / "out", **options)


def test_overwriting_leaves_no_sample_of_before(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", "a.png")
    out = tmp_path / "out"
    segmenter().predict_folder(data, out, samples=4)
    (out / "a_sample99.png").write_bytes(b"of somebody else")
    segmenter().predict_folder(data, out, samples=2, overwrite=True)
    soft = {"probabilities/a_lesion.png", "entropy/a_lesion.png"}
    samples = {"a_sample00.png", "a_sample01.png"}
    assert files(out) == {"a.png", "a_sample99.png"} | samples | soft | MADE
    told = json.loads((out / "manifest.json").read_text())
    told["cases"]["a"]["beside"].append("../in/a.png")
    (out / "manifest.json").write_text(json.dumps(told))
    segmenter().predict_folder(data, out, overwrite=True)
    assert files(out) == {"a.png", "a_sample99.png"} | MADE
    assert (data / "a.png").is_file()
    (out / "manifest.json").write_text("damaged")
    assert not segmenter().predict_folder(data, out, overwrite=True).failures


def test_inputs_named_like_samples(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", "a_sample00.png", "a_sample01.png")
    segmenter().predict_folder(data, tmp_path / "out", samples=2)  # no case is called a
    assert "a_sample01_sample00.png" in files(tmp_path / "out")
    pictures(data, "a.png")
    assert len(segmenter().predict_folder(data, tmp_path / "plain").outputs) == 3
    with pytest.raises(InputError, match=r"both be written to a_sample00\.png"):
        segmenter().predict_folder(data, tmp_path / "both", samples=2)
    assert not (tmp_path / "both").exists()


def test_a_file_that_cannot_be_written_leaves_no_label_map(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "out/a_sample01.png/in the way").mkdir(parents=True)
    manifest = segmenter().predict_folder(data, tmp_path / "out", samples=2, overwrite=True)
    assert set(manifest.failures) == {"a"}
    assert set(Manifest.load(tmp_path / "out").records) == {"b"}
    assert not (tmp_path / "out/a.png").exists()


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained runs of each method that draws samples, and of one that does not."""
    folder = tmp_path_factory.mktemp("runs")
    for name, told in (
        ("prob_unet", {"backbone.input_size": 32, "model.widths": [8, 16], "model.latent": 3}),
        ("p2sam", {"backbone.name": "tiny", "backbone.input_size": 64}),
        ("autosam", {"backbone.name": "tiny", "backbone.input_size": 64}),
    ):
        config = configuration.from_dict(told, method=name, preset="scratch" if name == "prob_unet" else "paper")
        method = methods.build(config, ["lesion"])
        if name == "p2sam":
            method.begin(method.stages(config)[1], augmented=False)
        (folder / name / "model").mkdir(parents=True)
        (folder / name / "config.yaml").write_text(configuration.dump(config))
        write_classes(folder / name / "classes.json", LESION)
        save_weights(method, folder / name / "model" / "last.safetensors")
    return folder


@pytest.mark.parametrize("name", ["prob_unet", "p2sam"])
def test_from_the_command_line(name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "in", "x.png", "y.png")
    path = oblique(tmp_path / "volumes")
    call = ["predict", str(runs / name), "-i", str(data), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*call, "--samples", "3", "--seed", "7"]) == 0
    made = {f"{case}_sample0{n}.png" for case in "xy" for n in range(3)}
    made |= {f"{kind}/{case}_lesion.png" for case in "xy" for kind in ("probabilities", "entropy")}
    assert files(tmp_path / "out") == {"x.png", "y.png"} | made | MADE
    assert cli.main([*call, "--samples", "3", "--seed", "7"]) == 0
    assert "0 segmented, 2 there already" in capsys.readouterr().out
    samples = samsans.load(runs / name, device="cpu").predict(data / "y.png", samples=3, seed=7).samples
    assert samples is not None
    np.testing.assert_array_equal(samples[1], io.read_labels(tmp_path / "out/y_sample01.png").array)
    assert (
        cli.main(["predict", str(runs / name), "-i", str(path), "-o", str(tmp_path / "nifti"), "--samples", "2"]) == 0
    )
    assert nibabel.load(tmp_path / "nifti/head_samples.nii.gz").shape == (18, 15, 5, 2)


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("prob_unet", "--samples 0", "--samples 0. Expected at least 1"),
        ("prob_unet", "--samples -3", "--samples -3. Expected at least 1"),
        ("prob_unet", "--samples many", "Expected int"),
        ("prob_unet", "--samples 2 --view stage1", "view 'stage1'"),
        ("autosam", "--samples 4", "4 samples of autosam"),
    ],
)
def test_mistakes(
    name: str, option: str, said: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "in", "x.png")
    out = tmp_path / "out"
    assert cli.main(["predict", str(runs / name), "-i", str(data), "-o", str(out), *option.split()]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not out.exists()
