"""`parity run` as other machines would run it: instruction sets, threads, devices, op by op.

Each row is a process with settings that make JAX or PyTorch compute as on a lesser processor, and
its verdict. What a row's settings did not change is no evidence: its figures are compared with
those of the plain row, and where all are the same to the last bit it says `no effect`. The plain
row is run twice, so that "changed" is known not to be chance.

    python scripts/machine_matrix.py --json machines.json --write docs/machines.md
    python scripts/machine_matrix.py --models smollm2 --rows "plain,XLA AVX2" --json machines.json
    python scripts/machine_matrix.py --models tiny -- --scenario causal --length 23
    python scripts/machine_matrix.py --quick         # a part, in two minutes; what CI runs

What follows `--` goes to `parity run`. Rows that are in the JSON file already, of the same commit,
are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxllama.compilation_cache import NO_CACHE
from jaxllama.errors import InputError
from jaxllama.files.output import check_writable, write_text
from parity.options import LANES
from parity.runner.machine import SETTINGS, processor

PLAIN, AGAIN = "plain", "plain again"
QUICK = (PLAIN, AGAIN, "XLA without YNNPACK", "all held to AVX2", "op by op")
DIRTY = "-dirty"
START, STOP = "<!-- made by scripts/machine_matrix.py -->", "<!-- end -->"
# Affinity is set before a library counts the processors: both have a thread for each.
_CHILD = (
    "import os, sys; n = int(sys.argv.pop(1)); "
    "n and os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n]); "
    "from parity.cli import main; main()"
)


@dataclass(frozen=True)
class Setting:
    """One row of the matrix.

    Attributes:
        name: as tables have it.
        variables: of the environment.
        needs: a feature of the processor, as /proc/cpuinfo spells it; empty for none.
        processors: how many the process may use; 0 for all.
    """

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    processors: int = 0


def settings() -> list[Setting]:
    """Return every row, at hand or not."""
    rows = [Setting(PLAIN), Setting(AGAIN)]
    for isa, needs in (
        ("SSE4_2", "sse4_2"),
        ("AVX", "avx"),
        ("AVX2", "avx2"),
        ("AVX512", "avx512f"),
        ("AMX", "amx_tile"),
    ):
        rows.append(Setting(f"XLA {isa}", {"XLA_FLAGS": f"--xla_cpu_max_isa={isa}"}, needs))
    for isa, needs in (("default", ""), ("avx2", "avx2"), ("avx512", "avx512f")):
        rows.append(Setting(f"ATen {isa}", {"ATEN_CPU_CAPABILITY": isa}, needs))
    for isa, needs in (
        ("SSE41", "sse4_1"),
        ("AVX2", "avx2"),
        ("AVX512_CORE", "avx512bw"),
        ("AVX512_CORE_BF16", "avx512_bf16"),
        ("AVX512_CORE_AMX", "amx_tile"),
    ):
        rows.append(Setting(f"oneDNN {isa}", {"ONEDNN_MAX_CPU_ISA": isa}, needs))
    for isa, needs in (("SSE4_2", "sse4_2"), ("AVX2", "avx2"), ("AVX512", "avx512f")):
        rows.append(Setting(f"MKL {isa}", {"MKL_ENABLE_INSTRUCTIONS": isa}, needs))
    eigen = "--xla_cpu_multi_thread_eigen=false"
    # YNNPACK multiplies for XLA. It asks the processor itself and heeds no instruction set that XLA
    # is told of; Eigen multiplies where it may fuse nothing.
    no_ynnpack = "--xla_cpu_experimental_ynn_fusion_type="
    return [
        *rows,
        # MKL heeds the variable above on Intel's processors alone, this one on all.
        Setting("MKL compatible", {"MKL_CBWR": "COMPATIBLE"}),
        Setting("1 processor", processors=1),
        Setting("2 processors", processors=2),
        Setting("1 thread of PyTorch", {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
        Setting("1 thread of Eigen", {"XLA_FLAGS": eigen}),
        Setting("XLA without YNNPACK", {"XLA_FLAGS": no_ynnpack}),
        Setting("4 devices", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}),
        Setting("op by op", {"JAX_DISABLE_JIT": "1"}),
        Setting(
            "all held to AVX2",
            {
                "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
                "ATEN_CPU_CAPABILITY": "avx2",
                "ONEDNN_MAX_CPU_ISA": "AVX2",
            },
            "avx2",
        ),
        Setting(
            "all held to SSE4.2",
            {
                "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
                "ATEN_CPU_CAPABILITY": "default",
                "ONEDNN_MAX_CPU_ISA": "SSE41",
                "MKL_CBWR": "COMPATIBLE",
            },
            "sse4_2",
            processors=1,
        ),
    ]


def at_hand(setting: Setting) -> bool:
    """Return whether this machine's processor can take a setting."""
    _, features = processor()
    enough = len(os.sched_getaffinity(0)) >= setting.processors
    return enough and (not setting.needs or setting.needs in features)


