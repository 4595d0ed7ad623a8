"""Programs of the release on the machine's cards: placements, servers, benchmarks, and a process that holds memory."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import proof

from checker import argv, cards, hardware, llama_server, measure, placement, plan
from checker import perplexity as checker_perplexity
from checker.catalogue import EngineFlags, GpuEntry, RamEntry, TierEntry
from checker.evidence import steps
from checker.gguf import read_header
from checker.header import Header
from checker.planning import read_yaml
from checker.tier import MMAP, Device, Placement

PORT = 8090
KEY = proof.STATE / "key"
CONTEXT = 8192
# Fills more than one micro-batch, so that everything that is allocated late is allocated.
LONG_PROMPT = "The planner says what fits and why. " * 90
LOAD_LIMIT_S = 180


def gpus() -> list[GpuEntry]:
    """Return the machine's cards as the inventory has them."""
    return [GpuEntry.model_validate(gpu) for gpu in json.loads(proof.HOST.read_text(encoding="utf-8"))["gpus"]]


def physical() -> tuple[cards.Card, ...]:
    """Return the machine's cards as the planner sees them now: what others hold of them is taken."""
    profile = {"gpus": [asdict(gpu) for gpu in hardware.read_gpus()], "tiers_mib": {gpu.uuid: 0.0 for gpu in gpus()}}
    return cards.host(gpus(), RamEntry(), profile).cards


def shown() -> tuple[cards.Card, ...]:
    """Return the devices to split over: the cards, or one card as often as the inventory has it shown."""
    found = physical()
    return found * proof.devices_per_card(len(found))


def environment(used: Sequence[cards.Card]) -> dict[str, str]:
    """Return what has llama.cpp show these cards in this order, one of them several times if it is there so often."""
    uuids = list(dict.fromkeys(str(card.uuid) for card in used if card.kind == "CUDA"))
    if not uuids:
        return {}
    many = {"GGML_CUDA_DEVICES": str(len(used))} if len(used) > len(uuids) else {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(uuids), **many}


def explicit(
    header: Header, split: Sequence[int], used: Sequence[cards.Card], cache_type: str = "f16", mode: str | None = None
) -> placement.Choice:
    """Return a placement in so many words, with its arithmetic."""
    chosen = Placement(
        split_mode=mode or ("none" if len(split) == 1 else "layer"),
        tensor_split=tuple(split),
        n_gpu_layers=sum(split),
        ctx_size=CONTEXT,
        cache_type_k=cache_type,
        cache_type_v=cache_type,
        ubatch_size=512,
        flash_attn="on",
    )
    return placement.evaluate(header, chosen, used, cards.Ram(None))


def predicted_mib(devices: Sequence[Device]) -> dict[str, float]:
    """Return what a plan says by card; what CUDA itself takes is counted once a card, however often it is shown."""
    held: dict[str, float] = {}
    for device in devices:
        once = 0.0 if device.uuid in held else device.overhead_mib or 0.0
        parts = (device.weights_mib or 0.0, device.kv_mib or 0.0, device.compute_mib or 0.0, once)
        held[device.uuid] = held.get(device.uuid, 0.0) + sum(parts)
    return held


def flags() -> EngineFlags:
    table = read_yaml(proof.ROOT / "catalogue/engines.yml")["engines"]
    entry = next(engine for engine in table.values() if engine["commit"] == proof.release()["commit"])
    return EngineFlags.model_validate(entry["flags"])


def server_argv(model: Path, choice: placement.Choice, load_mode: str = MMAP) -> list[str]:
    """Return the command line that the product would give a tier with this placement."""
    document = {"name": "proof", "port": PORT, "context": CONTEXT, "gpus": "any", "candidates": [{"model": "m"}]}
    return list(
        argv.server_argv(
            TierEntry.model_validate(document),
            model.stem,
            choice.placement,
            plan.devices(choice),
            flags(),
            binary=str(proof.RELEASE / "bin/llama-server"),
            model_file=str(model),
            key_file=str(KEY),
            load_mode=load_mode,
        )
    )


