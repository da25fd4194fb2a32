"""Low-rank adapters (LoRA) in SAM and SAM 2 through ``peft``, on *separate* q, k and v projections.

Their encoders have one fused ``qkv`` layer.  An adapter of the fused layer has the very parameter count of separate q
and v adapters but shares one ``A`` and adapts k as well: it is another model.  So the layer is split first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from samsans.errors import InputError

if TYPE_CHECKING:
    from samsans.backbones.base import Backbone
    from samsans.config import LoraConfig

PARTS = ("q", "k", "v")
AnyBackbone = TypeVar("AnyBackbone", bound="Backbone")


class SplitQkv(nn.Module):
    """A fused ``qkv`` layer as three that share its memory: ``(..., width)`` to ``(..., 3 width)``, the same values."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if fused.bias is None else fused.bias.detach().chunk(3)
        for part, weight, bias in zip(PARTS, fused.weight.detach().chunk(3), biases, strict=True):
            linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
            linear.out_features, linear.in_features = weight.shape
            linear.weight = nn.Parameter(weight, fused.weight.requires_grad)
            linear.bias = None if bias is None else nn.Parameter(bias, fused.weight.requires_grad)
            self.add_module(part, linear)

    @property
    def bias(self) -> Tensor | None:
        """Output for a zero token, ``(3 width,)`` (adapters have no bias)."""
        if self.q.bias is None:
            return None
        return torch.cat([self.q.bias, self.k.bias, self.v.bias])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

    def fuse(self) -> nn.Linear:
        """One linear layer again; the parts must be plain linear layers."""
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight]).detach()
        fused = nn.Linear(1, 1, bias=self.bias is not None, device="meta")
        fused.out_features, fused.in_features = weight.shape
        fused.weight = nn.Parameter(weight, self.q.weight.requires_grad)
        if self.bias is not None:
            fused.bias = nn.Parameter(self.bias.detach(), self.q.weight.requires_grad)
        return fused


def split_qkv(sam: Backbone) -> None:
    """Replace every fused ``qkv`` of the encoder by three layers that compute the same."""
    for layer in sam.encoder_blocks:
        if isinstance(layer.attn.qkv, nn.Linear):
            layer.attn.qkv = SplitQkv(layer.attn.qkv)


def add_lora(sam: AnyBackbone, lora: LoraConfig, *, seed: int = 0) -> AnyBackbone:
    """Adapt q and v (or what ``lora`` names) of every encoder block and of all decoder attentions; freezes the base.

    The memory attention of SAM 2 is left as it is unless ``lora.memory`` names some (decision D-16).

    ``y = W x + (alpha / rank) B A x`` with ``A`` Kaiming-uniform and ``B`` zero: at first the model is exactly the base
    (decision D-01).  Modifies and returns ``sam``.  ``seed`` alone decides ``A``.
    """
    if has_lora(sam):
        raise InputError("The backbone has adapters already", todo="Merge them first, or load a fresh backbone")
    for where, names in (("encoder", lora.encoder), ("decoder", lora.decoder), ("memory", lora.memory)):
        if odd := sorted(set(names) - set(PARTS)):
            raise InputError(f"lora.{where} names {', '.join(odd)}", "some of q, k, v")
    sam.freeze()
    targets = []
    if lora.encoder:
        split_qkv(sam)
        blocks = r"vision_encoder\.(layers|backbone\.blocks)"
        targets.append(rf"{blocks}\.\d+\.attn\.qkv\.({'|'.join(lora.encoder)})")
    if lora.decoder:
        targets.append(rf"mask_decoder\.transformer\..*\.({'|'.join(lora.decoder)})_proj")
    if lora.memory:
        if not hasattr(sam.model, "memory_attention"):
            raise InputError(f"lora.memory for {sam.name}, which has no memory", "none, or a SAM 2")
        targets.append(rf"memory_attention\..*\.({'|'.join(lora.memory)})_proj")
    if targets:
        alpha: Any = lora.alpha  # peft declares an integer, and takes any number
        config = PeftConfig(
            r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, bias="none", target_modules="|".join(targets)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, sam.model)
        sam.train(sam.training)
    return sam


def has_lora(sam: Backbone) -> bool:
    """Whether adapters are present."""
    return any(isinstance(module, LoraLayer) for module in sam.model.modules())


@torch.no_grad()
def merge_lora(sam: AnyBackbone) -> AnyBackbone:
    """Add the adapters into the base weights and fuse ``qkv`` again, for inference; modifies and returns ``sam``.

    Same outputs up to rounding.  The adapters are gone afterwards, and ``base_hash`` remains that of the base.
    """
    _ = sam.base_hash
    merge_adapters(sam.model)
    _fuse_qkv(sam)
    return sam


@torch.no_grad()
def drop_lora(sam: AnyBackbone) -> AnyBackbone:
    """Take the adapters out and fuse ``qkv`` again: the base weights, bit for bit; modifies and returns ``sam``."""
    merge_adapters(sam.model, add=False)
    _fuse_qkv(sam)
    return sam


def _fuse_qkv(sam: Backbone) -> None:
    for layer in sam.encoder_blocks:
        if isinstance(layer.attn.qkv, SplitQkv):
            layer.attn.qkv = layer.attn.qkv.fuse()


@torch.no_grad()
def merge_adapters(network: Any, add: bool = True) -> None:
    """Replace every adapted layer inside a module by its base layer with the adapter added; same up to rounding.

    add: if false, the adapters are left out.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            if add:
                module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())


def adapter_state(sam: Backbone) -> dict[str, Tensor]:
    """Copies of the adapters' tensors by name: ``...lora_A.weight (rank, in)`` and ``...lora_B.weight (out, rank)``."""
    return {_public(name): p.detach().clone() for name, p in sam.model.named_parameters() if "lora_" in name}


@torch.no_grad()
def load_adapter_state(sam: Backbone, state: Mapping[str, Tensor]) -> None:
    """Set the adapters' tensors; names and shapes must match exactly, else ``InputError`` and nothing is changed."""
    own = {_public(name): p for name, p in sam.model.named_parameters() if "lora_" in name}
    wrong = [f"{name} is missing" for name in own.keys() - state.keys()]
    wrong += [f"{name} is not of this model" for name in state.keys() - own.keys()]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise InputError(
            f"The adapters do not fit {sam.name}: {shown}",
            f"{len(own)} tensors of this backbone and lora configuration",
            "Use the backbone and the lora section the adapters were trained with",
        )
    for name, parameter in own.items():
        parameter.copy_(state[name])


def _public(name: str) -> str:
    return name.replace(".default.", ".")


def base_state(sam: Backbone) -> dict[str, Tensor]:
    """The base weights under the names of ``transformers``, whether or not ``qkv`` is split and adapted."""
    state: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, parameter in sam.model.named_parameters():
        if "lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        if match := re.fullmatch(r"(.*\.attn\.qkv)\.([qkv])\.(weight|bias)", name):
            parts.setdefault(f"{match[1]}.{match[3]}", {})[match[2]] = parameter.detach()
        else:
            state[name] = parameter.detach()
    for name, tensors in parts.items():
        state[name] = torch.cat([tensors[part] for part in PARTS])
    return state
