"""Whether Triton kernels form offsets that pass 2^31 in 32 bits: read from their TTIR, for any size.

An offset into an array is a sum. A term of it that is a product in int32 may overflow where one factor counts rows: it
holds a program's number or a loop's, and a range or a factor of the call, or comes out of memory. Two kinds of products
stay: a program's number times a constant, which is the number of a row (of an entry, in a kernel that is told nnz, and
then too large as well), and what lies within a tile.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from compile_triton import Launch, ast_source

SUMS = ("addi", "subi", "extsi", "extui", "trunci", "select", "minsi", "maxsi", "splat", "broadcast", "expand_dims",
        "reshape", "trans", "join", "split", "cat", "convert_layout")  # fmt: skip
PRODUCTS = ("muli", "shli")
OPERATION = re.compile(r'^\s*(%[\w$.#]+)(?::\d+)?(?:, %[\w$.#]+)* = "?([a-z_]+)\.([\w.]+)"? ?(.*)$')
VALUE = re.compile(r"%[\w$.]+(?:#\d+)?")


def ttir(launch: Launch, arch: int = 90) -> str:
    """The intermediate code of a launch, its functions inlined."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    target = GPUTarget("cuda", arch, 32)
    source, backend = ast_source(launch), make_backend(target)
    options = backend.parse_options(dict(launch.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    given: dict[str, Any] = {
        "target": target,
        "options": options,
        "codegen_fns": backend.get_codegen_implementation(options),
        "module_map": backend.get_module_map(),
        "context": context,
    }
    module = source.make_ir(**{name: given[name] for name in inspect.signature(source.make_ir).parameters})
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    return str(stages["ttir"](module, {"target": target, **vars(options)}))


class Code:
    """The operations of TTIR by the values that they define."""

    def __init__(self, text: str) -> None:
        self.name: dict[str, str] = {}  # value -> operation
        self.of: dict[str, list[str]] = {}  # value -> operands
        self.kind: dict[str, str] = {}
        self.arguments = set(re.findall(r"(%\w+): ", next(line for line in text.splitlines() if "tt.func" in line)))
        for line in text.splitlines():
            found = OPERATION.match(re.sub(r" loc\(.*\)$", "", line))
            if found:
                value, dialect, operation, rest = found.groups()
                operands, _, types = rest.rpartition(" : ")
                self.name[value] = operation if dialect in ("arith", "tt") else f"{dialect}.{operation}"
                self.of[value] = VALUE.findall(operands)
                self.kind[value] = types

    def is_constant(self, value: str) -> bool:
        name = self.name.get(value)
        return name == "constant" or (name in ("splat", "broadcast") and self.is_constant(self.of[value][0]))

    def sources(self, value: str, seen: set[str] | None = None) -> Iterator[str]:
        """What the value is made of: operations without operands or that read memory, "loop" for what a loop defines,
        "argument" for a number of the call."""
        seen = set() if seen is None else seen
        if value in seen:
            return
        seen.add(value)
        if value in self.arguments:
            yield "argument"
        elif value not in self.name or self.name[value].startswith("scf."):
            yield "loop"
        elif self.name[value] in ("load", "get_program_id", "make_range", "constant", "atomic_rmw", "reduce"):
            yield self.name[value]
        else:
            for operand in self.of[value]:
                yield from self.sources(operand, seen)

    def terms(self, value: str, seen: set[str]) -> Iterator[str]:
        """The products whose sum the value is."""
        if value in seen or value not in self.name:
            return
        seen.add(value)
        if self.name[value] in PRODUCTS:
            yield value
        elif self.name[value] in SUMS:
            for operand in self.of[value]:
                yield from self.terms(operand, seen)

    def narrow(self) -> list[str]:
        """The products in int32, terms of offsets, that may pass 2^31."""
        seen: set[str] = set()
        offsets = [self.of[value][1] for value, name in self.name.items() if name == "addptr"]
        return [term for offset in offsets for term in self.terms(offset, seen) if self.may_overflow(term)]

    def may_overflow(self, product: str) -> bool:
        if not re.search(r"\bi32$|xi32>$", self.kind[product]):
            return False
        made_of = set(self.sources(product))
        if "load" in made_of or "atomic_rmw" in made_of:
            return True
        if not made_of & {"get_program_id", "loop"}:
            return False
        of_row = any(map(self.is_constant, self.of[product])) and "make_range" not in made_of
        return not of_row or "%nnz" in self.arguments
