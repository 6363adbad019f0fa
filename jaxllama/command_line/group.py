"""What the subcommands of a command share: `--debug`, and how an error ends any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from jaxllama.command_line import failure

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

    def invoke(self, ctx: Any) -> Any:
        program = self.name or "error"
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except TyperException as error:
            error.exit_code = failure.BAD_INPUT  # 1 for some
            raise
        except (Exception, SystemExit) as error:  # a user's module may leave, too
            raise SystemExit(
                failure.report_error(error, program, debug=_DEBUG in ctx.meta)
            ) from None


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
