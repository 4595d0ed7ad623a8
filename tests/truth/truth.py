"""Ask the engine what every case takes, and write its answers to one file.

Run alone with python3, gguf and numpy, no network and no weights:

    python3 tests/truth/truth.py --bin DIR --kind rpc  --out rpc.json     # any machine: CPU rpc-servers are devices
    python3 tests/truth/truth.py --bin DIR --kind cuda --out cuda.json    # one CUDA card plays one to three

With --overhead the server then really loads models (of zeros) onto the card, answers a prompt of 600 tokens, and what
its process holds beyond its buffers is recorded: context, modules, libraries' pools.

DIR holds llama-server and llama-fit-params (for rpc: ggml-rpc-server as well) of one build. Both tools are asked:
`llama-fit-params --fit-print on`, and llama-server's own fit stage (`--log-jsonl`, rows fit_memory_breakdown), which is
what is deployed; the server is killed as soon as it has told. The two differ by the rows of logits that they reserve.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cases
import models

SCHEMA = "llama-tiers/planner-truth/1"
TIMEOUT_S = 60


def flags(case: cases.Case, gguf: Path, devices: Sequence[str], endpoints: Sequence[str]) -> list[str]:
    """Return the flags of a case that both tools take."""
    return [
        *("--model", str(gguf)),
        *(("--rpc", ",".join(endpoints)) if endpoints else ()),
        *("--device", ",".join(devices)),
        *("--n-gpu-layers", str(case.n_gpu_layers)),
        *("--split-mode", case.split_mode),
        *("--tensor-split", ",".join(map(str, case.tensor_split))),
        *("--ctx-size", str(case.ctx_size)),
        *("--cache-type-k", case.cache_type_k),
        *("--cache-type-v", case.cache_type_v),
        *("--ubatch-size", str(case.ubatch_size)),
        *("--flash-attn", case.flash_attn),
        *("--parallel", str(case.parallel)),
        # Weights that the CPU would repack are missing in what the tools tell of the host.
        "--no-repack",
        # An override that matches no tensor: the engine computes without pipeline parallelism then.
        *(() if case.pipeline_parallel else ("--override-tensor", r"no_such_tensor\.weight=CPU")),
        *(("--n-cpu-moe", str(case.n_cpu_moe)) if case.n_cpu_moe else ()),
    ]


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def fit_params(binary: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, list[int]]:
    """Return model, context and compute in MiB by device, as llama-fit-params prints them."""
    done = subprocess.run(
        [str(binary), *arguments, "--fit-print", "on"],
        capture_output=True,
        text=True,
        env=dict(environment),
        timeout=TIMEOUT_S,
        check=False,
    )
    rows = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) == 4 and all(word.isdigit() for word in words[1:]):
            rows[words[0]] = [int(word) for word in words[1:]]
    if done.returncode or not rows:
        raise RuntimeError(f"rc {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
    return rows


def server(binary: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, list[int]]:
    """Return model, context and compute in MiB by device, as llama-server's fit stage tells them; then kill it."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(str(binary), *arguments),
            *("--fit", "on", "--cache-ram", "0", "--host", "127.0.0.1", "--port", str(port)),
            *("--offline", "--no-ui", "--no-warmup", "--log-jsonl"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(environment),
    )
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    last: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last = [*last[-4:], line.strip()]
            if '"fit_memory_breakdown"' in line:
                rows = json.loads(line)["data"]["rows"]
                return {row["name"]: [row["model"], row["context"], row["compute"]] for row in rows}
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    raise RuntimeError(f"rc {process.returncode}: {' '.join(last)[-300:]}")


# One and two devices, small and large: what grows with neither is the card's.
OVERHEAD = (
    cases.Case("qwen3-0.6b-q8_0", (29,), 29),
    cases.Case("qwen3-0.6b-q8_0", (22, 7), 29),
    cases.Case("llama-3.2-1b-instruct-q8_0", (17,), 17, cache_type_k="q8_0", cache_type_v="q8_0"),
    cases.Case("qwen2.5-7b-instruct-abliterated-q6_k", (29,), 29),
    cases.Case("deepseek-r1-distill-qwen-14b-q4_k_m", (38, 11), 49),
)


