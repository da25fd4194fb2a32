"""One image at a time: arrays, files and volumes; every form of supports; draws, tasks and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samsans import config as configuration
from samsans import io, methods
from samsans.data.classes import write_classes
from samsans.errors import InputError
from samsans.inference import Segmenter, load, supports
from samsans.methods.weights import save_weights
from samsans.types import ClassInfo, Volume
from threshold_method import DISC_CUP, Threshold, dice, picture, run_config, segmenter, write_pictures, write_run

PAIR = [picture(100)]


def test_array_to_label_map_on_its_own_grid() -> None:
    image, mask = picture(1)
    made = segmenter(size=64).predict(image, PAIR, probabilities=True)
    assert made.labels.shape == (1, 40, 48)
    assert made.labels.dtype == np.uint8
    assert [c.name for c in made.classes] == ["disc", "cup"]
    assert dice(made.labels[0] > 0, mask > 0) > 0.93
    assert dice(made.labels[0] == 2, mask == 2) > 0.9
    assert made.probabilities is not None
    assert made.probabilities.shape == (2, 1, 40, 48)
    assert made.probabilities.dtype == np.float16
    assert np.array_equal(made.labels[0] == 2, made.probabilities[1, 0] > 0.5)
    assert {"read", "model", "decode", "restore"} <= set(made.seconds)


def test_grey_colour_and_volume_arrays_agree() -> None:
    image, _ = picture(1)
    model = segmenter()
    colour = model.predict(image, PAIR).labels
    assert np.array_equal(model.predict(image[..., 0], PAIR).labels, colour)
    assert np.array_equal(model.predict(image[..., :1], PAIR).labels, colour)
    stack = np.repeat(image[None], 5, axis=0)
    made = model.predict(stack, PAIR, spacing=(3, 1, 1))
    assert made.volume is not None
    assert made.volume.spacing == (3, 1, 1)
    assert np.array_equal(made.labels, np.repeat(colour, 5, axis=0))


def test_padding_gives_the_same_object_as_squashing() -> None:
    image, mask = picture(1, 40, 72)
    config = run_config()
    config.backbone.resize = "pad"
    model = Segmenter(Threshold(72), config, DISC_CUP, device="cpu")
    labels = model.predict(image, PAIR).labels[0]
    assert np.array_equal(labels, mask)


def test_batches_do_not_change_the_result(tmp_path: Path) -> None:
    volume = np.stack([picture(i)[0][..., 0] for i in range(7)])
    one, many = (segmenter().predict(volume, PAIR, batch_size=n) for n in (1, 4))
    assert np.array_equal(one.labels, many.labels)
    model = segmenter()
    model.predict(volume, PAIR, batch_size=3)
    assert [size for size, _ in model.method.batches] == [3, 3, 1]


def head(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A NIfTI volume ``(i, j, k)`` with unlike axes, oblique affine, and its mask."""
    rng = np.random.default_rng(0)
    i, j, k = np.mgrid[:30, :26, :9]
    mask = (((i - 12) / 8) ** 2 + ((j - 15) / 6) ** 2 + ((k - 4) / 3) ** 2 < 1).astype(np.uint8)
    mask[14:19, 12:15, 4:6] = 2
    image = np.array([-100, 300, 900], np.int16)[mask] + rng.integers(-9, 9, mask.shape).astype(np.int16)
    turn, _ = np.linalg.qr(np.eye(3) + 0.1 * rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) @ np.diag([1.0, 1.2, 4.0])
    affine[:3, 3] = [-40.5, 13.25, 7.125]
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "head.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "mask.nii.gz")
    return tmp_path / "head.nii.gz", image, mask


def test_volume_with_permuted_and_flipped_axes_gives_the_same_label_map(tmp_path: Path) -> None:
    path, _, mask = head(tmp_path)
    support = [(path, tmp_path / "mask.nii.gz")]
    model = segmenter()
    straight = model.predict(path, support)
    straight.save(tmp_path / "straight.nii.gz")
    want = np.asarray(nibabel.load(tmp_path / "straight.nii.gz").dataobj)
    assert dice(want > 0, mask > 0) > 0.8
    turns = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
    for axes, signs in turns[1::5]:
        to = np.column_stack([axes, signs])
        turned = nibabel.load(path).as_reoriented(to)
        nibabel.save(turned, tmp_path / "turned.nii.gz")
        model.predict(tmp_path / "turned.nii.gz", support).save(tmp_path / "out.nii.gz")
        out = nibabel.load(tmp_path / "out.nii.gz")
        assert np.array_equal(out.affine, nibabel.load(tmp_path / "turned.nii.gz").affine)
        turned_map = nibabel.orientations.apply_orientation(want, to)
        assert np.array_equal(np.asarray(out.dataobj), turned_map), (axes, signs)


