"""SAM 2's memory bank: follow objects through a video frame by frame, in bounded memory however long it is.

What a frame adds to the bank: a spatial memory (image and mask, encoded) and an object pointer.  What the next frame
reads: the memories of the frames that were prompted (conditioning frames) and of the six frames before it, the pointers
of both and of up to fifteen frames before, in one memory attention.  Nothing older is kept.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from samsans.backbones.sam2_network import LOGIT_BIAS, LOGIT_SCALE, MEMORIES, MEMORY, POINTERS, Reading, shrink
from samsans.errors import InputError
from samsans.types import Embedding, Prompt

if TYPE_CHECKING:
    from samsans.backbones.sam2 import Sam2

ABSENT = -1024.0
"""Logit everywhere of an object that is not in a frame."""


@dataclass(frozen=True)
class ObjectPrompt:
    """What is said about one object on one frame: a mask, or points and a box together.

    mask: ``(H, W)`` bool, or float in [0, 1]; resized to ``S x S``.  points: ``(n, 2)`` x, y in model pixels, with
    labels ``(n,)``, 1 inside, 0 outside.  box: ``(4,)`` x0, y0, x1, y1 in model pixels.
    """

    mask: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None
    box: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.points is None) != (self.labels is None):
            raise InputError("Points without labels, or labels without points", "both or neither")
        if (self.mask is None) == (self.points is None and self.box is None):
            raise InputError("A prompt of nothing, or a mask together with points or a box", "a mask, or points or box")


@dataclass(frozen=True)
class Proxy:
    """A prompt in the place of memories, for every object: ``(M, N, 64)`` tokens and positions.

    places: the first so many are places, whole grids; the others are none.  dense: ``(N, C, g, g)``, what the decoder
    is told beside them, instead of that there is no mask.
    """

    tokens: Tensor
    positions: Tensor | None = None
    places: int = 0
    dense: Tensor | None = None


@dataclass(frozen=True)
class Tracked:
    """Frame ``index`` of a video, as far as ``N`` objects go.

    logits: ``(N, 4g, 4g)`` float32, all ``ABSENT`` for objects that are not there.  scores: ``(N,)`` logits of being
    there.  iou: ``(N,)`` predicted, 1 of a mask that was given, NaN of objects that are not known.  known: ``(N,)``
    bool; objects of which no frame so far said anything are not.
    """

    index: int
    logits: Tensor
    scores: Tensor
    iou: Tensor
    known: Tensor


@dataclass(frozen=True)
class Memory:
    """What one frame left of one object.

    spatial: ``(g^2, 64)`` bfloat16, dropped after six frames.  pointer: ``(C,)``.
    """

    frame: int
    spatial: Tensor | None
    pointer: Tensor


@dataclass(frozen=True)
class Recalled:
    """A memory as the frame at hand reads it.

    place: its spatial memory is so many frames old, 0 of a conditioning frame.  age: so old is its pointer.  ``None``:
    it is not read.
    """

    memory: Memory
    place: int | None
    age: int | None


@dataclass(frozen=True)
class Found:
    """One object in the frame at hand.

    logits: ``(4g, 4g)``.  score: of being there, a logit.  iou: predicted.  pointer: ``(C,)``.  mask: ``(S, S)``
    probabilities its memory is made of.  prompted: whether it makes this a conditioning frame.
    """

    logits: Tensor
    score: Tensor
    iou: Tensor
    pointer: Tensor
    mask: Tensor
    prompted: bool


class Tracker:
    """Follows ``N`` objects; one object's answers do not depend on the others.  No gradients.

    length: number of frames, where known: SAM 2 measures a pointer's age against the shorter of it and 16.
    conditioning: most conditioning frames an object keeps, the latest ones.
    frames: how many frames before are remembered, 0 to 6; by default as in SAM 2: six, and the pointers of fifteen.
    masks: what is remembered of a *given* mask, as in the ``original`` code (the pointer of the single mask token; the
        mask at 4g, as results are) or as in ``transformers`` (the token of highest predicted IoU; the mask as it is).
    multimask: on frames without prompts take the best of three masks, as SAM 2 does, or else the single one.
    gate: leave an object out of the frames where its score says that it is not there.
    gate_memories: remember of such frames that it is not there, as SAM 2 does; by default where ``gate`` is true.
    """

    def __init__(
        self,
        sam2: Sam2,
        objects: int,
        *,
        length: int | None = None,
        conditioning: int = 16,
        frames: int | None = None,
        masks: Literal["original", "transformers"] = "original",
        multimask: bool = True,
        gate: bool = True,
        gate_memories: bool | None = None,
    ) -> None:
        if objects < 1 or conditioning < 1:
            raise InputError(f"{objects} objects and {conditioning} conditioning frames", "at least one of each")
        if frames is not None and not 0 <= frames < MEMORIES:
            raise InputError(f"{frames} frames to remember", f"0 to {MEMORIES - 1}")
        self.sam2, self.objects = sam2, objects
        self.most = POINTERS if length is None else min(length, POINTERS)
        self.spatial = MEMORIES - 1 if frames is None else frames
        self.pointers = self.most - 1 if frames is None else min(frames, self.most - 1)
        self.masks, self.multimask, self.gate = masks, multimask, gate
        self.gate_memories = gate if gate_memories is None else gate_memories
        self.index = 0
        self.conditioning: list[deque[Memory]] = [deque(maxlen=conditioning) for _ in range(objects)]
        self.recent: list[deque[Memory]] = [deque(maxlen=POINTERS - 1) for _ in range(objects)]

    @torch.no_grad()
    def step(
        self,
        frame: Tensor | Embedding,
        prompts: Mapping[int, ObjectPrompt] | None = None,
        *,
        proxy: Proxy | None = None,
        conditions: bool = False,
    ) -> Tracked:
        """The next frame, ``(3, S, S)`` normalised or already encoded (of one image).

        prompts: by object index.  A prompted frame reads no memories and becomes a conditioning frame, as in SAM 2.
        proxy: read by all other objects, beside the memories there are.  conditions: it makes this a conditioning
            frame.
        """
        prompts, found = prompts or {}, dict[int, Found]()
        if odd := [n for n in prompts if not 0 <= n < self.objects]:
            raise InputError(f"A prompt for object {odd[0]}", f"an object from 0 to {self.objects - 1}")
        rest = [n for n in range(self.objects) if n not in prompts and (proxy or self.conditioning[n])]
        if prompts or rest:
            embedding = frame if isinstance(frame, Embedding) else self.sam2.encode(frame[None])
            for n, prompt in prompts.items():
                asked = self._given if prompt.mask is not None else self._asked
                found[n] = asked(embedding, prompt)
            for group, recalled in self._alike(rest, embedding):
                found |= self._tracked(embedding, group, recalled, proxy, conditions)
            self._remember(embedding, found)
        self.index += 1
        return self._answer(found)

    def branch(self) -> Self:
        """Another tracker that goes on from here by itself."""
        other = copy(self)
        other.conditioning = [kept.copy() for kept in self.conditioning]
        other.recent = [kept.copy() for kept in self.recent]
        return other

    def _answer(self, found: Mapping[int, Found]) -> Tracked:
        side, device = 4 * self.sam2.grid, self.sam2.image_pe.device
        logits = torch.full((self.objects, side, side), ABSENT, device=device)
        scores = torch.full((self.objects,), ABSENT, device=device)
        iou = torch.full((self.objects,), torch.nan, device=device)
        for n, one in found.items():
            logits[n], scores[n], iou[n] = one.logits, one.score, one.iou
        known = torch.tensor([n in found for n in range(self.objects)], device=device)
        return Tracked(self.index - 1, logits, scores, iou, known)

    # -- one frame ----------------------------------------------------------------------------------------------------

    def _given(self, embedding: Embedding, prompt: ObjectPrompt) -> Found:
        """A mask is its own answer; only its pointer is asked of the decoder, which sees the bare image."""
        sam2, device = self.sam2, embedding.features.device
        assert prompt.mask is not None
        mask = prompt.mask.to(device).float()[None, None]
        if mask.shape[-2:] != (sam2.input_size, sam2.input_size):
            size = (sam2.input_size, sam2.input_size)
            mask = (F.interpolate(mask, size, mode="bilinear", antialias=True) >= 0.5).float()
        logits = shrink(mask * LOGIT_SCALE + LOGIT_BIAS, 4 * sam2.grid)[0, 0]
        index = torch.zeros(1, dtype=torch.int64, device=device)
        if self.masks == "original":
            reading = sam2.read_given(embedding, mask, index, slice(0, 1))
            kept = (self._large(logits[None]) > 0).float()[None]
        else:
            reading, kept = sam2.read_given(embedding, mask, index, slice(1, None)).best(), mask
        there = mask.flatten(1).any(1)
        pointer = sam2.point_at(reading.tokens[:, 0], there & (reading.scores > 0))[0]
        score = there[0] * LOGIT_SCALE + LOGIT_BIAS
        return Found(logits, score, torch.ones_like(score), pointer, kept[0, 0], prompted=True)

    def _asked(self, embedding: Embedding, prompt: ObjectPrompt) -> Found:
        """Points and a box; a box is two points of labels of their own."""
        sam2, device = self.sam2, embedding.features.device
        points, labels = torch.zeros(0, 2, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        if prompt.box is not None:
            points, labels = prompt.box.to(device).reshape(2, 2).float(), torch.tensor([2, 3], device=device)
        if prompt.points is not None and prompt.labels is not None:
            points = torch.cat([points, prompt.points.to(device).float()])
            labels = torch.cat([labels, prompt.labels.to(device)])
        index = torch.zeros(1, dtype=torch.int64, device=device)
        asked = sam2.embed_prompts(index, points=points[None], point_labels=labels[None])
        still = sam2.unconditioned(embedding)
        if len(labels) <= 1:  # one point may mean three things
            reading = sam2.read(still, asked, slice(1, None)).best()
        else:
            reading = sam2.read(still, asked, slice(None)).stable()
        return self._read(reading, prompted=True)[0]

    def _tracked(
        self,
        embedding: Embedding,
        group: Sequence[int],
        recalled: Sequence[Sequence[Recalled]],
        proxy: Proxy | None,
        conditions: bool,
    ) -> dict[int, Found]:
        """Objects whose memories are as many and as old, in one pass."""
        sam2 = self.sam2
        tokens, positions, pointers = self._bank(recalled, embedding.features.dtype)
        if proxy is not None:
            extra = proxy.tokens[:, list(group)].to(tokens)
            where = torch.zeros_like(extra) if proxy.positions is None else proxy.positions
            where = where[:, list(group)] if where.shape[1] == self.objects else where.expand(-1, len(group), -1)
            tokens = torch.cat([extra[: proxy.places], tokens, extra[proxy.places :]])
            positions = torch.cat([where[: proxy.places].to(positions), positions, where[proxy.places :].to(positions)])
            pointers += len(extra) - proxy.places
        dense = sam2.dense_default() if proxy is None or proxy.dense is None else proxy.dense[list(group)]
        index = torch.arange(len(group), device=tokens.device)
        seen = sam2.conditioned(embedding, torch.zeros_like(index), tokens, positions, pointers)
        empty = Prompt(sam2.no_tokens(len(group)), dense, index)
        if self.multimask:
            reading = sam2.read(seen, empty, slice(1, None)).best()
        else:
            reading = sam2.read(seen, empty, slice(0, 1))
        return dict(zip(group, self._read(reading, prompted=conditions), strict=True))

    def _read(self, reading: Reading, prompted: bool) -> list[Found]:
        """Gate by the object score, make pointers, and the masks that memories are made of."""
        sam2 = self.sam2
        there, logits = reading.scores > 0, reading.logits[:, 0].float()
        gated = torch.where(there[:, None, None], logits, ABSENT)
        pointers = sam2.point_at(reading.tokens[:, 0], there if self.gate_memories else torch.ones_like(there))
        large = self._large(gated if self.gate_memories else logits)
        logits = gated if self.gate else logits
        masks = (large > 0).float() if prompted else large.sigmoid()
        parts = zip(logits, reading.scores, reading.iou[:, 0], pointers, masks, strict=True)
        return [Found(*own, prompted) for own in parts]

    def _large(self, logits: Tensor) -> Tensor:
        """``(n, 4g, 4g)`` to ``(n, S, S)``."""
        size = (self.sam2.input_size, self.sam2.input_size)
        return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    # -- the bank -----------------------------------------------------------------------------------------------------

    def recall(self, n: int, embedding: Embedding) -> list[Recalled]:
        """What the frame at hand reads of object ``n``."""
        read = [Recalled(kept, 0, self.index - kept.frame) for kept in self.conditioning[n]]
        for kept in self.recent[n]:
            age = self.index - kept.frame
            read.append(Recalled(kept, age if age <= self.spatial else None, age if age <= self.pointers else None))
        return read

    def keep(self, n: int, memory: Memory, found: Found, embedding: Embedding) -> None:
        """Remember the frame at hand of object ``n``, as far as that is wanted."""
        (self.conditioning if found.prompted else self.recent)[n].append(memory)

    def _alike(self, objects: Sequence[int], embedding: Embedding) -> list[tuple[list[int], list[list[Recalled]]]]:
        """Objects with memories as many and as old, together, and these memories."""
        groups: dict[tuple, list[tuple[int, list[Recalled]]]] = defaultdict(list)
        for n in objects:
            recalled = self.recall(n, embedding)
            groups[tuple((one.place, one.age) for one in recalled)].append((n, recalled))
        return [([n for n, _ in group], [recalled for _, recalled in group]) for group in groups.values()]

    def _bank(self, recalled: Sequence[Sequence[Recalled]], dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
        """All memories of ``n`` objects: tokens and positions ``(M, n, 64)``, and how many are pointers."""
        sam2, objects = self.sam2, len(recalled)
        columns = list(zip(*recalled, strict=True))
        tokens, places = [], []
        for column in columns:
            if column[0].place is not None:
                tokens.append(torch.stack([one.memory.spatial for one in column if one.memory.spatial is not None], 1))
                places.append(sam2.spatial_positions(column[0].place).expand(-1, objects, -1))
        count = 0
        if pointers := [column for column in columns if column[0].age is not None]:
            stacked = torch.stack([torch.stack([one.memory.pointer for one in column]) for column in pointers])
            ages = torch.tensor([column[0].age for column in pointers], device=stacked.device)
            pointer_tokens, where = sam2.pointer_tokens(stacked, ages, self.most)
            tokens.append(pointer_tokens)
            places.append(where.expand(-1, objects, -1))
            count = len(pointer_tokens)
        if not tokens:
            empty = torch.zeros(0, objects, MEMORY, dtype=dtype, device=sam2.image_pe.device)
            return empty, empty, 0
        return torch.cat([part.to(dtype) for part in tokens]), torch.cat([part.to(dtype) for part in places]), count

    def _remember(self, embedding: Embedding, found: Mapping[int, Found]) -> None:
        """Encode the frame's memories, in bfloat16 as SAM 2 keeps them, and forget what is too old."""
        lasting = self.spatial > 0 or self.pointers > 0
        if names := [n for n, one in found.items() if one.prompted or lasting]:
            self._encode_memories(embedding, found, names)
        for kept in self.recent:
            for i, old in enumerate(kept):
                if old.spatial is not None and self.index + 1 - old.frame > self.spatial:
                    kept[i] = replace(old, spatial=None)

    def _encode_memories(self, embedding: Embedding, found: Mapping[int, Found], names: Sequence[int]) -> None:
        masks = torch.stack([found[n].mask for n in names])[:, None].to(embedding.features.dtype)
        there = torch.stack([found[n].score for n in names]) > 0
        if not self.gate_memories:
            there = torch.ones_like(there)
        spatial = self.sam2.remember(embedding.features, masks, there).to(torch.bfloat16)
        for i, n in enumerate(names):
            new = Memory(self.index, spatial[:, i].clone(), found[n].pointer.clone())
            self.keep(n, new, found[n], embedding)
