"""What people write: the inventory's `gpus` and `tiers`, and the catalogues of models and engines.

Everything is validated here, before anything is fetched or built; every problem names the place, the value and what
would be right, and all of them are reported at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from checker import argv, catalogue_file
from checker import header as headers
from checker.tier import RESERVED_ENDINGS, TRIAL

Backend = Literal["cpu", "cuda"]
SplitMode = Literal["none", "layer", "row", "tensor"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]

UUID_PATTERN = r"^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_PLACEHOLDER = "GPU-00000000-0000-0000-0000-"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,20}$"
CAPABILITY_PATTERN = r"^\d{1,2}\.\d$"
REPOSITORY_PATTERN = r"^[^/\s]+/[^/\s]+$"
URL_PATTERN = r"^https?://"
ONE_LINE_PATTERN = r"^[^\x00-\x1f\x7f]+$"
PATH_PATTERN = r"^/[A-Za-z0-9._+@/-]+$"


LEAST_CONTEXT = 256
LEAST_UBATCH, MOST_UBATCH = 32, 2048  # llama-server computes no micro-batch above its batch, which is 2048
# Far beyond any host, so that a slip is found: 16 TiB, and a hundred times the fastest memory.
Mib = Annotated[int, Field(ge=0, le=2**24)]
GbPerS = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class InventoryError(Exception):
    """The inventory or a catalogue cannot be used; `problems` holds one sentence for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Written(BaseModel):
    """Base of everything that people write: an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _endpoint(written: str) -> str:
    """Return an endpoint by its address, which is all that the tier's unit lets its server reach.

    The engine speaks IPv4 alone (ggml-rpc/transport.cpp). What a name stands for may change while the server runs.
    """
    host, _, port = written.rpartition(":")
    try:
        address = IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("expected an IPv4 address and a port such as 192.168.1.7:50052")
    return f"{address}:{port}"


class GpuEntry(Written):
    """One card of the inventory; `rpc_endpoint` when a ggml-rpc-server gives access to it.

    Memory (MiB), bandwidth (GB/s) and compute capability are for planning without the host, or for a card that does not
    tell them; `margin_mib` is what a plan leaves free on the card, `checker.cards` has the default.
    """

    name: str = Field(min_length=1)
    uuid: str = Field(pattern=UUID_PATTERN)
    rpc_endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    total_mib: Mib | None = Field(default=None, gt=0)
    bandwidth_gb_s: GbPerS | None = None
    compute_capability: str | None = Field(default=None, pattern=CAPABILITY_PATTERN)
    margin_mib: Mib | None = None


class RamEntry(Written):
    """The host's memory: MiB (what was read on the host goes before) and bandwidth in GB/s."""

    total_mib: Mib | None = Field(default=None, gt=0)
    bandwidth_gb_s: GbPerS | None = None


def _network(written: str) -> str:
    """Return a network, or one address, with its length, as systemd and nftables take both."""
    try:
        network = ip_network(written, strict=False)
    except ValueError:
        network = None
    # Of an address with a scope (fe80::1%eth0) neither knows.
    if network is None or "%" in written:
        raise ValueError("expected a network such as 192.168.1.0/24, or an address")
    address = written.partition("/")[0]
    if address != written and ip_address(address) != network.network_address:
        raise ValueError(f"expected {network} for the network, or {address} for the one address")
    return str(network)


EVERYBODY = ("0.0.0.0/0", "::/0")


class Tls(Written):
    """Where a tier is reached over TLS, and the files of its host that this takes, both as absolute paths.

    `certificate` holds the certificate and its chain, `key` its private key, without a password.
    """

    port: int = Field(ge=1, le=65535)
    certificate: str = Field(pattern=PATH_PATTERN)
    key: str = Field(pattern=PATH_PATTERN)


