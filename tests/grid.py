"""Grids of cases: all of them where a case costs a millisecond, a pairwise cover of them where it costs a second.

Emulated CUDA and interpreted Triton are a thousand times slower than what they stand for. There the default run takes
a pairwise cover: any two values of any two parameters come together in some case. A fault that shows only where three
parameters meet is left to the full grid: ``pytest -m "slow or not slow"``, before a release and on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import DEVICE, is_interpreted

SIMULATED = ("cuda", "triton") if DEVICE == "cpu" else ()  # on a GPU no case is slow


def pairwise_cover(cases: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Some of the cases, tuples of one length, such that each pair of values that one of them has (at two places) is in
    one that was chosen.

    Greedy: the case with the most pairs that are still wanted, of equal ones the first; so it is the same every time.
    """

    def pairs(case: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(case), min(2, len(case))))

    left = {case: pairs(case) for case in cases}
    wanted = set().union(*left.values())
    chosen = []
    while wanted:
        best = max(left, key=lambda case: len(left[case] & wanted))
        chosen.append(best)
        wanted -= left.pop(best)
    return chosen


def everything(**_: object) -> bool:
    return True


def grid(
    *,
    only: Callable[..., bool] = everything,
    simulated: Callable[..., bool] = everything,
    interpreted: Callable[..., bool] = everything,
    indirect: Sequence[str] = (),
    **axes: Sequence[Any],
) -> pytest.MarkDecorator:
    """parametrize() over the product of the axes, one of them ``backend``, where ``only`` is true.

    Of a simulated backend a pairwise cover of the cases where ``simulated`` is true; the others are marked slow. Of
    Triton interpreted, ten times slower again, those of them where ``interpreted`` is true.
    """
    names = [name for name in axes if name != "backend"]
    params = []
    for backend in axes["backend"]:
        cases = {}
        for at in itertools.product(*(range(len(axes[name])) for name in names)):
            values = {name: axes[name][i] for name, i in zip(names, at, strict=True)}
            if only(**values, backend=backend):
                cases[at] = values
        quick = set(cases)
        if backend in SIMULATED:
            quick = set(pairwise_cover([at for at, values in cases.items() if simulated(**values)]))
            if is_interpreted(backend):
                quick = {at for at in quick if interpreted(**cases[at])}
        for at, values in cases.items():
            shown = "-".join(str(value).removeprefix("torch.") for value in [*values.values(), backend])
            marks = [] if at in quick else pytest.mark.slow
            params.append(pytest.param(*values.values(), backend, marks=marks, id=shown))
    return pytest.mark.parametrize([*names, "backend"], params, indirect=list(indirect))


def sizes(backends: Sequence[str], *full: int, simulated: int) -> pytest.MarkDecorator:
    """parametrize() over n: all of ``full``; of a simulated backend the size that is just past what it takes at once,
    and the largest of ``full`` marked slow."""
    params = []
    for backend in backends:
        for n in (simulated, max(full)) if backend in SIMULATED else full:
            marks = pytest.mark.slow if backend in SIMULATED and n != simulated else []
            params.append(pytest.param(n, backend, marks=marks, id=f"{n}-{backend}"))
    return pytest.mark.parametrize(["n", "backend"], params)
