"""tier_keys, tier_preflight, tier_estimate and tier_release: what is written, who may read it, and who is named."""

from __future__ import annotations

import grp
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import certificates
import fake_tier
import pytest
from modules import run, run_here

from checker import accepted, activation, ports, proven, releases, tier, verification

GIVEN = "a-key-that-somebody-gave"
root_only = pytest.mark.skipif(os.getuid() != 0, reason="the key files belong to root")


def keys(directory: Path, check: bool = False, **changes: Any) -> dict[str, Any]:
    groups = dict.fromkeys(["fast", "deep"], grp.getgrgid(os.getgid()).gr_name)
    arguments = {"tiers": ["fast", "deep"], "directory": str(directory), "groups": groups}
    return run("tier_keys", check=check, **{**arguments, **changes})


def turn_comes(directory: Path) -> None:
    """Take the keys that wait into their places, as activation does when a tier has stopped."""
    for path in directory.glob("*.next"):
        path.replace(path.with_suffix(""))


@root_only
def test_each_tier_gets_a_key_of_its_own_once(tmp_path: Path) -> None:
    first = keys(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    second = keys(tmp_path)

    assert (first["changed"], first["written"]) == (True, ["fast", "deep"])
    assert set(made) == {"fast", "deep"}
    assert len(set(made.values())) == 2
    assert all(len(key.strip()) >= 32 for key in made.values())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()} == {(0, os.getgid())}
    assert (second["changed"], second["written"]) == (False, [])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == made
    assert not any(key.strip() in str(first) for key in made.values())


@root_only
def test_a_given_key_replaces_what_is_there_and_is_not_said(tmp_path: Path) -> None:
    keys(tmp_path)
    other = (tmp_path / "fast").read_text()

    result = keys(tmp_path, keys={"deep": GIVEN})

    assert result["written"] == ["deep"]
    assert (tmp_path / "deep.next").read_text() == GIVEN + "\n"
    assert (tmp_path / "fast").read_text() == other
    assert GIVEN not in str(result)
    turn_comes(tmp_path)
    assert keys(tmp_path, keys={"deep": GIVEN})["changed"] is False
    # A key that is given no longer stays: clients have it.
    assert keys(tmp_path)["changed"] is False


@root_only
def test_a_key_that_others_may_read_is_mended(tmp_path: Path) -> None:
    keys(tmp_path)
    (tmp_path / "fast").chmod(0o644)

    assert keys(tmp_path)["written"] == ["fast"]
    assert (tmp_path / "fast").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fast": "too-short"}, "the key of fast is shorter than 16 characters"),
        # llama-server would take it for a comment and serve without a key.
        ({"fast": f"#{GIVEN}"}, "the key of fast begins with #"),
        ({"fats": GIVEN}, "names fats, but the tiers are ['fast', 'deep']"),
    ],
)
def test_wrong_keys_are_refused_before_anything_is_written(tmp_path: Path, given: dict[str, str], says: str) -> None:
    result = keys(tmp_path, keys=given)

    assert result["failed"] is True
    assert says in result["msg"]
    assert not any(key in str(result) for key in given.values())
    assert list(tmp_path.iterdir()) == []


@root_only
def test_a_fallback_takes_the_keys_of_those_that_it_stands_in_for(tmp_path: Path) -> None:
    """Clients of deep reach fast, with their own key, while deep is down."""
    keys(tmp_path)
    fast, deep = ((tmp_path / name).read_text() for name in ("fast", "deep"))
    result = keys(tmp_path, fallbacks={"deep": "fast"})
    assert result["written"] == ["fast"]
    assert (tmp_path / "fast").read_text() == fast + deep, "its own one first, with which it is asked by us"
    assert (tmp_path / "deep").read_text() == deep
    assert keys(tmp_path, fallbacks={"deep": "fast"})["changed"] is False
    assert keys(tmp_path, fallbacks={"deep": "fast"}, keys={"deep": GIVEN})["written"] == ["fast", "deep"]
    turn_comes(tmp_path)
    assert (tmp_path / "fast").read_text() == fast + GIVEN + "\n"
    assert keys(tmp_path)["written"] == ["fast"]
    assert (tmp_path / "fast").read_text() == fast


