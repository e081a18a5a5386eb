"""The native backends, ``cpu`` and ``cuda``: calls of the C++ and the CUDA core with the addresses of torch tensors.

Both cores have the same functions with the same named arguments (_C.pyi); what differs is what a call needs to run: a
number of threads, or workspace from torch's allocator and the current stream of the device. Nothing waits for a GPU, so
what only the device knows is not raised: a row that contains NaN gets NaN for values, unless GLOSS_KERNELS_CHECK=1 asks
to wait and look. With tensors on the CPU ``cuda`` runs the emulated core, where it was built (csrc/emulator).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _library, _progress, _settings
from .._math import compute_dtype
from .._product import in_core, in_float64
from . import multilevel
from .hierarchy import Level
from .protocol import Batch, BatchLoss, Combination, Edges, Search, SearchGradient, Solution, Structure, System


class _Call:
    """What calls of a core need for tensors beside ``x``."""

    def __init__(self, side: str, x: Tensor) -> None:
        self.device = x.device
        self.core: Any
        self.tail: dict[str, Any]
        takes = ["cpu"] if side == "cpu" else ["cuda", *["cpu"] * (_library.emulated is not None)]
        if x.device.type not in takes:  # of an operator called directly: its address is none where this side runs
            raise ValueError(f"backend={side!r} must get tensors on {' or '.join(takes)}, got {x.device}")
        if side == "cpu":
            self.core, self.tail = _library.core.cpu, {"threads": torch.get_num_threads()}
        elif x.device.type == "cpu":
            self.core, self.tail = _library.emulated, {"device": 0, "stream": 0}
        else:
            capability = torch.cuda.get_device_capability(x.device)
            if capability < (8, 0):
                raise RuntimeError(
                    f"backend='cuda' must have compute capability 8.0 or newer, got "
                    f"{torch.cuda.get_device_name(x.device)} with {capability[0]}.{capability[1]}; "
                    "backend='reference' runs on it"
                )
            index = torch.cuda.current_device() if x.device.index is None else x.device.index
            stream = torch.cuda.current_stream(x.device).cuda_stream
            self.core, self.tail = _library.core.cuda, {"device": index, "stream": stream}

    def empty(self, shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def run(self, function: str, size: dict[str, Any], **arguments: Any) -> Any:
        """core.function(**size, **arguments): tensors as addresses, None as null. ``size`` decides the workspace."""
        tail = dict(self.tail)
        workspace = getattr(self.core, f"{function}_workspace", None)
        if workspace is not None:
            space = self._workspace(workspace(**size))  # alive until the call is queued
            tail["workspace"] = space.data_ptr()
        addresses = {name: _address(name, value) for name, value in arguments.items()}
        return getattr(self.core, function)(**size, **addresses, **tail)

    def _workspace(self, size: int) -> Tensor:
        # The emulator's memory has no alignment of its own; the caching allocator aligns to 512 bytes.
        spare = 256 if self.device.type == "cpu" else 0
        space = self.empty(size + spare, torch.uint8)
        return space[-space.data_ptr() % 256 :] if spare else space


def _address(name: str, value: Any) -> Any:
    if value is None:
        return 0
    if not isinstance(value, Tensor):
        return value
    if not value.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {value.stride()}")
    return value.data_ptr()


def _alpha(alpha: float | None) -> float:
    return math.nan if alpha is None else alpha


class Native:
    """One side of the core; _backends.protocol.Backend says what the functions do."""

    dense_rows = 512  # of dense_loss; above, the torch path is the faster one

    def __init__(self, side: str) -> None:
        self.side = side

    # -------------------------------------------------------------------------------------------- topk
    def cosine_topk(self, search: Search) -> tuple[Tensor, Tensor]:
        call = _Call(self.side, search.queries)
        queries = _library.rows(search.queries)
        corpus = queries if search.corpus is None else _library.rows(search.corpus)
        hint = None if search.hint is None else search.hint.contiguous()
        values = call.empty((len(queries), search.k), compute_dtype(queries))
        indices = call.empty(values.shape, torch.int64)
        size = {
            "queries": _library.view(queries),
            "corpus": _library.view(corpus),
            "k": search.k,
            "exclude_self": search.exclude_self,
            "hint_k": 0 if hint is None else hint.shape[1],
        }
        arguments = {"hint": hint, "values": values, "indices": indices}
        if self.side == "cpu":
            call.tail["report"] = _progress.current_report()
            statistics = call.run("cosine_topk", size, **arguments)
            _progress.set_statistics(statistics)
            return values, indices
        status = call.empty(4, torch.int64)
        call.run("cosine_topk", size, **arguments, status=status)
        if (queries.device.type == "cpu" or _settings.CHECK) and not _library.capturing(queries):
            *bad_rows, candidates, recomputed_rows = status.tolist()
            _progress.set_statistics(
                {
                    "candidates": candidates,
                    "recomputed_rows": recomputed_rows,
                    "workspace_bytes": call.core.cosine_topk_workspace(**size),
                    "kernel": "cuda",
                }
            )
            for name, row in zip(("queries", "corpus"), bad_rows, strict=True):
                if row >= 0:
                    raise ValueError(f"{name}: row {row} contains NaN or Inf")
        return values, indices

    def cosine_topk_backward(self, gradient: SearchGradient) -> tuple[Tensor, Tensor]:
        call = _Call(self.side, gradient.queries)
        queries = _library.rows(gradient.queries)
        itself = gradient.corpus is None
        corpus = queries if gradient.corpus is None else _library.rows(gradient.corpus)
        dtype = compute_dtype(queries)
        grad_queries = call.empty(queries.shape if gradient.need_queries else (0,), dtype)
        grad_corpus = call.empty(corpus.shape if gradient.need_corpus and not itself else (0,), dtype)
        to_corpus = grad_queries if itself else grad_corpus if gradient.need_corpus else None
        call.run(
            "cosine_topk_backward",
            {
                "queries": _library.view(queries),
                "corpus": _library.view(corpus),
                "k": gradient.indices.shape[1],
                "is_double": dtype == torch.float64,
            },
            indices=gradient.indices.contiguous(),
            grad_values=gradient.grad_values.to(dtype).contiguous(),
            grad_queries=grad_queries if gradient.need_queries else None,
            grad_corpus=to_corpus,
        )
        return grad_queries, grad_corpus

    # ------------------------------------------------------------------------------------------- graph
    def knn_structure(self, indices: Tensor, symmetrize: str, capacity: int) -> Structure:
        call = _Call(self.side, indices)
        n, k = indices.shape
        out = Structure(call.empty(n + 1, torch.int64), *(call.empty(capacity, torch.int64) for _ in range(3)))
        call.run(
            "knn_structure", {"n": n, "k": k}, indices=indices.contiguous(), symmetrize=symmetrize, capacity=capacity,
            crow=out.crow, col=out.col, forward=out.forward, reverse=out.reverse,
        )  # fmt: skip
        return out

    def combine_edges(self, combination: Combination) -> Tensor:
        weights, nnz = combination.weights.contiguous(), len(combination.forward)
        call = _Call(self.side, weights)
        values = call.empty(nnz, weights.dtype)
        call.run(
            "combine_edges", {"nnz": nnz, "is_double": _library.is_double(weights)}, num_weights=weights.numel(),
            forward=combination.forward, reverse=combination.reverse, symmetrize=combination.symmetrize,
            weights=weights, values=values,
        )  # fmt: skip
        return values

    def combine_edges_backward(self, combination: Combination, grad_values: Tensor) -> Tensor:
        weights, nnz = combination.weights.contiguous(), len(combination.forward)
        call = _Call(self.side, weights)
        grad_weights = torch.empty_like(weights)
        call.run(
            "combine_edges_backward", {"nnz": nnz, "is_double": _library.is_double(weights)},
            num_weights=weights.numel(), forward=combination.forward, reverse=combination.reverse,
            symmetrize=combination.symmetrize, weights=weights, grad_values=grad_values.contiguous(),
            grad_weights=grad_weights,
        )  # fmt: skip
        return grad_weights

    def normalize_edges(self, edges: Edges, normalization: str) -> Tensor:
        call, values = _Call(self.side, edges.values), edges.values.contiguous()
        normalized = torch.zeros_like(values)  # the C++ core leaves the padding as it is
        call.run(
            "normalize_edges", _size(edges) | {"normalization": normalization}, crow=edges.crow, col=edges.col,
            values=values, normalized=normalized,
        )  # fmt: skip
        return normalized

    def normalize_edges_backward(self, edges: Edges, normalization: str, grad_normalized: Tensor) -> Tensor:
        call, values = _Call(self.side, edges.values), edges.values.contiguous()
        grad_values = torch.zeros_like(values)
        call.run(
            "normalize_edges_backward", _size(edges) | {"normalization": normalization}, crow=edges.crow,
            col=edges.col, values=values, grad_normalized=grad_normalized.contiguous(), grad_values=grad_values,
        )  # fmt: skip
        return grad_values

    # --------------------------------------------------------------------------------------- propagate
    def propagate(self, system: System, boundary: Tensor, has_initial: bool, tol: float) -> Solution:
        if self.side == "cuda" and _multilevel(system, boundary):
            return multilevel.propagate(self, system, boundary, has_initial, tol)
        call, edges, boundary = self._solve_call(boundary), system.edges, boundary.contiguous()
        out = Solution(
            result=torch.empty_like(boundary),
            iterations=call.empty((), torch.int64),
            residual=call.empty(boundary.shape[1], torch.float64),
            reachable=call.empty(len(system.fixed), torch.bool),
            used_tol=call.empty((), torch.float64),
        )
        call.run(
            "propagate", _solve_size(edges, boundary), crow=edges.crow, col=edges.col,
            values=edges.values.to(self._weight_dtype(boundary)).contiguous(), fixed=system.fixed.contiguous(),
            boundary=boundary, has_initial=has_initial,
            prior=system.prior.to(boundary.dtype).contiguous(), alpha=_alpha(system.alpha),
            prior_strength=system.prior_strength, tol=tol, max_iter=system.max_iter, **out._asdict(),
        )  # fmt: skip
        return out

    def propagate_backward(
        self, system: System, result: Tensor, reachable: Tensor, used_tol: Tensor, grad_result: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.side == "cuda" and _multilevel(system, result):
            return multilevel.propagate_backward(self, system, result, reachable, used_tol, grad_result)
        call, edges = self._solve_call(result), system.edges
        values = edges.values.to(self._weight_dtype(result)).contiguous()
        grad_values = torch.zeros_like(values)
        residual = call.empty(result.shape[1], torch.float64)
        call.run(
            "propagate_backward", _solve_size(edges, result), crow=edges.crow, col=edges.col,
            values=values, fixed=system.fixed.contiguous(), reachable=reachable.contiguous(),
            prior=system.prior.to(result.dtype).contiguous(), result=result.contiguous(),
            grad_result=grad_result.to(result.dtype).contiguous(),
            alpha=_alpha(system.alpha), prior_strength=system.prior_strength, tol=used_tol, max_iter=system.max_iter,
            grad_values=grad_values, residual=residual, iterations=call.empty((), torch.int64),
        )  # fmt: skip
        return grad_values.to(edges.values.dtype), residual

    def _solve_call(self, like: Tensor) -> _Call:
        call = _Call(self.side, like)
        if self.side == "cpu":
            call.tail["report"] = _progress.current_report()
        return call

    def _weight_dtype(self, result: Tensor) -> torch.dtype:
        """The C++ core takes weights in float64 whatever the result is."""
        return torch.float64 if self.side == "cpu" else result.dtype

    def flow(self, level: Level, x: Tensor, right: Tensor | None) -> Tensor:
        call, out = _Call(self.side, x), torch.empty_like(x)
        call.run(
            "flow", {"rows": len(x), "columns": x.shape[1], "is_double": _library.is_double(x)}, crow=level.crow,
            col=level.col, weight=level.weight, excess=level.excess, x=x, right=right, out=out,
        )  # fmt: skip
        return out

    def flow_gradient(self, edges: Edges, ends: multilevel.Ends) -> Tensor:
        call, grad_values = _Call(self.side, ends.f), torch.zeros_like(edges.values, dtype=torch.float64)
        call.run(
            "flow_gradient", {"n": len(ends.f), "columns": ends.f.shape[1]}, crow=edges.crow, col=edges.col,
            **ends._asdict(), grad_values=grad_values,
        )  # fmt: skip
        return grad_values

    # -------------------------------------------------------------------------------------------- loss
    def dense_loss(self, batch: Batch, want_gradient: bool) -> BatchLoss:
        call = _Call(self.side, batch.embeddings)
        (n, d), dtype = batch.embeddings.shape, compute_dtype(batch.embeddings)
        x = batch.embeddings.to(dtype).contiguous()
        is_double = dtype == torch.float64
        rows = {"n": n, "cols": d, "is_double": is_double}
        unit, inverse_norms = torch.empty_like(x), call.empty(n, torch.float64)
        call.run("dense_unit_rows", rows, x=x, unit=unit, inverse_norms=inverse_norms)
        multiply = in_core if self.side == "cpu" and not is_double else in_float64
        cosines = multiply(unit, unit.T)

        out = BatchLoss(
            loss=call.empty((), dtype),
            result=call.empty((n, batch.num_classes), dtype),
            reachable=call.empty(n, torch.bool),
            row_sum_error=call.empty((), torch.float64),
            grad_embeddings=torch.empty_like(x) if want_gradient else call.empty(0, dtype),
            grad_inverse_sigma=call.empty(n if want_gradient else 0, torch.float64),
        )
        grad_cosines = torch.empty_like(cosines) if want_gradient else None
        call.run(
            "dense_loss", {"n": n, "num_classes": batch.num_classes}, is_double=is_double, cosines=cosines,
            inverse_sigma=batch.inverse_sigma.contiguous(), labels=batch.labels.contiguous(),
            targets=batch.targets.contiguous(), scored=batch.scored.contiguous(), class_weight=batch.class_weight,
            alpha=_alpha(batch.alpha), normalization=batch.normalization, target=batch.target,
            smoothing=batch.smoothing, loss=out.loss, result=out.result, reachable=out.reachable,
            lacks=out.row_sum_error, grad_cosines=grad_cosines, grad_inverse_sigma=out.grad_inverse_sigma,
        )  # fmt: skip
        if grad_cosines is not None:
            call.run(
                "dense_unit_rows_backward", rows, unit=unit, inverse_norms=inverse_norms,
                grad_unit=multiply(grad_cosines, unit), grad=out.grad_embeddings,
            )  # fmt: skip
        return out


def _solve_size(edges: Edges, result: Tensor) -> dict[str, Any]:
    classes = {"num_classes": result.shape[1], "is_double": _library.is_double(result)}
    return {"n": len(edges.crow) - 1, "capacity": len(edges.values), **classes}


def _multilevel(system: System, like: Tensor) -> bool:
    """Whether the multilevel solver runs. Its loop reads the device: while a CUDA graph is captured conjugate gradients
    with a fixed number of iterations take its place: there, weights should not span more than about 1e5."""
    return system.alpha is None and not _library.capturing(like)


def _size(edges: Edges) -> dict[str, Any]:
    return {
        "n": len(edges.crow) - 1,
        "capacity": len(edges.values),
        "is_double": _library.is_double(edges.values),
    }


cpu, cuda = Native("cpu"), Native("cuda")
