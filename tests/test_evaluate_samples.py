"""The evaluation of a folder of samples: against numbers by hand, its files, its report, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samsans import io
from samsans.errors import InputError
from samsans.io.samples import map_file, write_beside
from samsans.metrics import ambiguity, evaluate, matching, sampled
from samsans.recipes import PublishedSets, RecipeConfig
from samsans.types import Case, ClassInfo, Progress, Volume

AFFINE = np.diag([0.5, 0.5, 3.0, 1.0])
K = 6


def disc(radius: float, size: int = 24, depth: int = 1) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2 + 0.5
    return np.repeat((np.hypot(rows, columns) < radius)[None], depth, axis=0)


ANNOTATIONS = {
    "p1/a": (6, 7, 8, 8),
    "p1/b": (5, 5, 0, 0),
    "p2/a": (4, 9, 9, 3),
    "p3/a": (0, 0, 0, 0),
    "p4/a": (8, 8, 8, 8),
}
SAMPLES = {
    "p1/a": (6, 7, 8, 8, 7, 6),
    "p1/b": (5, 0, 5, 5, 0, 5),
    "p2/a": (6, 6, 6, 6, 6, 6),
    "p3/a": (0, 0, 0, 0, 0, 1),
    "p4/a": (8, 8, 8, 8, 8, 8),
}


def masks(radii: tuple[float, ...], depth: int = 1) -> np.ndarray:
    return np.stack([disc(r, depth=depth) for r in radii])


def build(root: Path, ending: str = ".png", depth: int = 1, value: int = 255) -> list[Case]:
    """A folder as ``predict --samples 6 --probabilities`` writes it, and the cases with four annotators each."""
    affine = AFFINE if ending != ".png" else None
    out, cases = root / "out", []
    like = Volume(np.zeros((depth, 24, 24), np.uint8), affine)
    for id, radii in ANNOTATIONS.items():
        truth = masks(radii, depth)
        files = []
        for n, mask in enumerate(truth):
            files.append((root / "data" / f"{id}_{n}{ending}",))
            io.write_labels(files[-1][0], mask.astype(np.uint8) * value, like)
        image = root / "data" / f"{id}{ending}"
        io.write_image(image, (disc(7, depth=depth) * 90 + 60).astype(np.uint8), like)
        cases.append(Case(id, id.split("/", maxsplit=1)[0], (image,), tuple(files)))
        samples = masks(SAMPLES[id], depth).astype(np.uint8)
        output = out / f"{id}{ending}"
        io.write_labels(output, samples[0], like)
        write_beside(output, samples, like)
    manifest = {"options": {"samples": K, "seed": 0}, "cases": {id: {} for id in ANNOTATIONS}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    named = {"classes": [{"name": "nodule", "label": 1, "values": [value]}]}
    (out / "classes.json").write_text(json.dumps(named))
    return cases


def score(out: Path, cases: list[Case], seed: int = 0) -> sampled.Sampled:
    """The samples alone, without a report."""
    nodule = (ClassInfo("nodule", 1, (255,)),)
    pairs = matching.match(out, cases).pairs
    found = sampled.score(sampled.Folder(out, K, nodule), pairs, resamples=0, seed=seed)
    assert found is not None
    return found


def expected(name: str, ids: list[str]) -> float:
    return float(np.mean([getattr(ambiguity.compare(masks(SAMPLES[i]), masks(ANNOTATIONS[i])), name) for i in ids]))


@pytest.mark.parametrize(("ending", "depth"), [(".png", 1), (".nii.gz", 3)])
def test_numbers(tmp_path: Path, ending: str, depth: int) -> None:
    cases = build(tmp_path, ending, depth)
    seen: list[Progress] = []
    summary = evaluate(tmp_path / "out", cases, tmp_path / "report", bootstrap=200, on_progress=seen.append)
    found = summary.ambiguity
    assert found is not None
    assert (found.samples, dict(found.annotators), found.level) == (K, {"4": 5}, "volume")
    ids = {"agreed": ["p1/a", "p2/a", "p4/a"], "dissent": ["p1/b"], "absent": ["p3/a"], "all": list(ANNOTATIONS)}
    assert set(found.groups) == set(ids)
    for group, members in ids.items():
        assert found.groups[group]["images"] == len(members)
        for name in ambiguity.METRICS:
            assert found.groups[group][name] == pytest.approx(expected(name, members))
    low, high = found.groups["all"]["ci"]["ged"]
    assert low <= found.groups["all"]["ged"] <= high
    assert found.groups["dissent"]["ci"]["ged"] is None  # one patient
    low, high = found.groups["all"]["ci"]["ece"]
    assert 0 <= low <= high <= 1
    assert found.groups["all"]["empty_samples"] == pytest.approx(7 / 30)
    assert found.groups["all"]["empty_annotations"] == pytest.approx(6 / 20)
    assert found.probability.startswith("share")
    pooled = sum(
        (ambiguity.reliability(masks(SAMPLES[i]).mean(axis=0), masks(ANNOTATIONS[i])) for i in list(ANNOTATIONS)[1:]),
        ambiguity.reliability(masks(SAMPLES["p1/a"]).mean(axis=0), masks(ANNOTATIONS["p1/a"])),
    )
    assert found.groups["all"]["ece"] == pytest.approx(pooled.error)
    assert [row["id"] for row in found.cases] == sorted(ANNOTATIONS)
    assert summary.n == 5
    assert not summary.skipped["predictions_without_reference"]
    assert [p.done for p in seen] == [1, 2, 3, 4, 5] * 2


def test_trivial_answers(tmp_path: Path) -> None:
    cases = build(tmp_path)
    found = score(tmp_path / "out", cases)
    wanted: dict[str, list[float]] = {"empty": [], "repeated": []}
    for id, radii in ANNOTATIONS.items():
        wanted["empty"].append(ambiguity.ged(masks((0,) * K), masks(radii)).squared)
        wanted["repeated"].append(ambiguity.ged(masks((SAMPLES[id][0],) * K), masks(radii)).squared)
    for answer, values in wanted.items():
        assert found.trivial[answer]["all"]["ged"] == pytest.approx(np.mean(values))
        assert found.trivial[answer]["all"]["sample_diversity"] == 0
    best = found.trivial["annotators"]
    assert best["absent"]["ged"] == 0
    assert best["all"]["hm_iou"] > found.groups["all"]["hm_iou"]
    again = score(tmp_path / "out", cases[::-1])
    assert again.trivial == found.trivial  # drawn by the name of the image, in whatever order
    other = score(tmp_path / "out", cases, seed=1)
    assert other.trivial["annotators"] != best
    assert other.trivial["empty"] == found.trivial["empty"]


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_mean_probabilities_are_read_where_all_are_there(tmp_path: Path, ending: str) -> None:
    cases = build(tmp_path, ending)
    out = tmp_path / "out"
    for id in ANNOTATIONS:
        path = out / map_file("probabilities", f"{id}{ending}", "nodule")
        soft = np.full((1, 24, 24), 0.25)
        like = Volume(soft, AFFINE if ending != ".png" else None)
        io.write_image(path, (soft * 65535).astype(np.uint16) if ending == ".png" else soft.astype(np.float32), like)
        io.write_image(out / map_file("entropy", f"{id}{ending}", "nodule"), soft.astype(np.uint8), like)
    found = score(out, cases)
    assert found.probability == "mean probability of the samples"
    votes = np.mean([masks(radii).mean() for radii in ANNOTATIONS.values()])
    assert found.groups["all"]["ece"] == pytest.approx(abs(0.25 - votes), abs=1e-4)
    path.unlink()
    assert score(out, cases).probability.startswith("share")


def test_what_is_written(tmp_path: Path) -> None:
    cases = build(tmp_path)
    summary = evaluate(tmp_path / "out", cases, tmp_path / "report", bootstrap=50)
    report = tmp_path / "report"
    assert sorted(p.name for p in report.iterdir()) == ["ambiguity.png", "cases.csv", "report.html", "summary.json"]
    written = json.loads((report / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary.to_dict()))
    assert written["ambiguity"]["samples"] == K
    assert "GED_6" in summary.text()
    assert "agreed: samples" in summary.text()
    lines = summary.text().splitlines()
    nothing = [line for line in lines if line.startswith("  empty")]
    assert summary.ambiguity is not None
    assert len(nothing) == len(summary.ambiguity.groups)
    assert all(line.endswith("   100%") for line in nothing)
    assert max(len(line) for line in lines if "HM-IoU rect (P2SAM-style)" in line) <= 120
    page = (report / "report.html").read_text()
    for part in ("Samples against annotators", "GED_6", "P2SAM-style", "reliability-", "Annotators and samples"):
        assert part in page
    assert "&lt;svg" not in page
    assert "&lt;table" not in page
    evaluate(tmp_path / "out", cases, tmp_path / "again", bootstrap=50)
    assert page == (tmp_path / "again" / "report.html").read_text()


def test_by_slice(tmp_path: Path) -> None:
    cases = build(tmp_path, ".nii.gz", depth=3)
    found = evaluate(tmp_path / "out", cases, tmp_path / "report", convention="per_slice", bootstrap=0).ambiguity
    assert found is not None
    assert (found.level, found.groups["all"]["images"]) == ("slice", 15)
    assert found.groups["all"]["ged"] == pytest.approx(expected("ged", list(ANNOTATIONS)))
    assert [row["slice"] for row in found.cases[:3]] == [0, 1, 2]


def test_several_annotators_in_one_mask(tmp_path: Path) -> None:
    """Nested readings of one file: core 1, core and rim 1 and 2; also masks read by a threshold."""
    nested, soft = [], []
    for case in build(tmp_path)[:1]:
        inner, outer = disc(4), disc(7)
        io.write_labels(case.labels[0][0], np.where(inner, 1, 2 * outer).astype(np.uint8))
        nested.append(Case(case.id, case.patient, case.images, case.labels[:1] * 2, answers=((1,), (1, 2))))
        soft.append(Case(case.id, case.patient, case.images, case.labels[:2], threshold=1))
    named = {"classes": [{"name": "object", "label": 1, "values": [1]}]}
    (tmp_path / "out" / "classes.json").write_text(json.dumps(named))
    summary = evaluate(tmp_path / "out", nested, tmp_path / "report", bootstrap=0)
    assert summary.ambiguity is not None
    assert dict(summary.ambiguity.annotators) == {"2": 1}
    wanted = ambiguity.compare(masks(SAMPLES["p1/a"]), masks((4, 7)))
    assert summary.ambiguity.groups["all"]["ged"] == pytest.approx(wanted.ged)
    assert summary.cases[0]["reference_voxels"] == disc(4).sum()
    ring = evaluate(tmp_path / "out", soft, tmp_path / "report", bootstrap=0)
    assert ring.cases[0]["reference_voxels"] == disc(7).sum() - disc(4).sum()
    assert ring.ambiguity is not None
    wanted = ambiguity.compare(masks(SAMPLES["p1/a"]), np.stack([disc(7) & ~disc(4), disc(7)]))
    assert ring.ambiguity.groups["all"]["ged"] == pytest.approx(wanted.ged)


def test_published_rows_stand_beside(tmp_path: Path) -> None:
    recipe = RecipeConfig(
        name="p2sam_lidc",
        sets=[PublishedSets("Table 2", "P2SAM", {"GED_16": 0.218, "Dmax": 0.933}, "the best pair")],
    )
    summary = evaluate(tmp_path / "out", build(tmp_path), tmp_path / "report", recipe=recipe, bootstrap=0)
    assert "published: P2SAM: GED_16 0.218, Dmax 0.933 (Table 2) the best pair" in summary.text()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Published, for orientation" in page
    assert "<td>0.933</td>" in page


def test_without_samples_or_annotators(tmp_path: Path) -> None:
    cases = build(tmp_path)
    single = [Case(c.id, c.patient, c.images, c.labels[:1]) for c in cases]
    summary = evaluate(tmp_path / "out", single, tmp_path / "report")
    assert summary.ambiguity is None
    assert any("no case has several annotators" in note for note in summary.notes)
    mixed = evaluate(tmp_path / "out", [*cases[:4], single[4]], tmp_path / "report").ambiguity
    assert mixed is not None
    assert (mixed.groups["all"]["images"], mixed.left_out) == (4, ["p4/a"])
    (tmp_path / "out" / "manifest.json").unlink()
    assert evaluate(tmp_path / "out", cases, tmp_path / "report").ambiguity is None


def test_sample_files_are_no_predictions(tmp_path: Path) -> None:
    cases = build(tmp_path)
    matched = matching.match(tmp_path / "out", cases)
    assert matched.skipped["predictions_without_reference"] == []
    files = [(path,) for path in sorted((tmp_path / "data").rglob("*_0.png"))]
    named = Case("p1/a_sample00", "p1", (), (files[0],))  # a case of its own
    assert [p.case.id for p in matching.match(tmp_path / "out", [*cases, named]).pairs][:2] == ["p1/a", "p1/a_sample00"]


def test_refused(tmp_path: Path) -> None:
    cases = build(tmp_path)
    (tmp_path / "out" / "p2" / "a_sample03.png").unlink()
    with pytest.raises(InputError, match="a_sample03"):
        evaluate(tmp_path / "out", cases, tmp_path / "report")
    assert not (tmp_path / "report").exists()
    named = [{"name": "nodule", "label": 1, "values": [255]}, {"name": "rim", "label": 2, "values": [254]}]
    (tmp_path / "out" / "classes.json").write_text(json.dumps({"classes": named}))
    with pytest.raises(InputError, match="one object"):
        evaluate(tmp_path / "out", cases, tmp_path / "report")
