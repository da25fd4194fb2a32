"""Named weights and methods: where they are, what they weigh, whose they are.  Plain data; imports no torch.

Weights are looked for on this machine first (the current folder, then the Hugging Face cache) and fetched from the hub
only where they are absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from samsans.architectures import (
    HIERAS,
    SAM2_SCRATCH,
    SAM2_TEST,
    SCRATCH,
    TINY,
    VIT_B,
    VIT_H,
    VIT_L,
    Sam2Architecture,
    SamArchitecture,
)
from samsans.errors import InputError

RELEASED = {"hsam": "samsans.methods.hsam.released"}
"""Methods whose authors released weights that can be imported, with the module that reads them."""

META_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
META_URL_2 = "https://dl.fbaipublicfiles.com/segment_anything_2/"


@dataclass(frozen=True)
class BackboneEntry:
    """One backbone that can be asked for by name.

    hub_id: repository on the Hugging Face hub; url: the original file (its name carries the first six digits of its
    MD5 for the official SAM files); both empty for networks that start from random weights.
    parameters: all that can be learnt (the Fourier matrix of positions is fixed); megabytes: of the file, in float32;
        both 0 where there is no file.
    """

    name: str
    family: str
    summary: str
    licence: str
    parameters: int
    megabytes: int
    architecture: SamArchitecture | Sam2Architecture = field(repr=False)
    hub_id: str = ""
    url: str = ""

    def architecture_for(self, input_size: int | None) -> SamArchitecture | Sam2Architecture:
        """The architecture for inputs of ``input_size`` pixels (``None``: its own size).

        A network that starts from nothing halves its patch for inputs smaller than its own, so that small images still
        have tokens to tell them apart (our decision).
        """
        side = input_size or self.input_size
        arch = self.architecture
        if self.name not in ("scratch", "sam2-scratch") or side >= self.input_size:
            return arch
        if isinstance(arch, Sam2Architecture):
            return replace(arch, stride=arch.stride // 2)
        return replace(arch, patch=arch.patch // 2)

    @property
    def input_size(self) -> int:
        """Input side S in pixels that the weights were made for."""
        return self.architecture.input_size

    @property
    def from_scratch(self) -> bool:
        """Whether it starts from random weights."""
        return not self.hub_id

    @property
    def file_name(self) -> str:
        """Name of the original file, empty where there is none."""
        name = self.url.rsplit("/", 1)[-1]
        return name if name.endswith((".pth", ".pt")) else ""

    @property
    def md5_prefix(self) -> str:
        """First six hexadecimal digits of the original file's MD5, as its name states them; empty if unknown."""
        return self.file_name.removesuffix(".pth").rsplit("_", 1)[-1] if self.url.startswith(META_URL) else ""


@dataclass(frozen=True)
class MethodEntry:
    """One method that can be asked for by name; ``module`` and ``config`` are import strings.

    ``config`` is ``module:Class`` of its typed options, importable without torch.
    """

    name: str
    title: str
    arxiv: str
    module: str
    config: str
    presets: tuple[str, ...]
    summary: str
    doi: str = ""


SAM2_FILES = (  # version, folder of the original, size, parameters, megabytes
    ("2.1", "092824", "tiny", 38_962_498, 156),
    ("2.1", "092824", "small", 46_060_354, 184),
    ("2.1", "092824", "base-plus", 80_850_178, 323),
    ("2.1", "092824", "large", 224_446_642, 898),
    ("2", "072824", "tiny", 38_945_986, 156),
    ("2", "072824", "small", 46_043_842, 184),
    ("2", "072824", "base-plus", 80_833_666, 323),
    ("2", "072824", "large", 224_430_130, 898),
)

