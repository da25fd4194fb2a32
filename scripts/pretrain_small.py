"""Train the embedded backbone ``samsans-small`` from nothing.

    python scripts/pretrain_small.py DATA -o OUT --minutes 85 [--resume]

DATA holds the folders named in ``SETS``; those that are absent are left out.  Beside them the network sees generated
phantoms of every kind, drawn afresh all the time.  It learns four things at once: to segment what a prompt points at,
as SAM does (objects, and regions drawn from the image by random rules); to segment all there is of a class, asked for
by one learned token, as methods without prompts do; to tell from its embedding alone which pixels belong to which class
of which set; and to keep in its embedding what the image looks like in detail, in many directions (``narrowness``).
The tokens of the classes and two 1 x 1 convolutions are dropped afterwards.  Everything is our decision.

OUT holds ``state.ckpt`` (every two minutes), ``curve.csv``, ``curve.png`` and ``samsans-small.safetensors`` in float16.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from pretrain_data import (
    DETAILS,
    MASKS,
    POOL,
    PREPROCESS,
    SIDE,
    Pools,
    Sample,
    batch_of,
    box_of,
    phantoms,
    read_real,
)
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from samsans.architectures import SMALL
from samsans.backbones import load_backbone
from samsans.backbones.checkpoints import FOURIER_TWIN
from samsans.config import BackboneConfig
from samsans.data.phantoms import FAMILIES
from samsans.ops.losses import dice_loss
from samsans.types import Prompt

WARMUP = 200  # steps
AVERAGE = 0.995  # of the weights, a step
SAVE = 2.0  # minutes
SCORES = ("box", "point", "class", "dense")


class Pretraining(nn.Module):
    """The network, and what is dropped afterwards: two heads on its embedding, and a token a class."""

    def __init__(self, classes: int, seed: int, fast: bool) -> None:
        super().__init__()
        self.fast = fast  # bfloat16 products; autocast by hand, Fabric's would round coordinates and targets as well
        self.sam = load_backbone(BackboneConfig(name="small-scratch", train="all"), seed=seed)
        self.dense = nn.Conv2d(SMALL.channels, 16 * classes, 1)
        self.detail = nn.Conv2d(SMALL.channels, 16 * DETAILS, 1)
        self.tokens = nn.Embedding(classes, SMALL.channels)

    def embed(self, images: Tensor) -> tuple[Any, Tensor]:
        """Embedding, and dense logits ``(B, classes, 4g, 4g)``."""
        embedding = self.sam.encode(PREPROCESS.normalize(images))
        return embedding, F.pixel_shuffle(self.dense(embedding.features), 4)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        with torch.autocast(batch["images"].device.type, torch.bfloat16, enabled=self.fast):
            return self.losses(batch)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The parts of the loss, weighted."""
        embedding, dense = self.embed(batch["images"])
        chosen, truth = dense[batch["known"][:, 0], batch["known"][:, 1]].float(), batch["dense"]
        out = {"dense": dense_loss(chosen, truth)}
        kept = F.pixel_shuffle(self.detail(embedding.features), 4).float()
        out["detail"] = 0.5 * F.mse_loss(kept, batch["detail"])
        out["spread"] = 0.3 * narrowness(embedding.features)
        asked = batch["asked"]
        logits = self.ask(embedding, batch["known"][asked, 0], batch["known"][asked, 1])
        out["class"] = dense_loss(logits.float(), truth[asked])
        half, guess = len(batch["boxes"]), batch["coarse"]
        parts = {"box": slice(0, half), "point": slice(half, None)}
        for name, part in parts.items():
            prompt = {"boxes": batch["boxes"]} if name == "box" else {"points": batch["points"]}
            prompt |= {} if name == "box" else {"point_labels": batch["labels"]}
            prompt |= {} if guess is None else {"masks": guess[part]}
            several = name == "point" and batch["multimask"]
            made = self.sam.embed_prompts(batch["index"][part], **prompt)
            masks = self.sam.decode(embedding, made, multimask=several)
            out |= mask_losses(name, masks.logits.float(), masks.iou.float(), batch["targets"][part])
        return out

    def ask(self, embedding: Any, index: Tensor, classes: Tensor) -> Tensor:
        """Logits ``(Q, 4g, 4g)`` of all there is of each class in the image of that index: its token is the prompt."""
        no_mask = self.sam.model.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        grid = embedding.features.shape[-1]
        prompt = Prompt(self.tokens(classes)[:, None], no_mask.expand(1, -1, grid, grid), index)
        return self.sam.decode(embedding, prompt).logits[:, 0]


def narrowness(features: Tensor) -> Tensor:
    """Logarithm of C over the effective number of directions in which features ``(B, C, g, g)`` vary in an image.

    That number is ``tr(S)^2 / tr(S^2)`` of their covariance S (the participation ratio).  Few directions are enough for
    the tasks at hand, and slow to learn another from.
    """
    tokens = features.flatten(2).float()
    tokens = (tokens - tokens.mean(2, keepdim=True)).transpose(0, 1).flatten(1)
    covariance = tokens @ tokens.T
    return torch.log(len(tokens) * covariance.square().sum() / covariance.trace().square())


