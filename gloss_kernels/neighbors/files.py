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

from gloss_kernels._files import is_same, replacing

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
    for source, is_index in rows.sources:
        # An index with rows takes the place of the one it was loaded from: all that this had is in it.
        if is_same(path, source) and not (vectors and is_index):
            raise ValueError(f"path must be another file than that of the rows of the index, got {os.fspath(path)!r}")
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
            file.write(b" " * _gap(part.nbytes))  # not of file.tell(), which a pipe has not
        file.write(codes)


def read(path: str | os.PathLike[str], embeddings: Any = None) -> Contents:
    name = os.fspath(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, offset = _header(name, file.read(START.size), file)
    parts = [(count, DTYPES[dtype]) for count, dtype in header["parts"]]
    dim = header["dim"]
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
        rows.sources.append((os.path.realpath(path), True))
        if rows.crc() != header["rows_crc"]:
            raise ValueError(f"path: {name!r} is damaged: the checksum of its rows is wrong")
    else:
        if embeddings is None:
            raise ValueError(
                f"embeddings must be the rows that {name!r} was built from (it was saved with vectors=False), got None"
            )
        x, mapped = matrix("embeddings", embeddings, dim)
        rows.note_source(embeddings)
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
        try:
            structure = Structure.from_bytes(header["kind"], codes, dim, header["effort"], rows.device)
            held = structure.index.ntotal
        except (RuntimeError, AttributeError, TypeError) as error:  # what FAISS, or SWIG, says of what it cannot read
            raise ValueError(f"path: {name!r} is damaged: FAISS cannot read its structure") from error
        if held != len(rows) or structure.index.d not in (dim, dim + dim % 2):
            raise ValueError(
                f"path: {name!r} is damaged: {len(rows)} rows of {dim} columns, but its structure holds {held} of "
                f"{structure.index.d}"
            )
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
    try:
        header = json.loads(text)
        known = header["kind"] in KINDS
        if known:
            _check(header, START.size + length)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"path: {name!r} is damaged: its header is not one of ours ({reason})") from None
    if not known:
        kinds = ", ".join(KINDS)
        raise ValueError(f"path: {name!r} must hold one of the kinds {kinds}, got {header['kind']!r:.80}")
    return header, START.size + length


def _check(header: dict[str, Any], start: int) -> None:
    """TypeError where a header with the right checksum is none that write() makes."""
    facts, parts = header["facts"], header["parts"]
    whole = [header["dim"], header["count"], facts["recall_k"], facts["measured_rows"], *header["effort"].values()]
    whole += [count for count, dtype in parts if dtype in DTYPES]
    sizes = [header["codes_bytes"], header["rows_crc"], header["codes_crc"], *facts["options"].values()]
    numbers = [facts[name] for name in ("recall", "recall_error", "recall_target")]
    good = (
        all(type(x) is int and 1 <= x < 1 << 62 for x in whole)
        and all(type(x) is int and 0 <= x < 1 << 62 for x in sizes)
        and all(type(x) in (int, float) and 0 <= x <= 1 for x in numbers)
        and type(header["vectors"]) is type(facts["reached"]) is bool
        and isinstance(facts["reason"], str)
        and type(facts["seed"]) is int
        and len(whole) == 4 + len(header["effort"]) + len(parts) > 4 + len(header["effort"])
        and (header["kind"] == "exact") == (header["codes_bytes"] == 0)
        and start % 64 == 0
    )
    if not good:
        raise TypeError("a number or a name is out of its range")


def _gap(position: int) -> int:
    return -position % 64
