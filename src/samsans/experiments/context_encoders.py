"""What each context encoder weighs at the paper's size, to the unit, and how the run's own one does (Table 5)."""

from __future__ import annotations

import torch

from samsans import io
from samsans.data.splits import Split
from samsans.experiments import Request
from samsans.experiments.ablation import require_proxy_prompt, score
from samsans.experiments.published_proxy_prompt import published_lines, told
from samsans.methods.proxy_prompt.context import CONTEXT_ENCODERS, build_context_encoder

GRID, PATCH = 64, 16  # 1024 px
HEAD = 192 * 1000 + 1000  # Vim's classification head, which the paper's count holds and nothing uses
PRINTED = {"vim": 7.9, "vit_b": 89.0, "resnet50": 8.5}  # millions


def context_encoders(asked: Request) -> str:
    """Count the parameters of the three context encoders at 1024 px, and score the run; writes
    ``context-encoders.json``, the label maps and a report.

    To compare scores of all three: ``ablation --table context``, which trains them.

    Returns:
        The table as text.

    Raises:
        InputError: the run is not of Proxy Prompt, or holds nobody out.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    require_proxy_prompt(segmenter.config)
    counts = {name: count(name) for name in CONTEXT_ENCODERS}
    own = segmenter.config.model.csm.encoder.name
    mine = sum(p.numel() for p in segmenter.method.context_encoder.parameters())
    summary = score(asked, asked.run_folder, "run")
    dice, iou = summary.mean["dice"], summary.mean["iou"]
    lines = [f"{'context encoder':18}{'parameters':>14}{'in millions':>13}{'printed':>9}"]
    for name, number in counts.items():
        lines.append(f"{name:18}{number:14,}{number / 1e6:13.3f}{PRINTED[name]:9.1f}")
    lines += [
        f"with its classification head, which nothing uses, vim has {counts['vim'] + HEAD:,}: the printed number",
        f"the run's own: {own}, {mine:,} parameters at {segmenter.preprocess.input_size} px; "
        + ("no Dice defined" if dice is None else f"Dice {100 * dice:.1f}, IoU {100 * iou:.1f}, n = {summary.n}"),
        "",
        *told("context", segmenter.config, len(Split.load(asked.run_folder / "split.json").train)),
    ]
    about = {"run": str(asked.run_folder), "own": own, "own_parameters": mine, "dice": dice, "iou": iou}
    io.write_json(asked.out / "context-encoders.json", {"parameters": counts, "vim_head": HEAD, **about})
    return "\n".join([*lines, *published_lines("context")])


def count(name: str) -> int:
    """Parameters of a context encoder at 1024 px; none of them is made."""
    with torch.device("meta"):
        encoder = build_context_encoder(name, grid=GRID, patch=PATCH)
    return sum(p.numel() for p in encoder.parameters())
