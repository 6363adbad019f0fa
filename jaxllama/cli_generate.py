"""`jaxllama generate`: text on stdout as it is written, all else on stderr."""

from __future__ import annotations

import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxllama import compilation_cache
from jaxllama.command_line.group import CHECKPOINT
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.printable import one_line
from jaxllama.command_line.streams import as_is, is_unread, libraries_on_stderr

if TYPE_CHECKING:
    import numpy as np
    from jax.typing import DTypeLike

    from jaxllama.checkpoint import Checkpoint
    from jaxllama.config import LlamaConfig
    from jaxllama.model import Llama
    from jaxllama.text import TextGeneration
    from jaxllama.tokenizer import Tokenizer

_Run = Callable[[Sequence[int]], "TextGeneration"]
# Unless told, where the context leaves so much room.
DEFAULT_TOKENS = 256


@on_interrupt()
def generate(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; read from stdin if left out.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens to write; 256 if not given, or what the context leaves."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Answer the prompt by the checkpoint's chat template; without a prompt, every "
            "line of stdin is one turn of a conversation.",
        ),
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message of a --chat.")] = None,
    temperature: Annotated[float, typer.Option(help="0: the most likely token each time.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float, typer.Option(help="Sample from the fewest that reach this share.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Sample from those this near to the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; repeatable.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Write on past an end.")] = False,
    dtype: Annotated[str, typer.Option(help="f32, bf16, f16 or f64.")] = "f32",
    mesh: Annotated[
        str | None,
        typer.Option(help="Devices to lay the model out on: tensor=4,data=2; also fsdp."),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(help="Join the run's other processes: auto, or HOST:PORT,INDEX/COUNT."),
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="Weights as int8, int4 or int4:GROUP; see quantisation.md.")
    ] = None,
    cache_dtype: Annotated[
        str | None, typer.Option(help="Of the cache: int8, or as --dtype, which it is by default.")
    ] = None,
    cache_tokens: Annotated[
        int | None, typer.Option(help="Slots of the cache; as many as needed if not given.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print text, tokens and log-probabilities as JSON.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet/--no-quiet", help="No line about speed at the end.")
    ] = False,
) -> None:
    """Continue a text, or chat, showing tokens as they come."""
    from jaxllama.dtypes import parse
    from jaxllama.errors import InputError, join_problems
    from jaxllama.model import Llama
    from jaxllama.request import seeds_of
    from jaxllama.sampling import Sampling
    from jaxllama.sharding.hosts import is_first, several_hosts

    wanted = parse(dtype)
    held = wanted if cache_dtype is None else cache_dtype
    if system is not None and not chat:
        raise InputError("--system is a message of a chat; add --chat")
    if hosts is not None and prompt is None:
        raise InputError("--hosts: standard input is one process's alone; give the prompt itself")
    if hosts is not None and mesh is None:
        raise InputError("--hosts: each process would have a model of its own; add --mesh")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    shown: list[str] = []
    speaks = True
    if problems := seeds_of(seed, 1)[1]:
        raise InputError(join_problems("generate", problems))

    def run(ids: Sequence[int]) -> TextGeneration:
        return _show(
            model,
            tokenizer,
            ids,
            shown,
            silent=as_json or not speaks,
            quiet=quiet or as_json or not speaks,
            cache_tokens=cache_tokens,
            cache_dtype=held,
            max_new_tokens=_new_tokens(opened.config, len(ids), max_tokens, cache_tokens),
            sampling=sampling,
            seed=seed,
            stop=stop or (),
            eos_ids=() if ignore_eos else None,
        )

    with on_interrupt(lambda: _left(shown)), _notes(), ExitStack() as joined:
        if hosts is not None:
            joined.enter_context(libraries_on_stderr())
            joined.enter_context(several_hosts(hosts))
        speaks = is_first()
        compilation_cache.turn_on()
        opened = _open(checkpoint, wanted, quant, held, mesh, quiet=quiet or not speaks)
        tokenizer = opened.tokenizer()
        # What is too long is said before the weights are read, as far as it is known by then.
        ids: list[int] = []
        if not chat:
            text = _from_stdin() if prompt is None else prompt
            _note_specials(text, tokenizer)
            ids = tokenizer.encode(text)
        elif prompt is not None:
            ids = tokenizer.encode_chat(_messages(system, prompt))
        _new_tokens(opened.config, len(ids), max_tokens, cache_tokens)
        model = Llama.from_pretrained(opened, dtype=wanted, quant=quant, mesh=mesh)
        if not chat:
            results = [_as_dict(run(ids))]
        else:
            results = _converse(run, tokenizer, system, _lines() if prompt is None else [prompt])
        if as_json and speaks:
            one = prompt is not None or not chat
            print(json.dumps(results[0] if one else results, indent=2))


