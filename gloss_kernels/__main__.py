"""``gloss-kernels info`` or ``python -m gloss_kernels``: what is built, what can run here, and why not."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from typing import Any

import torch

from . import __version__, available_backends
from ._backends import BACKENDS


def add_parser(commands: Any) -> None:
    what = "what is built and what runs on this machine"
    commands.add_parser("info", help=what, description=what).set_defaults(run=_run)


def _run(args: argparse.Namespace, words: list[str]) -> int:
    main()
    return 0


def main() -> None:
    print(f"gloss_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    wanted = os.environ.get("GLOSS_KERNELS_BACKEND")
    if wanted:
        known = "" if wanted in BACKENDS else f" - unknown, use one of {', '.join(BACKENDS)}"
        print(f"GLOSS_KERNELS_BACKEND={wanted}{known}")
    print("\nbackends")
    for name, (available, detail) in available_backends().items():
        print(f"  {name:<10} {'yes' if available else 'no':<4} {detail}")
    print("\nextras")
    for package, extra in (("faiss", "faiss-cpu or faiss-gpu"), ("triton", "triton"), ("transformers", "demo")):
        found = importlib.util.find_spec(package) is not None
        state = "installed" if found else f"not installed (pip install '.[{extra}]')"
        print(f"  {package:<14} {state}")


if __name__ == "__main__":
    main()
