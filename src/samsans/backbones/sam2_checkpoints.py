"""Weights of SAM 2 into its network: files of ``transformers``, and the original ``.pt`` files through our key map.

Original names and shapes were checked against the modules of the original code (version 1.1.0), not against a released
file.  No table has to be resized for another input side: Hiera stretches its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2VideoModel

from samsans.architectures import HIERAS, SAM2_SCRATCH, SAM2_TEST, Sam2Architecture
from samsans.backbones.base import LoadReport
from samsans.backbones.files import check_state, read_tensors
from samsans.backbones.sam2_network import build_sam2, fill_positions
from samsans.errors import InputError

FOURIER = "shared_image_embedding.positional_embedding"
FOURIER_TWIN = "prompt_encoder.shared_embedding.positional_embedding"
POINTS = "prompt_encoder.point_embed.weight"
TABLES = re.compile(r"memory_attention\.(rotary_emb\.|position_ids)")  # computed, where a file has them

MLP = r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)|object_pointer_proj)"
# Names in the original files, as patterns, and in transformers; applied one after the other.
ORIGINAL_NAMES = (
    (r"sam_prompt_encoder\.", "prompt_encoder."),
    (r"sam_mask_decoder\.", "mask_decoder."),
    (r"image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"(vision_encoder\.backbone\.)patch_embed\.proj\.", r"\1patch_embed.projection."),
    (r"(vision_encoder\.backbone\.blocks\.\d+\.)norm([12])\.", r"\1layer_norm\2."),
    (r"(vision_encoder\.backbone\.blocks\.\d+\.mlp\.)layers\.0\.", r"\1proj_in."),
    (r"(vision_encoder\.backbone\.blocks\.\d+\.mlp\.)layers\.1\.", r"\1proj_out."),
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", FOURIER),
    (r"prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"(mask_decoder\.transformer\.layers\.\d+\.)norm([1-4])\.", r"\1layer_norm\2."),
    (r"(mask_decoder\.transformer\.layers\.\d+\.mlp\.)layers\.0\.", r"\1proj_in."),
    (r"(mask_decoder\.transformer\.layers\.\d+\.mlp\.)layers\.1\.", r"\1proj_out."),
    (r"mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"((?:mask_decoder\.transformer|memory_attention)\..*\.)out_proj\.", r"\1o_proj."),
    (r"mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"obj_ptr_proj\.", "object_pointer_proj."),
    (MLP + r"\.layers\.0\.", r"\1.proj_in."),
    (MLP + r"\.layers\.1\.", r"\1.layers.0."),
    (MLP + r"\.layers\.2\.", r"\1.proj_out."),
    (r"(memory_attention\.layers\.\d+\.)norm([1-3])\.", r"\1layer_norm\2."),
    (r"memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"(memory_encoder\.memory_fuser\.layers\.\d+\.)gamma", r"\1scale"),
    (r"(memory_encoder\.memory_fuser\.layers\.\d+\.)dwconv\.", r"\1depthwise_conv."),
    (r"(memory_encoder\.memory_fuser\.layers\.\d+\.)norm\.", r"\1layer_norm."),
    (r"(memory_encoder\.memory_fuser\.layers\.\d+\.)pwconv([12])\.", r"\1pointwise_conv\2."),
    (r"memory_encoder\.mask_downsampler\.encoder\.12\.", "memory_encoder.mask_downsampler.final_conv."),
    *(
        (
            rf"memory_encoder\.mask_downsampler\.encoder\.{3 * i + j}\.",
            f"memory_encoder.mask_downsampler.layers.{i}.{part}.",
        )
        for i in range(4)
        for j, part in enumerate(("conv", "layer_norm"))
    ),
    (r"maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"no_mem_embed$", "no_memory_embedding"),
    (r"no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"no_obj_ptr$", "no_object_pointer"),
    (r"no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
)


def rename(key: str) -> str:
    """A tensor's name in ``transformers``, given its name in an original file."""
    for pattern, replacement in ORIGINAL_NAMES:
        key = re.sub("^" + pattern, replacement, key)
    return key


def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original file under the names of ``transformers``; its four point vectors become one table."""
    points = [state[f"sam_prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)]
    kept = {key: value for key, value in state.items() if not key.startswith("sam_prompt_encoder.point_embeddings.")}
    return {**{rename(key): value for key, value in kept.items()}, POINTS: torch.cat(points)}


def is_sam2(path: Path) -> bool:
    """Whether a file of weights holds a SAM 2, by its names alone."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
        except SafetensorError:
            return False  # whoever reads it says what is wrong
    else:
        names = list(read_tensors(path, "the state_dict of a SAM or SAM 2"))
    return any(name.startswith(("image_encoder.trunk.", "vision_encoder.backbone.")) for name in names)


