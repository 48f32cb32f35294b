"""PSPNet (Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from psp_fast import ops
from psp_fast.checkpoints import Paths, Weights, load_pretrained, load_weights, read_weights
from psp_fast.errors import CheckpointError
from psp_fast.models.arguments import check_arguments
from psp_fast.models.pyramid import Head, PyramidPooling, head_of_pyramid
from psp_fast.models.resnet import Stem, initialise, make_stages, make_stem
from psp_fast.nn.exact import calls_forward, is_exactly, may_fuse
from psp_fast.normalisation import MEAN, STD, for_channels


class PSPNet(nn.Module):
    """PSPNet with semseg's constructor, attributes, state_dict keys and return values.

    Args:
        layers: depth of the ResNet: 18, 34, 50, 101, 152 or 269.
        bins: sides of the pyramid's levels, in cells.
        dropout: probability of dropping a channel before each classifier.
        classes: number of classes, at least 2.
        zoom_factor: 1, 2, 4 or 8: size of the output, ((H - 1) // 8) * zoom_factor + 1; 8 gives the input's own H x W.
        use_ppm: False leaves the pyramid out (the paper's dilated FCN baseline).
        criterion: loss of full-resolution logits and labels; nn.CrossEntropyLoss takes the fused path: in fp32, and 0
            where all labels are ignored. Class weights of PyTorch's losses are no part of the state_dict: they are set
            here, not by weight files.
        pretrained: True reads initmodel/resnet{layers}_v2.pth, a path reads that file, False starts from scratch. Of
            ImageNet weights or a whole PSPNet every part that fits is loaded (other classes: new classifiers), and a
            table of the parts is logged.
        pool: "avg" or "max" (Table 1).
        dim_reduction: False keeps all channels of the pooled maps (Table 1 without DR).
        aux: False leaves the auxiliary head out (Table 2); the auxiliary loss is then 0.
        align_corners: of every bilinear upsampling: True in semseg, False in most of mmsegmentation.
        stem: "deep" (3x3 x3, 64-64-128 channels), "v1c" (32-32-64) or "torchvision" (7x7).
        dilation: "semseg" (every 3x3 of a stage alike), "mmseg" (the stage's first block at half the rate, and basic
            blocks' second 3x3 not dilated) or "mit" (the stage's first 3x3 at half the rate).
        output_stride: 8 or 16: the backbone's input size over its output size.
        stride_in_1x1: a bottleneck's stride is in its first 1x1 convolution, as in the paper's Caffe networks.
        avg_down: a shortcut with stride averages 2x2 pixels before its convolution (ResNet-D, PaddleSeg).
        head_channels: of a pyramid level, of the head's 3x3 convolution and of the auxiliary head's; None: semseg's,
            a quarter of the channels each reads (a level: the map's channels over the number of bins).
        recompute: keep only the input of every residual block for backward, and compute the block again there: the
            least memory in training, for about a third more work in the backbone. Needs 50 layers or more.
        in_channels: of the images. RGB weights of a pretrained file are adapted: summed for 1 channel, else repeated
            and scaled by 3 / in_channels.

    Attributes:
        mean, std: a value a channel, RGB where there are three, 0..255: the normalisation that the weights expect;
            ImageNet's unless the weights come from a file with another one.
        normalised_by: the file that mean and std come from; None where no file told them.
        options: the arguments that decide what the weights compute.

    Raises:
        ValueError: an argument outside the values above.
        CheckpointError: a pretrained file that is missing or does not fit.
    """

    def __init__(
        self,
        layers: int = 50,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        classes: int = 2,
        zoom_factor: int = 8,
        use_ppm: bool = True,
        criterion: nn.Module | None = None,
        pretrained: bool | str | Path = True,
        *,
        pool: str = "avg",
        dim_reduction: bool = True,
        aux: bool = True,
        align_corners: bool = True,
        stem: str = "deep",
        dilation: str = "semseg",
        output_stride: int = 8,
        stride_in_1x1: bool = False,
        avg_down: bool = False,
        head_channels: Sequence[int] | None = None,
        recompute: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_arguments(
            layers=layers,
            bins=bins,
            dropout=dropout,
            classes=classes,
            zoom_factor=zoom_factor,
            use_ppm=use_ppm,
            pool=pool,
            dim_reduction=dim_reduction,
            aux=aux,
            align_corners=align_corners,
            stem=stem,
            dilation=dilation,
            output_stride=output_stride,
            stride_in_1x1=stride_in_1x1,
            avg_down=avg_down,
            head_channels=head_channels,
            recompute=recompute,
            in_channels=in_channels,
        )
        self.zoom_factor, self.align_corners, self.use_ppm = zoom_factor, align_corners, use_ppm
        self.mean, self.std = for_channels(MEAN, in_channels), for_channels(STD, in_channels)
        self.normalised_by: str | None = None
        self.layer0, channels = make_stem(stem, in_channels)
        geometry = {"stride_in_1x1": stride_in_1x1, "avg_down": avg_down, "recompute": recompute}
        stages, widths = make_stages(layers, channels, dilation, output_stride, **geometry)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        initialise(self)
        head_input = widths[3]
        if head_channels is None:
            head_channels = widths[3] // max(len(bins), 1), widths[3] // 4, widths[2] // 4
        level_channels, main_channels, aux_channels = head_channels
        if use_ppm:
            self.ppm = PyramidPooling(widths[3], level_channels if dim_reduction else None, bins, pool, align_corners)
            head_input = self.ppm.out_channels
        self.cls = Head(head_input, main_channels, classes, dropout)
        if aux:
            self.aux = Head(widths[2], aux_channels, classes, dropout)
        # The last child: tools that run children one after another stop before it.
        self.criterion = nn.CrossEntropyLoss(ignore_index=255) if criterion is None else criterion
        self.register_state_dict_post_hook(_leave_out_class_weights)
        self.register_load_state_dict_pre_hook(_keep_class_weights)
        self.options: dict[str, Any] = {
            "layers": layers,
            "classes": classes,
            "stem": stem,
            "dilation": dilation,
            "output_stride": output_stride,
            "stride_in_1x1": stride_in_1x1,
            "avg_down": avg_down,
            "use_ppm": use_ppm,
            "bins": tuple(map(int, bins)),
            "pool": pool,
            "dim_reduction": dim_reduction,
            "head_channels": tuple(map(int, head_channels)),
            "aux": aux,
            "align_corners": align_corners,
            "in_channels": in_channels,
        }
        if pretrained:
            path = Path(f"initmodel/resnet{layers}_v2.pth") if pretrained is True else Path(pretrained)
            load_pretrained(self, path)

    @classmethod
    def from_checkpoint(cls, path: Paths, **overrides: Any) -> PSPNet:
        """The network that a checkpoint of a whole PSPNet is of, with its weights, on the CPU in training mode.

        Its arguments come from the file, its shapes and the convention of the project that wrote it.

        Args:
            path: a file, or mit-semseg's encoder and decoder, a pair of them; see `load_checkpoint`.
            overrides: arguments of the constructor to use in place of those, such as align_corners=True for
                mmsegmentation's networks for 769 x 769 pixels, or bins that are not 1, 2, 3, 6. Other classes make new
                classifiers, another in_channels adapts the first convolution, and aux leaves the auxiliary head out or
                makes a new one. What is new, and what contradicts the file, is logged.

        Raises:
            CheckpointError: the file is unreadable, holds no whole PSPNet, or one that this class cannot be.
        """
        return cls.from_weights(read_weights(path), **overrides)

    @classmethod
    def from_weights(cls, weights: Weights, **overrides: Any) -> PSPNet:
        """What `from_checkpoint` makes, of a file that `psp_fast.checkpoints.read_weights` has read."""
        if not weights.whole:
            raise CheckpointError(
                f"{weights.source} holds a backbone alone ({weights.layout}): make the network with "
                "PSPNet(pretrained=path)"
            )
        try:
            model = cls(**{**weights.options, **overrides, "pretrained": False})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{weights.source} ({weights.layout}'s layout): {error}") from error
        load_weights(model, weights, overrides)
        return model

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the logits, and of the labels in training, for an image of height x width pixels."""
        if self.zoom_factor == 8:
            return height, width
        return (height - 1) // 8 * self.zoom_factor + 1, (width - 1) // 8 * self.zoom_factor + 1

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Full-resolution logits (N, classes, H, W); in training with labels (argmax, main_loss, aux_loss).

        Args:
            x: images (N, in_channels, H, W), normalised; any H and W.
            y: labels (N, h, w) or (N, 1, h, w) of `output_size(H, W)`, any integer type; read in training only.
        """
        # Else x may stand for images of any shape.
        if may_fuse(x) or not hasattr(x, "__torch_function__") or (type(x) is Tensor and not x.is_floating_point()):
            self._check_images(x)
        size = self.output_size(x.shape[2], x.shape[3])
        if not self.training or isinstance(y, torch.fx.Proxy):  # a traced graph is one of images
            y = None
        if y is not None:
            y = _labels(y, (x.shape[0], *size), x.shape)
        logits, aux = self._logits(x)
        if y is None:
            return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
        main_loss, argmax = self._loss_and_argmax(logits, y)
        return argmax.long(), main_loss, logits.new_zeros(()) if aux is None else self._loss(aux, y)

    @torch.no_grad()
    def predict(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Label map (N, H, W) of images (N, in_channels, H, W). Needs eval mode.

        Its type is uint8 up to 256 classes, else int64, or dtype. Arithmetic on uint8 overflows above 255: ask for
        torch.int64 to compute with labels, such as `classes * label + prediction` for a confusion matrix.
        """
        if self.training:
            raise RuntimeError(
                "PSPNet: predict needs eval mode (dropout and batch statistics are on): call model.eval() first"
            )
        # Hooks on the network, and subclasses, see the call that they know.
        known = type(self).forward is _FORWARD and calls_forward(self) and may_fuse(x)
        self._check_images(x)
        logits = self._logits(x)[0] if known else self(x)
        return ops.upsample_argmax(logits, x.shape[2:], self.align_corners, dtype=dtype)

    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of both heads at the backbone's resolution; the auxiliary ones in training only."""
        if may_fuse(x) and ops.prefers_channels_last(x):
            x = x.contiguous(memory_format=torch.channels_last)
        shallow = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        # Before layer4: backward goes the other way round, and has the auxiliary gradients after layer4, its peak.
        aux = self.aux(shallow) if self.training and hasattr(self, "aux") else None
        deep = self.layer4(shallow)
        return head_of_pyramid(self.cls, self.ppm, deep) if self.use_ppm else self.cls(deep), aux

    def _check_images(self, x: Tensor) -> None:
        """Raise where x is no tensor or no map, or does not fit the convolution that reads it, if that is plain."""
        if not hasattr(x, "__torch_function__"):
            raise TypeError(
                f"PSPNet: images must be a tensor (N, C, H, W), not {type(x).__name__}; torch.from_numpy makes one of "
                "an array"
            )
        first = next(iter(self.layer0.children()), None)
        plain = is_exactly(self.layer0, Stem, nn.Sequential) and first is not None and is_exactly(first, nn.Conv2d)
        channels = cast(nn.Conv2d, first).in_channels if plain else None
        if plain and not (x.is_floating_point() or x.is_complex() or x.is_quantized):
            raise TypeError(f"PSPNet: images must be of a floating-point type, normalised, not {x.dtype}")
        if x.ndim != 4 or channels not in (None, x.shape[1]):
            raise ValueError(f"PSPNet: images must have shape (N, {channels or 'C'}, H, W), got {tuple(x.shape)}")

    def _loss_and_argmax(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self._has_fused_loss(logits):
            return ops.upsample_cross_entropy_argmax(logits, target, **self._fused_options())
        argmax = ops.upsample_argmax(logits.detach(), target.shape[1:], self.align_corners)
        return self._loss(logits, target), argmax

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self._has_fused_loss(logits):
            return ops.upsample_cross_entropy(logits, target, **self._fused_options())
        full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=self.align_corners)
        return self.criterion(full, target.long())

    def _has_fused_loss(self, logits: Tensor) -> bool:
        return may_fuse(logits) and is_exactly(self.criterion, nn.CrossEntropyLoss)

    def _fused_options(self) -> dict[str, Any]:
        return {
            "weight": self.criterion.weight,
            "ignore_index": self.criterion.ignore_index,
            "label_smoothing": self.criterion.label_smoothing,
            "align_corners": self.align_corners,
            "reduction": self.criterion.reduction,
        }


_FORWARD = PSPNet.forward  # as it is here: tools also replace methods of whole classes


def _class_weights(model: PSPNet, prefix: str) -> str | None:
    """The key of the class weights of one of PyTorch's losses."""
    return f"{prefix}criterion.weight" if isinstance(getattr(model, "criterion", None), _WeightedLoss) else None


def _leave_out_class_weights(model: PSPNet, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Of `state_dict`: weights load into networks with and without class weights."""
    state.pop(_class_weights(model, prefix) or "", None)


def _keep_class_weights(model: PSPNet, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Of `load_state_dict`: the loss keeps its class weights, whatever the file has in their place."""
    key = _class_weights(model, prefix)
    if key is None:
        return
    state.pop(key, None)
    if model.criterion.weight is not None:
        state[key] = model.criterion.weight


def _labels(y: Tensor, shape: tuple[int, int, int], images: Sequence[int]) -> Tensor:
    """y as (N, H, W) of uint8 or int64; raises where it is not integers of this shape."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex():
        found = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"PSPNet: labels must be a tensor of an integer type, not {found}")
    labels = y[:, 0] if y.ndim == 4 and y.shape[1] == 1 else y
    if tuple(labels.shape) != shape:
        raise ValueError(f"PSPNet: labels must have shape {shape} for images {tuple(images)}, got {tuple(y.shape)}")
    return labels if labels.dtype == torch.uint8 else labels.long()
