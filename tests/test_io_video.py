"""Videos: frames and their numbers, random access, bounded memory, what is written, videos in data sets."""

from __future__ import annotations

import builtins
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from data_files import picture, png, square
from samsans.config import DataConfig
from samsans.data.cases import find_cases, require_same_grid
from samsans.data.check import check
from samsans.errors import InputError
from samsans.io import open_video, read_labels, stem
from samsans.io.overlay import overlay, paint
from samsans.io.video import frame_numbers
from samsans.io.video_dicom import MPEG, Parts
from samsans.io.video_file import write_mp4
from samsans.io.video_output import LabelFrames, write_overlay
from samsans.metrics import pictures
from samsans.palette import color
from samsans.types import ClassInfo

CLASSES = (ClassInfo("glottis", 1, (3,)), ClassInfo("tool", 2, (5,)))
SIZE = (48, 64)


def needs_av() -> Any:
    return pytest.importorskip("av", reason="PyAV is not installed: pip install samsans[video]")


def grey(number: int) -> np.ndarray:
    """A frame by whose brightness its number is told, with a moving bar."""
    frame = np.full((*SIZE, 3), 10 + 4 * number, np.uint8)
    frame[:, number % 60 : number % 60 + 3] = 255
    return frame


def number_of(frame: np.ndarray) -> int:
    return round((float(np.median(frame)) - 9) / 4)  # encoders darken by a level or two


