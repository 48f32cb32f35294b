"""The paper's optimiser: SGD with momentum, the poly learning rate, heads at a multiple of the backbone's rate."""

from __future__ import annotations

from torch import optim

from psp_fast.configs import OptimConfig
from psp_fast.models import PSPNet

_BACKBONE = ("layer0", "layer1", "layer2", "layer3", "layer4")


def build_optimizer(model: PSPNet, config: OptimConfig) -> optim.SGD:
    """SGD with one parameter group a top-level module, as in semseg: layer0 to layer4, then ppm, cls, aux."""
    groups = [
        {"params": list(module.parameters()), "lr_factor": 1.0 if name in _BACKBONE else config.head_lr_factor}
        for name, module in model.named_children()
        if any(True for _ in module.parameters())
    ]
    return optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def poly_lr(config: OptimConfig, step: int, steps: int) -> float:
    """The backbone's learning rate at a step, counted from 0."""
    return (config.lr - config.min_lr) * (1 - step / steps) ** config.power + config.min_lr


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the backbone's learning rate; the other groups follow by their factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
