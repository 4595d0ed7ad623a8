"""Which toolkit, g++ and architectures are chosen, and in which words a host without a fitting one is refused."""

from __future__ import annotations

import pytest
from cuda_hosts import AMPERE, BLACKWELL, MAXWELL, PASCAL, TURING, host
from hypothesis import given
from hypothesis import strategies as st

from checker import toolkit
from checker.cuda import Card, Compiler, Cubin, CudaHost, Toolkit, Version, version
from checker.toolkit import Wish

OLD_LIBC, NEW_LIBC = version("2.36"), version("2.41")
OWN = Toolkit("/usr/bin/nvcc", "12.4", packaged=True)
TWELVE = Toolkit("/usr/local/cuda-12.9/bin/nvcc", "12.9", packaged=False)
THIRTEEN = Toolkit("/usr/local/cuda-13.0/bin/nvcc", "13.0", packaged=False)
DETECT = Wish("detect")


def choose(found: list[Toolkit], cards: list[Card], wish: Wish = DETECT, libc: Version = OLD_LIBC) -> Toolkit | str:
    return choose_on(host(toolkits=tuple(found), glibc=str(libc)), cards, wish)


def choose_on(on: CudaHost, cards: list[Card], wish: Wish = DETECT, driver: str | None = "580.126.09") -> Toolkit | str:
    return toolkit.choose_toolkit(wish, cards, driver, on)


def test_the_newest_that_serves_every_card_is_taken_never_the_newest() -> None:
    assert choose([OWN, TWELVE, THIRTEEN], [AMPERE, PASCAL]) == TWELVE
    assert choose([OWN, THIRTEEN, TWELVE], [AMPERE, TURING]) == THIRTEEN
    assert choose([OWN], [PASCAL]) == OWN


def test_cuda_13_alone_is_refused_for_pascal_with_what_would_do() -> None:
    assert choose([THIRTEEN], [AMPERE, PASCAL]) == (
        "llama_cpp_toolkit 'detect' finds no toolkit for RTX 3060 Ti (compute capability 8.6, Ampere), GTX 1060 "
        "(compute capability 6.1, Pascal): /usr/local/cuda-13.0/bin/nvcc: CUDA 13.0 does not compile for GTX 1060 "
        "(compute capability 6.1, Pascal): it knows compute capability 7.5 to 12.1. CUDA 11.8 to 12.9 would do: set "
        "llama_cpp_toolkit to debian to have one installed, or to path with llama_cpp_toolkit_path"
    )


def test_a_card_that_an_older_toolkit_does_not_know_is_named() -> None:
    refusal = choose([OWN], [BLACKWELL])
    assert isinstance(refusal, str)
    assert "CUDA 12.4 does not compile for RTX 5060" in refusal
    assert "CUDA 12.8 or later would do" in refusal


def test_no_toolkit_at_all_is_said() -> None:
    refusal = choose([], [PASCAL])
    assert isinstance(refusal, str)
    assert "found no nvcc" in refusal


def test_nvidias_own_headers_are_refused_with_a_newer_c_library_the_distributions_are_not() -> None:
    assert choose([OWN, TWELVE], [PASCAL], libc=NEW_LIBC) == OWN
    refusal = choose([TWELVE], [PASCAL], libc=NEW_LIBC)
    assert isinstance(refusal, str)
    assert "NVIDIA's headers of CUDA 12.9 do not compile with glibc 2.41, only up to 2.40" in refusal


@pytest.mark.parametrize(
    ("release", "newest"),
    [("12.9", "2.40"), ("13.0", "2.41"), ("13.1", "2.41"), ("13.2", None)],
)
def test_nvidias_headers_know_the_c_library_up_to_a_version(release: str, newest: str | None) -> None:
    nvidias = Toolkit("/usr/local/cuda/bin/nvcc", release, packaged=False)
    for libc in ("2.36", "2.40", "2.41", "2.42"):
        fits = newest is None or version(libc) <= version(newest)
        assert (choose([nvidias], [AMPERE], libc=version(libc)) == nvidias) == fits, libc


def test_a_driver_that_is_too_old_for_the_toolkit_is_named() -> None:
    assert choose_on(host(toolkits=(OWN, THIRTEEN)), [AMPERE], driver="550.163.01") == OWN
    refusal = choose_on(host(toolkits=(THIRTEEN,)), [AMPERE], driver="550.163.01")
    assert isinstance(refusal, str)
    assert "CUDA 13.0 needs driver branch 580 or later, found 550.163.01" in refusal
    # Without a driver there is nothing to hold it against.
    assert choose_on(host(toolkits=(THIRTEEN,)), [AMPERE], driver=None) == THIRTEEN


