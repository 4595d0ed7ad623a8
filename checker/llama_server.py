"""One llama-server: its HTTP API, and the buffers that its log tells of.

By the standard library's client: importing `requests` takes longer than draining an idle tier, while clients wait.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checker.tier import Device, TierSpec
from checker.unix_http import UnixConnection

_CONNECT_S = 5
_ANSWER_S = 30

# The template that the engine falls back to when the model has none (common/chat.cpp, CHATML_TEMPLATE_SRC).
_FALLBACK_MARKER = "<|im_start|>"


class ServerError(Exception):
    """A llama-server that does not answer as it should; the message names the URL and says what to do."""


class UnreachableError(ServerError):
    """Nothing answers at the address."""


class LoadingError(ServerError):
    """The server is up and still loads its model (503)."""


class UnauthorizedError(ServerError):
    """The server refuses the key, or the key file cannot be read."""


class BrokenError(ServerError):
    """The server answers with an error, or with something that is not its API."""


class SilentError(BrokenError):
    """The server has taken the request, and gives no answer in time."""


@dataclass(frozen=True)
class Props:
    """What a server says it serves; `ctx_size` is the context of one slot, `build` as "b1-0c1e57098"."""

    model_path: str
    alias: str
    ctx_size: int
    build: str
    chat_template: str


@dataclass(frozen=True)
class Generation:
    """One completion: its text, the server's own counts and milliseconds, and the seconds the caller waited."""

    text: str
    prompt_tokens: int
    generated_tokens: int
    prompt_ms: float
    generation_ms: float
    wall_s: float


