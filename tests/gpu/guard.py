"""guard.py PART...: what a tier may not do, and what must not pass for a tier that works.

sandbox  inside the unit's own sandbox: its card can be opened; another's node, the system's files and keys cannot
faults   each fault is put into the unit by a drop-in. The start must fail with the reason; then, with the unit's own
         readiness check switched off, `checker verify` must fail
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_IFCHR
from typing import Any

import proof

from checker import hardware, llama_server, systemd, tier

UNITS = Path("/etc/systemd/system")
PROBE = "gpu-proof-probe.service"
# A device number of NVIDIA's driver that no card has: the node of "another card" on a machine that has one.
OTHER_CARD, OTHER_MINOR = Path("/dev/nvidia7"), 7
START_LIMIT_S = 150


def run(*command: str, limit_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)


def tier_on_most_cards() -> tier.TierSpec:
    return max(tier.load_all(), key=lambda spec: len(spec.devices))


def _probe_unit(spec: tier.TierSpec, words: Sequence[str]) -> str:
    """Return the tier's own unit with the probe in the place of its server."""
    kept, skipping = [], False
    for line in (UNITS / spec.unit).read_text(encoding="utf-8").splitlines():
        begins = line.startswith(("ExecStart", "Restart", "Type=", "After=", "TimeoutStartSec="))
        if not (skipping or begins):
            kept.append(line)
        skipping = (skipping or begins) and line.endswith("\\")
    probe = f"ExecStart=/usr/bin/python3 {proof.ROOT}/tests/gpu/probe.py {' '.join(words)}"
    place = kept.index("[Service]") + 1
    return "\n".join([*kept[:place], "Type=oneshot", "RemainAfterExit=yes", probe, *kept[place:], ""])


def sandbox() -> None:
    spec = min(tier.load_all(), key=lambda each: len(each.devices))
    others = [each for each in tier.load_all() if each.name != spec.name]
    own = {device.uuid for device in spec.devices}
    nodes = {gpu.uuid: f"/dev/nvidia{gpu.minor_number}" for gpu in hardware.read_gpus()}
    foreign = [node for uuid, node in nodes.items() if uuid not in own]
    made = not foreign and Path(nodes[next(iter(own))]).exists()
    if made:
        OTHER_CARD.unlink(missing_ok=True)
        os.mknod(
            OTHER_CARD, 0o666 | S_IFCHR, os.makedev(os.major(Path(nodes[next(iter(own))]).stat().st_rdev), OTHER_MINOR)
        )
        OTHER_CARD.chmod(0o666)
        foreign = [str(OTHER_CARD)]
    allowed = [
        *(f"device={nodes[uuid]}" for uuid in own),
        *("device=/dev/nvidiactl", "device=/dev/nvidia-uvm", f"read={spec.key_file}", f"read={spec.model.file}"),
    ]
    refused = [
        *(f"device={node}" for node in foreign),
        *(f"read={each.key_file}" for each in others),
        *("device=/dev/kmsg", "device=/dev/mem", "read=/etc/shadow", "read=/proc/1/environ"),
        *(
            f"write={path}"
            for path in ("/etc", "/usr", "/opt/llama-tiers", "/var/lib/llama-tiers/models", "/root", "/dev")
        ),
    ]
    try:
        (UNITS / PROBE).write_text(_probe_unit(spec, [*allowed, *refused]), encoding="utf-8")
        systemd.daemon_reload()
        said_by_start = run("systemctl", "restart", PROBE).stderr
        lines = systemd.journal(PROBE, systemd.unit_state(PROBE).invocation_id)
        said = next((line for line in lines if line.startswith("{")), None)
        without = run("/usr/bin/python3", str(proof.ROOT / "tests/gpu/probe.py"), *refused).stdout
    finally:
        run("systemctl", "stop", PROBE)
        (UNITS / PROBE).unlink(missing_ok=True)
        if made:
            OTHER_CARD.unlink(missing_ok=True)
        systemd.daemon_reload()
    inside = json.loads(said) if said else {}
    security = run("systemd-analyze", "security", "--no-pager", spec.unit).stdout.strip().splitlines()
    document = proof.head("sandbox", "tests/gpu/run.sh guard sandbox") | {
        "tier": spec.name,
        "allowed": {word: inside.get(word) for word in allowed},
        "refused": {word: inside.get(word) for word in refused},
        "refused_words_outside_as_root": json.loads(without) if without else {},
        "other_card_is_a_node_that_no_card_has": made,
        "exposure": security[-1] if security else None,
        "journal": [] if said else [said_by_start, *lines[-10:]],
    }
    document["passed"] = (
        bool(inside)
        and all(word == "ok" for word in document["allowed"].values())
        and not any(word == "ok" for word in document["refused"].values())
    )
    for key in ("allowed", "refused", "exposure", "passed"):
        print(key, document[key], flush=True)
    proof.write("sandbox", document)


@contextmanager
def drop_in(unit: str, text: str) -> Iterator[None]:
    """Have a unit changed while the context lasts; afterwards it runs again as it was."""
    folder = UNITS / f"{unit}.d"
    folder.mkdir(exist_ok=True)
    path = folder / "gpu-proof.conf"
    try:
        path.write_text(f"[Service]\n{text}", encoding="utf-8")
        systemd.daemon_reload()
        run("systemctl", "stop", unit)
        run("systemctl", "reset-failed", unit)
        yield
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()
        systemd.daemon_reload()
        front = tier.Front(unit.removeprefix("llama-tier-").removesuffix(".service"))
        run("systemctl", "stop", front.cooldown, unit)
        run("systemctl", "reset-failed", unit)
        run("systemctl", "start", front.socket)


