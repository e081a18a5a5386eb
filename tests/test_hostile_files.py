"""Hostile files (tests/fuzz_files.py): some hundreds of inputs for each reader, and what a long run found, by name."""

from __future__ import annotations

import importlib.util
import io
import sys
import zipfile
from pathlib import Path

import fuzz_files
import numpy as np
import pytest
import torch

from gloss_kernels import NeighborIndex, SimilarityGraph
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.cli.files import load_array
from gloss_kernels.neighbors import knn

if not sys.platform.startswith("linux"):
    pytest.skip("memory is read from /proc", allow_module_level=True)
NEED = {"csv": (), "checkpoint": ("transformers",), "results": ("safetensors", "matplotlib", "sklearn", "transformers")}


@pytest.mark.parametrize("name", fuzz_files.READERS)
def test_a_hostile_file_is_refused_in_one_line(name: str) -> None:
    if not all(importlib.util.find_spec(package) for package in NEED.get(name, ())):
        pytest.skip("the demo extra is missing")
    outcome = fuzz_files.run_reader(name, seed=1, start=0, inputs=150, limit=False)
    assert outcome["findings"] == []
    assert outcome["said"]["refused"] > 20, "inputs that are hostile indeed"


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (",  # tokenize.TokenError
        "{'descr': '<f4', [1]: False, 'shape': (3,)}\n",  # TypeError
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}\n",  # OverflowError
        "(" * 5000,  # MemoryError of Python's parser
    ],
)
def test_a_header_that_numpy_does_not_expect(header: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(header))
    with pytest.raises(CommandError, match=r"EMBEDDINGS must be a whole \.npy file of numbers"):
        load_array("EMBEDDINGS", str(tmp_path / "x.npy"))


def graph_file(path: Path, packing: int = zipfile.ZIP_STORED, **members: bytes) -> None:
    arrays = {"crow_indices": np.array([0, 1, 2]), "col_indices": np.array([1, 0]), "values": np.ones(2, np.float32)}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, array in {**arrays, "symmetric": np.array(True)}.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", members.get(name, content.getvalue()))


@pytest.mark.parametrize(
    ("header", "more"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (", 0),  # TokenError
        ("{'descr': '|S4', 'fortran_order': False, 'shape': (2,)}\n", 8),  # torch: TypeError
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}\n", 8),  # 4 TiB
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (67108864,)}\n", 1 << 28),  # a bomb: 256 MiB of 260 kB
    ],
)
def test_a_member_that_numpy_does_not_expect(header: str, more: int, tmp_path: Path) -> None:
    graph_file(tmp_path / "good.npz", zipfile.ZIP_DEFLATED)  # a compressed graph is read
    assert SimilarityGraph.load(tmp_path / "good.npz").num_nodes == 2
    graph_file(tmp_path / "g.npz", zipfile.ZIP_DEFLATED, values=npy(header) + bytes(more))
    fuzz_files.reset_peak()
    before = fuzz_files.peak()
    with pytest.raises(ValueError, match="path must be a graph saved by"):
        SimilarityGraph.load(tmp_path / "g.npz")
    assert fuzz_files.peak() - before < 64 << 20


@pytest.mark.parametrize("name", ["codes_bytes", "parts", "vectors", "rows_crc", "facts", "kind"])
def test_an_index_without_a_part_of_its_header(name: str, tmp_path: Path) -> None:
    """With the right checksum; it was a KeyError, of facts only when they were asked for."""
    import json
    import zlib

    from gloss_kernels.neighbors.files import MAGIC, START

    path = tmp_path / "index"
    NeighborIndex.build(torch.eye(4), "exact").save(path)
    data = path.read_bytes()
    length = START.unpack_from(data)[3]
    header = json.loads(data[START.size : START.size + length])
    for value in (None, 1 << 70, -1, "x" * 4000):
        changed = {**header, name: value} if value is not None else {k: v for k, v in header.items() if k != name}
        text = json.dumps(changed).encode()
        text += b" " * (-(START.size + len(text)) % 64)
        path.write_bytes(START.pack(MAGIC, 1, zlib.crc32(text), len(text)) + text + data[START.size + length :])
        with pytest.raises(ValueError, match=r"^path: ") as error:
            NeighborIndex.load(path)
        assert len(str(error.value)) < 1000, "a finding of its own: thousands of characters of the file"


def test_a_state_of_knn_with_a_long_name(tmp_path: Path) -> None:
    keeping = knn.Keeping(tmp_path, "of x")
    knn.Blocks(8, 2, keeping)
    state = tmp_path / "state.json"
    state.write_text(state.read_text().replace("of x", "x" * 4000))
    with pytest.raises(ValueError, match=r"of the same search, or a new folder: in .* the index is 'xxx") as error:
        knn.Blocks(8, 2, keeping)
    assert len(str(error.value)) < 1000
