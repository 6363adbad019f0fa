"""The `parity` command.

Exit codes: 0 equal, 1 divergent and nothing else, 2 bad usage or input, 3 inconclusive,
4 an internal error or no memory, 5 verdict printed but a report not written, 130 after Ctrl-C.
`jaxllama.command_line.group` and `jaxllama.command_line.process` see to those that are no verdict.
"""

from __future__ import annotations

from jaxllama import compilation_cache
from jaxllama.command_line.group import command
from jaxllama.command_line.help import examples
from parity.commands.explain import explain_command
from parity.commands.health import health_command
from parity.commands.lint import lint_command
from parity.commands.names import names_command, taps_command
from parity.commands.offline import capture_command, compare_command, recheck_command
from parity.commands.probe import probe_command
from parity.commands.quality import quality_command
from parity.commands.run import run_command
from parity.commands.schema import schema_command
from parity.commands.selftest import selftest_command

app = command(
    "parity",
    about="Does a JAX Llama compute what PyTorch computes? Tensor by tensor, with the cause.",
    shown=("parity run tiny", "parity explain --list", "parity run --help"),
    exit_codes="0 equal, 1 divergent or faulty, 2 bad usage or input, 3 inconclusive, 4 internal "
    "error or no memory, 5 verdict printed but a report not written, 130 Ctrl-C",
    no_cache=compilation_cache.turn_off,
)
app.command(
    "run",
    epilog=examples(
        "parity run DIR --html report.html",
        "parity run DIR --subject my_port:subject --dtype f64,f32",
        "parity run tiny --dtype f64 --scenario causal --override rope_theta=1e6",
        "parity run DIR --mode grad,step --quiet",
    ),
)(run_command)
app.command(
    "capture",
    epilog=examples(
        "parity capture DIR --dtype f32 --scenario causal -o ours",
        "parity capture DIR --subject torch -o theirs",
    ),
)(capture_command)
app.command("compare", epilog=examples("parity compare ours theirs --html report.html"))(
    compare_command
)
app.command("recheck", epilog=examples("parity recheck result.json --limit f32=16"))(
    recheck_command
)
app.command("taps", epilog=examples("parity taps", "parity taps --subject torch --json -"))(
    taps_command
)
app.command("names", epilog=examples("parity names DIR --subject my_port:subject"))(names_command)
app.command(
    "lint",
    epilog=examples(
        "parity lint mask.npy --use bool",
        "parity lint 'causal() & window(4)' --queries 9",
        "parity lint --from my_port:step --json -",
    ),
)(lint_command)
app.command(
    "probe",
    epilog=examples("parity probe dot_product", "parity probe my_port:attention --dtype f32"),
)(probe_command)
app.command(
    "health",
    epilog=examples(
        "parity health DIR --text book.txt --html health.html",
        "parity health DIR --baseline BEFORE",
    ),
)(health_command)
app.command(
    "quality",
    epilog=examples(
        "parity quality DIR --data texts.jsonl",
        "parity quality DIR --data texts.jsonl --quant int8 --html quality.html",
    ),
)(quality_command)
app.command(
    "explain",
    epilog=examples(
        "parity explain M01", "parity explain rope-theta", "parity explain --list causes"
    ),
)(explain_command)
app.command("schema", epilog=examples("parity schema", "parity schema result"))(schema_command)
app.command(
    "selftest",
    epilog=examples("parity selftest --quick", "parity selftest --family R3,M1 --json matrix.json"),
)(selftest_command)


def main() -> None:
    """Run the command line and exit."""
    app()
