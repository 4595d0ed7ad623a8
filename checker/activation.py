"""Bring the tiers of this host to what their files say, one at a time, and go back where a successor fails.

What is proven (`checker.proven`) is left alone. A release that fails with one tier is taken from every tier: those that
this run moved to it go back to what they were proven with, and their release (`checker.releases`) is current again.

Servers first, ports after: a port is held by a socket of systemd's, which goes on taking connections while the server
behind it is replaced, so that it is opened, or moved, when every server is proven.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from checker import hardware, proven, releases, restoring, systemd, tier, turns

_LOCK = Path("/run/llama-tiers/activation.lock")
_RESUME = "llama-tiers-resume.service"
_POLL_S = 0.5

Report = Callable[[str], None]


class ActivationError(Exception):
    """A tier did not become active; the message says why and what serves now."""


class BusyError(Exception):
    """Somebody else starts or stops tiers of this host."""


def _held_mib(spec: tier.TierSpec, pid: int) -> float:
    held = 0.0
    for uuid in {device.uuid for device in spec.devices}:
        held += sum(process.used_mib or 0 for process in hardware.processes(uuid) if process.pid == pid)
    return held


def _loading(spec: tier.TierSpec, state: systemd.UnitState, seconds: float) -> str:
    try:
        held = _held_mib(spec, state.main_pid) if state.main_pid else 0.0
    except hardware.HardwareError:
        held = 0.0
    planned = sum(device.predicted_mib or device.weights_mib or 0 for device in spec.devices)
    of = f" of {planned:,.0f}" if planned else ""
    return f"{spec.name}: loading {spec.model.name}, {held:,.0f}{of} MiB on the GPUs, {seconds:.0f} s"


def start(spec: tier.TierSpec, report: Report) -> str | None:
    """(Re)start a tier and wait until it is active; return None, or the reason why it is not."""
    try:
        systemd.reset_failed(spec.unit)
        if proven.next_key(spec).exists():
            # What it works on is finished first, which it is asked for with the key that it knows.
            systemd.stop(spec.unit)
            proven.next_key(spec).replace(spec.key_file)
        systemd.restart(spec.unit)
    except systemd.SystemdError as error:
        # Such as a unit file that systemd refuses.
        return str(error)
    began = time.monotonic()
    while True:
        state = systemd.unit_state(spec.unit)
        if state.active_state == "active":
            report(f"{spec.name}: active after {time.monotonic() - began:.1f} s")
            return None
        if state.active_state in ("failed", "inactive"):
            reason = systemd.why_failed(spec.unit)
            systemd.stop(spec.unit)
            return reason
        report(_loading(spec, state, time.monotonic() - began))
        time.sleep(_POLL_S)


def _roll_back(name: str, report: Report) -> str:
    """Put back what served before; return what serves now, as the end of a sentence."""
    if not proven.exists(name):
        _shut(name)
        return f"nothing served as {name} before, so it is down"
    # While its units are there: a fallback of the successor's may have the port.
    restoring.end(name)
    proven.put_back(name)
    systemd.daemon_reload()
    before = tier.load(name)
    reason = start(before, report)
    if reason is None:
        return f"what served before is active again ({before.model.name}, {Path(before.engine.release).name})"
    return f"what served before does not start either ({reason}), so {name} is down"


def _held(name: str) -> turns.Hold | None:
    """Return what a tier holds now: by what it was proven with, else by its files; None when it does not serve."""
    if systemd.unit_state(tier.unit_of(name)).active_state in ("inactive", "failed"):
        return None
    for path in (proven.DIRECTORY / name / "spec.json", proven.spec_file(name)):
        with contextlib.suppress(OSError, ValueError, tier.TierSpecError):
            return turns.hold(tier.from_json(json.loads(path.read_text(encoding="utf-8"))))
    return None


@dataclass(frozen=True)
class Outcome:
    """What an activation changed: tiers that were (re)started, in order, and those that were removed.

    `moved` are those of which only what is around the server changed (its port, its rivals). `degraded` says of each
    tier that was given up for its fallback why.
    """

    activated: tuple[str, ...]
    retired: tuple[str, ...]
    moved: tuple[str, ...] = ()
    degraded: Mapping[str, str] = field(default_factory=dict)


def activate(
    names: Sequence[str],
    room_mib: Mapping[str, float],
    report: Report,
    *,
    retry: bool = False,
    spared: Collection[str] = (),
) -> Outcome:
    """Bring every named tier up as its files say, and remove every other; ActivationError names the first that fails.

    Those that are `spared` are neither: what there is of them stays as it is.
    `room_mib` is what tiers may hold of each card by the plan, by UUID; a card that is not in it is not reckoned with.
    Tiers are started one at a time, so that at most one of those that serve is down at any moment; only one that holds
    memory without which another cannot start has to go down before its turn, and the order is one in which the fewest
    have to (`checker.turns`). One on demand is started to be proven, and pinned tiers that it stopped come back. After
    a failure every tier that is not proven has the units and spec again with which it was proven, and what was stopped
    serves again. A tier that was never proven and has a fallback is given up instead, and not tried again before
    something changes, or `retry`. A second call waits for the first to end.
    """
    with alone():
        try:
            return _activate(names, room_mib, report, retry=retry, spared=spared)
        except systemd.SystemdError:
            leave_unproven_release()
            raise


@contextlib.contextmanager
def alone(patience_s: float | None = None) -> Iterator[None]:
    """Keep every other call that starts or stops tiers of this host waiting until the block ends.

    BusyError after so many seconds in which another one had not ended; without them it is waited for.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("w") as lock:
        if patience_s is None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        else:
            _lock_within(lock, patience_s)
        yield


