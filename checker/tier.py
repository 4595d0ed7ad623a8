"""The tier spec: what a tier is to be on its host, as one file that unit, readiness and verification read.

`/etc/llama-tiers/tiers/<tier>.json`, schema `llama-tiers/tier/1` (docs/schemas/tier.schema.json). Written by the
role `tiers` from the plan, never by hand.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

SCHEMA = "llama-tiers/tier/1"
DIRECTORY = Path("/etc/llama-tiers/tiers")

PINNED, ON_DEMAND = "pinned", "on_demand"
# How a server reads its model's file: through the page cache, or past it (direct I/O); the words are llama.cpp's.
MMAP, DIO = "mmap", "dio"
# The unit that keeps pinned tiers up.
TARGET = "llama-tiers.target"
# The unit that has them all as a part, for what they hold together of the host's memory.
SLICE = "llama-tiers.slice"


def unit_of(name: str) -> str:
    """Name the systemd unit that serves a tier."""
    return f"llama-tier-{name}.service"


def socket_of(name: str) -> str:
    """Return the path of the unix socket on which a tier's server listens, in the RuntimeDirectory= of its unit."""
    return f"/run/llama-tier-{name}/api.sock"


def reached_at(bind: str) -> str:
    """Return the address at which this host reaches what listens at `bind`, which may be all of its addresses."""
    address = ip_address(bind)
    if not address.is_unspecified:
        return str(address)
    return "127.0.0.1" if address.version == 4 else "::1"


def _host_and_port(bind: str, port: int) -> str:
    address = reached_at(bind)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_here(rpc_endpoint: str | None) -> bool:
    """Whether a card is in the host itself: one behind another host's RPC server is not."""
    if not rpc_endpoint:
        return True
    address = rpc_endpoint.rpartition(":")[0].strip("[]")
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


@dataclass(frozen=True)
class Front:
    """The units through which a tier is reached and by which its failures are handled, by their job.

    `socket` holds the port, `proxy` passes its connections on, `cooldown` keeps the port closed after a failure. With a
    fallback `stand_in_socket` holds the port meanwhile and `stand_in` passes its connections to the fallback.
    """

    name: str

    @property
    def socket(self) -> str:
        """Name of the unit that holds the port."""
        return f"llama-tier-{self.name}.socket"

    @property
    def proxy(self) -> str:
        """Name of the unit that passes connections on to the server."""
        return f"llama-tier-{self.name}-proxy.service"

    @property
    def cooldown(self) -> str:
        """Name of the unit that keeps the port closed for a while after a failure."""
        return f"llama-tier-{self.name}-cooldown.service"

    @property
    def stand_in_socket(self) -> str:
        """Name of the unit that holds the port while the fallback answers."""
        return f"llama-tier-{self.name}-fallback.socket"

    @property
    def stand_in(self) -> str:
        """Name of the unit that passes connections on to the fallback."""
        return f"llama-tier-{self.name}-fallback.service"

    @property
    def tls(self) -> str:
        """Name of the unit that takes the tier's connections over TLS, and passes them on to its port."""
        return f"llama-tier-{self.name}-tls.service"

    def holds_port(self, unit: str) -> bool:
        """Whether a unit is one of those that may listen on the tier's port."""
        return unit in self.units

    @property
    def units(self) -> tuple[str, ...]:
        """Name those that come and go with the tier's own port, those first that have to stop first."""
        return (self.cooldown, self.stand_in_socket, self.socket, self.stand_in, self.proxy)


# A tier of such a name would have the units of another one.
RESERVED_ENDINGS = ("-proxy", "-cooldown", "-fallback", "-tls")
# So is the candidate called that a trial runs; a tier of that name would be taken for one that was left, and removed.
TRIAL = "trial"


class TierSpecError(Exception):
    """A tier spec that is absent, unreadable or of another schema."""


@dataclass(frozen=True)
class Model:
    """The model that the tier serves: catalogue name, file on the host, sha256 of the file."""

    name: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Engine:
    """The engine of the tier: full upstream commit, and the release (one build of it) on this host."""

    commit: str
    release: str


@dataclass(frozen=True)
class Device:
    """One llama.cpp device of the placement, in device order.

    `name` is llama.cpp's word (CUDA0, RPC1), `uuid` the physical card, `layers` the whole layers it holds (the output
    layer counts as one), `weights_mib` what those weigh by the model's header, None when the header is not known.
    `kv_mib`, `compute_mib` and `overhead_mib` are what the plan predicts besides (KV cache, compute buffers, CUDA).
    """

    name: str
    uuid: str
    gpu: str
    layers: int
    weights_mib: float | None
    rpc_endpoint: str | None = None
    kv_mib: float | None = None
    compute_mib: float | None = None
    overhead_mib: float | None = None

    @property
    def predicted_mib(self) -> float | None:
        """MiB that the tier is to hold on the card, None when the plan could not tell."""
        parts = (self.weights_mib, self.kv_mib, self.compute_mib, self.overhead_mib)
        return sum(part or 0 for part in parts) if None not in parts else None


@dataclass(frozen=True)
class Placement:
    """How the model lies on the devices; the words are llama.cpp's (`llama-server --help`).

    `pipeline_parallel` False asks the engine to compute without it (it is on by itself only with several devices, layer
    split and every layer offloaded); `n_cpu_moe` is the number of layers whose experts stay on the host.
    """

    split_mode: str
    tensor_split: tuple[int, ...]
    n_gpu_layers: int
    ctx_size: int
    cache_type_k: str
    cache_type_v: str
    ubatch_size: int
    flash_attn: str
    pipeline_parallel: bool = True
    n_cpu_moe: int = 0
    parallel: int = 1
    cache_ram_mib: int = 0


