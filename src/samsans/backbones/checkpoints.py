"""Weights into networks: found on this machine first, read without pickle, loaded strictly.

Understands the files of ``transformers`` (``model.safetensors`` or ``pytorch_model.bin`` beside a ``config.json``) and
the original ``.pth`` files of SAM and MedSAM, whose architecture is read off their shapes.  Safetensors may also state
their architecture themselves, as the file embedded in this package does.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import SamModel

from samsans import zoo
from samsans.architectures import Sam2Architecture, SamArchitecture
from samsans.backbones.adapters import add_lora
from samsans.backbones.base import LoadReport
from samsans.backbones.files import check_digest, check_state, find_weights, read_tensors
from samsans.backbones.geometry import resize_state
from samsans.backbones.sam import Sam, build_network, tie_positions
from samsans.backbones.sam2 import Sam2
from samsans.backbones.sam2_checkpoints import is_sam2, load_sam2_network
from samsans.backbones.sam2_network import build_sam2
from samsans.backbones.sam2_start import initialise_sam2
from samsans.backbones.start import draw_heads, initialise
from samsans.errors import InputError
from samsans.zoo import BackboneEntry

if TYPE_CHECKING:
    from samsans.config import BackboneConfig, LoraConfig

log = logging.getLogger(__name__)

FOURIER = "shared_image_embedding.positional_embedding"
FOURIER_TWIN = "prompt_encoder.shared_embedding.positional_embedding"
POS_EMBED = "vision_encoder.pos_embed"
MASK_HEADS = re.compile(r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\.")

# Names in the original files, as patterns, and in transformers.  Names that no pattern matches are the same in both.
ORIGINAL_NAMES = (
    (r"image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"image_encoder\.pos_embed", POS_EMBED),
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", FOURIER),
    (r"prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.", r"mask_decoder.transformer.layers.\1.layer_norm\2."),
    (r"mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"mask_decoder.\1.proj_in."),
    (r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"mask_decoder.\1.layers.0."),
    (r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"mask_decoder.\1.proj_out."),
)


@torch.random.fork_rng(devices=[])
def load_backbone(
    config: BackboneConfig,
    lora: LoraConfig | None = None,
    *,
    seed: int = 0,
    masks: int | None = None,
    family: str = "",
) -> Any:
    """The backbone that ``config`` names, ready to encode and decode, on the CPU in float32: a ``Sam`` or a ``Sam2``.

    ``config.name``: a name of the zoo, a hub id ``org/name``, a folder or file of weights.  ``seed`` decides the
    weights of those that start from random ones, and what is drawn here leaves no trace in the global generator.  The
    base is frozen unless ``config.train`` is ``all``; where it is ``lora`` and ``lora`` is given, these adapters are
    added, drawn from ``seed`` too.  ``masks``: another number of masks in the decoder, whose heads are then drawn from
    ``seed`` (see ``load_network``).  ``family``: the only one that serves, ``sam`` or ``sam2``; empty: either.

    Raises ``InputError`` where the weights are not here and cannot be fetched, or do not fit.
    """
    if config.name == "none":
        known = ", ".join(zoo.BACKBONES)
        raise InputError(
            "backbone.name none for a method that is built on SAM", f"one of {known}, or a file of weights"
        )
    entry = zoo.BACKBONES.get(config.name)
    path = None if entry is not None and entry.from_scratch else find_weights(config.name)
    if entry is not None:
        found = entry.family
    else:
        found = "sam2" if path is not None and is_sam2(path) else "sam"
    if family and found != family:
        fitting = ", ".join(name for name, other in zoo.BACKBONES.items() if other.family == family)
        raise InputError(f"backbone.name {config.name}, a backbone of family {found}", f"one of {fitting}")
    sam = load_sam2(config, entry, path, seed, masks) if found == "sam2" else load_sam(config, entry, path, seed, masks)
    log.info("%s: %s", config.name, sam.load_report)
    _ = sam.base_hash  # of the weights as they are now, whatever is loaded or learnt later
    if config.train == "all":
        sam.freeze(False)
    elif config.train == "lora" and lora is not None:
        add_lora(sam, lora, seed=seed)
    return sam.eval()


def load_sam(
    config: BackboneConfig, entry: BackboneEntry | None, path: Path | None, seed: int, masks: int | None
) -> Sam:
    """A SAM, of random weights where there is no ``path``."""
    canvas = None
    if path is None:
        assert entry is not None
        side = config.input_size or entry.input_size
        arch = entry.architecture_for(side)
        assert isinstance(arch, SamArchitecture)
        arch = arch if masks is None else dataclasses.replace(arch, multimask=masks)
        model = build_network(arch, side, config.attention)
        report = LoadReport(f"random numbers, seed {seed}", len(initialise(model, seed).state_dict()))
    else:
        model, report, made_for = load_network(
            path, config.input_size, config.attention, entry, config.positions, masks=masks, seed=seed
        )
        canvas = made_for if config.positions == "crop" else None
    return Sam(
        model,
        name=config.name,
        from_scratch=path is None,
        report=report,
        attention=config.attention,
        checkpointing=config.checkpointing,
        canvas=canvas,
    )


def load_sam2(
    config: BackboneConfig, entry: BackboneEntry | None, path: Path | None, seed: int, masks: int | None
) -> Sam2:
    """A SAM 2, of random weights where there is no ``path``."""
    if masks is not None or config.positions == "crop":
        what = "another number of masks" if masks is not None else "backbone.positions crop"
        raise InputError(f"{what} for {config.name}, a SAM 2", "a SAM", "Name one of its backbones")
    if path is None:
        assert entry is not None
        side = config.input_size or entry.input_size
        arch = entry.architecture_for(side)
        assert isinstance(arch, Sam2Architecture)
        model = build_sam2(arch, side, config.attention)
        report = LoadReport(f"random numbers, seed {seed}", len(initialise_sam2(model, seed).state_dict()))
    else:
        model, report = load_sam2_network(path, config.input_size, config.attention, entry)
    return Sam2(
        model,
        name=config.name,
        from_scratch=path is None,
        report=report,
        attention=config.attention,
        checkpointing=config.checkpointing,
    )


def load_network(
    path: Path,
    input_size: int | None = None,
    attention: str = "fast",
    entry: BackboneEntry | None = None,
    positions: str = "resize",
    *,
    masks: int | None = None,
    seed: int = 0,
) -> tuple[SamModel, LoadReport, int]:
    """The network of a file of weights, for inputs of ``input_size`` px (``None``: the size it was made for).

    ``entry``: what the file is meant to be; another architecture is refused.  ``positions``: resize or crop.  The last
    value is the side in px that the weights were made for.

    ``masks``: another number of masks in the decoder.  Then all mask tokens and hypernetworks and the IoU head are
    left in the file and drawn from ``seed``, also those whose shapes would fit, and nothing else is.
    """
    state = read_state(path)
    arch = infer_architecture(state, path)
    if entry is not None and dataclasses.replace(arch, input_size=entry.input_size) != entry.architecture:
        want = entry.architecture
        raise InputError(
            f"{path} holds a ViT of {arch.depth} blocks of width {arch.hidden}",
            f"{want.depth} blocks of width {want.hidden} for {entry.name}",
            "Name the file itself as backbone, or the backbone that it holds",
        )
    side = input_size or arch.input_size
    if positions == "crop" and side > arch.input_size:
        raise InputError(
            f"Input side {side} px with cropped positions",
            f"at most {arch.input_size} px, what {path} was made for",
            "Set backbone.positions resize, or a smaller backbone.input_size",
        )
    drawn: dict[str, Tensor] = {}
    if masks is not None:
        arch = dataclasses.replace(arch, multimask=masks)
        state = {key: value for key, value in state.items() if not MASK_HEADS.match(key)}
    model = build_network(arch, side, attention)
    state, resized = resize_state(state, arch, side // arch.patch, positions)
    if masks is not None:
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if MASK_HEADS.match(key)}
        drawn = draw_heads(shapes, seed)
        state |= drawn
    check_state(model, state, path, FOURIER_TWIN)
    model.load_state_dict({**state, FOURIER_TWIN: state[FOURIER]}, strict=True, assign=True)
    tie_positions(model)
    return model, LoadReport(str(path), len(state) - len(drawn), resized, tuple(drawn)), arch.input_size


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a SAM file under ``transformers``' names, in float32.  Nothing in the file is executed."""
    check_digest(path)
    state = read_tensors(path, "the state_dict of a SAM")
    if any(key.startswith("image_encoder.") for key in state):
        state = {rename(key): value for key, value in state.items()}
    twin = state.pop(FOURIER_TWIN, None)
    if twin is not None:
        state.setdefault(FOURIER, twin)
    return state


