"""What the distillation of points does for a trained SPD: the analyses of the paper's supplement on a run of one's own.

Slices are judged on the square that the model sees.  Every slice is encoded once, then only points change: how many
neighbours take part, what the saliency must exceed, whose points they are, and which decoder they are shown to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samsans import io
from samsans.data.classes import class_masks
from samsans.data.points import of_volume
from samsans.data.prompt_statistics import statistics
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.distillation_report import draw, markdown, text
from samsans.experiments.latency import SLICES, latency
from samsans.inference.points import PointJob
from samsans.inference.prompts import choose
from samsans.inference.slices import SliceJob, autocast
from samsans.methods.spd.cpd import distil
from samsans.methods.spd.saliency import enlarged, interpolated, sigmoid
from samsans.metrics.conventions import CONVENTIONS, Score, score
from samsans.metrics.robustness import prompt_reliance
from samsans.metrics.slicewise import Slicewise, diagonal, over_slices, over_volumes
from samsans.types import Embedding

if TYPE_CHECKING:
    from samsans.inference import Segmenter

NEIGHBOURS = (0, 1, 2, 3)
TAUS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COMPARED = (0.3, 0.8)  # thresholds between which the paper claims that the prompts hardly change
SOURCES = ("given", "consensus", "oracle", "random")
BINS = tuple(round(0.1 * k, 1) for k in range(11))
SHOWN = ("volumetric_dice", "dice", "dice_present", "false_positives", "coverage")

Rows = list[np.ndarray]


@dataclass
class Scene:
    """One volume on the square that the model sees.

    features, plain: ``(T, C, g, g)`` of the run's encoder and of SAM's own.  logits: ``(T, 4g, 4g)`` of the saliency.
    points: of each slice ``(K, 3)``, as given.  mask: ``(T, h, w)`` bool, without padding.  scores: what was decoded.
    """

    job: PointJob
    features: Tensor
    plain: Tensor
    logits: np.ndarray
    points: Rows
    mask: np.ndarray
    scores: dict[Any, Score] = field(default_factory=dict)


def distillation(asked: Request, prompt_noise: str | None = None) -> str:
    """Analyse the prompts of the run's held-out cases; writes ``distillation.json``, ``.md`` and ``.png``.

    The points are those of files, where the data set has any, else simulated with the level of the run, or of
    ``prompt_noise``; the seed is the draw of the noise.

    - ``neighbours``: n in 0..3; ``tau``: thresholds from 0.05 to 0.9, with the Jaccard overlap of the consensus sets
      between 0.3 and 0.8; ``histogram``: shares of all pixels by their saliency.
    - ``stage1``: Dice of the saliency as a mask, its recall, and its size in sizes of the object.
    - ``sources``: points as given, consensus, oracle (those on the object alone), and as many random ones as the
      consensus from the salient region, in the run's decoder and in frozen SAM of the same backbone;
      ``prompt_reliance``: volumetric Dice of the run with the consensus less that with the random ones.
    - ``latency``: plain SAM with the consensus points, and SPD with and without what it keeps on disk.

    Returns:
        The tables as text.

    Raises:
        InputError: the run is no SPD with a prior, or holds nobody out.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    if not getattr(segmenter.method, "frozen_prior", False):
        raise InputError(f"{segmenter.config.method} distils no points", "a run of spd, model.distill local or context")
    if asked.convention != "default":
        raise InputError(f"convention {asked.convention} for slices", "none: slices are scored by spd's own")
    plain = _plain(segmenter)
    config, method = segmenter.config.model, segmenter.method
    dataset = asked.find(segmenter.classes)
    prompting, dataset = choose(segmenter.config.prompts, dataset, None, prompt_noise, None, asked.seed)
    cases = asked.held_out(dataset)
    volumes: dict[tuple[str, Any], list[tuple[Slicewise, Any]]] = {}
    overlaps: list[tuple[int, int]] = []
    counts = np.zeros(len(BINS) - 1, np.int64)
    prior: list[Any] = []
    timed: list[tuple[PointJob, Rows]] = []
    for done, case in enumerate(cases):
        job = segmenter.open(case.id, dataset.read_image(case), None, ())
        assert isinstance(job, SliceJob)
        given = prompting.prompt(dataset, case, job, segmenter.preprocess, segmenter.classes, False)
        truth = segmenter.preprocess.sample(job.orientation.to_slices(dataset.read_labels(case).array))
        mask = np.stack([class_masks(values, segmenter.classes).any(0) for values in truth])
        scene = _look(segmenter, plain, given, mask)
        sets = {tau: _consensus(scene, config, method, tau=tau) for tau in TAUS}
        for n in NEIGHBOURS:
            rows = _consensus(scene, config, method, neighbours=n)
            volumes.setdefault(("neighbours", n), []).append(_decoded(segmenter, scene, rows))
        for tau in TAUS:
            volumes.setdefault(("tau", tau), []).append(_decoded(segmenter, scene, sets[tau]))
        for name, rows in _sources(scene, config, method, asked.seed).items():
            for where, sam in (("run", None), ("frozen", plain)):
                volumes.setdefault(("sources", f"{name} {where}"), []).append(_decoded(segmenter, scene, rows, sam))
        overlaps.append(_shared(*(sets[tau] for tau in COMPARED)))
        maps = _maps(scene, method.backbone.input_size)
        counts += np.histogram(maps, BINS)[0]
        prior.append(_prior(maps > config.tau, scene.mask))
        if sum(len(rows) > 0 for _, points in timed for rows in points) < SLICES:
            timed.append((scene.job, _consensus(scene, config, method)))
        asked.tell(done + 1, len(cases), case.id)
    found = {
        "run": str(asked.run_folder),
        "cases": [case.id for case in cases],
        "prompts": prompting.options,
        "tau_of_run": config.tau,
        "neighbours_of_run": config.neighbours,
        "neighbours": _table(volumes, "neighbours"),
        "tau": _table(volumes, "tau"),
        "jaccard": {"between": list(COMPARED), "overlap": _jaccard(overlaps)},
        "histogram": {"edges": list(BINS), "pixels": counts.tolist(), "shares": (counts / counts.sum()).tolist()},
        "stage1": _stage1(prior),
        "sources": _table(volumes, "sources"),
        "prompt_reliance": prompt_reliance(*(_dice(volumes["sources", f"{n} run"]) for n in ("consensus", "random"))),
        "frozen_is_random": plain.method.backbone.from_scratch,
        "latency": latency(segmenter, plain, timed),
    }
    io.write_json(asked.out / "distillation.json", found)
    io.write_text(asked.out / "distillation.md", markdown(found))
    with io.atomic_path(asked.out / "distillation.png") as temporary:
        temporary.write_bytes(draw(found))
    return text(found)


