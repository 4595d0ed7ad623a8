"""`checker lock`: what the hub, a server or a local file says of the catalogue's models, put into the catalogue.

The hub is asked for size and sha256 of each file (one HEAD request, no bytes of it), and for the header by range where
the catalogue has none, or one that was only derived. What the catalogue says already is never overwritten by something
else: a sha256 that differs is another file, and people decide which is the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from checker import catalogue_file, gguf, hub
from checker.catalogue import ModelEntry
from checker.header import Header, HeaderError

SCHEMA = "llama-tiers/lock/1"
_CHUNK = 4 * 1024 * 1024

# locked: something was found and written; unchanged: all is known and still so; incomplete: something stays unknown;
# differs: the catalogue says otherwise, nothing was written; failed: it could not be asked.
Status = Literal["locked", "unchanged", "incomplete", "differs", "failed"]


@dataclass(frozen=True)
class FoundFile:
    """One file of a model, as its server or the disk has it; None is what is not known."""

    file: str
    sha256: str | None
    bytes: int | None


@dataclass(frozen=True)
class Found:
    """What was found of a model; `header` is None where it was not asked for."""

    source: str
    files: tuple[FoundFile, ...]
    header: Header | None


@dataclass(frozen=True)
class Outcome:
    """What became of one model; `changes` are the keys of its entry with their new values (None: taken out)."""

    name: str
    status: Status
    source: str | None
    sha256: str | None
    bytes: int | None
    header: Literal["read", "derived", "unknown"]
    changes: Mapping[str, Any]
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs; of the changes only the keys, for the catalogue has the values."""
        return asdict(self) | {"changes": sorted(self.changes)}


def file_names(model: ModelEntry) -> list[str]:
    """Return the names of a model's files, in order."""
    return [part.file for part in model.parts] if model.parts else gguf.part_names(model.file)


def urls(model: ModelEntry) -> list[str]:
    """Return where the files of a model lie, as the role models fetches them; empty when there is no source."""
    names = file_names(model)
    if model.url and len(names) == 1:
        return [model.url]
    if model.url:  # the parts are beside the one that is named
        folder = model.url.partition("?")[0].rpartition("/")[0]
        return [f"{folder}/{quote(PurePosixPath(name).name)}" for name in names]
    if model.huggingface:
        return [hub.resolve_url(model.huggingface.repository, model.huggingface.revision, name) for name in names]
    return []


def needs_header(model: ModelEntry) -> bool:
    """Tell whether the file's own header is still to be read."""
    return model.header is None or model.header_derived is not None


def find_remote(web: hub.Web, name: str, model: ModelEntry) -> Found | None:
    """Ask the source of a model; None when it has none. HeaderError says why an answer is of no use."""
    addresses = urls(model)
    if not addresses:
        return None
    facts = [hub.file_facts(web, address) for address in addresses]
    files = tuple(FoundFile(file, fact.sha256, fact.size) for file, fact in zip(file_names(model), facts, strict=True))
    header = None
    if needs_header(model):
        parts = [hub.read_known(web, address, fact) for address, fact in zip(addresses, facts, strict=True)]
        header = gguf.joined(parts, name)
    return Found(hub.shown(addresses[0]), files, header)


def find_local(model: ModelEntry, path: Path) -> Found:
    """Read a model's file, or all its parts, from this machine: header, size, and the sha256 of every byte."""
    header = gguf.read_header(path)
    here = [path.with_name(name) for name in gguf.part_names(path.name)]
    names = file_names(model)
    if len(names) != len(here):  # a model that was split, or joined; otherwise it may be called anything here
        names = [str(PurePosixPath(model.file).parent / part.name) for part in here]
    files = []
    for name, part in zip(names, here, strict=True):
        try:
            files.append(FoundFile(name, _sha256(part), part.stat().st_size))
        except OSError as error:
            raise gguf.GgufError(f"{part} cannot be read: {error.strerror or error}") from error
    return Found(str(path), tuple(files), header)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def compare(name: str, model: ModelEntry, found: Found | None) -> Outcome:
    """Hold what was found against the catalogue's entry: what there is to write, or why nothing may be written."""
    state: Literal["read", "derived", "unknown"]
    state = "unknown" if model.header is None else "derived" if model.header_derived else "read"
    known = _known(model)
    if found is None:
        missing = _missing(known, state)
        reason = f"the catalogue names no source, and {missing} not known" if missing else None
        return _outcome(name, "incomplete" if missing else "unchanged", None, known, state, {}, reason)

    contradiction = _contradiction(known, found)
    if contradiction:
        return _outcome(name, "differs", found.source, known, state, {}, contradiction)

    files = [_merged(old, new) for old, new in zip(known, found.files, strict=True)] if known else list(found.files)
    changes: dict[str, Any] = {}
    if len(files) > 1:
        if all(file.sha256 and file.bytes for file in files):
            parts = [{"file": file.file, "sha256": file.sha256, "bytes": file.bytes} for file in files]
            changes = {"parts": parts} if not model.parts else {}
    else:
        pairs = {"sha256": (model.sha256, files[0].sha256), "bytes": (model.bytes, files[0].bytes)}
        changes = {key: new for key, (old, new) in pairs.items() if new is not None and new != old}
    notes = []
    if found.header is not None:
        if found.header != model.header:
            changes["header"] = catalogue_file.spelled(found.header)
        if model.header_derived is not None:
            changes["header_derived"] = None
            notes.append(_derived_was(model, found.header))
        state = "read"
    missing = _missing(files, state)
    if missing:
        notes.append(f"{missing} not known: {found.source} does not tell")
    status: Status = "incomplete" if missing else "locked" if changes else "unchanged"
    return _outcome(name, status, found.source, files, state, changes, "; ".join(notes) or None)


