"""The sections of a run's configuration, one dataclass each; ``config`` puts them together.  No torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SliceAxis = Literal["auto", "axial", "coronal", "sagittal", "0", "1", "2"]


@dataclass
class DataConfig:
    """Where the images are and how to read them.

    Args:
        path: Folder, CSV file or nnU-Net / Medical Segmentation Decathlon data set.
        images: Glob of image files relative to ``path``; null recognises the layout.
        labels: Template of each image's mask relative to ``path``, e.g. ``masks/{stem}.png`` or
            ``{parent}/{stem}_1stHO.png``.
        patient: Regular expression searched in the case id; its first group (else the match) names the patient.
        volume: Regular expression whose first group names a volume and second the slice number: files that share the
            first group (and further ones, e.g. a phase) become one stack.
        video: Regular expression whose first group names a video and second the frame number, of pictures that are
            frames; null: the numbered pictures of each folder below the images are a video.
        classes: Object names with the mask values that belong to each, e.g. ``{disc: [1, 2], cup: [2]}``; null infers.
        annotators: Annotators that one mask holds, each with the values that belong to its answer, e.g. ``{core: [1],
            whole: [1, 2, 4]}``: nested readings of one file (P2SAM on BraTS); objects are then one, called object.
        points: Template of each image's point prompts relative to ``path``, e.g. ``points/{stem}.mrk.json``: 3D Slicer
            markups, .fcsv, .csv, or a mask of scribbles; several people's by ``*``, one of them by ``#2`` at the end;
            null finds them in a folder ``points`` (``points_ann``, ...) or beside the images.
        threshold: Mask pixels above this value are the object (1), all others none: masks kept as JPEG, soft masks.
        spacing: Voxel size (z, y, x) in mm of files that state none.
        window: Intensities [low, high] shown to the model; null: 8-bit images as they are, others by percentiles 1-99.
        levels: What a null window goes by: volume (as above), slice (each slice from its smallest to its largest
            value), or positive (percentiles 0.5 and 99.5 of a volume's values above 0, as SPD does for MRI).
        channels: Which channels the model sees: auto (grey repeated, RGB kept) or three channel numbers.
        slice_axis: Axis along which volumes are cut into slices: auto (from spacing and orientation), a plane of the
            patient (axial, coronal, sagittal) or an array axis (0, 1, 2).
        cache_gb: Memory for decoded training slices, in GiB.
    """

    path: str = ""
    images: str | None = None
    labels: str | None = None
    patient: str | None = None
    volume: str | None = None
    video: str | None = None
    classes: dict[str, list[int]] | None = None
    annotators: dict[str, list[int]] | None = None
    points: str | None = None
    threshold: float | None = None
    spacing: list[float] | None = None
    window: list[float] | None = None
    levels: Literal["volume", "slice", "positive"] = "volume"
    channels: list[int] | Literal["auto"] = "auto"
    slice_axis: SliceAxis = "auto"
    cache_gb: float = 2.0


@dataclass
class SplitConfig:
    """Who is trained on; patients never straddle a split.

    Args:
        val: Share of patients held out to choose the best checkpoint and to stop early.
        test: Share of patients held out entirely.
        test_patients: Patients held out entirely, by name (instead of ``test``).
        file: ``splits_final.json`` of nnU-Net or a ``split.json`` of an earlier run.
        fold: Which fold of ``file``.
        shots: Few-shot: how many training images to keep, at most one a patient.
        order: drawn (patients in random order), or file (the cases one after the other as they are found, the last ones
            for testing, those before for validation: a patient may then be on both sides, as in P2SAM's code).
        protocol: Published split by name, e.g. synapse or synapse_fewshot; it decides training and test cases.
        slices: Which slices of the training cases are learned from: all, or those with foreground.
        slice_share: Few-shot by slices: this share of the training slices, drawn at random over all training patients.
    """

    val: float = 0.0
    test: float = 0.0
    test_patients: list[str] = field(default_factory=list)
    file: str | None = None
    fold: int = 0
    shots: int | None = None
    order: Literal["drawn", "file"] = "drawn"
    protocol: str | None = None
    slices: Literal["all", "foreground"] = "all"
    slice_share: float | None = None


@dataclass
class BackboneConfig:
    """The Segment Anything Model underneath.

    Args:
        name: A name of ``samsans models``, a hub id, a local directory, or an original ``.pth`` file; none:
            for prob_unet, which has no SAM inside.
        input_size: Side S of the square the model sees, in pixels, a multiple of the patch; null: the backbone's own.
        resize: squash to S x S, or pad: longest side to S, bottom and right padded; padding is background to the losses
            and left out of class counts, scores and results.
        attention: fast (exact, fused) or naive (the library's own, the oracle).
        checkpointing: Recompute encoder blocks in the backward pass to save memory.
        train: lora (base frozen), all (from-scratch backbones), or none.
        statistics: What grey levels become: sam (SAM's mean and deviation), unit (0 to 1, as in SAMed and H-SAM) or
            symmetric (-1 to 1, as in SPD).
        resampling: linear (antialiased; logits brought back bilinearly) or spline (images by cubic splines, labels and
            results by nearest neighbours with aligned corners, as SAMed and H-SAM do).
        via: Side in pixels that slices are brought to before S, so that S shows no more detail than this (SAMed).
        positions: Position table at an input side other than that of the weights: resize, or crop (its top left, as
            MaskSAM does, whose image then is the corner of a larger canvas).
        via_predict: The same, when predicting only (H-SAM's test code); null: as ``via``.
    """

    name: str = "sam-vit-h"
    input_size: int | None = None
    resize: Literal["squash", "pad"] = "squash"
    attention: Literal["fast", "naive"] = "fast"
    checkpointing: bool = False
    train: Literal["lora", "all", "none"] = "lora"
    statistics: Literal["sam", "unit", "symmetric"] = "sam"
    resampling: Literal["linear", "spline"] = "linear"
    via: int | None = None
    via_predict: int | None = None
    positions: Literal["resize", "crop"] = "resize"


@dataclass
class LoraConfig:
    """Low-rank adapters on split projections.

    Args:
        rank: Rank r of each adapter.
        alpha: Scale is alpha / rank.
        dropout: Dropout before the adapter.
        encoder: Which of q, k, v of every encoder block are adapted.
        decoder: Which of q, k, v of every attention of the mask decoder are adapted.
        memory: Which of q, k, v of every memory attention of SAM 2 are adapted.
    """

    rank: int = 4
    alpha: float = 4.0
    dropout: float = 0.0
    encoder: list[str] = field(default_factory=lambda: ["q", "v"])
    decoder: list[str] = field(default_factory=lambda: ["q", "v"])
    memory: list[str] = field(default_factory=list)


@dataclass
class EpisodeConfig:
    """Episodes of methods that learn from support pairs.

    Args:
        images: Images in an episode; each target's supports are all the others (leave-one-out, M - 1 of them).
        targets: How many of them are segmented in a step.
        volume_supports: Slices of volumes: the number of supports is drawn from these for every episode (decision
            D-21); empty: as for images.
        object_subset: Probability of asking for a proper subset of the objects instead of all.
        balance: Draw one of the objects asked for and let half of the episode show it (our option, for rare objects).
        synthetic: Probability of an episode whose masks are drawn from the images by a random rule, the same rule in
            supports and target (our addition, off in ``paper``): the answer is only to be had from the support masks.
    """

    images: int = 16
    targets: int = 4
    volume_supports: list[int] = field(default_factory=lambda: [1, 2, 4])
    object_subset: float = 0.5
    balance: bool = False
    synthetic: float = 0.0


@dataclass
class AugmentConfig:
    """Random changes applied alike to an image and its masks.

    Args:
        flip: Probability of a horizontal flip.
        rotate: Largest rotation, degrees.
        scale: Largest relative change of size.
        shift: Largest shift, share of the side.
        intensity: Largest relative change of brightness and contrast.
        policy: affine (the five above; in the planes of 3D patches), spd (flip, then half of the time a rotation; the
            rest is ignored), or the published recipe of hsam, samed or autosam, or for patches nnunet (nnU-Net's list
            of spatial and intensity changes), which ignore them.
        elastic_labels: hsam: nearest, or truncated (bilinear, then cut to whole numbers, as the released code does).
    """

    flip: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    intensity: float = 0.0
    policy: Literal["affine", "hsam", "samed", "autosam", "spd", "nnunet"] = "affine"
    elastic_labels: Literal["nearest", "truncated"] = "nearest"


@dataclass
class TrainConfig:
    """The training loop.

    Args:
        steps: Optimiser steps; with ``epochs`` or ``minutes`` set, those decide.
        epochs: Passes over the training images.
        stop_epoch: Stop after this many of them, while the schedule follows ``epochs`` (SAMed: 160 of 200).
        minutes: Wall-clock budget; schedules follow the share of it that is used.
        batch_size: Images a step, for methods without episodes.
        foreground: Least share of such a batch that shows an object; other slices are replaced by ones that do.
        optimizer: sgd, adam or adamw.
        lr: Learning rate.
        momentum: Of sgd.
        nesterov: Of sgd.
        betas: Of adam and adamw.
        eps: Of adam and adamw, added to what their steps are divided by.
        weight_decay: Not applied to parameters marked as exempt.
        schedule: Learning rate after warm-up: constant, cosine (to zero), poly (power 0.9, to zero), poly_epoch (the
            same, constant inside an epoch, as nnU-Net does), halving (half of it after every ten epochs, as in
            Med-SA), plateau (times ``plateau_factor`` whenever the loss on held-out slices has not fallen for more than
            ``plateau_patience`` validations) or samed (power 0.9, begun after warm-up but as long as the run, so that
            it ends above zero, as in SAMed and H-SAM).
        plateau_factor: See ``schedule``.
        plateau_patience: See ``schedule``.
        warmup: Steps of linear warm-up.
        clip: Largest gradient norm; 0 never clips.
        precision: fp32, or bf16 autocast.
        validate_every: Steps between validations; 0 validates at the end of each training stage only.
        validate_epochs: Epochs between validations, instead of ``validate_every``; 0: that decides.
        save_every: Steps between checkpoints.
        save_minutes: Also save when this many minutes have passed since the last checkpoint.
        patience: Stop after this many validations without improvement in the last training stage; 0 never.
        pictures_every: Steps between sample pictures; 0 none.
        workers: Processes that prepare batches.
        accelerator: auto, cpu, gpu or mps.
        devices: Number of devices (processes on a CPU).
        strategy: Lightning strategy, e.g. auto, ddp.
    """

    steps: int = 4000
    epochs: int | None = None
    stop_epoch: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    foreground: float = 1 / 3
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "poly", "poly_epoch", "halving", "plateau", "samed"] = "constant"
    plateau_factor: float = 0.5
    plateau_patience: int = 4
    warmup: int = 100
    clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    validate_every: int = 0
    validate_epochs: int = 0
    save_every: int = 200
    save_minutes: float = 2.0
    patience: int = 0
    pictures_every: int = 200
    workers: int = 0
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"


@dataclass
class PatchConfig:
    """3D patches, for methods that see volumes.  What is null is planned from the training set and written to the run.

    Args:
        spacing: Voxel size (z, y, x) in mm that volumes are resampled to; z is the slice axis.  Planned: the median of
            the training set; along an axis much coarser than the others its 10th percentile (nnU-Net's rule).
        size: Slices, rows and columns of a patch.  Planned: rows and columns fill the input side of the backbone,
            slices the median depth, at most 16.
        intensity: zscore (of each volume), ct (clipped to percentiles 0.5 and 99.5 of the training objects, then their
            mean and deviation), or auto: ct where dataset.json calls the channels so, or, where it names none, for
            signed values in Hounsfield units; else zscore.
        statistics: ct: low, high, mean and deviation.
        foreground: Share of the patches that are centred on an object.
        per_epoch: Steps an epoch.
        overlap: Of neighbouring windows when predicting, share of the patch.
        mirror: Predicting: mean over the eight mirrorings of every window.
    """

    spacing: list[float] | None = None
    size: list[int] | None = None
    intensity: Literal["auto", "ct", "zscore"] = "auto"
    statistics: list[float] | None = None
    foreground: float = 0.33
    per_epoch: int = 250
    overlap: float = 0.5
    mirror: bool = False


@dataclass
class PromptConfig:
    """Point prompts, for methods that are prompted with points.

    Args:
        source: files (``data.points``), noise (simulated from the masks), or auto: files where there are any, else
            noise.
        level: Severity of the simulated noise, L0 (clean) to L5.
        mode: Where off-target points fall: uniform (in the body near the object), or hard (on similar tissue).
        draw: Which draw of the noise, when predicting; training takes a new one every epoch.
        keep: At most so many points a slice; null: all.
    """

    source: Literal["auto", "files", "noise"] = "auto"
    level: Literal["L0", "L1", "L2", "L3", "L4", "L5"] = "L2"
    mode: Literal["uniform", "hard"] = "hard"
    draw: int = 0
    keep: int | None = None