@dataclass
class Running:
    """A server that answers: its client, process, log and seconds until it was healthy."""

    client: llama_server.LlamaServer
    pid: int
    log: Path
    load_s: float

    def lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


class NotServedError(Exception):
    """A server that ended, or did not become healthy; the message is the end of what it said."""


def address(command: Sequence[str]) -> str:
    """Return where a server listens, by its command line: a socket, as those of tiers, or a port."""
    host = command[command.index("--host") + 1] if "--host" in command else "127.0.0.1"
    return f"unix:{host}" if host.endswith(".sock") else f"http://{host}:{PORT}"


@contextmanager
def serving(command: Sequence[str], extra: Mapping[str, str]) -> Iterator[Running]:
    """Run a server while the context lasts."""
    # A client sends it, whether the server asks for it or not.
    KEY.write_text("gpu-proof-on-loopback\n", encoding="utf-8")
    at = address(command)
    if at.startswith("unix:"):
        socket = Path(at.removeprefix("unix:"))
        socket.parent.mkdir(parents=True, exist_ok=True)
        # A server that is killed leaves it behind, and the next one would not bind it.
        socket.unlink(missing_ok=True)
    log = proof.LOGS / "server.log"
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **extra})
    try:
        client = llama_server.LlamaServer(at, str(KEY))
        while True:
            try:
                client.health()
                break
            except llama_server.ServerError:
                time.sleep(0.05)
            if process.poll() is not None or time.monotonic() - began > LOAD_LIMIT_S:
                said = [
                    line
                    for line in log.read_text(errors="replace").splitlines()
                    if '"level"' not in line or "rror" in line
                ]
                raise NotServedError(f"exit {process.poll()}: {' | '.join(said[-4:])[-600:]}")
        yield Running(client, process.pid, log, round(time.monotonic() - began, 2))
    finally:
        process.kill()
        process.wait()


def rate(running: Running, times: int = 3) -> dict[str, Any]:
    """Return tokens per second as the checker asks for them, and with the most probable token always."""
    template = running.client.props().chat_template
    prompt = running.client.as_prompt(measure.PROMPT, template, measure.PLAIN_PROMPT)
    found: dict[str, list[float]] = {"as_asked": [], "greedy": []}
    generated = 0
    for _ in range(times):
        for name, temperature in (("as_asked", measure.TEMPERATURE), ("greedy", 0.0)):
            told = running.client.complete(prompt, measure.MAX_TOKENS, temperature, measure.SEED, 120)
            generated = told.generated_tokens
            found[name].append(round(steps(generated) / told.generation_ms * 1000, 2))
    return {"tokens": generated, **{name: {"median": median(all_), "all": all_} for name, all_ in found.items()}}


def held_mib(pid: int) -> dict[str, float]:
    """Return what a process holds of each card, by UUID, as NVML tells."""
    return {gpu.uuid: measure.held_mib(gpu.uuid, pid) for gpu in gpus()}


def served(model: Path, choice: placement.Choice) -> dict[str, Any]:
    """Serve a placement as the product would; return plan and measurement of memory, and tokens per second."""
    devices = plan.devices(choice)
    expected = predicted_mib(devices)
    found: dict[str, Any] = {
        "model": model.stem,
        "split_mode": choice.placement.split_mode,
        "tensor_split": list(choice.placement.tensor_split),
        "cache_type": choice.placement.cache_type_k,
        "environment": environment(choice.cards),
        "predicted_mib": {uuid: round(mib, 1) for uuid, mib in expected.items()},
    }
    try:
        with serving(server_argv(model, choice), environment(choice.cards)) as running:
            running.client.complete(LONG_PROMPT, 8, 0.0, measure.SEED, 120)
            found["tokens_per_second"] = rate(running, 2)
            held = held_mib(running.pid)
            logged = llama_server.buffers(running.lines(), devices)
            found["load_s"] = running.load_s
    except (NotServedError, llama_server.ServerError) as error:
        return found | {"error": str(error)}
    found["measured_mib"] = held
    found["engine_mib"] = [asdict(buffers) for buffers in logged.devices]
    found["predicted_buffers_mib"] = [
        {key: device_key for key, device_key in asdict(device).items() if key.endswith("_mib")} for device in devices
    ]
    found["off_percent"] = {
        uuid: round(100 * (expected[uuid] / held[uuid] - 1), 2) if held[uuid] else None for uuid in expected
    }
    return found


