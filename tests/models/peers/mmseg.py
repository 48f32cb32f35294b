"""mmsegmentation's ResNetV1c, PSPHead and FCNHead, as configs/pspnet has them, with mmcv's and mmengine's modules.

Needs mmengine and mmcv or mmcv-lite. Packages whose __init__ imports compiled operators that PSPNet does not use, or
checks the version of mmcv, are entered without it.
"""

from __future__ import annotations

import importlib
import sys
import types

import torch

from tests.models.peers.common import CLASSES, digest, image, sample, weights, write

SIZE = (41, 57)


class _Unused(types.ModuleType):
    """mmcv's compiled operators: names to import, and nothing behind them."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def enter(checkout: str) -> None:
    sys.path.insert(0, checkout)
    importlib.import_module("mmcv")
    sys.modules["mmcv.ops"] = _Unused("mmcv.ops")
    for name in ("mmseg", "mmseg.models", "mmseg.models.backbones", "mmseg.models.decode_heads"):
        package = types.ModuleType(name)
        package.__path__ = [f"{checkout}/{name.replace('.', '/')}"]
        sys.modules[name] = package
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)


def build(layers: int) -> torch.nn.ModuleDict:
    """configs/_base_/models/pspnet_r50-d8.py, for other depths as their configs change it."""
    resnet = importlib.import_module("mmseg.models.backbones.resnet")
    psp = importlib.import_module("mmseg.models.decode_heads.psp_head")
    fcn = importlib.import_module("mmseg.models.decode_heads.fcn_head")
    width = 512 if layers < 50 else 2048
    norm = {"type": "BN", "requires_grad": True}
    common = {"dropout_ratio": 0.1, "num_classes": CLASSES, "norm_cfg": norm, "align_corners": False}
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}
    backbone = resnet.ResNetV1c(
        depth=layers,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=norm,
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    )
    head = psp.PSPHead(
        in_channels=width, in_index=3, channels=width // 4, pool_scales=(1, 2, 3, 6), loss_decode=loss, **common
    )
    auxiliary = fcn.FCNHead(
        in_channels=width // 2,
        in_index=2,
        channels=width // 8,
        num_convs=1,
        concat_input=False,
        loss_decode=loss,
        **common,
    )
    return torch.nn.ModuleDict({"backbone": backbone, "decode_head": head, "auxiliary_head": auxiliary})


def shapes_of(model: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in model.state_dict().items() if not key.endswith("tracked")}


def main(checkout: str) -> None:
    enter(checkout)
    resize = importlib.import_module("mmseg.models.utils").resize
    model = build(18).double().eval()
    shapes = shapes_of(model)
    model.load_state_dict({key: torch.from_numpy(v) for key, v in weights(shapes).items()}, strict=False)
    with torch.no_grad():
        features = model["backbone"](torch.from_numpy(image(*SIZE)))
        results = [
            resize(model[head](features), SIZE, mode="bilinear", align_corners=False)
            for head in ("decode_head", "auxiliary_head")
        ]
    numbers = {
        "shapes": shapes,
        "size": SIZE,
        "logits": sample(results[0].numpy()),
        "aux_logits": sample(results[1].numpy()),
        "structure": {str(layers): digest(shapes_of(build(layers))) for layers in (18, 50, 101)},
    }
    write("mmseg", numbers)


if __name__ == "__main__":
    main(sys.argv[1])
