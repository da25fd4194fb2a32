"""Weights that the authors of H-SAM released, into our H-SAM of the preset ``released``.

A released file holds what was trained, not the frozen encoder: adapters, prompt encoder and both mask decoders.  It
states neither backbone nor rank, classes or input side; all but the backbone are read off the shapes.

Which names are certain.  Adapters follow SAMed: ``w_a_000``, ``w_b_000``, ... with two numbers a block, q then v.  The
prompt encoder and the first decoder have the names of the original SAM.  Of the second decoder we know every shape and
the order of the layers; its names are *assumed*: those of the original SAM under ``mask_decoder2``, and for what SAM
does not have, ``mask_decoder2.skip_upscaling`` (the skip decoder), ``mask_decoder2.cmattn`` (CMAttn) and
``norm...`` inside the masked attentions.  A name that no row knows is an error that lists it; rows of your own, tried
first, mend it: ``read_released(path, {r"mask_decoder2\\.skip\\.": "stage2.pixel_decoder."})``, ``None`` for what is not
to be loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samsans.backbones.files import read_tensors
from samsans.errors import InputError
from samsans.methods.weights import load_state, trained_names

POSITIONS = "backbone.model.shared_image_embedding.positional_embedding"  # frozen, may be absent
LORA = "backbone.model.vision_encoder.layers.{block}.attn.qkv.{part}.lora_"

# Beginning of a released name, as a pattern -> beginning of ours.  {block} and {part} are made of the number of an
# adapter.
NAMES: dict[str, str] = {
    r"w_a_(\d+)$": LORA + "A.default.weight",
    r"w_b_(\d+)$": LORA + "B.default.weight",
    r"prompt_encoder2?\.no_mask_embed\.weight$": "dense",
    r"prompt_encoder2?\.pe_layer\.positional_encoding_gaussian_matrix$": POSITIONS,
    # first decoder: names of the original SAM
    r"mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.": r"stage1.transformer.layers.\1.layer_norm\2.",
    r"mask_decoder\.transformer\.norm_final_attn\.": "stage1.transformer.layer_norm_final_attn.",
    r"mask_decoder\.transformer\.": "stage1.transformer.",
    r"mask_decoder\.iou_token\.": "stage1.iou_token.",
    r"mask_decoder\.mask_tokens\.": "stage1.class_tokens.",
    r"mask_decoder\.output_upscaling\.0\.": "stage1.upscale_conv1.",
    r"mask_decoder\.output_upscaling\.1\.": "stage1.upscale_layer_norm.",
    r"mask_decoder\.output_upscaling\.3\.": "stage1.upscale_conv2.",
    r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.layers\.0\.": r"stage1.hypernetworks.\1.proj_in.",
    r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.layers\.1\.": r"stage1.hypernetworks.\1.layers.0.",
    r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.layers\.2\.": r"stage1.hypernetworks.\1.proj_out.",
    # second decoder: names assumed
    r"mask_decoder2\.transformer\.layers\.(\d+)\.self_attn\.": r"stage2.layers.\1.self_attention.",
    r"mask_decoder2\.transformer\.layers\.(\d+)\.cross_attn_token_to_image\.(?=\w+_proj\.)": (
        r"stage2.layers.\1.token_to_image."
    ),
    r"mask_decoder2\.transformer\.layers\.(\d+)\.cross_attn_image_to_token\.(?=\w+_proj\.)": (
        r"stage2.layers.\1.image_to_token."
    ),
    r"mask_decoder2\.transformer\.layers\.(\d+)\.norm([1-4])\.": r"stage2.layers.\1.norm\2.",
    r"mask_decoder2\.transformer\.layers\.(\d+)\.mlp\.lin1\.": r"stage2.layers.\1.mlp.proj_in.",
    r"mask_decoder2\.transformer\.layers\.(\d+)\.mlp\.lin2\.": r"stage2.layers.\1.mlp.proj_out.",
    r"mask_decoder2\.transformer\.final_attn_token_to_image\.": "stage2.final_attention.",
    r"mask_decoder2\.transformer\.norm_final_attn\.": "stage2.final_norm.",
    r"mask_decoder2\.mask_tokens\.": "stage2.class_tokens.",
    r"mask_decoder2\.output_upscaling\.": "stage2.upscale.",
    r"mask_decoder2\.skip_upscaling\.": "stage2.pixel_decoder.",
    r"mask_decoder2\.output_hypernetworks_mlps\.(\d+)\.layers\.0\.": r"stage2.hypernetworks.\1.proj_in.",
    r"mask_decoder2\.output_hypernetworks_mlps\.(\d+)\.layers\.1\.": r"stage2.hypernetworks.\1.layers.0.",
    r"mask_decoder2\.output_hypernetworks_mlps\.(\d+)\.layers\.2\.": r"stage2.hypernetworks.\1.layers.1.",
    r"mask_decoder2\.output_hypernetworks_mlps\.(\d+)\.layers\.3\.": r"stage2.hypernetworks.\1.layers.2.",
    r"mask_decoder2\.output_hypernetworks_mlps\.(\d+)\.layers\.4\.": r"stage2.hypernetworks.\1.proj_out.",
}

# Beginning of a released name, as a pattern -> what it is: trained by nobody, used nowhere, not loaded.
UNUSED: dict[str, str] = {
    r"prompt_encoder2?\.(point_embeddings|not_a_point_embed)\.": "point embeddings",
    r"prompt_encoder2?\.mask_downscaling\.": "mask downscaling",
    r"mask_decoder2?\.iou_prediction_head\.": "IoU heads",
    r"mask_decoder2\.cmattn\.": "CMAttn, whose gate is 1 everywhere",
    r"mask_decoder2\.transformer\.layers\.\d+\.cross_attn_\w+\.norm": "norms inside masked attentions",
}

RELEASED_NETWORK = (2, "learnable", "hierarchical", "released", "cross_first")
CMATTN = UNUSED[r"mask_decoder2\.cmattn\."]


@dataclass(frozen=True)
class Released:
    """What a released file holds.

    state: tensors under our names, float32.  unused: parameters not loaded, by what they are.  rank: of the adapters.
    blocks, width: of the encoder they belong to.  classes: K, with background.  positions: T, of the input side it was
    trained at, as CMAttn's square weights tell; ``None`` where it is not in the file.
    """

    state: dict[str, Tensor]
    unused: dict[str, int]
    rank: int
    blocks: int
    width: int
    classes: int
    positions: int | None


def read_released(path: str | Path, names: Mapping[str, str | None] | None = None) -> Released:
    """Read a released checkpoint (``.pth``, ``.pt`` or ``.safetensors``); nothing in it is executed.

    Args:
        path: The file.
        names: Rows tried before ``NAMES`` and ``UNUSED``: the beginning of a released name as a regular expression, and
            the beginning of ours, or ``None`` for what is not to be loaded.

    Raises:
        InputError: the file cannot be read, holds names that no row knows (listed by group), two different tensors of
            one name, or not what a checkpoint of H-SAM holds.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}", "a .pth, .pt or .safetensors file that the authors released")
    rows = _rows(names or {})
    state: dict[str, Tensor] = {}
    unused: Counter[str] = Counter()
    unknown: dict[str, torch.Size] = {}
    positions = None
    for key, tensor in read_tensors(path, "the weights of an H-SAM").items():
        ours, what = _translate(key, rows)
        tensor = tensor.flatten() if ours == "dense" else tensor  # (1, C) in the file
        if ours is None:
            if what is None:
                unknown[key] = tensor.shape
                continue
            unused[what] += tensor.numel()
            if what == CMATTN and tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
                positions = len(tensor)
        elif ours in state and not torch.equal(state[ours], tensor):
            raise InputError(
                f"{path} holds two different tensors that mean {ours}", "one", "Drop one of them by `names`"
            )
        else:
            state[ours] = tensor
    if unknown:
        missing = ", ".join(map(repr, _unfilled(state))) or "none"
        raise InputError(
            f"{path} holds {len(unknown)} tensors that are not known: {'; '.join(_by_group(unknown))}",
            f"the names of H-SAM's release. Of ours these are missing: {missing}",
            "Map them with `names` (on the command line --names FILE, YAML): the beginning of a name in the file as a "
            "regular expression, `: `, the beginning of ours, or null for what is not to be loaded; a number N is "
            "(\\d+) on the left and \\1 on the right",
        )
    return Released(state, dict(unused), *_sizes(state, path), positions)