def load_sam2_network(
    path: Path, input_size: int | None, attention: str, entry: Any = None
) -> tuple[Sam2VideoModel, LoadReport]:
    """The network of a file of weights, for inputs of ``input_size`` px (``None``: the size it was made for).

    ``entry``: what of the zoo the file is meant to be; another architecture is refused, and so is any file with a
    tensor too many, too few or of another shape (``InputError``).
    """
    state = read_tensors(path, "the state_dict of a SAM 2")
    if any(key.startswith("image_encoder.trunk.") for key in state):
        try:
            state = translate(state)
        except KeyError as error:
            raise InputError(f"{path} is not a whole SAM 2: {error} is missing", "an original SAM 2 file") from error
    state = {key: value for key, value in state.items() if not TABLES.match(key) and key != FOURIER_TWIN}
    arch = infer_sam2(state, path)
    if entry is not None and arch != entry.architecture:
        want = entry.architecture
        raise InputError(
            f"{path} holds a SAM {arch.version} with stages of {arch.blocks} blocks, from width {arch.hidden}",
            f"a SAM {want.version} with stages of {want.blocks} blocks, from width {want.hidden}, for {entry.name}",
            "Name the file itself as backbone, or the backbone that it holds",
        )
    model = build_sam2(arch, input_size or arch.input_size, attention)
    check_state(model, state, path, FOURIER_TWIN)
    model.load_state_dict({**state, FOURIER_TWIN: state[FOURIER]}, strict=True, assign=True)
    fill_positions(model)
    return model, LoadReport(str(path), len(state))


def infer_sam2(state: dict[str, Tensor], path: Path) -> Sam2Architecture:
    """The architecture of a SAM 2 state dict: what shapes tell, and ``config.json`` or the known networks the rest."""
    try:
        shape = {key: tuple(value.shape) for key, value in state.items()}
        names = (f"vision_encoder.backbone.blocks.{i}.layer_norm2.weight" for i in itertools.count())
        every = [shape[name][0] for name in itertools.takewhile(shape.__contains__, names)]
        stages = [(width, len(list(group))) for width, group in itertools.groupby(every)]
        widths, blocks = (tuple(part) for part in zip(*stages, strict=True))
        shapes: dict[str, Any] = {
            "widths": widths,
            "blocks": blocks,
            "background": shape["vision_encoder.backbone.pos_embed"][2],
            "channels": shape["no_memory_embedding"][2],
            "decoder_mlp": shape["mask_decoder.transformer.layers.0.mlp.proj_in.weight"][0],
            "multimask": shape["mask_decoder.mask_tokens.weight"][0] - 1,
            "iou_hidden": shape["mask_decoder.iou_prediction_head.proj_in.weight"][0],
            "mask_channels": shape["prompt_encoder.mask_embed.conv2.weight"][0],
            "memory_layers": len([key for key in shape if re.match(r"memory_attention\.layers\.\d+\.linear1\.w", key)]),
            "memory_mlp": shape["memory_attention.layers.0.linear1.weight"][0],
            "version": "2.1" if "occlusion_spatial_embedding_parameter" in shape else "2.0",
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is not a SAM 2: {error} cannot be found in its {len(state)} tensors",
            "the weights of SAM 2 or SAM 2.1 for videos, original or of transformers",
        ) from error
    if stated := read_sam2_config(path):
        return Sam2Architecture(**{**stated, **shapes})
    for known in (*HIERAS.values(), SAM2_SCRATCH, SAM2_TEST):
        if (known.widths, known.blocks) == (widths, blocks):
            return dataclasses.replace(known, **shapes)
    raise InputError(
        f"{path} holds stages of {blocks} blocks and widths {widths}, which is no known SAM 2",
        "Hiera tiny, small, base-plus or large, or a config.json beside the file",
    )


def read_sam2_config(path: Path) -> dict[str, Any]:
    """What ``config.json`` beside a file that ``transformers`` saved says and shapes do not; empty without one."""
    file = path.parent / "config.json"
    if path.name not in ("model.safetensors", "pytorch_model.bin") or not file.is_file():
        return {}
    config = json.loads(file.read_text())
    if config.get("model_type") not in ("sam2_video", "sam2"):
        raise InputError(f"{file} describes a {config.get('model_type')!r} model", "model_type 'sam2_video'")
    from transformers import Sam2VideoConfig

    whole: Any = Sam2VideoConfig(**{key: config.get(key) for key in
                               ("vision_config", "prompt_encoder_config", "mask_decoder_config")})  # fmt: skip
    trunk = whole.vision_config.backbone_config
    return {
        "stage_heads": tuple(trunk.num_attention_heads_per_stage),
        "windows": tuple(trunk.window_size_per_stage),
        "global_blocks": tuple(trunk.global_attention_blocks),
        "stride": trunk.patch_stride[0],
        "decoder_heads": whole.mask_decoder_config.num_attention_heads,
        "decoder_downsample": whole.mask_decoder_config.attention_downsample_rate,
        "input_size": whole.prompt_encoder_config.image_size,
    }
