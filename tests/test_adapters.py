"""LoRA on split projections: counts, exactness at the start and after merging, state."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from samsans import zoo
from samsans.backbones import Sam, adapter_state, add_lora, load_adapter_state, load_backbone, merge_lora
from samsans.backbones.adapters import SplitQkv, base_state, has_lora, split_qkv
from samsans.backbones.sam import LoadReport, build_network
from samsans.config import BackboneConfig, LoraConfig
from samsans.errors import InputError
from samsans.types import Prompt


def tiny(dtype: torch.dtype = torch.float64, **options) -> Sam:
    """Random weights whose biases and relative positions are not zero."""
    sam = load_backbone(BackboneConfig(name="tiny", **options)).to(dtype)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in sam.model.named_parameters():
            if "rel_pos" in name or name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3, generator=generator)
    return sam


def randomise(sam: Sam, std: float = 0.3) -> None:
    with torch.no_grad():
        for name, parameter in sam.model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(len(name)))


def run(sam: Sam) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = sam.image_pe.dtype
    images = torch.randn(2, 3, 64, 64, generator=generator).to(dtype)
    tokens = torch.randn(3, 4, 32, generator=generator).to(dtype)
    embedding = sam.encode(images)
    masks = sam.decode(embedding, Prompt(tokens, sam.dense_default(), torch.tensor([0, 1, 1])))
    return embedding.features, masks.logits


@pytest.mark.parametrize(("name", "encoder"), [("sam-vit-b", 147_456), ("sam-vit-l", 393_216), ("sam-vit-h", 655_360)])
def test_counts(name, encoder):
    network = build_network(zoo.BACKBONES[name].architecture, 1024)  # on the meta device: shapes only
    sam = Sam(network, name=name, from_scratch=False, report=LoadReport("nothing", 0))
    add_lora(sam, LoraConfig(rank=4))
    trained = {n: p.numel() for n, p in sam.model.named_parameters() if p.requires_grad}
    assert sum(v for n, v in trained.items() if n.startswith("vision_encoder")) == encoder
    assert sum(v for n, v in trained.items() if n.startswith("mask_decoder")) == 23_552
    assert all("lora_" in n for n in trained)
    assert sum(trained.values()) == sum(t.numel() for t in adapter_state(sam).values()) == encoder + 23_552


def test_split_shares_weights_and_equals_fused():
    fused = nn.Linear(12, 36)
    split = SplitQkv(fused)
    x = torch.randn(2, 3, 12)
    assert torch.equal(split(x), fused(x))
    assert split.bias is not None
    assert torch.equal(split.bias, fused.bias)
    assert split.q.weight.data_ptr() == fused.weight.data_ptr()
    again = split.fuse()
    assert torch.equal(again.weight, fused.weight)
    assert torch.equal(again.bias, fused.bias)
    bare = SplitQkv(nn.Linear(12, 36, bias=False))
    assert bare.bias is None
    assert bare.fuse().bias is None


@pytest.mark.parametrize("attention", ["fast", "naive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_split_model_equals_fused(dtype, attention):
    sam = tiny(dtype, attention=attention)
    with torch.no_grad():
        want = run(sam)
        split_qkv(sam)
        for got, expected in zip(run(sam), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)


def test_is_exactly_the_base_at_first():
    sam = tiny()
    split_qkv(sam)
    with torch.no_grad():
        want = run(sam)
        add_lora(sam, LoraConfig())
        for got, expected in zip(run(sam), want, strict=True):
            assert torch.equal(got, expected)
        randomise(sam)
        assert not torch.allclose(run(sam)[0], want[0], atol=1e-3)


def test_is_the_formula():
    sam = add_lora(tiny(), LoraConfig(rank=2, alpha=6.0))
    randomise(sam)
    adapters, base = adapter_state(sam), base_state(sam)
    where = "vision_encoder.layers.1.attn.qkv"
    x = torch.randn(5, 32, dtype=torch.float64)
    want = x @ base[f"{where}.weight"].T + base[f"{where}.bias"]
    for part, column in (("q", 0), ("v", 64)):
        a, b = (adapters[f"{where}.{part}.lora_{letter}.weight"] for letter in "AB")
        want[:, column : column + 32] += 3.0 * x @ a.T @ b.T
    torch.testing.assert_close(sam.model.get_submodule(where)(x), want)
    assert not any(f"{where}.k" in name for name in adapters)


def test_adapts_every_attention_asked_for():
    names = adapter_state(add_lora(tiny(), LoraConfig(encoder=["q"], decoder=["k", "v"])))
    layers = {name.partition(".lora_")[0] for name in names}
    encoder = {name for name in layers if name.startswith("vision_encoder")}
    decoder = layers - encoder
    assert encoder == {f"vision_encoder.layers.{i}.attn.qkv.q" for i in range(2)}
    assert len(decoder) == 2 * 7
    assert {name.rpartition(".")[2] for name in decoder} == {"k_proj", "v_proj"}
    only_decoder = add_lora(tiny(), LoraConfig(encoder=[]))
    assert isinstance(only_decoder.model.vision_encoder.layers[0].attn.qkv, nn.Linear)
    assert not has_lora(add_lora(tiny(), LoraConfig(encoder=[], decoder=[])))
    with pytest.raises(InputError, match=r"lora.encoder names o.*some of q, k, v"):
        add_lora(tiny(), LoraConfig(encoder=["o"]))


@pytest.mark.parametrize("attention", ["fast", "naive"])
def test_merged_equals_adapted(attention):
    sam = add_lora(tiny(attention=attention), LoraConfig(alpha=8.0))
    randomise(sam)
    before = sam.base_hash
    with torch.no_grad():
        want = run(sam)
        merge_lora(sam)
        for got, expected in zip(run(sam), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert not has_lora(sam)
    assert isinstance(sam.model.vision_encoder.layers[0].attn.qkv, nn.Linear)
    assert sam.base_hash == before
    assert not any(parameter.requires_grad for parameter in sam.parameters())


def test_gradients_reach_adapters_only():
    sam = add_lora(tiny(), LoraConfig()).train()
    optimiser = torch.optim.SGD([p for p in sam.parameters() if p.requires_grad], 0.1)
    for step in range(2):
        optimiser.zero_grad()
        run(sam)[1].square().mean().backward()
        for name, parameter in sam.model.named_parameters():
            if "lora_" not in name:
                assert parameter.grad is None, name
            elif "lora_A" in name:
                assert parameter.grad is not None
                assert bool(parameter.grad.any()) == (step == 1), name  # B is zero at first
            else:
                assert parameter.grad is not None
                assert parameter.grad.any(), name
        optimiser.step()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fast_gradients_equal_naive_ones(checkpointing):
    gradients = []
    for attention in ("fast", "naive"):
        sam = add_lora(tiny(torch.float32, attention=attention, checkpointing=checkpointing), LoraConfig()).train()
        randomise(sam)
        run(sam)[1].square().mean().backward()
        gradients.append({n: p.grad for n, p in sam.model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_seed_alone_decides():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = adapter_state(add_lora(tiny(), LoraConfig(), seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = (adapter_state(add_lora(tiny(), LoraConfig(), seed=seed)) for seed in (1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_state_round_trip(tmp_path):
    sam = add_lora(tiny(), LoraConfig())
    randomise(sam)
    save_file(adapter_state(sam), tmp_path / "adapters.safetensors")
    other = add_lora(tiny(), LoraConfig(), seed=3)
    load_adapter_state(other, load_file(tmp_path / "adapters.safetensors"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(run(sam), run(other), strict=True))


def test_state_that_does_not_fit_changes_nothing():
    sam = add_lora(tiny(), LoraConfig())
    before = adapter_state(sam)
    wrong = adapter_state(add_lora(tiny(), LoraConfig(rank=2)))
    randomise(sam, 0.0)
    with pytest.raises(InputError, match=r"has shape \(2, 32\), not \(4, 32\).*more.*lora section"):
        load_adapter_state(sam, wrong)
    with pytest.raises(InputError, match="is missing"):
        load_adapter_state(sam, {})
    with pytest.raises(InputError, match="other is not of this model"):
        load_adapter_state(sam, {**before, "other": torch.zeros(1)})
    assert not any(tensor.any() for tensor in adapter_state(sam).values())
    with pytest.raises(InputError, match="adapters already"):
        add_lora(sam, LoraConfig())


def test_dropout_of_adapters_follows_the_mode():
    sam = add_lora(tiny(), LoraConfig(dropout=0.5)).train()
    randomise(sam)
    with torch.no_grad():
        assert not torch.equal(run(sam)[0], run(sam)[0])
        sam.eval()
        assert torch.equal(run(sam)[0], run(sam)[0])
    assert not sam.model.vision_encoder.layers[0].mlp.training
