"""One process or many: what torchrun's environment says, and the few collectives the engine needs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from psp_fast.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among `world` processes, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of tensor over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Give every process the main one's buffers, such as running statistics."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def from_main(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def start(device: str = "auto") -> Ranks:
    """Join the processes that torchrun started, if it did: NCCL on CUDA, gloo on CPU.

    Args:
        device: "cpu", "cuda", "cuda:1", or "auto": CUDA where it is. Under torchrun "cuda" means this process's own
            GPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local_rank)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and ":" in device:
        raise ConfigError(f"device {device!r} would put all {world} processes on one GPU: use --device cuda")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(dist.get_rank() if world > 1 else 0, world, chosen)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is none of auto, cpu, cuda, cuda:<number>") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is none of auto, cpu, cuda, cuda:<number>")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: this PyTorch sees no CUDA device; use --device cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank)
    return device