class Api(Written):
    """Where a tier listens, and which networks may reach it there; with `tls` that is its port alone.

    Its key is no part of this: see `tiers_api_keys` of the role tiers.
    """

    bind: str = "127.0.0.1"
    allow: list[Annotated[str, AfterValidator(_network)]] = []
    tls: Tls | None = None

    @field_validator("bind")
    @classmethod
    def _is_an_address(cls, bind: str) -> str:
        ip_address(bind)
        return bind

    @model_validator(mode="after")
    def _says_who_may_reach_it(self) -> Api:
        address = ip_address(self.bind)
        if address.is_loopback:
            if self.allow:
                raise ValueError(
                    f"bind {self.bind} is reached by this host alone: leave allow out, or bind another address"
                )
            return self
        if not self.allow:
            raise ValueError(
                f"bind {self.bind} is reached by other hosts, and allow does not say by which: name them, such as "
                "allow: [192.168.1.0/24], or bind 127.0.0.1"
            )
        # One of all IPv6 addresses is reached by IPv4 too.
        strange = [each for each in self.allow if ip_network(each).version != address.version and self.bind != "::"]
        if strange:
            raise ValueError(f"allow {', '.join(strange)} is of another IP version than bind {self.bind}")
        return self


class PlacementEntry(Written):
    """A placement as written. With `tensor_split` it is explicit; without, the planner finds the split.

    What is absent has a default in an explicit placement (f16, 512, all layers; pipeline parallelism if it fits) and is
    searched in the other kind, where `n_gpu_layers: auto` allows layers on the CPU.
    """

    split_mode: SplitMode = "layer"
    tensor_split: list[Annotated[int, Field(gt=0)]] | None = Field(default=None, min_length=1)
    n_gpu_layers: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    ubatch_size: int | None = Field(default=None, ge=LEAST_UBATCH, le=MOST_UBATCH)
    flash_attn: Literal["on", "off"] = "on"
    pipeline_parallel: bool | None = None
    n_cpu_moe: int = Field(default=0, ge=0)


def _auto_is_empty(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise ValueError("expected auto, or keys such as {n_gpu_layers: auto}")
    return {} if value == "auto" else value


class Candidate(Written):
    """A model and a placement that could serve a tier; `placement: auto` leaves it to the planner."""

    model: str
    placement: Annotated[PlacementEntry, BeforeValidator(_auto_is_empty)] = PlacementEntry()

    @property
    def written(self) -> dict[str, Any] | str:
        """The placement as an inventory spells it at its shortest: `auto`, or what differs from it."""
        return self.placement.model_dump(exclude_defaults=True) or "auto"


class CriteriaEntry(Written):
    """What a tier has to reach to pass verification."""

    min_generation_tokens_per_second: float = Field(default=1.0, ge=0)
    max_load_s: float = Field(default=300.0, gt=0)


_Tokens = Annotated[int, Field(ge=LEAST_CONTEXT, le=headers.MAX_CONTEXT)]


class _Range(Written):
    min: int
    max: int

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"min {self.min} is above max {self.max}: exchange them, or write one number")
        return self


class ContextRange(_Range):
    """Tokens of context that a tier must have, and up to how many it may get where they cost no layers on the cards."""

    min: _Tokens
    max: _Tokens


class CacheRamRange(_Range):
    """MiB of host memory that a tier must have for cached prompts, and up to how many it gets where they are left."""

    min: Mib
    max: Mib


def _or_range(number: TypeAdapter[int], expected: str) -> BeforeValidator:
    """Take one number for the range of that alone; what is neither is answered with what was expected."""

    def as_range(value: Any) -> Any:
        if isinstance(value, Mapping | _Range):
            return value
        try:
            one = number.validate_python(value)
        except ValidationError:
            raise ValueError(f"expected {expected}") from None
        return {"min": one, "max": one}

    return BeforeValidator(as_range)


_CONTEXT = _or_range(
    TypeAdapter(_Tokens),
    f"{LEAST_CONTEXT} to {headers.MAX_CONTEXT} tokens, or a range such as {{min: 4096, max: 16384}}",
)
_CACHE_RAM = _or_range(TypeAdapter(Mib), "MiB of host memory, or a range such as {min: 0, max: 8192}")


