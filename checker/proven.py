"""The files of the tiers on this host, and copies of those with which each tier was proven.

A tier is *proven* when its unit became active (readiness included) with the inputs that lie on the host: units, tier
spec and key. The proven units and spec are kept under /var/lib/llama-tiers/proven/<tier>/, with a digest of what the
server depends on, so that a run that was cut off is finished by the next one, a second run restarts nothing, and a
failed successor is replaced by what served before. A tier is *accepted* when it passed a whole verification: the units
and spec of then are kept in accepted/ beside them, for a successor that serves and is found to be too slow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checker import tier, whole

UNITS = Path("/etc/systemd/system")
DIRECTORY = Path("/var/lib/llama-tiers/proven")
_ACCEPTED_BEFORE = "accepted.before"
_NEXT = "next"

_SERVICE_SECTION = re.compile(r"^\[Service\]$.*?(?=^\[|\Z)", re.MULTILINE | re.DOTALL)
# systemd applies it to what runs, and the plan predicts it.
_LIVE = re.compile(r"^MemoryMax=.*\n", re.MULTILINE)


def unit_files(name: str) -> list[Path]:
    """Return the unit files of a tier that are there, its server's first."""
    units = (tier.unit_of(name), *tier.Front(name).units)
    return [path for unit in units if (path := UNITS / unit).exists()]


def spec_file(name: str) -> Path:
    """Return where the spec of a tier lies."""
    return tier.DIRECTORY / f"{name}.json"


def next_key(spec: tier.TierSpec) -> Path:
    """Return where the next key of a tier waits, if there is one, until the server that knows the old one is gone."""
    return Path(spec.key_file).with_suffix(".next")


def digest(spec: tier.TierSpec) -> str:
    """Return the sha256 over what the running server depends on: its own section of the unit, its key, its spec.

    What the plan predicts is no part of it, and neither is how the unit stands to others: no reason to restart what
    serves.
    """
    unit = (UNITS / spec.unit).read_text(encoding="utf-8")
    running = json.dumps(spec.running(), sort_keys=True)
    service = _LIVE.sub("", "".join(_SERVICE_SECTION.findall(unit)))
    key = next_key(spec) if next_key(spec).exists() else Path(spec.key_file)
    sha256 = hashlib.sha256()
    for content in (service.encode(), key.read_bytes(), running.encode()):
        sha256.update(hashlib.sha256(content).digest())
    return sha256.hexdigest()


def proven_digest(name: str) -> str:
    """Return the digest with which a tier was proven; empty when it never was."""
    path = DIRECTORY / name / "digest"
    return path.read_text().strip() if path.exists() else ""


def exists(name: str) -> bool:
    """Whether a tier was ever proven on this host."""
    return (DIRECTORY / name / "spec.json").exists()


def is_as_proven(name: str, path: Path) -> bool:
    """Whether a unit file of a tier is the one with which it was proven."""
    copy = DIRECTORY / name / "units" / path.name
    return copy.exists() and copy.read_bytes() == path.read_bytes()


def has_proven_units(name: str) -> bool:
    """Whether all unit files of a tier, and no other, are those with which it was proven."""
    files = unit_files(name)
    kept = {path.name for path in (DIRECTORY / name).glob("units/*")}
    return kept == {path.name for path in files} and all(is_as_proven(name, path) for path in files)


def is_remembered(spec: tier.TierSpec) -> bool:
    """Whether a tier is proven, and all its files are those that are kept of it."""
    return (
        proven_digest(spec.name) == digest(spec)
        and (DIRECTORY / spec.name / "spec.json").read_bytes() == spec_file(spec.name).read_bytes()
        and has_proven_units(spec.name)
    )


def remember(spec: tier.TierSpec) -> None:
    """Keep the files of a tier as those with which it was proven."""
    beside = DIRECTORY / spec.name / "next.new"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "units").mkdir(parents=True)
    for path in unit_files(spec.name):
        _copy(path, beside / "units" / path.name)
    _copy(spec_file(spec.name), beside / "spec.json")
    whole.write(beside / "digest", digest(spec) + "\n")
    beside.rename(beside.with_name(_NEXT))
    finish()


def finish() -> None:
    """Take what is to be kept of each tier into its place, also where a run was cut off as it did so.

    Units and spec are to be of one proof: those of another are no way back.
    """
    for following in DIRECTORY.glob(f"*/{_NEXT}"):
        directory = following.parent
        if (following / "units").exists():
            shutil.rmtree(directory / "units", ignore_errors=True)
            (following / "units").rename(directory / "units")
        for path in following.iterdir():
            path.replace(directory / path.name)
        (directory / "given-up.json").unlink(missing_ok=True)
        following.rmdir()


def _copy(path: Path, to: Path) -> None:
    whole.write(to, path.read_text(encoding="utf-8"))


def put_back(name: str) -> None:
    """Lay out the units and the spec that were proven last, where there are any."""
    _lay_out(name, DIRECTORY / name)


