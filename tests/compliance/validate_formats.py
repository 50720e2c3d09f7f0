# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the files of a compliance report against the official schemas, models and libraries of their
formats. Runs in the environment of setup/compliance_formats.

  validate_formats.py FOLDER      prints {"checked": {format: files}, "problems": [text...]}

| format | by |
|---|---|
| CSAF | the package csaf: OASIS' schema and the standard's mandatory tests |
| CycloneDX | cyclonedx-python-lib: CycloneDX' strict schema, and its own model |
| OSCAL | compliance-trestle: models made from NIST's schemas |
| OpenVEX | its own schema (official/), lib4vex, the specification's rules |
| JUnit | junitparser |
| Prometheus | the parser of prometheus_client |
| package URLs | packageurl-python |
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import csaf.csaf.v20 as csaf_2_0
import jsonschema
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from junitparser import JUnitXml
from lib4vex.parser import VEXParser
from packageurl import PackageURL
from prometheus_client.parser import text_string_to_metric_families
from trestle.oscal.assessment_results import Model

OPENVEX_SCHEMA = pathlib.Path(__file__).with_name("official") / "openvex_json_schema.json"
#: OpenVEX specification 0.2.0, "Status Labels" and "Status Justifications".
STATUSES = ("not_affected", "affected", "fixed", "under_investigation")
JUSTIFICATIONS = (
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
)


def check_csaf(path: pathlib.Path) -> Iterator[str]:
    document = json.loads(path.read_text())
    result = csaf_2_0.validate(document)
    for test in result.results:
        yield from (f"{test.id}: {error}" for error in test.errors)
    if not result.overall_valid or len(result.results) < 30:
        yield f"not valid by {len(result.results)} tests"
    tracking = document["document"]["tracking"]["id"].lower()
    if path.name != f"{tracking}.json":
        yield f"the file's name is not that of {tracking}"


def check_cyclonedx(path: pathlib.Path) -> Iterator[str]:
    text = path.read_text()
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        yield str(error)[:500]
        return
    bom = Bom.from_json(json.loads(text))
    if not bom.validate():
        yield "its references do not hold together"
    known = {str(part.bom_ref) for part in bom.components} | {str(bom.metadata.component.bom_ref)}
    for vulnerability in bom.vulnerabilities:
        yield from (
            f"{vulnerability.id} affects {target.ref}, which is not in the document"
            for target in vulnerability.affects
            if target.ref not in known
        )
    for component in bom.components:
        if component.purl is None:
            yield f"{component.name} has no package URL"


def check_oscal(path: pathlib.Path) -> Iterator[str]:
    document = json.loads(path.read_text())
    try:
        results = Model(**document).assessment_results
    except ValueError as error:
        yield str(error)[:1000]
        return
    (result,) = results.results
    observed = {item.uuid for item in result.observations or ()}
    items = {item.uuid for item in result.local_definitions.inventory_items}
    for finding in result.findings or ():
        for related in finding.related_observations:
            if related.observation_uuid not in observed:
                yield f"finding {finding.title} relates to an observation that is not there"
    for observation in result.observations or ():
        for subject in observation.subjects:
            if subject.subject_uuid not in items:
                yield f"observation {observation.title} has a subject that is not there"


def check_openvex(path: pathlib.Path) -> Iterator[str]:
    document = json.loads(path.read_text())
    validator = jsonschema.Draft202012Validator(json.loads(OPENVEX_SCHEMA.read_text()))
    yield from (f"schema: {error.message[:300]}" for error in validator.iter_errors(document))
    if document["@context"] != "https://openvex.dev/ns/v0.2.0":
        yield f"@context is {document['@context']}"
    for name in ("@id", "author", "timestamp", "version", "statements"):
        if not document.get(name):
            yield f"{name} is missing"
    parser = VEXParser(vex_type="openvex")
    parser.parse(str(path))
    read = parser.get_vulnerabilities()
    if len(read) < len(document["statements"]):
        yield f"lib4vex reads {len(read)} of {len(document['statements'])} statements"
    for statement in document["statements"]:
        status = statement.get("status")
        if status not in STATUSES:
            yield f"status {status}"
        if status == "not_affected" and statement.get("justification") not in JUSTIFICATIONS:
            yield f"not_affected without a justification: {statement.get('justification')}"
        if status == "affected" and not statement.get("action_statement"):
            yield "affected without an action statement"
        if not statement.get("vulnerability", {}).get("name"):
            yield "a statement without a vulnerability"
        if len(statement.get("products", ())) != 1:
            yield "a statement that is not of one host"
        for product in statement["products"]:
            for part in product.get("subcomponents", ()):
                PackageURL.from_string(part["identifiers"]["purl"])


def check_junit(path: pathlib.Path) -> Iterator[str]:
    suites = JUnitXml.fromfile(str(path))
    for name in ("tests", "failures", "errors", "skipped"):
        told = [getattr(suite, name) for suite in suites]
        suites.update_statistics()
        for suite, number in zip(suites, told, strict=True):
            if getattr(suite, name) != number:
                yield f"{suite.name} says {number} {name}, has {getattr(suite, name)}"


def check_prometheus(path: pathlib.Path) -> Iterator[str]:
    families = list(text_string_to_metric_families(path.read_text()))
    if len(families) < 8:
        yield f"only {len(families)} metrics"
    for family in families:
        if family.type != "gauge" or not family.documentation:
            yield f"{family.name} has no type or no help"
        labels = [tuple(sorted(sample.labels.items())) for sample in family.samples]
        if len(labels) != len(set(labels)):
            yield f"{family.name} has a sample twice"


CHECKS: dict[str, tuple[str, Callable[[pathlib.Path], Iterator[str]]]] = {
    "csaf": ("csaf/*/*.json", check_csaf),
    "cyclonedx": ("cyclonedx/*.cdx.json", check_cyclonedx),
    "openvex": ("openvex/*.openvex.json", check_openvex),
    "oscal": ("oscal-assessment-results.json", check_oscal),
    "junit": ("junit.xml", check_junit),
    "prometheus": ("wfpatch.prom", check_prometheus),
}


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    checked: dict[str, int] = {}
    problems: list[str] = []
    for name, (pattern, check) in CHECKS.items():
        files: list[Any] = sorted(folder.glob(pattern))
        checked[name] = len(files)
        for path in files:
            problems += [f"{path.relative_to(folder)}: {problem}" for problem in check(path)]
    print(json.dumps({"checked": checked, "problems": problems}))


if __name__ == "__main__":
    main()
