"""Who takes part in a benchmark: methods under the names of the table, with what sets each apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from samsans import zoo
from samsans.data.prompt_noise import LEVELS
from samsans.errors import InputError

Family = Literal["sam", "sam2", "none"]


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    method: as the zoo has it; empty for nnU-Net, which runs in an environment of its own.
    preset, options: of its training.  A preset holds on pretrained weights; on those that are trained whole a method
        that has a preset ``scratch`` learns by that one.  Without a preset the one that suits the backbone.
    prompted: it is shown points, and so suffers from bad ones.
    truth: its prompt is drawn from the true mask of what it segments: no automatic method.
    of: the contestant whose run it uses instead of one of its own.
    frozen: SAM as it was published, trained by nobody: the backbone's weights must mean something.
    supports: frozen, but shown training images.
    family: of its backbone.
    volumes: it sees 3D patches and normalises them by itself.
    all_of: the form of benchmark whose ``all`` means it, too.
    """

    about: str
    method: str
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    prompted: bool = False
    truth: bool = False
    of: str | None = None
    frozen: bool = False
    supports: bool = False
    family: Family = "sam"
    volumes: bool = False
    all_of: Literal["both", "noise", "ranking"] = "ranking"


def _spd(about: str, all_of: Literal["both", "noise"] = "noise", **options: Any) -> Contestant:
    changed = {f"model.{key}": value for key, value in options.items()}
    return Contestant(about, "spd", options=changed, prompted=True, all_of=all_of)


def _given(about: str, preset: str) -> Contestant:
    return Contestant(about, "prompted", preset, prompted=True, frozen=True, all_of="noise")


def _autosam(about: str, preset: str | None, prompt: str) -> Contestant:
    return Contestant(about, "autosam", preset, {"model.prompt": prompt})


def _true(about: str, preset: str) -> Contestant:
    return Contestant(about, "prompted", preset, truth=True, frozen=True)


CONTESTANTS: dict[str, Contestant] = {
    "spd": _spd("SPD: points distilled over neighbouring slices, masks consistent", "both"),
    "spd_no_psc": _spd("SPD without slice consistency", psc=0.0),
    "spd_local": _spd("SPD's local filter alone", distill="local", psc=0.0),
    "tuning": _spd("SAM tuned on the points as they are", distill="none", psc=0.0),
    "prompted_point": _given("frozen SAM, all points", "given_point"),
    "prompted_box": _given("frozen SAM, box of the points", "given_box"),
    "saliency": Contestant("SPD's prior as the mask, no prompts", "spd", of="spd", all_of="both"),
    "samed": Contestant("SAMed: SAM fine-tuned without prompts", "samed", all_of="both"),
    "hsam": Contestant("H-SAM: two mask decoders in cascade, no prompts", "hsam", all_of="both"),
    "autosam": Contestant("AutoSAM: a network makes the prompt of the image", "autosam", all_of="both"),
    "autosam_tokens": _autosam("AutoSAM: a decoder with tokens of each class", "class_tokens", "class_tokens"),
    "autosam_cnn": _autosam("AutoSAM: a convolutional head on SAM's embedding", "class_tokens", "cnn_head"),
    "proxy_prompt": Contestant("Proxy Prompt: annotated training images are the prompt", "proxy_prompt"),
    "masksam": Contestant("MaskSAM: prompts made in 3D, classes by set prediction", "masksam", volumes=True),
    "p2sam": Contestant("P2SAM: the mean of a distribution over prompts", "p2sam"),
    "vrp_sam": Contestant("VRP-SAM: queries read annotated training images", "vrp_sam"),
    "persam": Contestant(
        "PerSAM: frozen SAM, points where the image resembles a training image", "persam", frozen=True, supports=True
    ),
    "persam_f": Contestant(
        "PerSAM-F: three mask sizes mixed by a training image",
        "persam",
        "fine_tuned",
        frozen=True,
        supports=True,
    ),
    "proxy_prompt_sam2": Contestant("Proxy Prompt on SAM 2", "proxy_prompt", family="sam2"),
    "medical_sam2": Contestant("Medical SAM 2: training images are its first frames", "medical_sam2", family="sam2"),
    "prob_unet": Contestant("Probabilistic U-Net: the mean of its prior, no SAM", "prob_unet", family="none"),
    "nnunet": Contestant("nnU-Net, in an environment of its own", "", family="none"),
    "medsa": Contestant("Medical SAM Adapter: a point of the true mask", "medsa", truth=True),
    "true_box": _true("frozen SAM, box of the true mask", "box"),
    "true_point": _true("frozen SAM, a point of the true mask", "point"),
    "true_everything": _true("frozen SAM, of a grid of points the mask nearest to the truth", "everything"),
    "tracked": Contestant(
        "frozen SAM 2, box of the true mask of one slice", "tracked", "box", truth=True, frozen=True, family="sam2"
    ),
}
"""The ablation of SPD (tuning, local filter, context, consistency) adds one thing a row: only ``spd`` has all."""

BASELINE = "tuning"  # what a distilled method must beat; its score with clean prompts is the clean cost's zero
EXTERNAL = "nnunet"


def choose(names: Sequence[str], noise: bool = False) -> tuple[str, ...]:
    """The contestants of these names, each once, after those whose runs they use.

    ``all``: every method and baseline; with prompt noise those that see points, and the lines they are to beat.

    Raises:
        InputError: an unknown name, or with ``noise`` one whose prompts are drawn from true masks.
    """
    wanted = list(dict.fromkeys(names))
    if wanted == ["all"]:
        other = "ranking" if noise else "noise"
        return tuple(name for name, contestant in CONTESTANTS.items() if contestant.all_of != other)
    if not wanted:
        raise InputError("no methods to compare", "one of " + ", ".join(["all", *CONTESTANTS]))
    for name in wanted:
        if name not in CONTESTANTS:
            raise zoo.unknown("contestant", name, ["all", *CONTESTANTS])
        if noise and (CONTESTANTS[name].truth or name == EXTERNAL):
            raise InputError(f"{name} with prompt noise", "methods that are shown points, or need no prompt")
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
