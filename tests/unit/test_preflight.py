"""The preflight's sentences: what is wrong, with which value, and what to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from cuda_hosts import GOOD, host
from hypothesis import given
from hypothesis import strategies as st

from checker import preflight
from checker.hardware import Driver, Gpu
from checker.preflight import Disk, HostProfile, Need
from checker.toolkit import Wish

FAST = Gpu("RTX 3060 Ti", "GPU-a", "00000000:01:00.0", "8.6", 8192, 300, 448.1, 0)
SMALL = Gpu("GTX 1060", "GPU-b", "00000000:02:00.0", "6.1", 3072, 100, 192.2, 1)
HOST = HostProfile(Driver("580.126.09", "13.0"), (FAST, SMALL), None, 16000, ())
EXPECTED = [{"name": "RTX 3060 Ti", "uuid": "GPU-a"}, {"name": "GTX 1060", "uuid": "GPU-b"}]


DRIVEN = dataclasses.replace(HOST, cuda=GOOD)
WISH = Wish("detect")
MENDS = ["gpu_host_load_modules", "gpu_host_device_nodes", "gpu_host_persistence"]


def replaced(**changes: Any) -> HostProfile:
    return dataclasses.replace(HOST, **changes)


def test_the_expected_host_passes_in_any_order_of_slots() -> None:
    assert preflight.judge(HOST, EXPECTED, [], 8000) == []
    assert preflight.judge(replaced(gpus=(SMALL, FAST)), EXPECTED, [], 8000) == []


def test_an_absent_card_names_uuid_and_what_was_found() -> None:
    (problem,) = preflight.gpu_problems(replaced(gpus=(FAST,)), EXPECTED)
    assert problem == (
        "GPU-b (GTX 1060) is not on this host; found GPU-a (RTX 3060 Ti); "
        "put the card back, or edit gpus in the inventory and plan again"
    )
    (problem, _) = preflight.gpu_problems(replaced(gpus=()), EXPECTED)
    assert "found no GPU at all" in problem


def test_a_lost_card_is_said_once_and_the_missing_one_too() -> None:
    lost = "GPU-b: the GPU is lost"
    assert preflight.gpu_problems(replaced(gpus=(FAST,), problem=lost), EXPECTED) == [lost]
    third = [*EXPECTED, {"name": "GTX 980", "uuid": "GPU-c"}]
    said = preflight.gpu_problems(replaced(gpus=(FAST,), problem=lost), third)
    assert said[0] == lost
    assert said[1].startswith("GPU-c (GTX 980) is not on this host")


def test_an_unreadable_driver_is_the_only_problem_said_about_cards() -> None:
    unreadable = replaced(driver=None, gpus=(), problem="the NVIDIA kernel module is not loaded")
    assert preflight.gpu_problems(unreadable, EXPECTED) == ["the NVIDIA kernel module is not loaded"]


def test_a_card_of_another_name_says_both_names() -> None:
    (problem,) = preflight.gpu_problems(HOST, [EXPECTED[0], {"name": "GTX 1080", "uuid": "GPU-b"}])
    assert "'GTX 1080'" in problem
    assert "'GTX 1060'" in problem


def test_a_card_that_is_listed_twice_is_said_once() -> None:
    (problem,) = preflight.gpu_problems(HOST, [*EXPECTED, EXPECTED[0]])
    assert problem == "gpus of the inventory has GPU-a 2 times: list each card once"


def test_only_cards_behind_another_hosts_rpc_server_may_be_elsewhere() -> None:
    def remote(endpoint: str) -> list[str]:
        return preflight.gpu_problems(HOST, [{"name": "GTX 980", "uuid": "GPU-c", "rpc_endpoint": endpoint}])

    assert remote("192.0.2.7:50052") == []
    assert remote("gpu-two.example:50052") == []
    assert len(remote("127.0.0.1:50052")) == len(remote("localhost:50052")) == len(remote("[::1]:50052")) == 1


def cuda_said(profile: HostProfile, mends: list[str] = MENDS, *, mended: bool = True) -> list[str]:
    return preflight.cuda_problems(profile, EXPECTED, WISH, mends, mended=mended)


def test_a_host_with_everything_that_cuda_needs_passes() -> None:
    assert cuda_said(DRIVEN) == []
    assert cuda_said(HOST) == []  # another back end


def test_a_card_that_the_driver_hides_is_judged_by_what_the_inventory_says_of_it() -> None:
    hidden = dataclasses.replace(DRIVEN, gpus=(FAST,), cuda=host(module_flavour="open"))
    expected = [EXPECTED[0], {**EXPECTED[1], "compute_capability": "6.1"}]
    flavour, bus = preflight.cuda_problems(hidden, expected, WISH, MENDS, mended=True)
    assert "GTX 1060 (compute capability 6.1, Pascal): the open kernel modules serve Turing and later only" in flavour
    assert bus.startswith("0000:02:00.0 on the PCI bus is an NVIDIA card that the driver does not serve")


def test_the_datasheet_stands_in_for_a_hidden_card_that_is_known() -> None:
    named = [{"name": "NVIDIA GeForce GTX 1060 3GB", "uuid": "GPU-b"}, {"name": "unheard of", "uuid": "GPU-c"}]
    cards = preflight.cuda_cards(replaced(gpus=()), named)
    assert str(cards["GPU-b"]) == "NVIDIA GeForce GTX 1060 3GB (compute capability 6.1, Pascal)"
    assert cards["GPU-c"] is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NVIDIA GeForce GTX 1080 Ti", "6.1, Pascal"),
        ("NVIDIA GeForce GTX 970", "5.2, Maxwell"),
        ("Tesla V100-SXM2-32GB", "7.0, Volta"),
    ],
)
def test_a_hidden_card_is_judged_by_its_name(name: str, said: str) -> None:
    newer = dataclasses.replace(
        DRIVEN, driver=Driver("590.44.01", "13.1"), gpus=(FAST,), cuda=host(module_version="590.44.01")
    )
    expected = [EXPECTED[0], {"name": name, "uuid": "GPU-b"}]
    branch, bus = preflight.cuda_problems(newer, expected, WISH, MENDS, mended=True)
    assert branch.startswith(f"{name} (compute capability {said}): driver branch 580 is the last that serves")
    assert bus.startswith("0000:02:00.0 on the PCI bus")


def test_a_hidden_card_of_which_nothing_is_known_is_asked_for() -> None:
    newer = dataclasses.replace(
        DRIVEN, driver=Driver("590.44.01", "13.1"), gpus=(FAST,), cuda=host(module_version="590.44.01")
    )
    expected = [EXPECTED[0], {"name": "NVIDIA P106-100", "uuid": "GPU-b"}]
    asked, bus = preflight.cuda_problems(newer, expected, WISH, MENDS, mended=True)
    assert asked.startswith("NVIDIA P106-100: its compute capability is not known")
    assert "driver 590.44.01 with proprietary kernel modules" in asked
    assert "give compute_capability in its entry of gpus" in asked
    assert bus.startswith("0000:02:00.0 on the PCI bus")
    # It is asked of no card that NVML tells of, nor where NVML tells of none.
    shown = dataclasses.replace(newer, gpus=(FAST, dataclasses.replace(SMALL, compute_capability="8.6")))
    assert preflight.cuda_problems(shown, expected, WISH, MENDS, mended=True) == []
    silent = dataclasses.replace(newer, driver=None, gpus=(), problem="no")
    assert preflight.cuda_problems(silent, expected[1:], WISH, MENDS, mended=True) == []


def test_cards_behind_an_rpc_server_ask_nothing_of_the_driver() -> None:
    remote = [{**gpu, "rpc_endpoint": "127.0.0.1:50052"} for gpu in EXPECTED]
    newer = dataclasses.replace(DRIVEN, driver=Driver("595.10", "13.2"), cuda=host(module_version="595.10"))
    assert preflight.cuda_problems(newer, remote, WISH, MENDS, mended=True) == []


def test_what_the_role_will_mend_is_a_problem_only_after_it_tried() -> None:
    bare = dataclasses.replace(DRIVEN, cuda=host(modules=("nvidia",), nodes=(), persistence="inactive"))
    assert cuda_said(bare, mended=False) == []
    assert len(cuda_said(bare)) == 3
    # What it may not mend is a problem at once; a daemon that nobody wants is none.
    assert len(cuda_said(bare, mends=[], mended=False)) == 2


def test_a_driver_that_does_not_answer_is_judged_by_its_kernel_module() -> None:
    silent = dataclasses.replace(DRIVEN, driver=None, gpus=(), problem="no", cuda=host(module_version="595.10"))
    expected = [{**gpu, "compute_capability": "6.1"} for gpu in EXPECTED[:1]]
    (branch,) = preflight.cuda_problems(silent, expected, WISH, MENDS, mended=True)
    assert "driver branch 580 is the last that serves Pascal, found 595.10" in branch
    # The toolkit too.
    old = dataclasses.replace(silent, cuda=host(module_version="450.80.02"))
    (needs,) = preflight.cuda_problems(old, expected, WISH, MENDS, mended=True)
    assert "CUDA 12.4 needs driver branch 525 or later, found 450.80.02" in needs


def test_too_little_memory_has_both_figures() -> None:
    assert preflight.ram_problems(4096, 4096) == []
    (problem,) = preflight.ram_problems(3900, 4096)
    assert "3,900 MiB" in problem
    assert "4,096 MiB" in problem


def test_needs_of_one_file_system_are_added_up() -> None:
    needs = [Need("build", "/var/cache/b", 4096, "/b"), Need("model g", "/var/lib/m", 300, "/m")]
    disks = [Disk("/var/cache/b", "/", 4300, 0, False), Disk("/var/lib/m", "/", 4300, 0, False)]
    assert preflight.disk_problems(disks, needs) == [
        "file system /: 4,396 MiB are needed (build 4,096 + model g 300), 4,300 MiB are free; "
        "make 96 MiB free, or mount a larger file system there"
    ]
    apart = [disks[0], dataclasses.replace(disks[1], filesystem="/var/lib")]
    assert preflight.disk_problems(apart, needs) == []


def test_what_is_there_already_needs_no_room() -> None:
    needs = [Need("build", "/b", 4096, "/b"), Need("model g", "/m", 300, "/m")]
    disks = [Disk("/b", "/", 150, 0, True), Disk("/m", "/", 150, 160, False)]
    assert preflight.disk_problems(disks, needs) == []


TIERS = [{"name": "deep", "engine": "row"}, {"name": "fast"}]
BUILDS = preflight.build_needs("new", TIERS, "cuda", "/c/build", "/o/releases", 5120)


def built(free_mib: int, *state: tuple[int, bool]) -> list[str]:
    disks = [Disk(need.path, "/", free_mib, *has) for need, has in zip(BUILDS, state, strict=True)]
    return preflight.disk_problems(disks, BUILDS)


def test_the_objects_of_one_build_are_gone_before_those_of_the_next() -> None:
    assert built(6400, (0, False), (0, False)) == []
    assert built(6399, (0, False), (0, False)) == [
        "file system /: 6,400 MiB are needed (build of llama.cpp new 5,120 + build of llama.cpp row 5,120 - 3,840 that "
        "are free again before the next build), 6,399 MiB are free; make 1 MiB free, or mount a larger file system "
        "there"
    ]


def test_a_build_that_goes_on_needs_no_room_for_what_is_compiled_already() -> None:
    assert BUILDS[0].left == "/c/build/new-cuda*/tree"
    assert built(3120, (2000, False), (0, True)) == []
    assert len(built(3119, (2000, False), (0, True))) == 1


def test_each_build_is_asked_for_whatever_is_there_of_the_other() -> None:
    assert len(built(5119, (0, True), (0, False))) == len(built(5119, (0, False), (0, True))) == 1
    assert built(5120, (0, True), (0, False)) == built(5120, (0, False), (0, True)) == []


def test_the_files_of_the_served_models_are_needed_once_each() -> None:
    models = {
        "one": {"file": "one.gguf", "sha256": "a" * 64, "bytes": 2**20 + 1},
        "two": {
            "file": "two-1.gguf",
            "parts": [
                {"file": "two-1.gguf", "sha256": "b" * 64, "bytes": 2**20},
                {"file": "two-2.gguf", "sha256": "c" * 64, "bytes": 2**20},
            ],
        },
        "unserved": {"file": "x.gguf", "sha256": "d" * 64, "bytes": 9},
        "unsized": {"file": "x.gguf"},
    }
    needs = preflight.model_needs(["one", "two", "one", "unsized"], models, "/m")
    assert [(need.path, need.mib) for need in needs] == [
        ("/m/aaaaaaaaaaaa/one.gguf", 2),
        ("/m/bbbbbbbbbbbb/two-1.gguf", 1),
        ("/m/bbbbbbbbbbbb/two-2.gguf", 1),
    ]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 100), st.integers(0, 100), st.booleans())), st.data())
def test_disk_is_refused_exactly_when_a_file_system_is_too_small(
    wanted: list[tuple[str, int, int, bool]], data: st.DataObject
) -> None:
    free = {name: data.draw(st.integers(0, 500)) for name in "ab"}
    needs = [Need("thing", f"/{i}", mib, f"/{i}") for i, (_, mib, _, _) in enumerate(wanted)]
    disks = [Disk(f"/{i}", name, free[name], has, done) for i, (name, _, has, done) in enumerate(wanted)]
    rest = {name: sum(max(mib - has, 0) for on, mib, has, done in wanted if on == name and not done) for name in "ab"}
    refused = [name for name in "ab" if rest[name] > free[name]]
    said = preflight.disk_problems(disks, needs)
    assert sorted(problem.split(":")[0] for problem in said) == [f"file system {name}" for name in refused]


@given(st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef")))
def test_every_absent_card_is_said_and_no_other(present: set[str], wanted: set[str]) -> None:
    gpus = tuple(dataclasses.replace(FAST, uuid=f"GPU-{name}") for name in sorted(present))
    expected = [{"name": FAST.name, "uuid": f"GPU-{name}"} for name in sorted(wanted)]
    said = preflight.gpu_problems(replaced(gpus=gpus), expected)
    assert [problem.split()[0] for problem in said] == [f"GPU-{name}" for name in sorted(wanted - present)]
