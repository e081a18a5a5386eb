"""The child process: reads items from stdin, a JSON line each, and answers with rows on the pipe it was given.

Output and tracebacks go to stdout and stderr, which are the log. SIGUSR1 writes the stacks of all threads there, also
while the main thread waits for the device.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpubench.rows import Context


def main(pipe: int) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    os.set_inheritable(pipe, False)  # else a program left behind by an item would hold it open
    with os.fdopen(pipe, "w") as answers:

        def send(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        for line in sys.stdin:
            request = json.loads(line)
            item, context = request["item"], Context(**request["context"])
            print(f"\n--- {item['name']}", flush=True)
            state, dead = run(item, context, send), device_is_dead()
            send({"state": "failed: left the device with an error that sticks" if dead else state, "dead": dead})


def run(item: dict[str, Any], context: Context, send: Any) -> str:
    module, _, function = item["call"].partition(":")
    failed = 0
    try:
        for row in getattr(importlib.import_module(module), function)(context, **item["options"]):
            print(row, flush=True)
            failed += bool(row.error)
            send({"row": asdict(row)})
    except Exception as error:
        traceback.print_exc()
        return f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
    return f"failed: {failed} of its rows" if failed else "done"


def device_is_dead() -> bool:
    """After an error that sticks (a bad address, a failed launch) every later call in this process fails as well."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception as error:
        print(f"the device is dead: {error}", flush=True)
        return True
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
