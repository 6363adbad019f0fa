"""A command as the whole of a process: where its streams lead, and with which code it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from jaxllama.command_line import failure, streams
from jaxllama.command_line.interrupt import INTERRUPTED, end_at_once, on_interrupt


def command(module: str) -> Callable[..., None]:
    """Return what runs a module's `main` as the whole of a process.

    Ctrl-C is heard while the module is still being imported, too. Exit code 1 is a verdict: no
    exception, in there or in what is imported, ends the process with it.

    Args:
        module: its name; nothing of it has been imported.
    """
    program = module.partition(".")[0]

    def script(*arguments: Any) -> NoReturn:
        streams.prepare()
        try:
            with on_interrupt():
                import_module(module).main(*arguments)
            code = 0
        except KeyboardInterrupt:
            end_at_once()
        except SystemExit as end:
            code = failure.exit_code_of(end, program)
        except BaseException as error:
            # Options are not parsed yet where a module could not be imported.
            code = failure.report_error(error, program, debug="--debug" in sys.argv)
        if code == INTERRUPTED:
            end_at_once()
        if lost := streams.flush(sys.stdout):
            code = failure.report_unwritten(lost, program)
        streams.flush(sys.stderr)
        sys.exit(code)

    return script
