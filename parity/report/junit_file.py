"""The result as JUnit XML, which CI services show as tests: one case a layer of each run."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from jaxllama.command_line.printable import spell_out
from jaxllama.files.output import write_text
from parity.report.wording import reading_line, summary
from parity.result import Result, TapResult
from parity.taps import SETUP_TAPS, split_name

# What XML 1.0 cannot hold, not even escaped, beside what is spelled out.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(result: Result, path: Path) -> None:
    """Write a result's test cases to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, document(result))


def document(result: Result) -> str:
    """Return the result as a JUnit document.

    A layer fails where a tap of it is beyond its limit; a witness that disagrees is a failure, and
    taps that could not be compared are an error.
    """
    suite = ET.Element("testsuite", name="parity")
    properties = ET.SubElement(suite, "properties")
    told = [("verdict", result.verdict), ("command", result.command)]
    if result.not_run:
        told.append(("not run", "; ".join(result.not_run)))
    if "machine" in result.environment:  # older results name none
        told.append(("machine", result.environment["machine"]["line"]))
    for name, value in told:
        ET.SubElement(properties, "property", name=name, value=value)
    first = None if result.first_divergence is None else result.first_divergence.row
    for (lane, scenario, mode, layer), rows in _cases(result).items():
        case = ET.SubElement(
            suite, "testcase", classname=f"parity.{lane}.{scenario}.{mode}", name=layer, time="0"
        )
        failed = [row for row in rows if not row.passed]
        if failed:
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            lines = [said for row in failed for said in _said(row)]
            if first in failed:
                lines += ["", *summary(result)]
            _fail(case, "failure", f"{failed[0].tap} diverges{more}", lines)
    for witness in result.witnesses:
        name = f"{witness.lane} {witness.scenario} {witness.mode}"
        case = ET.SubElement(
            suite, "testcase", classname=f"parity.witness.{witness.witness}", name=name, time="0"
        )
        if not witness.agrees:
            said = f"{witness.worst_tap}: {witness.rho:.3g} times the noise, limit {witness.limit}"
            _fail(case, "failure", "disagrees with the reference", [said, *witness.problems])
        elif witness.unmatched:
            _fail(case, "error", "taps could not be compared", witness.unmatched)
    if result.reading is not None:
        case = ET.SubElement(suite, "testcase", classname="parity", name="reading", time="0")
        if differences := result.reading.differences:
            lines = [*(one.said for one in differences), "", *summary(result)]
            _fail(case, "failure", reading_line(result.reading), lines)
    if result.quality is not None:  # figures, which nothing here passes or fails
        case = ET.SubElement(suite, "testcase", classname="parity", name="quality", time="0")
        ET.SubElement(case, "system-out").text = "\n".join(summary(result))
        return _numbered(suite, result)
    case = ET.SubElement(suite, "testcase", classname="parity", name="coverage", time="0")
    if result.unmatched:
        _fail(case, "error", "taps could not be compared", result.unmatched)
    return _numbered(suite, result)


def _cases(result: Result) -> dict[tuple[str, str, str, str], list[TapResult]]:
    found: dict[tuple[str, str, str, str], list[TapResult]] = {}
    for row in result.rows:
        layer = split_name(row.tap)[1]
        name = f"layers.{layer}" if layer is not None else row.tap
        name = "setup" if row.tap in SETUP_TAPS else name
        found.setdefault((row.lane, row.scenario, row.mode, name), []).append(row)
    return found


def _said(row: TapResult) -> Iterator[str]:
    step = f" step {row.step}" if row.mode == "decode" else ""
    yield f"{row.tap}{step}: error {row.error:.2e}, rho {row.rho:.3g}, limit {row.limit:g}"
    yield from (f"  {problem}" for problem in row.problems)


def _fail(case: ET.Element, kind: str, message: str, lines: object) -> None:
    assert isinstance(lines, list | tuple)
    fault = ET.SubElement(case, kind, message=message, type=kind)
    fault.text = "\n".join(lines)


def _clean(element: ET.Element) -> None:
    """Spell out of an element and all in it what XML cannot hold, or a page would obey."""

    def clean(text: str) -> str:
        return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", spell_out(text))

    for one in element.iter():
        one.text = one.text and clean(one.text)
        one.attrib |= {name: clean(value) for name, value in one.attrib.items()}


def _numbered(suite: ET.Element, result: Result) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    counts = {
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": str(len(suite.findall("testcase/error"))),
        "skipped": "0",
        "time": f"{result.timing.get('total_s', 0.0):.3f}",
    }
    suite.attrib |= {**counts, "timestamp": now}
    root = ET.Element("testsuites", {"name": "parity", **counts})
    root.append(suite)
    _clean(root)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