def test_oblique_geometry_is_kept_bit_for_bit(tmp_path: Path) -> None:
    path, _, _ = head(tmp_path)
    segmenter().predict(path, [(path, tmp_path / "mask.nii.gz")]).save(tmp_path / "out.nii.gz")
    a, b = nibabel.load(path).header, nibabel.load(tmp_path / "out.nii.gz").header
    for name in ("srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "pixdim", "quatern_b", "qoffset_x"):
        assert a[name].tobytes() == b[name].tobytes(), name


def test_volume_is_never_held_as_floats() -> None:
    import tracemalloc

    volume = np.zeros((160, 96, 96), np.uint8)
    volume[:, 20:60, 20:60] = 200
    classes = tuple(ClassInfo(f"object_{n}", n, (n,)) for n in range(1, 9))
    mask = np.zeros((40, 48), np.uint8)
    mask[:8] = np.arange(48) // 6 + 1
    model = segmenter(classes)
    support = model.encode_support([(picture(0)[0], mask)])
    tracemalloc.start()
    model.predict(volume[..., None], support, batch_size=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(size for size, _ in model.method.batches) == 4
    assert peak < 8 * volume.nbytes  # 8 objects in float32 would be 32 times the volume


def test_supports_in_every_form_mean_the_same(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "support", 1)
    image, mask = data / "images/c0.png", data / "labels/c0.png"
    (tmp_path / "pairs.csv").write_text(f"image,label\n{image},{mask}\n")
    target, _ = picture(1)
    model = segmenter()
    want = model.predict(target, [picture(0)]).labels
    assert want.any()
    bank = model.encode_support([(image, mask)])
    volumes = [(io.read_image(image), io.read_labels(mask))]
    forms = [
        (image, mask),
        [(str(image), str(mask))],
        f"{image}:{mask}",
        [f"{image}:{mask}"],
        data,
        str(data),
        [str(data)],
    ]
    for form in (*forms, tmp_path / "pairs.csv", volumes, bank):
        assert np.array_equal(model.predict(target, form).labels, want), form


def test_pairs_are_cut_at_the_last_colon_that_leaves_two_files(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    for name in ("i.png", "m.png", "a:b/i.png", "a:b/m:1.png"):
        (tmp_path / name).touch()
    for image, mask in itertools.product(("i.png", "a:b/i.png"), ("m.png", "a:b/m:1.png")):
        assert supports.split_pair(f"{tmp_path}/{image}:{tmp_path}/{mask}") == (tmp_path / image, tmp_path / mask)
    with pytest.raises(InputError, match="both there"):
        supports.split_pair(f"{tmp_path}/i.png:{tmp_path}/none.png")


def test_windows_drive_letters_are_no_separators(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"C:/a/i.png", "D:/m.png"}
    monkeypatch.setattr(Path, "exists", lambda self: str(self) in there)
    assert supports.split_pair("C:/a/i.png:D:/m.png") == (Path("C:/a/i.png"), Path("D:/m.png"))


def test_mask_values_name_the_objects() -> None:
    image, mask = picture(0)
    target, truth = picture(1)
    model = segmenter()
    only_cup = model.predict(target, [(image, np.where(mask == 2, 2, 0).astype(np.uint8))])
    assert [(c.name, c.label) for c in only_cup.classes] == [("disc", 1), ("cup", 2)]  # value 2 belongs to both
    new = model.predict(target, [(image, np.where(mask == 2, 7, 0).astype(np.uint8))])
    assert [(c.name, c.label) for c in new.classes] == [("object_7", 3)]
    assert dice(new.labels[0] == 3, truth == 2) > 0.8
    binary = model.predict(target, [(image, mask == 2)])
    assert [c.name for c in binary.classes] == ["disc"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({0, 1}, ["disc"]),
        ({0, 2}, ["disc", "cup"]),
        ({0, 1, 2, 5}, ["disc", "cup", "object_5"]),
        ({0, 255}, ["object_255"]),
        (set(range(0, 256, 5)), ["foreground"]),
    ],
)
def test_objects_in_mask_values(values: set[int], names: list[str]) -> None:
    found = supports.objects_in(values, DISC_CUP)
    assert [c.name for c in found] == names
    assert len({c.label for c in found}) == len(found)


def test_grey_masks_are_the_one_known_object() -> None:
    known = (ClassInfo("polyp", 1, (255,)),)
    (found,) = supports.objects_in(set(range(0, 256, 3)), known)
    assert (found.name, found.label, found.values) == ("polyp", 1, tuple(range(128, 256)))


def test_folder_that_names_its_objects_keeps_the_names(tmp_path: Path) -> None:
    image, mask = picture(0)
    for folder, array in (("imagesTr", image), ("labelsTr", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "c0.png")
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "kidney": 1, "cup": 2}}')
    made = segmenter().predict(picture(1)[0], tmp_path)
    assert [(c.name, c.label) for c in made.classes] == [("kidney", 3), ("cup", 2)]


def test_wanted_objects_only() -> None:
    image, _ = picture(1)
    made = segmenter().predict(image, PAIR, objects=["cup"], probabilities=True)
    assert [c.name for c in made.classes] == ["cup"]
    assert set(np.unique(made.labels)) == {0, 2}
    assert made.probabilities is not None
    assert len(made.probabilities) == 1
    with pytest.raises(InputError, match="nose"):
        segmenter().predict(image, PAIR, objects=["nose"])


def test_volume_supports_give_slices_that_show_the_object(tmp_path: Path) -> None:
    path, _, mask = head(tmp_path)
    bank = segmenter(k_test=3).encode_support([(path, tmp_path / "mask.nii.gz")])
    numbers = [int(id.partition("#")[2]) for id in bank.ids]
    shown = np.flatnonzero(mask.any((0, 1)))
    assert len(numbers) == 3
    assert set(numbers) <= set(shown.tolist())
    assert max(numbers) - min(numbers) >= len(shown) // 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), unique=True, min_size=1), st.integers(1, 20))
def test_even_choice(found: list[int], count: int) -> None:
    chosen = supports.evenly(np.array(sorted(found)), count)
    assert len(chosen) == min(count, len(found))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 99), st.text(max_size=8))
