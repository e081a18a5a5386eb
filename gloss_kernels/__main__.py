"""``python -m gloss_kernels``: what is built, what can run here, and why not."""

from __future__ import annotations

import importlib.util
import platform

import torch

from . import __version__, available_backends


def main() -> None:
    print(f"gloss_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print("\nbackends")
    for name, (available, detail) in available_backends().items():
        print(f"  {name:<10} {'yes' if available else 'no':<4} {detail}")
    print("\nextras")
    for package, extra in (("faiss", "faiss-cpu or faiss-gpu"), ("triton", "triton"), ("transformers", "demo")):
        found = importlib.util.find_spec(package) is not None
        print(f"  {package:<14} {'installed' if found else f'not installed (pip install gloss-kernels[{extra}])'}")


if __name__ == "__main__":
    main()