class TierEntry(Written):
    """One tier of the inventory; the first candidate that fits is the one that is served.

    `context` and `cache_ram_mib` as written are a number or a range, and always a range here. `cache_types` are the
    types of the KV cache that the planner may choose, the preferred one first. `engine` is a name of the engine table,
    None for the host's (`llama_cpp_engine`). A `pinned` tier is always loaded, but while a rival without room beside it
    is asked for; one that is `on_demand` is loaded by its first request. `fallback` names the tier that answers on this
    one's port after it failed. `arguments` end the server's command line (`argv.EXTRA`).
    """

    name: str = Field(pattern=NAME_PATTERN)
    port: int = Field(ge=1, le=65535)
    context: Annotated[ContextRange, _CONTEXT]
    parallel: int = Field(default=1, ge=1)
    cache_ram_mib: Annotated[CacheRamRange, _CACHE_RAM] = CacheRamRange(min=0, max=0)
    api: Api = Api()
    arguments: list[Annotated[str, Field(pattern=ONE_LINE_PATTERN, coerce_numbers_to_str=True)]] = []
    gpus: Annotated[list[str], Field(min_length=1)] | Literal["any"]
    cache_types: list[CacheType] = Field(default=["f16"], min_length=1)
    candidates: list[Candidate] = Field(min_length=1)
    criteria: CriteriaEntry = CriteriaEntry()
    engine: str | None = None
    residency: Literal["pinned", "on_demand"] = "pinned"
    fallback: str | None = None

    @field_validator("name")
    @classmethod
    def _has_units_of_its_own(cls, name: str) -> str:
        if name.endswith(RESERVED_ENDINGS):
            raise ValueError(
                f"a tier's name does not end in {', '.join(RESERVED_ENDINGS)}: its own units are called so"
            )
        return name

    @field_validator("arguments")
    @classmethod
    def _leave_the_rest_as_it_is(cls, arguments: list[str]) -> list[str]:
        found = list(argv.refused(arguments))
        if found:
            raise ValueError("; ".join(found))
        return arguments


