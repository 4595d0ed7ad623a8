"""Where the time of a tier's start went: the journal's times, what was read from storage, what has to be compiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from checker import llama_server
from checker.evidence import Load
from checker.hardware import MIB
from checker.systemd import Line, UnitState

# What the engine says when weights and context are in memory, and when it is done (common.cpp, server.cpp; 0c1e57098).
_WARMS_UP = "warming up the model"
_LOADED = "model loaded"


def read(state: UnitState, lines: Sequence[Line], model_file: Path, proc: Path = Path("/proc")) -> Load:
    """Read everything about the last start of a unit; needs root for what its process has read."""
    return Load(
        **phases(state, lines),
        read_mib=_read_mib(state.main_pid, proc),
        model_mib=_model_mib(model_file),
        compiled_for=llama_server.compiled_for(line.text for line in lines),
    )


def phases(state: UnitState, lines: Sequence[Line]) -> dict[str, float | None]:
    """Split the time from start to active by the log's own marks; pure. A missing mark leaves None beside it."""
    own = [line for line in lines if line.pid == state.main_pid]
    first = own[0].monotonic_us if own else None
    warms_up = _time_of(_WARMS_UP, own)
    loaded = _time_of(_LOADED, own)
    active = state.active_monotonic_us if state.active_state == "active" else None
    return {
        "process_s": _seconds(state.started_monotonic_us or None, first),
        "weights_s": _seconds(first, warms_up),
        "warm_up_s": _seconds(warms_up, loaded),
        "proof_s": _seconds(loaded, active),
    }


def _time_of(mark: str, lines: Sequence[Line]) -> int | None:
    return next((line.monotonic_us for line in lines if mark in llama_server.message(line.text)), None)


def _seconds(begin_us: int | None, end_us: int | None) -> float | None:
    if begin_us is None or end_us is None or end_us < begin_us:
        return None
    return round((end_us - begin_us) / 1e6, 3)


def _read_mib(pid: int | None, proc: Path) -> float | None:
    """Return what a process has had fetched from storage since its start: mapped pages count, cached ones do not."""
    try:
        fields = dict(line.split(": ") for line in (proc / str(pid) / "io").read_text().splitlines())
        return round(int(fields["read_bytes"]) / MIB, 1)
    except (OSError, KeyError, ValueError):
        return None


def _model_mib(file: Path) -> float | None:
    """Return the size of a model's files."""
    try:
        return round(sum(part.stat().st_size for part in parts(file)) / MIB, 1)
    except OSError:
        return None


def parts(file: Path) -> list[Path]:
    """Return the files of a model: all its parts when it is the first of several (NAME-00001-of-00003.gguf)."""
    if "-00001-of-" in file.name:
        return sorted(file.parent.glob(file.name.replace("-00001-of-", "-*-of-")))
    return [file]