def start(unit: str) -> dict[str, Any]:
    """Start a unit; return what it came to, and the reason that readiness gave."""
    began = time.monotonic()
    code: int | None = None
    try:
        code = run("systemctl", "start", unit, limit_s=START_LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        run("systemctl", "stop", unit)
    state = systemd.unit_state(unit)
    lines = systemd.journal(unit, state.invocation_id)
    reason = [line for line in lines if line.startswith("not ready:")] or [line for line in lines if "rror" in line][
        -2:
    ]
    seconds = round(time.monotonic() - began, 1)
    return {
        "exit_code": code,
        "active_state": state.active_state,
        "reason": " | ".join(reason)[-700:],
        "seconds": seconds,
    }


def wait_until_loaded(spec: tier.TierSpec) -> None:
    """Return when the server is healthy, or ended: a verdict before that would fail for another reason."""
    server = llama_server.LlamaServer.of(spec)
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and systemd.unit_state(spec.unit).active_state == "active":
        try:
            return server.health()
        except llama_server.ServerError:
            time.sleep(0.2)


def verdict() -> dict[str, Any]:
    """Run `checker verify`; return its exit code, and the reasons of what failed."""
    checker = Path(sys.executable).with_name("checker")
    command = (str(checker), "verify", "-i", str(proof.ROOT / "inventories/gpu"), "--format", "json")
    done = run(*command, limit_s=240)
    hosts = json.loads(done.stdout)["hosts"] if done.stdout.strip() else []
    reasons = [reason for host in hosts for each in host["tiers"] for reason in each["reasons"]]
    return {"exit_code": done.returncode, "reasons": reasons, "said": done.stderr.strip()[-300:]}


def _nodes_but(spec: tier.TierSpec, left_out: str) -> str:
    nodes = [
        f"/dev/nvidia{gpu.minor_number}" for gpu in hardware.read_gpus() if gpu.uuid in {d.uuid for d in spec.devices}
    ]
    kept = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", *(node for node in nodes if node != left_out)]
    return "DeviceAllow=\n" + "".join(f"DeviceAllow={node} rw\n" for node in kept)


def _faults(spec: tier.TierSpec) -> dict[str, str]:
    """Return drop-ins by what they do to a tier."""
    uuids = [device.uuid for device in spec.devices]
    last = next(gpu for gpu in hardware.read_gpus() if gpu.uuid == uuids[-1])
    found = {
        "the node of a card is not allowed": _nodes_but(spec, f"/dev/nvidia{last.minor_number}"),
        "no device of the machine is seen": "PrivateDevices=yes\n",
        "no card is shown": "Environment=CUDA_VISIBLE_DEVICES=\n",
    }
    if len(uuids) > 1:
        found["one card is hidden"] = f"Environment=CUDA_VISIBLE_DEVICES={uuids[0]}\n"
        found["the cards come in the other order"] = f"Environment=CUDA_VISIBLE_DEVICES={','.join(reversed(uuids))}\n"
    return found


def _wrong_card() -> dict[str, Any]:
    """Run site.yml for a card that is not there."""
    kept = proof.HOST.read_text(encoding="utf-8")
    document = json.loads(kept)
    uuid = document["gpus"][-1]["uuid"]
    document["gpus"][-1]["uuid"] = f"{uuid[:-1]}{'0' if uuid[-1] != '0' else '1'}"
    playbook = str(Path(sys.executable).with_name("ansible-playbook"))
    try:
        proof.HOST.write_text(json.dumps(document), encoding="utf-8")
        done = run(playbook, "-i", str(proof.ROOT / "inventories/gpu"), str(proof.ROOT / "site.yml"), limit_s=180)
    finally:
        proof.HOST.write_text(kept, encoding="utf-8")
    said = next((line.strip() for line in done.stdout.splitlines() if "is not on this host" in line), "")
    return {"fault": "a card of the inventory is gone", "exit_code": done.returncode, "reason": said[-700:]}


def faults() -> None:
    spec = tier_on_most_cards()
    found: list[dict[str, Any]] = []

    def record() -> None:
        document = proof.head("faults", "tests/gpu/run.sh guard faults")
        proof.write("faults", document | {"tier": spec.name, "cases": found, "passed": all(c["passed"] for c in found)})

    for what, text in _faults(spec).items():
        with drop_in(spec.unit, text):
            case: dict[str, Any] = {"fault": what, "start": start(spec.unit)}
        with drop_in(spec.unit, f"{text}ExecStartPost=\n"):
            case["without_readiness"] = start(spec.unit)
            wait_until_loaded(spec)
            case["verify"] = verdict()
        case["passed"] = case["start"]["active_state"] != "active" and case["verify"]["exit_code"] == 1
        found.append(case)
        print(json.dumps(case, indent=1), flush=True)
        record()
    run("systemctl", "start", spec.unit)
    gone = _wrong_card()
    gone["passed"] = gone["exit_code"] != 0 and "is not on this host" in gone["reason"]
    after = verdict()
    found += [gone, {"fault": "none, afterwards", "verify": after, "passed": after["exit_code"] == 0}]
    print(json.dumps(found[-2:], indent=1), flush=True)
    record()


PARTS = {"sandbox": sandbox, "faults": faults}


if __name__ == "__main__":
    sys.exit(proof.run_parts(PARTS, __doc__))
