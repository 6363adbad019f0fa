"""What the subcommands of a command share: `--debug`, and how an error ends any of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from jaxllama.command_line import failure
from jaxllama.command_line.streams import as_is

_DEBUG = "jaxllama.debug"


class CommandGroup(TyperGroup):
    """The subcommands of a command, `--debug` before and behind their names.

    Errors are met in here, for typer would take some of them for its own: an end of file in the
    middle of a checkpoint, or a worker's broken pipe, would end in its exit code 1.
    """

    def __init__(self, *, params: list[Any] | None = None, **settings: Any) -> None:
        super().__init__(params=[*(params or []), _debug_option()], **settings)
        for command in self.commands.values():
            command.params.append(_debug_option())
        for command in (self, *self.commands.values()):
            command.format_help = _in_colour(command.format_help)  # type: ignore[method-assign]

    def make_context(self, *words: Any, **extra: Any) -> Any:
        try:
            return super().make_context(*words, **extra)
        except TyperException as error:
            raise _misused(error, self.name or "error") from None

    def invoke(self, ctx: Any) -> Any:
        program = self.name or "error"
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except TyperException as error:
            raise _misused(error, program) from None
        except (Exception, SystemExit) as error:  # a user's module may leave, too
            raise SystemExit(
                failure.report_error(error, program, debug=_DEBUG in ctx.meta)
            ) from None


# What both commands say of the argument that names a checkpoint.
CHECKPOINT = "Directory, GGUF file, tiny, smollm2, or a name of the Hub (ORG/MODEL[@REVISION])."


def command(
    name: str, *, about: str, exit_codes: str, no_cache: Callable[[bool], None]
) -> typer.Typer:
    """Return a command without subcommands yet, in the look that both commands have.

    Args:
        name: as it is typed.
        about: one sentence or two.
        exit_codes: what they mean.
        no_cache: told whether `--no-cache` was given.
    """
    app = typer.Typer(
        name=name,
        cls=CommandGroup,
        help=about,
        epilog=f"Exit codes: {exit_codes}.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def for_all(
        off: Annotated[
            bool, typer.Option("--no-cache", help="Compile all anew, and keep nothing of it.")
        ] = False,
    ) -> None:
        no_cache(off)

    return app


def _misused(error: Any, program: str) -> BaseException:
    """Say what is wrong with the words of a command, in one line as other errors are."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.exit_code = failure.BAD_INPUT
        return error  # prints the help
    command = program if error.ctx is None else error.ctx.command_path
    said = error.format_message().rstrip(".")
    print(f"{program}: {said} ({command} --help)", file=sys.stderr)
    return SystemExit(failure.BAD_INPUT)


def _in_colour(format_help: Callable[..., None]) -> Callable[..., None]:
    """Let help write its own control sequences: none of it is a stranger's."""

    def formatted(*words: Any, **named: Any) -> None:
        with redirect_stdout(as_is(sys.stdout)):
            format_help(*words, **named)

    return formatted


def _noted(ctx: Any, option: object, wanted: bool) -> None:
    if wanted:
        ctx.meta[_DEBUG] = True  # which the contexts of a group and its subcommand share


def _described(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show where an error comes from.", expose_value=False, is_eager=True
        ),
    ] = False,
) -> None:
    """Declare the option, as typer wants it declared."""


def _debug_option() -> Any:
    """Return the option as typer makes it of an annotation."""
    app = typer.Typer(add_completion=False)
    app.command()(_described)
    option = typer.main.get_command(app).params[0]
    option.callback = _noted
    return option