def test_draw_depends_on_seed_and_id_alone(count: int, k: int, seed: int, target: str) -> None:
    ids = [f"id{i}" for i in range(count)]
    drawn = supports.draw(ids, k, seed, target, leave_out_own=False)
    assert drawn == supports.draw(ids, k, seed, target, leave_out_own=False)
    assert len(drawn) == min(k, count)
    assert drawn == tuple(sorted(set(drawn)))
    assert all(0 <= i < count for i in drawn)


def test_draws_differ_between_images_and_seeds() -> None:
    ids = [f"c{i}" for i in range(16)]
    by_image = {supports.draw(ids, 8, 0, f"t{i}", leave_out_own=True) for i in range(20)}
    by_seed = {supports.draw(ids, 8, i, "t", leave_out_own=True) for i in range(20)}
    assert len(by_image) == len(by_seed) == 20
    assert all(3 not in supports.draw(ids, 8, i, "c3", leave_out_own=True) for i in range(20))
    assert supports.draw(["a#000", "a#001"], 1, 0, "a", leave_out_own=True) in ((0,), (1,))


def test_own_training_pairs_are_encoded_once_and_outlive_the_data(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 5)
    run = write_run(tmp_path / "run", ["c0", "c1", "c2"])
    target, _ = picture(4)
    first = Segmenter(Threshold(), run_config(data), DISC_CUP, run=run, device="cpu")
    made = first.predict(target).labels
    assert made.any()
    assert set(first.method.batches[0][1]) == {"c0", "c1", "c2"}
    shutil.rmtree(data)
    again = Segmenter(Threshold(), run_config(data), DISC_CUP, run=run, device="cpu")
    assert np.array_equal(again.predict(target).labels, made)
    stale = Segmenter(Threshold(weights="others"), run_config(data), DISC_CUP, run=run, device="cpu")
    with pytest.raises(InputError, match="training images are not at"):
        stale.predict(target)


