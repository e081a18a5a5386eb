"""A CSV file of texts and labels. What does not fit its header is refused with its line, never guessed at."""

from __future__ import annotations

import csv
import gzip
import io
import os
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gloss_kernels._files import EXPANSION, SMALL
from gloss_kernels.cli.errors import CommandError

COLUMNS = ("text", "label")
LONGEST = 1 << 24  # characters of a line or a field: three times the longest novel, and a bound of what memory is asked
MAGIC = {b"\x1f\x8b": "gzip", b"PK": "a zip archive, such as an .xlsx", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_rows(name: str) -> Iterator[tuple[int, str, str]]:
    """(line, text, label) of a CSV file in UTF-8 with the columns text and label; gzip by its first bytes."""
    path = Path(name)
    try:
        if path.is_dir():
            raise CommandError(f"{name} must be a CSV file, got a folder")
        with path.open("rb") as file:
            start = file.peek(2)[:2]  # read, but not taken: a pipe cannot be rewound
            kind = MAGIC.get(start, "")
            if kind not in ("", "gzip"):
                raise CommandError(f"{name} must be a CSV file in UTF-8, got {kind}")
            source: IO[bytes] = gzip.GzipFile(fileobj=file) if kind else file  # type: ignore[assignment]
            size = os.fstat(file.fileno()).st_size
            # Bytes that are not UTF-8 become surrogates, so that _fields can say in which line they are.
            with io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
                yield from _rows(name, _lines(name, text, max(SMALL, EXPANSION * size) if kind else None))
    except FileNotFoundError:
        raise CommandError(f"{name} must be a CSV file, got no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"{name} cannot be read as CSV: {reason}") from None


def _lines(name: str, text: io.TextIOWrapper, most: int | None) -> Iterator[str]:
    number, read = 0, 0
    while line := text.readline(LONGEST + 1):
        number += 1
        read += len(line)
        if len(line) > LONGEST:
            raise CommandError(f"{name}, line {number}: must have at most {LONGEST:,} characters, got more")
        if most is not None and read > most:
            raise CommandError(f"{name}, line {number}: unpacks to more than {EXPANSION} times its size")
        yield line


def _rows(name: str, lines: Iterator[str]) -> Iterator[tuple[int, str, str]]:
    table = _fields(name, lines)
    _, header = next(table, (0, []))
    for column in COLUMNS:
        if header.count(column) != 1:
            found = ", ".join(header) or "none"
            if header.count(column) > 1:
                found += f": {column} {header.count(column)} times"
            raise CommandError(f"{name} must have the columns text and label, got {found[:200]}")
    at = [header.index(column) for column in COLUMNS]
    for line, fields in table:
        if len(fields) != len(header):
            raise CommandError(
                f"{name}, line {line}: must have {len(header)} fields as the header, got {len(fields)} "
                "(a text with a comma, a quote or a line break stands in quotes)"
            )
        values = [fields[i].strip() for i in at]
        for column, value in zip(COLUMNS, values, strict=True):
            if not look(value):
                raise CommandError(f"{name}, line {line}: {column} must not be empty")
        yield line, values[0], values[1]


def _fields(name: str, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields) of each row that is not blank."""
    before = csv.field_size_limit(LONGEST)
    # strict: a quote that is not closed, or text behind a closing one, raises instead of shifting what follows.
    reader = csv.reader(lines, strict=True)
    try:
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                reason = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
                end = f" to {reader.line_num}" if reader.line_num > line else ""
                raise CommandError(f"{name}, line {line}{end}: cannot be read as CSV: {reason}") from None
            if fields is None:
                return
            for field in fields:
                if not field.isascii() and (bad := [ord(c) for c in field if "\udc80" <= c <= "\udcff"]):
                    raise CommandError(f"{name}, line {line}: must be UTF-8, got the byte 0x{bad[0] - 0xDC00:02x}")
            if fields:
                yield line, fields
    finally:
        csv.field_size_limit(before)


def look(label: str) -> str:
    """What a reader sees of a label: the same for precomposed and combining accents (NFC), for all kinds and lengths of
    space, with or without characters that have no width (category Cf: joiners, marks of direction, soft hyphens)."""
    if label.isascii():
        return " ".join(label.split())
    shown = (c for c in unicodedata.normalize("NFC", label) if unicodedata.category(c) != "Cf")
    return " ".join("".join(shown).split())