@pytest.mark.parametrize(
    ("distribution", "libc", "cards", "advice"),
    [
        ("debian 12", "2.36", [PASCAL], "to debian or nvidia_repository to have one installed, or to path"),
        ("debian 13", "2.41", [PASCAL], "set llama_cpp_toolkit to debian to have one installed, or to path"),
        ("debian 12", "2.36", [BLACKWELL], "set llama_cpp_toolkit to nvidia_repository to have one installed, or"),
        ("debian 13", "2.41", [BLACKWELL], "would do: install one and set it to path with llama_cpp_toolkit_path"),
        ("ubuntu 22.04", "2.35", [PASCAL], "would do: install one and set it to path with llama_cpp_toolkit_path"),
    ],
)
def test_what_is_advised_is_what_the_role_would_do(
    distribution: str, libc: str, cards: list[Card], advice: str
) -> None:
    refusal = choose_on(host(distribution=distribution, glibc=libc, toolkits=()), cards)
    assert isinstance(refusal, str)
    assert advice in refusal


@pytest.mark.parametrize(
    ("capability", "first"), [("10.0", "12.8"), ("10.3", "12.9"), ("11.0", "13.0"), ("12.0", "12.8"), ("12.1", "12.9")]
)
def test_a_blackwell_card_needs_the_toolkit_that_brought_its_own_capability(capability: str, first: str) -> None:
    card = Card("card", version(capability))
    assert toolkit.toolkits_for([card]) == f"CUDA {first} or later"
    older = Toolkit("/usr/local/cuda/bin/nvcc", "12.8", packaged=False)
    assert (choose([older], [card]) == older) == (first == "12.8")


def test_a_hole_in_what_a_toolkit_knows_is_told() -> None:
    refusal = choose([Toolkit("/usr/local/cuda/bin/nvcc", "12.8", packaged=False)], [Card("B300", version("10.3"))])
    assert isinstance(refusal, str)
    assert "it knows compute capability 5.0 to 12.0 but 10.3, 11.0" in refusal


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (DETECT, TWELVE),
        (Wish("debian"), OWN),
        (Wish("nvidia_repository"), TWELVE),
        (Wish("path", "/usr/local/cuda-12.9"), TWELVE),
        (Wish("path", "/usr/local/cuda-12.9/"), TWELVE),
    ],
)
def test_a_method_takes_what_is_its_own(wish: Wish, expected: Toolkit) -> None:
    assert choose([OWN, TWELVE, THIRTEEN], [PASCAL], wish) == expected


def test_a_path_without_a_toolkit_is_said_with_what_was_found() -> None:
    refusal = choose([OWN], [PASCAL], Wish("path", "/opt/cuda"))
    assert isinstance(refusal, str)
    assert "finds no toolkit at /opt/cuda" in refusal
    assert "found /usr/bin/nvcc (12.4)" in refusal


@pytest.mark.parametrize(
    ("method", "distribution", "cards", "says"),
    [
        ("debian", "debian 13", [AMPERE, PASCAL], []),
        ("debian", "debian 12", [MAXWELL], []),
        (
            "debian",
            "debian 13",
            [BLACKWELL],
            ["'debian': CUDA 12.4 does not compile for RTX 5060", "CUDA 12.8 or later"],
        ),
        ("debian", "arch", [AMPERE], ["'debian': none is known here for arch", "debian 13", "use path"]),
        ("nvidia_repository", "debian 13", [PASCAL], ["none is known here for debian 13 (debian 12, ubuntu 24.04"]),
        ("nvidia_repository", "debian 12", [PASCAL, TURING], []),
        ("detect", "debian 13", [BLACKWELL], ["'detect' finds no toolkit"]),
        ("detect", "debian 13", [AMPERE, PASCAL], []),
    ],
)
def test_what_will_not_do_is_said_before_anything_is_installed(
    method: str, distribution: str, cards: list[Card], says: list[str]
) -> None:
    problems = toolkit.toolkit_outlook(Wish(method), cards, "580.126.09", host(distribution=distribution))
    assert len(problems) == (1 if says else 0)
    assert all(piece in problems[0] for piece in says)


