"""Every role says what it takes: defaults and argument_specs name the same variables with the same defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from checker import policies, spelling
from checker.cuda import version
from checker.toolkit import REPOSITORY_TOOLKIT

ROOT = Path(__file__).parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_are_the_specified_ones(role: Path) -> None:
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults_file = role / "defaults" / "main.yml"
    defaults = load(defaults_file) if defaults_file.exists() else {}
    required = {name for name, option in options.items() if option.get("required")}
    assert set(options) - required == set(defaults)
    assert {name: option.get("default") for name, option in options.items() if name not in required} == defaults


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_variables_carry_the_roles_name_and_a_description(role: Path) -> None:
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    for name, option in options.items():
        assert name.startswith(f"{role.name}_")
        assert option["description"]
        assert option["type"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_main_task_file_is_a_table_of_contents(role: Path) -> None:
    tasks = load(role / "tasks" / "main.yml")
    if len(tasks) > 2:
        for task in (each for entry in tasks for each in (*entry.get("block", [entry]), *entry.get("rescue", []))):
            assert set(task) & {"ansible.builtin.include_tasks", "ansible.builtin.include_role"}, task["name"]


def test_the_packages_of_nvidias_repository_are_those_of_the_toolkit_that_is_chosen() -> None:
    packages = load(ROOT / "roles/llama_cpp/vars/main.yml")["_llama_cpp_nvidia_versions"]
    assert version(packages["cuda-nvcc"]) == REPOSITORY_TOOLKIT


def test_trials_are_kept_where_the_decision_looks_for_them() -> None:
    """`checker.deciding` knows the verification's word for the folder: a role's default is in no inventory."""
    options = load(ROOT / "roles/trial/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert not [name for name in options if "directory" in name]
    directory = load(ROOT / "roles/trial/vars/main.yml")["_trial_documents_directory"]
    assert directory.startswith("{{ verification_documents_directory | default(")


def test_every_word_of_an_inventory_that_no_role_specifies_is_known_to_the_check_for_slips() -> None:
    files = [path for folder in ("playbooks", "roles") for path in (ROOT / folder).rglob("*.yml")]
    read = {word for path in files for word in re.findall(r"\bllama_tiers_\w+", path.read_text(encoding="utf-8"))}
    # What the play itself hands on, and where the decision is read by the checker alone.
    assert {word for word in spelling.OWN if word.startswith("llama_tiers_")} == (read - {"llama_tiers_trials"}) | {
        policies.ACCEPTABLE
    }
