"""The sections in the order of their value: what a short run leaves out stands last.

``expected`` is what an item takes on an H100 or less (an estimate until a report gives it: bench/README.md), with the
start of its process where it is the first of its section; an item is started if that much of the budget is left, and
stopped at ``limit``. Items name what they call as module:function, since only the worker imports torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

BACKENDS = ("cuda", "triton")
GRID = ("topk", "graph", "propagate", "loss", "paper_parity")  # tests that follow GLOSS_TEST_DEVICE
MILLION = 1_000_000


@dataclass(frozen=True)
class Item:
    name: str
    call: str  # module:function(context, **options), a generator of rows
    options: dict[str, Any] = field(default_factory=dict)
    expected: float = 3
    limit: float = 30


@dataclass(frozen=True)
class Section:
    name: str
    items: list[Item]
    log: str = "logs.txt"


def sections(rehearsal: bool) -> list[Section]:
    sizes = REHEARSED if rehearsal else MEASURED
    return [
        machine(rehearsal),
        smoke("cuda"),
        *([] if rehearsal else [warm(smoke("triton"), ours("triton", sizes))]),  # the interpreter compiles nothing
        smoke("triton"),
        *(ours(backend, sizes) for backend in BACKENDS),
        peers(sizes),
        *(grid(backend, rehearsal) for backend in BACKENDS),
        *(profile(backend, sizes) for backend in BACKENDS),
        *(sanitizer(tool) for tool in ("memcheck", "racecheck")),
        slow_peers(sizes),
    ]


def machine(rehearsal: bool) -> Section:
    call = "gpubench.roofs:"
    return Section(
        "machine",
        [
            Item("versions", call + "versions", expected=8, limit=60),
            Item("copy", call + "copy", {"megabytes": 16 if rehearsal else 2048}),
            *(
                Item(f"matrix product {dtype}", call + "matrix", {"n": 128 if rehearsal else 8192, "dtype": dtype})
                for dtype in ("float16", "bfloat16")
            ),
        ],
    )


OPERATORS = ("search", "search_queries", "search_gradient", "graph", "propagate", "propagate_gradient", "dense_loss",
             "sparse_loss", "corpus_loss")  # fmt: skip


def smoke(backend: str) -> Section:
    """Triton's are compiled by then (warm), or compile in seconds each."""
    expected, limit = (1, 40) if backend == "cuda" else (2, 60)
    return Section(
        f"smoke {backend}",
        [
            Item(
                name.replace("_", " "), f"gpubench.smoke:{name}", {"backend": backend}, expected + 4 * (at == 0), limit
            )
            for at, name in enumerate(OPERATORS)
        ],
    )


def warm(*compiled: Section) -> Section:
    items = [asdict(item) for section in compiled for item in section.items]
    return Section("warm triton", [Item("every kernel", "gpubench.warm:run", {"items": items}, 30, 80)])


@dataclass(frozen=True)
class Sizes:
    search: list[tuple[int, int, str]]  # n, d, dtype
    large_search: list[tuple[int, int, str]]  # its peers take many seconds
    queries: tuple[int, int, int]
    gradient: tuple[int, int]
    propagate: list[tuple[int, int, float]]  # n, classes, labelled share
    loss: list[tuple[int, int, int | None]]  # n, d, k
    profile: tuple[int, int]


MEASURED = Sizes(
    search=[(10_000, 384, "float32"), (100_000, 384, "float32"), (100_000, 384, "float16")],
    large_search=[(MILLION, 384, "float32")],
    queries=(128, MILLION, 384),
    gradient=(100_000, 384),
    propagate=[(MILLION, 32, 0.7), (MILLION, 32, 0.1)],
    loss=[(128, 768, None), (512, 768, None), (4096, 384, 15)],
    profile=(131_072, 384),
)
REHEARSED = Sizes(
    search=[(260, 16, "float32")],
    large_search=[(300, 16, "float16")],
    queries=(20, 300, 16),
    gradient=(200, 16),
    propagate=[(90, 3, 0.5)],
    loss=[(40, 16, None), (30, 16, 6)],
    profile=(400, 16),
)


