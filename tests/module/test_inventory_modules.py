"""inventory_check, tier_plan, host_check and gpu_facts: all problems at once, and what the next step needs."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cuda_hosts import GOOD
from example_report import DECISION
from modules import MODULES, run

from checker import hardware
from inventories import BIG, SMALL, inventory

MODELS_DIRECTORY = "/var/lib/llama-tiers/models"
HOST = {
    "host": "tower",
    "build_directory": "/var/cache/llama-tiers/build",
    "releases_directory": "/opt/llama-tiers/releases",
    "build_free_mib": 1280,
}
TINY = f"{MODELS_DIRECTORY}/abababababab/tiny.gguf"


def test_a_right_inventory_says_what_has_to_lie_on_the_host() -> None:
    given = inventory()
    given["tiers"][1]["engine"] = "old"
    result = run("inventory_check", models_directory=MODELS_DIRECTORY, **HOST, **given)

    assert result["changed"] is False
    assert result["needs"] == [
        *(
            {
                "what": f"build of llama.cpp {engine}",
                "path": f"/var/cache/llama-tiers/build/{engine}",
                "mib": 1280,
                "done": f"/opt/llama-tiers/releases/{engine}-cuda*/bin/llama-server",
                "left": f"/var/cache/llama-tiers/build/{engine}-cuda*/tree",
                "passing_mib": 960,
            }
            for engine in ("new", "old")
        ),
        {"what": "model tiny", "path": TINY, "mib": 10, "done": TINY, "left": f"{TINY}.part", "passing_mib": 0},
    ]


def test_all_problems_of_an_inventory_are_said_at_once() -> None:
    wrong = inventory(engine="newest")
    wrong["tiers"][0]["candidates"][0]["model"] = "huge"
    wrong["tiers"][1]["port"] = 8080

    result = run("inventory_check", models_directory=MODELS_DIRECTORY, **HOST, **wrong)

    assert result["failed"] is True
    assert len(result["problems"]) == 3
    assert result["msg"].splitlines()[1:] == result["problems"]
    for piece in ("'newest' is not in the engine table", "'huge' is not in the catalogue", "port 8080 is used twice"):
        assert piece in result["msg"]


def decided(placement: Any) -> dict[str, Any]:
    """Return an inventory's decision for the tier `deep`, whose placement has a split."""
    deep, split = DECISION["tiers"]["deep"], placement["tensor_split"]
    placed = {**deep["placed"], "tensor_split": split, "n_gpu_layers": sum(split)}
    return {**DECISION, "tiers": {"deep": {**deep, "placement": placement, "placed": placed}}}


@pytest.mark.parametrize("module", ["inventory_check", "tier_plan"])
def test_a_decision_that_the_inventory_does_not_know_is_refused(module: str) -> None:
    gone = decided({"tensor_split": [4, 1]})
    own = {"host": "tower", "releases": {"new": "/r"}, "keys_directory": "/k"} if module == "tier_plan" else HOST

    result = run(module, decision=gone, models_directory=MODELS_DIRECTORY, **own, **inventory())

    assert result["failed"] is True
    said = "tier deep: decided is tiny (4,1), which is none of the inventory's candidates: tiny (3,2); put it back"
    assert said in result["problems"][0]


@pytest.mark.parametrize(
    ("other", "said"),
    [({"host": "shed"}, "it was decided for host shed, and this is tower"), ({"tiers": "large"}, "tiers: fast, deep")],
    ids=["host", "tier"],
)
@pytest.mark.parametrize("module", ["inventory_check", "tier_plan"])
def test_a_decision_of_another_host_or_tier_is_refused(module: str, other: dict[str, str], said: str) -> None:
    made = decided({"tensor_split": [3, 2]})
    if name := other.get("tiers"):
        other = {"tiers": {name: made["tiers"]["deep"]}}
    own = {"host": "tower", "releases": {"new": "/r"}, "keys_directory": "/k"} if module == "tier_plan" else HOST

    result = run(module, decision={**made, **other}, models_directory=MODELS_DIRECTORY, **own, **inventory())

    assert result["failed"] is True
    (problem,) = result["problems"]
    assert said in problem and "or try and decide again (`checker trial`, `checker decide`)" in problem