@pytest.mark.parametrize(
    ("version_of_toolkit", "newest"),
    [("11.8", 11), ("12.2", 12), ("12.4", 13), ("12.6", 13), ("12.9", 14), ("13.5", 15)],
)
def test_the_newest_compiler_that_a_toolkit_takes_is_taken(version_of_toolkit: str, newest: int) -> None:
    found = [Compiler(f"/usr/bin/g++-{major}", major) for major in (11, 12, 13, 14, 15, 16)]
    assert toolkit.newest_gcc(version(version_of_toolkit)) == newest
    chosen = toolkit.choose_compiler(version(version_of_toolkit), found)
    assert chosen is not None
    assert chosen.major == newest


def test_a_host_with_newer_compilers_alone_has_none_to_take() -> None:
    assert toolkit.choose_compiler(version("12.4"), [Compiler("/usr/bin/g++", 14)]) is None


def test_architectures_are_machine_code_for_each_kind_of_card() -> None:
    assert toolkit.architectures([AMPERE, PASCAL, AMPERE]) == ["61-real", "86-real"]
    assert toolkit.architectures([BLACKWELL, MAXWELL]) == ["52-real", "120-real"]


def test_machine_code_is_asked_for_by_every_architecture_but_a_virtual_one() -> None:
    assert toolkit.machine_code(["61-real", "86", "90-virtual", "90a-real"]) == [
        Cubin(61),
        Cubin(86),
        Cubin(90, specific=True),
    ]


def test_of_a_plain_architecture_of_12_llama_cpp_makes_the_specific_one() -> None:
    specific = [Cubin(120, specific=True), Cubin(121, specific=True)]
    assert toolkit.machine_code(["120-real", "121"]) == toolkit.machine_code(["120a-real", "121a"]) == specific
    # A family's is left as it is.
    assert toolkit.machine_code(["120f-real"]) == [Cubin(120)]


def test_an_architecture_that_serves_a_card_by_its_number_alone_is_refused_before_the_build() -> None:
    spark = Card("GB10", version("12.1"))
    assert toolkit.uncompiled_cards([spark], ["120f-real"]) == []
    for left_out in ("120-real", "120a-real"):
        (problem,) = toolkit.uncompiled_cards([spark], [left_out])
        assert f"({left_out}) has no machine code for it; add 121-real" in problem


def test_architectures_of_the_inventory_that_leave_a_card_out_are_refused_before_the_build() -> None:
    assert toolkit.uncompiled_cards([AMPERE, PASCAL], ["61-real", "86"]) == []
    assert toolkit.uncompiled_cards([AMPERE, PASCAL], ["86-real", "61-virtual"]) == [
        "GTX 1060 (compute capability 6.1, Pascal): llama_cpp_cuda_architectures (86-real, 61-virtual) has no machine "
        "code for it; add 61-real, or leave the variable empty for the cards' own"
    ]


def test_machine_code_serves_cards_of_its_major_from_its_minor_on() -> None:
    assert toolkit.served_by(version("8.9"), [Cubin(61), Cubin(86)])
    assert not toolkit.served_by(version("8.0"), [Cubin(86)])
    assert not toolkit.served_by(version("9.0"), [Cubin(86)])
    assert toolkit.served_by(version("12.1"), [Cubin(120)])


def test_machine_code_for_one_card_alone_serves_no_later_one() -> None:
    specific = [Cubin(90, specific=True), Cubin(120, specific=True)]
    assert toolkit.served_by(version("9.0"), specific)
    assert toolkit.served_by(version("12.0"), specific)
    assert not toolkit.served_by(version("12.1"), specific)


def test_a_card_without_machine_code_is_named_with_what_is_there() -> None:
    assert toolkit.unproven_cards([AMPERE, PASCAL], {Cubin(61): 144, Cubin(86): 144}) == []
    assert toolkit.unproven_cards([AMPERE, PASCAL], {Cubin(86): 144}) == [
        "GTX 1060 (compute capability 6.1, Pascal): the program has no machine code for it; it holds sm_86 (144), "
        "and would have to be built for 61-real"
    ]
    assert "it holds none at all" in toolkit.unproven_cards([PASCAL], {})[0]


@given(st.lists(st.sampled_from([MAXWELL, PASCAL, TURING, AMPERE, BLACKWELL]), min_size=1, max_size=4))
def test_a_build_for_the_cards_architectures_serves_them_all(cards: list[Card]) -> None:
    assert toolkit.unproven_cards(cards, dict.fromkeys(toolkit.machine_code(toolkit.architectures(cards)), 1)) == []
