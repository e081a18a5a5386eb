"""What tests run in processes of their own.

A spawned process imports a function by the name of its module. With --import-mode=importlib a test module has none that
can be imported elsewhere; a module of this folder has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import documents, labels_for
from torch import Tensor, nn

from gloss_kernels import CorpusGLoss, NeighborIndex, TopK

N, D, C = 60, 12, 5


def searched(index: NeighborIndex, queries: np.ndarray) -> TopK:
    torch.set_num_threads(1)
    return index.search(queries, 5)


class Whole(nn.Module):
    """An encoder with the loss inside: what is often given to DistributedDataParallel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(D, D, bias=False)
        self.loss = CorpusGLoss(labels_for(N, C, 1.0).cpu(), D, n_neighbors=6)
        self.loss.refresh(documents(N, D).cpu())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        result: Tensor = self.loss(self.encoder(x), ids)
        return result


def batches(steps: int = 3, size: int = 8) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    return [torch.randperm(N, generator=generator, device="cpu")[:size] for _ in range(steps)]


def two_processes(rank: int, port: int, out: str) -> None:
    """Each takes half of every batch. First the mistake, then the remedy of its message."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
    x, result = documents(N, D).cpu(), {}
    for broadcast in (True, False):
        whole = nn.parallel.DistributedDataParallel(Whole(), broadcast_buffers=broadcast)
        mine = batches()[0].chunk(2)[rank]
        try:
            whole(x[mine], mine)
        except RuntimeError as error:
            result[f"broadcast={broadcast}"] = str(error)
        whole.eval()
        result[f"eval, broadcast={broadcast}"] = float(whole(x[mine], mine).isfinite())
    gather = torch.distributed.nn.functional.all_gather
    parts = Whole()
    encoder = nn.parallel.DistributedDataParallel(parts.encoder)
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
    for ids in batches():
        mine = ids.chunk(2)[rank]
        loss = parts.loss(torch.cat(gather(encoder(x[mine]))), torch.cat(gather(mine)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parts.loss.flush()
    result["weight"], result["rows"] = parts.encoder.weight.detach(), parts.loss.bank.rows
    torch.save(result, Path(out) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
