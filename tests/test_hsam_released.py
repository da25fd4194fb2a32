"""Released weights of H-SAM: names, what is dropped, what is refused, published counts, import to prediction."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from samsans import architectures, cli, config
from samsans.backbones.adapters import add_lora
from samsans.backbones.sam import LoadReport, Sam, build_network
from samsans.config import LoraConfig
from samsans.errors import InputError
from samsans.inference import Segmenter, load
from samsans.methods.hsam.config import CmattnConfig, HsamConfig
from samsans.methods.hsam.model import HSam, build
from samsans.methods.hsam.released import load_released, read_released
from samsans.methods.weights import trained_names
from samsans.training.imported import import_released
from samsans.types import ClassInfo

RANK, OBJECTS = 5, ("spleen", "liver")
SETTINGS = {"backbone": {"name": "tiny", "input_size": 64, "train": "lora"}}

# Ours -> released, written down a second time and in the other direction.
BACK = (
    (r"stage1\.(transformer\..*\.)layer_norm([1-4])\.", r"mask_decoder.\1norm\2."),
    (r"stage1\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"stage1\.class_tokens\.", "mask_decoder.mask_tokens."),
    (r"stage1\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"stage1\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"stage1\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"stage1\.hypernetworks\.(\d+)\.proj_in\.", r"mask_decoder.output_hypernetworks_mlps.\1.layers.0."),
    (r"stage1\.hypernetworks\.(\d+)\.layers\.0\.", r"mask_decoder.output_hypernetworks_mlps.\1.layers.1."),
    (r"stage1\.hypernetworks\.(\d+)\.proj_out\.", r"mask_decoder.output_hypernetworks_mlps.\1.layers.2."),
    (r"stage1\.", "mask_decoder."),
    (r"stage2\.layers\.(\d+)\.self_attention\.", r"mask_decoder2.transformer.layers.\1.self_attn."),
    (r"stage2\.layers\.(\d+)\.(token_to|image_to)", r"mask_decoder2.transformer.layers.\1.cross_attn_\2"),
    (r"stage2\.layers\.(\d+)\.mlp\.proj_in\.", r"mask_decoder2.transformer.layers.\1.mlp.lin1."),
    (r"stage2\.layers\.(\d+)\.mlp\.proj_out\.", r"mask_decoder2.transformer.layers.\1.mlp.lin2."),
    (r"stage2\.layers\.", "mask_decoder2.transformer.layers."),
    (r"stage2\.final_attention\.", "mask_decoder2.transformer.final_attn_token_to_image."),
    (r"stage2\.final_norm\.", "mask_decoder2.transformer.norm_final_attn."),
    (r"stage2\.class_tokens\.", "mask_decoder2.mask_tokens."),
    (r"stage2\.upscale\.", "mask_decoder2.output_upscaling."),
    (r"stage2\.pixel_decoder\.", "mask_decoder2.skip_upscaling."),
    (r"stage2\.hypernetworks\.(\d+)\.proj_in\.", r"mask_decoder2.output_hypernetworks_mlps.\1.layers.0."),
    (r"stage2\.hypernetworks\.(\d+)\.proj_out\.", r"mask_decoder2.output_hypernetworks_mlps.\1.layers.4."),
)
FOURIER = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def released_name(ours: str) -> str:
    if match := re.search(r"layers\.(\d+)\.attn\.qkv\.([qv])\.lora_([AB])", ours):
        return f"w_{match[3].lower()}_{2 * int(match[1]) + 'qv'.index(match[2]):03d}"
    if ours == "dense":
        return "prompt_encoder.no_mask_embed.weight"
    if match := re.match(r"stage2\.hypernetworks\.(\d+)\.layers\.(\d+)\.", ours):
        end = f"{match[1]}.layers.{int(match[2]) + 1}.{ours[match.end() :]}"
        return f"mask_decoder2.output_hypernetworks_mlps.{end}"
    return next(re.sub(pattern, back, ours) for pattern, back in BACK if re.match(pattern, ours))


def unused(classes: int, positions: int, width: int = 256) -> dict[str, nn.Module]:
    """What the released network has and nobody trains or uses, at its published shapes; names as assumed."""

    def mlp(into: int) -> nn.Module:
        parts = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, into)])
        return nn.ModuleDict({"layers": parts})

    channels = width // 64
    cmattn = nn.ModuleDict({name: nn.LayerNorm(positions) for name in ("norm1", "norm2")})
    for attention in ("attention1", "attention2"):
        linears = {f"{part}_proj": nn.Linear(positions, positions) for part in ("q", "k", "v", "out")}
        cmattn[attention] = nn.ModuleDict(linears)
    cmattn["mlp"] = nn.ModuleList([nn.Linear(positions, 2048), nn.Linear(2048, positions)])
    cmattn["score"] = nn.Linear(classes, 1)
    parts: dict[str, nn.Module] = {
        "prompt_encoder.point_embeddings": nn.ModuleList(nn.Embedding(1, width) for _ in range(11)),
        "prompt_encoder.not_a_point_embed": nn.Embedding(1, width),
        "prompt_encoder.mask_downscaling": nn.Sequential(
            nn.Conv2d(1, channels, 2),
            nn.GroupNorm(1, channels),
            nn.GELU(),
            nn.Conv2d(channels, 4 * channels, 2),
            nn.GroupNorm(1, 4 * channels),
            nn.GELU(),
            nn.Conv2d(4 * channels, width, 1),
        ),
        "mask_decoder.iou_prediction_head": mlp(classes),
        "mask_decoder2.iou_prediction_head": mlp(classes),
        "mask_decoder2.cmattn": cmattn,
    }
    for block in range(2):
        for attention in ("token_to_image", "image_to_token"):
            for number, side in enumerate((9, 196, 1024)):
                name = f"mask_decoder2.transformer.layers.{block}.cross_attn_{attention}.norm_{number}"
                parts[name] = nn.LayerNorm(side)
    return parts


def tiny(objects: tuple[str, ...] = OBJECTS, rank: int = RANK, **model: Any) -> HSam:
    settings = {**SETTINGS, "lora": {"rank": rank, "alpha": rank}}
    return build(config.from_dict(settings | {"model": model}, method="hsam", preset="released"), objects)


@pytest.fixture(scope="module")
def source() -> HSam:
    """An H-SAM with all trained parts, adapters too, set to random numbers."""
    method, draw = tiny().eval(), torch.Generator().manual_seed(1)
    state = method.state_dict()
    for name in trained_names(method):
        state[name].copy_(torch.randn(state[name].shape, generator=draw) * 0.2)
    return method


@pytest.fixture
def released(source: HSam) -> dict[str, Tensor]:
    state = source.state_dict()
    out = {released_name(name): state[name].clone() for name in trained_names(source)}
    out["prompt_encoder.no_mask_embed.weight"] = out["prompt_encoder.no_mask_embed.weight"][None]
    out[FOURIER] = state["backbone.model.shared_image_embedding.positional_embedding"].clone()
    for name, module in unused(len(OBJECTS) + 1, source.backbone.grid**2, source.backbone.channels * 2).items():
        out |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return out


@pytest.fixture
def file(released: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(released, tmp_path / "epoch_299.pth")
    return tmp_path / "epoch_299.pth"


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_every_tensor_arrives_and_the_answers_are_the_same(source: HSam, file: Path) -> None:
    method = tiny().eval()
    found = load_released(method, file)
    assert (found.rank, found.blocks, found.width, found.classes, found.positions) == (RANK, 2, 32, 3, 16)
    own, theirs = method.state_dict(), source.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    features = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        a, b = source.decode(features), method.decode(features)
    assert a.logits_full is not None
    assert b.logits_full is not None
    assert torch.equal(a.logits_low, b.logits_low)
    assert torch.equal(a.logits_full, b.logits_full)


def test_safetensors_and_wrapped_files_are_read_too(released: dict[str, Tensor], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(released, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in released.items()}}, tmp_path / "a.pt")
    first, second = read_released(tmp_path / "a.safetensors"), read_released(tmp_path / "a.pt")
    assert first.state.keys() == second.state.keys()
    assert all(value.dtype == torch.float32 for value in second.state.values())


def test_two_adapters_a_block_query_first(source: HSam, released: dict[str, Tensor]) -> None:
    layers = source.backbone.model.vision_encoder.layers
    assert torch.equal(released["w_a_003"], layers[1].attn.qkv.v.lora_A["default"].weight)
    assert torch.equal(released["w_b_002"], layers[1].attn.qkv.q.lora_B["default"].weight)


def test_unknown_names_are_listed_by_group_and_can_be_mapped(released: dict[str, Tensor], tmp_path: Path) -> None:
    odd = {
        k.replace("skip_upscaling", "up2").replace("mask_decoder2.cmattn", "gate.net"): v for k, v in released.items()
    }
    path = saved(odd, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"mask_decoder2\.up2: 8 \(.*gate\.net: 26") as error:
        read_released(path)
    assert "--names" in str(error.value)
    method = tiny()
    found = load_released(method, path, {r"mask_decoder2\.up2\.": "stage2.pixel_decoder.", r"gate\.": None})
    assert found.unused["dropped by the caller"] == sum(v.numel() for k, v in released.items() if ".cmattn." in k)
    assert torch.equal(method.stage2.pixel_decoder[0].weight, released["mask_decoder2.skip_upscaling.0.weight"])
    with pytest.raises(InputError, match="no regular expression"):
        read_released(path, {"(": None})
    with pytest.raises(InputError, match=r"is 3\. Expected the beginning"):
        read_released(path, {"gate": 3})


def test_the_message_alone_is_enough_to_write_the_table(
    source: HSam, released: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file whose second decoder has other names: from the error to ``--names``, reading nothing else."""
    others = {
        "mask_decoder2.skip_upscaling.": "mask_decoder2.up2.",
        "mask_decoder2.cmattn.": "gate.net.",
        "mask_decoder2.mask_tokens.": "classes2.",
        "mask_decoder2.transformer.norm_final_attn.": "mask_decoder2.norm_last.",
    }
    odd = dict(released)
    for theirs, other in others.items():
        odd = {name.replace(theirs, other): tensor for name, tensor in odd.items()}
    masked = re.compile(r"(mask_decoder2.*)cross_attn_token_to_image\.(?=\w+_proj)")
    odd = {masked.sub(r"\1t2i.", name): tensor for name, tensor in odd.items()}
    path, table, run = saved(odd, tmp_path / "odd.pth"), tmp_path / "names.yaml", tmp_path / "run"
    argv = ["import", "hsam", str(path), "-o", str(run), "--backbone", "tiny", "--input-size", "64"]
    argv += ["--classes", *OBJECTS]
    assert cli.main(argv) == 2
    message = " ".join(capsys.readouterr().err.split())
    unknown = dict(re.findall(r"[(,] ?([\w.]+) ([\dx]+)(?=[,)])", message))
    assert unknown == {name: "x".join(map(str, odd[name].shape)) for name in odd.keys() - released.keys()}
    ours = re.findall(r"'([\w.]+)'", message.partition("Of ours these are missing: ")[2])
    assert ours == [
        "stage2.layers.N.token_to_image.",
        "stage2.final_norm.",
        "stage2.class_tokens.",
        "stage2.pixel_decoder.",
    ]
    assert r"--names FILE, YAML" in message
    assert r"N is (\d+) on the left and \1 on the right" in message
    rows = {
        r"mask_decoder2\.transformer\.layers\.(\d+)\.t2i\.": ours[0].replace("N", r"\1"),
        r"mask_decoder2\.norm_last\.": ours[1],
        r"classes2\.": ours[2],
        r"mask_decoder2\.up2\.": ours[3],
        r"gate\.net\.": None,
    }
    table.write_text(yaml.safe_dump(rows))
    assert cli.main([*argv, "--names", str(table)]) == 0
    made = load(run, device="cpu").method.state_dict()
    theirs = source.state_dict()
    assert all(torch.equal(made[name], theirs[name]) for name in theirs if name.startswith("stage"))


