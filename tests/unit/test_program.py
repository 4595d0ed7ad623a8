"""Programs of the host: what they print, or why they could not be asked."""

from __future__ import annotations

import pytest

from checker import program


def test_what_a_program_prints_is_returned_and_it_has_its_variables() -> None:
    assert program.output(["sh", "-c", "echo $WORD; echo aside >&2"], 5, WORD="here") == "here\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["/nonexistent/nvcc", "--version"], "/nonexistent/nvcc --version: .*No such file"),
        (["sh", "-c", "echo why >&2; exit 3"], r"failed \(exit 3\): why"),
        (["false"], r"false failed \(exit 1\): nothing printed"),
        (["sleep", "9"], "sleep 9: .*timed out"),
    ],
)
def test_a_program_that_does_not_run_is_named_with_what_it_said(command: list[str], says: str) -> None:
    with pytest.raises(program.ProgramError, match=says):
        program.output(command, 0.5)
