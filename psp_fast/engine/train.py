"""Training: what happens in a step, and what is kept of it, so that a killed run goes on where it was."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from psp_fast.checkpoints import read_checkpoint, save_checkpoint
from psp_fast.configs import Config
from psp_fast.data import IGNORE, write_png
from psp_fast.engine import plots, run
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.evaluate import evaluate
from psp_fast.engine.inference import evaluating
from psp_fast.engine.metrics import Metrics
from psp_fast.engine.optim import build_optimizer, poly_lr, set_lr
from psp_fast.engine.resumable import check_counters, check_optimizer
from psp_fast.engine.resuming import changes
from psp_fast.engine.samples import build_dataset, training_batches
from psp_fast.engine.seen import SeenLabels
from psp_fast.errors import CheckpointError, DataError, TrainingError
from psp_fast.nn import convert_sync_batch_norm
from psp_fast.notices import warn

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_KEEP_BUFFERS: dict[str, Any] = {  # torch 2.13 renames the argument
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


class Trainer:
    """One run: model, optimiser, data, and the folder everything is kept in.

    Args:
        config: the whole configuration.
        ranks: this process among the others.
        checkpoint: the last.pth to continue from; None starts anew.

    Raises:
        PspFastError: data, checkpoint or configuration that cannot be used.
    """

    def __init__(self, config: Config, ranks: Ranks, checkpoint: Path | None = None) -> None:
        self.config, self.ranks = config, ranks
        train = config.train
        torch.use_deterministic_algorithms(train.deterministic)
        torch.manual_seed(train.seed)
        channels = config.model.in_channels
        self.train_set, self.val_set = (build_dataset(config.data, split, channels) for split in ("train", "val"))
        # A checkpoint's weights replace the pretrained ones, whose file may be gone by now.
        network = config.model if checkpoint is None else dataclasses.replace(config.model, pretrained=False)
        model = run.build_model(network, len(self.train_set.classes)).to(ranks.device)
        run.check_normalisation(model, config.augment)
        if train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if train.sync_bn and ranks.world > 1:
            convert_sync_batch_norm(model)
        self.model = model.train()
        self.optimizer = build_optimizer(model, config.optim)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=train.amp == "fp16")
        self.step, self.best, self.seconds, self.validated = 0, -1.0, 0.0, False
        self.history: list[dict[str, float]] = []
        if checkpoint is not None:
            self._resume(checkpoint)
        # Statistics are synchronised or each process's own: either way there is nothing to broadcast in every step.
        self.wrapped: nn.Module = DistributedDataParallel(model, **_KEEP_BUFFERS) if ranks.world > 1 else model
        self.pending: list[Tensor] = []
        self.seen, self.first = SeenLabels(self.train_set.classes, len(self.train_set)), self.step
        self.started = self.since = time.monotonic()

    def run(self, folder: Path) -> Metrics:
        """Train to the last step, validating and saving on the way into folder; the measures of the last validation.

        Raises:
            DataError: an image or label that cannot be used, by its file's name.
            TrainingError: a loss that is not finite; the last checkpoint on disk is from before it.
            CheckpointError: a checkpoint that cannot be written; the previous one is untouched.
        """
        train, self.folder = self.config.train, folder
        batches = training_batches(self.config, self.train_set, self.step, self.ranks.rank, self.ranks.world)
        self.writer: SummaryWriter | None = None
        with self._without_tensorboard():
            if self.ranks.main:
                self.writer = SummaryWriter(str(self.folder / run.TENSORBOARD), purge_step=self.step + 1)
        bar = tqdm(
            batches,
            "train",
            train.steps,
            initial=self.step,
            unit="step",
            disable=not self.ranks.main,
            dynamic_ncols=True,
        )
        metrics = self._validate() if self._validation_due() and not self.validated else None
        for batch in bar:
            if isinstance(batch, DataError):
                raise batch
            self.seen.add(batch[1])
            self._update(*batch)
            self.step, self.validated = self.step + 1, False
            saving = self._validation_due() or self.step % train.checkpoint_every == 0
            if saving or self.step % train.log_every == 0:
                bar.set_postfix(self._log())
                self._warn_of_missing_classes()
            if saving:
                self._save()
            if self._validation_due():
                metrics = self._validate()
        if metrics is None:  # resumed after the last validation
            metrics = evaluate(self.model, self.val_set, self.config, self.ranks).metrics
        with self._without_tensorboard():
            if self.writer is not None:
                self.writer.close()
        return metrics

    def _validation_due(self) -> bool:
        every = self.config.train.validate_every
        return self.step > 0 and (self.step == self.config.train.steps or (every > 0 and self.step % every == 0))

    def _update(self, images: Tensor, labels: Tensor) -> None:
        """One step of SGD on this process's share of the batch."""
        config, device = self.config, self.ranks.device
        # Dropout depends on the step alone, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed(
            int(np.random.SeedSequence([config.train.seed, self.step, self.ranks.rank]).generate_state(1)[0])
        )
        set_lr(self.optimizer, poly_lr(config.optim, self.step, config.train.steps))
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        images = images.to(device, non_blocking=True).contiguous(memory_format=layout)
        labels = self._resized(labels.to(device, non_blocking=True), images)
        with torch.autocast(device.type, _AMP.get(config.train.amp), enabled=config.train.amp != "off"):
            main_loss, aux_loss = self._losses(images, labels)
        share = self._share(labels)
        losses = torch.stack([main_loss, aux_loss]) * share
        self.scaler.scale(losses[0] + config.train.aux_weight * losses[1]).backward()
        if config.optim.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending.append(losses.detach())

    def _resized(self, labels: Tensor, images: Tensor) -> Tensor:
        """Labels at the size of the logits."""
        size = self.model.output_size(images.shape[2], images.shape[3])
        if labels.shape[1:] == size:
            return labels
        return F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()  # zoom_factor below 8

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            _, main_loss, aux_loss = self.wrapped(images, labels)
        except ValueError as error:  # a batch too small for batch norm
            raise TrainingError(str(error)) from error
        return main_loss, aux_loss

    def _share(self, labels: Tensor) -> Tensor | float:
        """Weight that turns the mean over this process's valid pixels into its part of the mean over everyone's.

        With `loss_mean: all` that is a mean over all pixels, of which every process has as many.
        """
        if self.config.train.loss_mean == "all":
            return (labels != IGNORE).double().mean()
        if self.ranks.world == 1:
            return 1.0
        valid = (labels != IGNORE).sum().double()
        everyone = self.ranks.sum(valid.clone())
        return valid * self.ranks.world / everyone.clamp(min=1)

    def _log(self) -> dict[str, str]:
        """Note the losses since the last call; what the progress bar shows of them."""
        if not self.pending:
            return {}
        losses = (self.ranks.sum(torch.stack(self.pending)) / self.ranks.world).cpu()
        self.pending.clear()
        first = self.step - len(losses) + 1
        bad = (~losses.isfinite().all(1)).nonzero()
        if len(bad):
            raise TrainingError(
                f"the loss of step {first + int(bad[0])} is not finite: lower optim.lr, set optim.clip_grad_norm, "
                f"or use train.amp bf16 or off; checkpoints in {self.folder} are from before it"
            )
        main_loss, aux_loss = losses.mean(0).tolist()
        now = time.monotonic()
        rate = len(losses) * self.config.train.batch_size / max(now - self.since, 1e-9)
        self.since = now
        lr = self.optimizer.param_groups[0]["lr"]
        self._note("train", {"main_loss": main_loss, "aux_loss": aux_loss, "lr": lr, "images_per_second": rate})
        return {"loss": f"{main_loss + self.config.train.aux_weight * aux_loss:.3f}", "images/s": f"{rate:.1f}"}

    def _warn_of_missing_classes(self) -> None:
        """Say once which classes no pixel has had in an epoch, or in all of a run of fewer steps."""
        last = self.first == 0 and self.step == self.config.train.steps
        warning = self.seen.warning(self.ranks, validating=self._validation_due(), last=last)
        if warning and self.ranks.main:
            warn(warning)

    def _save(self) -> None:
        """Write last.pth, unless a bad gradient ruined the weights, which the loss would show a step too late."""
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise TrainingError(
                f"weights are not finite after step {self.step}: lower optim.lr or set optim.clip_grad_norm; "
                f"checkpoints in {self.folder} are from before it"
            )
        if self.ranks.main:
            save_checkpoint(self._state(), self.folder / run.LAST)

    def _validate(self) -> Metrics:
        """Measure the model, keep it as best.pth if it is the best so far, and draw the curves and examples."""
        self.ranks.share_buffers(self.model)  # what is measured is what the main process saves
        found = evaluate(self.model, self.val_set, self.config, self.ranks)
        metrics, self.validated = found.metrics, True
        if self.ranks.main:
            if not any("miou" in row for row in self.history):
                found.warn_of_missing_classes()
            measures = {
                "miou": metrics.miou,
                "mean_accuracy": metrics.mean_accuracy,
                "pixel_accuracy": metrics.pixel_accuracy,
            }
            self._note("val", measures)
            if metrics.miou > self.best:
                self.best = metrics.miou
                save_checkpoint(self._description(), self.folder / run.BEST)
            metrics.save(self.folder / "metrics.json")
            run.write_history(self.folder, self.history)
            plots.save_curves(self.folder / "curves.png", self.history)
            self._draw_examples()
            save_checkpoint(self._state(), self.folder / run.LAST)
            tqdm.write(f"step {self.step}: {metrics.headline()}")
        self.since = time.monotonic()
        return metrics

    def _draw_examples(self) -> None:
        title = "PSPNet" if self.config.model.use_ppm else "FCN"
        with evaluating(self.model):
            picture = plots.examples({title: self.model}, self.val_set, self.config, self.ranks.device)
        write_png(self.folder / "examples.png", picture)
        with self._without_tensorboard():
            if self.writer is not None:
                self.writer.add_image("examples", np.asarray(picture.convert("RGB")), self.step, dataformats="HWC")

    def _note(self, group: str, measures: dict[str, float]) -> None:
        """Keep measures with the step and the seconds the run took so far, over all its processes."""
        self.history.append({"step": self.step, "seconds": self._seconds(), **measures})
        with self._without_tensorboard():
            if self.writer is not None:
                for key, value in measures.items():
                    self.writer.add_scalar(f"{group}/{key}", value, self.step)

    @contextmanager
    def _without_tensorboard(self) -> Iterator[None]:
        """Go on without TensorBoard where its files cannot be written: history.json has the numbers."""
        try:
            yield
        except OSError as error:
            self.writer = None
            tqdm.write(
                f"going on without {self.folder / run.TENSORBOARD}: it cannot be written ({error.strerror})",
                file=sys.stderr,
            )

    def _seconds(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def _description(self) -> dict[str, Any]:
        return {**run.describe(self.config, self.train_set), "step": self.step, "state_dict": self.model.state_dict()}

    def _state(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            **self._description(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "history": self.history,
            "seconds": self._seconds(),
            "validated": self.validated,
            "samples": len(self.train_set),
        }

    def _resume(self, path: Path) -> None:
        content = read_checkpoint(path)
        missing = {
            "config",
            "step",
            "state_dict",
            "optimizer",
            "scaler",
            "best",
            "history",
            "seconds",
            "validated",
        } - content.keys()
        if missing:
            raise CheckpointError(f"{path} cannot be resumed from: it lacks {', '.join(sorted(missing))}")
        check_counters(content, path)
        self.step, self.best, self.history = content["step"], content["best"], content["history"]
        self.seconds, self.validated = content["seconds"], content["validated"]
        changed = changes(content["config"], self.config, self.step, path)
        check_optimizer(content, self.optimizer, path)
        run.load_weights(self.model, content["state_dict"], path)
        # The groups' momentum, weight decay and factor are the configuration's, not the checkpoint's.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": groups})
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        samples = content.get("samples", len(self.train_set))
        if samples != len(self.train_set):
            changed.append(f"training images {samples} -> {len(self.train_set)}")
        if self.ranks.main:
            tqdm.write(f"going on at step {self.step}{', with ' if changed else ''}{', '.join(changed)}")