def test_a_plan_takes_what_was_decided_and_names_the_evidence() -> None:
    given = inventory()
    given["tiers"][1]["candidates"].append({"model": "tiny", "placement": {"tensor_split": [2, 3]}})

    (_, before), (fast, after) = (
        plan(tiers=given["tiers"], **more)["specs"] for more in ({}, {"decision": decided({"tensor_split": [2, 3]})})
    )
    summary = plan(tiers=given["tiers"], decision=decided({"tensor_split": [2, 3]}))["summary"]

    assert before["placement"]["tensor_split"] == [3, 2]
    assert after["placement"]["tensor_split"] == [2, 3]
    assert fast["name"] == "fast" and "decided" not in summary[0]
    known = "61.2 tokens/s measured 2026-11-23, evidence eeeeeeeeeeee"
    assert summary[1].endswith(f"; decided by policy multi-gpu: {known}")


def test_only_the_decided_model_has_to_lie_on_the_host() -> None:
    given = inventory()
    given["models"]["other"] = {**given["models"]["tiny"], "file": "other.gguf", "sha256": "cd" * 32}
    given["tiers"] = given["tiers"][1:]
    given["tiers"][0]["candidates"].insert(0, {"model": "other", "placement": {"tensor_split": [3, 2]}})

    needed = [
        run("inventory_check", models_directory=MODELS_DIRECTORY, **HOST, **given, **more)["models"]
        for more in ({}, {"decision": decided({"tensor_split": [3, 2]})})
    ]

    assert needed == [["other"], ["tiny"]]


def test_where_nothing_is_served_neither_decision_nor_models_are_looked_at() -> None:
    gone = decided({"tensor_split": [4, 1]})
    result = run(
        "inventory_check", decision=gone, serves=False, models_directory=MODELS_DIRECTORY, **HOST, **inventory()
    )
    assert result["models"] == []
    assert [need["what"] for need in result["needs"]] == ["build of llama.cpp new"]