def _parse_header(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        return catalogue_file.header_of(value)
    except headers.HeaderError as error:
        raise ValueError(str(error)) from None


class HuggingFaceEntry(Written):
    """Repository on the hub that holds a model's file."""

    repository: str = Field(pattern=REPOSITORY_PATTERN)
    revision: str = "main"


def _below(file: str) -> str:
    """Refuse a file that would not lie below the folder of its model."""
    if file.startswith("/") or ".." in file.split("/"):
        raise ValueError("a file's path has neither a leading '/' nor '..'")
    return file


class PartEntry(Written):
    """One file of a split GGUF."""

    file: Annotated[str, AfterValidator(_below)] = Field(min_length=1)
    sha256: str = Field(pattern=SHA256_PATTERN)
    bytes: int = Field(gt=0)


class DerivedEntry(Written):
    """How a header came about that was not read from the file: its bytes are right within `tolerance` (a share)."""

    tolerance: float = Field(gt=0, le=0.05)


Percent = Annotated[float, Field(ge=0, le=100)]


class PublishedEntry(Written):
    """What a publisher tells of a model's answers: per cent of problems solved at the first try, not quantised.

    `math_500` is the sample of 500 that most publishers take of the test `math`, and goes before it. `model` is the one
    that was examined, `source` where that is published.
    """

    math_500: Percent | None = None
    math: Percent | None = None
    aime_2024: Percent | None = None
    model: str = Field(min_length=1)
    source: str = Field(pattern=URL_PATTERN)

    @model_validator(mode="after")
    def _has_a_figure_to_rank_by(self) -> PublishedEntry:
        if self.math_500 is None and self.math is None:
            raise ValueError("it has neither math_500 nor math: give one of them, or leave `published` out")
        return self

    @property
    def score(self) -> float:
        """The figure that models are ranked by, in per cent."""
        return self.math_500 if self.math_500 is not None else self.math or 0.0


class ModelEntry(Written):
    """One model of the catalogue.

    Without `sha256` (or parts) it cannot be fetched, without `header` not planned for: `checker lock` reads both.
    """

    file: Annotated[str, AfterValidator(_below)] = Field(min_length=1)
    sha256: str | None = Field(default=None, pattern=SHA256_PATTERN)
    bytes: int | None = Field(default=None, gt=0)
    huggingface: HuggingFaceEntry | None = None
    url: str | None = Field(default=None, pattern=URL_PATTERN)
    parts: list[PartEntry] | None = Field(default=None, min_length=1)
    header: Annotated[InstanceOf[headers.Header] | None, BeforeValidator(_parse_header)] = None
    header_derived: DerivedEntry | None = None
    published: PublishedEntry | None = None
    note: str | None = None


def model_path(model: ModelEntry, directory: str) -> str:
    """Return where the first file of a model lies: `<directory>/<first 12 of its sha256>/<file>`.

    A model whose sha256 is not known cannot be on a host; its path says so in place of the digits.
    """
    first = model.parts[0] if model.parts else model
    return f"{directory}/{first.sha256[:12] if first.sha256 else 'sha256-not-known'}/{first.file}"


class LoadModes(Written):
    """How one engine spells how it reads a model's file, by the newer engines' own words (`checker.tier`)."""

    mmap: list[str]
    dio: list[str]


class EngineFlags(Written):
    """How one engine spells what differs between engines; each value is the argv fragment to use."""

    load_mode: LoadModes
    log: list[str]
    no_ui: list[str]


# What pydantic's errors expect, in plain words; the braces take what the error tells.
_EXPECTED = {
    **dict.fromkeys(["int_type", "int_parsing", "int_parsing_size", "int_from_float"], "a whole number"),
    **dict.fromkeys(["float_type", "float_parsing", "finite_number"], "a number"),
    **dict.fromkeys(["model_type", "model_attributes_type", "dict_type"], "keys with values"),
    "string_type": "text",
    "list_type": "a list",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "string_too_short": "text",
    "too_short": "a list of {min_length} or more",
}
# The patterns that people's words are held against, in words.
_PATTERNS = {
    NAME_PATTERN: "a to z, digits and -, at most 21, such as deep-2",
    CAPABILITY_PATTERN: 'two numbers with a point, such as "8.6"',
    SHA256_PATTERN: "64 digits of 0 to 9 and a to f",
    REPOSITORY_PATTERN: "owner/name",
    URL_PATTERN: "an address that begins with http:// or https://",
    ONE_LINE_PATTERN: "text on one line",
    PATH_PATTERN: "an absolute path of letters, digits and -._+@, such as /etc/ssl/llm/fullchain.pem",
}
# What people look for and is had in another way.
_ELSEWHERE = {"tls": ': write it under api (docs/inventory.md, "TLS")'}
# In the place of an error that is in a union, pydantic names which part of the union was tried.
_PART_OF_UNION = re.compile(r"(constrained-\w+|int|str|(literal|list|function-\w+)\[.*)$")


def sentences(where: str, error: ValidationError) -> Iterable[str]:
    """Say in one sentence each what is wrong with something that people wrote."""
    found: dict[str, tuple[str, list[str]]] = {}
    for item in error.errors(include_url=False):
        places = [part for part in item["loc"] if isinstance(part, int) or not _PART_OF_UNION.match(part)]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in places).lstrip(".")
        value = item.get("input")
        hidden = item["type"] in ("missing", "extra_forbidden") or {"key", "header", "arguments"} & set(item["loc"])
        start = path if hidden else f"{path} {value!r}"
        found.setdefault(path, (start, []))[1].append(_reason(item))
    for path, (start, reasons) in found.items():
        # That one part of a union was not meant is no news where another one was, and is wrong further in.
        if any(other.startswith((f"{path}[", f"{path}.")) for other in found):
            continue
        first, *others = reasons
        yield f"{where}: {start} {' or '.join([first, *(other.rpartition('expected ')[2] for other in others)])}"


def _reason(item: ErrorDetails) -> str:
    if item["type"] == "missing":
        return "is missing"
    if item["type"] == "extra_forbidden":
        return f"is not a known key{_ELSEWHERE.get(str(item['loc'][-1]), '')}"
    if item["type"] == "string_pattern_mismatch" and item["loc"][-1] == "uuid":
        return "is not the UUID of a card; `nvidia-smi -L` on the host prints it"
    if item["type"] == "string_pattern_mismatch":
        return f"is wrong: expected {_PATTERNS[item['ctx']['pattern']]}"
    if item["type"] not in _EXPECTED:
        return f"is wrong: {item['msg'].removeprefix('Value error, ')}"
    return f"is wrong: expected {_EXPECTED[item['type']].format(**item.get('ctx', {}))}"