class LlamaServer:
    """HTTP client of one server. Every method raises a ServerError of the kind that fits."""

    def __init__(self, address: str, key_file: str) -> None:
        """Take the address as a URL without a path, or as `unix:` and the path of a socket."""
        self._address = address
        self._key_file = Path(key_file)

    @classmethod
    def of(cls, spec: TierSpec) -> LlamaServer:
        """Return the client of a tier's own server, past the front that would load it."""
        return cls(f"unix:{spec.socket}", spec.key_file)

    def health(self) -> None:
        """Return when the server has loaded its model, which does not prove yet that it can compute."""
        self._call("GET", "/health", authorized=False)

    def busy_slots(self) -> int:
        """Count the requests that are being worked on."""
        slots = self._call("GET", "/slots", timeout_s=_CONNECT_S, kind=list)
        try:
            return sum(bool(slot["is_processing"]) for slot in slots)
        except (KeyError, TypeError) as error:
            raise self._strange("/slots", error) from error

    def props(self) -> Props:
        """Read what is served."""
        answer = self._call("GET", "/props")
        try:
            return Props(
                model_path=str(answer["model_path"]),
                alias=str(answer.get("model_alias") or self._alias()),
                ctx_size=int(answer["default_generation_settings"]["n_ctx"]),
                build=str(answer["build_info"]),
                chat_template=str(answer.get("chat_template") or ""),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("/props", error) from error

    def as_prompt(self, question: str, chat_template: str, plain: str) -> str:
        """Return a question as the model expects it: in its own template, or `plain` when it has none.

        A model without a template is shown with the engine's fallback, whose markers are no tokens of that model: in
        them it produces nothing but markers.
        """
        if not chat_template:
            return plain
        if _FALLBACK_MARKER in chat_template:
            answer = self._call("POST", "/tokenize", {"content": _FALLBACK_MARKER, "parse_special": True})
            if len(answer.get("tokens") or []) != 1:
                return plain
        answer = self._call("POST", "/apply-template", {"messages": [{"role": "user", "content": question}]})
        return str(answer.get("prompt") or plain)

    def tokenize(self, text: str) -> list[int]:
        """Return a text as the model's tokens, with those that the model begins every text with."""
        answer = self._call("POST", "/tokenize", {"content": text, "add_special": True})
        try:
            return [int(token) for token in answer["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("/tokenize", error) from error

    def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        temperature: float,
        seed: int,
        timeout_s: float = _ANSWER_S,
        *,
        cached: bool = False,
        whole: bool = False,
    ) -> Generation:
        """Let the model go on from a prompt, a text or tokens.

        The prompt is computed from its first token on, unless it may be `cached`. A `whole` answer goes on to
        `max_tokens` although the model would end it before.
        """
        body = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "cache_prompt": cached,
            **({"ignore_eos": True} if whole else {}),
        }
        began = time.monotonic()
        answer = self._call("POST", "/completion", body, timeout_s)
        wall_s = time.monotonic() - began
        try:
            timings = answer["timings"]
            return Generation(
                text=str(answer["content"]),
                prompt_tokens=int(timings["prompt_n"]),
                generated_tokens=int(timings["predicted_n"]),
                prompt_ms=float(timings["prompt_ms"]),
                generation_ms=float(timings["predicted_ms"]),
                wall_s=wall_s,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("/completion", error) from error

    def _alias(self) -> str:
        models = self._call("GET", "/v1/models").get("data") or [{}]
        return str(models[0].get("id", ""))

    def _key(self) -> str:
        try:
            lines = self._key_file.read_text(encoding="utf-8").split()
        except OSError as error:
            raise UnauthorizedError(
                f"key file {self._key_file} cannot be read ({error.strerror}): run this as root"
            ) from None
        if not lines:
            raise UnauthorizedError(f"key file {self._key_file} is empty: remove it and run site.yml again")
        return lines[0]

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout_s: float = _ANSWER_S,
        *,
        authorized: bool = True,
        kind: type = dict,
    ) -> Any:
        """Return what is answered, which is of this kind."""
        url = self._address + path
        headers = {"Authorization": f"Bearer {self._key()}"} if authorized else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connect()
        try:
            # Until then it was the patience of connecting.
            connection.sock.settimeout(timeout_s)
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return self._answer(url, response.status, response.read(), kind)
        except TimeoutError:
            raise SilentError(f"{url} accepted the request and gave no answer within {timeout_s:g} s") from None
        except ConnectionError:
            raise BrokenError(f"{url} closed the connection without an answer: the server crashed") from None
        except (OSError, HTTPException) as error:
            raise BrokenError(f"{url}: {error!r}") from None
        finally:
            connection.close()

    def _connect(self) -> HTTPConnection:
        address = urlsplit(self._address)
        connection = (
            UnixConnection(address.path, _CONNECT_S)
            if address.scheme == "unix"
            else HTTPConnection(address.hostname or "", address.port, timeout=_CONNECT_S)
        )
        try:
            connection.connect()
        except TimeoutError:
            raise UnreachableError(f"{self._address} does not accept connections within {_CONNECT_S} s") from None
        except OSError as error:
            said = (error.strerror or str(error)).lower()
            raise UnreachableError(f"nothing answers at {self._address} ({said})") from None
        return connection

    def _answer(self, url: str, status: int, body: bytes, kind: type) -> Any:
        if status == 503:
            raise LoadingError(f"{url} still loads its model (503)")
        if status in (401, 403):
            raise UnauthorizedError(
                f"{url} refuses the key of {self._key_file} ({status}): "
                "the server was started with another key; restart the tier"
            )
        text = body.decode(errors="replace")
        if status != 200:
            raise BrokenError(f"{url} answers {status}: {text[:200].strip()}")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, kind):
            raise BrokenError(f"{url} does not answer as llama-server does: {text[:200].strip()!r}")
        return answer

    def _strange(self, path: str, error: Exception) -> BrokenError:
        return BrokenError(f"{self._address}{path} lacks what llama-server tells there: {error!r}")


@dataclass(frozen=True)
class Buffers:
    """What llama.cpp allocated in one place, in MiB as its log tells."""

    weights_mib: float = 0.0
    kv_mib: float = 0.0
    compute_mib: float = 0.0


@dataclass(frozen=True)
class LoggedBuffers:
    """Buffers by place: `devices` in the order asked for, `host` the memory of the host, `others` by llama.cpp's name.

    `found` is false when no line tells of any model buffer.
    """

    devices: tuple[Buffers, ...]
    host: Buffers
    others: dict[str, Buffers]
    found: bool


# "load_tensors: RPC0[127.0.0.1:50052] model buffer size =    50.30 MiB"; a recurrent state (RS) is a model's KV.
_BUFFER = re.compile(r"(?:^|\s)\w+:\s+(\S+)\s+(model|KV|RS|compute|output) buffer size =\s*([0-9.]+) MiB\s*$")
_HOST = re.compile(r"CPU(_\w+)?|AMX|\w+_Host")
_RPC = re.compile(r"RPC\d*\[(.+)\]")
# Row split of the CUDA back end (engine b3fed31b9): the matrices of the layers that the device has, whose rows lie on
# all cards. How much of them each card has the log does not tell.
_SPLIT = re.compile(r"\w+_Split")


