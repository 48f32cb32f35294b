"""Running a function on several processes joined by gloo."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function, world, *arguments):
    """function(rank, world, *arguments) on `world` processes of one thread each; raises what one of them raises."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, (function, world, port, arguments), nprocs=world)


def _rank(rank, function, world, port, arguments):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        function(rank, world, *arguments)
    finally:
        dist.destroy_process_group()