def _parse_each(what: str, entries: Sequence[Any], model: type[Written], problems: list[str]) -> list[Any]:
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        problems.append(f"{what}s is {entries!r}, expected a list")
        return []
    parsed = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        where = f"{what} {name}" if isinstance(name, str) else f"{what}s[{index}]"
        try:
            parsed.append(model.model_validate(entry))
        except ValidationError as error:
            problems.extend(sentences(where, error))
    return parsed


def resolve_gpus(tier: TierEntry, gpus: Sequence[GpuEntry]) -> list[GpuEntry] | str:
    """Return the cards that a tier names (by UUID, or by a name that is unique), in device order, or the problem."""
    if tier.gpus == "any":
        return list(gpus)
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    names = Counter(gpu.name for gpu in gpus)
    by_name = {gpu.name: gpu for gpu in gpus}
    found = []
    for wanted in tier.gpus:
        if wanted in by_uuid:
            found.append(by_uuid[wanted])
        elif names[wanted] == 1:
            found.append(by_name[wanted])
        elif names[wanted] > 1:
            return (
                f"tier {tier.name}: gpus {wanted!r} names {names[wanted]} cards of the inventory; "
                f"name one by UUID: {', '.join(gpu.uuid for gpu in gpus if gpu.name == wanted)}"
            )
        else:
            known = ", ".join(gpu.name if is_placeholder(gpu.uuid) else f"{gpu.name} ({gpu.uuid})" for gpu in gpus)
            return f"tier {tier.name}: gpus {wanted!r} is none of the host's gpus; they are: {known or 'none'}"
    return found


def _check_candidate(
    tier: TierEntry,
    place: str,
    candidate: Candidate,
    cards: Sequence[GpuEntry],
    models: Mapping[str, ModelEntry],
    split_modes: Sequence[str] | None,
    engines_with: Mapping[str, Sequence[str]],
    engine: str,
) -> Iterable[str]:
    where = f"tier {tier.name}: {place}"
    placement = candidate.placement
    split = placement.tensor_split
    if split is not None and len(split) != len(cards):
        yield (
            f"{where}.placement.tensor_split {split} has {len(split)} entries, "
            f"but the tier has {len(cards)} gpus ({', '.join(card.name for card in cards)}): "
            "give one entry of whole layers for each, in this order"
        )
    if split is not None and placement.split_mode == "none" and len(cards) != 1:
        yield (
            f"{where}.placement.split_mode 'none' uses one card, but the tier has {len(cards)} gpus; "
            "use 'layer', or name one card"
        )
    if split is None and placement.split_mode in ("row", "tensor"):
        yield (
            f"{where}.placement.split_mode {placement.split_mode!r} needs a tensor_split of your own; "
            "the planner searches layer splits only"
        )
    if split is None and placement.n_cpu_moe:
        yield f"{where}.placement.n_cpu_moe needs a tensor_split of your own; the planner does not search it"
    if split_modes is not None and placement.split_mode not in split_modes:
        able = ", ".join(engines_with.get(placement.split_mode, []))
        having = f"{able} (engine of the tier, or llama_cpp_engine of the host)" if able else "none of the table"
        yield (
            f"{where}.placement.split_mode {placement.split_mode!r}: engine {engine} has "
            f"{', '.join(split_modes)} here; engines that have it: {having}"
        )
    cache_type_v = placement.cache_type_v or (tier.cache_types[0] if split is None else "f16")
    if placement.flash_attn == "off" and cache_type_v not in ("f32", "f16", "bf16"):
        yield (
            f"{where}.placement.cache_type_v {cache_type_v!r} needs flash attention; "
            "set flash_attn: 'on' or cache_type_v: f16"
        )
    if candidate.model not in models:
        yield f"{where}.model {candidate.model!r} is not in the catalogue; known models: {', '.join(sorted(models))}"
        return
    header = models[candidate.model].header
    if header is None:
        yield (
            f"{where}.model {candidate.model!r} has no header in the catalogue, so nothing can be said of its memory; "
            f"`checker lock {candidate.model}` reads it"
        )
        return
    yield from _check_layers(where, candidate, header.n_layer + 1)


