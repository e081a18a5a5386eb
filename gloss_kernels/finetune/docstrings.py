"""Real text that needs no download: docstrings of installed libraries, each labelled by its library.

Source files are parsed, never imported. Which documents come out depends on the installed versions and the seed only.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

# Library -> the words that would give it away. All but the standard library's come with torch or the demo extra.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "PIL": ("python imaging library", "pillow"),
    "asyncio": ("asyncio",),
    "email": ("email",),
    "huggingface_hub": ("huggingface", "hugging", "hf"),
    "jinja2": ("jinja", "jinja2"),
    "matplotlib": ("matplotlib", "mpl", "plt", "pyplot"),
    "mpmath": ("mpmath", "mp"),
    "multiprocessing": ("multiprocessing",),
    "networkx": ("networkx", "nx"),
    "numpy": ("numpy", "np"),
    "scipy": ("scipy",),
    "sentence_transformers": ("sentence-transformers", "sentence_transformers", "sentencetransformer", "sbert"),
    "sklearn": ("sklearn", "scikit", "scikit-learn"),
    "sympy": ("sympy",),
    "torch": ("torch", "pytorch"),
    "transformers": ("transformers",),
    "unittest": ("unittest",),
}
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendor", "externals"}
# What follows is a list of parameters or code, whose layout tells the library better than the words do.
SECTION = re.compile(
    r"\n\s*(?:parameters|args|arguments|returns?|yields|raises|attributes|examples?|usage|notes?|see also|references"
    r"|explanation|inputs?|outputs?|shape|\.\. [\w-]+::)\s*:*\s*\n|>>>|```|::\s*\n|\n\s*:(?:param|return|type)",
    re.IGNORECASE,
)
MIN_CHARS, MAX_CHARS = 60, 400
MAX_BYTES = 40_000  # larger source files take most of the time and give no more documents
PER_FILE, PER_LIBRARY = 8, 160


def docstring_documents(seed: int = 0, size: int = 2000) -> tuple[list[str], list[str]]:
    """About `size` texts and their libraries' names, as evenly over the libraries as they allow."""
    seen: set[str] = set()
    found = {name: _documents(name, seed, seen) for name in LIBRARIES}
    # The smallest cap that gives `size` documents: small libraries give all they have.
    cap = next((c for c in range(1, PER_LIBRARY) if sum(min(c, len(d)) for d in found.values()) >= size), PER_LIBRARY)
    pairs = [(text, name) for name, documents in found.items() for text in documents[:cap]]
    return [text for text, _ in pairs], [name for _, name in pairs]


def _documents(library: str, seed: int, seen: set[str]) -> list[str]:
    files = _source_files(library)
    random.Random(f"{seed} {library}").shuffle(files)
    documents: list[str] = []
    for file in files:
        kept = 0
        for docstring in _docstrings(file):
            text = clean(docstring, library)
            key = re.sub(r"\W+|\d+", "", text).lower()
            if len(text) < MIN_CHARS or key in seen:
                continue
            seen.add(key)
            documents.append(text)
            kept += 1
            if kept == PER_FILE:
                break
        if len(documents) >= PER_LIBRARY:
            break
    return documents[:PER_LIBRARY]


def _source_files(library: str) -> list[Path]:
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(next(iter(spec.submodule_search_locations)))
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    files = [root / path for path in sorted(paths) if not SKIPPED_FOLDERS & set(path.parts)]
    return [file for file in files if file.stat().st_size <= MAX_BYTES]


def _docstrings(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    nodes: list[ast.AST] = [tree]
    for node in nodes:  # grows: what classes hold comes after what the module holds
        if isinstance(node, (ast.Module, ast.ClassDef)):
            nodes += node.body
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def clean(docstring: str, library: str) -> str:
    """The prose before the first section, without the library's own names, on one line."""
    prose = SECTION.split(docstring, maxsplit=1)[0]
    prose = re.sub(r"[`*~|]+|={3,}|-{3,}", " ", prose)
    for name in (library, *LIBRARIES[library]):
        # A long name also goes where it is part of a word (torchscript, numpy's); a short one only as a word.
        pattern = rf"\w*{re.escape(name)}\w*" if len(name) > 4 else rf"\b{re.escape(name)}\b"
        prose = re.sub(pattern, " ", prose, flags=re.IGNORECASE)
    return " ".join(prose.split())[:MAX_CHARS]