def test_stale_training_bank_is_made_anew(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 5)
    run = write_run(tmp_path / "run", ["c0", "c1"])
    for weights in ("one", "two"):
        model = Segmenter(Threshold(weights=weights), run_config(data), DISC_CUP, run=run, device="cpu")
        assert model.supports(None, None).bank.weights == weights
    from samsans.data.splits import Split

    Split(("c3",)).save(run / "split.json")
    assert model.supports(None, None).bank.ids == ("c3",)


def test_training_image_is_not_its_own_support(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", ["c0", "c1", "c2"])
    model = Segmenter(Threshold(), run_config(data), DISC_CUP, run=run, device="cpu")
    model.predict(data / "images/c1.png")
    assert sorted(model.method.batches[-1][1]) == ["c0", "c2"]


def test_no_supports_and_no_run_is_an_error() -> None:
    with pytest.raises(InputError, match="no support pairs"):
        segmenter().predict(picture(0)[0])


def test_named_tasks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["c0"])
    model = segmenter(run=run)
    image, mask = picture(0)
    model.encode_support([(image, np.where(mask == 2, 7, 0))], name="cups only")
    assert model.tasks == ("cups only",)
    made = segmenter(run=run).predict(picture(1)[0], task="cups only")
    assert [c.name for c in made.classes] == ["object_7"]
    assert made.labels.any()
    with pytest.raises(InputError, match="one of cups only"):
        model.predict(image, task="other")
    with pytest.raises(InputError, match="another name"):
        model.encode_support(PAIR, name="train")
    with pytest.raises(InputError, match="task name"):
        model.encode_support(PAIR, name="../escape")
    with pytest.raises(InputError, match="one of the two"):
        model.predict(image, PAIR, task="cups only")


def test_bank_of_other_weights_is_refused() -> None:
    bank = segmenter(weights="these").encode_support(PAIR)
    with pytest.raises(InputError, match="made by weights these"):
        segmenter(weights="those").predict(picture(1)[0], bank)


def test_bad_supports_are_named(tmp_path: Path) -> None:
    image, mask = picture(0)
    model = segmenter()
    cases = {
        "size": [(image, mask[:-1])],
        "shows none": [(image, mask), (image, np.zeros_like(mask))],
        "whole numbers": [(image, mask.astype(float))],
        "parts": [(image, mask, mask)],
        "int": 3,
    }
    for text, given_support in cases.items():
        with pytest.raises(InputError, match=text):
            model.predict(image, given_support)
    with pytest.raises(InputError, match="no image with a mask"):
        model.predict(image, write_pictures(tmp_path / "unlabelled", 2, labels=False))


def test_unusable_images_are_named() -> None:
    model = segmenter()
    with pytest.raises(InputError, match="shape"):
        model.predict(np.zeros((2, 3, 4, 5, 6)), PAIR)
    with pytest.raises(InputError, match="4 channels"):
        model.predict(np.zeros((1, 9, 9, 4), np.uint8), PAIR)
    with pytest.raises(InputError, match="does not exist"):
        model.predict("nowhere.png", PAIR)
    with pytest.raises(InputError, match="spacing"):
        model.predict(np.zeros((3, 9, 9)), PAIR, spacing=(1, 0, 1))
    with pytest.raises(InputError, match="needs no prompt"):
        model.predict(picture(0)[0], PAIR, labels=picture(0)[1])


def test_unusable_options_are_named() -> None:
    for options, text in (({"device": "abacus"}, "abacus"), ({"precision": "fp8"}, "fp8")):
        with pytest.raises(InputError, match=text):
            Segmenter(Threshold(), run_config(), DISC_CUP, **{"device": "cpu", **options})  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            Segmenter(Threshold(), run_config(), DISC_CUP, device="cuda")


# -- real methods on a tiny backbone ----------------------------------------------------------------------------------


def tiny(method: str, data: Path, **more: object) -> configuration.RunConfig:
    values = {"backbone.name": "tiny", "data.path": str(data), **more}
    return configuration.from_dict(values, method=method, preset=None)


