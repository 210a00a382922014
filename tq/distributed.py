"""One run on several processes, started by torchrun: who is who, what they agree on, and the network they share.

    torchrun --nproc-per-node 4 -m tq train --dataset imagefolder --data DIR --model resnet18 --scheme w4a4

Every process has its part of each batch (tq.data.Batches); DistributedDataParallel averages the gradients. The first
process (rank 0) alone owns the run: log, evaluation, checkpoints, the packed file.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class World:
    """The processes of a run; `World()` is the usual one process, `World.join()` what torchrun has started."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        # decisions travel on the CPU, so that none waits for a GPU
        self._group = dist.new_group(backend="gloo") if size > 1 else None

    @staticmethod
    def join(device: str) -> World:
        """Meet the other processes, if there are any; device "auto" or "cuda" is the GPU of this process's local rank.

        Raises ValueError for a GPU by number, and for more processes than GPUs.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return World()
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"torchrun gives each process a GPU of its own; use --device cuda, not {device}")
        use_cuda = device != "cpu" and torch.cuda.is_available()
        if use_cuda:
            local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= there:
                raise ValueError(f"expected at most {there} processes, one for each GPU; lower --nproc-per-node")
            torch.cuda.set_device(local)
        # both, for a run that is resumed may have been one on the CPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")
        return World(dist.get_rank(), dist.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this process owns the run."""
        return self.rank == 0

    def tell(self, message: Any) -> Any:
        """Rank 0's message (plain Python values), in every process."""
        if self.size == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def worst(self, level: int) -> int:
        """The highest level of all processes."""
        if self.size == 1:
            return level
        found = torch.tensor(level)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return int(found)

    @torch.no_grad()
    def same(self, model: nn.Module) -> None:
        """Give every process rank 0's parameters and buffers: calibration sees other images in each."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)

    def averaging(self, model: nn.Module) -> nn.Module:
        """The network with averaged gradients; itself in one process."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def leave(self) -> None:
        """Say goodbye to the others."""
        if self.size > 1:
            dist.destroy_process_group()
