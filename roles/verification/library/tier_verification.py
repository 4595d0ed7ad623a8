#!/usr/bin/python
"""Measure and judge every tier of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_verification
short_description: Measure and judge every tier of a host
description:
  - Reads the tier specs of the host, measures each tier, holds it against its spec, and returns the report as a fact.
  - A failed verdict is no failure of the module; a host without tiers is, but for check mode, where it is skipped.
  - Keeps the report as evidence and the speeds that were accepted, which is no change, and what was verified as a local
    fact, which is one.
  - With O(roll_back), when a tier serves and fails where it passed with another release, model or placement, all tiers
    serve again as they were accepted. The report is of what serves then, and fails.
options:
  host: {description: Name of the host in the inventory, type: str, required: true}
  evidence_directory: {description: Folder on the host that keeps the reports, type: path, required: true}
  keep: {description: How many reports are kept, type: int, required: true}
  depth:
    description:
      - How much is measured. C(quick) is one short completion; C(whole) fills the context and asks many times, which
        keeps a tier busy; C(auto) does so once for each run of a tier's unit. In check mode it is always C(quick).
    type: str
    choices: [auto, quick, whole]
    required: true
  quality:
    description:
      - Whether each tier that is split over cards is compared with the unsplit model. Every tier is stopped for that
        and started again; never in check mode.
    type: bool
    required: true
  accepted:
    description: File on the host that keeps the speed with which each tier was accepted last.
    type: path
    required: true
  accept_slower:
    description: Whether a new release or placement may be slower than what was accepted.
    type: bool
    required: true
  decision:
    description: The inventory's decision, as C(checker decide) wrote it, for the report to hold; empty without one.
    type: dict
    required: true
  roll_back:
    description: Whether what fails where another passed gives way to that; never in check mode.
    type: bool
    required: true
  metrics:
    description: File on the host that gets metrics for node_exporter's textfile collector; none when empty.
    type: path
    required: true
  fact:
    description: The local fact, written when every tier passed; it holds nothing that is measured.
    type: path
    required: true
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Measure and judge every tier
  tier_verification:
    host: "{{ inventory_hostname }}"
    evidence_directory: /var/lib/llama-tiers/evidence
    keep: 20
    depth: auto
    quality: false
    accepted: /var/lib/llama-tiers/accepted.json
    accept_slower: false
    decision: {}
    roll_back: true
    metrics: /var/lib/prometheus/node-exporter/llama_tiers.prom
    fact: /etc/ansible/facts.d/llama_tiers.fact
  vars:
    ansible_python_interpreter: /opt/llama-tiers/checker/bin/python
"""

RETURN = r"""
ansible_facts:
  description: The report (docs/schemas/verification.schema.json) under the key C(llama_tiers).
  type: dict
  returned: success
summary: {description: One readable line for each tier, type: list, elements: str, returned: success}
"""

import json
from contextlib import suppress
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def read_earlier(directory):
    """Return the evidence documents of earlier reports, newest first; a report that is damaged tells nothing."""
    found = []
    for path in sorted(directory.glob("*.json"), reverse=True):
        with suppress(ValueError, LookupError, TypeError):
            found += [tier["evidence"] for tier in json.loads(path.read_text(encoding="utf-8"))["tiers"]]
    return found


def keep(whole, report, directory, most):
    """Keep a report as evidence, and no more than so many."""
    whole.write(
        directory / f"{report.recorded_at.replace(':', '')}.json", json.dumps(report.to_json(), indent=2) + "\n"
    )
    for old in sorted(directory.glob("*.json"))[:-most]:
        old.unlink()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "evidence_directory": {"type": "path", "required": True},
            "keep": {"type": "int", "required": True},
            "depth": {"type": "str", "choices": ["auto", "quick", "whole"], "required": True},
            "quality": {"type": "bool", "required": True},
            "accepted": {"type": "path", "required": True},
            "accept_slower": {"type": "bool", "required": True},
            "decision": {"type": "dict", "required": True},
            "roll_back": {"type": "bool", "required": True},
            "metrics": {"type": "path", "required": True},
            "fact": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    from checker import acceptance, accepted, quality, reports, tier, verification, whole
    from checker.measure import Depth

    try:
        specs = tier.load_all()
    except tier.TierSpecError as error:
        module.fail_json(msg=str(error))
    if not specs and module.check_mode:
        module.exit_json(skipped=True)
    if not specs:
        module.fail_json(msg=f"no tier is on this host ({tier.DIRECTORY} has no spec); run site.yml first")

    evidence = Path(module.params["evidence_directory"])
    depth = Depth.QUICK if module.check_mode else Depth(module.params["depth"])
    speeds_file = Path(module.params["accepted"])
    try:
        speeds = acceptance.read(speeds_file)
    except ValueError as error:
        module.fail_json(msg=str(error))
    gate = {} if module.params["accept_slower"] else speeds.accepted
    splits = quality.measure(specs, module.warn) if module.params["quality"] and not module.check_mode else {}
    report = verification.report(
        specs,
        module.params["host"],
        read_earlier(evidence),
        depth,
        gate,
        splits,
        module.params["decision"],
        wake=not module.check_mode,
    )
    went_back = None
    if not module.check_mode:
        keep(whole, report, evidence, module.params["keep"])
        if module.params["roll_back"]:
            went_back = acceptance.roll_back(
                report, speeds, read_earlier(evidence), accept_slower=module.params["accept_slower"]
            )
        if went_back:
            report, speeds = went_back
            keep(whole, report, evidence, module.params["keep"])
        else:
            speeds = acceptance.accept(report, speeds)
        whole.write(speeds_file, json.dumps(accepted.to_json(speeds), indent=2) + "\n")
    document = report.to_json()
    fact = Path(module.params["fact"])
    verified = json.dumps(verification.stable(report), indent=2) + "\n"
    is_news = report.passed and (not fact.exists() or fact.read_text(encoding="utf-8") != verified)
    if not module.check_mode:
        if module.params["metrics"]:
            told = reports.render({"schema": reports.SCHEMA, "hosts": [document]}, "prometheus")
            whole.write(Path(module.params["metrics"]), told + "\n")
        if is_news:
            whole.write(fact, verified)
    module.exit_json(
        changed=is_news or went_back is not None,
        ansible_facts={"llama_tiers": document},
        summary=[verification.describe(item) for item in report.tiers],
    )


if __name__ == "__main__":
    main()
