"""`gloss-kernels info`: what is built, what can run here, and why not."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from typing import Any

import torch

from gloss_kernels import __version__, _settings, available_backends


def add_parser(commands: Any) -> None:
    what = "what is built and what runs on this machine"
    commands.add_parser("info", help=what, description=what).set_defaults(run=run)


def run(args: argparse.Namespace, words: list[str]) -> int:
    print(f"gloss_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    backends = available_backends()
    wanted = _settings.BACKEND
    if wanted != "auto":
        names = ("auto", *backends)
        unknown = "" if wanted in names else f" - unknown, must be one of {', '.join(names)}"
        print(f"GLOSS_KERNELS_BACKEND={wanted}{unknown}")
    print("\nbackends")
    for name, (available, detail) in backends.items():
        print(f"  {name:<10} {'yes' if available else 'no':<4} {detail}")
    print("\nextras")
    for package, extra in (("faiss", "faiss-cpu or faiss-gpu"), ("triton", "triton"), ("transformers", "demo")):
        found = importlib.util.find_spec(package) is not None
        state = "installed" if found else f"not installed (pip install '.[{extra}]')"
        print(f"  {package:<14} {state}")
    return 0