@root_only
@pytest.mark.parametrize("given", [{}, {"deep": GIVEN}])
def test_a_tier_that_is_left_out_keeps_its_key_and_its_fallback_takes_it(tmp_path: Path, given: dict[str, str]) -> None:
    """A rollback leaves out what never served; the clients of it reach its fallback meanwhile."""
    keys(tmp_path, fallbacks={"deep": "fast"})
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    left_out = {"tiers": ["fast"], "left_out": ["deep"], "fallbacks": {"deep": "fast"}}
    assert keys(tmp_path, **left_out, keys=given)["changed"] is False
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    (tmp_path / "deep").unlink()
    assert keys(tmp_path, **left_out, keys=given)["written"] == ["fast"]
    assert (tmp_path / "fast").read_text().split() == before["fast"].split()[:1], "nobody has a key of it"
    assert not (tmp_path / "deep").exists()


@root_only
def test_a_key_is_rotated_when_that_is_asked_for_and_its_fallback_follows(tmp_path: Path) -> None:
    keys(tmp_path, fallbacks={"deep": "fast"})
    fast, deep = ((tmp_path / name).read_text().split() for name in ("fast", "deep"))
    would = keys(tmp_path, check=True, fallbacks={"deep": "fast"}, rotate=["deep"])
    assert (would["written"], (tmp_path / "deep").read_text().split()) == (["fast", "deep"], deep)
    assert keys(tmp_path, fallbacks={"deep": "fast"}, rotate=["deep"])["written"] == ["fast", "deep"]
    turn_comes(tmp_path)
    (new,) = (tmp_path / "deep").read_text().split()
    assert [new] != deep
    assert (tmp_path / "fast").read_text().split() == [fast[0], new]
    assert keys(tmp_path, fallbacks={"deep": "fast"})["changed"] is False


@root_only
def test_a_new_key_of_a_tier_waits_for_its_turn(tmp_path: Path) -> None:
    """Its server is asked with the one that it has whether it is still busy."""
    keys(tmp_path, fallbacks={"deep": "fast"})
    fast, deep = ((tmp_path / name).read_text().split() for name in ("fast", "deep"))
    keys(tmp_path, fallbacks={"deep": "fast"}, rotate=["deep"])
    (new,) = (tmp_path / "deep.next").read_text().split()
    assert (tmp_path / "deep").read_text().split() == deep != [new]
    assert (tmp_path / "deep.next").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "fast").read_text().split() == [fast[0], new], "with its own key it is asked as before"
    assert not (tmp_path / "fast.next").exists()
    assert keys(tmp_path, fallbacks={"deep": "fast"})["changed"] is False, "after a cut the next run goes on with it"
    assert keys(tmp_path, fallbacks={"deep": "fast"}, keys={"deep": deep[0]})["written"] == ["fast", "deep"]
    assert not (tmp_path / "deep.next").exists(), "it is to have the key that it has"


@pytest.mark.parametrize(
    ("rotate", "says"),
    [
        (["fats"], "tiers_rotate_keys names fats, but the tiers are"),
        (["deep"], "whose keys are given: change them there"),
    ],
)
def test_a_rotation_that_cannot_be_is_refused(tmp_path: Path, rotate: list[str], says: str) -> None:
    result = keys(tmp_path, keys={"deep": GIVEN}, rotate=rotate)
    assert result["failed"] is True
    assert says in result["msg"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [{}, {"deep": GIVEN}])
def test_check_mode_says_what_it_would_write_and_writes_nothing(tmp_path: Path, given: dict[str, str]) -> None:
    result = keys(tmp_path / "not-made-yet", check=True, keys=given)

    assert (result["changed"], result["written"]) == (True, ["fast", "deep"])
    assert list(tmp_path.iterdir()) == []


