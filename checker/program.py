"""Run a program of this host for what it prints."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence


class ProgramError(Exception):
    """A program that is not there, fails or does not end; the message holds the command and what it printed."""


def output(command: Sequence[str], timeout_s: float, **environment: str) -> str:
    """Return what a program prints on stdout, run with these variables besides our own; ProgramError."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=os.environ | environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramError(f"{' '.join(command)}: {error}") from None
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[-500:] or "nothing printed"
        raise ProgramError(f"{' '.join(command)} failed (exit {done.returncode}): {said}")
    return done.stdout
