"""JUnit XML, as CI systems show it: a suite for each tier of each host, a case for each check."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring


def render(document: dict[str, Any]) -> str:
    """Render a verification document as JUnit XML."""
    suites = Element("testsuites", name="llama-tiers")
    for report in document["hosts"]:
        for tier in report["tiers"]:
            _suite(suites, report, tier)
    indent(suites)
    return tostring(suites, encoding="unicode", xml_declaration=True)


def _suite(parent: Element, report: dict[str, Any], tier: dict[str, Any]) -> None:
    name = f"{report['host']}.{tier['name']}"
    problems = tier["evidence"]["problems"]
    failures = sum(not check["passed"] for check in tier["checks"])
    suite = SubElement(
        parent,
        "testsuite",
        name=name,
        timestamp=report["recorded_at"].rstrip("Z"),
        tests=str(len(tier["checks"]) + 1),
        failures=str(failures),
        errors=str(bool(problems) + 0),
    )
    # What could not be measured is no failed check, and fails the tier all the same.
    measured = SubElement(suite, "testcase", classname=name, name="measured")
    if problems:
        SubElement(measured, "error", message=_printable(problems[0])).text = _printable("\n".join(problems))
    for check in tier["checks"]:
        case = SubElement(suite, "testcase", classname=name, name=check["name"])
        if not check["passed"]:
            said = f"expected {check['expected']}, measured {check['measured']}"
            SubElement(case, "failure", message=_printable(said)).text = _printable("\n".join(tier["reasons"]))
    if tier["notes"]:
        SubElement(suite, "system-out").text = _printable("\n".join(tier["notes"]))


def _printable(text: str) -> str:
    """Return a text without the characters that XML cannot hold, which an answer of garbage may have."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