def preflight(port: int, *flags: str, binary: Path = Path("/nonexistent/llama-server")) -> dict[str, Any]:
    return run("tier_preflight", specs=[{"name": "fast", "port": port, "argv": [str(binary), *flags]}])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_holds_a_port_is_named(family: socket.AddressFamily, address: str) -> None:
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    with server:
        port = server.getsockname()[1]
        result = preflight(port)

    assert result["failed"] is True
    name = Path("/proc/self/comm").read_text().strip()
    assert f"tier fast: port {port} is taken by {name} (pid {os.getpid()}" in result["msg"]
    assert "give the tier another port" in result["msg"]
    assert len(result["problems"]) == 1


def test_a_free_port_is_fine() -> None:
    assert preflight(free_port())["changed"] is False


def over_tls(folder: Path, **changes: Any) -> dict[str, Any]:
    """Check a tier whose files are in a folder."""
    own = {"bind": "127.0.0.1", "port": free_port(), "allow": [], "certificate": f"{folder}/fullchain.pem"}
    spec = {"name": "fast", "port": free_port(), "argv": ["/nonexistent/llama-server"]}
    return run("tier_preflight", specs=[spec | {"tls": own | {"key": f"{folder}/privkey.pem"} | changes}])


def test_a_certificate_that_can_be_served_is_fine(tmp_path: Path) -> None:
    certificates.make(tmp_path)
    assert over_tls(tmp_path)["changed"] is False


def test_a_certificate_that_cannot_be_served_is_refused_with_what_to_mend(tmp_path: Path) -> None:
    assert over_tls(tmp_path)["problems"] == [
        f"tier fast: api.tls: {tmp_path}/fullchain.pem cannot be read (No such file or directory); "
        "mend the files on the host, or name others"
    ]
    certificates.make(tmp_path, days=-1)
    (problem,) = over_tls(tmp_path)["problems"]
    assert problem.startswith(f"tier fast: api.tls: {tmp_path}/fullchain.pem: certificate has expired; renew it")
    certificates.make(tmp_path, password="sesame")
    (problem,) = over_tls(tmp_path)["problems"]
    assert problem.startswith(f"tier fast: api.tls: {tmp_path}/privkey.pem has a password")


def test_who_holds_a_tls_port_is_named(tmp_path: Path) -> None:
    certificates.make(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (problem,) = over_tls(tmp_path, port=port)["problems"]
    assert problem.startswith(f"tier fast: TLS port {port} is taken by ")
    assert f"(pid {os.getpid()}" in problem
    assert problem.endswith("stop it, or give the tier another port")


@pytest.mark.parametrize(
    ("unit", "plain", "over"),
    [
        ("llama-tier-deep.socket", True, True),
        ("llama-tier-deep-tls.service", False, True),
        ("nginx.service", False, False),
    ],
)
def test_a_port_may_change_hands_but_for_one_that_is_held_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, plain: bool, over: bool
) -> None:
    pair = certificates.make(tmp_path)
    own = tier.Tls("127.0.0.1", 8443, (), str(pair.certificate), str(pair.key))

    def problems(taken: int) -> list[str]:
        held = (ports.Listener(7, "holder", unit),)
        monkeypatch.setattr(ports, "listeners", lambda port: held if port == taken else ())
        spec = fake_tier.spec(port=8081, tls=own, argv=("/nonexistent/llama-server",))
        found: list[str] = run_here("tier_preflight", {"specs": [spec.to_json()], "accepted": None}).get("problems", [])
        return found

    assert (problems(8081) == [], problems(8443) == []) == (plain, over)
    if unit.endswith("-tls.service"):
        assert problems(8081) == [
            "tier deep: port 8081 is taken by holder (pid 7, llama-tier-deep-tls.service); that is freed later than "
            "this port is opened: take another one now, and this one in a later run"
        ]


