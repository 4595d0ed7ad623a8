"""What a release has to prove before it becomes the current one."""

from __future__ import annotations

from pathlib import Path

import pytest

from checker import argv, release
from checker.cuda import Cubin
from checker.program import ProgramError
from checker.release import ExpectedCard, ListedDevice

BIG = ExpectedCard("GPU-a", "NVIDIA GeForce RTX 3060 Ti", "8.6")
SMALL = ExpectedCard("GPU-b", "NVIDIA GeForce GTX 1060 3GB", "6.1")
# As common/arg.cpp (b11434) prints them, and ggml-cuda before it.
LISTED = """ggml_cuda_init: found 2 CUDA devices (Total VRAM: 11264 MiB):
  Device 0: NVIDIA GeForce RTX 3060 Ti, compute capability 8.6, VMM: yes, VRAM: 8192 MiB
Available devices:
  CUDA0: NVIDIA GeForce RTX 3060 Ti (8192 MiB, 7900 MiB free)
  CUDA1: NVIDIA GeForce GTX 1060 3GB (3072 MiB, 2950 MiB free)
"""


def test_devices_are_read_in_their_order() -> None:
    assert release.parse_devices(LISTED) == [
        ListedDevice("CUDA0", BIG.name, 8192),
        ListedDevice("CUDA1", SMALL.name, 3072),
    ]
    assert release.parse_devices("Available devices:\n  (none)\n") == []


def test_cards_pass_in_the_order_of_their_uuids_alone() -> None:
    listed = release.parse_devices(LISTED)
    assert release.order_problems([BIG, SMALL], listed) == []
    (swapped,) = release.order_problems([SMALL, BIG], listed)
    assert swapped.startswith("with CUDA_VISIBLE_DEVICES GPU-b (NVIDIA GeForce GTX 1060 3GB), GPU-a")
    assert "lists NVIDIA GeForce RTX 3060 Ti, NVIDIA GeForce GTX 1060 3GB" in swapped
    (absent,) = release.order_problems([BIG], [ListedDevice("RPC0", BIG.name, 8192)])
    assert "lists no CUDA device" in absent


def test_the_server_is_asked_with_the_uuids(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text('#!/bin/sh\necho "  CUDA0: $CUDA_VISIBLE_DEVICES (1 MiB, 1 MiB free)"\n')
    server.chmod(0o755)
    assert release.list_devices(str(server), ["GPU-a", "GPU-b"]) == [ListedDevice("CUDA0", "GPU-a,GPU-b", 1)]


def test_a_server_that_does_not_run_is_named_with_what_it_said(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\necho 'libcublas.so.12: cannot open shared object file' >&2\nexit 127\n")
    server.chmod(0o755)
    with pytest.raises(ProgramError, match=r"--list-devices failed \(exit 127\): libcublas.so.12: cannot open"):
        release.list_devices(str(server), [])
    with pytest.raises(ProgramError, match="No such file"):
        release.list_devices(str(tmp_path / "absent"), [])


def test_help_of_a_server_that_fails_counts_for_nothing_whatever_it_printed(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\necho '--model FNAME'\nexit 1\n")
    server.chmod(0o755)
    with pytest.raises(ProgramError, match=r"--help failed \(exit 1\)"):
        release.help_text(str(server))


def test_machine_code_is_asked_for_every_card_and_architecture() -> None:
    both = {Cubin(61): 144, Cubin(86): 144}
    assert release.code_problems([BIG, SMALL], ["61-real", "86-real"], both) == []
    card, asked = release.code_problems([BIG, SMALL], ["61-real", "86-real", "90-virtual"], {Cubin(86): 144})
    assert "NVIDIA GeForce GTX 1060 3GB" in card and "it holds sm_86 (144)" in card
    assert asked.startswith("sm_61 was asked of the compiler and is not in the program, which holds sm_86")
    assert len(release.code_problems([], ["86"], {Cubin(61): 144})) == 1


@pytest.mark.parametrize(
    ("asked", "specific"), [("120-real", True), ("120-real", False), ("120a-real", True), ("120f-real", False)]
)
def test_what_the_engine_makes_of_an_architecture_is_what_was_asked_for(asked: str, specific: bool) -> None:
    assert release.code_problems([], [asked], {Cubin(120, specific): 1}) == []


def test_a_card_that_the_engines_machine_code_leaves_out_is_named() -> None:
    spark = ExpectedCard("GPU-c", "NVIDIA GB10", "12.1")
    (problem,) = release.code_problems([spark], ["120-real"], {Cubin(120, specific=True): 144})
    assert "NVIDIA GB10 (compute capability 12.1, Blackwell): the program has no machine code" in problem
    assert problem.endswith("it holds sm_120a (144), and would have to be built for 121-real")


def test_flags_that_the_built_server_does_not_know_are_named() -> None:
    flags = {"log": ["--log-jsonl", "--log-verbosity", "4"]}
    complete = "\n".join([*argv.TEMPLATED, "--log-jsonl", "--log-verbosity N"])
    assert release.flag_problems(flags, complete) == []
    (problem,) = release.flag_problems(flags, complete.replace("--log-jsonl", ""))
    assert problem.startswith("the built llama-server does not know --log-jsonl: mend the flags of this engine")