def _plain(segmenter: Segmenter) -> Any:
    """Frozen SAM of the run's backbone, prompted with points as they are, with SAM's own normalisation (D6)."""
    from samsans import config as configuration
    from samsans.inference import Segmenter as Opened

    backbone = replace(segmenter.config.backbone, train="none", statistics="sam")
    preset = configuration.from_dict({}, method="prompted", preset="given_point")
    config = replace(preset, backbone=backbone, data=segmenter.config.data, seed=segmenter.config.seed)
    return Opened.from_config(config, segmenter.classes, device=segmenter.device, precision=segmenter.precision)


def _look(segmenter: Segmenter, plain: Any, job: PointJob, mask: np.ndarray) -> Scene:
    """Encode every slice of a volume once by the run and once by plain SAM, and judge it."""
    features, others, logits = [], [], []
    for index in range(job.depth):
        images = []
        for preprocess in (segmenter.preprocess, plain.preprocess):
            images.append(_image(preprocess, job, index).to(segmenter.device))
        with autocast(segmenter.device, segmenter.precision), torch.inference_mode():
            features.append(segmenter.method.features(images[0]))
            logits.append(segmenter.method.judge(features[-1]).float().cpu().numpy())
            others.append(plain.method.backbone.encode(images[1]).features)
    return Scene(job, torch.cat(features), torch.cat(others), np.concatenate(logits), job.points, mask)


def _image(preprocess: Preprocess, job: SliceJob, index: int) -> Tensor:
    """``(1, 3, S, S)``: a slice as the network sees it."""
    picture = job.slices[index]
    valid = torch.tensor([preprocess.valid(*picture.shape[:2])], dtype=torch.int64)
    return preprocess.normalize(preprocess.image(picture, job.levels)[None], valid)


def _consensus(scene: Scene, config: Any, method: Any, tau: float | None = None, neighbours: int | None = None) -> Rows:
    """The consensus of every slice as the run distils it, but for a threshold or a number of neighbours."""
    own = config.neighbours if config.distill == "context" else 0
    found = distil(
        enlarged(scene.logits, method.backbone.input_size),
        scene.points,
        tau=config.tau if tau is None else tau,
        neighbours=own if neighbours is None else neighbours,
        cap=config.cap,
        rejected_as_negative=config.rejected_as_negative,
    )
    return [part.points for part in found]


def _sources(scene: Scene, config: Any, method: Any, seed: int) -> dict[str, Rows]:
    """Points of every slice by whose they are."""
    consensus = _consensus(scene, config, method)
    maps = _maps(scene, method.backbone.input_size) > config.tau
    oracle, drawn = [], []
    rng = np.random.default_rng([seed, 0xD157])
    for t, rows in enumerate(scene.points):
        x, y = (np.clip(np.rint(rows[:, axis]), 0, scene.mask.shape[2 - axis] - 1).astype(int) for axis in (0, 1))
        oracle.append(rows[(rows[:, 2] == 1) & scene.mask[t, y, x]])
        salient = np.argwhere(maps[t])
        count = min(len(consensus[t]), len(salient))
        chosen = salient[rng.choice(len(salient), count, replace=False)] if count else np.zeros((0, 2))
        drawn.append(np.column_stack([chosen[:, 1], chosen[:, 0], np.ones(count)]))
    return dict(zip(SOURCES, (list(scene.points), consensus, oracle, drawn), strict=True))