BACKBONES: dict[str, BackboneEntry] = {
    entry.name: entry
    for entry in (
        BackboneEntry(
            "sam-vit-b",
            "sam",
            "Segment Anything, ViT-B",
            "Apache-2.0",
            93_735_472,
            375,
            VIT_B,
            "facebook/sam-vit-base",
            META_URL + "sam_vit_b_01ec64.pth",
        ),
        BackboneEntry(
            "sam-vit-l",
            "sam",
            "Segment Anything, ViT-L",
            "Apache-2.0",
            312_342_832,
            1249,
            VIT_L,
            "facebook/sam-vit-large",
            META_URL + "sam_vit_l_0b3195.pth",
        ),
        BackboneEntry(
            "sam-vit-h",
            "sam",
            "Segment Anything, ViT-H",
            "Apache-2.0",
            641_090_608,
            2564,
            VIT_H,
            "facebook/sam-vit-huge",
            META_URL + "sam_vit_h_4b8939.pth",
        ),
        BackboneEntry(
            "medsam-vit-b",
            "sam",
            "MedSAM: SAM ViT-B fine-tuned on medical images with boxes",
            "Apache-2.0",
            93_735_472,
            375,
            VIT_B,
            "wanglab/medsam-vit-base",
            "https://huggingface.co/wanglab/medsam-vit-base",
        ),
        BackboneEntry(
            "scratch",
            "sam",
            "Small SAM, random weights: trains from nothing on a CPU",
            "Apache-2.0",
            1_853_248,
            8,
            SCRATCH,
        ),
        BackboneEntry("tiny", "sam", "Two blocks, random weights: for tests only", "Apache-2.0", 94_182, 1, TINY),
        *(
            BackboneEntry(
                f"sam{version}-hiera-{size}",
                "sam2",
                f"Segment Anything {version}, Hiera {size}: follows objects in videos",
                "Apache-2.0",
                parameters,
                megabytes,
                replace(HIERAS[size], version="2.1" if version == "2.1" else "2.0"),
                f"facebook/sam{version}-hiera-{size}",
                f"{META_URL_2}{folder}/sam{version}_hiera_{size.replace('-', '_')}.pt",
            )
            for version, folder, size, parameters, megabytes in SAM2_FILES
        ),
        BackboneEntry(
            "sam2-scratch",
            "sam2",
            "Small SAM 2, random weights: trains from nothing on a CPU",
            "Apache-2.0",
            3_477_218,
            14,
            SAM2_SCRATCH,
        ),
        BackboneEntry(
            "sam2-tiny-test",
            "sam2",
            "Five blocks, random weights: for tests only",
            "Apache-2.0",
            1_448_796,
            6,
            SAM2_TEST,
        ),
    )
}

METHODS: dict[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry(
            name="proxy_prompt",
            title="Proxy Prompt: Endowing SAM and SAM 2 with Auto-Interactive-Prompt for Medical Segmentation",
            arxiv="2502.03501",
            module="samsans.methods.proxy_prompt.model",
            config="samsans.methods.proxy_prompt.config:ProxyPromptConfig",
            presets=("paper", "scratch"),
            summary="An annotated image of someone else becomes a prompt; switch task by switching the example",
        ),
        MethodEntry(
            name="hsam",
            title="Unleashing the Potential of SAM for Medical Adaptation via Hierarchical Decoding",
            arxiv="2403.18271",
            module="samsans.methods.hsam.model",
            config="samsans.methods.hsam.config:HsamConfig",
            presets=("paper", "released", "scratch"),
            summary="No prompt: two mask decoders in cascade segment all classes of a slice at once",
        ),
        MethodEntry(
            name="masksam",
            title="MaskSAM: Auto-prompt SAM with Mask Classification for Volumetric Medical Image Segmentation",
            arxiv="2403.14103",
            module="samsans.methods.masksam.model",
            config="samsans.methods.masksam.config:MaskSamConfig",
            presets=("corrected", "released", "scratch"),
            summary="No prompt, 3D: a generator makes masks, boxes and class tokens; classes by set prediction",
        ),
        MethodEntry(
            name="p2sam",
            title="P2SAM: Probabilistically Prompted SAMs Are Efficient Segmentator for Ambiguous Medical Images",
            arxiv="",
            doi="10.1145/3664647.3680628",
            module="samsans.methods.p2sam.model",
            config="samsans.methods.p2sam.config:P2SamConfig",
            presets=("paper", "reference", "scratch"),
            summary="A distribution over prompts: several plausible masks of an ambiguous lesion",
        ),
        MethodEntry(
            name="spd",
            title="Learning from Noisy Prompts: Saliency-Guided Prompt Distillation for Robust Segmentation with SAM",
            arxiv="2604.23314",
            module="samsans.methods.spd.model",
            config="samsans.methods.spd.config:SpdConfig",
            presets=("paper", "scratch"),
            summary="Robust to noisy prompts: a saliency prior distils points across slices",
        ),
        MethodEntry(
            name="prob_unet",
            title="A Probabilistic U-Net for Segmentation of Ambiguous Images",
            arxiv="1806.05034",
            module="samsans.methods.prob_unet.model",
            config="samsans.methods.prob_unet.config:ProbUNetConfig",
            presets=("paper", "scratch"),
            summary="Baseline without SAM: a U-Net and a latent variable, several plausible masks",
        ),
        MethodEntry(
            name="samed",
            title="Customized Segment Anything Model for Medical Image Segmentation",
            arxiv="2304.13785",
            module="samsans.methods.adapted.samed",
            config="samsans.methods.adapted.samed_config:SamedConfig",
            presets=("paper", "small", "scratch"),
            summary="Baseline: LoRA in the encoder, SAM's decoder with one token a class",
        ),
        MethodEntry(
            name="autosam",
            title="AutoSAM: Adapting SAM to Medical Images by Overloading the Prompt Encoder",
            arxiv="2306.06370",
            module="samsans.methods.adapted.autosam",
            config="samsans.methods.adapted.autosam_config:AutosamConfig",
            presets=("paper", "class_tokens", "scratch"),
            summary="Baseline: a network draws the prompt of a frozen SAM from the image",
        ),
        MethodEntry(
            name="prompted",
            title="Segment Anything",
            arxiv="2304.02643",
            module="samsans.methods.prompted",
            config="samsans.methods.prompted.config:PromptedConfig",
            presets=("paper", "box", "point", "everything", "medsam", "given_point", "given_box"),
            summary="Baseline: SAM prompted from the true mask, with points as given, or with a grid of points",
        ),
    )
}


