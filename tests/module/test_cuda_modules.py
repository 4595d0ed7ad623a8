"""The modules that decide what is compiled for CUDA: what is refused before anything is built."""

from __future__ import annotations

from modules import run

CARDS = [{"name": "RTX 3060 Ti", "compute_capability": "8.6"}, {"name": "GTX 1060", "compute_capability": "6.1"}]


def test_architectures_that_leave_a_card_out_are_refused_whatever_toolkit_there_is() -> None:
    result = run("cuda_toolkit", method="detect", cards=CARDS, architectures=["86-real"])
    assert result["msg"].startswith("GTX 1060 (compute capability 6.1, Pascal): llama_cpp_cuda_architectures (86-real)")


def test_without_cards_and_architectures_there_is_nothing_to_compile_for() -> None:
    assert run("cuda_toolkit", method="detect", cards=[])["msg"].startswith("nothing to compile for")
