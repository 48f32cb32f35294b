"""A LightningModule around the network, with its callbacks, and torchmetrics."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from psp_fast.engine.metrics import confusion_matrix, mean_iou
from tests.models.modules import CLASSES, batch
from tests.tools.checks import assert_same, both_ways, images, network, predict


@pytest.fixture
def trained(lightning: ModuleType, torchmetrics: ModuleType, tmp_path: Path) -> Any:
    """A function that fits a network for two steps, with callbacks; returns module and trainer."""

    class Segmentation(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(50)
            self.iou = torchmetrics.classification.MulticlassJaccardIndex(CLASSES, ignore_index=255)
            self.confusion = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
            self.example_input_array = images(torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

        def training_step(self, pair: Any, index: int) -> Tensor:
            _, main, aux = self.network(*pair)
            return main + 0.4 * aux

        def validation_step(self, pair: Any, index: int) -> None:
            x, labels = pair
            self.iou.update(self(x), labels)
            self.confusion += confusion_matrix(labels, self.network.predict(x), CLASSES)

        def on_validation_epoch_end(self) -> None:
            self.log("miou", self.iou)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05)

    def fit(*callbacks: Any) -> tuple[Any, Any]:
        module = Segmentation()
        x, labels = batch()
        labels = labels.clone()
        labels[:, :3] = 255
        pairs = [(x[i % 2], labels[i % 2]) for i in range(4)]
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
        )
        trainer.fit(module, DataLoader(pairs, batch_size=2), DataLoader(pairs, batch_size=2))
        return module, trainer

    return fit


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def test_two_steps_and_a_validation(trained: Any) -> None:
    def run() -> dict[str, Tensor]:
        module, trainer = trained()
        assert trainer.global_step == 2
        # torchmetrics and the network's own measures agree on what the trained network predicts.
        assert trainer.callback_metrics["miou"].item() == pytest.approx(mean_iou(module.confusion), abs=1e-6)
        return {**predict(module.network), **dict(module.network.named_parameters())}

    got, want = both_ways(run)
    assert_same(got, want, 1e-7)
    before = predict(network(50))["logits"]
    assert (got["logits"] - before).norm() > 1e-3 * before.norm()


def test_weights_averaged_by_a_callback(lightning: ModuleType, trained: Any) -> None:
    from lightning.pytorch import callbacks

    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this lightning has no EMAWeightAveraging")

    class Recorded(lightning.Callback):
        def __init__(self) -> None:
            self.weights: list[list[Tensor]] = []
            self.validated: Tensor | None = None

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            self.weights.append([p.detach().clone() for p in module.network.parameters()])

        def on_validation_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            with torch.no_grad():
                self.validated = module.network(images(torch.float64))

    recorded = Recorded()
    module, _ = trained(callbacks.EMAWeightAveraging(decay=0.5), recorded)
    first, second = recorded.weights
    got = dict(module.network.named_parameters())
    want = {name: (a + b) / 2 for name, a, b in zip(got, first, second, strict=True)}
    assert_same(got, want, 1e-12)
    assert recorded.validated is not None
    with torch.no_grad():
        assert_same({"logits": recorded.validated}, {"logits": module.network.eval()(images(torch.float64))}, 1e-9)


def test_model_summary(lightning: ModuleType, trained: Any) -> None:
    from lightning.pytorch.utilities.model_summary import ModelSummary

    def run() -> tuple[Any, ...]:
        module, _ = trained()
        summary = ModelSummary(module, max_depth=-1)
        return summary.layer_names, summary.param_nums, summary.in_sizes, summary.out_sizes, summary.total_flops

    got, want = both_ways(run)
    assert got == want
    names, sizes, flops = want[0], want[3], want[4]
    assert flops > 0
    unused = {"network.criterion", "network.ppm.features", "iou"}
    seen = {name for name, size in zip(names, sizes, strict=True) if size != "?"}
    assert {n for n in names if not n.startswith("network.aux")} - seen - unused == set()