def _check_layers(where: str, candidate: Candidate, layers: int) -> Iterable[str]:
    placement = candidate.placement
    wanted = placement.n_gpu_layers or layers
    if wanted == "auto":
        if placement.tensor_split is not None:
            yield (
                f"{where}.placement.n_gpu_layers 'auto' cannot go with tensor_split {placement.tensor_split}, which "
                "says where every layer lies: leave one of them out"
            )
    elif wanted > layers:
        yield (
            f"{where}.placement.n_gpu_layers {wanted}: {candidate.model} has {layers - 1} layers "
            f"+ 1 output = {layers}; use {layers} or less"
        )
    elif placement.tensor_split is not None and sum(placement.tensor_split) != wanted:
        meant = "n_layer + 1" if wanted == layers else "n_gpu_layers"
        yield (
            f"{where}.placement.tensor_split {placement.tensor_split} adds up to {sum(placement.tensor_split)}, not to "
            f"{meant} = {wanted} ({candidate.model} has {layers - 1} layers and the output layer)"
        )


def _check_fallbacks(tiers: Sequence[TierEntry], reported: Collection[Any]) -> Iterable[str]:
    """Yield what is wrong with fallbacks; of those whose own entries were `reported` as wrong nothing more follows."""
    by_name = {tier.name: tier for tier in tiers}
    for tier in tiers:
        if tier.fallback is None:
            continue
        others = ", ".join(name for name in by_name if name != tier.name) or "none"
        if tier.fallback == tier.name:
            yield f"tier {tier.name}: fallback names the tier itself; the host's other tiers are: {others}"
        elif tier.fallback in reported:
            continue
        elif tier.fallback not in by_name:
            yield f"tier {tier.name}: fallback {tier.fallback!r} is no tier of the host; the others are: {others}"
        elif by_name[tier.fallback].fallback is not None:
            yield (
                f"tier {tier.name}: fallback {tier.fallback!r} has a fallback of its own "
                f"({by_name[tier.fallback].fallback}): one step is all there is; name that one, or leave one out"
            )


def _parse_named(what: str, entries: Mapping[str, Any], problems: list[str]) -> dict[str, ModelEntry]:
    parsed = {}
    for name, entry in entries.items():
        try:
            parsed[name] = ModelEntry.model_validate(entry)
        except ValidationError as error:
            problems.extend(sentences(f"{what} {name}", error))
    return parsed


def split_modes_of(engine: Mapping[str, Any], backend: str, gpus: Sequence[GpuEntry]) -> list[str]:
    """Return the split modes that an engine has for these cards: those of the weakest kind of device among them."""
    kinds = {"rpc" if gpu.rpc_endpoint else backend for gpu in gpus}
    modes = [engine["split_modes"].get(kind, []) for kind in sorted(kinds)]
    return [mode for mode in modes[0] if all(mode in other for other in modes)] if modes else []


def parse_inventory(
    gpus: Sequence[Any], tiers: Sequence[Any], models: Mapping[str, Any]
) -> tuple[list[GpuEntry], list[TierEntry], dict[str, ModelEntry], list[str]]:
    """Parse what the inventory and the catalogue say; the last element lists what is wrong with their form."""
    problems: list[str] = []
    parsed_gpus = _parse_each("gpu", gpus, GpuEntry, problems)
    parsed_tiers = _parse_each("tier", tiers, TierEntry, problems)
    parsed_models = _parse_named("model", models, problems)
    return parsed_gpus, parsed_tiers, parsed_models, problems


def parse_ram(ram: Mapping[str, Any], problems: list[str]) -> RamEntry:
    """Parse the inventory's `ram`; what is wrong with it is added to `problems`."""
    try:
        return RamEntry.model_validate(ram)
    except ValidationError as error:
        problems.extend(sentences("ram", error))
        return RamEntry()


def with_placeholders(gpus: Any) -> Any:
    """Return the inventory's `gpus` with a stand-in where a UUID is still `edit-me`: a plan needs none."""
    if not isinstance(gpus, list):
        return gpus
    return [
        {**gpu, "uuid": f"{_PLACEHOLDER}{index:012d}"}
        if isinstance(gpu, Mapping) and str(gpu.get("uuid", "edit-me")).startswith("edit-me")
        else gpu
        for index, gpu in enumerate(gpus)
    ]


