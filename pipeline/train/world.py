"""The workers of a run as one of them sees them: who it is, and what all of them exchange."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 25 << 20


@dataclass(frozen=True)
class World:
    """Alone, or in torch's default process group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> "World":
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def gather(self, mine: Tensor) -> Tensor:
        """[b, …] of each worker → [size·b, …], in the order of ranks."""
        if self.size == 1:
            return mine.clone()
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine.contiguous())
        return torch.cat(found)

    def sum_rows(self, everybody: Tensor) -> Tensor:
        """[size·b, …] of each worker → this worker's rows [b, …] of their sum."""
        if self.size == 1:
            return everybody
        each = len(everybody) // self.size
        if dist.get_backend() == "nccl":
            mine = torch.empty_like(everybody[:each])
            dist.reduce_scatter_tensor(mine, everybody.contiguous())
            return mine
        dist.all_reduce(everybody)
        return everybody[self.rank * each : (self.rank + 1) * each]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number's sum over the workers."""
        if self.size == 1:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return summed.tolist()

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the workers, in place, a bucket of about 25 MB at a time.

        The buckets are the same at every step and after every restart, as the bits of a sum depend on its order.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        held = 0
        for place, tensor in enumerate(tensors):
            bucket.append(tensor)
            held += tensor.numel() * tensor.element_size()
            if held >= BUCKET_BYTES or place == len(tensors) - 1:
                flat = torch.cat([one.ravel() for one in bucket])
                dist.all_reduce(flat)
                for one, part in zip(bucket, torch.split(flat, [one.numel() for one in bucket]), strict=True):
                    one.copy_(part.view_as(one))
                bucket, held = [], 0

    def gather_objects(self, mine: list[Any]) -> list[Any]:
        """The workers' lists, one after another in the order of ranks; for small and rare ones."""
        if self.size == 1:
            return mine
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return [one for each in found for one in each]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
