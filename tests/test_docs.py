"""What is written about the package: examples of docstrings run, and files and sections that texts point to exist."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import gloss_kernels
from gloss_kernels import sigma

MODULES = ("topk", "graph", "propagate", "loss", "sigma", "corpus.module", "neighbors.index", "_backends", "_progress")
PUBLIC = {
    **{name: getattr(gloss_kernels, name) for name in ("cosine_topk", "similarity_graph", "propagate_labels")},
    **{name: getattr(gloss_kernels, name) for name in ("GLoss", "g_loss", "CorpusGLoss")},
    "NeighborIndex.build": gloss_kernels.NeighborIndex.build,
    **{name: getattr(sigma, name) for name in ("sigma_root", "sigma_mst", "sigma_self_tuning")},
}
SOURCES = {".py", ".cpp", ".cu", ".h", ".cuh"}
TEXTS = ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "bench/README.md", "SECURITY.md")


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name: str) -> None:
    module = importlib.import_module(f"gloss_kernels.{name}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # whatever device the tests run on
        results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_have_their_sections(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    missing = [part for part in ("Args:", "Raises:", "Source", "Example:") if part not in text]
    assert not missing, f"{name} says nothing of {missing}"
    described = " ".join(re.findall(r"^    ([\w, .]+):", text, flags=re.MULTILINE)).replace(",", " ").split()
    arguments = [p for p in inspect.signature(PUBLIC[name]).parameters if p != "self"]
    assert "..." in described or set(arguments) <= set(described), set(arguments) - set(described)


def test_every_public_name_has_a_docstring() -> None:
    for name in gloss_kernels.__all__:
        assert name.startswith("__") or inspect.getdoc(getattr(gloss_kernels, name)), name


def paths_in(text: str) -> set[str]:
    """Targets of links without an address, and files named in `code` by a path of the repository."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    named = re.findall(r"`((?:csrc|gloss_kernels|tests|bench|docs|\.ci)/[\w./-]+)`", text)
    return {path for path in (*links, *named) if "NAME" not in path}


@pytest.mark.parametrize("name", TEXTS)
def test_paths_in_texts_exist(name: str) -> None:
    page = ROOT / name
    found = paths_in(page.read_text(encoding="utf-8"))
    gone = [path for path in found if not (page.parent / path).exists() and not (ROOT / path).exists()]
    assert not gone


def test_sections_of_the_architecture_that_sources_name_exist() -> None:
    headings = re.findall(r"^## (\d+)\. ", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    files = [p for folder in ("csrc", "gloss_kernels") for p in (ROOT / folder).rglob("*") if p.suffix in SOURCES]
    named = {(path, section) for path in files for section in sections_in(path)}
    assert named and all(section in headings for _, section in named), named


def sections_in(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    assert "DESIGN.md" not in text, path
    return re.findall(r"architecture\.md,\s+(?://\s+)?section (\d+)", text)
