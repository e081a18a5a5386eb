"""Documents and labels: read from CSV files, split by class, checked."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import defaultdict
from dataclasses import dataclass

from gloss_kernels.cli.errors import CommandError
from gloss_kernels.finetune.csv_file import look, read_rows
from gloss_kernels.finetune.docstrings import docstring_documents

HELD_OUT = 0.15  # of the training documents, for each of validation and test where no file is given


@dataclass(frozen=True)
class Documents:
    texts: list[str]
    labels: list[str]
    source: str

    def __len__(self) -> int:
        return len(self.texts)

    def pick(self, rows: list[int], source: str | None = None) -> Documents:
        return Documents([self.texts[i] for i in rows], [self.labels[i] for i in rows], source or self.source)


@dataclass(frozen=True)
class Dataset:
    train: Documents
    val: Documents
    test: Documents
    classes: list[str]

    def ids(self, part: Documents) -> list[int]:
        index = {name: i for i, name in enumerate(self.classes)}
        return [index[label] for label in part.labels]

    def fingerprint(self) -> str:
        """The same for the same documents in the same order, wherever their files lie."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            digest.update(repr((part.texts, part.labels)).encode())
        return digest.hexdigest()[:16]


def load_dataset(train: str | None, val: str | None, test: str | None, *, limit: int | None, seed: int) -> Dataset:
    if train is None:
        if val is not None or test is not None:
            raise CommandError("--val and --test need --train")
        texts, labels = docstring_documents(seed=0)  # the seed splits them; the documents stay the same
        if len(set(labels)) < 8 or len(texts) < 1500:
            found = f"{len(texts)} docstrings of {len(set(labels))} libraries"
            raise CommandError(f"only {found} are installed as source here; give --train")
        pool = Documents(texts, labels, "built-in docstrings")
    else:
        pool = read_csv(train)
    given = {name: read_csv(path) for name, path in (("validation", val), ("test", test)) if path is not None}
    pool, *spelt = one_spelling([pool, *given.values()])
    given = dict(zip(given, spelt, strict=True))
    _check_size(pool, [name for name in ("validation", "test") if name not in given])
    # The share is of all documents, so that validation and test are equally large.
    wanted = len(pool)
    held_test = given.get("test")
    if held_test is None:
        pool, held_test = split(pool, HELD_OUT, f"{seed} test")
    held_val = given.get("validation")
    if held_val is None:
        pool, held_val = split(pool, HELD_OUT * wanted / max(1, len(pool)), f"{seed} val")
    if limit is not None:
        pool = sample(pool, limit, f"{seed} limit")
    data = Dataset(pool, held_val, held_test, sorted(set(pool.labels), key=_numbers_first))
    _check(data)
    return data


def read_csv(name: str) -> Documents:
    """Texts and labels of a CSV file; gzip too."""
    texts: list[str] = []
    labels: list[str] = []
    for _, text, label in read_rows(name):
        texts.append(text)
        labels.append(label)
    if not texts:
        raise CommandError(f"{name} must have documents, got none")
    return Documents(texts, labels, name)


def one_spelling(parts: list[Documents]) -> list[Documents]:
    """Labels that look alike, such as an accent in one character and in two, become the first spelling of them, with a
    warning: two classes that nobody can tell apart are a mistake of whoever wrote the file."""
    first: dict[str, str] = {}
    joined: dict[tuple[str, str], str] = {}
    for part in parts:
        for label in part.labels:
            kept = first.setdefault(look(label), label)
            if kept != label:
                joined.setdefault((kept, label), part.source)
    for (kept, label), source in joined.items():
        print(f"warning: {source}: label {label!a} looks like {kept!a}, and is read as it", file=sys.stderr)
    if not joined:
        return parts
    return [Documents(part.texts, [first[look(label)] for label in part.labels], part.source) for part in parts]


def split(documents: Documents, fraction: float, seed: str) -> tuple[Documents, Documents]:
    """(the rest, about `fraction` of each class). Each class keeps at least one document in the rest."""
    held: list[int] = []
    for label, rows in sorted(_rows_by_class(documents).items()):
        random.Random(f"{seed} {label}").shuffle(rows)
        held += rows[: min(len(rows) - 1, max(1, round(fraction * len(rows))))]
    chosen = set(held)
    rest = [i for i in range(len(documents)) if i not in chosen]
    return documents.pick(rest), documents.pick(sorted(held), f"held out of {documents.source}")


def sample(documents: Documents, size: int, seed: str) -> Documents:
    """A random `size` of the documents with every class at least once."""
    if size >= len(documents):
        return documents
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(documents.labels[i], i)
    if len(first) > size:
        raise CommandError(f"--limit must be at least {len(first)}, the classes of {documents.source}, got {size}")
    must = set(first.values())
    more = [i for i in order if i not in must][: size - len(must)]
    return documents.pick(sorted([*must, *more]))


def _rows_by_class(documents: Documents) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(documents.labels):
        rows[label].append(i)
    return rows


def _numbers_first(label: str) -> tuple[bool, int, str]:
    number = label.isascii() and label.isdecimal()
    return not number, int(label) if number else 0, label


def _check_size(pool: Documents, held_out: list[str]) -> None:
    """A class gives a document to each part that is held out, and keeps one."""
    largest = max(map(len, _rows_by_class(pool).values()))
    if largest <= len(held_out):
        files = " and ".join({"validation": "--val", "test": "--test"}[name] for name in held_out)
        raise CommandError(
            f"{pool.source} must have a class of {len(held_out) + 1} documents or more, to hold some out for "
            f"{' and '.join(held_out)}, got at most {largest} of a class; or give {files}"
        )


def _check(data: Dataset) -> None:
    if len(data.classes) < 2:
        raise CommandError(f"{data.train.source} must have two classes or more, got only {data.classes[0]!r}")
    for part in (data.val, data.test):
        unknown = sorted(set(part.labels) - set(data.classes))
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise CommandError(f"{part.source} must have the classes of {data.train.source}, got {unknown[0]!r}{more}")
