"""What apt takes from NVIDIA's repository: the pinned toolkit with all that it depends on, and nothing else.

apt is asked about a repository of empty packages that depend on each other as those of NVIDIA do, with the preferences
that the role writes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from checker.toolkit import REPOSITORY_TOOLKIT

ROLE = Path(__file__).parents[2] / "roles/llama_cpp"
# Name, version, dependencies.
PACKAGES = (
    ("cuda-nvcc-12-9", "12.9.86-1", "cuda-cudart-dev-12-9, cuda-crt-12-9"),
    ("cuda-crt-12-9", "12.9.86-1", ""),
    ("cuda-cudart-dev-12-9", "12.9.79-1", "cuda-cudart-12-9"),
    (
        "cuda-cudart-12-9",
        "12.9.79-1",
        "cuda-toolkit-12-9-config-common, cuda-toolkit-12-config-common, cuda-toolkit-config-common",
    ),
    ("cuda-toolkit-12-9-config-common", "12.9.79-1", ""),
    ("cuda-toolkit-12-config-common", "12.9.79-1", ""),
    ("cuda-toolkit-config-common", "12.9.79-1", ""),
    ("libcublas-12-9", "12.9.1.4-1", "cuda-toolkit-config-common"),
    ("cuda-nvcc-13-0", "13.0.88-1", ""),
    ("cuda-drivers", "590.48.01-1", ""),
)

pytestmark = pytest.mark.skipif(not shutil.which("apt-get"), reason="apt is Debian's")


def preferences() -> str:
    """Return what the role writes, for packages of a repository on this machine's disk."""
    tasks = yaml.safe_load((ROLE / "tasks/nvidia_source.yml").read_text(encoding="utf-8"))
    (written,) = (
        task["ansible.builtin.copy"]["content"]
        for task in tasks
        if "preferences.d" in str(task.get("ansible.builtin.copy", {}).get("dest"))
    )
    written = written.replace("{{ _llama_cpp_nvidia_suffix }}", "12-9")
    return re.sub(r"origin {{.*?}}", 'origin ""', written)


def ask(tmp_path: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    repository = tmp_path / "repository"
    for folder in (
        "repository",
        "etc/preferences.d",
        "etc/apt.conf.d",
        "state/lists/partial",
        "cache/archives/partial",
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (repository / "Packages").write_text(
        "\n".join(
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: test\nDescription: test\n"
            f"Filename: ./{name}.deb\nSize: 1\nSHA256: {'0' * 64}\n" + (f"Depends: {depends}\n" if depends else "")
            for name, version, depends in PACKAGES
        ),
        encoding="utf-8",
    )
    (tmp_path / "etc/sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n", encoding="utf-8")
    (tmp_path / "etc/preferences.d/nvidia").write_text(preferences(), encoding="utf-8")
    (tmp_path / "state/status").touch()
    options = {
        "Dir::Etc": tmp_path / "etc",
        "Dir::State": tmp_path / "state",
        "Dir::State::status": tmp_path / "state/status",
        "Dir::Cache": tmp_path / "cache",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    subprocess.run([*apt, "-qq", "update"], capture_output=True, text=True, check=True)
    return subprocess.run([*apt, "--simulate", "install", *packages], capture_output=True, text=True, check=False)


def test_the_pinned_toolkit_comes_with_all_that_it_depends_on(tmp_path: Path) -> None:
    asked = ask(tmp_path, "cuda-nvcc-12-9=12.9.86-1", "libcublas-12-9=12.9.1.4-1")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "Inst cuda-toolkit-config-common" in asked.stdout


def test_what_the_role_pins_is_the_toolkit_that_the_rules_are_held_against() -> None:
    pinned = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))["_llama_cpp_nvidia_versions"]
    assert {name: ".".join(version.split(".")[:2]) for name, version in pinned.items()} == dict.fromkeys(
        pinned, str(REPOSITORY_TOOLKIT)
    )


@pytest.mark.parametrize("package", ["cuda-nvcc-13-0", "cuda-drivers"])
def test_nothing_else_is_taken(tmp_path: Path, package: str) -> None:
    asked = ask(tmp_path, package)
    assert asked.returncode != 0
    assert f"Inst {package}" not in asked.stdout