def encode(path: Path, count: int = 60, codec: str = "libx264", stamps: list[int] | None = None) -> Path:
    av = needs_av()
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20, options={"g": "12", "bf": "2"} if codec == "libx264" else {})
        stream.height, stream.width = SIZE
        stream.bit_rate = 4_000_000
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(grey(i), "rgb24")
            if stamps is not None:
                frame.pts = stamps[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_folder(folder: Path, numbers: list[int], pattern: str = "frame_{:04d}.png") -> Path:
    for number in numbers:
        png(folder / pattern.format(number), picture(number, (12, 16, 3)))
    return folder


def multi_frame(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """``(F, H, W)`` or ``(F, H, W, 3)`` as a DICOM file of several frames."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = (
        UltrasoundMultiFrameImageStorage,
        generate_uid(),
        generate_uid(),
    )
    ds.NumberOfFrames, ds.Rows, ds.Columns = pixels.shape[:3]
    ds.SamplesPerPixel = pixels.shape[3] if pixels.ndim == 4 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 4 else "MONOCHROME2"
    ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    ds.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


# -- reading ------------------------------------------------------------------------------------------------------


def test_pictures_keep_their_numbers_and_gaps(tmp_path: Path) -> None:
    folder = frames_folder(tmp_path / "seq", [89, 9, 10, 170])
    video = open_video(folder, fps=25)
    assert list(video.numbers) == [9, 10, 89, 170]
    assert (video.count, video.size, video.fps) == (4, (12, 16), 25)
    assert [f.number for f in video] == [9, 10, 89, 170]
    for number, image in video:
        assert np.array_equal(image, picture(number, (12, 16, 3)))
    assert [f.number for f in video.frames(11)] == [89, 170]
    assert (video.name(89), video.seconds(89)) == ("frame_0089", 89 / 25)
    assert open_video(folder).seconds(89) is None
    with pytest.raises(InputError, match=r"no frame 11.*numbered 9 to 170"):
        video.frame(11)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["12", "3"], [12, 3]),
        (["frame_0001", "frame_0010"], [1, 10]),
        (["0001_l", "0003_l"], [1, 3]),
        (["p2_7_v1", "p2_8_v1"], [7, 8]),
        (["seq1_001", "seq2_002"], [1, 2]),
        (["a", "b"], None),
        (["1_l", "1_r"], None),
        ([], None),
    ],
)
def test_numbers_are_read_from_names(names: list[str], numbers: list[int] | None) -> None:
    assert frame_numbers(names) == numbers


def test_grey_and_deep_pictures_are_shown_by_levels_of_the_whole_video(tmp_path: Path) -> None:
    for number in range(4):
        png(tmp_path / "deep" / f"{number}.png", np.full((12, 16), 1000 * number, np.uint16))
        png(tmp_path / "grey" / f"{number}.png", np.full((12, 16), 40 * number, np.uint8))
    assert [int(f.image[0, 0, 0]) for f in open_video(tmp_path / "grey")] == [0, 40, 80, 120]
    assert [int(f.image[0, 0, 2]) for f in open_video(tmp_path / "deep")] == [0, 85, 170, 255]
    assert [int(f.image[0, 0, 2]) for f in open_video(tmp_path / "deep", window=(0, 6000))] == [0, 42, 85, 128]


def test_folders_that_are_no_video_say_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_video(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        open_video(tmp_path / "empty")
    png(tmp_path / "stereo" / "1_l.png", picture(0))
    png(tmp_path / "stereo" / "1_r.png", picture(1))
    with pytest.raises(InputError, match="not told apart by a number"):
        open_video(tmp_path / "stereo")
    png(tmp_path / "sizes" / "1.png", picture(0))
    png(tmp_path / "sizes" / "2.png", picture(0, (5, 5)))
    with pytest.raises(InputError, match=r"2\.png has the size \(5, 5\)"):
        list(open_video(tmp_path / "sizes"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"ends in \.txt"):
        open_video(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.avi", "mpeg4"), ("a.avi", "mjpeg"), ("a.avi", "libx264")],
)
def test_files_stream_and_are_read_at_random(tmp_path: Path, name: str, codec: str) -> None:
    path = encode(tmp_path / name, codec=codec)
    with open_video(path) as video:
        assert (video.count, video.size, video.fps) == (60, SIZE, 20)
        frames = list(video)
        assert [f.number for f in frames] == list(range(60))
        assert [number_of(f.image) for f in frames] == list(range(60))
        assert frames[0].image.dtype == np.uint8
        for number in (37, 38, 5, 59, 0, 41):
            assert np.array_equal(video.frame(number), frames[number].image), number
        assert [f.number for f in video.frames(50)] == list(range(50, 60))
        assert list(video.frames(60)) == []
        assert video.name(7) == "000007"
        assert video.seconds(10) == pytest.approx(0.5, abs=0.06 if codec == "libx264" and name == "a.avi" else 1e-6)
        with pytest.raises(InputError, match=r"no frame 60.*counted from 0"):
            video.frame(60)
    assert stem(path) == "a"


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    stamps = [0, 1, 5, 6, 20, 21]
    video = open_video(encode(tmp_path / "a.mp4", 6, stamps=stamps))
    assert [video.seconds(n) for n in range(6)] == pytest.approx([s / 20 for s in stamps])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:600])
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("cut.mp4", "text.mp4"):
        with pytest.raises(InputError, match=name):
            open_video(tmp_path / name)


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    before = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return before(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"samsans\[video\]"):
        open_video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"samsans\[video\]"), write_mp4(tmp_path / "b.mp4", 25, SIZE):
        pass
    assert not (tmp_path / "b.mp4").exists()


def test_dicom_frames(tmp_path: Path) -> None:
    pixels = np.stack([grey(n) for n in range(20)])
    video = open_video(multi_frame(tmp_path / "a.dcm", pixels, FrameTime=40))
    assert (video.count, video.size, video.fps, video.seconds(5)) == (20, SIZE, 25.0, 0.2)
    assert all(np.array_equal(image, pixels[number]) for number, image in video)
    assert [f.number for f in video.frames(17)] == [17, 18, 19]
    assert np.array_equal(video.frame(7), pixels[7])
    deep = np.stack([np.full(SIZE, 100 * n, np.uint16) for n in range(11)])
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    video = open_video(multi_frame(tmp_path / "b.dcm", deep, **tags), window=(-1000, 1000))
    assert [int(f.image[0, 0, 0]) for f in video] == [round(25.5 * n) for n in range(11)]
    assert video.fps is None


def test_mpeg_inside_dicom_is_streamed(tmp_path: Path) -> None:
    stream = encode(tmp_path / "a.mp4", 30).read_bytes()
    pieces = [stream[:1000], stream[1000:]]
    tags = {"PixelData": encapsulate([b"".join(pieces)], fragments_per_frame=3), "NumberOfFrames": 30}
    path = multi_frame(tmp_path / "a.dcm", np.zeros((1, *SIZE, 3), np.uint8))
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = MPEG[2]
    for name, value in tags.items():
        setattr(ds, name, value)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)
    video = open_video(path)
    assert [number_of(f.image) for f in video] == list(range(30))
    assert number_of(video.frame(21)) == 21


def test_parts_of_a_file_are_one_stream(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"..abc...defg.")
    with Parts(tmp_path / "x", [(2, 3), (8, 4)]) as parts:
        assert parts.readall() == b"abcdefg"
        parts.seek(-5, 2)
        assert (parts.read(1), parts.tell()) == (b"c", 3)


MEASURE = """
import re, sys
from samsans.io import open_video
for path in sys.argv[1:]:
    video = open_video(path)
    assert sum(1 for _ in video) == video.count
    video.frame(video.count - 2)
    print(video.count, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """All 150 frames of 240 x 320 would be 35 MB."""
    needs_av()
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory is measured on Linux only")
    frames = [np.full((240, 320, 3), i % 256, np.uint8) for i in range(150)]
    for count in (15, 150):
        with write_mp4(tmp_path / f"{count}.mp4", 25, (240, 320)) as add:
            for i, frame in enumerate(frames[:count]):
                add(frame, i / 25)
                png(tmp_path / str(count) / f"{i}.png", frame)
    paths = [str(tmp_path / name) for name in ("15.mp4", "15", "150.mp4", "150")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    peaks = [(int(n), int(kib)) for n, kib in (line.split() for line in done.stdout.splitlines())]
    print(f"frames, KiB: {peaks}")
    assert [n for n, _ in peaks] == [15, 15, 150, 150]
    assert peaks[-1][1] - peaks[1][1] < 12 * 1024


# -- writing ------------------------------------------------------------------------------------------------------


def test_label_frames_and_their_table(tmp_path: Path) -> None:
    labels = np.zeros((12, 16), np.uint8)
    labels[2:5, 2:6] = 1
    with LabelFrames(tmp_path, "p/seq", CLASSES) as frames:
        frames.write(20, labels, name="frame_0020", seconds=0.8, quality=[0.912345, float("nan")])
        frames.write(3, labels * 2, name="frame_0003", areas=[4, 12])
        assert not (tmp_path / "p/seq.csv").exists()
        table = frames.finish()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [r["frame"] for r in rows] == ["3", "20"]
    assert rows[1] == {
        "frame": "20",
        "file": "p/seq/frame_0020.png",
        "time_s": "0.8000",
        "glottis area_px": "12",
        "glottis present": "1",
        "glottis quality": "0.9123",
        "tool area_px": "0",
        "tool present": "0",
        "tool quality": "",
    }
    assert (rows[0]["glottis area_px"], rows[0]["tool area_px"], rows[0]["time_s"]) == ("4", "12", "")
    assert np.array_equal(read_labels(tmp_path / "p/seq/frame_0003.png").array[0], labels * 2)
    assert sorted(p.name for p in (tmp_path / "p").rglob("*") if p.is_file()) == [
        "frame_0003.png",
        "frame_0020.png",
        "seq.csv",
    ]


def test_half_written_outputs_are_gone_on_with(tmp_path: Path) -> None:
    labels = square(1)
    first = LabelFrames(tmp_path, "v", CLASSES)
    for number in range(4):
        first.write(number, labels, quality=[number / 10, 0])
    first.close()  # as if the process had ended here
    partial = tmp_path / ".v.csv.part"
    partial.write_text(partial.read_text() + "4,v/000004.png,,16,1,0.")  # in the middle of a row
    (tmp_path / "v" / "000002.png").unlink()
    assert not (tmp_path / "v.csv").exists()
    with LabelFrames(tmp_path, "v", CLASSES) as again:
        assert again.done == {0, 1, 3}
        again.write(2, labels * 2)
        again.finish()
    rows = list(csv.DictReader((tmp_path / "v.csv").read_text().splitlines()))
    assert [(r["frame"], r["glottis quality"], r["tool present"]) for r in rows] == [
        ("0", "0.0000", "0"),
        ("1", "0.1000", "0"),
        ("2", "", "1"),
        ("3", "0.3000", "0"),
    ]
    assert not partial.exists()
    with LabelFrames(tmp_path, "v", CLASSES) as done:
        assert done.done == {0, 1, 2, 3}
    with pytest.raises(InputError, match="those of the objects glottis"):
        LabelFrames(tmp_path, "v", CLASSES[:1])
    with LabelFrames(tmp_path, "v", CLASSES[:1], overwrite=True) as other:
        assert not other.done


def test_an_overlay_is_painted_in_one_place() -> None:
    image = picture(0, (300, 320, 3))
    labels = square(2, (300, 320), 100)
    labels[50:120, 40:90] = 1
    labels[60:100, 50:80] = 2
    assert np.array_equal(pictures.overlay(image, labels), paint(image, labels))
    assert np.array_equal(overlay(image, labels), paint(image, labels))
    named = overlay(image, labels, CLASSES)
    assert np.array_equal(named[150:], paint(image, labels)[150:])
    assert not np.array_equal(named[:30, :60], image[:30, :60])
    assert tuple(paint(image, labels)[50, 60]) == color(1)
    assert np.array_equal(paint(image, labels)[200:], image[200:])
    assert overlay(image[:12, :16], labels[:12, :16], CLASSES).shape == (12, 16, 3)
    with pytest.raises(InputError, match="one grid"):
        overlay(image, labels[:10])


def test_overlay_video_keeps_times_and_gaps(tmp_path: Path) -> None:
    needs_av()
    for number in (3, 4, 9):
        png(tmp_path / "seq" / f"{number}.png", np.full((31, 45, 3), 90, np.uint8))
    for number in (3, 9):
        png(tmp_path / "labels" / f"{number}.png", square(1, (31, 45), 10))
    out = write_overlay(open_video(tmp_path / "seq", fps=10), tmp_path / "labels", tmp_path / "seq.mp4")
    made = open_video(out)
    assert (made.count, made.size) == (3, (32, 46))
    assert [made.seconds(n) for n in range(3)] == pytest.approx([0, 0.1, 0.6])
    shown = [f.image.astype(int) for f in made]
    assert np.abs(shown[0][12, 12] - shown[0][2, 2]).max() > 40
    assert np.abs(shown[1][12, 12] - shown[1][2, 2]).max() < 10
    with pytest.raises(InputError, match="has a label map in"):
        write_overlay(open_video(tmp_path / "seq"), tmp_path, tmp_path / "none.mp4")
    png(tmp_path / "labels" / "4.png", square(1))
    with pytest.raises(InputError, match="as the frames"):
        write_overlay(open_video(tmp_path / "seq"), tmp_path / "labels", tmp_path / "none.mp4")
    with pytest.raises(InputError, match=r"a name in \.mp4"):
        write_overlay(open_video(tmp_path / "seq"), {3: tmp_path / "labels/3.png"}, tmp_path / "none.avi")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels", "seq", "seq.mp4"]


# -- in data sets -------------------------------------------------------------------------------------------------


def test_sequence_folders_are_videos(tmp_path: Path) -> None:
    for sequence, numbers in (("p1/seq1", [1, 3, 4]), ("p1/seq2", [7, 9, 12]), ("p2/other", [1, 2])):
        frames_folder(tmp_path / "images" / sequence, numbers, "{:04d}.png")
        for number in numbers[:2]:
            png(tmp_path / "masks" / sequence / f"{number:04d}.png", square(3))
    found = find_cases(DataConfig(path=str(tmp_path)))
    assert len(found.cases) == 8
    assert [(v.id, v.patient, dict(v.frames)) for v in found.videos] == [
        ("p1/seq1", "p1", {1: "p1/seq1/0001", 3: "p1/seq1/0003", 4: "p1/seq1/0004"}),
        ("p1/seq2", "p1", {7: "p1/seq2/0007", 9: "p1/seq2/0009", 12: "p1/seq2/0012"}),
    ]
    video = found.open_video(found.videos[1])
    assert [(f.number, video.name(f.number)) for f in video] == [(7, "0007"), (9, "0009"), (12, "0012")]
    case = found.by_id("p1/seq2/0009")
    assert (case.video, case.frame) == ("p1/seq2", 9)
    assert found.by_id("p2/other/0001").frame is None
    report = check(DataConfig(path=str(tmp_path)))
    assert "2 videos of 6 frames, 4 with a mask" in report.text()
    assert "p1/seq2: 3 frames, numbers 7 to 12 (3 between are missing), 2 with a mask" in report.text()


def test_flat_frames_by_a_pattern(tmp_path: Path) -> None:
    for name in ("a_1", "a_2", "b_1"):
        png(tmp_path / "images" / f"{name}.png", picture(1))
    found = find_cases(DataConfig(path=str(tmp_path), video=r"^(\w)_(\d+)$"))
    assert [(v.id, dict(v.frames)) for v in found.videos] == [("a", {1: "a_1", 2: "a_2"}), ("b", {1: "b_1"})]
    assert [c.patient for c in found.cases] == ["a", "a", "b"]  # frames of a video are never on both sides of a split
    assert not find_cases(DataConfig(path=str(tmp_path))).videos
    for bad, match in ((r"^(\w)_(\d+)x$", "no image is a frame"), (r"(_)(\d)", "more than once"), (r"\d", "2 groups")):
        with pytest.raises(InputError, match=match):
            find_cases(DataConfig(path=str(tmp_path), video=bad))
    with pytest.raises(InputError, match=r"data\.video beside data\.volume"):
        find_cases(DataConfig(path=str(tmp_path), video=r"(a)(b)", volume=r"(a)(b)"))


def test_many_numbered_frames_are_no_channels(tmp_path: Path) -> None:
    frames_folder(tmp_path / "seq", list(range(20)))
    assert len(find_cases(DataConfig(path=str(tmp_path))).cases) == 20


@pytest.mark.parametrize("keys", [{}, {"images": "videos/*.mp4", "labels": "labels/{stem}/*.png"}], ids=["by", "named"])
def test_files_with_label_frames(tmp_path: Path, keys: dict[str, str]) -> None:
    encode(tmp_path / "videos" / "a.mp4", 30)
    encode(tmp_path / "videos" / "b.mp4", 10)
    for number in (4, 17):
        png(tmp_path / "labels" / "a" / f"{number}.png", square(3, SIZE))
    found = find_cases(DataConfig(path=str(tmp_path), **keys))
    assert [(c.id, c.patient, c.video, c.frame) for c in found.cases] == [
        ("a/000004", "a", "a", 4),
        ("a/000017", "a", "a", 17),
    ]
    assert [(v.id, v.path.name, dict(v.frames)) for v in found.videos] == [
        ("a", "a.mp4", {4: "a/000004", 17: "a/000017"}),
        ("b", "b.mp4", {}),
    ]
    case = found.cases[1]
    image, labels = found.read_image(case), found.read_labels(case)
    require_same_grid(case, image, labels)
    assert number_of(image.array[0]) == 17
    assert [f.number for f in found.open_video(found.videos[0])] == list(range(30))
    report = check(DataConfig(path=str(tmp_path), **keys))
    assert report.ok, report.text()
    assert "2 videos of 40 frames, 2 with a mask" in report.text()


def test_other_layouts_of_videos(tmp_path: Path) -> None:
    multi_frame(tmp_path / "one" / "p1" / "images" / "us.dcm", np.stack([grey(n) for n in range(5)]))
    for rater in ("labels_a", "labels_b"):
        png(tmp_path / "one" / "p1" / rater / "us" / "frame_3.png", square(1, SIZE))
    found = find_cases(DataConfig(path=str(tmp_path / "one")))
    assert [(c.id, c.patient, len(c.labels)) for c in found.cases] == [("p1/us/000003", "p1", 2)]
    assert np.array_equal(found.read_image(found.cases[0]).array[0], grey(3))
    encode(tmp_path / "bare" / "a.mp4", 5)
    bare = find_cases(DataConfig(path=str(tmp_path / "bare")))
    assert (len(bare.cases), [v.id for v in bare.videos]) == (0, ["a"])
    assert [v.id for v in find_cases(DataConfig(path=str(tmp_path / "bare" / "a.mp4"))).videos] == ["a"]
    png(tmp_path / "bare" / "images" / "x.png", picture(0))
    png(tmp_path / "bare" / "masks" / "x.png", square())
    still = find_cases(DataConfig(path=str(tmp_path / "bare")))
    assert [c.id for c in still.cases] == ["x"]
    assert any("1 video files are left out" in note for note in still.notes)


def test_a_label_of_no_frame_is_an_error_of_the_report(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", 5)
    png(tmp_path / "labels" / "a" / "5.png", square(3, SIZE))
    report = check(DataConfig(path=str(tmp_path)))
    assert not report.ok
    assert "no frame 5" in report.text()


def test_real_sequences(shared_data: Path) -> None:
    root = shared_data / "vocalfolds_endoscopy"
    found = find_cases(DataConfig(path=str(root)))
    assert {v.id: len(v.frames) for v in found.videos} == {
        f"patient1/seq{i}": n for i, n in zip((1, 2, 3, 4), (32, 34, 26, 66), strict=True)
    }
    video = found.open_video(found.videos[1])
    assert (video.count, video.size, video.numbers[0], video.name(89)) == (34, (256, 256), 89, "0089")
    with Image.open(root / "all256/img/patient1/seq2/0170.jpg") as image:
        assert np.array_equal(video.frame(170), np.asarray(image))