def plan(
    profile: dict[str, Any] | None = None,
    replan: bool = False,
    as_served: bool = False,
    decision: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    return run(
        "tier_plan",
        host="tower",
        profile=profile or {},
        releases={"new": "/opt/llama-tiers/current"},
        models_directory=MODELS_DIRECTORY,
        keys_directory="/etc/llama-tiers/keys",
        replan=replan,
        as_served=as_served,
        decision=decision or {},
        **inventory(**changes),
    )


def test_a_tier_whose_engine_has_no_release_is_refused() -> None:
    tiers = inventory()["tiers"]
    tiers[1]["engine"] = "old"
    assert plan(tiers=tiers)["msg"] == "tier deep: engine old has no release on the host yet; site.yml builds it"


def test_a_plan_has_a_spec_and_a_line_for_each_tier() -> None:
    result = plan()

    assert [spec["name"] for spec in result["specs"]] == ["fast", "deep"]
    assert {spec["schema"] for spec in result["specs"]} == {"llama-tiers/tier/1"}
    assert {spec["model"]["file"] for spec in result["specs"]} == {TINY}
    assert [device["uuid"] for device in result["specs"][1]["devices"]] == [BIG["uuid"], SMALL["uuid"]]
    assert len(result["summary"]) == 2
    # 8,192 and 3,072 MiB, less what the driver keeps, less the margin.
    assert result["room_mib"] == {BIG["uuid"]: 8192 - 205 - 287, SMALL["uuid"]: 3072 - 77 - 150}


def test_a_plan_keeps_what_is_proven_unless_it_is_asked_for_a_new_choice() -> None:
    tier = {"name": "one", "port": 8080, "context": 4096, "gpus": "any"}
    small = tier | {"candidates": [{"model": "tiny", "placement": {"ubatch_size": 128}}]}
    auto = tier | {"candidates": [{"model": "tiny", "placement": "auto"}]}
    proven = {"proven": {"one": plan(tiers=[small])["specs"][0]}}

    kept = plan(profile=proven, tiers=[auto])
    anew = plan(profile=proven, tiers=[auto], replan=True)

    assert kept["specs"] == [proven["proven"]["one"]]
    assert kept["kept"] == ["one"]
    assert "; kept as proven; a new choice would be " in kept["summary"][0]
    assert anew["specs"][0]["placement"]["ubatch_size"] == 512
    assert anew["kept"] == []


def test_what_is_served_is_planned_whatever_was_decided() -> None:
    tier = {"name": "one", "port": 8080, "context": 4096, "gpus": "any"}
    (proven,) = plan(tiers=[tier | {"candidates": [{"model": "tiny", "placement": {"ubatch_size": 128}}]}])["specs"]
    gone = decided({"tensor_split": [4, 1]})
    wished = [tier | {"candidates": [{"model": "tiny", "placement": {"ubatch_size": 256}}]}]

    assert plan(profile={"proven": {"one": proven}}, tiers=wished, decision=gone, as_served=True)["specs"] == [proven]


def test_a_plan_says_which_models_are_served() -> None:
    assert plan()["models"] == ["tiny"]


def test_a_plan_is_refused_by_what_was_read_on_the_host() -> None:
    result = plan(profile={"gpus": [{"uuid": BIG["uuid"], "total_mib": 300}], "ram_mib": 16000})

    assert result["failed"] is True
    assert "RTX 3060 Ti needs" in result["msg"]
    assert "(300 - 64 taken - 150 margin)" in result["msg"]


def test_a_plan_fails_with_every_reason() -> None:
    result = plan(engine="newest", tiers=[])

    assert result["failed"] is True
    assert "'newest' is not in the engine table" in result["msg"]
    assert "tiers is empty" in result["msg"]
    assert len(result["problems"]) == 2


def card(entry: dict[str, str]) -> dict[str, Any]:
    return {
        **entry,
        "pci_bus_id": "00000000:01:00.0",
        "compute_capability": "8.6",
        "total_mib": 8192,
        "used_mib": 452,
        "bandwidth_gb_s": 448.1,
        "minor_number": 0,
    }


def check_host(ram_mib: int, free_mib: int, cards: list[dict[str, Any]]) -> dict[str, Any]:
    disk = {"path": TINY, "filesystem": "/var", "free_mib": free_mib, "present_mib": 2, "done": False}
    return run(
        "host_check",
        host="tower",
        profile={
            "driver": {"version": "580.126.09", "cuda_version": "13.0"},
            "gpus": cards,
            "problem": None,
            "ram_mib": ram_mib,
            "disks": [disk],
        },
        gpus=[BIG, SMALL],
        needs=[{"what": "model tiny", "path": TINY, "mib": 10, "done": TINY}],
        min_ram_mib=4096,
    )


def test_a_host_that_has_everything_is_ready() -> None:
    assert check_host(ram_mib=4096, free_mib=8, cards=[card(BIG), card(SMALL)])["changed"] is False


def test_all_problems_of_a_host_are_said_at_once() -> None:
    result = check_host(ram_mib=2048, free_mib=7, cards=[card(BIG)])

    assert result["failed"] is True
    assert result["msg"].splitlines() == ["tower is not ready:", *result["problems"]]
    missing, memory, disk = result["problems"]
    assert f"{SMALL['uuid']} ({SMALL['name']}) is not on this host" in missing
    assert "2,048 MiB of RAM" in memory and "4,096 MiB" in memory
    assert "8 MiB are needed (model tiny 8), 7 MiB are free" in disk


def test_what_cuda_depends_on_is_read_when_asked_and_judged() -> None:
    read = run("gpu_facts", needs=[], cuda=True)["profile"]["cuda"]
    assert {"modules", "nodes", "pci_cards", "toolkits", "compilers", "distribution", "glibc"} <= set(read)
    assert run("gpu_facts", needs=[])["profile"]["cuda"] is None

    result = run(
        "host_check",
        host="tower",
        profile={
            "driver": {"version": "590.44", "cuda_version": "13.1"},
            "gpus": [card(BIG)],
            "problem": None,
            "ram_mib": 8192,
            "disks": [],
            "cuda": {**asdict(GOOD), "module_version": "590.44", "library_version": "590.44"},
        },
        gpus=[BIG, {**SMALL, "compute_capability": "6.1"}],
        needs=[],
        min_ram_mib=4096,
        mends=["gpu_host_persistence"],
    )
    assert result["failed"] is True
    assert "driver branch 580 is the last that serves Pascal, found 590.44" in result["msg"]


def test_gpu_facts_finds_what_is_there_of_a_file_and_of_a_build(tmp_path: Path) -> None:
    there, begun, absent = tmp_path / "there", tmp_path / "begun", tmp_path / "no" / "folder" / "absent"
    there.touch()
    (tmp_path / "begun.part").write_bytes(b"x" * 3 * 1024 * 1024)
    objects = tmp_path / "build" / "engine-cpu-0badcafe" / "tree" / "objects"
    objects.mkdir(parents=True)
    (objects / "one.o").write_bytes(b"x" * 2 * 1024 * 1024)
    (objects / "two.o").write_bytes(b"x" * 2 * 1024 * 1024)
    needs = [{"path": str(path), "done": str(path), "left": f"{path}.part"} for path in (there, begun, absent)]
    needs.append({"path": str(absent), "done": str(absent), "left": f"{tmp_path}/build/engine-cpu*/tree"})

    result = run("gpu_facts", needs=needs)

    profile = result["profile"]
    assert result["changed"] is False
    assert profile["ram_mib"] > 0
    assert isinstance(profile["proven"], dict)
    assert profile["driver"] is not None or profile["problem"]
    assert [(disk["done"], disk["present_mib"]) for disk in profile["disks"]] == [
        (True, 0),
        (False, 3),
        (False, 0),
        (False, 4),
    ]
    assert len({disk["filesystem"] for disk in profile["disks"]}) == 1


def gpu_facts() -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpu_facts", MODULES["gpu_facts"])
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_reports_are_read_newest_first_and_damaged_ones_passed_over(tmp_path: Path) -> None:
    for name, text in {"2026-11-24T1.json": '"old"', "2026-11-25T1.json": "{", "2026-11-26T1.json": '"new"'}.items():
        (tmp_path / name).write_text(text)
    assert gpu_facts().read_reports(tmp_path) == ["new", "old"]
    assert gpu_facts().read_reports(tmp_path / "absent") == []


def test_what_our_own_tiers_hold_of_a_card_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = gpu_facts()
    groups = {7: "0::/system.slice/llama-tier-deep.service\n", 8: "0::/user.slice/session-1.scope\n"}
    for pid, group in groups.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(group)
    # The third has ended since it was listed.
    held: list[hardware.GpuProcess] = []
    monkeypatch.setattr(hardware, "processes", lambda uuid: held)
    held[:] = (hardware.GpuProcess(pid, mib) for pid, mib in ((7, 6000.5), (8, 900.0), (9, 50.0)))
    assert module.tiers_mib(BIG["uuid"], tmp_path) == 6000.5
    held[:] = (hardware.GpuProcess(pid, mib) for pid, mib in ((7, 6000.5), (8, None)))
    assert module.tiers_mib(BIG["uuid"], tmp_path) == 6000.5
    # What the driver does not tell of one of ours is not nothing.
    held[:] = (hardware.GpuProcess(pid, mib) for pid, mib in ((7, None), (8, 900.0)))
    assert module.tiers_mib(BIG["uuid"], tmp_path) is None