def _outcome(
    name: str,
    status: Status,
    source: str | None,
    files: Sequence[FoundFile],
    state: Literal["read", "derived", "unknown"],
    changes: Mapping[str, Any],
    reason: str | None,
) -> Outcome:
    whole = files[0].sha256 if len(files) == 1 else None
    sizes = [file.bytes for file in files]
    total = sum(size for size in sizes if size) if files and all(sizes) else None
    return Outcome(name, status, source, whole, total, state, changes, reason)


def _known(model: ModelEntry) -> list[FoundFile]:
    """Return what the catalogue says of a model's files; empty for one in parts whose parts are not known."""
    if model.parts:
        return [FoundFile(part.file, part.sha256, part.bytes) for part in model.parts]
    if len(gguf.part_names(model.file)) > 1:
        return []
    return [FoundFile(model.file, model.sha256, model.bytes)]


def _missing(files: Sequence[FoundFile], state: str) -> str:
    """Name what is still unknown, for a sentence that goes on with `not known`."""
    words = [
        *(["its parts"] if not files else []),
        *(["sha256"] if any(not file.sha256 for file in files) else []),
        *(["bytes"] if any(not file.bytes for file in files) else []),
        *(["the file's header"] if state != "read" else []),
    ]
    return f"{' and '.join(words)} {'is' if len(words) == 1 and words != ['its parts'] else 'are'}" if words else ""


def _contradiction(known: Sequence[FoundFile], found: Found) -> str | None:
    if known and len(known) != len(found.files):
        return f"the catalogue's model is {len(known)} file(s), {found.source} is {len(found.files)}: another model"
    for old, new in zip(known, found.files, strict=False):
        for key, here, there in (("sha256", old.sha256, new.sha256), ("bytes", old.bytes, new.bytes)):
            if here and there and here != there:
                return (
                    f"{old.file} is another file: the catalogue has {key} {here}, {found.source} has {there}; "
                    "if that is the right one, take sha256, bytes (or parts) out of the entry and lock it again"
                )
    return None


def _merged(old: FoundFile, new: FoundFile) -> FoundFile:
    return FoundFile(old.file, old.sha256 or new.sha256, old.bytes or new.bytes)


def _derived_was(model: ModelEntry, real: Header) -> str:
    """Say how good the derived header was that the real one replaces."""
    derived, tolerance = model.header, model.header_derived.tolerance if model.header_derived else 0.0
    if derived is None:
        return "the header was read from the file"
    # Place by place: another mix can have the same sum.
    places = [(*header.layer_bytes, header.output_bytes, header.token_embd_bytes) for header in (derived, real)]
    alike = derived.n_layer == real.n_layer
    apart = sum(abs(one - other) for one, other in zip(*places, strict=True)) if alike else real.total_bytes
    off = apart / real.total_bytes
    verdict = f"within its {tolerance:.1%}" if off <= tolerance else f"beyond its {tolerance:.1%}: plan again"
    return f"the derived header was off by {off:.2%} of the weights, {verdict}"


def lock(path: Path, wanted: Mapping[str, ModelEntry], text: str, local: Path | None = None) -> list[Outcome]:
    """Look up models of a catalogue and write what was found; `local` is the file of the only one that is wanted.

    CatalogueFileError when it cannot be written; whatever is wrong with one model is in its outcome.
    """
    outcomes = []
    for name, model in wanted.items():
        try:
            # A connection for each, for each has its own budget of transfer.
            with hub.Web() as web:
                found = find_local(model, local) if local else find_remote(web, name, model)
            outcomes.append(compare(name, model, found))
        except HeaderError as error:
            state = compare(name, model, None)
            outcomes.append(Outcome(name, "failed", None, state.sha256, state.bytes, state.header, {}, str(error)))
    changes = {outcome.name: outcome.changes for outcome in outcomes if outcome.changes}
    if changes:
        catalogue_file.write(path, catalogue_file.changed(text, changes, str(path)))
    return outcomes
