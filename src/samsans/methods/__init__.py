"""The methods: one file or one small folder a paper.  Each declares what it ``needs`` and its training ``stages``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from samsans import zoo
from samsans.types import Batch, Needs, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from samsans.config import RunConfig


class Method(Protocol):
    """What training and inference know of a method (a ``torch.nn.Module``): these names and nothing else.

    A method whose ``needs.supports`` is true also has ``encode_support(batch) -> SupportBank``: ``batch`` holds K
    images with their masks; the bank is what ``predict`` takes as ``support``.  A method may have ``gauges(batch)``:
    numbers worth logging that cost an extra pass, none where the batch tells nothing; ``gauge_warning(gauges, step,
    warmup)``: a sentence where they are bad, or ``None``; and ``finish()``: the weights are final, prepare to predict.
    It may have ``observe(pixels)``: called once before training with ``(N + 1,)`` int64, how many pixels of the
    training slices are background and each object; ``schedule(epoch, used)``: called before every training step with
    the epochs passed (a float) and the used share of the run, for losses that change; ``begin(stage, augmented)``:
    called when training begins a stage or goes on with it, and whether images are changed at random; and ``views``:
    names of other answers, those of its stages beginning with ``stage``, one of which ``predict(batch, support,
    view=name)`` then gives instead, and ``own_view``, the one it gives by itself (the first, where it does not say).
    One that prompts itself may have ``explain(batch)``: the ``Outputs`` of MaskSAM, prompts included.  One whose
    ``needs.samples`` is true has ``sample(batch, seeds, count)``: ``(B, K, N, S, S)`` float32 logits of ``count``
    answers, those of an image drawn from its own seed alone, whatever else is in the batch; its configuration has
    ``samples``, the draws of a validation.

    One whose ``needs.points`` is true answers to ``Batch.points``.  It may judge points by a prior first: then it has
    ``distil(logits, points)``, from the saliency and the points given on the slices of a volume to those to be shown
    (``logits`` is ``None`` where it has no saliency); ``prompted``, whether it is far enough to be shown points; and
    ``frozen_prior``, whether there is a saliency to judge by.  Where there is, inference asks for ``features(images)``,
    their saliency ``judge(features)`` ``(B, 4g, 4g)``, and ``answer(features, points)``, the logits of ``predict``;
    ``reach`` tells how many slices away a point may be that a slice is shown.  Slices without points to show stay empty
    and are not answered, unless its configuration has ``empty`` no_prompt.

    A stage of pairs (``Stage.batches``) needs ``distiller``, the same as ``distil``, which worker processes take along,
    and where the configuration's ``distill`` is not none ``saliency(batch)``, ``(B, 4g, 4g)`` logits: asked for of all
    slices once when such a stage begins or is resumed, so that nothing it depends on may be trained in that stage.

    One that follows objects from frame to frame has ``follows(view=None)``, whether that answer (its own, or one of
    ``views``) depends on the frames before, and ``follow(objects, support=None, view=None) -> Follower``; what may be
    ``support`` is what ``predict`` takes for one image.  It is then shown the frames of a video in order, and a volume
    from one slice outwards, the other slices being frames; an image is a video of one frame, for which ``predict``
    gives the same.

    Where ``needs.exclusive`` is true, logits are relative to background: ``Z_k - Z_0`` of a softmax over the N + 1
    classes.
    """

    needs: Needs

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """The training stages, in order."""
        ...

    def forward(self, batch: Batch) -> Any:
        """Raw output for the targets of a batch with masks."""
        ...

    def loss(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Scalars to log; the entry ``loss`` is minimised."""
        ...

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of each object for every image of the batch."""
        ...


class Follower(Protocol):
    """N objects through one video, frame by frame, in memory that does not grow with its length."""

    def step(self, batch: Batch) -> Tensor:
        """``(1, N, S, S)`` float32 logits of the next frame, a batch of one.

        ``batch.masks``: what is true of this frame, of methods with ``needs.first_label`` and on that frame alone.
        A follower may have ``quality``: ``(N,)`` the IoU it predicts for the frame it saw last, NaN where it does not.
        """
        ...

    def branch(self) -> Follower:
        """Another that goes on from here by itself: the slices before the first of a volume are followed backwards."""
        ...


def patch_side(config: RunConfig) -> int | None:
    """Rows and columns of the 3D patches of a method that sees volumes, in pixels; ``None`` for all other methods.

    Known before the method is built: ``patch_side(config)`` of the module of the method's configuration.
    """
    module = _config_module(config)
    return module.patch_side(config) if hasattr(module, "patch_side") else None


def complete(config: RunConfig, objects: Sequence[str]) -> RunConfig:
    """The configuration with what ``config.model`` leaves open until the objects are known.

    ``complete(config, count)`` of the module of the method's configuration, where there is one.
    """
    module = _config_module(config)
    return module.complete(config, len(objects)) if hasattr(module, "complete") else config


def _config_module(config: RunConfig) -> Any:
    return importlib.import_module(zoo.method_entry(config.method).config.partition(":")[0])


def build(config: RunConfig, objects: Sequence[str]) -> Any:
    """The method of a run on its backbone, with fresh trained parts drawn from ``config.seed``.

    Args:
        config: The resolved run configuration.
        objects: Names of the objects the run is trained for.

    Returns:
        A ``torch.nn.Module`` that follows ``Method``; what is frozen has ``requires_grad`` false.
    """
    import torch

    module = importlib.import_module(zoo.method_entry(config.method).module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return module.build(config, tuple(objects))
