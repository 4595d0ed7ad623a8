"""build.py: what it takes to compile the engine for this machine's cards, beside llama.cpp's default architectures.

Both are whole builds of the release's programs, by its compilers and with its flags, from nothing and without a
compiler cache. A step may be cut off before the second one is done: what is compiled by then stays, the next call goes
on, and the seconds of all calls are added up. What was being compiled at the cut is compiled again, and counts twice.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import proof

# The compiler takes some architectures of a file at the same time, or the longest file alone decides how long all take.
THREADS = 4
# Ten minutes with unpacking and cmake, which are before: a step that ends by itself keeps what it has measured.
LIMIT_S = 530
ROOT = proof.STATE / "build"
SOURCE = ROOT / "source"
ARCHITECTURES = re.compile(r"Using CMAKE_CUDA_ARCHITECTURES=(\S+)")


def unpack() -> None:
    if SOURCE.exists():
        return
    place = SOURCE.with_suffix(".new")
    place.mkdir(parents=True)
    packed = ["git", "-C", str(proof.STATE / "source/llama.cpp.git"), "archive", "HEAD"]
    with subprocess.Popen(packed, stdout=subprocess.PIPE) as git:
        subprocess.run(["tar", "x", "-C", str(place)], stdin=git.stdout, check=True)
    place.rename(SOURCE)


def configure(name: str, flags: Mapping[str, str]) -> tuple[Path, list[str]]:
    """Make a build folder; return it with the architectures that it is for."""
    tree = ROOT / name
    command = ["cmake", "-S", str(SOURCE), "-B", str(tree), "-G", "Ninja", "-DGGML_CCACHE=OFF"]
    done = subprocess.run(
        [*command, *(f"-D{key}={value}" for key, value in flags.items())], capture_output=True, text=True, check=False
    )
    (proof.LOGS / f"build-{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"cmake for {name} failed: {done.stderr[-2000:]}")
    found = ARCHITECTURES.search(done.stdout)
    return tree, found[1].split(";") if found else []


def compile_programs(tree: Path, programs: list[str], limit_s: float) -> dict[str, Any]:
    """Compile with all cores for as long as there is time; return the seconds, also those of all processes."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        ["timeout", "--signal=INT", str(max(1, int(limit_s))), "ninja", "-C", str(tree), *programs],
        capture_output=True,
        text=True,
        env={**os.environ, "NVCC_APPEND_FLAGS": f"--threads={THREADS}"},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = {
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "complete": done.returncode == 0,
    }
    if done.returncode == 0:
        found["bytes"] = {name: (tree / "bin" / name).stat().st_size for name in programs}
    elif done.returncode != 124:
        found["error"] = f"exit {done.returncode}: {done.stdout[-1000:]}"
    return found


def add(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return a case with what this call did of it."""
    seconds = {key: round(before.get(key, 0) + now[key], 1) for key in ("wall_s", "cpu_s")}
    return {**before, **now, **seconds, "calls": before.get("calls", 0) + 1}


def main() -> int:
    deadline = time.monotonic() + LIMIT_S
    built = proof.release()
    own = dict(built["cmake_flags"])
    # Without GGML_NATIVE=OFF llama.cpp, too, compiles for the cards that it sees.
    default = {key: value for key, value in own.items() if key != "CMAKE_CUDA_ARCHITECTURES"} | {"GGML_NATIVE": "OFF"}
    earlier = proof.read("build")
    cases = {case["what"]: case for case in earlier.get("cases", []) if earlier.get("release") == built["name"]}
    unpack()
    for name, flags in (("own", own), ("default", default)):
        if cases.get(name, {}).get("complete"):
            continue
        tree, architectures = configure(name, flags)
        now = compile_programs(tree, list(built["bytes"]), deadline - time.monotonic())
        cases[name] = {"what": name, "architectures": architectures} | add(cases.get(name, {}), now)
        document = proof.head("build", "tests/gpu/run.sh build") | {
            "cores": len(os.sched_getaffinity(0)),
            "threads_of_a_compiler": THREADS,
            "cases": list(cases.values()),
            "passed": all(cases.get(each, {}).get("complete") for each in ("own", "default")),
        }
        if document["passed"]:
            document["times_the_own"] = {
                key: round(cases["default"][key] / cases["own"][key], 2) for key in ("wall_s", "cpu_s")
            }
        proof.write("build", document)
        print(cases[name], flush=True)
        if not cases[name]["complete"]:
            print("not done: the same step once more goes on", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
