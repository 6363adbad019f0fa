"""Fetch a model into the cache by `huggingface_hub`, which is an extra; every failure one line."""

from __future__ import annotations

import errno
import glob
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

from jaxllama.checkpoint.hub.cache import cache_directory, is_offline
from jaxllama.checkpoint.hub.name import MAIN, HubName
from jaxllama.checkpoint.hub.needed import choose_files, refuse_two_sets
from jaxllama.command_line.streams import as_is
from jaxllama.errors import CheckpointError

LIBRARY = "huggingface_hub"
_HUB = "https://huggingface.co"


def why_not() -> str:
    """Return why nothing can be fetched here, to put into a message; empty where it can."""
    if is_offline():
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network; unset it"
    if importlib.util.find_spec(LIBRARY) is None:
        return "`pip install 'jaxllama[hub]'` lets this command fetch it"
    return ""


def download(name: HubName, *, quiet: bool = False) -> None:
    """Fetch the files that open a model; files that are there whole are not fetched again.

    Args:
        name: the model.
        quiet: whether no progress is shown on stderr.

    Raises:
        CheckpointError: there is no such model or revision, it is gated, the Hub cannot be
            reached or answers with an error, or the cache cannot be written.
    """
    import huggingface_hub

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    options: dict[str, Any] = {"repo_id": name.repo, "revision": name.revision}
    api = huggingface_hub.HfApi(endpoint=endpoint, library_name="jaxllama")
    try:
        listed = api.model_info(**options).siblings or []
        names = [file.rfilename for file in listed]
        needed = choose_files(names, name)
        refuse_two_sets(names, name)
        with _shown(not quiet):
            fetch = partial(
                huggingface_hub.snapshot_download,
                **options,
                cache_dir=cache_directory(),
                endpoint=endpoint,
                allow_patterns=[glob.escape(file) for file in needed.files],
                library_name="jaxllama",
            )
            _call_interruptibly(fetch)
    except CheckpointError:
        raise
    except Exception as error:  # the library lets through what its own HTTP client raises
        raise CheckpointError(_said(error, name, endpoint or _HUB)) from error


def _call_interruptibly(call: Callable[[], Any]) -> None:
    """Call in a thread: in this one Ctrl-C would be heard when all that is begun is there."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    done.result()


@contextmanager
def _shown(bars: bool) -> Iterator[None]:
    """Let the library show its bars or not, and tell of no attempt: of these there are dozens."""
    from huggingface_hub import utils

    before, level = utils.are_progress_bars_disabled(), utils.logging.get_verbosity()
    utils.logging.set_verbosity_error()
    if not bars:
        utils.disable_progress_bars()
    try:
        with redirect_stderr(as_is(sys.stderr)):  # bars are drawn by control sequences
            yield
    finally:
        utils.logging.set_verbosity(level)
        if not (bars or before):
            utils.enable_progress_bars()


def _said(error: BaseException, name: HubName, endpoint: str) -> str:
    """Say in one line why a model was not fetched, and what to do."""
    chain = list(_causes(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    status = next((found for one in chain if (found := _status(one)) is not None), None)
    page, token = f"{endpoint}/{name.repo}", _has_token()
    if "GatedRepoError" in kinds and token:
        said = (
            f"is gated, and the account of your token (HF_TOKEN, or of `hf auth login`) has no "
            f"access ({status}): ask for it at {page}, and wait until it is granted"
        )
    elif "GatedRepoError" in kinds:
        said = (
            f"is gated ({status}): ask for access at {page}, then set HF_TOKEN to a token of your "
            "account, or run `hf auth login`"
        )
    elif "RevisionNotFoundError" in kinds:
        said = f"has no revision {name.revision or MAIN!r} ({status}); {page} shows those it has"
    elif "RepositoryNotFoundError" in kinds:
        private = "private to another account" if token else "private, which takes HF_TOKEN"
        said = (
            f"is no path here, and the Hub shows you no model of that name ({status}): misspelt, "
            f"or {private}"
        )
    elif status in (401, 403):
        whose = "your token is" if token else "without a token you are"
        said = f"cannot be fetched: {whose} refused ({status}); set HF_TOKEN to one that may read"
    elif status is not None:
        said = f"cannot be fetched: the Hub answers {status}; try again later"
    elif full := _unwritable(chain):
        return full
    else:
        reason = (str(chain[-1]) or type(chain[-1]).__name__).splitlines()[0][:200].rstrip(".")
        said = (
            f"is no path here, and cannot be fetched: {reason}; run it again, or "
            f"`{name.fetch_command()}`, where the Hub is reached: files that are there whole stay"
        )
    return f"{name}: {said}"


def _unwritable(chain: list[BaseException]) -> str:
    """Say that the cache cannot be written, if that is why; empty otherwise."""
    for one in chain:
        full = isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(one, OSError) and one.strerror and (full or one.filename is not None):
            return f"{one.filename or cache_directory()}: cannot be written: {one.strerror}"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came of: the library wraps some in errors of its own."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _status(error: BaseException) -> int | None:
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _has_token() -> bool:
    import huggingface_hub

    return huggingface_hub.get_token() is not None
