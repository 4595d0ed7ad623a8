"""Hold the evidence of a tier against what was promised of it. Pure: nothing here measures."""

from __future__ import annotations

from collections.abc import Iterator

from checker import memory_verdict, speed_verdict
from checker.accepted import Gate, slower
from checker.evidence import Check, Completion, Evidence, Load, Quality, Served, Stability, TlsEvidence, Verdict
from checker.findings import Finding
from checker.language import garbage
from checker.tier import Front, TierSpec, Tls
from checker.tls import Fault

# llama.cpp rounds the context of a slot up to whole blocks of this size (GGML_PAD in llama-context.cpp).
_CONTEXT_BLOCK = 256
# A request of the row allocates next to nothing of its own; a leak of a context or a slot is far more.
_GROWTH_MIB = 1.0
_MEAN_KLD = 1e-3
_SAME_TOP_SHARE = 0.99
# The check of what is no doing of the tier's server.
OVER_TLS = "TLS"
# What renews certificates by itself does so earlier.
_RENEWED_DAYS = 14


def judge(spec: TierSpec, evidence: Evidence, gate: Gate | None = None) -> Verdict:
    """Return "pass" when every check passed, else "fail" with one sentence for each that did not.

    The sentences name the tier, the device by UUID, the value, and what to do about it. What could not be measured did
    not pass; `problems` of the evidence say why it could not, and come first. `gate` is the speed that a release or
    placement of the tier has to reach; None where none was accepted before, or a slower one is allowed.
    """
    findings = tuple(_findings(spec, evidence, gate))
    failed = [finding.reason for finding in findings if not finding.check.passed]
    problems = evidence.problems
    if evidence.unit.active_state != "active":
        # Everything else fails with it, and would only hide it.
        failed, problems = failed[:1], problems[:1]
    reasons = [f"{spec.name}: {problem}" for problem in problems] + failed
    if evidence.front and evidence.front.fallback:
        # That it is down is known then, and the first finding says why.
        reasons = failed[:1]
    asleep = [f"{spec.name}: not loaded now, measured {evidence.measured_at}"] if evidence.asleep else []
    notes = [finding.note for finding in findings if finding.check.passed and finding.note]
    return Verdict(
        verdict="fail" if reasons else "pass",
        checks=tuple(finding.check for finding in findings),
        reasons=tuple(reasons),
        notes=(*asleep, *notes),
    )


def _findings(spec: TierSpec, evidence: Evidence, gate: Gate | None) -> Iterator[Finding]:
    if evidence.front and evidence.front.fallback:
        yield _degraded(spec, evidence.front.fallback, evidence.front.reason)
    yield _unit_active(spec, evidence)
    yield _reachable(spec, evidence)
    yield from _front(spec, evidence)
    if evidence.served is not None:
        yield from _right_model(spec, evidence.served)
        yield _as_fetched(spec, evidence)
    yield from memory_verdict.findings(spec, evidence)
    yield _load_time(spec, evidence)
    if evidence.completion is None:
        yield Finding(
            Check("completion", False, "an answer", "none"),
            f"{spec.name}: gave no completion: see journalctl -u {spec.unit}",
        )
    else:
        yield _text(spec, "text", evidence.completion)
        yield from speed_verdict.findings(spec, evidence, evidence.completion)
    if evidence.thorough is not None:
        if evidence.thorough.warm_completion is not None:
            yield _text(spec, "text once warm", evidence.thorough.warm_completion)
        if evidence.thorough.stability is not None:
            yield from _stability(spec, evidence.thorough.stability)
    if evidence.quality is not None:
        yield from _quality(spec, evidence.quality)
    yield from slower(spec.name, evidence, gate)


def _unit_active(spec: TierSpec, evidence: Evidence) -> Finding:
    state = evidence.unit.active_state
    return Finding(
        Check("unit active", state == "active", "active", state),
        f"{spec.name}: {spec.unit} is {state}: see journalctl -u {spec.unit}, then systemctl restart {spec.unit}",
    )


def _reachable(spec: TierSpec, evidence: Evidence) -> Finding:
    reached = evidence.served is not None
    return Finding(
        Check("reachable", reached, f"answers at {spec.local_url}", "answers" if reached else "does not answer"),
        f"{spec.name}: {spec.local_url} does not tell what it serves: see journalctl -u {spec.unit}",
    )


