"""JUnit XML: what CI readers take for granted, and that every failure is in it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from records import result, row, witness_row

from parity.report import junit_file
from parity.result import CauseReport, Result

CAUSE = CauseReport("rope-theta", "", "theta 1e6", confirmed=True, evidence=["1 -> 0"])


def suite_of(found: Result) -> ET.Element:
    root = ET.fromstring(junit_file.document(found))
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    counted = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": 0,
    }
    for element in (root, suite):
        assert {name: int(element.attrib[name]) for name in counted} == counted
        assert float(element.attrib["time"]) >= 0
    cases = [(case.attrib["classname"], case.attrib["name"]) for case in suite.iter("testcase")]
    assert len(set(cases)) == len(cases), "a reader keeps one of two cases of one name"
    assert all(len(case.findall("*")) <= 1 for case in suite.iter("testcase"))
    return suite


def case(suite: ET.Element, classname: str, name: str) -> ET.Element:
    (found,) = (
        c
        for c in suite.iter("testcase")
        if (c.get("classname"), c.get("name")) == (classname, name)
    )
    return found


def test_a_case_a_layer_of_each_run() -> None:
    rows = [
        row(tap, lane=lane)
        for lane in ("f64", "f32")
        for tap in ("mask", "positions", "embed", "layers.0.q_proj", "layers.0.output", "logits")
    ]
    suite = suite_of(result(rows))
    assert suite.get("failures") == "0"
    names = [
        c.get("name") for c in suite.iter("testcase") if c.get("classname", "").endswith("free")
    ]
    assert names == 2 * ["setup", "embed", "layers.0", "logits"]
    case(suite, "parity.witness.torch", "f64 causal free")
    (verdict,) = suite.iterfind("properties/property[@name='verdict']")
    assert verdict.get("value") == "equal"


def test_a_failing_layer_says_what_and_the_first_one_why() -> None:
    rows = [
        row("layers.0.q_rope", failed=True, problems=("rotated <backwards> & so on",)),
        row("layers.0.k_rope", failed=True),
        row("layers.1.q_rope", failed=True),
    ]
    suite = suite_of(result(rows, cause=CAUSE))
    first = case(suite, "parity.f64.causal.free", "layers.0").find("failure")
    assert first is not None and first.get("message") == "layers.0.q_rope diverges and 1 more"
    assert first.text is not None
    assert "rho 1e+06, limit 32" in first.text and "rotated <backwards> & so on" in first.text
    assert "cause: theta 1e6" in first.text and "again: parity run tiny" in first.text
    later = case(suite, "parity.f64.causal.free", "layers.1").find("failure")
    assert later is not None and later.text is not None and "cause:" not in later.text


@pytest.mark.parametrize(
    ("changes", "classname", "kind"),
    [
        ({"witnesses": [witness_row(rho=99.0)]}, "parity.witness.torch", "failure"),
        ({"witnesses": [witness_row(unmatched=("norm",))]}, "parity.witness.torch", "error"),
        ({"unmatched": ("layers.0.odd",)}, "parity", "error"),
    ],
)
def test_what_leaves_a_run_open_is_no_success(changes, classname: str, kind: str) -> None:
    suite = suite_of(result([row("embed")], **changes))
    (found,) = (c for c in suite.iter("testcase") if c.get("classname") == classname)
    assert found.find(kind) is not None


def test_what_xml_cannot_hold_is_replaced(tmp_path: Path) -> None:
    problems = ("token \x00\x1b\ud800\uffff of \U0001f600",)
    found = result([row("embed\x07\u202e", scenario="\x1b[2J", failed=True, problems=problems)])
    junit_file.write(found, tmp_path / "out.xml")
    text = (tmp_path / "out.xml").read_text(encoding="utf-8")
    assert r"token \x00\x1b\ud800" + "\ufffd of \U0001f600" in text
    assert r"embed\x07\u202e" in text and r".\x1b[2J." in text
    ET.fromstring(text)


def test_the_machine_is_a_property_where_it_is_known() -> None:
    found = result([row("embed")])
    path = "properties/property[@name='machine']"
    assert suite_of(found).find(path) is None
    found.environment["machine"] = {"line": "some processor; XLA AVX2"}
    (machine,) = suite_of(found).iterfind(path)
    assert machine.attrib["value"] == "some processor; XLA AVX2"
