"""SAM 2 against ``transformers``: stills, prompts, memories, videos; weights, adapters, gradients, any input side."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from samsans import zoo
from samsans.architectures import HIERAS, SAM2_TEST
from samsans.backbones import Sam2, adapter_state, add_lora, load_backbone, merge_lora
from samsans.backbones.sam2_checkpoints import FOURIER_TWIN, POINTS, infer_sam2, rename, translate
from samsans.backbones.sam2_network import build_sam2, sine_positions
from samsans.backbones.sam2_video import ABSENT, ObjectPrompt, Proxy, Tracker
from samsans.config import BackboneConfig, LoraConfig
from samsans.errors import InputError
from samsans.types import Embedding, Prompt


def tiny(seed: int = 0, **options) -> Sam2:
    sam2 = load_backbone(BackboneConfig(name="sam2-tiny-test", **options), seed=seed)
    with torch.no_grad():  # objects are there, or every frame would be empty
        sam2.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(1.0)
    return sam2


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square(side: int, low: int = 10, high: int = 40) -> torch.Tensor:
    mask = torch.zeros(side, side)
    mask[low:high, low + 4 : high] = 1
    return mask


def still(sam2: Sam2) -> Sam2Model:
    """The library's own network for single images, with the same weights."""
    config = sam2.model.config
    parts = {
        name: getattr(config, name).to_dict()
        for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    }
    model = Sam2Model(Sam2Config(**parts)).eval()
    assert not model.load_state_dict(sam2.model.state_dict(), strict=False).missing_keys
    return model


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 96, 160])
def test_encode_equals_the_library(side):
    fast, naive = tiny(input_size=side), tiny(input_size=side, attention="naive")
    images = random(2, 3, side, side)
    with torch.no_grad():
        want = naive.model.get_image_features(images, return_dict=True)
        for sam2 in (fast, naive):
            found = sam2.encode(images)
            assert found.features.shape == (2, 128, side // 16, side // 16)
            for maps, flat in zip((*found.high_res, found.features), want.fpn_hidden_states, strict=True):
                assert flat.std() > 0.02
                torch.testing.assert_close(maps.flatten(2).permute(2, 0, 1), flat, rtol=0, atol=1e-5)
    torch.testing.assert_close(fast.token_positions, want.fpn_position_encoding[-1][:, 0], rtol=0, atol=1e-5)
    spatial = fast.model.memory_encoder.position_encoding((1, 64, fast.grid, fast.grid), "cpu", torch.float32)
    torch.testing.assert_close(fast.memory_positions, spatial[0].flatten(1).T, rtol=0, atol=1e-5)
    assert torch.equal(fast.memory_positions, sine_positions(fast.grid, 64))


def test_encode_keeps_blocks_and_refuses_other_sizes():
    sam2 = tiny()
    kept = sam2.encode(random(1, 3, 64, 64), blocks=True).blocks
    assert [tuple(block.shape) for block in kept] == [
        (1, 16, 16, 8),
        (1, 8, 8, 16),
        (1, 4, 4, 32),
        (1, 4, 4, 32),
        (1, 2, 2, 64),
    ]
    with pytest.raises(InputError, match=r"\(B, 3, 64, 64\)"):
        sam2.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="multiple of 32 px"):
        tiny(input_size=80)


@pytest.mark.parametrize("multimask", [False, True])
def test_prompts_equal_the_library(multimask):
    for side in (64, 96):
        sam2 = tiny(input_size=side)
        model, images = still(sam2), random(2, 3, side, side)
        points = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(2)) * side
        labels = torch.tensor([1, 0]).expand(2, 3, 2)
        boxes = torch.tensor([[4.0, 5, 30, 28], [10, 3, 20, 31]]).expand(2, 2, 4)
        with torch.no_grad():
            embedding = sam2.unconditioned(sam2.encode(images))
            for library, ours in (
                ({"input_points": points, "input_labels": labels}, {"points": points, "point_labels": labels}),
                ({"input_boxes": boxes}, {"boxes": boxes}),
                ({}, {}),
            ):
                want = model(pixel_values=images, multimask_output=multimask, **library)
                count = want.pred_masks.shape[1]
                index = torch.arange(2).repeat_interleave(count)
                prompt = sam2.embed_prompts(index, **{name: part.flatten(0, 1) for name, part in ours.items()})
                got = sam2.decode(embedding, prompt, multimask)
                assert want.pred_masks.std() > 0.1
                torch.testing.assert_close(got.logits, want.pred_masks.flatten(0, 1), rtol=0, atol=1e-5)
                torch.testing.assert_close(got.iou, want.iou_scores.flatten(0, 1), rtol=0, atol=1e-5)