def _open(
    checkpoint: str,
    dtype: np.dtype,
    quant: str | None,
    held: DTypeLike,
    mesh: str | None,
    *,
    quiet: bool,
) -> Checkpoint:
    """Return what is to be loaded, once it is known that it can be."""
    import jax

    from jaxllama.checkpoint import open_checkpoint
    from jaxllama.errors import argument
    from jaxllama.quantisation import checked_cache_dtype, checked_quant
    from jaxllama.sharding import model_sharding, parse_mesh

    if dtype.name == "float64":
        jax.config.update("jax_enable_x64", True)
    checked_cache_dtype(held, argument("cache_dtype"))
    if mesh is not None:
        parse_mesh(mesh)
    opened = open_checkpoint(checkpoint, quiet=quiet)
    checked_quant(quant, opened.config)
    laid_out = None if mesh is None else model_sharding(mesh, opened.config)
    tokenizer = opened.tokenizer()
    notes = (*opened.notes, *tokenizer.notes, *(() if laid_out is None else laid_out.notes))
    for note in () if quiet else notes:
        print(f"note: {one_line(note)}", file=sys.stderr)
    return opened


def _new_tokens(config: LlamaConfig, prompt: int, wanted: int | None, slots: int | None) -> int:
    """Return most tokens to write after a prompt of so many, once they fit context and cache."""
    from jaxllama.errors import InputError
    from jaxllama.request import capacity_problems, context_problems

    room = config.within_context(prompt + DEFAULT_TOKENS) - prompt
    # Where there is no room at all, not for one.
    new_tokens = max(1, room) if wanted is None else wanted
    problems = context_problems(config, prompt, new_tokens)
    if slots is not None:
        problems += capacity_problems(slots, prompt, new_tokens)
    for problem in problems:
        raise InputError(f"generate: {problem}")
    return new_tokens


def _show(
    model: Llama,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    shown: list[str],
    *,
    silent: bool,
    quiet: bool,
    cache_tokens: int | None,
    cache_dtype: DTypeLike,
    **options: Any,
) -> TextGeneration:
    """Generate from one prompt; write the text as it comes, then how fast it came."""
    from jaxllama.cache import KVCache
    from jaxllama.text import generate_text

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every character
    times: list[float] = []
    # A model may write escape sequences: a terminal shows them, a file has them as they are.
    out = sys.stdout if sys.stdout.isatty() else as_is(sys.stdout)

    def show(row: int, text: str) -> None:
        times.append(time.perf_counter())
        if not silent:
            shown.append(text)
            out.write(text)
            out.flush()
            if is_unread(sys.stdout):  # a long text is not written for nobody
                raise typer.Exit

    cache = None
    if cache_tokens is not None:
        cache = KVCache.empty(model.config, 1, cache_tokens, cache_dtype, sharding=model.sharding)
    started = time.perf_counter()
    options |= {"cache": cache, "cache_dtype": cache_dtype}
    found = generate_text(model, tokenizer, [prompt], on_text=show, **options)
    if not silent:
        print()
    if not quiet:
        count = int(found.generation.lengths[0])
        # The last call may have been for text held back to the end: use the tokens' own.
        spent = times[count - 1] - times[0]
        speed = f", then {(count - 1) / spent:.1f} tokens/s" if count > 1 else ""
        print(
            f"[{count} tokens, the first after {times[0] - started:.1f} s (with compilation)"
            f"{speed}; ended by {found.generation.finish_reasons[0]}]",
            file=sys.stderr,
        )
    return found


def _left(shown: list[str]) -> str:
    """Say what has been written, and end its line."""
    if not any(shown):
        return "nothing was written"
    if not shown[-1].endswith("\n"):
        print(flush=True)
    return "the text ends here"


def _converse(
    run: _Run, tokenizer: Tokenizer, system: str | None, turns: Iterator[str] | list[str]
) -> list[dict[str, Any]]:
    messages = _messages(system)
    results = []
    for turn in turns:
        messages += _messages(None, turn)
        found = run(tokenizer.encode_chat(messages))
        messages.append({"role": "assistant", "content": found.texts[0]})
        results.append(_as_dict(found))
    return results


def _messages(system: str | None, turn: str | None = None) -> list[dict[str, str]]:
    said = {"system": system, "user": turn}
    return [{"role": role, "content": text} for role, text in said.items() if text is not None]


def _as_dict(found: TextGeneration) -> dict[str, Any]:
    (tokens,) = found.generation.rows()
    return {
        "text": found.texts[0],
        "tokens": tokens,
        "logprobs": [float(x) for x in found.generation.logprobs[0][: len(tokens)]],
        "finish_reason": found.generation.finish_reasons[0],
        "seed": found.generation.seeds[0],
    }


def _from_stdin() -> str:
    from jaxllama.errors import InputError

    if sys.stdin.isatty():
        raise InputError("no prompt: give one as an argument, or on stdin")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not text in UTF-8: {error}") from error


def _note_specials(prompt: str, tokenizer: Tokenizer) -> None:
    """Say that special tokens in a prompt count: it is the asker's own, unlike a chat's text."""
    if found := [text for text in tokenizer.special_tokens if text in prompt]:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        print(
            f"note: {found[0]!r}{more} in the prompt is read as a special token; --chat reads what "
            "a user says as text",
            file=sys.stderr,
        )


def _lines() -> Iterator[str]:
    """Yield what the user says, with something to type at where that is a terminal."""
    asked = sys.stdin.isatty()
    while True:
        if asked:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


@contextmanager
def _notes() -> Iterator[None]:
    """Show warnings as plain notes."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"note: {one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
