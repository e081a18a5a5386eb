"""The faults of tests/faults.py can still be seeded: tests/mutation.py does it."""

from __future__ import annotations

import re
from pathlib import Path

import mutation
import pytest
from faults import FAULTS

TESTS = Path(__file__).parent


def test_faults_have_names_of_their_own() -> None:
    assert len(FAULTS) >= 25 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {fault.name.partition(":")[0] for fault in FAULTS} == {"python", "triton", "cpu", "cuda"}


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    return mutation.sources(mutation.ROOT)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_text_stands_once_in_the_tree(fault, texts: dict[Path, str]) -> None:
    assert fault.new != fault.old
    found = mutation.places(fault, texts)
    assert len(found) == 1, found
    is_python = found[0].suffix == ".py"
    assert is_python == fault.name.startswith(("python", "triton")), found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_tests_exist(fault) -> None:
    for name in fault.tests.split():
        path, _, function = name.partition("::")
        text = (TESTS / path).read_text()
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), name