def list_backbones() -> tuple[BackboneEntry, ...]:
    """Every named backbone."""
    return tuple(BACKBONES.values())


def list_methods() -> tuple[MethodEntry, ...]:
    """Every named method."""
    return tuple(METHODS.values())


def backbone_entry(name: str) -> BackboneEntry:
    """The backbone of that name; ``InputError`` with near names if there is none."""
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return BACKBONES[name]


def method_entry(name: str) -> MethodEntry:
    """The method of that name; ``InputError`` with near names if there is none."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a registry."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return InputError(f"No {kind} is called {name!r}", "one of " + ", ".join(names), f"Try {near[0]!r}" if near else "")


def show(name: str) -> str:
    """What is known about a backbone or method, as lines of text."""
    if name in METHODS:
        method = METHODS[name]
        rows = {
            "method": method.name,
            "paper": f"{method.title} ({f'arXiv {method.arxiv}' if method.arxiv else f'doi {method.doi}'})",
            "summary": method.summary,
            "presets": ", ".join(method.presets),
        }
    elif name in BACKBONES:
        entry = BACKBONES[name]
        arch = entry.architecture
        rows = {
            "backbone": entry.name,
            "summary": entry.summary,
            "weights": "random, seeded" if entry.from_scratch else f"{entry.hub_id} ({entry.megabytes} MB)",
            "here": "not needed" if entry.from_scratch else str(where(name) or "not on this machine"),
            "original": entry.url or "none",
            "licence": entry.licence,
            "input": f"{entry.input_size} px, patch {arch.patch}",
            "encoder": f"{arch.depth} blocks of width {arch.hidden}, {arch.heads} heads, {arch.channels} channels out",
        }
    else:
        raise unknown("backbone or method", name, [*BACKBONES, *METHODS])
    return "\n".join(f"{key:9} {value}" for key, value in rows.items())


def table() -> str:
    """Every backbone and method in two short tables."""
    lines = [f"{'backbone':24}{'parameters':>12}{'size':>10}  {'licence':12}{'here':6}"]
    for entry in list_backbones():
        here = "-" if entry.from_scratch else "yes" if where(entry.name) else "no"
        size = "-" if entry.from_scratch else f"{entry.megabytes} MB"
        lines.append(f"{entry.name:24}{entry.parameters:>12,}{size:>10}  {entry.licence:12}{here:6}{entry.summary}")
    lines += ["", f"{'method':14}{'arXiv':12}"]
    lines += [f"{entry.name:14}{entry.arxiv or '-':12}{entry.summary}" for entry in list_methods()]
    return "\n".join(lines)


def where(name: str) -> Path | None:
    """The weights of a named backbone, a hub id or a path on this machine; ``None`` where they are not here.

    Looks at ``name`` as a path, then for the original file in the current folder, then in the Hugging Face cache
    (``~/.cache/huggingface``, or where ``huggingface_hub`` is told to keep it).  Never goes online.
    """
    entry = BACKBONES.get(name)
    if entry is None and Path(name).exists():
        return Path(name)
    if entry is not None and entry.file_name and Path(entry.file_name).is_file():
        return Path(entry.file_name)
    hub_id = entry.hub_id if entry else name
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(hub_id, file)
        if isinstance(found, str):
            return Path(found)
    return None