def rename(key: str) -> str:
    """A tensor's name in ``transformers``, given its name in an original SAM file."""
    for pattern, replacement in ORIGINAL_NAMES:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key, count=1)
    return key


def infer_architecture(state: dict[str, Tensor], path: Path) -> SamArchitecture:
    """The architecture of a SAM state dict, from its shapes, and from ``config.json`` beside it where there is one.

    Global blocks are those whose relative positions span the whole grid; where windows are as large as the grid, they
    are taken to be evenly spaced, as in every SAM.  A file that states its architecture is taken at its word; its
    shapes are compared when it is loaded.
    """
    stated = stated_architecture(path)
    if stated is not None:
        return stated
    config = read_config(path)
    decoder = config.get("mask_decoder_config") or {}
    try:
        shape = {key: tuple(value.shape) for key, value in state.items()}
        hidden, _, patch, _ = shape["vision_encoder.patch_embed.projection.weight"]
        grid = shape[POS_EMBED][1]
        depth = count(shape, r"vision_encoder\.layers\.(\d+)\.")
        spans = [shape[f"vision_encoder.layers.{i}.attn.rel_pos_h"] for i in range(depth)]
        lengths = {length for length, _ in spans}
        if len(lengths) > 1:
            global_blocks = tuple(i for i, (length, _) in enumerate(spans) if length == 2 * grid - 1)
            window = (min(lengths - {2 * grid - 1}) + 1) // 2
        else:
            global_blocks, window = tuple(range(depth // 4 - 1, depth, depth // 4)), grid
        channels = shape["vision_encoder.neck.conv2.weight"][0]
        block = "mask_decoder.transformer.layers.0."
        return SamArchitecture(
            hidden=hidden,
            depth=depth,
            heads=hidden // spans[0][1],
            mlp=shape["vision_encoder.layers.0.mlp.lin1.weight"][0],
            global_blocks=global_blocks,
            patch=patch,
            window=window,
            channels=channels,
            decoder_depth=count(shape, r"mask_decoder\.transformer\.layers\.(\d+)\."),
            decoder_heads=decoder.get("num_attention_heads", SamArchitecture.decoder_heads),
            decoder_mlp=shape[block + "mlp.lin1.weight"][0],
            decoder_downsample=channels // shape[block + "cross_attn_token_to_image.q_proj.weight"][0],
            multimask=shape["mask_decoder.mask_tokens.weight"][0] - 1,
            iou_hidden=shape["mask_decoder.iou_prediction_head.proj_in.weight"][0],
            mask_channels=shape["prompt_encoder.mask_embed.conv2.weight"][0],
            input_size=grid * patch,
        )
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{path} is not a SAM: {error} cannot be found in its {len(state)} tensors",
            "the weights of SAM or MedSAM, original or of transformers",
        ) from error


def stated_architecture(path: Path) -> SamArchitecture | None:
    """What the metadata of a safetensors file state as ``architecture``, JSON of a ``SamArchitecture``."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("architecture")
    if text is None:
        return None
    try:
        fields = json.loads(text)
        return SamArchitecture(**fields | {"global_blocks": tuple(fields["global_blocks"])})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} states an architecture that is not understood: {error}", "a SAM's") from error


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` beside a file of weights that ``transformers`` saved; empty for any other file."""
    file = path.parent / "config.json"
    if path.name not in ("model.safetensors", "pytorch_model.bin") or not file.is_file():
        return {}
    config = json.loads(file.read_text())
    if config.get("model_type") != "sam":
        raise InputError(f"{file} describes a {config.get('model_type')!r} model", "model_type 'sam'")
    return config


def count(shape: dict[str, tuple[int, ...]], pattern: str) -> int:
    """How many numbered layers of a pattern there are."""
    return len({match[1] for key in shape if (match := re.match(pattern, key))})