def _front(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    """Yield checks of what listens on the port: a stranger there may answer all questions, the fallback as well."""
    front, own = evidence.front, Front(spec.name)
    if front is None:
        return
    yield Finding(
        Check("port", front.stranger is None, own.socket, front.stranger or own.socket),
        f"{spec.name}: {front.stranger} listens on port {spec.port}: what answers there is not the tier; stop it, then "
        f"systemctl restart {own.socket}",
    )
    yield Finding(
        Check("port open", front.socket_state == "active", "active", front.socket_state),
        f"{spec.name}: {own.socket} is {front.socket_state}, so no client reaches the tier: "
        f"systemctl start {own.socket}",
    )
    if spec.tls is not None and front.tls is not None:
        yield _over_tls(spec, spec.tls, front.tls)


def _over_tls(spec: TierSpec, own: Tls, found: TlsEvidence) -> Finding:
    unit = Front(spec.name).tls
    renew = f"renew it, then systemctl reload {unit}"
    said = {
        None: "",
        Fault.NOT_OF_NOW.value: f"serves a certificate that is not valid now ({found.said}): {renew}",
        Fault.OTHER.value: f"serves another certificate than {own.certificate} ({found.said}): systemctl reload {unit}",
        Fault.UNREADABLE.value: f"was not looked at, for {found.said}, which the next start needs: put it back, "
        f"then systemctl reload-or-restart {unit}",
        Fault.NONE.value: f"serves no certificate ({found.said}): see journalctl -u {unit}, then systemctl restart "
        f"{unit}",
    }[found.fault]
    ends = f"valid until {found.valid_until}"
    soon = found.days_left is not None and found.days_left < _RENEWED_DAYS
    return Finding(
        Check(OVER_TLS, found.fault is None, f"serves {own.certificate}", found.said or ends),
        f"{spec.name}: TLS port {own.port} {said}",
        note=f"{spec.name}: {own.certificate} is {ends}: {renew}" if soon else "",
    )


def _degraded(spec: TierSpec, fallback: str, reason: str | None) -> Finding:
    return Finding(
        Check("not degraded", False, spec.name, fallback),
        f"{spec.name}: degraded, {fallback} answers on port {spec.port} in its place: {reason}; mend that, then "
        f"`systemctl start {Front(spec.name).socket}` or site.yml with `-e llama_tiers_retry=true`",
    )


def model_faults(spec: TierSpec, served: Served) -> list[str]:
    """Say what is wrong with the model, context or engine that a server tells of; empty when they are the tier's."""
    return [finding.reason for finding in _right_model(spec, served) if not finding.check.passed]


def _right_model(spec: TierSpec, served: Served) -> Iterator[Finding]:
    restart = f"systemctl restart {spec.unit}"
    yield Finding(
        Check("model file", served.model_path == spec.model.file, spec.model.file, served.model_path),
        f"{spec.name}: serves {served.model_path} instead of {spec.model.file}: {restart}",
    )
    yield Finding(
        Check("model name", served.alias == spec.model.name, spec.model.name, served.alias),
        f"{spec.name}: calls its model {served.alias!r} instead of {spec.model.name!r}: {restart}",
    )
    wanted = spec.placement.ctx_size // spec.placement.parallel
    yield Finding(
        Check(
            "context",
            wanted <= served.ctx_size < wanted + _CONTEXT_BLOCK,
            f"{wanted} tokens",
            f"{served.ctx_size} tokens",
        ),
        f"{spec.name}: serves a context of {served.ctx_size} tokens, {wanted} were promised: "
        f"{restart}, or plan a context that the model was trained for",
    )
    commit = served.build.rpartition("-")[2]
    yield Finding(
        Check("engine", bool(commit) and spec.engine.commit.startswith(commit), spec.engine.commit, served.build),
        f"{spec.name}: runs engine build {served.build!r} instead of commit {spec.engine.commit}: {restart}",
    )


def _as_fetched(spec: TierSpec, evidence: Evidence) -> Finding:
    files = ", ".join(evidence.strange_files)
    return Finding(
        Check("model as fetched", not files, "as verified when fetched", files or "as verified when fetched"),
        f"{spec.name}: {files} is not, by size and time, what was fetched with sha256 {spec.model.sha256}: another "
        f"model may answer; run site.yml, which fetches it again, then systemctl restart {spec.unit}",
    )


def _load_time(spec: TierSpec, evidence: Evidence) -> Finding:
    limit, load_s = spec.criteria.max_load_s, evidence.unit.load_s
    measured = "unknown" if load_s is None else f"{load_s:.1f} s"
    split = f" ({_phases(evidence.load)})" if evidence.load and load_s is not None else ""
    compiled = _compiled(evidence)
    return Finding(
        Check("load time", load_s is not None and load_s <= limit, f"at most {limit:g} s", measured + split),
        f"{spec.name}: load time is {measured}{split}, at most {limit:g} s are promised: "
        "a first load reads the disk, a restart the page cache; raise max_load_s or put the model on a faster disk"
        + (f"; {compiled}" if compiled else ""),
        note=f"{spec.name}: {compiled}" if compiled else "",
    )


def _phases(load: Load) -> str:
    parts = (
        ("process", load.process_s),
        ("weights", load.weights_s),
        ("warm-up", load.warm_up_s),
        ("proof", load.proof_s),
    )
    said = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts if seconds is not None)
    cache = page_cache(load)
    return (
        "; ".join(filter(None, [said, f"page cache {cache}" if cache else ""])) or "the journal does not tell of what"
    )


