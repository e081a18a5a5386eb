"""The exact cosine top-k: which way a search goes, and the order of its launches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .... import _progress, _settings
from ...._library import rows as contiguous_rows
from ...._math import compute_dtype
from ...protocol import Search
from .._launch import INTERPRETED
from .exact import exact_search
from .lists import compact, score, select
from .pack import Packed, Rows, pack, with_norms
from .redo import redo
from .sweep import Lists, Wave, sweep
from .tiles import SHORT, Tile, sweep_tile

FEW_PAIRS = 1 << 18  # so many are scored faster than filtered
FEW_ROWS = 512  # of the corpus: several blocks at least
LARGEST_K = 256
LIST_BYTES = 32 << 20  # lists may grow to this
MOST_COLUMNS = 1 << 22  # the rows of a tile of the sweep lie within 2^31 numbers of each other
MOST_ROWS = (1 << 31) - (1 << 16)  # numbers of rows and positions are int32
MOST_ENTRIES = 512 if INTERPRETED else 2048  # interpreted, small searches should run in waves too


def cosine_topk(search: Search) -> tuple[Tensor, Tensor]:
    k, exclude_self, hint = search.k, search.exclude_self, search.hint
    queries = contiguous_rows(search.queries)
    corpus = queries if search.corpus is None else contiguous_rows(search.corpus)
    for name, x in (("queries", queries), ("corpus", corpus)):
        if len(x) > MOST_ROWS:
            raise ValueError(f"{name} must have at most {MOST_ROWS} rows, got {len(x)}")
    values = queries.new_empty((len(queries), k), dtype=compute_dtype(queries))
    indices = queries.new_empty(values.shape, dtype=torch.int64)
    rows = with_norms(queries)
    others = rows if corpus is queries else with_norms(corpus)
    checks = queries.device.type == "cpu" or _settings.CHECK
    if checks:
        check_finite("queries", rows)
        check_finite("corpus", others)
    if not is_filtered(queries, corpus, k):
        exact_search(rows, others, exclude_self, values, indices)
        candidates, redone, held = queries.new_zeros(()), queries.new_zeros(()), values.element_size() * len(corpus)
    else:
        candidates, redone, held = filtered_search(rows, others, exclude_self, hint, values, indices)
    if checks:
        _progress.set_statistics(
            {
                "candidates": int(candidates),
                "recomputed_rows": int(redone),
                "workspace_bytes": held,
                "kernel": "triton",
            }
        )
    return values, indices


def check_finite(name: str, rows: Rows) -> None:
    bad = torch.isnan(rows.inverse_norms)
    if bool(bad.any()):
        raise ValueError(f"{name}: row {int(bad.nonzero()[0])} contains NaN or Inf")


def is_filtered(queries: Tensor, corpus: Tensor, k: int) -> bool:
    if queries.dtype == torch.float64 or k > LARGEST_K or queries.shape[1] > MOST_COLUMNS:
        return False
    return 4 * k <= len(corpus) and len(corpus) > FEW_ROWS and len(queries) * len(corpus) > FEW_PAIRS


def new_lists(queries: Packed, k: int) -> Lists:
    """A list holds at least 3 k entries, and more where rows are few: then fewer waves do."""
    capacity = 256 if k <= 32 else 512 if k <= 96 else 1024
    while 2 * capacity <= MOST_ENTRIES and queries.padded * 2 * capacity * 8 <= LIST_BYTES:
        capacity *= 2
    value = queries.residual.new_empty((queries.padded, capacity))
    other, count = torch.empty_like(value, dtype=torch.int32), torch.zeros_like(queries.ids)
    return Lists(value, other, count, torch.full_like(queries.residual, -torch.inf))


def filtered_search(
    queries: Rows, corpus: Rows, exclude_self: bool, hint: Tensor | None, values: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Writes the result. Returns how many candidates were scored, how many rows were redone, and the bytes held."""
    x, k = queries.data, values.shape[1]
    itself = corpus is queries
    tile = sweep_tile(x.device, x.shape[1], len(corpus.data), k)
    packed = pack(queries, tile.block, tile.step, scattered=itself)
    columns = packed if itself else pack(corpus, tile.block, tile.step, scattered=True)
    lists = new_lists(packed, k)
    # Rows without a direction collect nothing: they are redone.
    norms = torch.where(packed.ids >= 0, queries.inverse_norms[packed.ids.clamp(min=0).long()], 0.0)
    lists.threshold.masked_fill_(~(norms > 0), torch.inf)
    largest = columns.residual.max()
    # Sums of products that come to 1 at most in all. The tensor cores add 8 or 16 of them to a sum at a time, each cut
    # to the length of the largest: below 9 / 8 * 2^-23 a product. Three TF32 products leave out low . low, below 2^-22.
    accumulation = 1.4e-7 * packed.data.shape[1] + (4e-7 if x.shape[1] > SHORT else 1e-6)
    if hint is not None and hint.shape[1] >= k:
        seed_thresholds(lists, packed, queries, corpus, hint, exclude_self, k, largest, accumulation)

    def compacted(stored: int) -> None:
        compact(lists, packed, largest, k, stored, accumulation, exclude_self and not itself)

    for wave, stored in waves(itself, packed, columns, k, lists.capacity, tile):
        sweep(packed, columns, lists, wave, exclude_self, tile)
        compacted(stored)
    kept = torch.where(lists.counts <= lists.capacity, lists.counts, 0).sum()
    source, redone = redo(lists, queries, corpus, packed, k)
    score(lists, source, queries, corpus, packed.ids)
    select(lists, source, queries, corpus, packed.ids, exclude_self, values, indices)
    held = sum(t.numel() * t.element_size() for t in (*lists, *packed[:3], *(() if itself else columns[:3])))
    return kept, redone, held