def put_back_port(name: str) -> None:
    """Lay out the sockets of a tier, and where it listens by its spec, as they were proven; its server is another."""
    front = tier.Front(name)
    for unit in (front.socket, front.stand_in_socket):
        kept = DIRECTORY / name / "units" / unit
        if kept.exists():
            _copy(kept, UNITS / unit)
    before = _read_spec(DIRECTORY / name / "spec.json")
    if before is not None:
        spec = replace(tier.load(name), bind=before.bind, port=before.port, allow=before.allow, tls=before.tls)
        whole.write(spec_file(name), json.dumps(spec.to_json(), indent=2) + "\n")


def accept(name: str) -> None:
    """Keep the units and the spec with which a tier was proven last as those that were accepted."""
    finish()
    directory, beside, kept = DIRECTORY / name, DIRECTORY / name / "accepted.new", DIRECTORY / name / "accepted"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(directory / "units", beside / "units")
    shutil.copy2(directory / "spec.json", beside)
    # A folder that is not empty cannot be replaced in one step, and the way back is to be there at any moment.
    before = directory / _ACCEPTED_BEFORE
    if kept.exists():
        shutil.rmtree(before, ignore_errors=True)
        kept.rename(before)
    beside.rename(kept)
    shutil.rmtree(before, ignore_errors=True)


def _accepted(name: str) -> Path:
    """Return the folder of what was accepted last, which is aside where a run was cut off as it kept the next."""
    kept = DIRECTORY / name / "accepted"
    return kept if kept.exists() else kept.with_name(_ACCEPTED_BEFORE)


def accepted(name: str) -> tier.TierSpec | None:
    """Return the spec with which a tier was accepted last; None when it never was, or that cannot be read."""
    return _read_spec(_accepted(name) / "spec.json")


def put_back_accepted(name: str) -> None:
    """Lay out the units and the spec that were accepted last, where there are any."""
    _lay_out(name, _accepted(name))


def _lay_out(name: str, directory: Path) -> None:
    if not (directory / "spec.json").exists():
        return
    # What is there is replaced, then the rest removed: the tier has its unit at any moment.
    kept = list((directory / "units").iterdir())
    for path in kept:
        _copy(path, UNITS / path.name)
    _copy(directory / "spec.json", spec_file(name))
    for path in unit_files(name):
        if path.name not in {each.name for each in kept}:
            path.unlink()


def give_up(spec: tier.TierSpec, reason: str) -> None:
    """Keep with what, and why, a tier failed that has a fallback to answer in its place."""
    (DIRECTORY / spec.name).mkdir(parents=True, exist_ok=True)
    said = json.dumps({"digest": digest(spec), "reason": reason}, indent=2)
    (DIRECTORY / spec.name / "given-up.json").write_text(said + "\n", encoding="utf-8")


def given_up(spec: tier.TierSpec) -> str | None:
    """Return why a tier was given up as it is now; None when it was not, or something has changed since."""
    try:
        told = json.loads((DIRECTORY / spec.name / "given-up.json").read_text(encoding="utf-8"))
        return str(told["reason"]) if told["digest"] == digest(spec) else None
    except (OSError, ValueError, KeyError):
        return None


def specs() -> dict[str, Any]:
    """Return the spec documents with which tiers were proven last, by tier; what cannot be read is left out."""
    found = {}
    for path in sorted(DIRECTORY.glob("*/spec.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def runs(spec: tier.TierSpec) -> bool:
    """Whether a tier was proven with a server that is the one of a spec."""
    found = _read_spec(DIRECTORY / spec.name / "spec.json")
    return found is not None and found.running() == spec.running()


def _read_spec(path: Path) -> tier.TierSpec | None:
    with contextlib.suppress(OSError, ValueError, tier.TierSpecError):
        return tier.from_json(json.loads(path.read_text(encoding="utf-8")))
    return None


def release(name: str) -> str | None:
    """Return the release with which a tier was proven, None when it never was."""
    try:
        return str(specs()[name]["engine"]["release"])
    except (KeyError, TypeError):
        return None


def leftovers(names: Sequence[str]) -> list[str]:
    """Name the tiers that have files on this host and no place among `names`, those of an interrupted removal too."""
    units = {path.stem.removeprefix("llama-tier-") for path in UNITS.glob(tier.unit_of("*"))}
    units = {name for name in units if not name.endswith(tier.RESERVED_ENDINGS)}
    return sorted((units | {path.stem for path in tier.DIRECTORY.glob("*.json")}) - set(names))


def remove(name: str) -> None:
    """Remove all files of a tier, its key among them; its spec last, by which the rest is found."""
    with contextlib.suppress(tier.TierSpecError):
        spec = tier.load(name)
        for key in (next_key(spec), Path(spec.key_file)):
            key.unlink(missing_ok=True)
    for path in unit_files(name):
        path.unlink()
    shutil.rmtree(DIRECTORY / name, ignore_errors=True)
    spec_file(name).unlink(missing_ok=True)