def page_cache(load: Load) -> str | None:
    """Say how much of the model the page cache held at the load: cold, partly warm, warm; None when not known."""
    if load.read_mib is None or not load.model_mib:
        return None
    share = load.read_mib / load.model_mib
    return "cold" if share >= 0.9 else "warm" if share <= 0.1 else "partly warm"


def _compiled(evidence: Evidence) -> str:
    """Say for which cards the driver has to compile kernels, which is in the first start's load time."""
    built = evidence.load.compiled_for if evidence.load else ()
    missing = [
        f"{device.uuid} ({device.gpu}, {device.compute_capability})"
        for device in evidence.devices
        if built and device.compute_capability and not any(_runs(own, device.compute_capability) for own in built)
    ]
    if not missing:
        return ""
    return (
        f"the engine holds no kernels for {', '.join(dict.fromkeys(missing))}, only for "
        f"{', '.join(built)}: the driver compiles them at a first start, within the load time; build for it"
    )


def _runs(built: str, card: str) -> bool:
    """Tell whether code that was compiled for one capability runs on another: same major number, not newer."""
    built_major, _, built_minor = built.partition(".")
    major, _, minor = card.partition(".")
    return built_major == major and int(built_minor) <= int(minor)


def _text(spec: TierSpec, name: str, completion: Completion) -> Finding:
    fault = garbage(completion.text)
    shown = repr(completion.text[:60])
    return Finding(
        Check(name, fault is None, "language", shown if fault is None else f"{fault}: {shown}"),
        f"{spec.name}: the completion is not language ({fault}): {shown}: "
        "the weights are damaged or a device computes wrong; try each card alone",
    )


def _stability(spec: TierSpec, found: Stability) -> Iterator[Finding]:
    asked = found.in_a_row + found.at_once
    slowest = max((each.max_s for each in (found.row_latency, found.at_once_latency) if each), default=0.0)
    yield Finding(
        Check(
            "stability",
            not found.failures,
            "no failure",
            f"{found.at_once} at once, {found.in_a_row} in a row, slowest {slowest:.2f} s",
        ),
        f"{spec.name}: some of {asked} small requests failed: {'; '.join(found.failures)}: "
        f"see journalctl -u {spec.unit}",
    )
    for place, growth in (("host", found.host_growth_mib), ("cards", found.cards_growth_mib)):
        if growth is None and found.failures:
            # The row ended early for them.
            continue
        # A prompt that another one replaces may be kept in the host's memory, up to a size that was asked for.
        allowed = _GROWTH_MIB + (spec.placement.cache_ram_mib / max(found.in_a_row, 1) if place == "host" else 0.0)
        if growth is None:
            measured = "could not be read"
            reason = (
                f"whether its memory on the {place} grows with each request could not be read: verify it whole again"
            )
        else:
            measured = f"{growth:+.2f} MiB a request"
            reason = (
                f"its memory on the {place} grows by {growth:.2f} MiB with each request, at most {allowed:.1f} are "
                "allowed: it will run out of memory; serve with the release before this one"
            )
        yield Finding(
            Check(
                f"memory growth on {place}",
                growth is not None and growth <= allowed,
                f"at most {allowed:.1f} MiB a request",
                measured,
            ),
            f"{spec.name}: {reason}",
        )


def _quality(spec: TierSpec, found: Quality) -> Iterator[Finding]:
    yield Finding(
        Check(
            "noise of the reference",
            found.noise_mean_kld <= _MEAN_KLD and found.noise_same_top_share >= _SAME_TOP_SHARE,
            f"mean KLD at most {_MEAN_KLD:g}",
            f"mean KLD {found.noise_mean_kld:.6f}, same top token {found.noise_same_top_share:.2%}",
        ),
        f"{spec.name}: the unsplit reference ({found.reference}) differs from itself by a mean KLD of "
        f"{found.noise_mean_kld:.6f}: it computes differently from run to run, so no split can be judged by it",
    )
    yield Finding(
        Check(
            "quality of the split",
            found.mean_kld <= _MEAN_KLD and found.same_top_share >= _SAME_TOP_SHARE,
            f"mean KLD at most {_MEAN_KLD:g}, same top token {_SAME_TOP_SHARE:.0%}",
            f"mean KLD {found.mean_kld:.6f}, same top token {found.same_top_share:.2%}",
        ),
        f"{spec.name}: its placement answers differently from the unsplit model ({found.reference}): mean KLD "
        f"{found.mean_kld:.6f} (at most {_MEAN_KLD:g}), same top token {found.same_top_share:.2%} (at least "
        f"{_SAME_TOP_SHARE:.0%}): a device computes wrong, or the split does; try each card alone",
    )