def load_released(method: Any, path: str | Path, names: Mapping[str, str | None] | None = None) -> Released:
    """Load a released checkpoint into an H-SAM of the preset ``released``, and return what was read.

    Every tensor that is trained must be there with its shape; a frozen one that is there as well (the Fourier matrix of
    positions) must equal the backbone's.

    Raises:
        InputError: as ``read_released``; or another rank, number of classes, encoder, input side or configuration.
    """
    found = read_released(path, names)
    _compare(method, found, str(path))
    own, trained = method.state_dict(), trained_names(method)
    frozen = found.state.keys() & own.keys() - set(trained)
    if any(own[name].shape != found.state[name].shape or not own[name].equal(found.state[name]) for name in frozen):
        raise InputError(
            f"{path} was trained on other base weights than {method.backbone.name}: its {min(frozen)} differs",
            todo="Name the SAM that it was trained on as backbone",
        )
    load_state(method, {name: t for name, t in found.state.items() if name not in frozen}, trained, str(path))
    return found


def _rows(names: Mapping[str, str | None]) -> list[tuple[re.Pattern[str], str | None, str | None]]:
    """Pattern, beginning of our name or ``None``, and what an unused tensor is."""
    odd = [pattern for pattern, ours in names.items() if not isinstance(ours, str | None)]
    if odd:
        raise InputError(f"the name for {odd[0]!r} is {names[odd[0]]!r}", "the beginning of one of our names, or null")
    table = [(pattern, ours, None if ours else "dropped by the caller") for pattern, ours in names.items()]
    table += [(pattern, ours, None) for pattern, ours in NAMES.items()]
    table += [(pattern, None, what) for pattern, what in UNUSED.items()]
    try:
        return [(re.compile(pattern), ours, what) for pattern, ours, what in table]
    except re.error as error:
        raise InputError(f"{error.pattern!r} is no regular expression: {error}") from error