def searches(sizes: list[tuple[int, int, str]], methods: str) -> list[Item]:
    """Generating a million rows, the search, and float64 cosines of some rows to check it."""
    return [
        Item(f"search {n:,} x {d} {dtype}", f"gpubench.search:{methods}", {"n": n, "d": d, "dtype": dtype},
             expected=12 if n >= MILLION else 4, limit=60)
        for n, d, dtype in sizes
    ]  # fmt: skip


def ours(backend: str, sizes: Sizes) -> Section:
    q, n, d = sizes.queries
    items = [
        *searches([*sizes.search, *sizes.large_search], "ours"),
        Item(f"{q} queries", "gpubench.search:our_queries", {"queries": q, "n": n, "d": d}, 4),
        *losses(sizes, "ours"),
        *propagations(sizes, "ours"),
        Item("search gradient", "gpubench.search:our_gradient", dict(zip(("n", "d"), sizes.gradient, strict=True)), 3),
    ]
    return Section(f"rows {backend}", [with_options(item, backend=backend) for item in items])


def losses(sizes: Sizes, methods: str) -> list[Item]:
    return [
        Item(f"loss {n} x {d}", f"gpubench.loss:{methods}", {"n": n, "d": d, "n_neighbors": k}, 3)
        for n, d, k in sizes.loss
    ]


def propagations(sizes: Sizes, methods: str) -> list[Item]:
    """Their graph is made first, by a search of dimension 64."""
    return [
        Item(f"propagate {n:,}, {labeled:.0%}", f"gpubench.propagation:{methods}",
             {"n": n, "classes": classes, "labeled": labeled}, expected=8, limit=60)
        for n, classes, labeled in sizes.propagate
    ]  # fmt: skip


def peers(sizes: Sizes) -> Section:
    q, n, d = sizes.queries
    items = [
        *searches(sizes.search, "peers"),
        Item(f"{q} queries", "gpubench.search:query_peers", {"queries": q, "n": n, "d": d}, 6),
        *losses(sizes, "peers"),
        *propagations(sizes, "peers"),
        Item(
            "search gradient", "gpubench.search:gradient_peers", dict(zip(("n", "d"), sizes.gradient, strict=True)), 3
        ),
    ]
    return Section("peers", items)


def slow_peers(sizes: Sizes) -> Section:
    """A million queries against a million rows once, most promising peer first."""
    items = []
    for name in ("certex", "torch_float16", "faiss", "cuvs", "flashlib", "torch_float32"):
        n, d, dtype = sizes.large_search[0]
        options = {"n": n, "d": d, "dtype": dtype, "name": name}
        items.append(Item(f"{name} {n:,} x {d}", "gpubench.search:slow_peer", options, expected=15, limit=100))
    return Section("slow peers", items)


def grid(backend: str, rehearsal: bool) -> Section:
    """The tests in parallel, a limit on each (grid.py); Triton compiles, so its tests take longer."""
    files = [f"test_{stage}.py" for stage in (*GRID, *["triton"] * (backend == "triton"))]
    options: dict[str, Any] = {"files": files, "keyword": "triton" if backend == "triton" else "not triton"}
    if rehearsal:
        keyword = f"{backend} and sigma and union and float32"
        options = {"files": ["test_graph.py"], "keyword": keyword, "processes": 1}
    expected, limit = (40, 100) if backend == "cuda" else (60, 130)
    item = Item("tests", "gpubench.grid:run", options | {"backend": backend}, 5 if rehearsal else expected, limit)
    return Section(f"tests {backend}", [item])


def profile(backend: str, sizes: Sizes) -> Section:
    n, d = sizes.profile
    item = Item(f"ncu, search {n:,} x {d}", "gpubench.tools:profile", {"backend": backend, "n": n, "d": d}, 20, 80)
    return Section(f"profile {backend}", [item], log="profile.txt")


def sanitizer(tool: str) -> Section:
    expected = 25 if tool == "memcheck" else 40
    items = [
        Item(f"{tool} {b}", "gpubench.tools:sanitize", {"tool": tool, "backend": b}, expected, 100) for b in BACKENDS
    ]
    return Section(tool, items, log=f"{tool}.txt")


def with_options(item: Item, **more: Any) -> Item:
    return Item(item.name, item.call, item.options | more, item.expected, item.limit)