def buffers(lines: Iterable[str], devices: Sequence[Device]) -> LoggedBuffers:
    """Read the buffers of one run from its log, as JSON lines or plain text, whatever else stands between.

    Several model and KV buffers of a place add up (two caches with sliding window attention); a compute buffer is
    reserved again and again, the last counts. The buffers of every ggml-rpc-server are called RPC0: the endpoint tells
    them apart. The output buffer is reckoned among the compute buffers. Of matrices whose rows lie on all cards each
    device is given the share that it has of the plan's weights: their sum is the engine's, and NVML tells the rest.
    """
    places: dict[str, Buffers] = {}
    planned = sum(device.weights_mib or 0.0 for device in devices)
    in_rows = 0.0
    reserved: dict[str, dict[str, float]] = {}
    found = False
    for line in lines:
        match = _BUFFER.search(message(line).rstrip())
        if match is None:
            continue
        place, kind, mib = _place(match[1]), match[2], float(match[3])
        if _SPLIT.fullmatch(place) and planned:
            in_rows, found = in_rows + mib, True
            continue
        held = places.setdefault(place, Buffers())
        if kind == "model":
            found = True
            places[place] = replace(held, weights_mib=held.weights_mib + mib)
        elif kind in ("KV", "RS"):
            places[place] = replace(held, kv_mib=held.kv_mib + mib)
        else:
            # By name within the place: CPU and CUDA_Host are both host memory.
            reserved.setdefault(place, {})[f"{match[1]} {kind}"] = mib
    for place, parts in reserved.items():
        places[place] = replace(places[place], compute_mib=sum(parts.values()))
    for device in devices if in_rows else ():
        place = device.rpc_endpoint or device.name
        held = places.setdefault(place, Buffers())
        share = in_rows * (device.weights_mib or 0.0) / planned
        places[place] = replace(held, weights_mib=held.weights_mib + share)
    rounded = {
        place: Buffers(round(held.weights_mib, 2), round(held.kv_mib, 2), round(held.compute_mib, 2))
        for place, held in places.items()
    }
    expected = [device.rpc_endpoint or device.name for device in devices]
    return LoggedBuffers(
        devices=tuple(rounded.get(place, Buffers()) for place in expected),
        host=rounded.get(_HOST_PLACE, Buffers()),
        others={place: held for place, held in rounded.items() if place not in (*expected, _HOST_PLACE)},
        found=found,
    )


# "llama_prepare_model_devices: using device CUDA0 (NVIDIA H100) (0000:01:00.0) - 79000 MiB free"; one of several
# devices that the engine makes of one card (GGML_CUDA_DEVICES) has the card's address and "-v0", "-v1", ... after it.
_USED = re.compile(r"using device (\S+) \(.*\) \(([0-9a-fA-F]+:[0-9a-fA-F]+:[0-9a-fA-F]+\.[0-9a-fA-F]+)(?:-v\d+)?\)")
# "system_info: n_threads = 8 ... | CUDA : ARCHS = 610,860 | USE_GRAPHS = 1 | ..." (ggml_backend_cuda_get_features).
_ARCHITECTURES = re.compile(r"CUDA : .*?ARCHS = ([0-9a-z,]+)")


def pci_bus_ids(lines: Iterable[str]) -> dict[str, str]:
    """Return the PCI address of the card behind each device, by the engine's name, as its log tells; empty for RPC."""
    found = (_USED.search(message(line)) for line in lines)
    return {match[1]: match[2].lower() for match in found if match}


def compiled_for(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the compute capabilities ("8.6") that the engine's log says its binary was compiled for."""
    for line in lines:
        match = _ARCHITECTURES.search(message(line))
        if match:
            numbers = [re.sub(r"\D", "", part) for part in match[1].split(",")]
            return tuple(f"{int(number) // 100}.{int(number) // 10 % 10}" for number in numbers if number)
    return ()


_HOST_PLACE = "host"


def _place(name: str) -> str:
    if _HOST.fullmatch(name):
        return _HOST_PLACE
    endpoint = _RPC.fullmatch(name)
    return endpoint[1] if endpoint else name


def message(line: str) -> str:
    """Return what a line of the log says, be it a JSON line or plain text."""
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line)["msg"])
    except (ValueError, KeyError, TypeError):
        return line