def waves(itself: bool, queries: Packed, corpus: Packed, k: int, capacity: int, tile: Tile) -> list[tuple[Wave, int]]:
    """Waves of tiles, between which the thresholds rise, and how many entries a list holds after each (0: it counted).

    The first stores whatever it computes. What a row has met grows by a factor for which its list has room.
    """
    growth, blocks, room = largest_growth(k, capacity), corpus.blocks, capacity // tile.block
    out = []
    if not itself:
        end = min(room, blocks)
        out.append((Wave(False, True, queries.blocks, 0, end), end * tile.block))
        while end < blocks:
            begin, end = end, min(blocks, max(end + 1, int(growth * end)))
            out.append((Wave(False, False, queries.blocks, begin, end), 0))
        return out
    # Deltas below `end` make a row meet 2 end - 1 blocks. Dense, both sides are computed.
    end = (min(room, blocks) + 1) // 2
    out.append((Wave(True, True, blocks, 1 - end, end), (2 * end - 1) * tile.block))
    whole = (blocks + 1) // 2  # deltas that all blocks take part in
    while end < whole:
        begin, end = end, min(whole, max(end + 1, int((growth * (2 * end - 1) + 1) / 2)))
        out.append((Wave(True, False, blocks, begin, end), 0))
    if blocks % 2 == 0 and 2 * end - 1 < blocks:  # half way round
        out.append((Wave(True, False, blocks // 2, end, end + 1), 0))
    return out


def largest_growth(k: int, capacity: int) -> float:
    """How many times what a row has met the next wave may bring it to.

    Its list then holds what the wave adds, at 8 sigma, beside its k best and those that the packed rows cannot tell
    from them.
    """

    def added(growth: float) -> float:
        return k * (growth - 1) + 8 * math.sqrt(k * (growth - 1) * growth)

    growth = 1.25
    while k + k // 4 + 16 + added(growth * 1.05) <= capacity:
        growth *= 1.05
    return growth


def seed_thresholds(
    lists: Lists,
    packed: Packed,
    queries: Rows,
    corpus: Rows,
    hint: Tensor,
    exclude_self: bool,
    k: int,
    largest: Tensor,
    accumulation: float,
) -> None:
    """The k-th best cosine with earlier neighbours is a lower bound of the k-th best of all. Hints that are no rows, or
    the row itself, or come twice, do not count."""
    n, h = hint.shape
    hint = hint.sort(dim=1).values
    counts = (hint >= 0) & (hint < len(corpus.data))
    counts[:, 1:] &= hint[:, 1:] != hint[:, :-1]
    row = torch.arange(n, dtype=torch.int64, device=hint.device)
    if exclude_self:
        counts &= hint != row[:, None]
    of_hint = Lists(
        queries.inverse_norms.new_full((n, h), -torch.inf, dtype=torch.float32),
        torch.where(counts, hint, -1).int(),
        torch.full_like(row, h, dtype=torch.int32),
        lists.threshold,
    )
    rows = row.int()
    score(of_hint, rows, queries, corpus, rows)
    best, _ = of_hint.value.masked_fill(torch.isnan(of_hint.value), -torch.inf).topk(k, dim=1)
    margin = (packed.residual + (1 + packed.residual) * largest + accumulation) * (1 + 1e-5)
    at = packed.ids.clamp(min=0).long()
    bound = (torch.where(packed.ids >= 0, best[at, -1], -torch.inf) - margin) * packed.unit**2
    lists.threshold.copy_(torch.maximum(lists.threshold, torch.where(bound == bound, bound, -torch.inf)))
