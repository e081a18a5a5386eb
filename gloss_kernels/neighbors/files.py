"""The file of an index: magic, header length, header (JSON), rows part by part, the bytes of FAISS.

Every piece starts at a multiple of 64 bytes.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gloss_kernels._files import replacing

from .rows import Rows, matrix
from .structures import KINDS, Structure

MAGIC = b"GLOSSNBR"
VERSION = 1
START = struct.Struct("<8sIIQ")  # magic, version, CRC-32 of the header, its length
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


@dataclass
class Contents:
    """What an index consists of. ``facts`` are of the kind that JSON can hold."""

    kind: str
    rows: Rows
    structure: Structure | None
    facts: dict[str, Any]

    def codes(self) -> memoryview | bytes:
        return b"" if self.structure is None else self.structure.to_bytes()


def write(contents: Contents, path: str | os.PathLike[str], *, vectors: bool) -> None:
    rows, structure = contents.rows, contents.structure
    codes = contents.codes()
    header = {
        "kind": contents.kind,
        "dim": rows.dim,
        "count": len(rows),
        "vectors": vectors,
        "parts": [[len(part), str(part.dtype).removeprefix("torch.")] for part in rows.parts],
        "rows_crc": rows.crc(),
        "codes_bytes": len(codes),
        "codes_crc": zlib.crc32(codes),
        "effort": {} if structure is None else structure.effort,
        "facts": contents.facts,
    }
    text = json.dumps(header).encode()
    text += b" " * _gap(START.size + len(text))
    with replacing(path) as beside, open(beside, "wb") as file:
        file.write(START.pack(MAGIC, VERSION, zlib.crc32(text), len(text)) + text)
        for part in rows.parts if vectors else ():
            for piece in rows.raw(part):
                file.write(piece)
            file.write(b" " * _gap(file.tell()))
        file.write(codes)


def read(path: str | os.PathLike[str], embeddings: Any = None) -> Contents:
    name = os.fspath(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, offset = _header(name, file.read(START.size), file)
    parts = [(int(count), DTYPES[dtype]) for count, dtype in header["parts"]]
    dim = int(header["dim"])
    if sum(count for count, _ in parts) != header["count"]:
        raise ValueError(
            f"path: {name!r} is damaged: it should hold {header['count']} rows, its parts hold another number"
        )
    bytes_of = [count * dim * dtype.itemsize if header["vectors"] else 0 for count, dtype in parts]
    if size != offset + sum(length + _gap(length) for length in bytes_of) + header["codes_bytes"]:
        raise ValueError(f"path: {name!r} is cut or damaged: its {size} bytes are not the size in its header")
    rows = Rows(dim)
    if header["vectors"]:
        if embeddings is not None:
            raise ValueError(f"embeddings must be None, since {name!r} holds its rows, got embeddings")
        for (count, dtype), length in zip(parts, bytes_of, strict=True):
            raw = np.memmap(path, np.uint8, "c", offset, (length,))  # "c": torch warns of arrays it must not write
            rows.append(torch.from_numpy(raw).view(dtype).view(count, dim), copy=False)
            offset += length + _gap(length)
        if rows.crc() != header["rows_crc"]:
            raise ValueError(f"path: {name!r} is damaged: the checksum of its rows is wrong")
    else:
        if embeddings is None:
            raise ValueError(
                f"embeddings must be the rows that {name!r} was built from (it was saved with vectors=False), got None"
            )
        x, mapped = matrix("embeddings", embeddings, dim)
        if len(x) != header["count"]:
            raise ValueError(
                f"embeddings must be the {header['count']} rows that {name!r} was built from, got {len(x)} rows"
            )
        rows.append(x, copy=not mapped)
        if rows.crc() != header["rows_crc"]:
            raise ValueError(f"embeddings must be the rows that {name!r} was built from, got others")
    structure = None
    if header["codes_bytes"]:
        codes = np.fromfile(path, np.uint8, header["codes_bytes"], offset=offset)
        if zlib.crc32(codes.data) != header["codes_crc"]:
            raise ValueError(f"path: {name!r} is damaged: the checksum of its structure is wrong")
        structure = Structure.from_bytes(header["kind"], codes, dim, header["effort"], rows.device)
        held = structure.index.ntotal
        if held != len(rows):
            raise ValueError(f"path: {name!r} is damaged: {len(rows)} rows, but its structure holds {held}")
    return Contents(header["kind"], rows, structure, header["facts"])


def fingerprint(contents: Contents) -> str:
    rows = contents.rows
    return f"{contents.kind} {rows.dim} {rows.crc():08x} {zlib.crc32(contents.codes()):08x}"


def _header(name: str, start: bytes, file: Any) -> tuple[dict[str, Any], int]:
    """The checked header, and where the rows start."""
    if len(start) < START.size or not start.startswith(MAGIC):
        raise ValueError(f"path must be a file written by NeighborIndex.save, got {name!r}")
    _, version, crc, length = START.unpack(start)
    if version != VERSION:
        raise ValueError(
            f"path must be of format {VERSION}, which this version of gloss_kernels reads, got {name!r} of {version}"
        )
    text = file.read(min(length, 1 << 24))
    if len(text) != length or zlib.crc32(text) != crc:
        raise ValueError(f"path: {name!r} is cut or damaged: its header is not whole")
    header = json.loads(text)
    if header["kind"] not in KINDS:
        raise ValueError(f"path: {name!r} must hold one of the kinds {', '.join(KINDS)}, got {header['kind']!r}")
    return header, START.size + length


def _gap(position: int) -> int:
    return -position % 64
