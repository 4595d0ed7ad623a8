"""Runs inside a tier's sandbox in the place of its server: tries what it may and may not, and prints what came of it.

probe.py OPEN-OR-WRITE=PATH...; needs nothing but the host's Python.
"""

import errno
import json
import os
import sys
from pathlib import Path


def attempt(what: str, path: str) -> str:
    try:
        if what == "write":
            name = Path(path) / "gpu-proof-was-here"
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600))
            name.unlink()
        else:
            os.close(os.open(path, os.O_RDWR if what == "device" else os.O_RDONLY))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


print(json.dumps({word: attempt(*word.split("=", 1)) for word in sys.argv[1:]}))
