"""What the subcommands of a command share: two options, and how an error ends any of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from jaxllama.command_line import failure
from jaxllama.command_line.help import examples, prepare_help

_DEBUG = "jaxllama.debug"


class CommandGroup(TyperGroup):
    """The subcommands of a command, with options that stand before or behind their names.

    Errors are met in here, for typer would take some of them for its own: an end of file in the
    middle of a checkpoint, or a worker's broken pipe, would end in its exit code 1.
    """

    # By name: the line of help, and what is done where it is given.
    shared: ClassVar[dict[str, tuple[str, Callable[[Any], None]]]] = {}

    def __init__(self, *, params: list[Any] | None = None, **settings: Any) -> None:
        settings["context_settings"] = {"help_option_names": ["-h", "--help"]}
        super().__init__(params=[*(params or []), *self._flags()], **settings)
        for command in self.commands.values():
            command.params.extend(self._flags())
        for command in (self, *self.commands.values()):
            prepare_help(command)

    def _flags(self) -> list[Any]:
        return [_flag(name, about, act) for name, (about, act) in self.shared.items()]

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
    name: str, *, about: str, shown: Sequence[str], exit_codes: str, no_cache: Callable[[], None]
) -> typer.Typer:
    """Return a command without subcommands yet, in the look that both commands have.

    Args:
        name: as it is typed.
        about: one sentence or two.
        shown: examples.
        exit_codes: what they mean.
        no_cache: called where `--no-cache` is given.
    """

    class Group(CommandGroup):
        shared: ClassVar = {
            "--no-cache": ("Compile all anew, and keep nothing of it.", lambda _: no_cache()),
            "--debug": ("Show where an error comes from.", _note_debug),
            "--version": ("Show the version and exit.", partial(_show_version, name)),
        }

    return typer.Typer(
        name=name,
        cls=Group,
        help=about,
        epilog=f"{examples(*shown)}\n\nExit codes: {exit_codes}.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )


def _misused(error: Any, program: str) -> BaseException:
    """Say what is wrong with the words of a command, in one line as other errors are."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.exit_code = failure.BAD_INPUT
        return error  # prints the help
    command = program if error.ctx is None else error.ctx.command_path
    said = error.format_message().rstrip(".")
    print(f"{program}: {said} ({command} --help)", file=sys.stderr)
    return SystemExit(failure.BAD_INPUT)


def _show_version(name: str, _: Any) -> None:
    print(f"{name} {version('jaxllama')}")
    raise typer.Exit


def _note_debug(ctx: Any) -> None:
    ctx.meta[_DEBUG] = True  # which the contexts of a group and its subcommand share


def _flag(name: str, about: str, act: Callable[[Any], None]) -> Any:
    """Return an option that acts by itself, as typer makes it of an annotation."""

    def described(given: bool = False) -> None:
        """Declare it."""

    declared = typer.Option(name, help=about, expose_value=False, is_eager=True)
    described.__annotations__["given"] = Annotated[bool, declared]
    app = typer.Typer(add_completion=False)
    app.command()(described)
    option = typer.main.get_command(app).params[0]
    option.name = name.strip("-")  # what is given is kept by name: one flag would set them all
    option.callback = lambda ctx, _, wanted: act(ctx) if wanted else None
    return option
