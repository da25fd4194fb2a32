"""Configuration and presets of Proxy Prompt (arXiv 2502.03501).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

MemoryMode = Literal["proxy_only", "proxy_plus_bank", "proxy_first_frame"]
MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)


@dataclass
class ContextConfig:
    """The context encoder: what the support mask means on the support image (CSM step 1).

    Args:
        name: vim (paper), vit_b or resnet50 (ablation A2).
        dim: Token width of vim.
        depth: Blocks of vim.
        d_state: State size of the selective scan.
        d_conv: Width of the causal convolution.
        expand: Inner width over token width.
        cls: Class token in the middle, or none (decision D-04).
        drop_path: Stochastic depth (decision D-05).
        checkpointing: Recompute blocks in the backward pass.
    """

    name: Literal["vim", "vit_b", "resnet50"] = "vim"
    dim: int = 192
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    cls: Literal["middle", "none"] = "middle"
    drop_path: float = 0.0
    checkpointing: bool = False


@dataclass
class CsmConfig:
    """Contextual Selective Module: context encoder, bridge unit, selective map (section 3 of the paper).

    Args:
        encoder: Step 1.
        bridge: Step 2 as published; false: concatenation and a 1x1 convolution (decision D-31).
        cbam_scope: How objects talk in CBAM: joint, per_object or folded (decision D-08).
        cbam_residual: Residual around CBAM (decision D-07).
        folded_objects: Fixed number of objects N of ``cbam_scope: folded``.
        reduction: Channel reduction of CBAM.
        selective: Step 3 as published; false: the mean over supports at the same place (decision D-31).
        image_gain: Factor on the image channels of the context encoder (decision D-35).
        mask_gain: Factor on its mask channel (decision D-35).
        fsup_gain: Factor on the support features that enter the bridge (decision D-35).
    """

    encoder: ContextConfig = field(default_factory=ContextConfig)
    bridge: bool = True
    cbam_scope: Literal["joint", "per_object", "folded"] = "joint"
    cbam_residual: bool = True
    folded_objects: int = 1
    reduction: int = 16
    selective: bool = True
    image_gain: float = 1.0
    mask_gain: float = 1.0
    fsup_gain: float = 1.0


@dataclass
class CcmConfig:
    """Contextual Colorization Module (section 3 of the paper).

    Args:
        enabled: False: the prompt is the context, average-pooled 4x4 (decision D-30).
        projection: token_linear (decision D-09) or pair_merge.
        proj_init: average (decision D-09) or default (the framework's own).
        proj_only: Keep the projections of the context stream, drop attention and feed-forward (ablation).
        heads: Attention heads (decision D-10).
        ffn: Hidden width of the feed-forward layers (decision D-10).
    """

    enabled: bool = True
    projection: Literal["token_linear", "pair_merge"] = "token_linear"
    proj_init: Literal["average", "default"] = "average"
    proj_only: bool = False
    heads: int = 8
    ffn: int = 2048


@dataclass
class ProxyPromptConfig:
    """Proxy Prompt on SAM or SAM 2.

    Args:
        csm: Contextual Selective Module.
        ccm: Contextual Colorization Module.
        support_grad: Let gradients flow through the support features.
        k_test: Support pairs drawn for each image at inference (decision D-29).
        direct: A residual path around the colorization module: the context, and the support mask read by the same
            selective map, also enter the decoder as a dense prompt (our option; decision D-35 names such a path).
        bce: Weight of pixel-wise cross-entropy beside the Dice loss (our option).
        read: Weight of the cross-entropy of the support masks as the direct path reads them (our option).
        mask_contrast: Weight of a term that pushes apart the prompts of different masks (decision D-35).
        mem_map: SAM 2: how a prompt token enters the memory attention: split into tokens of 64 channels, or linear, a
            learned map to one (decision D-13).
        mem_pos: SAM 2: positions of the prompt as memory: none, or sine16, where its tokens lie in their 16 x 16 grid.
        memory_mode: SAM 2: what is remembered: proxy_only, the prompt alone; in videos also proxy_plus_bank, beside
            SAM 2's own memories, or proxy_first_frame, on the first frame alone (decision D-14).  Nothing is trained of
            memories of other frames; still images are the same in every mode.
        gate_by_object_score: SAM 2: leave an object out of the images where its score says that it is not there
            (decision D-15); memories of a pretrained SAM 2 follow that score in any case.
        scan: Selective scan: auto, cpp, triton, chunked or sequential (decision D-34).
    """

    csm: CsmConfig = field(default_factory=CsmConfig)
    ccm: CcmConfig = field(default_factory=CcmConfig)
    support_grad: bool = True
    k_test: int = 8
    direct: bool = False
    bce: float = 0.0
    read: float = 0.0
    mask_contrast: float = 0.0
    mem_map: Literal["split", "linear"] = "split"
    mem_pos: Literal["none", "sine16"] = "none"
    memory_mode: MemoryMode = "proxy_only"
    gate_by_object_score: bool = False
    scan: Literal["auto", "cpp", "triton", "chunked", "sequential"] = "auto"


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "scratch": {
        "backbone": {"name": "scratch", "train": "all"},
        "model": {
            "csm": {
                "encoder": {"dim": 96, "depth": 2, "cls": "none"},
                "image_gain": 0.5,
                "mask_gain": 3.0,
                "fsup_gain": 0.5,
            },
            "ccm": {"ffn": 256, "projection": "pair_merge"},
            "direct": True,
            "bce": 1.0,
            "read": 1.0,
        },
        "episodes": {"images": 8, "targets": 8, "volume_supports": [], "synthetic": 0.3},
        "augment": {"flip": 0.5, "rotate": 15.0, "scale": 0.1, "intensity": 0.1},
        "train": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine", "warmup": 50},
    },
}