def is_placeholder(uuid: str | None) -> bool:
    """Whether a UUID is a stand-in of `with_placeholders`, or none."""
    return uuid is None or uuid.startswith(_PLACEHOLDER)


def _duplicates(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def check_inventory(
    gpus: Sequence[Any],
    tiers: Sequence[Any],
    models: Mapping[str, Any],
    engines: Mapping[str, Any],
    engine: str,
    backend: str,
    *,
    in_trial: bool = False,
) -> list[str]:
    """Check everything that needs no host: return one sentence for each problem, none when all is well.

    Arguments are the inventory's words as Ansible hands them over (plain lists and dicts). The tier of a candidate that
    is `in_trial` has the name that no other may have.
    """
    parsed_gpus, parsed_tiers, parsed_models, problems = parse_inventory(gpus, tiers, models)
    if not gpus:
        problems.append("gpus is empty: list the cards of the host, each with name and uuid (`nvidia-smi -L`)")
    if not tiers:
        problems.append("tiers is empty: name at least one tier")
    if backend not in ("cpu", "cuda"):
        problems.append(f"llama_cpp_backend {backend!r} is not a back end; use cuda or cpu")
    if engine not in engines:
        problems.append(f"llama_cpp_engine {engine!r} is not in the engine table; known engines: {', '.join(engines)}")
    problems += [f"gpus: uuid {uuid} stands there twice" for uuid in _duplicates(g.uuid for g in parsed_gpus)]
    problems += [f"tiers: name {name!r} stands there twice" for name in _duplicates(t.name for t in parsed_tiers)]
    if not in_trial and any(tier.name == TRIAL for tier in parsed_tiers):
        problems.append(f"tier {TRIAL}: name {TRIAL!r} is a trial's own, for its candidate; give the tier another name")
    ports = [(tier.port, tier.name) for tier in parsed_tiers]
    ports += [(tier.api.tls.port, f"{tier.name} (TLS)") for tier in parsed_tiers if tier.api.tls]
    for port in _duplicates(port for port, _ in ports):
        names = " and ".join(name for each, name in ports if each == port)
        problems.append(f"tiers {names}: port {port} is used twice; give each tier a port of its own")

    named = [tier.get("name") for tier in tiers if isinstance(tier, Mapping)]
    parsed_names = [tier.name for tier in parsed_tiers]
    problems += _check_fallbacks(parsed_tiers, [name for name in named if name not in parsed_names])

    # Without cards everything that names one is wrong, which says nothing more.
    for tier in parsed_tiers if gpus else []:
        resolved = resolve_gpus(tier, parsed_gpus)
        if isinstance(resolved, str):
            # A card whose own entry is wrong was reported already; that it cannot be found follows from that.
            if len(parsed_gpus) == len(gpus):
                problems.append(resolved)
            continue
        if len(parsed_gpus) != len(gpus) and tier.gpus == "any":
            continue
        for uuid in _duplicates(gpu.uuid for gpu in resolved):
            problems.append(f"tier {tier.name}: gpus names {uuid} twice")
        local = [gpu.name for gpu in resolved if not gpu.rpc_endpoint]
        if backend == "cpu" and local:
            problems.append(
                f"tier {tier.name}: gpus {', '.join(local)} cannot be used by llama_cpp_backend 'cpu'; "
                "use cuda, or give the card an rpc_endpoint"
            )
        own = tier.engine or engine
        if tier.engine is not None and own not in engines:
            problems.append(
                f"tier {tier.name}: engine {own!r} is not in the engine table; known engines: {', '.join(engines)}"
            )
        modes = split_modes_of(engines[own], backend, resolved) if own in engines else None
        having: dict[str, list[str]] = {}
        for name, entry in engines.items():
            for mode in split_modes_of(entry, backend, resolved):
                having.setdefault(mode, []).append(name)
        for index, candidate in enumerate(tier.candidates):
            problems += _check_candidate(
                tier, f"candidates[{index}]", candidate, resolved, parsed_models, modes, having, own
            )
    return problems
