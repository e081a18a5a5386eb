"""What runs under the profiler and under the sanitizer: python under_tools.py search|all BACKEND DEVICE N D."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gloss_kernels as gk
from gpubench.timing import documents, sync


def search(backend: str, device: torch.device, n: int, d: int) -> None:
    gk.cosine_topk(documents(n, d, device), k=15, backend=backend)


def everything(backend: str, device: torch.device, n: int, d: int) -> None:
    """Each operator once, forward and backward."""
    x = documents(n, d, device).requires_grad_()
    gk.cosine_topk(x, k=9, backend=backend).values.sum().backward()
    done("search and gradient", device)
    gk.cosine_topk(x.detach()[:40].half(), x.detach().half(), k=9, backend=backend)
    gk.cosine_topk(x.detach()[: n // 5].double(), k=9, backend=backend)
    done("search of queries, of float64 rows", device)
    graph = gk.similarity_graph(x, 7, sigma=0.5, backend=backend)
    labels = torch.arange(n, device=device) % 5
    labels[::3] = -1
    for options in ({}, {"alpha": 0.5}):
        found = gk.propagate_labels(graph, labels, 5, backend=backend, **options)
        found.probabilities.square().sum().backward(retain_graph=True)
    done("graph, propagation and gradients", device)
    y = torch.arange(96, device=device) % 4
    for options in ({}, {"normalization": "published"}, {"alpha": 0.5}, {"n_neighbors": 7}):
        gk.GLoss(4, backend=backend, **options)(x[:96], y).backward()
    done("losses and gradients", device)


def done(what: str, device: torch.device) -> None:
    sync(device)
    print(f"ran: {what}", flush=True)


if __name__ == "__main__":
    what, backend, device, n, d = sys.argv[1:]
    (search if what == "search" else everything)(backend, torch.device(device), int(n), int(d))
    print("ran to its end", flush=True)
