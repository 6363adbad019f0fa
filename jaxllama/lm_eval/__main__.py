"""`python -m jaxllama.lm_eval`: the harness's own command, with our model among its models."""

from __future__ import annotations

import sys

from jaxllama import compilation_cache
from jaxllama.command_line.failure import report_error
from jaxllama.errors import JaxLlamaError


def main() -> None:
    """Run the harness's command line, the package having registered the model.

    Streams and exit codes are the harness's but for errors of ours.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        compilation_cache.turn_on()
        cli_evaluate()
    except JaxLlamaError as error:
        sys.exit(report_error(error, "jaxllama"))


if __name__ == "__main__":
    main()
