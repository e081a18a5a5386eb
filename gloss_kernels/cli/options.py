"""What the options of a command are read with: numbers between bounds, the device, the help text."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

from gloss_kernels import _backends, _settings
from gloss_kernels.cli.errors import CommandError


def number(low: float, high: float = math.inf, *, closed: bool = True, words: str = "") -> Callable[[str], float]:
    """A float between two bounds; the bounds themselves are allowed where `closed`. `words`: what else is allowed."""
    wanted = f"at least {low:g}" if closed else f"above {low:g}"
    if high < math.inf:
        wanted = f"from {low:g} to {high:g}" if closed else f"between {low:g} and {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = low <= value <= high if closed else low < value < high
        if not inside or math.isinf(value):
            raise argparse.ArgumentTypeError(f"must be a number {wanted}{words and ', or ' + words}, got {text!r}")
        return value

    return parse


def whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return parse


class Help(argparse.HelpFormatter):
    """Each option with its default, except where there is none or the text names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = any(action.default is default for default in (None, False, argparse.SUPPRESS))  # 0 is a default
        if not action.option_strings or silent:
            return action.help
        return f"{action.help} (default: %(default)s)"


def choose_device(name: str) -> torch.device:
    """Of --device: "auto" is the GPU where there is one. GLOSS_KERNELS_BACKEND must run there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else _device(name)
    try:
        _backends.resolve("auto", device)
    except (RuntimeError, ValueError) as error:
        reason = str(error)
        if _settings.BACKEND != "auto" and "GLOSS_KERNELS_BACKEND" not in reason:
            reason = f"GLOSS_KERNELS_BACKEND={_settings.BACKEND}: {reason}"
        raise CommandError(reason) from None
    return device


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CommandError(f"--device {name} cannot be used: {reason}") from None
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device must be cpu or cuda, got {name}")
    return device
