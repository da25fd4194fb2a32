"""A simulator of bad point prompts: a centre line that slips, breaks off, runs too far and strays (decision D1).

    noise = LEVELS["L3"]
    points = simulate(mask, noise, volume="case-17", draw=0)
    statistics(points, mask).on_target_share

Common random numbers: everything drawn has a shape that does not depend on the noise's parameters and comes from a
seed of (volume, draw, process); the parameters only scale or threshold it.  So the slices lost at ``p_miss = 0.2`` are
also lost at 0.4, and curves over a parameter are smooth.  All pixel constants are for slices of 512 px and scaled with
the side of the slices given.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.random import Generator
from scipy import ndimage, signal, special

from samsans.data.clean_points import STEP, Centres, clean_points, find_centres, side_of, volume_of
from samsans.data.prompt_statistics import PromptStatistics, statistics
from samsans.errors import InputError
from samsans.types import Points

__all__ = [
    "AXES",
    "LEVELS",
    "PRESETS",
    "TAGS",
    "Axis",
    "Noise",
    "PromptStatistics",
    "clean_points",
    "simulate",
    "statistics",
]

TAGS = ("clean", "jitter", "drift", "off", "over", "spur", "wrong")
NEAR, FAR = 0.04, 0.15  # of the side: how far from the object off-target points lie
WALK = 0.01  # of the side: step of the random walk of over-run points, per slice
STAY = math.exp(-1 / 3)  # correlation of the missing process from slice to slice
SWAY = 0.8  # correlation of the drift
# One stream of random numbers for each process.  The order is part of the seed: append only.
STREAMS = ("missing", "drift", "jitter", "off", "place", "over", "walk", "spur", "stray", "wrong")


@dataclass(frozen=True)
class Noise:
    """How bad the prompts are.

    s_jit, s_drift: standard deviation of each point's own slip and of the slip all points of a slice share (which
        wanders from slice to slice), in mean inscribed radii of the object.
    p_off: share of points replaced by one on other tissue nearby.
    mode: ``uniform``, any such pixel, or ``hard``, those that look like the object (weight
        ``exp(-(I - mean)^2 / (2 sd^2))``, mean and sd over the object).
    lam_over: mean number of slices that the line runs on, at each end.
    p_miss: share of the object's slices without points, in runs.
    lam_spur: mean number of stray points of a slice.
    density: points clicked in an object slice: the first so many clean ones, or where there are fewer each of them
        again and again, every time with a slip of its own (our decision).  ``None``: each clean point once.
    wrong: all points lie on one other structure, the same in all slices.
    step: px between the points of a long component.  above: ``hard`` takes brighter pixels alone (contrast in vessels).
    """

    s_jit: float = 0.0
    s_drift: float = 0.0
    p_off: float = 0.0
    lam_over: float = 0.0
    p_miss: float = 0.0
    lam_spur: float = 0.0
    mode: Literal["uniform", "hard"] = "uniform"
    density: int | None = None
    wrong: bool = False
    step: float = STEP
    above: float | None = None

    def __post_init__(self) -> None:
        for name in ("s_jit", "s_drift", "lam_over", "lam_spur"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"Prompt noise with {name} = {value}", "a number of at least 0")
        for name in ("p_off", "p_miss"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"Prompt noise with {name} = {getattr(self, name)}", "a share from 0 to 1")
        if self.mode not in ("uniform", "hard"):
            raise InputError(f"Prompt noise of mode {self.mode!r}", "uniform or hard")
        if (self.density is not None and self.density < 1) or not self.step > 0:
            raise InputError(f"Prompt noise with density {self.density} and step {self.step}", "more than 0 of both")


LEVELS: dict[str, Noise] = {
    "L0": Noise(),
    "L1": Noise(s_jit=0.25, s_drift=0.25, p_off=0.05, lam_over=0.5, p_miss=0.10, lam_spur=0.02),
    "L2": Noise(s_jit=0.35, s_drift=0.25, p_off=0.10, lam_over=1.0, p_miss=0.20, lam_spur=0.05),
    "L3": Noise(s_jit=0.50, s_drift=0.35, p_off=0.20, lam_over=2.0, p_miss=0.30, lam_spur=0.10),
    "L4": Noise(s_jit=0.60, s_drift=0.50, p_off=0.30, lam_over=3.0, p_miss=0.50, lam_spur=0.20),
    "L5": Noise(s_jit=0.80, s_drift=0.70, p_off=0.40, lam_over=4.0, p_miss=0.70, lam_spur=0.40),
}

PRESETS: dict[str, Noise] = {
    "scar": replace(LEVELS["L2"], mode="hard", step=12),
    "fumpe": replace(LEVELS["L3"], mode="hard", above=150),  # Hounsfield units: vessels filled with contrast
    "kits": replace(LEVELS["L2"], mode="hard"),
    "ti": replace(LEVELS["L3"], lam_over=4.0),  # only where no real points exist
}


@dataclass(frozen=True)
class Axis:
    """One parameter swept from clean points: ``parameter`` takes the ``levels``, the rest is as in ``base``."""

    letter: str
    parameter: str
    levels: tuple[float, ...]
    base: Noise = LEVELS["L0"]

    def at(self, level: float) -> Noise:
        """The noise at a level."""
        return replace(self.base, **{self.parameter: level})  # type: ignore[arg-type]


SHARES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1)
RADII = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3)
AXES: dict[str, Axis] = {  # H, the composite, is LEVELS
    "jitter": Axis("A", "s_jit", RADII),
    "drift": Axis("B", "s_drift", RADII),
    "off_target": Axis("C", "p_off", SHARES),
    "off_target_hard": Axis("C", "p_off", SHARES, Noise(mode="hard")),
    "missing": Axis("D", "p_miss", (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)),
    "over_run": Axis("E", "lam_over", (0, 1, 2, 4, 8)),
    "spurious": Axis("F", "lam_spur", (0, 0.05, 0.1, 0.2, 0.5, 1, 2)),
    "density": Axis("G", "density", (1, 2, 3, 5, 10), Noise(s_jit=0.5)),
    "wrong_object": Axis("I", "wrong", (False, True)),
}


def simulate(
    mask: np.ndarray,
    noise: Noise,
    *,
    volume: str,
    draw: int,
    image: np.ndarray | None = None,
    body: np.ndarray | None = None,
    distractor: np.ndarray | None = None,
    centres: Centres | None = None,
) -> Points:
    """Noisy centre-line points of the object ``mask`` ``(T, H, W)`` bool; the ``T`` slices lie in canonical order.

    volume, draw: name the random numbers; the same two give the same points.
    image: ``(T, H, W)``, for ``mode="hard"``.  body: ``(T, H, W)`` bool, where off-target and stray points may lie
        (not those that slip or run too far); ``None``: anywhere.
    distractor: ``(M, 3)`` positions ``(z, y, x)`` of another structure, for ``wrong``: the points of each slice move to
        its one there (the nearest of several), and slices without are left out.  ``None``: all points move by one
        displacement that takes them off the object, to a place chosen as off-target points are (our decision).
    centres: what ``find_centres(mask, step=noise.step)`` gives, to save its time where one mask is drawn many times.

    Returns whole-numbered positions inside the image by slice, all labelled 1, without two at one place; the tag says
    what moved a point last: see ``TAGS``.  Where no pixel can take an off-target or stray point, an off-target one
    stays as it was and a stray one is not drawn.

    Raises InputError for shapes that do not agree, a negative ``draw``, or ``mode="hard"`` without an image.
    """
    mask = volume_of(mask)
    if draw < 0:
        raise InputError(f"Draw number {draw} of prompt noise", "0 or more")
    for name, other in (("image", image), ("body mask", body)):
        if other is not None and np.shape(other) != mask.shape:
            raise InputError(f"A mask of shape {mask.shape} and its {name} of {np.shape(other)}", "the same shape")
    if noise.mode == "hard" and image is None:
        raise InputError("Prompt noise of mode hard without an image", "the image that the points are drawn on")
    image = None if image is None else np.asarray(image)
    scene = _Scene(mask, noise, image, None if body is None else np.asarray(body, bool), volume, draw)
    centres = find_centres(mask, step=noise.step) if centres is None else centres
    line = centres.positions.astype(np.float64)
    if noise.wrong:
        line = scene.displaced(line) if distractor is None else _on(distractor, line)
    clicked = _clicks(line, noise.density)
    parts = [scene.corrupted(*clicked, centres.rho), scene.over_run(line), scene.spurious()]
    positions = np.floor(np.concatenate([p for p, _ in parts]) + 0.5).astype(np.int64)
    tags = np.array([tag for _, names in parts for tag in names], dtype=object)
    inside = ((positions >= 0) & (positions < mask.shape)).all(1)
    positions, tags = positions[inside], tags[inside]
    _, first = np.unique(positions, axis=0, return_index=True)
    kept = np.sort(first)
    kept = kept[np.argsort(positions[kept, 0], kind="stable")]
    return Points(positions[kept].astype(np.float64), np.ones(len(kept), np.int64), tuple(tags[kept]))


@dataclass(frozen=True)
class _Scene:
    """What the processes share; each of them gives positions ``(K, 3)`` float64 and their tags."""

    mask: np.ndarray
    noise: Noise
    image: np.ndarray | None
    body: np.ndarray | None
    volume: str
    draw: int

    def stream(self, process: str) -> Generator:
        """The random numbers of a process."""
        words = np.frombuffer(hashlib.sha256(self.volume.encode()).digest(), "<u4")
        return np.random.default_rng([self.draw, STREAMS.index(process), *words.tolist()])

    def corrupted(self, clicks: np.ndarray, rank: np.ndarray, rho: float) -> tuple[np.ndarray, list[str]]:
        """Steps 1 to 4: clicks ``(K, 3)`` lost, drifting, slipping, on other tissue; ``rank``: number in its slice."""
        noise, slices = self.noise, len(self.mask)
        most = int(rank.max(initial=-1)) + 1
        t = clicks[:, 0].astype(np.int64)
        lost = missing(self.stream("missing").standard_normal(slices), noise.p_miss)[t]
        drift = autoregressive(self.stream("drift").standard_normal((slices, 2)), SWAY)[t]
        # by rank first: one more point in some slice leaves all other numbers as they are
        jitter = self.stream("jitter").standard_normal((most, slices, 2))[rank, t]
        off = self.stream("off").random((most, slices))[rank, t] < noise.p_off
        place = self.stream("place").random((most, slices))[rank, t]
        positions = clicks.copy()
        positions[:, 1:] += rho * (noise.s_drift * drift + noise.s_jit * jitter)
        slipped = "jitter" if noise.s_jit > 0 else "drift" if noise.s_drift > 0 else "clean"
        tags = ["wrong" if noise.wrong else slipped] * len(clicks)
        for t_now in np.unique(t[off & ~lost]):
            pixels, power = self.around(int(t_now))
            for k in np.flatnonzero(off & ~lost & (t == t_now)) if len(pixels) else ():
                positions[k, 1:] = pixels[_choose(power, place[k])]
                tags[k] = "off"
        return positions[~lost], [tag for tag, gone in zip(tags, lost, strict=True) if not gone]

    def over_run(self, line: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Step 5: at each end of the line ``(K, 3)`` some slices more, at its last slope and a random walk."""
        chance = self.stream("over").random(2)
        walk = WALK * side_of(self.mask) * np.cumsum(self.stream("walk").standard_normal((2, len(self.mask), 2)), 1)
        slices = np.unique(line[:, 0])
        added = []
        for end, order in enumerate((slices[:3], slices[::-1][:3]) if len(slices) else ()):
            extra = poisson(chance[end], self.noise.lam_over)
            path = [line[line[:, 0] == order[0]][0]]
            for z in order[1:]:
                here = line[line[:, 0] == z]
                path.append(here[np.hypot(*(here - path[-1])[:, 1:].T).argmin()])
            outward = (-1, 1)[end]
            run = path[0][0] - path[-1][0]
            slope = (path[0] - path[-1])[1:] / abs(run) if run else np.zeros(2)
            for k in range(min(extra, len(self.mask))):
                added.append([path[0][0] + outward * (k + 1), *(path[0][1:] + slope * (k + 1) + walk[end, k])])
        return np.array(added, np.float64).reshape(-1, 3), ["over"] * len(added)

    def spurious(self) -> tuple[np.ndarray, list[str]]:
        """Step 6: stray points of every slice, anywhere in the body but on the object."""
        chance = self.stream("spur").random(len(self.mask))
        counts = [poisson(u, self.noise.lam_spur) for u in chance]
        place = self.stream("stray").random((max(counts, default=0), len(self.mask)))
        added = []
        for t in np.flatnonzero(counts):
            free = np.flatnonzero(~self.mask[t] if self.body is None else self.body[t] & ~self.mask[t])
            for k in range(counts[t] if len(free) else 0):
                added.append([t, *divmod(free[int(place[k, t] * len(free))], self.mask.shape[2])])
        return np.array(added, np.float64).reshape(-1, 3), ["spur"] * len(added)

    def around(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels ``(M, 2)`` = (y, x) near the object of slice ``t``, row by row, and logarithms of their weights."""
        mask, side = self.mask[t], side_of(self.mask)
        if not mask.any():
            return np.zeros((0, 2), np.int64), np.zeros(0)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        reach = math.ceil(FAR * side) + 1
        top, left = max(0, rows[0] - reach), max(0, columns[0] - reach)
        box = slice(top, rows[-1] + reach + 1), slice(left, columns[-1] + reach + 1)
        distance = ndimage.distance_transform_edt(~mask[box])
        near = (distance >= NEAR * side) & (distance <= FAR * side)
        if self.body is not None:
            near &= self.body[t][box]
        pixels = np.argwhere(near) + np.array((top, left))
        if self.noise.mode == "uniform":
            return pixels, np.zeros(len(pixels))
        assert self.image is not None  # asked for on the way in
        values = self.image[t][tuple(pixels.T)].astype(np.float64)
        if self.noise.above is not None:
            pixels, values = pixels[values > self.noise.above], values[values > self.noise.above]
        mean, spread = self.looks
        return pixels, -((values - mean) ** 2) / (2 * max(spread, 1e-6) ** 2)

    @cached_property
    def looks(self) -> tuple[float, float]:
        """Mean and standard deviation of the image over the object."""
        assert self.image is not None
        inside = self.image[self.mask].astype(np.float64)
        return float(inside.mean()), float(inside.std())

    def displaced(self, line: np.ndarray) -> np.ndarray:
        """All points ``(K, 3)`` moved alike: in the middle slice to a pixel near the object, in none on to it."""
        if not len(line):
            return line
        slices = np.unique(line[:, 0])
        middle = line[line[:, 0] == slices[len(slices) // 2]][0]
        pixels, power = self.around(int(middle[0]))
        if not len(pixels):
            return line
        moved = line[:, None, 1:] + (pixels - middle[1:])
        size = np.array(self.mask.shape[1:])
        outside = ((moved < 0) | (moved >= size)).any(2)
        y, x = np.clip(moved, 0, size - 1).astype(np.int64).transpose(2, 0, 1)
        bad = (outside | self.mask[line[:, :1].astype(np.int64), y, x]).sum(0)
        best = bad == bad.min()
        chosen = pixels[best][_choose(power[best], self.stream("wrong").random())]
        return line + np.array([0, *(chosen - middle[1:])])


def _on(distractor: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Points ``(K, 3)`` moved to the nearest position of a distractor ``(M, 3)`` in their slice, if there is one."""
    distractor = np.asarray(distractor, np.float64).reshape(-1, 3)
    moved = []
    for point in line:
        here = distractor[np.rint(distractor[:, 0]) == point[0]]
        if len(here):
            moved.append([point[0], *here[np.hypot(*(here - point)[:, 1:].T).argmin(), 1:]])
    return np.array(moved, np.float64).reshape(-1, 3)


def _clicks(line: np.ndarray, density: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Clicks ``(K, 3)`` on the points of a line ``(., 3)``, ``density`` in each slice, and the number of each there."""
    clicks, rank = [], []
    for z in np.unique(line[:, 0]):
        here = line[line[:, 0] == z]
        count = len(here) if density is None else density
        clicks.append(here[np.arange(count) % len(here)])
        rank.append(np.arange(count))
    if not clicks:
        return line, np.zeros(0, np.int64)
    return np.concatenate(clicks), np.concatenate(rank)


def _choose(power: np.ndarray, u: float) -> int:
    """Index drawn with weights ``exp(power)`` by the inverse of their distribution at ``u`` in [0, 1)."""
    total = np.cumsum(np.exp(power - power.max()))
    return int(min(np.searchsorted(total, u * total[-1], side="right"), len(power) - 1))


def autoregressive(normals: np.ndarray, stay: float) -> np.ndarray:
    """``z_t = a z_{t-1} + sqrt(1 - a^2) e_t`` along the first axis, from normal ``e``: unit variance at all times."""
    scaled = math.sqrt(1 - stay**2) * normals
    scaled[:1] = normals[:1]
    return signal.lfilter([1.0], [1.0, -stay], scaled, axis=0)


def missing(normals: np.ndarray, share: float) -> np.ndarray:
    """Which slices ``(T,)`` lose their points: a latent that lingers, below the quantile of ``share``."""
    return autoregressive(normals, STAY) < special.ndtri(share)


def poisson(u: float, mean: float) -> int:
    """Poisson number at ``u`` in [0, 1): the inverse of its distribution; it never falls when ``mean`` rises."""
    if mean <= 0:
        return 0
    return int(np.searchsorted(special.pdtr(np.arange(int(mean + 12 * math.sqrt(mean)) + 40), mean), u, side="left"))
