"""A run of seconds: tiny scenes, the smallest network, every source of randomness on."""

from __future__ import annotations

import dataclasses

from psp_fast.configs import (
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ScenesConfig,
    TrainConfig,
)

SIZE = (41, 49)


def config(**changes) -> Config:
    """The small run; changes are `section__field=value`."""
    made = Config(
        device="cpu",
        model=ModelConfig(layers=18, output_stride=16, dropout=0.1),
        data=DataConfig(dataset="scenes", scenes=ScenesConfig(height=49, width=57, train=10, val=3, seed=1)),
        augment=AugmentConfig(crop=SIZE, scale=(0.7, 1.3), degrees=10.0),
        optim=OptimConfig(lr=0.01),
        train=TrainConfig(steps=6, batch_size=4, workers=0, log_every=2, validate_every=4, checkpoint_every=2),
        eval=EvalConfig(),
    )
    for name, value in changes.items():
        section, _, field = name.partition("__")
        owner = dataclasses.replace(getattr(made, section), **{field: value})
        made = dataclasses.replace(made, **{section: owner})
    return made
