"""What a module says about itself (ansible-doc) is what it does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.plugins.action import ActionBase
from modules import MODULES, ROOT


class Captured(BaseException):
    """Carries what a module or an action hands to Ansible first: its options, and whether it has check mode."""

    def __init__(self, argument_spec: dict[str, dict[str, Any]], supports_check_mode: bool = False) -> None:
        self.options = argument_spec
        self.check = supports_check_mode


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def capture(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Captured]:
    """Return a module and its real options; an action plugin of the same name has them in the module's place."""
    module = load(MODULES[name])
    action = ROOT / "plugins/action" / f"{name}.py"
    with pytest.raises(Captured) as captured:
        if action.exists():
            plugin = load(action).ActionModule

            def validate(self: Any, argument_spec: dict[str, dict[str, Any]]) -> None:
                raise Captured(argument_spec, plugin._supports_check_mode)

            monkeypatch.setattr(ActionBase, "run", lambda *arguments: {})
            monkeypatch.setattr(plugin, "validate_argument_spec", validate)
            plugin.__new__(plugin).run()
        else:

            def create(argument_spec: dict[str, dict[str, Any]], supports_check_mode: bool = False) -> None:
                raise Captured(argument_spec, supports_check_mode)

            monkeypatch.setattr(module, "AnsibleModule", create)
            module.main()
    return module, captured.value


def facts(option: dict[str, Any]) -> dict[str, Any]:
    """Return what documentation and argument_spec both say about an option."""
    return {
        "type": option.get("type", "str"),
        "elements": option.get("elements"),
        "required": option.get("required", False),
        "default": option.get("default"),
        "choices": option.get("choices"),
    }


@pytest.mark.parametrize("name", MODULES)
def test_documented_options_are_the_real_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, real = capture(name, monkeypatch)
    documentation = yaml.safe_load(module.DOCUMENTATION)

    documented = documentation["options"]
    assert documentation["module"] == name
    assert {key: facts(option) for key, option in documented.items()} == {
        key: facts(option) for key, option in real.options.items()
    }
    assert all(option["description"] for option in documented.values())


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"run_with_progress"}))
def test_documented_check_mode_is_the_real_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, real = capture(name, monkeypatch)

    support = yaml.safe_load(module.DOCUMENTATION)["attributes"]["check_mode"]["support"]
    assert support == ("full" if real.check else "none")


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_calls_that_the_module_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, real = capture(name, monkeypatch)
    required = {key for key, option in real.options.items() if option.get("required")}

    for task in yaml.safe_load(module.EXAMPLES):
        assert required <= set(task[name]) <= set(real.options)
    for returned in yaml.safe_load(module.RETURN).values():
        assert {"description", "type", "returned"} <= set(returned)
