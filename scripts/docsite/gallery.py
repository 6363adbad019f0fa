"""Reports for the gallery, written by the commands that its page shows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
        title: a few words.
        about: what is to be seen in it.
        command: that writes it, into `file`.
        file: an HTML page, or text.
        code: the command's exit code.
    """

    title: str
    about: str
    command: str
    file: str
    code: int = 0


RUN = "parity run tiny --dtype f64 --scenario causal,left_padded --length 61"
REPORTS = (
    Report(
        "A wrong rotary base",
        "The JAX side is given theta 1e6 for the checkpoint's 5e5. The first screen has the cause "
        "and the experiment that shows it; below, every layer, operator and token, and the "
        "attention maps of both sides.",
        f"{RUN} --override rope_theta=1e6 --html wrong-theta.html",
        "wrong-theta.html",
        1,
    ),
    Report("Equal", "The same of the model as it is.", f"{RUN} --html equal.html", "equal.html"),
    Report(
        "Health",
        "Every layer and head of a model by itself: entropies, sinks, reach, states.",
        "parity health tiny --length 128 --no-gradients --html health.html",
        "health.html",
    ),
    Report(
        "Quality",
        "What int8 weights cost in perplexity and in the texts that are written, with intervals.",
        "parity quality tiny --data docs/quality-example.jsonl --quant int8 --html quality.html",
        "quality.html",
    ),
    Report(
        "Bench",
        "Tokens a second beside transformers, in rounds that take turns. This one is of `tiny`, on "
        "the machine that built the site, beside its other work: see [performance](performance.md) "
        "for a trained model on a quiet one.",
        "jaxllama bench tiny --quick --prompt 64 --dtype f32 --variants jaxllama,eager "
        "--new-tokens 8 --quiet --html bench.html",
        "bench.html",
    ),
    Report(
        "Lint",
        "A mask of zeros and ones that is added to the scores. There is no page: this is what the "
        "terminal shows.",
        "parity lint mask.npy --use additive",
        "lint.txt",
        1,
    ),
)


def write(out: Path, root: Path) -> list[str]:
    """Run the commands and write what they make into a folder.

    Args:
        out: the folder.
        root: of the repository, whose `docs` commands name.

    Returns:
        What went otherwise than it should, a line each.
    """
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "docs").symlink_to(root / "docs")
        mask = "import numpy; numpy.save('mask.npy', numpy.tril(numpy.ones((1, 1, 6, 6))))"
        subprocess.run([sys.executable, "-c", mask], cwd=place, check=True)
        for report in REPORTS:
            problems += _run(report, Path(place), out, root)
    return problems


def _run(report: Report, place: Path, out: Path, root: Path) -> list[str]:
    program, *words = shlex.split(report.command)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", program, *words],
        cwd=place,
        env=os.environ | {"COLUMNS": "90", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != report.code:
        ended = f"exit code {done.returncode}, not {report.code}"
        return [f"{report.command}: {ended}: {done.stderr[-2000:]}"]
    if report.file.endswith(".txt"):
        (out / report.file).write_text(done.stdout, encoding="utf-8")
    else:
        (place / report.file).rename(out / report.file)
    return []


def listing() -> str:
    """Return the page's list of reports; links are made where no one looks for the files yet."""
    parts = []
    for report in REPORTS:
        link = f'<p><a href="gallery/{report.file}">Open {escape(report.file)}</a></p>'
        parts.append(
            f"## {report.title}\n\n{report.about}\n\n```sh\n{report.command}\n```\n\n{link}"
        )
    return "\n\n".join(parts)
