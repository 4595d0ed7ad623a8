"""What a unit printed, by a journalctl that a test puts on PATH; the rest of systemd is asked for real in the lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checker import systemd
from checker.systemd import Line


def journalctl(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "journalctl"
    program.write_text(f'#!/bin/sh\n[ "$1" = --sync ] && exit 0\necho "$*" > {directory}/asked\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def entry(message: object) -> str:
    return json.dumps({"__MONOTONIC_TIMESTAMP": "14668701206", "_PID": "4099", "MESSAGE": message})


def test_lines_come_with_time_and_process_and_survive_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [entry("model loaded"), entry([104, 105, 255]), json.dumps({"__MONOTONIC_TIMESTAMP": "1", "MESSAGE": None})]
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    journalctl(tmp_path, monkeypatch, f"cat {tmp_path}/lines")
    assert systemd.printed("deep.service", "abc") == [
        Line(14668701206, 4099, "model loaded"),
        Line(14668701206, 4099, "hi\ufffd"),
        Line(1, 0, ""),
    ]
    asked = (tmp_path / "asked").read_text()
    assert "_SYSTEMD_INVOCATION_ID=abc" in asked and "_SYSTEMD_UNIT=deep.service" in asked
    assert systemd.printed("deep.service", "") == []


def test_only_the_start_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_FIRST_LINES", 3)
    journalctl(tmp_path, monkeypatch, f"while :; do echo '{entry('request')}'; done")
    assert len(systemd.printed("deep.service", "abc")) == 3


def test_a_journal_that_cannot_be_read_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journalctl(tmp_path, monkeypatch, "echo No journal files were opened >&2; exit 1")
    with pytest.raises(systemd.SystemdError, match=r"exit 1\): No journal files were opened"):
        systemd.printed("deep.service", "abc")
