"""NeighborIndex: neighbour search for so many rows that comparing all with all takes too long."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gloss_kernels import _checks
from gloss_kernels.topk import TIE, TopK, cosine_topk

from . import files, knn, plan
from .rows import Report, Rows, matrix, unit
from .structures import KINDS, Structure, default_options, permutation

SAMPLE = 512  # rows whose recall is measured
QUERIES = 8192  # rows searched at a time


class NeighborIndex:
    """Cosine neighbours by FAISS, with measured recall. Make one with :meth:`build` or :meth:`load`.

    ======== ============================================= =========================================
    kind     what                                          bytes per row beside the stored rows (d columns)
    ======== ============================================= =========================================
    exact    :func:`cosine_topk`                           2 d, during a search
    flat     FAISS brute force in float32                  4 d
    ivf_flat inverted lists of 16-bit rows                 2 d + 8
    ivf_pq   inverted lists of 4-bit codes                 d / 4 + 9
    hnsw     graph of 16-bit rows                          2 d + 160
    nn_desc. FAISS's NN-descent; ``add`` builds it anew    8 d + 2000, while building 12 d
    ======== ============================================= =========================================

    Of rows on a GPU, flat and ivf_flat are searched there by faiss-gpu, without a copy to the host; the structures of
    the others stay in host memory. FAISS finds at most 2048 neighbours on a GPU: a larger k is searched exactly.

    The rows themselves are copied in their dtype, so that a later write to the input changes nothing; a numpy.memmap is
    left on disk and read in blocks (leave the file as it is). Whatever the kind, the cosines that come back are
    computed from these rows in float32, sorted by (value descending, index ascending), and a query for which the
    structure found fewer than k rows is searched exactly. HNSW built on several threads is not the same twice.

    An index can be copied and pickled (so sent to other processes); rows on disk are then read into the pickle, which
    :meth:`save` and :meth:`load` do not do.

    Attributes:
        kind, dim: as built. len(index) is the number of rows.
        recall: share of the true recall_k nearest that a search finds, measured on up to 512 rows against exact search
            (cosines nearer than 2e-6 are ties). 1.0 for "exact". Rows added later do not change it: :meth:`measure`.
            Queries that are not among the rows find a little less (hnsw most: its links join the rows themselves).
        recall_k: the k it was measured at. A larger one finds a smaller share.
        recall_target: what was asked for.

    Example:
        >>> import torch
        >>> from gloss_kernels import NeighborIndex
        >>> index = NeighborIndex.build(torch.eye(4), kind="exact")
        >>> len(index), index.kind, index.recall
        (4, 'exact', 1.0)
        >>> index.search(torch.tensor([[0.0, 0.0, 3.0, 1.0]]), 2).indices.tolist()
        [[2, 3]]
    """

    def __init__(self, kind: str, rows: Rows, structure: Structure | None, facts: dict[str, Any]) -> None:
        self.kind, self.dim = kind, rows.dim
        self._rows, self._structure = rows, structure
        self._facts = facts  # what is saved with the index beside rows and structure

    @classmethod
    def build(
        cls,
        embeddings: Any,
        kind: str = "auto",
        *,
        recall_target: float = 0.95,
        recall_k: int = 15,
        nlist: int | None = None,
        links: int | None = None,
        ef_construction: int | None = None,
        memory_limit: int | None = None,
        seed: int = 0,
        progress: Report | None = None,
    ) -> NeighborIndex:
        """An index over rows, with the search effort that ``recall_target`` needs.

        Args:
            embeddings: [n, d] torch tensor (float64, float32, float16, bfloat16), numpy array or numpy.memmap.
            kind: "exact", "flat", "ivf_flat", "ivf_pq", "hnsw", "nn_descent"; "auto" chooses, and :meth:`describe`
                says why.
            recall_target: above 0, at most 1. The search effort - nprobe (ivf), efSearch (hnsw) or search_L
                (nn_descent) - is raised until the recall measured, less its standard error, reaches it. A target out of
                reach is warned of.
            recall_k: neighbours of the measurement, cut to n - 1.
            nlist: lists of the ivf kinds, default 4 sqrt(n).
            links: per row of hnsw, default 16.
            ef_construction: effort of the build of hnsw, default 60.
            memory_limit: bytes beside the rows that "auto" may plan with; default what is free.
            seed: of the training sample and the recall sample.
            progress: called with the share of rows added, 0..1; what it raises stops the build.

        Raises:
            TypeError, ValueError: naming the argument.
            ImportError: faiss is missing (no kind but "exact" does without).

        Warns:
            UserWarning: recall_target is out of reach at the largest search effort.

        Source: FAISS, whose structures these are.

        Example:
            >>> import torch
            >>> from gloss_kernels import NeighborIndex
            >>> print(NeighborIndex.build(torch.randn(100, 8), kind="exact").describe())
            exact: 100 rows, 8 columns
            chosen: asked for
            recall: 1, exact by construction
        """
        x, mapped = matrix("embeddings", embeddings)
        if len(x) == 0:
            raise ValueError("embeddings must have at least one row, got none")
        _checks.choice("kind", kind, ("auto", *KINDS))
        _checks.number("recall_target", recall_target, 0, 1, open_low=True)
        recall_k = _checks.whole_number("recall_k", recall_k, 1)
        seed = _checks.whole_number("seed", seed, 0)
        if memory_limit is not None:
            memory_limit = _checks.whole_number("memory_limit", memory_limit, 1)
        rows = Rows(x.shape[1])
        rows.append(x, copy=not mapped)
        rows.note_source(embeddings)
        reason = "asked for"
        if kind == "auto":
            kind, reason = plan.choose(len(x), x.shape[1], x.device, memory_limit)
        options = default_options(kind, len(x))
        for name, value, least in (("nlist", nlist, 1), ("links", links, 2), ("ef_construction", ef_construction, 1)):
            if value is not None:
                if name not in options:
                    raise ValueError(f"{name} must be None for kind {kind!r}, got {value}")
                options[name] = _checks.whole_number(name, value, least)
        if options.get("nlist", 0) > len(x):
            raise ValueError(f"nlist must be at most the {len(x)} rows, got {options['nlist']}")
        structure = None if kind == "exact" else Structure.build(kind, rows, options, seed, progress)
        facts = {
            "reason": reason,
            "options": options,
            "seed": seed,
            "recall": None,
            "recall_error": 0.0,
            "recall_k": min(recall_k, max(len(x) - 1, 1)),
            "recall_target": float(recall_target),
        }
        index = cls(kind, rows, structure, facts)
        index._calibrate()
        return index

    # ------------------------------------------------------------------------------------------- facts
    def __len__(self) -> int:
        return len(self._rows)

    @property
    def recall(self) -> float:
        return float(self._facts["recall"])

    @property
    def recall_k(self) -> int:
        return int(self._facts["recall_k"])

    @property
    def recall_target(self) -> float:
        return float(self._facts["recall_target"])

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The rows as they are stored: those of :meth:`build`, then those of each :meth:`add`; not to be written to."""
        return tuple(self._rows.parts)

    def describe(self) -> str:
        """What was chosen and why, with the recall; one line each."""
        facts = self._facts
        settings = {**facts["options"], **({} if self._structure is None else self._structure.effort)}
        lines = [
            f"{self.kind}: {len(self):,} rows, {self.dim} columns"
            + "".join(f", {name} {value}" for name, value in settings.items()),
            f"chosen: {facts['reason']}",
        ]
        if self._structure is not None and self._rows.device.type != "cpu":
            lines.append(f"structure: on {self._structure.device or 'the CPU'}, the rows on {self._rows.device}")
        if self.kind == "exact":
            lines.append("recall: 1, exact by construction")
        else:
            error, sample = facts["recall_error"], min(SAMPLE, facts["measured_rows"])
            reached = "reached" if facts["reached"] else "NOT reached at the largest search effort"
            lines.append(
                f"recall: {self.recall:.4f} +- {error:.4f} of the nearest {self.recall_k}, measured on {sample} rows; "
                f"target {self.recall_target:g} {reached}"
            )
            if facts["measured_rows"] != len(self):
                lines.append(f"{len(self) - facts['measured_rows']:,} rows were added after the measurement")
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------------- search
    def search(self, queries: Any, k: int) -> TopK:
        """The k nearest rows of the index for each query.

        Args:
            queries: [m, d] torch tensor, numpy array or numpy.memmap, on the device of the index.
            k: 1 to the number of rows.

        Returns:
            TopK: values float32 cosines and indices int64, both [m, k].

        Raises:
            TypeError, ValueError: naming the argument.
        """
        x, _ = matrix("queries", queries, self.dim)
        if x.device != self._rows.device:
            raise ValueError(f"queries must be on {self._rows.device} as the index, got {x.device}")
        k = int(_checks.whole_number("k", k, 1))  # FAISS knows no other integers
        if k > len(self):
            raise ValueError(f"k must be at most {len(self)}, the rows of the index, got {k}")
        found = [self._find(unit(x[i : i + QUERIES]), k) for i in range(0, len(x), QUERIES)]
        return _cat(found, k, x.device)

    def knn(self, k: int, *, progress: Report | None = None, checkpoint: str | os.PathLike[str] | None = None) -> TopK:
        """The k nearest other rows of every row, [n, k]: what ``similarity_graph(..., neighbors=)`` takes.

        Args:
            k: 1 to n - 1. A row leaves itself out by index, so its duplicates stay.
            progress: called with the share of rows done, 0..1; what it raises stops the search.
            checkpoint: a folder. Blocks of rows that are done are kept there, and the same call on the same index (for
                hnsw and nn_descent: the saved one) resumes after interruption, with the same result. The folder stays;
                a finished one is read again. Exact search in blocks (also of a memmap that memory cannot hold) does not
                use the symmetry of the whole: up to twice the time.

        Raises:
            TypeError, ValueError: k; a checkpoint that is no folder, or holds a search of another index or k.

        Example:
            >>> import torch
            >>> from gloss_kernels import NeighborIndex, similarity_graph
            >>> x = torch.randn(50, 8)
            >>> neighbors = NeighborIndex.build(x, kind="exact").knn(5)
            >>> similarity_graph(x, 5, neighbors=neighbors).num_nodes
            50
        """
        k = int(_checks.whole_number("k", k, 1))  # FAISS knows no other integers
        if len(self) < 2:
            raise ValueError("knn: the index must have at least 2 rows, so that a row has another, got 1")
        if k > len(self) - 1:
            raise ValueError(f"k must be at most {len(self) - 1} (a row of {len(self)} has no more others), got {k}")
        if not (checkpoint is None or isinstance(checkpoint, (str, os.PathLike))):
            raise TypeError(f"checkpoint must be the path of a folder, got {checkpoint!r}")
        folder = None if checkpoint is None else Path(os.fspath(checkpoint))
        name = "" if checkpoint is None else self.fingerprint()
        return knn.run(self._rows, self.kind, k, self._find_others, knn.Keeping(folder, name), progress)

    def add(self, embeddings: Any) -> None:
        """More rows, with the next indices. Lists and codes stay those trained by ``build``; the recall is not measured
        anew (:meth:`measure`)."""
        x, mapped = matrix("embeddings", embeddings, self.dim)
        if x.device != self._rows.device:
            raise ValueError(f"embeddings must be on {self._rows.device} as the index, got {x.device}")
        start = len(self)
        if len(x) == 0:
            return
        self._rows.append(x, copy=not mapped)
        self._rows.note_source(embeddings)
        if self._structure is not None:
            try:
                self._structure.add(self._rows, start)
            except BaseException:
                self._rows.drop_last()  # rows without codes would shift those of later calls
                raise

    def measure(self) -> float:
        """Raises the search effort as ``build`` does, for the rows of now, and returns the recall."""
        self._calibrate()
        return self.recall

    # ------------------------------------------------------------------------------------------- files
    def save(self, path: str | os.PathLike[str], *, vectors: bool = True) -> None:
        """Writes one file, without pickle, by a temporary name; vectors=False leaves the rows out (:meth:`load` then
        needs them). While it writes, the FAISS structure is in memory twice. ValueError where ``path`` is the file that
        rows are mapped from, and the rows would be lost."""
        files.write(self._contents(), path, vectors=vectors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], embeddings: Any = None) -> NeighborIndex:
        """Reads what :meth:`save` wrote, checksum included; rows in the file stay on disk, mapped into memory.

        Raises:
            ValueError: naming the path, where the file is cut, changed, foreign, or of other embeddings.
        """
        contents = files.read(path, embeddings)
        return cls(contents.kind, contents.rows, contents.structure, contents.facts)

    def fingerprint(self) -> str:
        """Of rows and structure: equal for an index and its saved copy."""
        effort = "" if self._structure is None else f"{sorted(self._structure.effort.items())} {self.recall_k}"
        return f"{files.fingerprint(self._contents())} {effort}"

    # ------------------------------------------------------------------------------------------- inside
    def _contents(self) -> files.Contents:
        return files.Contents(self.kind, self._rows, self._structure, self._facts)

    def _find(self, queries: Tensor, k: int) -> TopK:
        """k nearest of float32 unit queries; scored in float32, rows with too few found done again exactly."""
        if self._structure is None:
            return self._exact(queries, k)
        ids = self._structure.candidates(queries, k, min(self.recall_k + 1, len(self)))
        values = self._rows.cosines(queries, ids)
        values, ids = _sorted(values, ids)
        values, ids = values[:, :k].contiguous(), ids[:, :k].contiguous()
        short = (values == -torch.inf).any(dim=1)
        if bool(short.any()):
            again = self._exact(queries[short], k)
            values[short], ids[short] = again.values, again.indices
        return TopK(values, ids)

    def _find_others(self, start: int, queries: Tensor, k: int) -> TopK:
        """k nearest of rows start..start + len(queries) among all others."""
        own = torch.arange(start, start + len(queries), dtype=torch.int64, device=queries.device)
        return self._drop(own, queries, k)

    def _drop(self, own: Tensor, queries: Tensor, k: int, *, exact: bool = False) -> TopK:
        """One more than k, without the row itself, or without the last where it is not there (many duplicates)."""
        values, ids = self._exact(queries, k + 1) if exact else self._find(queries, k + 1)
        itself = ids == own[:, None]
        itself[:, -1] |= ~itself.any(dim=1)
        return TopK(values[~itself].view(-1, k), ids[~itself].view(-1, k))

    def _exact(self, queries: Tensor, k: int) -> TopK:
        """cosine_topk against the rows, block by block where they are not float32 in one piece."""
        best: TopK | None = None
        for begin, rows in self._rows.pieces():
            values, ids = cosine_topk(queries, rows, min(k, len(rows)))
            ids += begin
            if best is not None:
                values, ids = _sorted(torch.cat([best.values, values], 1), torch.cat([best.indices, ids], 1))
            best = TopK(values[:, :k].contiguous(), ids[:, :k].contiguous())
        assert best is not None
        return best

    def _calibrate(self) -> None:
        facts, n = self._facts, len(self)
        facts.update(recall=1.0, recall_error=0.0, measured_rows=n, reached=True)
        if self._structure is None or n < 2:
            return
        facts["recall_k"] = k = min(self.recall_k, n - 1)
        sample = permutation(n, self._facts["seed"] + 1)[:SAMPLE]
        sample = sample.to(self._rows.device)
        queries = self._rows.take(sample)
        least = self._drop(sample, queries, k, exact=True).values[:, -1:] - TIE
        for effort in self._structure.efforts():
            self._structure.set_effort(effort)
            found = self._drop(sample, queries, k).values
            hits = (found >= least).double().mean(dim=1)
            facts["recall"] = float(hits.mean())
            facts["recall_error"] = float(hits.std(correction=0)) / len(sample) ** 0.5
            facts["reached"] = facts["recall"] - facts["recall_error"] >= facts["recall_target"]
            if facts["reached"]:
                return
        warnings.warn(
            f"NeighborIndex: recall {self.recall:.4f} at k = {k} does not reach recall_target {self.recall_target:g} "
            f"with kind {self.kind!r}",
            stacklevel=3,
        )


def _sorted(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """By (value descending, index ascending)."""
    order = ids.argsort(dim=1)
    values, ids = values.gather(1, order), ids.gather(1, order)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _cat(found: list[TopK], k: int, device: torch.device) -> TopK:
    if not found:
        values = torch.empty(0, k, dtype=torch.float32, device=device)
        return TopK(values, torch.empty(0, k, dtype=torch.int64, device=device))
    return TopK(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))