@dataclass(frozen=True)
class Criteria:
    """What the tier has to reach. Tokens per second of one request, seconds from process start to ready."""

    min_generation_tokens_per_second: float
    max_load_s: float


@dataclass(frozen=True)
class Predicted:
    """Tokens per second of one request as planned: the bound by memory bandwidth alone, and what is to be expected."""

    bound: float
    expected: float


@dataclass(frozen=True)
class Tls:
    """Where a tier is reached over TLS, and which networks may reach it there, besides the host itself.

    `certificate` and `key` are files of the host; the certificate's chain follows it in its file.
    """

    bind: str
    port: int
    allow: tuple[str, ...]
    certificate: str
    key: str


@dataclass(frozen=True)
class TierSpec:
    """Everything about one tier on one host. `argv` excludes nothing: it is the unit's whole command line.

    `residency` is PINNED or ON_DEMAND; `rivals` are the tiers that cannot be resident beside this one, so that each
    stops when another starts. `fallback` is the tier that answers in this one's place after it failed.
    `load_mode` is MMAP or DIO. `memory_max_mib` is the most that it may hold of the host's memory, the cached file of
    its model included where it is read through the cache. `allow` are the networks that may reach its port, besides the
    host itself; none when `bind` is of the loopback. `decided` is the evidence (sha256) by which its candidate was
    decided, None when the inventory's order chose it. With `tls` other hosts reach it there alone, and `bind` is of the
    loopback.
    """

    name: str
    bind: str
    port: int
    key_file: str
    model: Model
    engine: Engine
    placement: Placement
    devices: tuple[Device, ...]
    host_weights_mib: float | None
    criteria: Criteria
    argv: tuple[str, ...]
    environment: dict[str, str]
    predicted: Predicted | None = None
    residency: str = PINNED
    rivals: tuple[str, ...] = ()
    fallback: str | None = None
    memory_max_mib: int | None = None
    load_mode: str = MMAP
    allow: tuple[str, ...] = ()
    decided: str | None = None
    tls: Tls | None = None

    @property
    def socket(self) -> str:
        """Path of the unix socket on which the server itself listens; the tier's front passes requests on to it."""
        return socket_of(self.name)

    @property
    def ready_file(self) -> Path:
        """Path of the file, beside the socket, that holds when the tier was ready: seconds of the monotonic clock."""
        return Path(self.socket).with_name("ready")

    @property
    def pinned(self) -> bool:
        """Whether the tier is to serve whenever no rival is asked for; else it is loaded by its first request."""
        return self.residency == PINNED

    @property
    def local_url(self) -> str:
        """URL at which the host itself reaches the tier's HTTP API, without a path. A request there loads the tier."""
        return f"http://{_host_and_port(self.bind, self.port)}"

    @property
    def base_url(self) -> str:
        """URL at which clients reach the tier's HTTP API, without a path: over TLS where it has that."""
        return f"https://{_host_and_port(self.tls.bind, self.tls.port)}" if self.tls else self.local_url

    @property
    def cards(self) -> tuple[str, ...]:
        """UUIDs of the cards of this host that the tier is on."""
        return tuple(dict.fromkeys(device.uuid for device in self.devices if is_here(device.rpc_endpoint)))

    @property
    def unit(self) -> str:
        """Name of the systemd unit that serves the tier."""
        return unit_of(self.name)

    def running(self) -> dict[str, Any]:
        """Return what the running server depends on, which no prediction is part of."""
        return {
            "argv": self.argv,
            "environment": self.environment,
            "model": self.model.sha256,
            "devices": [[device.name, device.uuid] for device in self.devices],
        }

    def to_json(self) -> dict[str, Any]:
        """Return the document of the tier spec file."""
        return {"schema": SCHEMA, **json.loads(json.dumps(asdict(self)))}


def from_json(document: dict[str, Any]) -> TierSpec:
    """Build a spec from the document of a tier spec file; TierSpecError when it is of another schema."""
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise TierSpecError(f"tier spec has schema {schema!r}, this checker reads {SCHEMA!r}")
    fields = {key: value for key, value in document.items() if key != "schema"}
    try:
        return TierSpec(
            **{
                **fields,
                "model": Model(**fields["model"]),
                "engine": Engine(**fields["engine"]),
                "placement": Placement(
                    **{**fields["placement"], "tensor_split": tuple(fields["placement"]["tensor_split"])}
                ),
                "devices": tuple(Device(**device) for device in fields["devices"]),
                "criteria": Criteria(**fields["criteria"]),
                "argv": tuple(fields["argv"]),
                "rivals": tuple(fields.get("rivals") or ()),
                "allow": tuple(fields.get("allow") or ()),
                "tls": Tls(**{**fields["tls"], "allow": tuple(fields["tls"]["allow"])}) if fields.get("tls") else None,
                "predicted": Predicted(**fields["predicted"]) if fields.get("predicted") else None,
            }
        )
    except (KeyError, TypeError) as error:
        raise TierSpecError(f"tier spec does not fit schema {SCHEMA!r}: {error}") from error


def load(name: str, directory: Path = DIRECTORY) -> TierSpec:
    """Read the spec of one tier; TierSpecError names the tiers that are there when it is not."""
    path = directory / f"{name}.json"
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in directory.glob("*.json"))) or "none"
        raise TierSpecError(f"no tier {name!r} on this host ({path} is absent); tiers here: {known}") from None
    except OSError as error:
        raise TierSpecError(f"{path} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TierSpecError(f"{path} is not JSON ({error}); run site.yml again to write it anew") from error


def load_all(directory: Path = DIRECTORY) -> tuple[TierSpec, ...]:
    """Read the specs of all tiers of this host, by name."""
    return tuple(load(path.stem, directory) for path in sorted(directory.glob("*.json")))
