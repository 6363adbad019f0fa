"""The `parity` command.

Exit codes: 0 equal, 1 divergent and nothing else, 2 bad usage or input, 3 inconclusive,
4 an internal error or no memory, 5 verdict printed but a report not written, 130 after Ctrl-C.
`jaxllama.command_line.group` and `jaxllama.command_line.process` see to those that are no verdict.
"""

from __future__ import annotations

from jaxllama import compilation_cache
from jaxllama.command_line.group import command
from parity.commands.explain import explain_command
from parity.commands.health import health_command
from parity.commands.lint import lint_command
from parity.commands.offline import capture_command, compare_command, recheck_command
from parity.commands.probe import probe_command
from parity.commands.quality import quality_command
from parity.commands.run import run_command
from parity.commands.schema import schema_command
from parity.commands.selftest import selftest_command

app = command(
    "parity",
    about="Does a JAX Llama compute what PyTorch computes? Tensor by tensor, with the cause.",
    exit_codes="0 equal, 1 divergent or faulty, 2 bad usage or input, 3 inconclusive, 4 internal "
    "error or no memory, 5 verdict printed but a report not written, 130 Ctrl-C",
    no_cache=compilation_cache.turn_off,
)
app.command("run")(run_command)
app.command("capture")(capture_command)
app.command("compare")(compare_command)
app.command("recheck")(recheck_command)
app.command("lint")(lint_command)
app.command("probe")(probe_command)
app.command("health")(health_command)
app.command("quality")(quality_command)
app.command("explain")(explain_command)
app.command("schema")(schema_command)
app.command("selftest")(selftest_command)


def main() -> None:
    """Run the command line and exit."""
    app()