PROXY = {"model.csm.encoder.depth": 1, "model.csm.encoder.dim": 32, "model.ccm.ffn": 32, "model.k_test": 2}


@pytest.fixture(scope="module")
def proxy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run folder of Proxy Prompt (untrained) and its data set."""
    folder = tmp_path_factory.mktemp("proxy")
    data = write_pictures(folder / "data", 4)
    run = write_run(folder / "run", ["c0", "c1", "c2"])
    config = tiny("proxy_prompt", data, **PROXY)
    (run / "config.yaml").write_text(configuration.dump(config))
    (run / "model").mkdir()
    save_weights(methods.build(config, ["disc", "cup"]), run / "model" / "last.safetensors")
    return run, data


def test_proxy_prompt_needs_no_labels_of_the_target(proxy_run: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = proxy_run
    model = load(run, device="cpu")
    support = [(data / "images/c0.png", data / "labels/c0.png")]
    lonely = tmp_path / "alone" / "c3.png"
    lonely.parent.mkdir()
    shutil.copy(data / "images/c3.png", lonely)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["c3.png"]
    made = model.predict(lonely, support)
    assert made.labels.shape == (1, 40, 48)
    assert {"encode", "prompt", "decode"} <= set(made.seconds)
    again = load(run, device="cpu").predict(lonely, support, probabilities=True)
    assert np.array_equal(again.labels, made.labels)
    assert again.probabilities is not None
    assert len(np.unique(again.probabilities)) > 100


def test_proxy_prompt_bank_is_kept_and_refuses_other_weights(proxy_run: tuple[Path, Path]) -> None:
    run, data = proxy_run
    model = load(run, device="cpu", checkpoint="last")
    before = model.predict(data / "images/c3.png").labels
    assert (run / "tasks/train.safetensors").is_file()
    assert np.array_equal(load(run, device="cpu").predict(data / "images/c3.png").labels, before)
    model.method._fingerprint = "0" * 64
    del model.banks.__dict__["fingerprint"]
    with pytest.raises(InputError, match="loaded weights"):
        model.predict(data / "images/c3.png", task="train")


def test_bf16_is_close_to_fp32(proxy_run: tuple[Path, Path]) -> None:
    run, data = proxy_run
    support = [(data / "images/c0.png", data / "labels/c0.png")]
    a, b = (
        load(run, device="cpu", precision=p).predict(data / "images/c3.png", support, probabilities=True)  # type: ignore[arg-type]
        for p in ("fp32", "bf16")
    )
    assert np.abs(a.probabilities.astype(float) - b.probabilities).max() < 0.1


def test_loading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.yaml"):
        load(tmp_path)


def test_prompted_baseline_reads_the_truth_and_nothing_else(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 1)
    config = tiny("prompted", data)
    model = Segmenter.from_config(config, DISC_CUP, device="cpu")
    image, mask = data / "images/c0.png", data / "labels/c0.png"
    made = model.predict(image, labels=mask)
    assert made.labels.shape == (1, 40, 48)
    with pytest.raises(InputError, match="no true mask"):
        model.predict(image)
    with pytest.raises(InputError, match="not on the grid"):
        model.predict(image, labels=picture(0)[1][:-1])
    with pytest.raises(InputError, match="supports for prompted"):
        model.predict(image, PAIR, labels=mask)
    blank = model.predict(image, labels=np.zeros((40, 48), np.uint8))
    assert not blank.labels.any()


def test_run_of_a_prompted_baseline_holds_no_weights(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 1)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(configuration.dump(tiny("prompted", data)))
    write_classes(run / "classes.json", DISC_CUP)
    model = load(run, device="cpu")
    assert model.weights_hash == ""
    assert model.predict(*PAIR[0][:1], labels=PAIR[0][1]).labels.shape == (1, 40, 48)


def test_volume_header_is_kept_in_the_prediction(tmp_path: Path) -> None:
    path, _, _ = head(tmp_path)
    volume = io.read_image(path)
    made = segmenter().predict(volume, [(path, tmp_path / "mask.nii.gz")])
    assert made.volume is volume
    bare = dataclasses.replace(volume, affine=None, header=None)
    assert isinstance(segmenter().predict(bare, PAIR).volume, Volume)
