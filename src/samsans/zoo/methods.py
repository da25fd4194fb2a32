"""Named methods: their papers, where their code is, and their presets."""

from __future__ import annotations

from dataclasses import dataclass

RELEASED = {"hsam": "samsans.methods.hsam.released"}
"""Methods whose authors released weights that can be imported, with the module that reads them."""


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
        MethodEntry(
            name="tracked",
            title="SAM 2: Segment Anything in Images and Videos",
            arxiv="2408.00714",
            module="samsans.methods.tracked.model",
            config="samsans.methods.tracked.config:TrackedConfig",
            presets=("paper", "mask", "box", "point"),
            summary="Baseline: SAM 2 prompted on the first frame from its true mask, then left alone",
        ),
        MethodEntry(
            name="medical_sam2",
            title="Medical SAM 2: Segment Medical Images As Video Via Segment Anything Model 2",
            arxiv="2408.00874",
            module="samsans.methods.medical_sam2.model",
            config="samsans.methods.medical_sam2.config:MedicalSam2Config",
            presets=("paper", "scratch"),
            summary="Baseline: an annotated image of someone else is the first frame that SAM 2 remembers",
        ),
        MethodEntry(
            name="medsa",
            title="Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation",
            arxiv="2304.12620",
            module="samsans.methods.medsa.model",
            config="samsans.methods.medsa.config:MedsaConfig",
            presets=("paper", "box", "scratch"),
            summary="Baseline: adapters in SAM's encoder, trained and used with a point or box of the true mask",
        ),
        MethodEntry(
            name="persam",
            title="Personalize Segment Anything Model with One Shot",
            arxiv="2305.03048",
            module="samsans.methods.persam.model",
            config="samsans.methods.persam.config:PersamConfig",
            presets=("paper", "fine_tuned"),
            summary="Baseline without training: points where the image resembles an annotated one most and least",
        ),
        MethodEntry(
            name="vrp_sam",
            title="VRP-SAM: SAM with Visual Reference Prompt",
            arxiv="2402.17726",
            module="samsans.methods.vrp_sam.model",
            config="samsans.methods.vrp_sam.config:VrpSamConfig",
            presets=("paper", "scratch"),
            summary="Baseline: learned queries read an annotated image of someone else and prompt a frozen SAM",
        ),
    )
}