def _lock_within(lock: IO[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise BusyError(
                    "a trial, a run of site.yml or another measurement starts and stops tiers of this host just now, "
                    f"and was waited for in vain for {seconds:g} s; try again when it is done"
                ) from None
            time.sleep(_POLL_S)


def _activate(
    names: Sequence[str],
    room_mib: Mapping[str, float],
    report: Report,
    *,
    retry: bool,
    spared: Collection[str] = (),
) -> Outcome:
    proven.finish()
    try:
        # A trial that was cut off has left us the lock: nobody else starts what it has stopped, which is the way back.
        restoring.restore()
    except (systemd.SystemdError, OSError) as error:
        report(str(error))
    # Pinned ones first: those on demand stop their rivals to be proven.
    specs = sorted((tier.load(name) for name in names), key=lambda spec: not spec.pinned)
    others = proven.leftovers(names)
    leftovers = [name for name in others if name not in spared]
    held = {name: hold for name in (*names, *others) if (hold := _held(name))}
    for name in leftovers:
        report(f"{name}: is in the inventory no longer, stopping")
        _shut(name)
    for spec in specs:
        if spec.fallback is None:
            _without_stand_in(spec.name)
    around = [spec.name for spec in specs if proven.exists(spec.name) and not proven.has_proven_units(spec.name)]
    units = (tier.SLICE, *(spec.unit for spec in specs))
    if around or leftovers or any(systemd.needs_daemon_reload(unit) for unit in units):
        systemd.daemon_reload()
    given_up = {} if retry else {spec.name: reason for spec in specs if (reason := _given_up(spec))}
    changes = [
        turns.Change(spec.name, held.get(spec.name), turns.hold(spec))
        for spec in specs
        if spec.name not in given_up and _is_to_start(spec, retry=retry)
    ]
    changed = {change.name for change in changes}
    for spec in specs:
        # What one on demand holds in its old place nobody reckons with, and it has to start anew in any case.
        if not spec.pinned and spec.name in changed and systemd.is_active(spec.unit):
            systemd.stop(spec.unit)
    staying = [hold for name, hold in held.items() if name not in changed and name not in leftovers]
    leaving = {name: held[name] for name in leftovers if name in held}
    room = turns.room(room_mib, list(held.values()), staying)
    way_back = _WayBack(
        unchanged=tuple(name for name in around if name not in changed),
        pinned=tuple(spec.name for spec in specs if spec.pinned and spec.name in held),
        ports=_on_other_ports(specs),
        releases=_on_other_releases([spec for spec in specs if spec.name in changed]),
    )
    # A start that fails closes its port for a while, on a host's first run too: that needs the target.
    systemd.start_alone(tier.TARGET)
    try:
        order = _start_in_turn(changes, leaving, room, given_up, way_back, report)
        _bring_back([spec for spec in specs if spec.pinned and spec.name not in given_up], report)
    except ActivationError as error:
        before = [tier.load(name) for name in (*names, *leftovers) if proven.exists(name)]
        said = [str(error)]
        try:
            said += _open(before).values()
            _at_boot(before)
        except systemd.SystemdError as unable:
            # Such as one that waits in vain for what loads again: no reason to say nothing of what went wrong before.
            said.append(str(unable))
        raise ActivationError("; ".join(said)) from error
    up = [spec for spec in specs if spec.name not in given_up]
    closed = _open(up)
    wrong = list(closed.values())
    down: Collection[str] = ()
    if closed.keys() & way_back.ports:
        down, said = _move_back([spec for spec in up if spec.name in way_back.ports])
        wrong += said
    up = [spec for spec in up if spec.name not in down]
    _at_boot([spec for spec in specs if spec.name not in down])
    for name in given_up:
        systemd.start(tier.Front(name).cooldown)
    for spec in up:
        # What is predicted of a tier that goes on serving may have changed, and what is around it.
        if not proven.is_remembered(spec):
            proven.remember(spec)
    for name in leftovers:
        proven.remove(name)
    if leftovers:
        systemd.daemon_reload()
    restoring.forget()
    if wrong:
        raise ActivationError("; ".join(wrong))
    return Outcome(
        activated=order,
        retired=tuple(leftovers),
        moved=tuple(name for name in around if name not in order and name not in given_up),
        degraded=given_up,
    )


def go_back(names: Sequence[str], report: Report) -> None:
    """Have all tiers of this host serve as they were accepted last; ActivationError names the first that fails.

    All of them, for by now one may have the place, the port or the release of another. One that was never accepted
    stays as it is. After a failure what served until now serves again, as after one of `activate`.
    """
    with alone():
        for name in names:
            proven.put_back_accepted(name)
        before = releases.linked()
        releases.go_back_to({Path(tier.load(name).engine.release).name for name in names})
        # What was accepted was resident at once; what never was stays, and has to have room beside it.
        room_mib: dict[str, float] = {}
        for name in names:
            for card, mib in turns.hold(tier.load(name)).mib.items():
                room_mib[card] = room_mib.get(card, 0.0) + mib
        try:
            _activate(names, room_mib, report, retry=False)
        except (ActivationError, systemd.SystemdError):
            if before:
                releases.make_current(before[-1])
            # It may have failed when all are back already.
            leave_unproven_release()
            raise


def take_release(name: str) -> None:
    """Make a release the current one.

    One that a run which was cut off has left current, and that nobody is proven with, is none to go back to.
    """
    if releases.linked()[-1:] != (name,):
        leave_unproven_release()
    releases.make_current(name)


def leave_unproven_release() -> None:
    """Make the release with which tiers are proven the current one again where nobody is with the one that is."""
    releases.go_back_to({Path(release).name for name in proven.specs() if (release := proven.release(name))})


def _without_stand_in(name: str) -> None:
    """Stop and remove what let a fallback answer in a tier's place, which has none any more."""
    front = tier.Front(name)
    left = [path for path in proven.unit_files(name) if path.name in (front.stand_in_socket, front.stand_in)]
    if left:
        systemd.stop(*(path.name for path in left))
    for path in left:
        path.unlink()


def _given_up(spec: tier.TierSpec) -> str | None:
    """Return why a tier was given up that is as it was then; None when it serves all the same, or was not."""
    return None if systemd.is_active(spec.unit) else proven.given_up(spec)


def _is_to_start(spec: tier.TierSpec, *, retry: bool) -> bool:
    if proven.proven_digest(spec.name) != proven.digest(spec):
        return True
    if _is_replaced(spec):
        return retry
    if retry and systemd.has_failed(spec.unit, systemd.unit_state(spec.unit)):
        return True
    return (spec.pinned and not systemd.is_active(spec.unit)) or systemd.is_active(tier.Front(spec.name).cooldown)


def _is_replaced(spec: tier.TierSpec) -> bool:
    """Whether a tier has failed and its fallback answers on its port."""
    return (
        bool(spec.fallback) and not systemd.is_active(spec.unit) and systemd.is_active(tier.Front(spec.name).cooldown)
    )


def _on_other_ports(specs: Sequence[tier.TierSpec]) -> set[str]:
    """Name the tiers that move to another port, and those that are new on a port that another one has."""
    holders = {document.get("port"): name for name, document in proven.specs().items()}
    return {
        spec.name
        for spec in specs
        if holders.get(spec.port, spec.name) != spec.name
        or (
            proven.exists(spec.name) and not proven.is_as_proven(spec.name, proven.UNITS / tier.Front(spec.name).socket)
        )
    }


def _on_other_releases(specs: Sequence[tier.TierSpec]) -> dict[str, str]:
    moving = (spec for spec in specs if proven.release(spec.name) not in (None, spec.engine.release))
    return {spec.name: spec.engine.release for spec in moving}


@dataclass(frozen=True)
class _WayBack:
    """What goes back, besides the tiers that had their turn, when one of them fails.

    `unchanged` tiers have only units that changed around their servers; `pinned` ones served before. Tiers on other
    `ports` stay there only together, for a port has one holder, and so do those that move to the same of the `releases`
    (by tier).
    """

    unchanged: tuple[str, ...]
    pinned: tuple[str, ...]
    ports: Collection[str]
    releases: Mapping[str, str]


def _start_in_turn(
    changes: Sequence[turns.Change],
    leaving: Mapping[str, turns.Hold],
    room_mib: Mapping[str, float],
    given_up: dict[str, str],
    way_back: _WayBack,
    report: Report,
) -> tuple[str, ...]:
    """Start what has changed and return its names in the order of their turns.

    A tier is remembered as proven as soon as nobody can need its place for the way back: those whose turn is yet to
    come, and those that are `leaving` and have stopped, may have to serve again as before. Tiers that move to the same
    release are remembered together, after the last of them: all of them are on it or none is. Those that move to
    another port are remembered when it is open, which is not here. One that fails, was never proven and has a fallback
    goes to those that are `given_up`.
    """
    order = turns.order(changes, room_mib)
    by_name = {change.name: change for change in changes}
    started: list[turns.Change] = []
    proven_holds: list[turns.Hold] = []
    stopped: set[str] = set()
    for index, turn in enumerate(order):
        stopped |= set(turn.stop)
        reason = _take(turn, report)
        spec = tier.load(turn.name)
        if reason is not None and spec.fallback and not proven.exists(turn.name):
            report(f"{turn.name}: {reason}; {spec.fallback} answers in its place")
            proven.give_up(spec, reason)
            given_up[turn.name] = reason
            continue
        if reason is None:
            started.append(by_name[turn.name])
        unproven = [by_name[other.name] for other in order[index + (reason is None) :]]
        # Nobody comes back any more when the last turn has gone well.
        returning = [*leaving.values(), *(change.old for change in unproven if change.old)] if unproven else []
        waited_for = {way_back.releases[change.name] for change in unproven if change.name in way_back.releases}
        together = {name for name, release in way_back.releases.items() if release in waited_for}
        back = turns.going_back(started, returning, proven_holds, room_mib, anyway={*way_back.ports, *together})
        for change in started:
            if change.name not in back:
                proven.remember(tier.load(change.name))
                proven_holds.append(change.new)
        started = [change for change in started if change.name in back]
        if reason is not None:
            later = [change.name for change in unproven[1:]]
            again = [*leaving, *(name for name in later if name in stopped)]
            now = _undo(turn.name, started, [*later, *way_back.unchanged], again, way_back, report)
            raise ActivationError(f"tier {turn.name} did not become ready: {reason}; {now}")
    for change in started:
        # The last turns were given up, so that nobody needs its place.
        if change.name not in way_back.ports:
            proven.remember(tier.load(change.name))
    return tuple(turn.name for turn in order if turn.name not in given_up)


def _take(turn: turns.Turn, report: Report) -> str | None:
    """Stop who has to, and start the tier whose turn it is; return None, or the reason why it is not active."""
    try:
        for name in turn.stop:
            report(f"{name}: stopping, the new {turn.name} needs its memory")
            systemd.stop(tier.unit_of(name))
        return start(tier.load(turn.name), report)
    except systemd.SystemdError as error:
        # What has stopped by now is to serve again.
        return str(error)


def _bring_back(pinned: Sequence[tier.TierSpec], report: Report) -> None:
    """Start the pinned tiers that those on demand have stopped to be proven; ActivationError when one does not."""
    for spec in pinned:
        if not systemd.is_active(spec.unit) and not _is_replaced(spec):
            reason = start(spec, report)
            if reason is not None:
                raise ActivationError(f"tier {spec.name} did not come back: {reason}; it is down")


def _open(specs: Sequence[tier.TierSpec]) -> dict[str, str]:
    """Have the port of each tier open, on its socket; return by tier what is wrong where that cannot be.

    Sockets that move close first: two may have exchanged their ports. A tier that failed and has a fallback keeps it.
    """
    closed = []
    wrong = {}
    for spec in specs:
        front = tier.Front(spec.name)
        if _is_replaced(spec):
            continue
        moved = not proven.is_as_proven(spec.name, proven.UNITS / front.socket)
        if moved or not systemd.is_active(front.socket):
            systemd.stop(front.cooldown, front.socket, front.proxy)
            closed.append(spec)
    for spec in closed:
        try:
            systemd.start(tier.Front(spec.name).socket)
        except systemd.SystemdError as error:
            # Such as one that a stranger took while the servers were loaded: no reason to leave the others closed.
            wrong[spec.name] = (
                f"tier {spec.name}: port {spec.port} cannot be opened ({error}); free it, or give the tier another port"
            )
    return wrong


def _move_back(moved: Sequence[tier.TierSpec]) -> tuple[list[str], list[str]]:
    """Have the tiers that were to move answer at the ports that they had, with the servers that they have now.

    One that is new may have the port of another one: it goes down. Return the names of those, and what there is to say.
    """
    new = [spec.name for spec in moved if not proven.exists(spec.name)]
    old = [spec.name for spec in moved if spec.name not in new]
    for name in new:
        _shut(name)
    # All are closed before the first one opens: two may have exchanged their ports.
    for name in old:
        systemd.stop(tier.Front(name).socket)
        proven.put_back_port(name)
    systemd.daemon_reload()
    closed = _open([tier.load(name) for name in old])
    there = [name for name in old if name not in closed]
    said = list(closed.values())
    if there:
        said.append(f"at the port of before: {', '.join(there)}")
    if new:
        said.append(f"down: {', '.join(new)}")
    return new, said


def _at_boot(specs: Sequence[tier.TierSpec]) -> None:
    """Have all ports opened at boot, those of tiers that were given up too, and the pinned tiers started."""
    sockets = [tier.Front(spec.name).socket for spec in specs]
    systemd.enable(tier.TARGET, _RESUME, *sockets, *(spec.unit for spec in specs if spec.pinned))
    on_demand = [spec.unit for spec in specs if not spec.pinned]
    if on_demand:
        systemd.disable(*on_demand)


def _shut(name: str) -> None:
    """Close the port of a tier and stop it, for now and at boot."""
    units = [path.name for path in proven.unit_files(name)]
    if units:
        systemd.disable(*units)
    restoring.end(name)


def _undo(
    failed: str,
    back: Sequence[turns.Change],
    later: Sequence[str],
    stopped: Sequence[str],
    way_back: _WayBack,
    report: Report,
) -> str:
    """Have everything serve again as before; return what serves now, as the end of a sentence.

    `back` were started and are in the way of what served before, or move together with others; `later` had no turn,
    `stopped` made room. A release that nobody is proven with is no longer the current one.
    """
    # One that systemd fails for is no reason to leave the others down.
    wrong: list[str] = []

    def each(do: Callable[[str], None], names: Iterable[str]) -> None:
        for name in names:
            try:
                do(tier.unit_of(name))
            except systemd.SystemdError as error:
                wrong.append(f"; {name}: {error}")

    went = [change.name for change in back]
    each(systemd.stop, went)
    leave_unproven_release()
    for name in (*later, *went):
        proven.put_back(name)
    try:
        now = _roll_back(failed, report)
    except systemd.SystemdError as error:
        now = f"what served as {failed} before cannot be brought back ({error})"
    each(lambda _: systemd.daemon_reload(), [failed])
    again = [*stopped, *(change.name for change in back if change.old)]
    each(systemd.restart, again)
    # Such as stopped for a tier on demand to be started.
    down = [name for name in way_back.pinned if name not in again and not systemd.is_active(tier.unit_of(name))]
    each(systemd.restart, [name for name in down if name != failed])
    releases = [name for name in went if name in way_back.releases]
    ports = [name for name in went if name in way_back.ports and name not in releases]
    places = [name for name in went if name not in (*releases, *ports)]
    for names, why in (
        (places, "had its place"),
        (ports, "was to move to another port"),
        (releases, "had moved to the same release"),
    ):
        if names:
            now += f"; {', '.join(names)} {why} and went back too"
    return "".join([now, *wrong])