def test_second_name_of_the_prompt_encoder_must_agree(released: dict[str, Tensor], tmp_path: Path) -> None:
    key = "prompt_encoder2.no_mask_embed.weight"
    twin = released | {key: released["prompt_encoder.no_mask_embed.weight"].clone()}
    assert read_released(saved(twin, tmp_path / "twin.pth")).state.keys()
    twin[key] = twin[key] + 1
    with pytest.raises(InputError, match="two different tensors that mean dense"):
        read_released(saved(twin, tmp_path / "twin.pth"))


def test_one_sentence_for_each_mismatch(released: dict[str, Tensor], file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rank 5\. Expected rank 4.*lora\.rank=5"):
        load_released(tiny(rank=4), file)
    with pytest.raises(InputError, match=r"3 classes apart, background included\. Expected 2.*2 objects"):
        load_released(tiny(("spleen",)), file)
    for option in ({"order": "sam"}, {"stages": 1}, {"cmattn": {"mode": "paper"}}):
        with pytest.raises(InputError, match="preset=released"):
            load_released(tiny(**option), file)
    bigger = SETTINGS | {"backbone": SETTINGS["backbone"] | {"input_size": 128}, "lora": {"rank": RANK}}
    method = build(config.from_dict(bigger, method="hsam", preset="released"), OBJECTS)
    with pytest.raises(InputError, match=r"trained at 64 px.*backbone\.input_size=64"):
        load_released(method, file)
    deep = released | {"w_a_004": released["w_a_000"], "w_a_005": released["w_a_000"]}
    with pytest.raises(InputError, match="adapts 3 encoder blocks of width 32"):
        load_released(tiny(), saved(deep, tmp_path / "deep.pth"))
    other = released | {FOURIER: released[FOURIER] + 1}
    with pytest.raises(InputError, match="other base weights"):
        load_released(tiny(), saved(other, tmp_path / "other.pth"))


def test_missing_and_misshapen_tensors_change_nothing(released: dict[str, Tensor], tmp_path: Path) -> None:
    method = tiny()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    less = {name: value for name, value in released.items() if not name.endswith("iou_token.weight")}
    with pytest.raises(InputError, match=r"missing: stage1\.iou_token \(1\)"):
        load_released(method, saved(less, tmp_path / "less.pth"))
    wide = released | {"mask_decoder2.mask_tokens.weight": torch.zeros(3, 31)}
    with pytest.raises(InputError, match=r"stage2\.class_tokens\.weight is \(3, 31\)"):
        load_released(method, saved(wide, tmp_path / "wide.pth"))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        read_released(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match="has no adapters"):
        read_released(saved({"mask_decoder.iou_token.weight": torch.zeros(1, 8)}, tmp_path / "a.pth"))
    with pytest.raises(InputError, match="holds 1 tensors that are not known: linear: 1 "):
        read_released(saved({"linear": torch.zeros(1, 8)}, tmp_path / "b.pth"))


def test_import_to_prediction(source: HSam, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command makes a run that predicts what the method predicts that the tensors came from."""
    run = tmp_path / "run"
    argv = ["import", "hsam", str(file), "-o", str(run), "--backbone", "tiny"]
    argv += ["--classes", *OBJECTS, "--window", "0", "9"]
    assert cli.main(argv) == 0
    assert "samsans predict" in capsys.readouterr().out
    segmenter = load(run, device="cpu")
    assert segmenter.config.lora.rank == RANK
    assert segmenter.config.backbone.input_size == 64
    assert [(c.name, c.label, c.values) for c in segmenter.classes] == [("spleen", 1, (1,)), ("liver", 2, (2,))]
    image = np.random.default_rng(0).integers(0, 10, (3, 70, 50)).astype(np.float32)
    infos = [ClassInfo(name, label, (label,)) for label, name in enumerate(OBJECTS, 1)]
    want = Segmenter(source, segmenter.config, infos, device="cpu").predict(image, probabilities=True)
    got = segmenter.predict(image, probabilities=True)
    assert len(np.unique(want.labels)) > 1
    assert np.mean(got.labels != want.labels) < 1e-3  # adapters are merged in one of them
    np.testing.assert_allclose(got.probabilities.astype(float), want.probabilities.astype(float), atol=2e-3)
    assert cli.main(argv) == 2
    assert "is not empty" in capsys.readouterr().err


def test_import_refuses_before_it_writes(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"0 names for the classes.*Expected 2"):
        import_released(file, run, backbone="tiny")
    with pytest.raises(InputError, match="trained at 64 px"):
        import_released(file, run, backbone="tiny", input_size=128, classes=OBJECTS)
    with pytest.raises(InputError, match="released weights of 'samed'"):
        import_released(file, run, backbone="tiny", method="samed", classes=OBJECTS)
    assert not run.exists()
    rows = tmp_path / "names.yaml"
    rows.write_text(yaml.safe_dump({r"mask_decoder2\.mask_tokens\.": "stage2.tokens."}))
    base = ["import", "hsam", str(file), "-o", str(run), "--backbone", "tiny", "--classes", *OBJECTS]
    assert cli.main([*base, "--names", str(rows)]) == 2
    assert "missing: stage2.class_tokens (1); unexpected: stage2.tokens (1)" in capsys.readouterr().err


def test_eight_objects_are_those_of_synapse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = tiny(tuple(f"object {n}" for n in range(8)))
    state = method.state_dict()
    path = saved({released_name(name): state[name] for name in trained_names(method)}, tmp_path / "synapse.pth")
    argv = ["import", "hsam", str(path), "-o", str(tmp_path / "windowed"), "--backbone", "tiny", "--input-size", "64"]
    assert cli.main([*argv, "--window", "0", "1"]) == 0
    assert capsys.readouterr().out.count("assumed: ") == 1  # the objects, not the window
    with pytest.raises(InputError, match="does not tell its input side"):
        import_released(path, tmp_path / "run", backbone="tiny")
    told: list[str] = []
    run = import_released(path, tmp_path / "run", backbone="tiny", input_size=64, say=told.append)
    assert told[0].startswith("assumed: the eight objects are Synapse's, spleen, right kidney, left kidney, gall")
    assert told[1].startswith("assumed: intensities in HU, shown from -125 to 275")
    assert len(told) == 2
    segmenter = load(run, device="cpu")
    assert [c.name for c in segmenter.classes][1:4] == ["right kidney", "left kidney", "gallbladder"]
    assert segmenter.config.data.window == [-125.0, 275.0]


# Columns of the published network: architecture, side, classes, rank -> the seven counts.
COUNTS = {
    ("b", 512, 9, 4): (111_245_520, 23_966_672, 147_456, 87_426_304, 8_012, 4_759_945, 19_051_259),
    ("b", 512, 9, 5): (111_282_384, 24_003_536, 184_320, 87_463_168, 8_012, 4_759_945, 19_051_259),
    ("b", 224, 9, 4): (99_107_652, 12_483_140, 147_456, 86_771_968, 8_012, 4_759_945, 7_567_727),
    ("b", 512, 2, 4): (108_388_715, 21_109_867, 147_456, 87_426_304, 8_012, 3_777_698, 17_176_701),
    ("l", 224, 9, 4): (316_962_372, 12_728_900, 393_216, 304_626_688, 8_012, 4_759_945, 7_567_727),
    ("l", 224, 9, 5): (317_060_676, 12_827_204, 491_520, 304_724_992, 8_012, 4_759_945, 7_567_727),
}


def parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


@pytest.mark.parametrize("column", COUNTS, ids=str)
def test_parameter_counts_of_the_released_network(column: tuple[str, int, int, int]) -> None:
    """Ours, with CMAttn, and the documented unused parts are the released network, to the unit."""
    arch, side, classes, rank = column
    network = build_network(dataclasses.replace({"b": architectures.VIT_B, "l": architectures.VIT_L}[arch]), side)
    with torch.device("meta"):
        sam = Sam(network, name=arch, from_scratch=False, report=LoadReport("nothing", 0))
        sam._base_hash = "no weights"
        add_lora(sam, LoraConfig(rank, float(rank), decoder=[]))
        method = HSam(sam, HsamConfig(cmattn=CmattnConfig(mode="paper")), classes - 1)
        rest = unused(classes, sam.grid**2)
    encoder = sam.model.vision_encoder
    lora = sum(p.numel() for name, p in encoder.named_parameters() if "lora_" in name)
    prompt = method.dense.numel() + parameters(*(m for n, m in rest.items() if n.startswith("prompt_encoder")))
    stage1 = parameters(method.stage1, rest["mask_decoder.iou_prediction_head"])
    extra = [m for n, m in rest.items() if n.startswith("mask_decoder2.") and n != "mask_decoder2.cmattn"]
    stage2 = parameters(method.stage2, method.cmattn, *extra)
    assert parameters(method.cmattn) == parameters(rest["mask_decoder2.cmattn"])
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    ours = lora + method.dense.numel() + parameters(method.stage1, method.stage2, method.cmattn)
    assert trained == ours
    total, grad = parameters(encoder) + prompt + stage1 + stage2, lora + prompt + stage1 + stage2
    assert (total, grad, lora, parameters(encoder), prompt, stage1, stage2) == COUNTS[column]
    if (classes, side) == (9, 512):
        assert parameters(method.stage1) == 4_626_048
        assert parameters(method.stage2) == 6_309_248
        assert parameters(method.cmattn) == 12_598_282
        assert parameters(*(m for n, m in rest.items() if ".norm_" in n)) == 9_832
