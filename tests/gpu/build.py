"""build.py: what it takes to compile for this machine's cards alone, beside llama.cpp's default architectures.

A whole build for the default takes longer than a step may. So some files of the CUDA back end, of those that the tiers'
models run, are compiled for both, by the compilers and with the flags of the release, and the seconds of all processes
are added up. The figures are those of these files and of nothing else.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import proof

# Products with the mission's quantisations, attention on both types of cache, and what is between them.
FILES = (
    *(f"mmq-instance-{kind}" for kind in ("q4_k", "q5_k", "q6_k")),
    *(f"fattn-vec-instance-{kind}-{kind}" for kind in ("f16", "q8_0")),
    *("mmvq", "norm", "quantize", "rope"),
)
# The compiler takes the architectures of a file at the same time, or the last file alone decides how long all take.
THREADS = 8
LIMIT_S = 240
SOURCE = proof.STATE / "build/source"
OBJECT = re.compile(r"^(\S+\.cu\.o):", re.MULTILINE)
ARCHITECTURES = re.compile(r"Using CMAKE_CUDA_ARCHITECTURES=(\S+)")


def unpack() -> None:
    shutil.rmtree(SOURCE.parent, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    packed = ["git", "-C", str(proof.STATE / "source/llama.cpp.git"), "archive", "HEAD"]
    with subprocess.Popen(packed, stdout=subprocess.PIPE) as git:
        subprocess.run(["tar", "x", "-C", str(SOURCE)], stdin=git.stdout, check=True)


def configure(name: str, flags: Mapping[str, str]) -> tuple[Path, list[str]]:
    """Make a build folder; return it with the architectures that it is for."""
    tree = SOURCE.parent / name
    command = ["cmake", "-S", str(SOURCE), "-B", str(tree), "-G", "Ninja", "-DGGML_CCACHE=OFF"]
    done = subprocess.run(
        [*command, *(f"-D{key}={value}" for key, value in flags.items())], capture_output=True, text=True, check=False
    )
    (proof.LOGS / f"build-{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"cmake for {name} failed: {done.stderr[-2000:]}")
    found = ARCHITECTURES.search(done.stdout)
    return tree, found[1].split(";") if found else []


def cuda_objects(tree: Path) -> list[str]:
    """Name the objects of the CUDA back end."""
    command = ["ninja", "-C", str(tree), "-t", "targets", "all"]
    return OBJECT.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compile_objects(tree: Path, objects: Sequence[str]) -> dict[str, Any]:
    """Compile objects with all cores; return the seconds, those of all processes, and the objects' bytes."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        ["timeout", str(LIMIT_S), "ninja", "-C", str(tree), *objects],
        capture_output=True,
        text=True,
        env={**os.environ, "NVCC_APPEND_FLAGS": f"--threads={THREADS}"},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "bytes": sum((tree / each).stat().st_size for each in objects if (tree / each).exists()),
    }
    return found if done.returncode == 0 else found | {"error": f"exit {done.returncode}: {done.stdout[-1000:]}"}


def main() -> int:
    built = proof.release()
    own = dict(built["cmake_flags"])
    # Without GGML_NATIVE=OFF llama.cpp, too, compiles for the cards that it sees.
    default = {key: value for key, value in own.items() if key != "CMAKE_CUDA_ARCHITECTURES"} | {"GGML_NATIVE": "OFF"}
    found = proof.head("build", "tests/gpu/run.sh build") | {
        "cores": len(os.sched_getaffinity(0)),
        "threads_of_a_compiler": THREADS,
        "release_build": {key: built[key] for key in ("architectures", "compile_s", "jobs", "bytes")},
        "files": [f"{name}.cu" for name in FILES],
        "cases": [],
    }
    unpack()
    for name, flags in (("own", own), ("default", default)):
        tree, architectures = configure(name, flags)
        every = cuda_objects(tree)
        chosen = [each for each in every if Path(each).name.removesuffix(".cu.o") in FILES]
        found["of_files"] = len(every)
        found["cases"].append({"what": name, "architectures": architectures, **compile_objects(tree, chosen)})
        print(found["cases"][-1], flush=True)
        proof.write("build", found)
    mine, others = found["cases"]
    found["passed"] = not any("error" in case for case in found["cases"])
    found["times_the_own"] = {key: round(others[key] / mine[key], 2) for key in ("wall_s", "cpu_s", "bytes")}
    proof.write("build", found)
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
