"""Context encoders of Proxy Prompt: sizes, symmetries, initialisation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samsans.errors import InputError
from samsans.methods.proxy_prompt.context import BidirectionalMamba, VisionMamba, build_context_encoder

SMALL = {"vim": {"dim": 32, "depth": 2}, "vit_b": {"dim": 32, "depth": 2, "heads": 2}, "resnet50": {}}
CHANNELS = {"vim": 32, "vit_b": 32, "resnet50": 1024}


def small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_context_encoder(name, grid=4, patch=16, **SMALL[name] | options).eval()


def image(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "count"), [("vim", 7_752_960), ("vit_b", 88_990_464), ("resnet50", 8_546_432)])
def test_parameter_counts_at_full_size(name: str, count: int) -> None:
    with torch.device("meta"):
        encoder = build_context_encoder(name, grid=64, patch=16)
    assert sum(p.numel() for p in encoder.parameters()) == count
    assert encoder.out_channels == {"vim": 192, "vit_b": 768, "resnet50": 1024}[name]


@pytest.mark.parametrize("name", SMALL)
class TestEveryEncoder:
    def test_shape_and_gradients(self, name: str) -> None:
        encoder = small(name).train()
        features = encoder(image())
        assert features.shape == (2, CHANNELS[name], 4, 4)
        assert encoder.out_channels == CHANNELS[name]
        (features * torch.randn_like(features)).sum().backward()
        assert all(
            p.grad is not None and p.grad.abs().max() > 0 for n, p in encoder.named_parameters() if ".key." not in n
        )

    def test_the_mask_channel_is_connected(self, name: str) -> None:
        empty, full = image(), image()
        empty[:, 3], full[:, 3] = 0, 1
        encoder = small(name)
        assert (encoder(empty) - encoder(full)).abs().max() > 1e-3

    def test_images_of_a_batch_do_not_mix(self, name: str) -> None:
        encoder = small(name)
        both = encoder(image())
        torch.testing.assert_close(both, torch.cat([encoder(image()[:1]), encoder(image()[1:])]), rtol=1e-3, atol=1e-4)

    def test_wrong_inputs_are_refused(self, name: str) -> None:
        encoder = small(name)
        for shape in [(2, 3, 64, 64), (2, 4, 64, 48), (4, 64, 64)]:
            with pytest.raises(InputError, match=r"\(B, 4, 64, 64\)"):
                encoder(torch.zeros(shape))


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(InputError, match="vim, vit_b, resnet50"):
        build_context_encoder("swin", grid=4, patch=16)
    with pytest.raises(InputError, match="patch 8"):
        build_context_encoder("resnet50", grid=4, patch=8)
    with pytest.raises(InputError, match="middle or none"):
        VisionMamba(4, 16, cls="first")


def test_what_must_not_decay_is_marked() -> None:
    marked = {n for n, p in small("vim").named_parameters() if getattr(p, "_no_weight_decay", False)}
    scans = {f"blocks.{i}.mixer.{d}_scan.{p}" for i in (0, 1) for d in ("forward", "backward") for p in ("A_log", "D")}
    assert marked == {"cls_token", "positions"} | scans
    marked = {n for n, p in small("vit_b").named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}


class TestVisionMamba:
    def test_reversing_the_tokens_reverses_the_output_where_directions_share_weights(self) -> None:
        encoder = small("vim", cls="none").double()
        for block in encoder.blocks:
            block.mixer.backward_scan.load_state_dict(block.mixer.forward_scan.state_dict())
        tokens = torch.randn(2, 50, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(encoder.encode(tokens.flip(1)), encoder.encode(tokens).flip(1), rtol=0, atol=1e-13)

    def test_each_direction_is_causal(self) -> None:
        mixer = small("vim").blocks[0].mixer
        u = torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(1))
        changed = u.clone()
        changed[:, 12] += 1
        forward = (mixer.forward_scan(u) - mixer.forward_scan(changed)).abs().amax((0, 2))
        backward = (mixer.backward_scan(u) - mixer.backward_scan(changed)).abs().amax((0, 2))
        assert forward[:12].max() == 0
        assert (forward[12:] > 0).all()
        assert backward[13:].max() == 0
        assert (backward[:13] > 0).all()

    def test_mixer_against_its_definition(self) -> None:
        """Flips, one convolution per channel, the scan as a double loop; float64."""
        torch.manual_seed(0)
        mixer = BidirectionalMamba(16, 1, 3, 4, 2, "sequential").double()
        x = torch.randn(2, 9, 16, dtype=torch.float64)
        u, z = mixer.in_proj(x)[..., :32], mixer.in_proj(x)[..., 32:]
        total = torch.zeros_like(u)
        for direction, flip in ((mixer.forward_scan, False), (mixer.backward_scan, True)):
            v = u.flip(1) if flip else u
            v = F.silu(direction.conv(F.pad(v.transpose(1, 2), (3, 0))).transpose(1, 2))
            low, b, c = direction.x_proj(v).split([1, 3, 3], -1)
            dt = F.softplus(direction.dt_proj(low))
            h, rows = torch.zeros(2, 32, 3, dtype=torch.float64), []
            for t in range(9):
                h = torch.exp(-dt[:, t, :, None] * direction.A_log.exp()) * h
                h = h + (dt[:, t] * v[:, t])[..., None] * b[:, t, None]
                rows.append((h * c[:, t, None]).sum(-1) + direction.D * v[:, t])
            y = torch.stack(rows, 1) * F.silu(z.flip(1) if flip else z)
            total += y.flip(1) if flip else y
        torch.testing.assert_close(mixer(x), mixer.out_proj(total / 2), rtol=0, atol=1e-13)

    def test_class_token_sits_in_the_middle_and_leaves(self) -> None:
        encoder = small("vim")
        assert encoder.positions.shape == (1, 17, 32)
        seen: list[Tensor] = []
        encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            encoder.patch_embed.weight.zero_()
            encoder(image())
        tokens = seen[0] - encoder.positions
        torch.testing.assert_close(tokens[:, 8], encoder.cls_token[0].expand(2, -1))
        others = torch.cat([tokens[:, :8], tokens[:, 9:]], 1)
        torch.testing.assert_close(others, torch.zeros_like(others), rtol=0, atol=1e-7)

    def test_patches_keep_their_place(self) -> None:
        """With the blocks silent the output is the normalised patch embedding, row-major."""
        encoder = small("vim", cls="none")
        with torch.no_grad():
            for block in encoder.blocks:
                block.mixer.out_proj.weight.zero_()
            encoder.positions.zero_()
            embedded = encoder.patch_embed(image()).permute(0, 2, 3, 1)
            expected = encoder.norm(embedded).permute(0, 3, 1, 2)
            torch.testing.assert_close(encoder(image()), expected)

    def test_initial_step_sizes_and_decays(self) -> None:
        torch.manual_seed(0)
        scan = VisionMamba(2, 16, dim=64, depth=1).blocks[0].mixer.forward_scan
        dt = F.softplus(scan.dt_proj.bias).detach()
        assert dt.min() >= 1e-3 * 0.999
        assert dt.max() <= 1e-1 * 1.001
        assert dt.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.4)
        torch.testing.assert_close(scan.A_log.exp(), torch.arange(1.0, 17).repeat(128, 1))
        assert scan.dt_proj.weight.abs().max() <= 4**-0.5

    def test_recomputation_changes_nothing(self) -> None:
        plain, saving = small("vim").train(), small("vim", checkpoint=True).train()
        outputs = [encoder(image()) for encoder in (plain, saving)]
        for y in outputs:
            y.square().mean().backward()
        assert torch.equal(*outputs)
        for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)

    def test_drop_path_acts_in_training_only_and_keeps_the_mean(self) -> None:
        encoder = small("vim", drop_path=0.5)
        assert [block.drop_path for block in encoder.blocks] == [0, 0.5]
        block, tokens = encoder.blocks[1], torch.randn(1, 5, 32).expand(400, -1, -1)
        with torch.no_grad():
            expected = block(tokens) - tokens
            updates = block.train()(tokens) - tokens
        kept = updates.abs().amax((1, 2)) > 0
        assert 0.4 < kept.float().mean() < 0.6
        torch.testing.assert_close(updates[kept], 2 * expected[kept], rtol=1e-4, atol=1e-5)

    def test_under_autocast_the_residual_stream_stays_float32(self) -> None:
        encoder = small("vim")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = encoder(image())
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, encoder(image()), rtol=0.1, atol=0.1)

    def test_scan_backends_agree(self) -> None:
        torch.testing.assert_close(small("vim", scan="chunked")(image()), small("vim", scan="auto")(image()))