def test_a_damaged_proof_proves_nothing_and_is_said(tmp_path: Path) -> None:
    binary, model = tmp_path / "llama-server", tmp_path / "tiny.gguf"
    for path in (binary, model):
        path.touch()
    estimate = tmp_path / "llama-fit-params"
    estimate.write_text("#!/bin/sh\necho 'RPC0 185 20 9'; echo 'RPC1 50 5 9'\n")
    estimate.chmod(0o755)
    spec = fake_tier.spec(argv=(str(binary), "--parallel", "1"), model=tier.Model("tiny", str(model), "ab" * 32))
    proof = tmp_path / "proven/deep/spec.json"
    proof.parent.mkdir(parents=True)

    def estimated(text: str) -> dict[str, Any]:
        proof.write_text(text)
        return run("tier_estimate", specs=[spec.to_json()], proven_directory=str(tmp_path / "proven"))

    assert estimated(json.dumps(spec.to_json()))["asked"] == []
    for damaged in ("{", "", "\x00"):
        result = estimated(damaged)
        assert result["asked"] == ["deep"]
        assert len(result["warnings"]) == 1
        assert f"deep: {proof} is damaged" in str(result["warnings"])
        assert "so the tier counts as not proven" in str(result["warnings"])


def test_a_release_that_no_tier_is_proven_with_is_left_for_the_one_that_was_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "_LOCK", tmp_path / "run/lock")
    monkeypatch.setattr(proven, "DIRECTORY", tmp_path / "proven")
    monkeypatch.setattr(releases, "ROOT", tmp_path)
    for name in ("old", "new"):
        (tmp_path / "releases" / name).mkdir(parents=True)

    def moved(release: str | None, *, check: bool = False) -> tuple[bool, str]:
        result = run_here("tier_release", {"release": release and f"{tmp_path}/releases/{release}"}, check=check)
        return result["changed"], (tmp_path / "current").readlink().name

    assert moved("old") == (True, "old")
    spec = fake_tier.spec()
    proof = tmp_path / "proven/deep/spec.json"
    proof.parent.mkdir(parents=True)
    proof.write_text(json.dumps(replace(spec, engine=replace(spec.engine, release="/r/old")).to_json()))
    assert moved("new", check=True) == (True, "old")
    assert moved("new") == (True, "new")
    assert moved("new") == (False, "new")
    assert moved(None) == (True, "old")
    assert moved(None) == (False, "old")
    assert not (tmp_path / "previous").is_symlink()


def test_what_was_rolled_back_for_its_speed_is_refused_as_it_was_and_not_otherwise(tmp_path: Path) -> None:
    spec, path = fake_tier.spec(), tmp_path / "accepted.json"
    host = accepted.host_of(*verification.cards())
    own = accepted.fingerprint(spec, host)
    tried = accepted.Refused(40.0, "2026-11-24T15:00:00Z", own, "it generated 40.0 tokens/s")
    before = accepted.Reached(61.0, "2026-11-23T15:00:00Z", {})
    name = accepted.key(spec.name, spec, host)
    path.write_text(json.dumps(accepted.to_json(accepted.Speeds({name: before}, {name: (tried,)}))))

    def refused(planned: tier.TierSpec) -> dict[str, Any]:
        return run("tier_preflight", check=True, specs=[planned.to_json()], accepted=str(path))

    result = refused(spec)
    assert result["msg"].startswith("deep: was rolled back on 2026-11-24T15:00:00Z as it is planned now")
    assert result["problems"] == [result["msg"]]
    assert refused(replace(spec, argv=("llama-server", "--parallel", "2")))["changed"] is False
    path.write_text("{")
    assert "accepted.json is damaged" in refused(spec)["msg"]
    path.unlink()
    assert refused(spec)["changed"] is False


def test_flags_that_the_engine_does_not_have_are_named(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\necho '--port, -p N   port'\necho '--fit [on|off]'\n")
    binary.chmod(0o755)
    port = free_port()

    assert preflight(port, "--port", "1", "--fit", "off", binary=binary)["changed"] is False
    result = preflight(port, "--port", "1", "--fits", "off", "--log-jsonl", binary=binary)

    assert result["failed"] is True
    assert [problem.split(";")[0] for problem in result["problems"]] == [
        f"tier fast: {binary} does not know --fits",
        f"tier fast: {binary} does not know --log-jsonl",
    ]