def _endpoints(devices: Sequence[Device]) -> tuple[str, ...]:
    """Return the flag that names the RPC servers behind devices; nothing for a machine's own cards."""
    endpoints = [device.rpc_endpoint for device in devices if device.rpc_endpoint]
    return ("--rpc", ",".join(endpoints)) if endpoints else ()


def _run(command: Sequence[str], choice: placement.Choice) -> subprocess.CompletedProcess[str]:
    """Run one of the engine's programs with the cards of a placement shown to it."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **environment(choice.cards)},
        timeout=300,
        check=False,
    )


def bench(
    model: Path,
    choice: placement.Choice,
    tokens: int,
    times: int = 3,
    prompt: int = 0,
    depths: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Return llama-bench's tokens per second for a placement: of generation, and of a prompt if asked for.

    `depths` are the tokens that the context holds before, each for a measurement of its own.
    """
    devices, chosen = plan.devices(choice), choice.placement
    command = [
        *(str(proof.RELEASE / "bin/llama-bench"), "-m", str(model), "-o", "json", "-r", str(times)),
        *_endpoints(devices),
        *("-dev", "/".join(device.name for device in devices), "-ngl", str(chosen.n_gpu_layers)),
        *("-sm", chosen.split_mode, "-ts", "/".join(map(str, chosen.tensor_split)), "-fa", chosen.flash_attn),
        *("-ctk", chosen.cache_type_k, "-ctv", chosen.cache_type_v, "-ub", str(chosen.ubatch_size)),
        *("-p", str(prompt), "-n", str(tokens), "-d", ",".join(map(str, depths))),
    ]
    done = _run(command, choice)
    if done.returncode:
        return {"error": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    return bench_speeds(json.loads(done.stdout))


def bench_speeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tokens per second of what llama-bench prints as JSON: the average, and all."""
    return {
        bench_name(row["n_prompt"], row["n_gen"], row["n_depth"]): {
            "tokens_per_second": round(row["avg_ts"], 2),
            "all": [round(value, 2) for value in row["samples_ts"]],
        }
        for row in rows
    }


def bench_name(prompt: int, generated: int, depth: int = 0) -> str:
    """Name a measurement as llama-bench's tables do: pp512, tg64, tg64 @ d512."""
    return (f"pp{prompt}" if prompt else f"tg{generated}") + (f" @ d{depth}" if depth else "")


def perplexity(
    model: Path, choice: placement.Choice, base: Path, text: Path, *, compare: bool
) -> dict[str, float | str]:
    """Write the base of a comparison, or return how far the placement's probabilities are from it."""
    devices, chosen = plan.devices(choice), choice.placement
    command = [
        *(str(proof.RELEASE / "bin/llama-perplexity"), "--model", str(model), "--file", str(text)),
        *_endpoints(devices),
        *("--device", ",".join(device.name for device in devices), "--n-gpu-layers", str(chosen.n_gpu_layers)),
        *("--split-mode", chosen.split_mode, "--tensor-split", ",".join(map(str, chosen.tensor_split))),
        *("--flash-attn", "on", "--ctx-size", "512", "--chunks", "4", "--fit", "off"),
        *("--kl-divergence-base", str(base), *(("--kl-divergence",) if compare else ())),
    ]
    done = _run(command, choice)
    said = done.stdout + done.stderr
    if done.returncode:
        return {"error": f"exit {done.returncode}: {said.strip()[-300:]}"}
    found = checker_perplexity.read(said)
    if found is None:
        return {}
    return {
        "mean_kld": found.mean_kld,
        "maximum_kld": found.max_kld,
        "same_top_token_percent": round(100 * found.same_top_share, 3),
    }


def file_header(model: Path) -> Header:
    return read_header(model)


_HOLD = """
import ctypes, sys
cuda, target = ctypes.CDLL("libcuda.so.1"), int(sys.argv[1]) << 20
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code: sys.exit(f"{name}: CUDA error {code}")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
free, total = ctypes.c_size_t(), ctypes.c_size_t()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
while True:
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    much = min(free.value - target, 8 << 30) >> 21 << 21
    if much <= 0: break
    call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(much))
print(free.value >> 20, flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(free_mib: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Have other processes hold so much of each card (by UUID) that only this many MiB are free; yield what is."""
    holders = []
    left: dict[str, int] = {}
    if not has_cuda():  # cards behind an RPC server: as they are
        yield {str(card.uuid): card.free_mib for card in physical()}
        return
    try:
        for uuid, mib in free_mib.items():
            holder = subprocess.Popen(
                [sys.executable, "-c", _HOLD, str(mib)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid},
            )
            holders.append(holder)
            assert holder.stdout is not None
            told = holder.stdout.readline().strip()
            if not told:
                raise RuntimeError(f"the process that is to hold memory of {uuid} ended with {holder.wait()}")
            left[uuid] = int(told)
        yield left
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


_MULTIPROCESSORS = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
cuda.cuInit(0)
cuda.cuDeviceGetAttribute(ctypes.byref(count), 16, 0)
print(count.value)
"""


def multiprocessors() -> int:
    """Return how many multiprocessors of the first card a program that is started now can use."""
    told = subprocess.run([sys.executable, "-c", _MULTIPROCESSORS], capture_output=True, text=True, check=True)
    return int(told.stdout)


@contextmanager
def paced(percent: int) -> Iterator[int]:
    """Have programs that are started meanwhile use this share of each card's multiprocessors, by CUDA MPS.

    Yields how many those are. RuntimeError when they are as many as before: without its daemon MPS is passed over.
    """
    control = shutil.which("nvidia-cuda-mps-control", path=f"{os.environ['PATH']}:/usr/local/nvidia/bin")
    if control is None:
        raise RuntimeError("nvidia-cuda-mps-control is not on this machine: a card cannot be paced")
    whole = multiprocessors()
    folders = {"CUDA_MPS_PIPE_DIRECTORY": proof.STATE / "mps", "CUDA_MPS_LOG_DIRECTORY": proof.LOGS / "mps"}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(os.environ, {name: str(folder) for name, folder in folders.items()}):
        # One that a run left behind.
        _end_mps(control)
        subprocess.run([control, "-d"], check=True)
        try:
            with mock.patch.dict(os.environ, {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent)}):
                share = multiprocessors()
                if share >= whole:
                    raise RuntimeError(f"MPS has no effect: {share} of {whole} multiprocessors for {percent} %")
                yield share
        finally:
            _end_mps(control)


def _end_mps(control: str) -> None:
    subprocess.run([control], input="quit -t 10\n", text=True, capture_output=True, timeout=60, check=False)


def has_cuda() -> bool:
    """Whether there is a CUDA driver; without one no memory can be held."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def halves(layers: int, count: int) -> tuple[int, ...]:
    """Share layers out evenly, the first devices taking what is left over."""
    return tuple(layers // count + (index < layers % count) for index in range(count))


def uneven(layers: int, count: int) -> tuple[int, ...]:
    """Share layers out as 38 and 11 of 49; with one device all of them."""
    if count == 1:
        return (layers,)
    first = round(layers * 38 / 49)
    return (first, *halves(layers - first, count - 1))


def smaller(card: cards.Card, free_mib: int) -> cards.Card:
    """Return a card as the planner sees it when so much of it is free."""
    assert card.total_mib is not None
    return replace(card, taken_mib=card.total_mib - free_mib, margin_mib=cards.default_margin_mib(free_mib))