def _translate(key: str, rows: list[tuple[re.Pattern[str], str | None, str | None]]) -> tuple[str | None, str | None]:
    """Our name of a released tensor, else what kind of unused tensor it is; neither where no row knows it."""
    for pattern, ours, what in rows:
        if match := pattern.match(key):
            if ours is None:
                return None, what
            name = match.expand(ours) + key[match.end() :]
            if "{block}" in name:
                number = int(match[1])
                name = name.format(block=number // 2, part="qv"[number % 2])
            return name, None
    return None, None


def _sizes(state: Mapping[str, Tensor], path: Path) -> tuple[int, int, int, int]:
    """Rank, blocks, width and classes."""
    adapters = [name for name in state if name.endswith("lora_A.default.weight")]
    if not adapters or "stage1.class_tokens.weight" not in state:
        raise InputError(
            f"{path} has no {'class tokens' if adapters else 'adapters'}",
            "a checkpoint that the authors of H-SAM released",
        )
    rank, width = state[adapters[0]].shape
    return rank, len(adapters) // 2, width, len(state["stage1.class_tokens.weight"])


def _compare(method: Any, found: Released, source: str) -> None:
    """Say in one sentence what the method was built for and the file was not."""
    config, grid, build = method.config, method.backbone.grid, "Build the method with"
    network = (config.stages, config.mask_attention, config.pixel_decoder, config.cmattn.mode, config.order)
    if network != RELEASED_NETWORK:
        raise InputError(f"{source} is for the network of the preset released", todo=f"{build} preset=released")
    layers = method.backbone.model.vision_encoder.layers
    query = getattr(layers[0].attn.qkv, "q", layers[0].attn.qkv)
    rank = query.lora_A["default"].out_features if hasattr(query, "lora_A") else 0
    if (found.blocks, found.width) != (len(layers), query.in_features):
        raise InputError(
            f"{source} adapts {found.blocks} encoder blocks of width {found.width}",
            f"{len(layers)} of width {query.in_features}, as in {method.backbone.name}",
            "Name the SAM that it was trained on as backbone: ViT-B has 12 of 768, ViT-L 24 of 1024",
        )
    if found.rank != rank:
        raise InputError(
            f"{source} has adapters of rank {found.rank}",
            f"rank {rank}, as this method",
            f"{build} lora.rank={found.rank} and lora.alpha={found.rank}",
        )
    classes = len(method.stage1.class_tokens.weight)
    if found.classes != classes:
        raise InputError(
            f"{source} tells {found.classes} classes apart, background included",
            f"{classes}, as this method",
            f"{build} {found.classes - 1} objects",
        )
    if found.positions not in (None, grid**2):
        side = isqrt(found.positions or 0) * method.backbone.patch
        raise InputError(
            f"{source} was trained at {side} px",
            f"{method.backbone.input_size} px, as this method",
            f"{build} backbone.input_size={side}",
        )


def _by_group(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """``group: count (name shape, ...)`` by the first two parts of each name, all names in full."""
    groups: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault(".".join(name.split(".")[:2]), []).append(f"{name} {'x'.join(map(str, shape)) or 1}")
    return [f"{group}: {len(names)} ({', '.join(names)})" for group, names in groups.items()]


def _unfilled(state: Mapping[str, Tensor]) -> list[str]:
    """Beginnings of our names, those of ``NAMES``, that no tensor of a file became; ``N`` stands for a number."""
    free = []
    for ours in dict.fromkeys(NAMES.values()):
        constant = re.split(r"\\\d|\{\w+\}", ours)
        filled = re.compile(r"\w+".join(map(re.escape, constant)))
        if ours != POSITIONS and not any(map(filled.match, state)):
            free.append("N".join(constant))
    return free
