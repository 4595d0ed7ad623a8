"""llama-tiers-gpus.service: it makes the device nodes as NVIDIA's program takes it, and goes on until all are there."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from jinja2 import Environment

UNIT = Path(__file__).parents[2] / "roles/gpu_host/templates/etc/systemd/system/llama-tiers-gpus.service.j2"
# As nvidia-modprobe.c has it: after -u a number is that of the node of unified memory, and of no card. The second card
# comes late.
MODPROBE = """#!/bin/sh
cd {folder}
echo "$*" >>calls
case $* in
-c=255*) touch nvidiactl nvidia0; [ $(wc -l <calls) -lt 3 ] || touch nvidia1 ;;
-u*) shift; echo "$*" >nvidia-uvm; touch nvidia-uvm-tools ;;
esac
"""


def test_all_nodes_are_made_and_waited_for(tmp_path: Path) -> None:
    modprobe = tmp_path / "nvidia-modprobe"
    modprobe.write_text(MODPROBE.format(folder=tmp_path))
    modprobe.chmod(0o755)
    nodes = [str(tmp_path / name) for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia1")]
    template = Environment(autoescape=False).from_string(UNIT.read_text())
    unit = template.render(_gpu_host_cuda={"modprobe": str(modprobe)}, _gpu_host_minors=[0, 1], _gpu_host_nodes=nodes)
    lines = unit.replace("\\\n", "").splitlines()
    (command,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    assert "\nRestart=" not in unit, "a try that fails would let the tiers start"
    subprocess.run(shlex.split(command), check=True, timeout=30, capture_output=True)
    assert all(Path(node).exists() for node in nodes)
    assert (tmp_path / "nvidia-uvm").read_text() == "-c=0\n"