def dense_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Of classes ``(Q, h, w)`` that an image shows: Dice, and cross-entropy in which object and rest weigh the same,
    since small objects drown in the rest otherwise.  Of those that it does not show: half the usual cross-entropy."""
    there = truth.flatten(1).amax(1) > 0
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    inside = (entropy * truth).sum((1, 2)) / truth.sum((1, 2)).clamp(min=1)
    outside = (entropy * (1 - truth)).sum((1, 2)) / (1 - truth).sum((1, 2)).clamp(min=1)
    shown = (dice_loss(logits[there], truth[there]) + 0.5 * (inside + outside)[there]).sum() / there.sum().clamp(min=1)
    return shown + 0.5 * outside[~there].sum() / (~there).sum().clamp(min=1)


def mask_losses(name: str, logits: Tensor, iou: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Dice and cross-entropy of the best of the masks ``(P, M, 4g, 4g)``, and the error of all predicted overlaps."""
    small = F.avg_pool2d(targets[:, None], targets.shape[-1] // MASKS) > 0.5
    with torch.no_grad():
        both = ((logits > 0) & small).sum((2, 3))
        real = both / ((logits > 0) | small).sum((2, 3)).clamp(min=1)
    large = F.interpolate(logits, targets.shape[-2:], mode="bilinear")
    wanted = targets[:, None].expand_as(large)
    entropy = F.binary_cross_entropy_with_logits(large, wanted, reduction="none").mean((2, 3))
    loss = (dice_loss(large, wanted) + 2 * entropy).amin(1)
    return {name: loss.mean(), f"{name}_iou": 0.2 * (iou - real).square().mean()}


@torch.no_grad()
def validate(model: Pretraining, held: dict[str, list[Sample]]) -> dict[str, float]:
    """Mean Dice over sets of exact boxes, of one point in the middle (mask by its predicted overlap), of the dense
    head and of the tokens of classes; on held-out samples."""
    model.eval()
    device = next(model.parameters()).device
    scores: dict[str, float] = {}
    for name, samples in held.items():
        found: dict[str, list[float]] = {kind: [] for kind in SCORES}
        for sample in samples:
            masks = sample.masks[:4].numpy()
            deepest = [np.unravel_index(ndimage.distance_transform_edt(m).argmax(), m.shape)[::-1] for m in masks]
            embedding, dense = model.embed(sample.image.expand(3, -1, -1)[None].to(device))
            index = torch.zeros(len(masks), dtype=torch.int64, device=device)
            boxes = torch.from_numpy(np.stack([box_of(m, None) for m in masks])).to(device)
            points = torch.tensor(np.array(deepest), dtype=torch.float32, device=device)[:, None] + 0.5
            ones = torch.ones(len(masks), 1, dtype=torch.int64, device=device)
            by_box = model.sam.decode(embedding, model.sam.embed_prompts(index, boxes=boxes)).logits
            made = model.sam.embed_prompts(index, points=points, point_labels=ones)
            several = model.sam.decode(embedding, made, multimask=True)
            by_point = several.logits[torch.arange(len(masks)), several.iou.argmax(1)][:, None]
            classes = torch.tensor(sample.present[:4], device=device)
            answers = {"box": by_box, "point": by_point, "dense": dense[0, classes][:, None]}
            answers["class"] = model.ask(embedding, index, classes)[:, None]
            for kind, logits in answers.items():
                drawn = F.interpolate(logits.float(), (SIDE, SIDE), mode="bilinear")[:, 0].cpu().numpy() > 0
                both = 2 * (drawn & masks).sum((1, 2)) / (drawn.sum((1, 2)) + masks.sum((1, 2)))
                found[kind] += both.tolist()
        scores |= {f"{kind} {name}": float(np.mean(values)) for kind, values in found.items()}
    model.train()
    means = {k: float(np.mean([v for s, v in scores.items() if s.startswith(k)])) for k in SCORES}
    return means | scores


def export(model: Pretraining, path: Path, notes: dict[str, str]) -> None:
    """Weights in float16 under the names of ``transformers``; architecture, licence and training in the metadata."""
    state = {k: v.detach().cpu().half().contiguous() for k, v in model.sam.model.state_dict().items()}
    state.pop(FOURIER_TWIN)
    save_file(state, path, {"format": "pt", "architecture": json.dumps(asdict(SMALL))} | notes)


def draw_curve(rows: list[dict[str, float]], path: Path) -> None:
    """Loss and validation Dice over the minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    minutes = [r["minutes"] for r in rows]
    for key, label in (("loss box", "boxes"), ("loss point", "points"), ("loss class", "class tokens")):
        left.plot(minutes, [r[key] for r in rows], label=label)
    for key, label in (("box", "a box"), ("point", "one point"), ("class", "a class's token")):
        right.plot(minutes, [r[key] for r in rows], label=label)
    left.set(xlabel="minutes", ylabel="loss")
    right.set(xlabel="minutes", ylabel="Dice, held-out images", ylim=(0, 1))
    left.legend()
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def train(args: argparse.Namespace) -> None:
    """The loop: it stops when the budget of time is over, not counting the reading of the data."""
    fabric = Fabric(accelerator="auto", devices=1, precision="32-true")
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    pools = Pools()
    read_real(args.data, pools, rng)
    streams = {family: phantoms(family, pools, args.seed) for family in FAMILIES}
    for family, stream in streams.items():
        pools.train[family] = [next(stream) for _ in range(POOL)]
        fresh = phantoms(family, pools, args.seed + 1)
        pools.held[family] = [next(fresh) for _ in range(64)][::8]
    pools.held = {k: [v[i] for i in rng.permutation(len(v))[:24] if v[i].present] for k, v in pools.held.items()}
    names = sorted(pools.train)
    chance = np.sqrt([len(pools.train[n]) for n in names])
    for name, weight in zip(names, chance / chance.sum(), strict=True):
        print(f"{name:22}{len(pools.train[name]):6} slices, {len(pools.held.get(name, ())):3} held out, {weight:.1%}")

    model = Pretraining(len(pools.classes), args.seed, not args.float32)
    decay = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    plain = [p for p in model.parameters() if p.ndim < 2 and p.requires_grad]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    wrapped, optimizer = fabric.setup(model, optimizer)
    average = average.to(fabric.device)
    state: dict[str, Any] = {"model": wrapped, "optimizer": optimizer, "average": average, "step": 0}
    state |= {"seconds": 0.0, "clock": 0.0, "rows": []}
    checkpoint = args.out / "state.ckpt"
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume and checkpoint.is_file():
        fabric.load(checkpoint, state)
        rng = np.random.default_rng([args.seed, state["step"]])
    sums: dict[str, float] = {}
    counted, begun = 0, (time.process_time() - state["seconds"], time.monotonic() - state["clock"])
    validated = saved = state["clock"]

    def record() -> None:
        scores = validate(cast(Pretraining, average.module), pools.held)
        losses = {f"loss {k}": v / max(1, counted) for k, v in sums.items()}
        state["rows"].append({"minutes": state["seconds"] / 60, "step": state["step"]} | losses | scores)
        write(cast(Pretraining, average.module), state["rows"], args)
        print(json.dumps({k: round(v, 4) for k, v in state["rows"][-1].items()}), flush=True)

    while (done := max(state["seconds"] / args.minutes, state["clock"] / args.clock) / 60) < 1:
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * done))
            group["lr"] = args.lr * min(1.0, (state["step"] + 1) / WARMUP) * max(0.01, cosine)
        chosen = rng.choice(len(names), args.batch, p=chance / chance.sum())
        samples = [pools.train[names[i]][rng.integers(len(pools.train[names[i]]))] for i in chosen]
        losses = wrapped(fabric.to_device(batch_of(samples, rng)))
        optimizer.zero_grad()
        fabric.backward(sum(losses.values()))
        fabric.clip_gradients(wrapped, optimizer, max_norm=1.0)
        optimizer.step()
        average.update_parameters(model)
        family = list(FAMILIES)[state["step"] % len(FAMILIES)]
        pools.train[family][rng.integers(POOL)] = next(streams[family])
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        counted += 1
        state["step"] += 1
        state["seconds"], state["clock"] = time.process_time() - begun[0], time.monotonic() - begun[1]
        if state["clock"] - validated > 60 * args.every:
            record()
            sums, counted, validated = {}, 0, state["clock"]
        if state["clock"] - saved > 60 * SAVE:
            fabric.save(checkpoint, state)
            saved = state["clock"]
    if counted:
        record()
    fabric.save(checkpoint, state)


def write(model: Pretraining, rows: list[dict[str, float]], args: argparse.Namespace) -> None:
    """Weights, table and picture of the run so far."""
    with (args.out / "curve.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        table.writeheader()
        table.writerows(rows)
    draw_curve(rows, args.out / "curve.png")
    last = rows[-1]
    training = f"{last['step']:.0f} steps of {args.batch} images, {last['minutes']:.0f} minutes of one core; "
    training += f"held-out Dice: box {last['box']:.3f}, point {last['point']:.3f}, class {last['class']:.3f}"
    export(model, args.out / "samsans-small.safetensors", {"licence": "CC BY-SA 4.0", "training": training})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=85.0, help="of processor time, over all resumptions")
    parser.add_argument("--clock", type=float, default=120.0, help="minutes by the clock, whichever is over first")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=5.0, help="minutes between validations")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the matrix products")
    parser.add_argument("--resume", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
