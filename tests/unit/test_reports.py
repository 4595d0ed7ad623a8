"""Reports: what a person sees in a table, piped or narrow, and JSON that says the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from example_report import report

from checker import reports


def document(*hosts: dict[str, Any]) -> dict[str, Any]:
    return {"schema": reports.SCHEMA, "hosts": [report(**host).to_json() for host in hosts or [{}]]}


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_json_is_the_document() -> None:
    assert json.loads(reports.render(document(), "json")) == document()


def test_a_table_tells_verdict_speed_and_memory_of_each_card() -> None:
    lines = reports.render(document(), "table").splitlines()
    rows = [line.split("  ") for line in lines]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["tower", "driver 580.126.09, CUDA 13.0, measured 2026-11-24T15:00:00Z"]
    assert ["deep", "pass", "tiny", "4096", "61.2", "3.1"] in cells
    assert ["deep", "NVIDIA GeForce RTX 3060 Ti", "185", "20", "53", "262"] in cells
    assert ["deep", "NVIDIA GeForce GTX 1060 3GB", "50", "5", "33", "93"] in cells


def test_a_failed_tier_says_why() -> None:
    table = reports.render(document({"failed": True}), "table")
    assert "FAIL" in table
    said = " ".join(table.split())
    assert all(reason in said for reason in report(failed=True).tiers[0].verdict.reasons)


def test_what_could_not_be_read_is_a_dash() -> None:
    table = reports.render(document({"unreadable": True}), "table")
    assert "NVML could not be read" in table
    assert "None" not in table


def test_every_host_of_the_run_is_in_the_table() -> None:
    table = reports.render(document({"host": "tower"}, {"host": "workbench", "failed": True}), "table")
    assert [line.split()[0] for line in table.splitlines() if "driver" in line] == ["tower", "workbench"]


@pytest.mark.parametrize("columns", ["1", "80", "100"])
def test_a_piped_table_is_plain_text_of_its_width(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = reports.render(document({"failed": True}), "table")
    assert "\x1b" not in table
    assert all(len(line) <= max(80, int(columns)) for line in table.splitlines())
    assert all(line == line.rstrip() for line in table.splitlines())
    assert "process MiB" in table
