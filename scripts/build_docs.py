"""Build the documentation site into one folder that opens offline.

    python scripts/build_docs.py [--output build/docs]

Lays out the repository's pages, makes those of causes, rules, metrics and exit codes, lets Sphinx
build them with warnings as errors, writes the gallery's reports beside it, and reads the result as
a browser would: a link that leads nowhere, or a page that fetches something, fails.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docsite import api, gallery, links, reference
from docsite.stage import ROOT, SITE, BrokenLinks, Stage

GALLERY = "<!-- gallery -->"
# The first tutorials, in the order in which they are read; others follow.
TUTORIALS = ("index", "port-a-model", "debug-a-mask", "read-an-attention-map", "load-train-save")


def lay_out(out: Path) -> Stage:
    """Write everything that Sphinx is to read.

    Raises:
        BrokenLinks: a page links to what is not there.
    """
    stage = Stage(out)
    stage.lay_out()
    reference.write_causes(stage)
    reference.write_health_rules(stage)
    reference.append_lint_pictures(stage)
    reference.split_pages(stage)
    api.write(stage)
    for folder in ("lint", "field"):
        stage.append(f"{folder}/index.md", reference.toctree("*"))
    place = stage.places["docs/gallery.md"]
    text = (out / place).read_text(encoding="utf-8")
    stage.write(place, text.replace(GALLERY, gallery.listing()))
    for package in ("jaxllama", "parity"):
        stage.append(f"project/{package}/index.md", reference.toctree("*/index"))
    stage.append("index.md", navigation(stage))
    return stage


def navigation(stage: Stage) -> str:
    """Return the tables of contents of the whole site."""
    text = (ROOT / SITE / "navigation.txt").read_text(encoding="utf-8")
    there = {Path(place).stem for place in stage.places.values() if place.startswith("tutorials/")}
    first = [name for name in TUTORIALS if name in there]
    names = [*first, *sorted(there - {*first})]
    if not names:
        return text
    entries = (f"tutorials/{name}" for name in names)
    return f"{reference.toctree(*entries, caption='Tutorials')}\n\n{text}"


def sphinx(source: Path, out: Path) -> int:
    """Run Sphinx over what was laid out; return its exit code."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", "-j", "auto"]
    command += ["-c", str(ROOT / SITE), "-d", str(source.with_name("docs-trees"))]
    return subprocess.run([*command, "-b", "html", str(source), str(out)], check=False).returncode


def main() -> int:
    """Build, check, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs")
    given = parser.parse_args()
    began, out = time.monotonic(), given.output.resolve()
    source, reports = out.with_name("docs-source"), out.with_name("docs-gallery")
    for folder in (out, reports):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        stage = lay_out(source)
    except BrokenLinks as error:
        print(error, file=sys.stderr)
        return 1
    problems = [f"no page: {place}" for place in reference.missing(stage)]
    with ThreadPoolExecutor(1) as beside:
        written = beside.submit(gallery.write, reports, ROOT)
        if sphinx(source, out):
            problems.append("Sphinx has warned, see above")
        problems += written.result()
    shutil.copytree(reports, out / "gallery")
    found = links.check(out)
    elsewhere = out.with_name("docs-links.txt")
    elsewhere.write_text("\n".join([*links.lines(found), ""]), encoding="utf-8")
    problems += found.problems
    for problem in problems:
        print(problem, file=sys.stderr)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(
        f"{out / 'index.html'}: {found.pages} pages, {size / 1e6:.0f} MB, "
        f"{time.monotonic() - began:.0f} s; {len(found.elsewhere)} addresses elsewhere are in "
        f"{elsewhere.name}, and were not asked"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
