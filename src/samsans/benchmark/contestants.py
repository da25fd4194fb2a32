"""Who takes part in a benchmark: methods under the names of the table, with what sets each apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samsans import zoo
from samsans.data.prompt_noise import LEVELS
from samsans.errors import InputError


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    method, preset, options: of its training; without a preset the one that suits the backbone.
    prompted: it is shown points, and so suffers from bad ones.
    of: the contestant whose run it uses instead of one of its own.
    frozen: SAM as it was published, trained by nobody: the backbone's weights must mean something.
    """

    about: str
    method: str
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    prompted: bool = False
    of: str | None = None
    frozen: bool = False


CONTESTANTS: dict[str, Contestant] = {
    "spd": Contestant("SPD: points distilled over neighbouring slices, masks consistent", "spd", prompted=True),
    "spd_no_psc": Contestant("SPD without slice consistency", "spd", options={"model.psc": 0.0}, prompted=True),
    "spd_local": Contestant(
        "SPD's local filter alone", "spd", options={"model.distill": "local", "model.psc": 0.0}, prompted=True
    ),
    "tuning": Contestant(
        "SAM tuned on the points as they are", "spd", options={"model.distill": "none", "model.psc": 0.0}, prompted=True
    ),
    "prompted_point": Contestant("frozen SAM, all points", "prompted", "given_point", prompted=True, frozen=True),
    "prompted_box": Contestant("frozen SAM, box of the points", "prompted", "given_box", prompted=True, frozen=True),
    "saliency": Contestant("SPD's prior as the mask, no prompts", "spd", of="spd"),
    "samed": Contestant("SAMed: SAM fine-tuned without prompts", "samed"),
    "hsam": Contestant("H-SAM: two mask decoders in cascade, no prompts", "hsam"),
    "autosam": Contestant("AutoSAM: a network makes the prompt of the image", "autosam"),
}
"""The ablation of SPD (tuning, local filter, context, consistency) adds one thing a row: only ``spd`` has all."""

BASELINE = "tuning"  # what a distilled method must beat; its score with clean prompts is the clean cost's zero


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """The contestants of these names, each once, after those whose runs they use; ``all``: every one.

    Raises:
        InputError: an unknown name.
    """
    wanted = list(CONTESTANTS) if list(names) == ["all"] else list(dict.fromkeys(names))
    if not wanted:
        raise InputError("no methods to compare", "one of " + ", ".join(["all", *CONTESTANTS]))
    for name in wanted:
        if name not in CONTESTANTS:
            raise zoo.unknown("contestant", name, ["all", *CONTESTANTS])
    return tuple(sorted(wanted, key=list(CONTESTANTS).index))


def levels_of(text: str) -> tuple[str, ...]:
    """Levels of noise from ``L0..L5``, ``L0,L2,L5`` or a mixture, in rising order.

    Raises:
        InputError: a name that is no level, or a range that falls.
    """
    known, chosen = list(LEVELS), set()
    for part in text.split(","):
        first, _, last = part.strip().partition("..")
        ends = [first, last or first]
        if not set(ends) <= set(known) or known.index(ends[0]) > known.index(ends[1]):
            raise InputError(f"prompt noise {text!r}", f"{known[0]}..{known[-1]}, or some of {', '.join(known)}")
        chosen |= set(known[known.index(ends[0]) : known.index(ends[1]) + 1])
    return tuple(name for name in known if name in chosen)
