"""One process or many: what torchrun's environment says, and the few collectives the engine needs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from psp_fast.errors import ConfigError

PATIENCE = timedelta(minutes=30)  # with a process that does not answer: it may have more images to measure
_COLLECTIVE = re.compile("gloo|NCCL")  # gloo's errors have no class of their own


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
    local_rank, world = _from_environment("LOCAL_RANK", 0), _from_environment("WORLD_SIZE", 1)
    chosen = _device(device, local_rank)
    if world > 1 and ":" in device:
        raise ConfigError(f"device {device!r} would put all {world} processes on one GPU: use --device cuda")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set: start the processes with torchrun, or "
                "unset WORLD_SIZE"
            )
        _from_environment("RANK", 0)
        _join("nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(dist.get_rank() if world > 1 else 0, world, chosen)


def _join(backend: str) -> None:
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":  # machines may count their restarts differently
        dist.init_process_group(backend, timeout=PATIENCE)
        return
    # A torchrun with a fixed port keeps its store, with the addresses of the processes that have ended.
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"restart {restart}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def of_another_process(error: RuntimeError) -> bool:
    """Whether torch raised error because another process of the run has ended or does not answer."""
    return dist.is_available() and (isinstance(error, dist.DistError) or bool(_COLLECTIVE.search(str(error))))


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} must be a whole number, got {value!r}: torchrun sets it")
    return int(value)


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
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ConfigError(
            f"device {str(device)!r}: there are {torch.cuda.device_count()} CUDA devices here; start no more processes "
            "than that on a machine"
        )
    return device
