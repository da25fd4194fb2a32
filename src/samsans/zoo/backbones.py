"""Named weights: architecture, size, licence, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from samsans.architectures import (
    HIERAS,
    SAM2_SCRATCH,
    SAM2_TEST,
    SCRATCH,
    SMALL,
    TINY,
    VIT_B,
    VIT_H,
    VIT_L,
    Sam2Architecture,
    SamArchitecture,
)

WEIGHTS = Path(__file__).parents[1] / "weights"
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
    embedded: str = ""

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
        return not self.hub_id and not self.embedded

    @property
    def trained_whole(self) -> bool:
        """Whether it is made to be trained in all its weights: random ones, and small ones that are given (preset
        ``scratch``).  A frozen network of this size knows too little to be adapted by a few weights (our decision)."""
        return self.from_scratch or bool(self.embedded)

    @property
    def embedded_file(self) -> Path | None:
        """Where its weights lie in this package; ``None`` where they are not part of it."""
        return WEIGHTS / self.embedded if self.embedded else None

    @property
    def file_name(self) -> str:
        """Name of the original file, empty where there is none."""
        name = self.url.rsplit("/", 1)[-1]
        return name if name.endswith((".pth", ".pt")) else ""

    @property
    def md5_prefix(self) -> str:
        """First six hexadecimal digits of the original file's MD5, as its name states them; empty if unknown."""
        return self.file_name.removesuffix(".pth").rsplit("_", 1)[-1] if self.url.startswith(META_URL) else ""


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
        BackboneEntry(
            "samsans-small",
            "sam",
            "Small SAM at 256 px, part of this package: for demos, tests and little data",
            "CC-BY-SA-4.0",
            4_719_616,
            10,
            SMALL,
            embedded="samsans-small.safetensors",
        ),
        BackboneEntry(
            "small-scratch",
            "sam",
            "The network of samsans-small, random weights: for comparison",
            "Apache-2.0",
            4_719_616,
            19,
            SMALL,
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