def test_prompts_in_one_batch_equal_a_loop():
    sam2 = tiny()
    with torch.no_grad():
        embedding = sam2.encode(random(3, 3, 64, 64))
        index = torch.tensor([2, 0, 2, 1])
        sparse, dense = random(4, 5, 128, seed=2), random(4, 128, 4, 4, seed=3)
        masks = sam2.decode(embedding, Prompt(sparse, dense, index))
        assert masks.logits.shape == (4, 1, 16, 16)
        for p, image in enumerate(index):
            one = slice(image, image + 1)
            alone = Embedding(embedding.features[one], tuple(part[one] for part in embedding.high_res))
            prompt = Prompt(sparse[p : p + 1], dense[p : p + 1], torch.zeros(1, dtype=torch.int64))
            torch.testing.assert_close(sam2.decode(alone, prompt).logits[0], masks.logits[p], rtol=0, atol=1e-5)


def test_decoder_is_never_another_mask_and_has_the_original_epsilon():
    decoder = tiny().model.mask_decoder
    assert decoder.dynamic_multimask_via_stability is False
    norms = [part for part in decoder.transformer.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert decoder.upscale_layer_norm.eps == 1e-6


# -- memories ---------------------------------------------------------------------------------------------------------


def test_several_objects_in_one_pass_equal_single_runs():
    sam2 = tiny()
    with torch.no_grad():
        features = sam2.encode(random(1, 3, 64, 64)).features
        memory, positions = random(16 + 8, 3, 64, seed=2), random(16 + 8, 3, 64, seed=3)
        together = sam2.attend(features, memory, positions, pointers=8)
        assert together.shape == (3, 128, 4, 4)
        for n in range(3):
            one = slice(n, n + 1)
            alone = sam2.attend(features, memory[:, one], positions[:, one], pointers=8)
            torch.testing.assert_close(alone[0], together[n], rtol=0, atol=1e-5)
        assert (together[0] - together[1]).abs().max() > 1e-3
        prompt = random(8, 2, 64, seed=4)  # tokens that are no places have no order, and a common position is none
        free = sam2.attend(features, prompt, pointers=8)
        torch.testing.assert_close(sam2.attend(features, prompt.flip(0), pointers=8), free, rtol=0, atol=1e-5)
        moved = sam2.attend(features, prompt, torch.ones(8, 1, 64), pointers=8)
        torch.testing.assert_close(moved, free, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="multiple of 16"):
        sam2.attend(features, prompt)
    with pytest.raises(InputError, match="1 or 2"):
        sam2.attend(features.expand(3, -1, -1, -1), prompt, pointers=8)


def session(sam2: Sam2, frames: torch.Tensor, said: dict[int, dict[int, ObjectPrompt]]) -> dict[int, torch.Tensor]:
    """Masks of the library's own propagation: ``(N, 4g, 4g)`` by frame."""
    side, model = sam2.input_size, sam2.model
    video = Sam2VideoInferenceSession(video=frames, video_height=side, video_width=side, dtype=torch.float32)
    objects = sorted({n for prompts in said.values() for n in prompts})
    for n in objects:
        video.obj_id_to_idx(n)
    for frame, prompts in said.items():
        for n, prompt in prompts.items():
            if prompt.mask is not None:
                video.add_mask_inputs(n, frame, prompt.mask[None, None])
                continue
            points, labels = (prompt.box.reshape(2, 2), [2, 3]) if prompt.box is not None else (prompt.points, [1])
            inputs = {"point_coords": points[None, None], "point_labels": torch.tensor(labels)[None, None]}
            video.add_point_inputs(n, frame, inputs)
        video.obj_with_new_inputs = list(prompts)
        model(video, frame_idx=frame)
    return {out.frame_idx: out.pred_masks[:, 0] for out in model.propagate_in_video_iterator(video)}


BOX = torch.tensor([6.0, 9, 40, 44])


@pytest.mark.parametrize(
    "said",
    [
        {0: {0: ObjectPrompt(mask=square(64))}},
        {0: {0: ObjectPrompt(box=BOX)}},
        {0: {0: ObjectPrompt(points=BOX[None, :2], labels=torch.tensor([1]))}},
        {0: {n: ObjectPrompt(mask=square(64, 4 * n, 30 + n)) for n in range(3)}},
    ],
    ids=["mask", "box", "point", "three masks"],
)
def test_videos_equal_the_library(said):
    sam2 = tiny()
    sam2.model.mask_decoder.dynamic_multimask_via_stability = True  # as the library's own network for videos has it
    frames = random(5, 3, 64, 64, seed=5)
    want = session(sam2, frames, said)
    got = list(sam2.propagate(frames, said, masks="transformers"))
    assert [frame.index for frame in got] == [0, 1, 2, 3, 4]
    for frame in got:
        assert frame.known.all()
        assert frame.logits.std() > 0.1
        torch.testing.assert_close(frame.logits, want[frame.index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("version", ["2.1", "2.0"])
def test_long_videos_equal_the_library_and_stay_small(version, tmp_path):
    sam2 = of_version(version, tmp_path, 32)
    frames = random(18, 3, 32, 32, seed=6)
    said = {0: {0: ObjectPrompt(mask=square(32, 2, 20))}}
    want = session(sam2, frames, said)
    tracker = Tracker(sam2, 1, length=18, masks="transformers")
    for frame in frames:
        found = tracker.step(frame, said.get(tracker.index))
        torch.testing.assert_close(found.logits, want[found.index], rtol=0, atol=1e-4)
        assert len(tracker.recent[0]) <= 15
        assert sum(kept.spatial is not None for kept in tracker.recent[0]) <= 6
    assert len(tracker.conditioning[0]) == 1


def of_version(version: str, folder, side: int) -> Sam2:
    """A tiny SAM of either version, loaded from a folder."""
    path = folder / f"sam{version}.safetensors"
    state = load_backbone(BackboneConfig(name="sam2-tiny-test")).model.state_dict()
    if version == "2.0":
        state = {key: value for key, value in state.items() if not re.match("occlusion|temporal_positional", key)}
    save_file({key: value.clone() for key, value in state.items() if key != FOURIER_TWIN}, path)
    sam2 = load_backbone(BackboneConfig(name=str(path), input_size=side))
    assert infer_sam2(sam2.model.state_dict(), path).version == version
    with torch.no_grad():
        sam2.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(1.0)
    return sam2


def test_prompts_on_any_frame_and_objects_that_do_not_meddle():
    sam2, frames = tiny(), random(9, 3, 64, 64, seed=7)
    said = {
        1: {0: ObjectPrompt(mask=square(64))},
        3: {1: ObjectPrompt(box=BOX)},
        5: {
            0: ObjectPrompt(points=BOX.reshape(2, 2), labels=torch.tensor([1, 0])),
            2: ObjectPrompt(mask=square(64, 0)),
        },
    }
    both = list(sam2.propagate(frames, said))
    assert [frame.known.tolist() for frame in both[:6]] == [
        [False] * 3,
        [True, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, False],
        [True] * 3,
    ]
    assert (both[0].logits == ABSENT).all()
    for n in range(3):
        alone = {i: {0: prompts[n]} for i, prompts in said.items() if n in prompts}
        for frame in sam2.propagate(frames, alone):
            torch.testing.assert_close(frame.logits[0], both[frame.index].logits[n], rtol=0, atol=1e-4)


def test_conditioning_frames_are_bounded_and_prompts_checked():
    sam2 = tiny(input_size=32)
    tracker = Tracker(sam2, 1, conditioning=2)
    for frame in random(6, 3, 32, 32):
        tracker.step(frame, {0: ObjectPrompt(mask=square(32, 2, 20))})
    assert [kept.frame for kept in tracker.conditioning[0]] == [4, 5]
    with pytest.raises(InputError, match="object 3"):
        tracker.step(random(3, 32, 32), {3: ObjectPrompt(box=BOX)})
    with pytest.raises(InputError, match="without labels"):
        ObjectPrompt(points=BOX[None, :2])
    with pytest.raises(InputError, match="prompt of nothing"):
        ObjectPrompt()
    with pytest.raises(InputError, match="without prompts"):
        next(sam2.propagate([], {}))


def test_an_object_that_is_gone_is_absent():
    sam2, said = tiny(), {0: {0: ObjectPrompt(mask=square(64))}}
    with torch.no_grad():
        sam2.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-50.0)
    frames = random(3, 3, 64, 64)
    first, *rest = sam2.propagate(frames, said)
    assert first.logits.max() > 0
    assert all((frame.logits == ABSENT).all() and frame.scores < 0 for frame in rest)
    ungated = list(sam2.propagate(frames, said, gate=False))
    assert all((frame.logits != ABSENT).all() for frame in ungated)


def test_a_prompt_in_the_place_of_memories():
    sam2, frames = tiny(), random(3, 3, 64, 64)
    proxy = Proxy(random(8, 2, 64, seed=3))
    tracker = Tracker(sam2, 2, gate=False, multimask=False)
    found = tracker.step(frames[0], proxy=proxy, conditions=True)
    with torch.no_grad():
        embedding = sam2.encode(frames[:1])
        read = Embedding(sam2.attend(embedding.features, proxy.tokens, pointers=8), embedding.high_res)
        want = sam2.decode(read, sam2.embed_prompts(torch.arange(2)))
    torch.testing.assert_close(found.logits, want.logits[:, 0], rtol=0, atol=1e-5)
    with_bank = tracker.step(frames[1], proxy=proxy)
    without = Tracker(sam2, 2, gate=False, multimask=False).step(frames[1], proxy=proxy)
    assert (with_bank.logits - without.logits).abs().max() > 1e-4
    assert [len(kept) for kept in (*tracker.conditioning, *tracker.recent)] == [1, 1, 1, 1]


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [e for e in zoo.list_backbones() if e.family == "sam2"], ids=lambda entry: entry.name)
def test_parameters_are_as_the_zoo_states_them(entry):
    model = build_sam2(entry.architecture, entry.input_size)  # on the meta device: shapes only
    count = sum(p.numel() for p in model.parameters())
    assert count == entry.parameters
    assert round(count * 4 / 1e6) == entry.megabytes
    assert infer_sam2({**model.state_dict()}, Path("sam2.pt")) == entry.architecture


def original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of ours under the names of the original code, written out here on their own."""
    trunk, fuser = "vision_encoder.backbone", "memory_encoder.memory_fuser"
    names = {
        r"^vision_encoder\.neck\.convs\.(\d)\.": r"image_encoder.neck.convs.\1.conv.",
        rf"^{trunk}\.patch_embed\.projection": f"{trunk}.patch_embed.proj",
        rf"^({trunk}.*)layer_norm": r"\1norm",
        rf"^({trunk}.*mlp\.)proj_in": r"\1layers.0",
        rf"^({trunk}.*mlp\.)proj_out": r"\1layers.1",
        rf"^{trunk}": "image_encoder.trunk",
        r"^shared_image_embedding\.pos.*": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        r"mask_embed\.conv1": "mask_downscaling.0",
        r"mask_embed\.layer_norm1": "mask_downscaling.1",
        r"mask_embed\.conv2": "mask_downscaling.3",
        r"mask_embed\.layer_norm2": "mask_downscaling.4",
        r"mask_embed\.conv3": "mask_downscaling.6",
        r"^(mask_decoder\.transformer.*mlp\.)proj_in": r"\1layers.0",
        r"^(mask_decoder\.transformer.*mlp\.)proj_out": r"\1layers.1",
        r"^(mask_decoder\.transformer.*)layer_norm": r"\1norm",
        r"\.o_proj\.": ".out_proj.",
        r"upscale_conv1": "output_upscaling.0",
        r"upscale_layer_norm": "output_upscaling.1",
        r"upscale_conv2": "output_upscaling.3",
        r"^(mask_decoder\.(?!tr).*|object_pointer_proj)\.layers\.0\.": r"\1.layers.1.",
        r"^(mask_decoder\.(?!tr).*|object_pointer_proj)\.proj_in\.": r"\1.layers.0.",
        r"^(mask_decoder\.(?!tr).*|object_pointer_proj)\.proj_out\.": r"\1.layers.2.",
        r"^object_pointer_proj": "obj_ptr_proj",
        r"^(memory_attention.*)layer_norm": r"\1norm",
        rf"^({fuser}.*)layer_norm": r"\1norm",
        rf"^({fuser}.*)depthwise_conv": r"\1dwconv",
        rf"^({fuser}.*)pointwise_conv": r"\1pwconv",
        rf"^({fuser}.*)scale": r"\1gamma",
        rf"^{fuser}": "memory_encoder.fuser",
        r"^memory_encoder\.feature_projection": "memory_encoder.pix_feat_proj",
        r"^memory_encoder\.projection": "memory_encoder.out_proj",
        r"mask_downsampler\.final_conv": "mask_downsampler.encoder.12",
        r"^memory_temporal_positional_encoding": "maskmem_tpos_enc",
        r"^no_memory_embedding": "no_mem_embed",
        r"^no_memory_positional_encoding": "no_mem_pos_enc",
        r"^no_object_pointer": "no_obj_ptr",
        r"^occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
        r"^temporal_positional_encoding_projection_layer": "obj_ptr_tpos_proj",
        r"^(prompt_encoder|mask_decoder)\.": r"sam_\1.",
    }
    found = {}
    for key, value in state.items():
        if key == FOURIER_TWIN:
            continue
        if match := re.fullmatch(r"(memory_encoder\.mask_downsampler)\.layers\.(\d)\.(conv|layer_norm)\.(.*)", key):
            key = f"{match[1]}.encoder.{3 * int(match[2]) + (match[3] == 'layer_norm')}.{match[4]}"
        for pattern, replacement in names.items():
            key = re.sub(pattern, replacement, key)
        if key == "sam_prompt_encoder.point_embed.weight":
            found |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(value)}
        else:
            found[key] = value
    return found


def test_original_files_load_strictly(tmp_path):
    sam2 = tiny(seed=3)
    state = original({key: value.clone() for key, value in sam2.model.state_dict().items()})
    assert sum(key.startswith(("sam_", "image_encoder.", "memory_", "obj_ptr", "mask_down")) for key in state) == 330
    assert {"no_mem_embed", "no_mem_pos_enc", "maskmem_tpos_enc", "no_obj_ptr", "no_obj_embed_spatial"} < state.keys()
    assert torch.equal(translate(state)[POINTS], sam2.model.prompt_encoder.point_embed.weight)
    path = tmp_path / "sam2.pt"
    torch.save({"model": state}, path)
    loaded = load_backbone(BackboneConfig(name=str(path)), family="sam2")
    assert not loaded.from_scratch
    assert loaded.base_hash == sam2_hash(sam2)
    images = random(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.encode(images).features, sam2.encode(images).features)
    frames, said = random(3, 3, 64, 64), {0: {0: ObjectPrompt(box=BOX)}}
    for one, other in zip(loaded.propagate(frames, said), sam2.propagate(frames, said), strict=True):
        assert torch.equal(one.logits, other.logits)
    torch.save({"model": {**state, "odd": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"unexpected: odd"):
        load_backbone(BackboneConfig(name=str(path)))
    torch.save({"model": {key: value for key, value in state.items() if key != "no_obj_ptr"}}, path)
    with pytest.raises(InputError, match=r"missing: no_object_pointer"):
        load_backbone(BackboneConfig(name=str(path)))


def sam2_hash(sam2: Sam2) -> str:
    sam2._base_hash = None  # the test changed a bias after loading
    return sam2.base_hash


def test_rename_leaves_no_original_name():
    model = build_sam2(HIERAS["tiny"], 1024)
    names = [key for key in model.state_dict() if key != FOURIER_TWIN and key != POINTS]
    back = original({key: torch.zeros(0) for key in names})
    assert {rename(key) for key in back} == set(names)
    assert len(back) == len(names)


def test_folders_of_the_library(tmp_path):
    sam2 = tiny(seed=4)
    sam2.model.config.save_pretrained(tmp_path)
    save_file({key: value.clone() for key, value in sam2.model.state_dict().items()}, tmp_path / "model.safetensors")
    loaded = load_backbone(BackboneConfig(name=str(tmp_path)))
    assert loaded.input_size == 64
    with torch.no_grad():
        images = random(1, 3, 64, 64)
        assert torch.equal(loaded.encode(images).features, sam2.encode(images).features)
    with pytest.raises(InputError, match="family sam2"):
        load_backbone(BackboneConfig(name=str(tmp_path)), family="sam")
    with pytest.raises(InputError, match="another number of masks"):
        load_backbone(BackboneConfig(name=str(tmp_path)), masks=5)


def test_seeds_and_hashes():
    state = torch.get_rng_state()
    one, same, other = (load_backbone(BackboneConfig(name="sam2-tiny-test"), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.base_hash == same.base_hash != other.base_hash
    assert one.from_scratch
    assert all(torch.isfinite(tensor).all() for tensor in (*one.state_dict().values(), *one.buffers()))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.image_pe, one.image_pe)
    scratch = zoo.BACKBONES["sam2-scratch"]
    assert [scratch.architecture_for(side).patch for side in (None, 512, 128)] == [16, 16, 8]
    small = load_backbone(BackboneConfig(name="sam2-scratch", input_size=64))
    assert (small.grid, small.patch) == (8, 8)
    frames = random(2, 3, 64, 64)
    for found in small.propagate(frames, {0: {0: ObjectPrompt(mask=square(64))}}, gate=False):
        assert found.logits.shape == (1, 32, 32)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_adapters_start_as_the_base_and_merge():
    sam2, images = tiny(), random(2, 3, 64, 64)

    def run() -> torch.Tensor:
        embedding = sam2.encode(images)
        features = sam2.attend(embedding.features, random(8, 2, 64), pointers=8)
        return sam2.decode(Embedding(features, embedding.high_res), sam2.embed_prompts(torch.arange(2))).logits

    with torch.no_grad():
        base, before = run(), sam2_hash(sam2)
        add_lora(sam2, LoraConfig(rank=2, memory=["q", "v"]))
        torch.testing.assert_close(run(), base, rtol=0, atol=1e-5)
        names = adapter_state(sam2)
        assert sum("vision_encoder" in name for name in names) == 5 * 2 * 2
        assert sum("mask_decoder" in name for name in names) == 7 * 2 * 2
        assert sum("memory_attention" in name for name in names) == 2 * 2 * 2 * 2
        for name, parameter in sam2.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * random(*parameter.shape))
        adapted = run()
        assert (adapted - base).abs().max() > 1e-2
        assert sam2.base_hash == before
        torch.testing.assert_close(merge_lora(sam2) and run(), adapted, rtol=0, atol=1e-4)
    plain = add_lora(tiny(), LoraConfig())
    assert not any("memory_attention" in name for name in adapter_state(plain))
    sam = load_backbone(BackboneConfig(name="tiny"))
    with pytest.raises(InputError, match="has no memory"):
        add_lora(sam, LoraConfig(memory=["q"]))


def test_gradients_reach_adapters_memories_and_the_prompt():
    sam2 = add_lora(tiny(), LoraConfig(rank=2, memory=["q", "v"])).train()
    assert not sam2.model.memory_attention.training  # no dropout in a frozen base
    memory = random(8, 2, 64).requires_grad_()
    embedding = sam2.encode(random(1, 3, 64, 64))
    spatial = sam2.remember(embedding.features, random(2, 1, 64, 64).sigmoid(), torch.tensor([True, False]))
    assert spatial.dtype == torch.float32
    positions = torch.cat([sam2.spatial_positions(1).expand(-1, 2, -1), torch.zeros(8, 2, 64)])
    features = sam2.attend(embedding.features, torch.cat([spatial, memory]), positions, pointers=8)
    logits = sam2.decode(Embedding(features, embedding.high_res), sam2.embed_prompts(torch.arange(2))).logits
    logits.square().mean().backward()
    assert memory.grad is not None
    assert memory.grad.abs().max() > 0
    for name, parameter in sam2.model.named_parameters():
        if "lora_B" in name:
            assert parameter.grad.abs().max() > 0, name
        elif "lora_" not in name:
            assert parameter.grad is None, name


@pytest.mark.parametrize("memory", [False, True])
def test_everything_that_is_trained_gets_a_gradient(memory):
    sam2 = tiny(train="all", checkpointing=True).train()
    sam2.train_whole(memory=memory)
    embedding = sam2.encode(random(2, 3, 64, 64))
    if memory:
        features = sam2.attend(embedding.features, random(8, 2, 64), random(8, 2, 64, seed=2), pointers=8)
        embedding = Embedding(features, embedding.high_res)
    else:
        embedding = sam2.unconditioned(embedding)
    sam2.decode(embedding, sam2.embed_prompts(torch.arange(2))).logits.square().mean().backward()
    trained = {name: p.grad for name, p in sam2.model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert any("memory_attention" in name for name in trained) == memory
    assert any("vision_encoder" in name for name in trained)


def test_architectures_are_all_different():
    assert len({dataclasses.replace(arch, input_size=0) for arch in (*HIERAS.values(), SAM2_TEST)}) == 5