def used_mib(pid: int) -> int:
    """Return what a process holds on all cards, as nvidia-smi tells it; what all hold where it names no process."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    by_pid = {int(pid): int(mib) for pid, mib in (line.split(",") for line in told if line.strip())}
    return by_pid[pid] if pid in by_pid else sum(by_pid.values())


def overhead(binary: Path, case: cases.Case, directory: Path) -> dict[str, Any]:
    """Load a model for good, let it answer, and return what its process holds beside its buffers; MiB."""
    devices = [f"CUDA{index}" for index in range(len(case.tensor_split))]
    environment = dict(os.environ, GGML_CUDA_DEVICES=str(len(devices)))
    arguments = flags(case, models.write(models.MODELS[case.model], directory, vocabulary=True), devices, [])
    told = server(binary, arguments, environment)
    port = free_port()
    process = subprocess.Popen(
        [binary, *arguments, "--fit", "off", "--host", "127.0.0.1", "--port", str(port), "--offline", "--no-ui"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"llama-server ended with {process.returncode}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
                    if reply.status == 200:
                        break
            except OSError:
                time.sleep(0.2)
        body = json.dumps({"prompt": [300 + token for token in range(600)], "n_predict": 8, "ignore_eos": True})
        with urllib.request.urlopen(f"{url}/completion", data=body.encode(), timeout=120) as reply:
            reply.read()
        process_mib = used_mib(process.pid)
    finally:
        process.kill()
        process.wait()
    buffers = sum(sum(figures) for device, figures in told.items() if device != "Host")
    return {"process_mib": process_mib, "buffers_mib": buffers, "overhead_mib": process_mib - buffers}


@contextmanager
def rpc_servers(binary: Path, count: int) -> Iterator[list[str]]:
    """Run `count` rpc-servers on the CPU, one for each device, and yield their endpoints."""
    started, endpoints = [], []
    try:
        for _ in range(count):
            port = free_port()
            started.append(
                subprocess.Popen(
                    [binary, "--host", "127.0.0.1", "--port", str(port), "--threads", "1"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            endpoints.append(f"127.0.0.1:{port}")
        for endpoint in endpoints:
            _wait(endpoint)
        yield endpoints
    finally:
        for process in started:
            process.kill()
            process.wait()


def _wait(endpoint: str) -> None:
    host, _, port = endpoint.partition(":")
    for _ in range(100):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"ggml-rpc-server does not answer on {endpoint}")


def _card() -> dict[str, str]:
    """Describe the card through nvidia-smi; empty where there is none."""
    query = "name,compute_cap,driver_version,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(query.split(","), (word.strip() for word in done.stdout.splitlines()[0].split(",")), strict=True))


def main() -> int:
    """Ask about every case; one that fails is recorded with its error and stops nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="directory of the engine's programs")
    parser.add_argument("--kind", choices=["rpc", "cuda"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overhead", action="store_true", help="cuda: measure what a process holds beside its buffers")
    parser.add_argument("--only", default="", help="ask only about cases whose name holds this")
    options = parser.parse_args()
    binaries = options.bin.resolve()
    version = subprocess.run([binaries / "llama-server", "--version"], capture_output=True, text=True, check=True)
    chosen = [case for case in cases.CASES if options.only in case.name]
    answers: list[dict[str, Any]] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = {name: models.write(models.MODELS[name], directory) for name in {case.model for case in chosen}}
        endpoints: list[str] = []
        if options.kind == "rpc":
            endpoints = stack.enter_context(rpc_servers(binaries / "ggml-rpc-server", 3))
        for number, case in enumerate(chosen, 1):
            count = len(case.tensor_split)
            environment = dict(os.environ, **({"GGML_CUDA_DEVICES": str(count)} if options.kind == "cuda" else {}))
            devices = [f"{options.kind.upper()}{index}" for index in range(count)]
            arguments = flags(case, files[case.model], devices, endpoints[:count])
            answer: dict[str, Any] = {"name": case.name, "case": case.to_json(), "devices": devices}
            for tool, ask in (("llama-fit-params", fit_params), ("llama-server", server)):
                try:
                    answer[tool] = ask(binaries / tool, arguments, environment)
                except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                    answer[tool] = {"error": str(error).replace(str(directory), "").replace(str(binaries), "")}
            answers.append(answer)
            print(f"{number}/{len(chosen)} {case.name}", file=sys.stderr)
        overheads = []
        for case in OVERHEAD if options.overhead else ():
            found: dict[str, Any] = {"case": case.to_json()}
            try:
                found |= overhead(binaries / "llama-server", case, directory)
            except (RuntimeError, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                found["error"] = str(error).replace(str(directory), "").replace(str(binaries), "")
            overheads.append(found)
            print(f"overhead {case.name}: {found.get('overhead_mib', found.get('error'))}", file=sys.stderr)
    document = {
        "schema": SCHEMA,
        "engine": (version.stderr + version.stdout).strip().splitlines()[0],
        "kind": options.kind,
        "card": _card() if options.kind == "cuda" else {},
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": f"python3 tests/truth/truth.py --bin DIR --kind {options.kind} --out {options.out.name}",
        "unit": "MiB: model, context, compute",
        "overhead": overheads,
        "cases": answers,
    }
    head = json.dumps({key: value for key, value in document.items() if key != "cases"}, indent=1)
    lines = ",\n".join("  " + json.dumps(answer, separators=(",", ":")) for answer in answers)
    options.out.write_text(f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    failed = sum("error" in answer[tool] for answer in answers for tool in ("llama-fit-params", "llama-server"))
    print(f"{len(answers)} cases, {failed} answers are errors: {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