def measure(setting: Setting, model: str, options: Sequence[str]) -> dict[str, Any]:
    """Run parity in a process of its own, and return what a row says of it."""
    variables = {n: v for n, v in os.environ.items() if n not in SETTINGS}
    # What another row has compiled must not be loaded in this one's place.
    variables |= {"JAX_PLATFORMS": "cpu", NO_CACHE: "1", **setting.variables}
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "result.json"
        command = ["run", model, *options, "--json", str(report)]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(setting.processors), *command],
            env=variables,
            capture_output=True,
            text=True,
        )
        seconds = round(time.monotonic() - began, 1)
        if not report.exists():
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return {"verdict": f"exit code {done.returncode}", "said": last, "seconds": seconds}
        document = json.loads(report.read_text())
    return {
        "verdict": document["verdict"],
        "said": done.stdout.splitlines()[:1],
        "seconds": seconds,
        "largest": largest(document["taps"]),
        "digests": digests(document),
        "machine": document["environment"]["machine"],
        "versions": document["environment"]["versions"],
    }


def largest(taps: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Return by dtype and mode the largest share of its limit that a figure takes, and the tap."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row in taps:
        # Infinity and NaN are strings in the document.
        share = max(float(row[f"{figure}rho"]) / row[f"{figure}limit"] for figure in ("", "peak_"))
        here = found.setdefault(row["lane"], {})
        if row["mode"] not in here or not share <= here[row["mode"]][0]:
            here[row["mode"]] = [share, row["tap"]]
    return found


def digests(document: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return by whose they are and by dtype a digest of all figures of a result.

    A subject's are distances from the reference in float64, and change where that does; the
    witnesses' do not depend on the subject.
    """
    hashes: dict[str, dict[str, Any]] = {}
    for side, rows, names in (
        ("subject", document["taps"], ("tap", "step", "error", "worst", "facts")),
        ("witness", document["witnesses"], ("witness", "worst_tap", "rho", "error")),
    ):
        for row in rows:
            values = [row[name] for name in ("scenario", "mode", *names)]
            here = hashes.setdefault(side, {}).setdefault(row["lane"], hashlib.sha256())
            here.update(json.dumps(values).encode())
    return {
        side: {lane: one.hexdigest()[:16] for lane, one in lanes.items()}
        for side, lanes in hashes.items()
    }


def changed(row: Mapping[str, Any], plain: Mapping[str, Any] | None) -> str:
    """Say whose figures differ from the plain row's, and in which dtypes; empty for nobody's."""
    if plain is None or "digests" not in plain or "digests" not in row:
        return "not known"
    said = []
    for side, lanes in row["digests"].items():
        moved = [lane for lane in LANES if lanes.get(lane) != plain["digests"][side].get(lane)]
        if moved:
            said.append(f"{side} in {' '.join(moved)}")
    return "; ".join(said)


def markdown(document: Mapping[str, Any]) -> str:
    """Return the tables, one a model and its options, and what is not at hand."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in document["rows"]:
        groups.setdefault((row["model"], row["options"]), {})[row["setting"]] = row
    lines = []
    for (model, options), rows in groups.items():
        lines += [
            f"`parity run {' '.join(filter(None, (model, options)))}`: largest rho as a share of "
            "its limit, by dtype and mode (over 1 is divergent)",
            "",
            f"| setting | verdict | {' | '.join(LANES)} | what changed |",
            "|---" * (len(LANES) + 3) + "|",
        ]
        for name, row in rows.items():
            verdict, moved = row["verdict"], changed(row, rows.get(PLAIN))
            if name in (PLAIN, AGAIN):
                moved = moved or "nothing"
            elif not moved:
                verdict, moved = "no effect", "nothing: shows nothing"
            cells = [_shares(row.get("largest", {}).get(lane, {})) for lane in LANES]
            lines.append(f"| {name} | {verdict} | {' | '.join(cells)} | {moved} |")
        lines.append("")
    dates = sorted({row["date"] for row in document["rows"]})
    commits = sorted({row["commit"] for row in document["rows"]})
    told = next((row for row in document["rows"] if "machine" in row), None)
    if told is not None:
        versions = ", ".join(f"{k} {v}" for k, v in told["versions"].items() if v)
        features = told["machine"]["processor_features"]
        lines += [
            f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit "
            f"{', '.join(commits)}, on {told['machine']['line']}; {versions}. The processor has "
            f"{features}.",
            "",
        ]
    missing = [one.name for one in settings() if not at_hand(one)]
    lines += [
        f"Not at hand: {', '.join([*missing, 'processors of other makes (ARM), GPUs, TPUs'])}. In "
        "their place stand the imitated machines of `parity selftest --calibrate`."
    ]
    return "\n".join(lines) + "\n"


def _shares(modes: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(
        f"{mode} {share:.2f}" + (f" ({tap})" if share > 1 else "")
        for mode, (share, tap) in modes.items()
    )


def fill(page: Path, tables: str) -> None:
    """Put the tables between a page's two marks.

    Raises:
        InputError: it has no such marks.
    """
    text = page.read_text()
    before, start, rest = text.partition(START)
    _, stop, after = rest.partition(STOP)
    if not start or not stop:
        raise InputError(f"{page}: has no {START} ... {STOP} to put the tables between")
    write_text(page, f"{before}{START}\n\n{tables}\n{STOP}{after}")


def run(
    chosen: Sequence[Setting], models: Sequence[str], options: Sequence[str], path: Path | None
) -> dict[str, Any]:
    """Measure what is not in the JSON file yet, and write that after every row."""
    document: dict[str, Any] = {"rows": []}
    if path is not None and path.exists():
        document = json.loads(path.read_text())
    commit = _commit()
    for model in models:
        for setting in chosen:
            key = {"model": model, "options": " ".join(options), "setting": setting.name}
            known = partial(_same, {**key, "commit": commit})
            if any(map(known, document["rows"])) and not commit.endswith(DIRTY):
                continue
            print(f"{model} {setting.name}: ", end="", flush=True)
            if not at_hand(setting):
                print("not at hand")
                continue
            row = measure(setting, model, options)
            print(f"{row['verdict']}, {row['seconds']:.0f} s")
            found = {**key, "commit": commit, "date": datetime.date.today().isoformat(), **row}
            # A row of other code makes room.
            document["rows"] = [one for one in document["rows"] if not _same(key, one)] + [found]
            if path is not None:
                write_text(path, json.dumps(document, indent=1) + "\n")
    return document


def _same(key: Mapping[str, str], row: Mapping[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in key.items())


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "describe", "--always", f"--dirty={DIRTY}"]
    return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Run the rows and print the tables; 1 unless all are equal and one changed anything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="tiny,smollm2", help="with commas")
    parser.add_argument("--modes", default="free,isolated,decode,grad", help="of parity run")
    parser.add_argument("--rows", help="only these, with commas; plain is always run")
    parser.add_argument("--json", type=Path, help="read and write the rows here")
    parser.add_argument("--write", type=Path, help="put the tables into this page")
    parser.add_argument("--quick", action="store_true", help="a few rows of a short tiny run")
    words = [*sys.argv[1:], "--"]
    stop = words.index("--")
    given = parser.parse_args(words[:stop])
    known = {setting.name: setting for setting in settings()}
    names = [*QUICK] if given.quick else [*known]
    if given.rows:
        names = list(dict.fromkeys([PLAIN, *(word.strip() for word in given.rows.split(","))]))
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--rows {','.join(unknown)}: expected some of {', '.join(known)}")
    models, options = given.models.split(","), ["--mode", given.modes, *words[stop + 1 : -1]]
    if given.quick:
        models = ["tiny"]
        options = ["--mode", "free,isolated", "--scenario", "causal", "--length", "23"]
    if given.json:
        check_writable(given.json)
    document = run([known[name] for name in names], models, options, given.json)
    tables = markdown(document)
    print(tables, end="")
    if given.write:
        fill(given.write, tables)
    rows = [row for row in document["rows"] if row["model"] in models and row["setting"] in names]
    plain = {row["model"]: row for row in rows if row["setting"] == PLAIN}
    others = [row for row in rows if row["setting"] != PLAIN]
    proven = not others or any(changed(row, plain.get(row["model"])) for row in others)
    if not proven:
        print("no row changed a bit: nothing was shown of other machines", file=sys.stderr)
    return 0 if rows and proven and all(row["verdict"] == "equal" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
