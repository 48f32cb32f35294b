"""The configuration of a run: a tree of dataclasses, every field settable in a recipe and on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from psp_fast.normalisation import MEAN, STD


@dataclass
class ModelConfig:
    """The network; fields are PSPNet's arguments.

    Args:
        layers: depth of the ResNet: 18, 34, 50, 101, 152 or 269.
        in_channels: of the images: 3 (RGB), 1 (grey; colour images are read as grey), or 4 (the bands of files that
            have four, such as RGB and infrared); augment.mean and std have as many numbers. RGB weights are adapted.
        bins: sides of the pyramid's levels in cells.
        dropout: probability of dropping a channel before each classifier.
        zoom_factor: 1, 2, 4 or 8; 8 trains on labels of the input's own size.
        use_ppm: false leaves the pyramid out (FCN baseline).
        pretrained: weights to start from, ImageNet's or a whole PSPNet's, of which all that fits is loaded: a path, or
            true for initmodel/resnet{layers}_v2.pth.
        pool: pooling of the pyramid.
        dim_reduction: false keeps all channels of the pooled maps.
        aux: the auxiliary head on layer3.
        align_corners: of every bilinear upsampling.
        stem: 3x3 x3 with 64-64-128 channels (deep) or 32-32-64 (v1c), or 7x7 (torchvision).
        dilation: semseg, or mmseg (first block of a stage at half the rate); mit differs from mmseg in 18 and 34 only.
        output_stride: 8 or 16.
        stride_in_1x1: a bottleneck's stride in its first 1x1 convolution (Caffe).
        avg_down: average pooling before a strided shortcut's convolution (ResNet-D).
        head_channels: of a pyramid level, the head and the auxiliary head; null: semseg's.
        recompute: compute residual blocks again in backward, for the least memory; 50 layers or more.
    """

    layers: int = 50
    in_channels: int = 3
    bins: list[int] = field(default_factory=lambda: [1, 2, 3, 6])
    dropout: float = 0.1
    zoom_factor: int = 8
    use_ppm: bool = True
    pretrained: bool | str = False
    pool: Literal["avg", "max"] = "avg"
    dim_reduction: bool = True
    aux: bool = True
    align_corners: bool = True
    stem: Literal["deep", "v1c", "torchvision"] = "deep"
    dilation: Literal["semseg", "mmseg", "mit"] = "semseg"
    output_stride: Literal[8, 16] = 8
    stride_in_1x1: bool = False
    avg_down: bool = False
    head_channels: tuple[int, int, int] | None = None
    recompute: bool = False


@dataclass
class ScenesConfig:
    """The drawn data set.

    Args:
        height: of the pictures in pixels.
        width: of the pictures in pixels.
        train: number of training pictures.
        val: number of validation pictures.
        seed: of the drawing; another seed is another world.
    """

    height: int = 81
    width: int = 289
    train: int = 1000
    val: int = 100
    seed: int = 0


@dataclass
class DataConfig:
    """The images and labels.

    Args:
        dataset: "list" reads list files, "folder" images/<split> and labels/<split>, "scenes" draws the built-in world;
            the others are read as they are distributed (docs/recipes.md) and have their own classes, colours and ids.
        root: folder of the data set, and the one that the names in list files are relative to.
        train_list: file of `image label` lines (list).
        val_list: file of `image label` lines (list).
        train_splits: what to train on, such as [train] or Cityscapes' [train, train_extra] (folder and named sets).
        val_splits: what to validate on (folder and named sets).
        classes: names; their position is the id in the labels (list, folder).
        palette: RGB of each class, 0..255; null picks distinct colours (list, folder).
        label_ids: value of each class in the label files where that is not 0..C-1; others are ignored (list, folder).
        scenes: the drawn data set.
    """

    dataset: Literal["list", "folder", "scenes", "ade20k", "camvid", "cityscapes", "voc"] = "list"
    root: str = "."
    train_list: str = "train.txt"
    val_list: str = "val.txt"
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    val_splits: list[str] = field(default_factory=lambda: ["val"])
    classes: list[str] = field(default_factory=list)
    palette: list[tuple[int, int, int]] | None = None
    label_ids: list[int] | None = None
    scenes: ScenesConfig = field(default_factory=ScenesConfig)


@dataclass
class AugmentConfig:
    """What happens to a training image.

    Args:
        preset: order and kinds of the transforms: semseg's or mmseg's.
        crop: height and width of the training crop in pixels.
        scale: range of the random scale.
        mirror: mirror half of the images.
        degrees: largest rotation (semseg).
        blur: blur half of the images (semseg).
        base_scale: long and short side the image is fitted into first (mmseg).
        cat_max_ratio: a crop is drawn again, up to 10 times, where one class has this share or more (mmseg).
        mean: one number per channel of the images, 0..255; by default ImageNet's RGB.
        std: one number per channel of the images, 0..255.
    """

    preset: Literal["semseg", "mmseg"] = "semseg"
    crop: tuple[int, int] = (473, 473)
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    degrees: float = 10.0
    blur: bool = True
    base_scale: tuple[int, int] | None = None
    cat_max_ratio: float = 0.75
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


@dataclass
class OptimConfig:
    """SGD with the poly learning rate.

    Args:
        lr: of the backbone at the first step.
        head_lr_factor: the pyramid's and the heads' learning rate over the backbone's.
        momentum: of SGD.
        weight_decay: on every parameter.
        power: of the poly decay (1 - step / steps) ** power.
        min_lr: floor the poly decay ends at.
        clip_grad_norm: largest norm of all gradients together; null does not clip.
    """

    lr: float = 0.01
    head_lr_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    power: float = 0.9
    min_lr: float = 0.0
    clip_grad_norm: float | None = None


@dataclass
class TrainConfig:
    """The run.

    Args:
        steps: parameter updates in all.
        batch_size: images a step, over all processes together.
        workers: processes that load data, for each training process; at most one a core.
        aux_weight: weight of the auxiliary loss.
        loss_mean: over the pixels that count (semseg), or over all, ignored ones as 0 (mmseg).
        amp: autocast to bf16 or fp16 (with a loss scaler); off is fp32.
        channels_last: NHWC memory format.
        sync_bn: batch statistics over all processes.
        deterministic: only deterministic kernels.
        seed: of weights, data order, augmentation and dropout.
        log_every: steps between two points of the loss curve.
        validate_every: steps between validations; 0 validates at the end alone.
        checkpoint_every: steps between checkpoints.
    """

    steps: int = 150_000
    batch_size: int = 16
    workers: int = 2
    aux_weight: float = 0.4
    loss_mean: Literal["valid", "all"] = "valid"
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = True
    sync_bn: bool = True
    deterministic: bool = False
    seed: int = 0
    log_every: int = 10
    validate_every: int = 2000
    checkpoint_every: int = 500


@dataclass
class EvalConfig:
    """How images are evaluated and predicted: semseg's tests are mode slide, a base_size, and mirror.

    Images are resized bilinearly without anti-aliasing, as OpenCV does in semseg and mmseg.

    Args:
        mode: the whole image at once, or crops in a sliding window. A whole image needs memory for all its activations,
            without bound; a sliding window takes images of any size in a few GB.
        crop: height and width of the window in pixels.
        stride: step of the window over its size, in (0, 1]; the step in pixels is rounded up.
        average: what overlapping crops average. probabilities (semseg): the softmax of every crop, also over scales and
            mirrors; an image smaller than the crop is padded with the mean around it. logits (mmseg): softmax comes
            after resizing to the image's size; the crop shrinks to a smaller image.
        scales: sizes of the image to average over; the paper's multi-scale test is 0.5, 0.75, 1, 1.25, 1.5, 1.75.
        mirror: average every crop with its mirror image.
        base_size: the size of scale 1: the long side in pixels (semseg), or the long and short sides that the image is
            fitted into (mmseg); null keeps the image's own.
        batch_size: crops that go through the network at once; mirrored ones count.
        absent: a class in neither labels nor predictions counts 0 in the mean IoU (semseg), or is left out (mmseg).
    """

    mode: Literal["whole", "slide"] = "whole"
    crop: tuple[int, int] = (473, 473)
    stride: float = 2 / 3
    average: Literal["probabilities", "logits"] = "probabilities"
    scales: list[float] = field(default_factory=lambda: [1.0])
    mirror: bool = False
    base_size: int | tuple[int, int] | None = None
    batch_size: int = 2
    absent: Literal["zero", "skip"] = "skip"


@dataclass
class Config:
    """Everything a run depends on.

    Args:
        out: folder of the run, or of the results of other commands; null: the first free runs/<recipe>-N, for others
            the checkpoint's (evaluate), predictions, submission, check-data.
        device: "auto", "cpu", "cuda" or "cuda:1".
        model: the network.
        data: the images and labels.
        augment: the training transforms.
        optim: the optimiser.
        train: the run.
        eval: evaluation and prediction.
    """

    out: str | None = None
    device: str = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
