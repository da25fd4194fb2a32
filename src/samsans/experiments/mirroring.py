"""What the mean over eight mirrorings of every window (test-time augmentation) gains, and what it costs."""

from __future__ import annotations

from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.answers import side_by_side


def mirroring(asked: Request) -> str:
    """Segment a run's held-out volumes without and with mirroring; files as in ``side_by_side``.

    Writes ``mirroring.csv``, ``mirroring.json``, ``mirroring.md``, ``panels.png``, ``masks/off``, ``masks/on`` and
    ``reports/CONVENTION/off``, ``.../on``.

    Raises:
        InputError: the method sees slices, or the run holds nobody out.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    if not segmenter.method.needs.volumes:
        method = segmenter.config.method
        raise InputError(f"{method} sees slices and has no windows to mirror", "a method that sees volumes: masksam")
    switch = {"off": {"mirror": False}, "on": {"mirror": True}}
    own = "on" if segmenter.config.patches.mirror else "off"
    return side_by_side("mirroring", "mirroring", switch, own, segmenter, asked)
