"""The error that ends a command."""

from __future__ import annotations


class CommandError(Exception):
    """Ends the command with one line on stderr and an exit code (2: the user's input, 1: anything else)."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code
