"""The pairwise covers that thin the grids of the other tests."""

from __future__ import annotations

import itertools
import math

import grid
import pytest


def product(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, sizes)))


@pytest.mark.parametrize("sizes", [(1,), (5,), (2, 3), (7, 3, 4), (2, 2, 2, 2), (7, 3, 4, 3), (1, 6, 1)], ids=str)
@pytest.mark.parametrize("only", [lambda case: True, lambda case: sum(case) % 3 != 1], ids=["all", "some"])
def test_any_two_values_come_together(only, sizes: tuple[int, ...]) -> None:
    cases = [case for case in product(sizes) if only(case)]
    cover = grid.pairwise_cover(cases)
    assert len(set(cover)) == len(cover) and set(cover) <= set(cases)
    for places in [*itertools.combinations(range(len(sizes)), 2), *((place,) for place in range(len(sizes)))]:
        assert {tuple(case[p] for p in places) for case in cover} == {tuple(case[p] for p in places) for case in cases}
    assert grid.pairwise_cover(cases) == cover


def test_a_cover_is_small() -> None:
    """The two longest axes alone want their product; the greedy choice adds a little to that."""
    for sizes in ((7, 3, 4, 3), (8, 4), (5, 4, 3), (10, 10, 10)):
        least = math.prod(sorted(sizes)[-2:])
        assert least <= len(grid.pairwise_cover(product(sizes))) <= 1.6 * least


def test_simulated_backends_run_the_cover_and_the_others_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "SIMULATED", ("slowly",))
    only = lambda n, dtype, how, backend: how == "x" or n > 1  # noqa: E731
    small = lambda n, **_: n < 4  # noqa: E731
    mark = grid.grid(
        only=only, simulated=small, n=[1, 2, 3, 4], dtype=["a", "b"], how=["x", "y"], backend=["fast", "slowly"]
    ).mark
    names, cases = mark.args
    assert names == ["n", "dtype", "how", "backend"] and len(cases) == 28 == len({case.id for case in cases})
    assert not any(case.values[0] == 1 and case.values[2] == "y" for case in cases)
    quick, slow = ([case.values for case in cases if bool(case.marks) == marked] for marked in (False, True))
    assert sum(case[-1] == "fast" for case in quick) == 14 and {case[-1] for case in slow} == {"slowly"}
    of_simulated = {case[:3] for case in quick if case[-1] == "slowly"}
    assert {case[:2] for case in of_simulated} == set(itertools.product([1, 2, 3], "ab"))
    assert {case[2] for case in of_simulated} == {"x", "y"} and slow
    assert {case.id for case in cases} >= {"1-a-x-fast", "3-b-y-slowly"}


def test_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "SIMULATED", ("slowly",))
    _, cases = grid.sizes(["fast", "slowly"], 700, 3000, simulated=600).mark.args
    assert [(*case.values, bool(case.marks)) for case in cases] == [
        (700, "fast", False), (3000, "fast", False), (600, "slowly", False), (3000, "slowly", True)
    ]  # fmt: skip
