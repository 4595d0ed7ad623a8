"""Trials, the decision and what is served by it, on a host that test_site.py provisioned; and trials that are cut off.

The checkout is a copy, for its catalogue has stand-ins: a model that has no room, one that does not load, one that the
mirror does not have, and a twin of the real one that goes by another name. While they are tried one card is slow, so
that the split over both is.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from labhost import BIG, LAB, ROOT, SMALL, inventory_tiers, main_pids, run, ssh, ssh_ok, status_of

REAL = "gemma-3-270m-it-q4_k_m"
CACHE = Path(os.environ.get("LLAMA_TIERS_CACHE", Path.home() / ".cache/llama-tiers")) / "mirror/models"
BROKEN_FILE, TWIN_FILE = "stand-in-that-does-not-load.gguf", "stand-in-by-another-name.gguf"
SPLIT, ALONE = {"tensor_split": [14, 5]}, {"split_mode": "none"}
UNIT = "llama-tiers-trial.service"
RELEASES = Path("/opt/llama-tiers/releases")


class Checkout:
    """A copy of this checkout and of the lab's inventory, and what runs there."""

    def __init__(self, root: Path) -> None:
        self.root, self.inventory = root, root / "inventories/lab"
        self.environment = os.environ | {
            "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "NO_COLOR": "1",
            "LAB_DIRECTORY": str(LAB),
            "COLUMNS": "100",
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own."""
        out = (self.root / "out").open("w")
        # ssh makes what it shares non-blocking, which Ansible refuses.
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=1800, check=False
        )

    def checker(self, word: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-m", "checker.cli", word, "-i", str(self.inventory), *arguments)

    def decide(self, policy: str) -> dict[str, Any]:
        done = self.checker("decide", "--policy", policy, "--evidence", str(LAB / "report/evidence"))
        assert done.returncode == 0, done.stdout + done.stderr
        decided: dict[str, Any] = yaml.safe_load(self.decision.read_text())["llama_tiers_decision"]
        return decided

    def site(self) -> str:
        done = self.run("ansible-playbook", "-i", str(self.inventory), "site.yml")
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    def verify(self) -> None:
        done = self.checker("verify", "--quick")
        assert done.returncode == 0, done.stdout + done.stderr

    def git(self, *arguments: str) -> None:
        done = self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def commit(self, message: str) -> None:
        self.git("add", "--all", "inventories")
        self.git("commit", "--quiet", f"--message={message}")

    def beside(self, name: str) -> Checkout:
        """Return this checkout with another inventory of its host: a copy of its own, without a decision."""
        other = Checkout(self.root)
        other.inventory = self.inventory.with_name(name)
        shutil.copytree(self.inventory, other.inventory)
        other.decision.unlink(missing_ok=True)
        return other

    @property
    def decision(self) -> Path:
        return self.inventory / "host_vars/gpuhost/decision.yml"

    def accept(self, tokens_per_second: float) -> None:
        """Have the inventory call a speed acceptable."""
        variables = self.inventory / "group_vars/gpu_hosts/main.yml"
        words = yaml.safe_load(variables.read_text())
        words["llama_tiers_acceptable_tokens_per_second"] = tokens_per_second
        variables.write_text(yaml.safe_dump(words))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    root = tmp_path_factory.mktemp("checkout")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    models = yaml.safe_load((root / "catalogue/models.yml").read_text())
    real = models["models"][REAL]
    content = (CACHE / real["file"]).read_bytes()
    (CACHE / BROKEN_FILE).write_bytes(content.replace(b"general.architecture", b"GENERAL.architecture", 1))
    (CACHE / TWIN_FILE).write_bytes(content.replace(b"general.size_label", b"general.SIZE_LABEL", 1))
    names = [BROKEN_FILE, TWIN_FILE]
    told = subprocess.run(["sha256sum", *names], cwd=CACHE, capture_output=True, text=True, check=True).stdout
    broken, twin = (line.split()[0] for line in told.splitlines())
    known = {"math_500": 50, "model": "what stands for it", "source": "https://example.org/"}
    huge = {**real["header"], "layer_bytes": 2**30, "output_bytes": 2**32}
    models["models"] |= {
        REAL: {**real, "published": known},
        "broken": {**real, "file": BROKEN_FILE, "sha256": broken},
        "twin": {**real, "file": TWIN_FILE, "sha256": twin, "published": known | {"math_500": 40}},
        "absent": {**real, "file": "nobody-has-this.gguf", "sha256": "ab" * 32},
        "huge": {**real, "file": "nobody-asks-for-this.gguf", "sha256": "cd" * 32, "header": huge},
    }
    (root / "catalogue/models.yml").write_text(yaml.safe_dump(models))
    made = Checkout(root)
    variables = made.inventory / "group_vars/gpu_hosts/main.yml"
    words = yaml.safe_load(variables.read_text())
    words["tiers"] = inventory_tiers()
    words["tiers"][1]["candidates"] = [
        {"model": "huge"},
        {"model": REAL, "placement": SPLIT},
        {"model": "broken", "placement": ALONE},
        {"model": "absent", "placement": ALONE},
        {"model": "twin", "placement": ALONE},
    ]
    variables.write_text(yaml.safe_dump(words))
    made.git("init", "--quiet")
    made.commit("the inventory")
    ssh_ok("rm -rf /var/lib/llama-tiers/trials")
    shutil.rmtree(LAB / "report/evidence/trials", ignore_errors=True)
    yield made
    for name in (BROKEN_FILE, TWIN_FILE):
        (CACHE / name).unlink()


def records() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the records that the controller has, by tier, model and placement."""
    found = {}
    for path in (LAB / "report/evidence/trials/gpuhost").glob("*.json"):
        record = json.loads(path.read_text())
        found[record["tier"], record["model"], json.dumps(record["placement"])] = record
    return found


def serving() -> bool:
    """Whether all is active that serves the inventory's tiers, their ports too."""
    units = "llama-tiers.target llama-tier-fast llama-tier-deep llama-tier-fast.socket llama-tier-deep.socket"
    return set(ssh(f"systemctl is-active {units}").stdout.split()) == {"active"}


def wait_until_serving(seconds: float) -> float:
    began = time.monotonic()
    while not serving():
        assert time.monotonic() - began < seconds, ssh(f"systemctl status {UNIT} 'llama-tier*'").stdout
        time.sleep(0.5)
    return time.monotonic() - began


def left_behind() -> str:
    return ssh_ok(
        "ls /etc/llama-tiers/tiers/trial.json /run/systemd/system/llama-tier-trial.service* "
        "/var/lib/llama-tiers/trial/before.json 2>/dev/null; true"
    )


@contextmanager
def slow_card() -> Iterator[None]:
    """Give the small card's processes a tenth of a processor core, however idle the machine is."""
    ssh_ok("systemctl set-property --runtime lab-gpu@1 CPUQuota=10%")
    try:
        yield
    finally:
        ssh_ok("systemctl set-property --runtime lab-gpu@1 CPUQuota=")


@contextmanager
def small_cards(big_mib: int, small_mib: int) -> Iterator[None]:
    """Have the cards be of so much memory: an allocation beyond it fails, whatever the plan believes."""
    sizes = f"s/[|]8192[|][0-9]+/|{big_mib}|0/; s/[|]3072[|][0-9]+/|{small_mib}|0/"
    ssh_ok(f"cp /etc/lab-gpus/cards /tmp/cards && sed -i -E '{sizes}' /etc/lab-gpus/cards")
    try:
        yield
    finally:
        ssh_ok("cp /tmp/cards /etc/lab-gpus/cards")


@contextmanager
def mirror_down() -> Iterator[None]:
    """Have nothing to download from."""

    def tell(word: str) -> None:
        told = run("ssh", "-F", LAB / "ssh_config", "mirror", f"systemctl {word} nginx")
        assert told.returncode == 0, told.stderr

    tell("stop")
    try:
        yield
    finally:
        tell("start")


# When the tier last stopped serving, in seconds.
STOPPED = 'date -d "$(systemctl show --timestamp=us+utc -P ActiveExitTimestamp llama-tier-deep)" +%s.%6N'


def spec_of_deep() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(ssh_ok("cat /etc/llama-tiers/tiers/deep.json"))
    return spec


def lies(spec: dict[str, Any]) -> tuple[str, list[int]]:
    """Return a spec's model, and the layers on each of its cards."""
    return spec["model"]["name"], [device["layers"] for device in spec["devices"]]


def test_every_candidate_is_tried_or_says_why_not_and_what_served_serves(checkout: Checkout) -> None:
    before = ssh_ok("cat /etc/llama-tiers/tiers/*.json")
    with slow_card():
        done = checkout.checker("trial")
    assert done.returncode == 0, done.stdout + done.stderr
    assert serving() and not left_behind()
    assert (status_of(8080, "fast"), status_of(8081, "deep")) == ("200", "200")
    assert ssh_ok("cat /etc/llama-tiers/tiers/*.json") == before
    assert "candidate 1 of 6, fast: " in done.stderr and " left" in done.stderr
    found = {
        key[1:]: (record["outcome"], record["reason"] or "") for key, record in records().items() if key[0] == "deep"
    }
    assert found[REAL, json.dumps(SPLIT)] == found["twin", json.dumps(ALONE)] == ("measured", "")
    outcome, reason = found["huge", '"auto"']
    assert outcome == "infeasible" and "RTX 3060 Ti needs" in reason
    outcome, reason = found["broken", json.dumps(ALONE)]
    assert outcome == "failed" and reason.startswith("it did not start: ")
    outcome, reason = found["absent", json.dumps(ALONE)]
    assert outcome == "failed" and "could not be fetched" in reason and "404" in reason
    on_cards = {device["uuid"] for device in records()["deep", REAL, json.dumps(SPLIT)]["evidence"]["devices"]}
    assert {BIG, SMALL} <= on_cards


def test_what_was_tried_is_not_run_again(checkout: Checkout) -> None:
    pids = main_pids()
    done = checkout.checker("trial", "--tier", "fast")
    assert done.returncode == 0, done.stdout + done.stderr
    assert main_pids() == pids
    assert "candidate" not in done.stderr


def test_the_decision_is_served_changed_and_reverted(checkout: Checkout) -> None:
    speeds = {
        key: record["evidence"]["completion"]["generation_tokens_per_second"]
        for key, record in records().items()
        if record["outcome"] == "measured"
    }
    slow = speeds.pop(("deep", REAL, json.dumps(SPLIT)))
    quick = min(speeds.values())
    print(f"tokens/s with one card slowed down: {slow}, without that card at least {quick}")
    assert 0 < 2 * slow < quick
    by_the_inventory = lies(spec_of_deep())
    assert by_the_inventory == (REAL, [14, 5])
    acceptable = (slow * quick) ** 0.5
    checkout.accept(acceptable)
    checkout.commit("what is acceptable")
    told = checkout.checker("decide", "--dry-run", "--evidence", str(LAB / "report/evidence"))
    assert told.returncode == 0, told.stdout + told.stderr
    too_slow = f"{REAL} (14,5) would be chosen but for: tokens/s {round(slow, 2):.1f}, wanted at least {acceptable:g}"
    assert too_slow in " ".join(told.stdout.split())

    first = checkout.decide("multi-gpu")
    decided = first["tiers"]["deep"]
    assert (first["policy"], decided["model"], decided["placement"]) == ("single-gpu", "twin", ALONE)
    checkout.commit("the first decision")
    written = checkout.decision.read_text()
    file = ssh_ok(f"ls /var/lib/llama-tiers/models/*/{TWIN_FILE}").strip()
    ssh_ok(f"rm -r $(dirname {file})")
    said = checkout.site()
    assert "decided by policy single-gpu" in said
    fetched, stopped = ssh_ok(f"stat -c %.6Y {file}; {STOPPED}").split()
    assert float(fetched) < float(stopped), "what served has served while the new model was fetched"
    status = (LAB / "report/STATUS.md").read_text()
    assert "Policy single-gpu; acceptable are" in status
    assert "- [x] The decision is served: policy single-gpu" in status
    assert lies(spec_of_deep()) == ("twin", [19])
    assert [device["uuid"] for device in spec_of_deep()["devices"]] == first["tiers"]["deep"]["uuids"]
    assert status_of(8081, "deep") == "200"
    checkout.verify()

    second = checkout.decide("max-quality")
    decided = second["tiers"]["deep"]
    assert (second["policy"], decided["model"], decided["placement"]) == ("max-quality", REAL, SPLIT)
    checkout.commit("the second decision")
    assert "decided by policy max-quality" in checkout.site()
    assert lies(spec_of_deep()) == (REAL, [14, 5])
    checkout.verify()

    checkout.git("revert", "--no-edit", "HEAD")
    assert checkout.decision.read_text() == written
    with mirror_down():
        checkout.site()
        assert lies(spec_of_deep()) == ("twin", [19])
        assert serving()

        checkout.git("revert", "--no-edit", "HEAD~2")
        assert not checkout.decision.exists()
        checkout.site()
        assert lies(spec_of_deep()) == by_the_inventory
    checkout.verify()
    checkout.git("revert", "--no-edit", "HEAD")
    assert checkout.decision.read_text() == written


def test_a_decision_of_what_is_gone_does_not_bar_the_way_back(checkout: Checkout) -> None:
    written, before = checkout.decision.read_text(), spec_of_deep()
    release = Path(before["engine"]["release"]).name
    copied = f"cp -a {release} {release}-2 && sed -i 's/{release}/{release}-2/' {release}-2/release.json"
    ssh_ok(f"cd {RELEASES} && {copied}")
    words = yaml.safe_load(written)
    words["llama_tiers_decision"]["tiers"]["deep"]["model"] = "gone"
    checkout.decision.write_text(yaml.safe_dump(words))
    try:
        refused = checkout.run("ansible-playbook", "-i", str(checkout.inventory), "site.yml")
        assert refused.returncode == 2 and "none of the inventory's candidates" in refused.stdout, refused.stdout[
            -3000:
        ]
        done = checkout.run(
            "ansible-playbook", "-i", str(checkout.inventory), "playbooks/rollback.yml",
            "-e", f"llama_cpp_rollback_release={release}-2",
        )  # fmt: skip
    finally:
        checkout.decision.write_text(written)
    assert done.returncode == 0, done.stdout[-3000:]
    after = spec_of_deep()
    assert after["engine"]["release"] == f"{RELEASES}/{release}-2"
    assert (after["model"], after["placement"]) == (before["model"], before["placement"])
    assert serving() and status_of(8081, "deep") == "200"

    checkout.site()
    assert lies(spec_of_deep()) == ("twin", [19])


def test_what_neither_card_holds_alone_is_tried_decided_and_served_on_both(checkout: Checkout) -> None:
    wide = checkout.beside("wide")
    variables = wide.inventory / "group_vars/gpu_hosts/main.yml"
    words = yaml.safe_load(variables.read_text())
    # Sixteen requests at once: more for their contexts than for the model itself.
    deep = words["tiers"][1] | {"context": 163840, "parallel": 16}
    deep["candidates"] = [{"model": REAL, "placement": ALONE}, {"model": REAL}]
    variables.write_text(yaml.safe_dump(words | {"tiers": [deep]}))
    wide.accept(1)
    with small_cards(800, 700):
        done = wide.checker("trial")
        assert done.returncode == 0, done.stdout + done.stderr
        assert serving() and not left_behind()
        alone, both = records()["deep", REAL, json.dumps(ALONE)], records()["deep", REAL, '"auto"']
        assert alone["outcome"] == "infeasible" and "RTX 3060 Ti needs" in alone["reason"]
        assert both["outcome"] == "measured", both["reason"]
        held = {device["uuid"]: device["process_mib"] for device in both["evidence"]["devices"]}
        assert held[BIG] < 800 and held[SMALL] < 700 and held[BIG] + held[SMALL] > 800, held
        decided = wide.decide("multi-gpu")
        assert (decided["policy"], decided["tiers"]["deep"]["placement"]) == ("multi-gpu", "auto")
        wide.site()
        assert [device["uuid"] for device in spec_of_deep()["devices"]] == [BIG, SMALL]
        assert spec_of_deep()["placement"]["parallel"] == 16
        wide.verify()
    checkout.site()
    assert lies(spec_of_deep()) == ("twin", [19])
    assert serving()


@contextmanager
def held_at_the_last_candidate(checkout: Checkout, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Have a trial of deep stand still at its last candidate, whose readiness does not end."""
    hold, drop_ins = "/etc/llama-tiers-hold", "/etc/systemd/system/llama-tier-trial.service.d"
    script = "if grep -q '\"twin\"' /etc/llama-tiers/tiers/trial.json; then sleep 86399; fi"
    ssh_ok(
        f"mkdir -p {drop_ins} && printf '[Service]\nExecStartPost=/bin/sh {hold}\n' >{drop_ins}/hold.conf && "
        f"echo {shlex.quote(script)} >{hold} && systemctl daemon-reload && rm -rf /var/lib/llama-tiers/trials"
    )
    # Ansible alone, so that nobody is left to follow the trial when it ends.
    alone = ("ansible-playbook", "-i", str(checkout.inventory), "playbooks/trial.yml", "-e", "trial_tier=deep")
    process = checkout.start(*(command or alone))
    try:
        while ssh("pgrep -f '[s]leep 86399'").returncode:
            assert process.poll() is None, (checkout.root / "out").read_text()
            time.sleep(0.5)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        ssh_ok(f"rm -rf {drop_ins} {hold}; systemctl daemon-reload")


def kept_of_deep() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the records that the host has of candidates that ran, by model and placement."""
    documents = ssh_ok("cd /var/lib/llama-tiers/trials; for file in deep-*; do tr -d '\\n' <$file; echo; done")
    found = [json.loads(line) for line in documents.splitlines()]
    return {(each["model"], json.dumps(each["placement"])): each for each in found if each["spec"]}


def finished_before_the_last() -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the host has kept of a trial that was cut off in its last candidate."""
    found = kept_of_deep()
    assert {key: each["outcome"] for key, each in found.items()} == {
        (REAL, json.dumps(SPLIT)): "measured",
        ("broken", json.dumps(ALONE)): "failed",
    }
    return found


def test_a_controller_that_dies_leaves_what_served_before(checkout: Checkout) -> None:
    with held_at_the_last_candidate(checkout) as process:
        os.killpg(process.pid, 9)
        assert wait_until_serving(60) > 1
        assert not left_behind()
    said = ssh_ok(f"journalctl -u {UNIT} -o cat --no-pager | tail -20")
    assert "nobody has followed this trial for 30 s" in said

    the_next_run_goes_on(checkout)


def the_next_run_goes_on(checkout: Checkout) -> None:
    """Try what was cut off, and nothing that had finished."""
    finished = finished_before_the_last()
    done = checkout.checker("trial", "--tier", "deep")
    assert done.returncode == 0, done.stdout + done.stderr
    found = kept_of_deep()
    assert found.pop(("twin", json.dumps(ALONE)))["outcome"] == "measured"
    assert found == finished


def test_ctrl_c_ends_a_trial_and_what_served_serves(checkout: Checkout) -> None:
    command = (sys.executable, "-m", "checker.cli", "trial", "-i", str(checkout.inventory), "--tier", "deep")
    with held_at_the_last_candidate(checkout, *command) as process:
        assert not serving()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        wait_until_serving(60)
        assert not left_behind()
    assert "within 30 s each host ends its trial" in (checkout.root / "out").read_text()
    finished_before_the_last()


def test_a_candidate_that_hangs_is_given_up(checkout: Checkout) -> None:
    process = checkout.start(
        "ansible-playbook", "-i", str(checkout.inventory), "playbooks/trial.yml",
        "-e", "trial_again=true", "-e", "trial_tier=fast", "-e", "trial_limit_s=20", "-e", "trial_depth=whole",
    )  # fmt: skip
    while ssh("systemctl is-active llama-tier-trial").stdout.strip() != "active":
        assert process.poll() is None, (checkout.root / "out").read_text()
    ssh_ok("systemctl kill --signal=STOP llama-tier-trial")
    # As long as it is given, and a minute.
    wait_until_serving(20 + 60)
    process.wait(timeout=600)
    assert process.returncode == 0, (checkout.root / "out").read_text()
    assert serving() and not left_behind()
    (record,) = [record for key, record in records().items() if key[0] == "fast"]
    assert record["outcome"] == "failed"
    assert "was not done after 20 s" in record["reason"]

    done = checkout.checker("trial", "--tier", "fast")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = [record for key, record in records().items() if key[0] == "fast"]
    assert record["outcome"] == "measured"


def test_a_full_disk_is_the_candidates_failure(checkout: Checkout) -> None:
    """Even if it is the one that was decided, and the decision of another tier is of a candidate that is gone."""
    before = checkout.decision.read_text()
    words = yaml.safe_load(before)
    words["llama_tiers_decision"]["tiers"]["deep"]["model"] = "broken"
    words["llama_tiers_decision"]["tiers"]["fast"]["placement"] = {"ubatch_size": 64}
    checkout.decision.write_text(yaml.safe_dump(words))
    ssh_ok("rm -rf /var/lib/llama-tiers/trials && mkdir -p /var/lib/llama-tiers/trials")
    folder = ssh_ok(f"dirname $(ls /var/lib/llama-tiers/models/*/{BROKEN_FILE})").strip()
    small = f"{Path(folder).parent}/{'ab' * 6}"
    ssh_ok(
        f"rm -r {folder} && mkdir -p {folder} {small} && "
        f"mount -t tmpfs -o size=600m none {folder} && mount -t tmpfs -o size=8m none {small}"
    )
    try:
        # With a mirror that gives 8 MiB a second, so that somebody else takes the room in the middle of it.
        process = checkout.start(
            "ansible-playbook", "-i", str(checkout.inventory), "playbooks/trial.yml",
            "-e", "trial_tier=deep", "-e", "llama_tiers_mirror=http://mirror/slow",
        )  # fmt: skip
        while ssh(f"ls {folder}/*.part").returncode:
            assert process.poll() is None, (checkout.root / "out").read_text()
        ssh(f"head -c 600m /dev/zero >{folder}/somebody-elses")
        process.wait(timeout=600)
    finally:
        ssh_ok(f"umount {folder} {small}")
        checkout.decision.write_text(before)
    assert process.returncode == 0, (checkout.root / "out").read_text()
    assert serving()
    reasons = {model: record["reason"] for (_, model, _), record in records().items() if model in ("broken", "absent")}
    assert all("could not be fetched" in reason for reason in reasons.values()), reasons
    assert "No space left on device" in reasons["broken"] and "free" in reasons["absent"], reasons

    done = checkout.checker("trial", "--tier", "deep")
    assert done.returncode == 0, done.stdout + done.stderr
    (broken,) = [record for key, record in records().items() if key[1] == "broken"]
    assert broken["reason"].startswith("it did not start: "), "with room it is fetched, and tried"


def reboot() -> None:
    """Restart the host, with little time for its end: what lies in /run is gone, and what is enabled starts."""
    done = run(ROOT / "tests/lab/lab.sh", "reboot", "gpuhost", "5")
    assert done.returncode == 0, done.stderr


def seconds_from_boot_to(unit: str) -> float:
    """Return how long after the host's systemd was up a unit was active."""
    told = ssh_ok(
        f"systemctl show -P UserspaceTimestampMonotonic; systemctl show -P ActiveEnterTimestampMonotonic {unit}"
    )
    up, active = (int(each) / 1e6 for each in told.split())
    return active - up


def test_a_boot_in_the_middle_leaves_what_served_before(checkout: Checkout) -> None:
    with held_at_the_last_candidate(checkout) as process:
        reboot()
        os.killpg(process.pid, 9)
        wait_until_serving(60)
        assert seconds_from_boot_to("llama-tier-deep") < 60
        for _ in range(60):
            if not left_behind():
                break
            time.sleep(1)
        assert not left_behind()
    the_next_run_goes_on(checkout)


def test_what_nothing_refers_to_is_removed_when_asked(checkout: Checkout) -> None:
    variables = checkout.inventory / "group_vars/gpu_hosts/main.yml"
    words = yaml.safe_load(variables.read_text())
    words["tiers"][1]["candidates"] = [{"model": REAL, "placement": SPLIT}, {"model": "twin", "placement": ALONE}]
    variables.write_text(yaml.safe_dump(words))
    models = "ls /var/lib/llama-tiers/models/*/*.gguf"
    ssh_ok(f"mkdir {RELEASES}/unused-cpu-x86_64-0badcafe")
    before = ssh_ok(models).split()
    assert "nothing refers to it" in checkout.site()
    assert ssh_ok(models).split() == before
    done = checkout.run("ansible-playbook", "-i", str(checkout.inventory), "site.yml", "-e", "llama_tiers_prune=true")
    assert done.returncode == 0, done.stdout[-3000:]
    left = {Path(path).name for path in ssh_ok(models).split()}
    assert left == {"gemma-3-270m-it-Q4_K_M.gguf", TWIN_FILE}
    releases = set(ssh_ok(f"ls {RELEASES}").split())
    assert "unused-cpu-x86_64-0badcafe" not in releases
    assert {Path(spec_of_deep()["engine"]["release"]).name} <= releases
    assert Path(ssh_ok("readlink /opt/llama-tiers/current").strip()).name in releases
    assert serving()
