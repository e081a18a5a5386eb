"""The layout of the package: no import cycles, and no package reaches into the private parts of another.

The imports are read from the source (ast), wherever they stand: inside functions and under TYPE_CHECKING too, since a
cycle that is hidden in a function is still one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gloss_kernels

ROOT = Path(gloss_kernels.__file__).parent
FACADE = ROOT.name  # gloss_kernels/__init__.py, which imports the public names from everywhere


def modules(root: Path) -> dict[str, ast.Module]:
    """Dotted name of a module or package below ``root`` -> its source."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(name: str, tree: ast.Module, known: dict[str, ast.Module]) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it or None) of every import of a known module. ``from package import module`` takes the
    module; a literal ``importlib.import_module("...")`` counts."""
    is_package = any(other.startswith(name + ".") for other in known)
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner in known:
                    yield inner, None
                elif source in known:
                    yield source, alias.name
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and target.value in known:
                yield target.value, None


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> the modules that must be loaded for it.

    Loading a.b.c loads the packages a and a.b first, so these count too, but for those that hold the importer as well:
    they are being loaded already. Names of the facade count as imports of the facade.
    """
    known = modules(root)
    edges: dict[str, set[str]] = {name: set() for name in known}
    for name, tree in known.items():
        for target, _ in imports(name, tree, known):
            parts = target.split(".")
            for loaded in (".".join(parts[: i + 1]) for i in range(len(parts))):
                holds_importer = loaded != target and (name + ".").startswith(loaded + ".")
                if not holds_importer:
                    edges[name].add(loaded)
    return edges


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, and modules that import themselves (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in edges[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            component = stack[stack.index(v) :]
            del stack[stack.index(v) :]
            if len(component) > 1 or v in edges[v]:
                found.append(sorted(component))

    for v in edges:
        if v not in index:
            visit(v)
    return sorted(found)


def private_imports(root: Path) -> list[str]:
    """Imports of what belongs to another package alone.

    The rule: a name or module that starts with ``_`` may be imported by the modules of its own package, and of packages
    below that one, only. For a name the package is that of its module. What lies at the top level, such as
    ``gloss_kernels._checks``, is shared by all; but a private *name* of a top-level module is that module's alone.
    """
    known = modules(root)
    found = []
    for name, tree in known.items():
        for target, taken in imports(name, tree, known):
            parts = target.split(".")
            owners = [".".join(parts[:i]) for i, part in enumerate(parts) if _is_private(part)]
            if any(not (name + ".").startswith(owner + ".") for owner in owners):
                found.append(f"{name} imports {target}")
            home = target if target in _packages(known) else target.rpartition(".")[0]
            same = home != FACADE and (name + ".").startswith(home + ".")
            if taken is not None and _is_private(taken) and not same:
                found.append(f"{name} imports {taken} from {target}")
    return sorted(found)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _packages(known: dict[str, ast.Module]) -> set[str]:
    return {name.rpartition(".")[0] for name in known} - {""}


def test_no_import_cycles() -> None:
    assert cycles(graph(ROOT)) == []


def test_no_private_imports_across_packages() -> None:
    assert private_imports(ROOT) == []


def test_files_are_replaced_in_one_place() -> None:
    """Whoever writes a file takes _files.replacing: a second way would soon lack the flush or the clean-up."""
    found = [path.name for path in ROOT.rglob("*.py") if re.search(r"os\.re(place|name)\b|\.tmp\b", path.read_text())]
    assert found == ["_files.py"]


def unnamed_factories(root: Path) -> list[str]:
    """Calls that make a tensor of no other one, and leave its dtype or device to torch.set_default_dtype and
    set_default_device, which are the user's."""
    names = {make.__name__ for make in torch.utils._device._device_constructors()}
    found = []
    for name, tree in modules(root).items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
                continue
            named = {keyword.arg for keyword in node.keywords}  # None: **options
            if None not in named and not named >= {"dtype", "device"}:
                found.append(f"{name}:{node.lineno} torch.{node.func.attr}")
    return found


def test_new_tensors_name_dtype_and_device() -> None:
    assert unnamed_factories(ROOT) == []


# ------------------------------------------------------------------------------------------- the checks themselves
def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "gloss_kernels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "gloss_kernels"


CYCLES = {
    "plain": {"a.py": "from . import b", "b.py": "from gloss_kernels import a"},
    "inside a function": {"a.py": "from .b import f", "b.py": "def f():\n    from .a import g"},
    "for types": {"a.py": "from . import b", "b.py": "if TYPE_CHECKING:\n    from .a import T"},
    "by importlib": {"a.py": "from . import b", "b.py": "import importlib\nimportlib.import_module('gloss_kernels.a')"},
    "through a package": {
        "a.py": "import gloss_kernels.p.y", "p/__init__.py": "from .x import f", "p/x.py": "from ..a import g",
        "p/y.py": "",
    },
    "with the facade": {"__init__.py": "from .a import f", "a.py": "from gloss_kernels import __version__"},
    "of three": {"a.py": "from . import b", "b.py": "from . import c", "c.py": "from . import a"},
}  # fmt: skip


@pytest.mark.parametrize("case", CYCLES)
def test_a_cycle_is_found(case: str, tmp_path: Path) -> None:
    files = {"__init__.py": "", "p/__init__.py": "", **CYCLES[case]}
    found = cycles(graph(write(tmp_path, files)))
    assert len(found) == 1 and "gloss_kernels.a" in found[0]


def test_what_is_no_cycle(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "__init__.py": "from .a import f",
            "a.py": "from .p import x\nfrom . import b",
            "b.py": "",
            "p/__init__.py": "from .x import f",
            "p/x.py": "from .y import f\nfrom ..b import g",
            "p/y.py": "import os",
        },
    )
    assert cycles(graph(root)) == []


def test_private_imports_are_found(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "__init__.py": "",
            "_shared.py": "def f(): ...\ndef _g(): ...",
            "a.py": "from ._shared import f, __version__\nfrom .p import _hidden\nfrom .p.x import _name, name",
            "b.py": "from . import _shared\nfrom ._shared import _g",
            "p/__init__.py": "",
            "p/_hidden.py": "",
            "p/x.py": "from ._hidden import _a, b\nfrom .y import _c\nfrom .. import _shared",
            "p/y.py": "",
            "p/q/__init__.py": "from .._hidden import a",
            "_r/__init__.py": "from . import _inside",
            "_r/_inside.py": "",
            "c.py": "from . import _r\nfrom ._r import _inside",
        },
    )
    assert private_imports(root) == [
        "gloss_kernels.a imports _name from gloss_kernels.p.x",
        "gloss_kernels.a imports gloss_kernels.p._hidden",
        "gloss_kernels.b imports _g from gloss_kernels._shared",
        "gloss_kernels.c imports gloss_kernels._r._inside",
    ]


def test_unnamed_factories_are_found(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "__init__.py": "",
            "a.py": "torch.eye(3)\ntorch.zeros(3, dtype=d)\ntorch.as_tensor(x, device=d)",
            "b.py": "torch.zeros(3, dtype=d, device=e)\ntorch.ones(3, **like)\nx.new_zeros(3)\nnp.zeros(3)",
        },
    )
    assert unnamed_factories(root) == [
        f"gloss_kernels.a:{i + 1} torch.{x}" for i, x in enumerate(["eye", "zeros", "as_tensor"])
    ]