def _maps(scene: Scene, side: int) -> np.ndarray:
    """``(T, h, w)`` float64: the saliency of every pixel that is image."""
    h, w = scene.mask.shape[1:]
    row, column = np.indices((h, w)).reshape(2, -1)
    return np.stack([sigmoid(interpolated(one, row, column, side)).reshape(h, w) for one in scene.logits])


def _decoded(segmenter: Segmenter, scene: Scene, points: Rows, plain: Any = None) -> tuple[Slicewise, Any]:
    """How a volume scores with these points, and how good they are; a slice is decoded once with the same points."""
    scores = []
    for t, rows in enumerate(points):
        key = (t, plain is None, rows.tobytes())
        if key not in scene.scores:
            found = _mask(segmenter, scene, t, rows, plain)
            scene.scores[key] = score(found, scene.mask[t], (1.0, 1.0), CONVENTIONS["spd"])
        scores.append(scene.scores[key])
    told = statistics(of_volume(points), scene.mask)
    return Slicewise.of(scores, diagonal(scene.mask.shape[1:], (1.0, 1.0))), told


def _mask(segmenter: Segmenter, scene: Scene, t: int, rows: np.ndarray, plain: Any) -> np.ndarray:
    h, w = scene.mask.shape[1:]
    if not (rows[:, 2] == 1).any():
        return np.zeros((h, w), bool)
    method = segmenter.method if plain is None else plain.method
    shown = torch.from_numpy(np.asarray(rows)).to(segmenter.device, torch.float32)[None]
    features = (scene.features if plain is None else scene.plain)[t : t + 1]
    with autocast(segmenter.device, segmenter.precision), torch.inference_mode():
        index = torch.zeros(1, dtype=torch.int64, device=segmenter.device)
        backbone = method.backbone
        prompt = backbone.embed_prompts(index, points=shown[..., :2], point_labels=shown[..., 2].long())
        small = backbone.decode(Embedding(features), prompt).logits.float()
    side = backbone.input_size
    large = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)[0, 0]
    return (large[:h, :w] > 0).cpu().numpy()


def _shared(first: Rows, second: Rows) -> tuple[int, int]:
    """Points in both of two consensus sets of a volume, and in either."""
    a, b = ({(t, *point) for t, rows in enumerate(part) for point in rows[:, :2].tolist()} for part in (first, second))
    return len(a & b), len(a | b)


def _jaccard(overlaps: Sequence[tuple[int, int]]) -> float | None:
    both, either = np.sum(overlaps, axis=0)
    return float(both / either) if either else None


def _prior(region: np.ndarray, mask: np.ndarray) -> tuple[Slicewise, int, int, int]:
    """The saliency above tau as a mask: its scores; pixels in it, of the object, and of both."""
    scores = [score(p, r, (1.0, 1.0), CONVENTIONS["spd"]) for p, r in zip(region, mask, strict=True)]
    sliced = Slicewise.of(scores, diagonal(mask.shape[1:], (1.0, 1.0)))
    return sliced, int(region.sum()), int(mask.sum()), int((region & mask).sum())


def _stage1(prior: Sequence[tuple[Slicewise, int, int, int]]) -> dict[str, float | None]:
    volumes = [part[0] for part in prior]
    region, target, both = (sum(sizes) for sizes in zip(*(part[1:] for part in prior), strict=True))
    found = over_slices(volumes) | {"volumetric_dice": over_volumes(volumes)["volumetric_dice"]}
    sizes = {"recall": both / target if target else None, "area_ratio": region / target if target else None}
    return {key: found[key] for key in SHOWN} | sizes


def _dice(parts: Sequence[tuple[Slicewise, Any]]) -> list[float]:
    return [sliced.volumetric_dice for sliced, _ in parts]


def _table(volumes: Mapping[tuple[str, Any], list[tuple[Slicewise, Any]]], kind: str) -> list[dict[str, Any]]:
    """A row for every value of a sweep: scores, and how good the points were."""
    rows = []
    for (what, value), parts in volumes.items():
        if what != kind:
            continue
        sliced = [part[0] for part in parts]
        told = sum((part[1] for part in parts[1:]), parts[0][1])
        found = over_slices(sliced) | {"volumetric_dice": over_volumes(sliced)["volumetric_dice"]}
        shares = {name: getattr(told, name) for name in ("on_target_share", "reached_share", "misled_share")}
        shares["points_per_slice"] = told.points_per_slice
        plain = {name: None if np.isnan(share) else float(share) for name, share in shares.items()}
        rows.append({kind: value} | {key: found[key] for key in SHOWN} | plain)
    return rows
