"""PerSAM and PerSAM-F (arXiv 2305.03048): SAM clicks where an image resembles an annotated one most, and least.

Read top to bottom: the mean feature of the annotated object, the likeness of the target's features and its two
points, a first mask guided by that likeness, two refinements.  PerSAM-F mixes SAM's three masks in the first pass by
two weights that it learns on the support pair.  Nothing else is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from samsans.errors import InputError
from samsans.methods.episodes import fingerprint, to_tokens, visible_tokens
from samsans.methods.persam.mixture import learn_mixture, mix
from samsans.methods.persam.prior import extremes, guidance, likeness, masked_means
from samsans.methods.persam.support import Concept, PersamBank
from samsans.methods.prompted.prompts import enlarge, tight_box, valid_size
from samsans.methods.prompted.untrained import ABSENT, Untrained
from samsans.types import Batch, Embedding, Needs

if TYPE_CHECKING:
    from samsans.config import RunConfig

Choose = Callable[[Tensor], Sequence[PersamBank]]


class Persam(Untrained):
    """A frozen SAM that support pairs prompt; every part of the method is a value of its configuration."""

    needs = Needs(supports=True)
    bank_per_image = True  # predict takes one bank for each image of a batch

    # -- supports -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_support(self, batch: Batch) -> PersamBank:
        """Encode K annotated images once; PerSAM-F also learns, on each pair by itself, its mixture of masks.

        An object that a pair does not show has no part in what is made of it.
        """
        if batch.masks is None:
            raise InputError("support images without masks", "a mask for every support image")
        embedding = self.backbone.encode(batch.images)
        present = batch.masks.flatten(2).any(2)
        bank = PersamBank(
            means=masked_means(embedding.features, batch.masks),
            present=present,
            mixture=torch.full((*present.shape, 2), 1 / 3, device=present.device),
            keys=to_tokens(embedding.features).float(),
            visible=visible_tokens(batch, self.backbone.grid),
            objects=batch.objects,
            ids=batch.ids,
            weights=self.fingerprint(),
        )
        if not self.config.fine_tuned or not present.any():
            return bank
        logits = self._first(embedding, batch, Concept.of_pairs(bank))[0]
        learned = learn_mixture(logits, batch.masks[present], self.config.steps, self.config.lr)
        return replace(bank, mixture=bank.mixture.index_put((present,), learned))

    def fingerprint(self) -> str:
        """SHA-256 of the frozen base, and for PerSAM-F of how it learns."""
        learning = ("attention", "target", "steps", "lr") if self.config.fine_tuned else ()
        return fingerprint(
            self, self.backbone.base_hash, options={name: getattr(self.config, name) for name in learning}
        )

    def load_support(self, path: str) -> PersamBank:
        """Read a task file made by these very weights."""
        return PersamBank.load(path).require(self.fingerprint())

    # -- targets ------------------------------------------------------------------------------------------------------

    def _first(self, embedding: Embedding, batch: Batch, concept: Concept) -> tuple[Tensor, Tensor]:
        """First pass: logits ``(P, M, 4g, 4g)`` float32 of each known (image, object), and its points ``(P, 2, 2)``.

        M is 1, SAM's single mask, or 3 with PerSAM-F.
        """
        backbone, config = self.backbone, self.config
        image, item = concept.known.nonzero().unbind(1)
        similarity = likeness(embedding.features, concept.direction)[image, item]
        visible = visible_tokens(batch, backbone.grid).unflatten(1, (backbone.grid, -1))[image]
        points = extremes(similarity, visible, backbone.patch)
        if batch.valid is not None:  # the centre of a token at the edge may lie in the padding
            points = points.minimum(batch.valid[image].flip(1)[:, None] - 1)
        masks = backbone.decode(
            embedding,
            self._points(image, points),
            multimask=config.fine_tuned,
            attention=guidance(similarity, visible) if config.attention else None,
            target=concept.target[image, item] if config.target else None,
        )
        return masks.logits.float(), points

    def _points(self, image: Tensor, points: Tensor, **more: Tensor) -> Any:
        """The prompt of ``(P, 2, 2)`` points, the first inside and the second outside, and of what else is given."""
        labels = torch.tensor([1, 0], device=points.device).expand(len(points), -1)
        return self.backbone.embed_prompts(image, points=points, point_labels=labels, **more)

    def _refine(self, embedding: Embedding, logits: Tensor, image: Tensor, points: Tensor, **boxes: Tensor) -> Tensor:
        """Logits ``(P, 4g, 4g)`` with those found so far as mask prompt: of SAM's three the one it believes in most."""
        prompt = self._points(image, points, masks=logits[:, None], **boxes)
        masks = self.backbone.decode(embedding, prompt, multimask=True)
        return masks.logits[torch.arange(len(image), device=image.device), masks.iou.argmax(1)].float()

    @torch.no_grad()
    def predict(self, batch: Batch, support: PersamBank | Sequence[PersamBank] | Choose | None = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of N objects for every image; ``ABSENT`` for those that no support shows.

        ``support`` is one bank, or one for each image, or what chooses one for each by its features ``(B, C, g, g)``.
        """
        if support is None:
            raise InputError("PerSAM was given no support pairs", "a PersamBank from encode_support")
        with self.timer("encode"):
            embedding = self.backbone.encode(batch.images)
        with self.timer("prompt"):
            chosen = support(embedding.features) if callable(support) else support
            banks = [chosen] * len(batch.images) if isinstance(chosen, PersamBank) else chosen
            concept = Concept.of_banks(banks)
        side, known = batch.images.shape[-1], concept.known
        logits = torch.full((*known.shape, side, side), ABSENT, device=known.device)
        if known.any():
            with self.timer("decode"):
                logits[known] = enlarge(self._segment(embedding, batch, concept), side)
        return logits

    def _segment(self, embedding: Embedding, batch: Batch, concept: Concept) -> Tensor:
        """Logits ``(P, 4g, 4g)`` float32 of each known (image, object) after all passes.

        The second refinement adds the tight box of the mask found by the first; what has no pixel then has no box and
        stays as it is (our decision).
        """
        image = concept.known.nonzero()[:, 0]
        first, points = self._first(embedding, batch, concept)
        logits = mix(first, concept.mixture[concept.known]) if self.config.fine_tuned else first[:, 0]
        if self.config.refinements > 0:
            logits = self._refine(embedding, logits, image, points)
        if self.config.refinements > 1:
            some, boxes = self._boxes(logits, image, batch)
            if len(some):
                logits[some] = self._refine(embedding, logits[some], image[some], points[some], boxes=boxes)
        return logits

    def _boxes(self, logits: Tensor, image: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which of the masks have any pixel in their image, ``(Q,)`` int64, and their tight boxes ``(Q, 4)``."""
        found, some, boxes = enlarge(logits, batch.images.shape[-1]) > 0, [], []
        for number, of in enumerate(image.tolist()):
            height, width = valid_size(batch, of)
            mask = found[number, :height, :width]
            if mask.any():
                some.append(number)
                boxes.append(tight_box(mask))
        where = torch.tensor(some, dtype=torch.int64, device=logits.device)
        return where, torch.stack(boxes) if boxes else logits.new_zeros(0, 4)


def build(config: RunConfig, objects: tuple[str, ...]) -> Persam:
    """PerSAM as a run's configuration describes it; the base stays as it was published.

    Raises:
        InputError: another number of refinements than 0, 1 or 2, or of steps or pairs than can be.
    """
    from samsans.backbones import load_backbone

    model = config.model
    if model.refinements not in (0, 1, 2):
        raise InputError(f"model.refinements {model.refinements}", "0, 1 (mask) or 2 (mask, then mask and box)")
    if model.steps < 0 or model.lr <= 0:
        raise InputError(f"model.steps {model.steps} and model.lr {model.lr}", "0 steps or more, a rate above 0")
    backbone = load_backbone(config.backbone, seed=config.seed, family="sam")
    backbone.freeze()
    return Persam(backbone, model).eval()
