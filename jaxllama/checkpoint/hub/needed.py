"""Which files of a repository are needed to open it: one set of weights, and what goes with it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from jaxllama.checkpoint.hf.read import COMPANIONS, CONFIG
from jaxllama.checkpoint.hf.weights import ADAPTER, INDEX, SINGLE
from jaxllama.checkpoint.hub.name import HubName
from jaxllama.checkpoint.lora.contents import WEIGHTS as ADAPTER_WEIGHTS
from jaxllama.checkpoint.manifest import MANIFEST
from jaxllama.checkpoint.meta.directory import PARAMS
from jaxllama.checkpoint.orbax.arrays import TREE
from jaxllama.checkpoint.orbax.read import ARRAYS
from jaxllama.errors import CheckpointError

ORIGINAL = "original"
_SHARD = re.compile(r"model.*-\d{5}-of-\d{5}\.safetensors")
_RANK = re.compile(r"consolidated\.\d+\.pth")
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_ARRAYS = f"{ARRAYS}/"


class NothingToReadError(CheckpointError):
    """A repository has no weights in a format that is read here."""


@dataclass(frozen=True)
class Needed:
    """What opens a repository.

    Attributes:
        files: in the repository.
        folder: in which of its folders they lie; empty for none.
    """

    files: tuple[str, ...]
    folder: str = ""


def choose_files(names: Iterable[str], repo: HubName) -> Needed:
    """Return the files to read of those that a repository has.

    safetensors come before Meta's files, these before Orbax and GGUF, since publishers give the
    same weights in several formats and the first have most beside them.

    Args:
        names: paths in the repository.
        repo: whose they are, for messages.

    Raises:
        NothingToReadError: it has no weights that are read here.
        CheckpointError: it has GGUF files to choose from.
    """
    listed = sorted(names)
    top = [name for name in listed if "/" not in name]
    manifests = [name for name in top if name.endswith(MANIFEST)]
    companions = [*manifests, *(name for name in top if name in COMPANIONS)]
    beside = [*companions, *(name for name in top if name == CONFIG)]
    if SINGLE in top:
        return Needed((*beside, SINGLE))
    if shards := [name for name in top if _SHARD.fullmatch(name)]:
        return Needed((*beside, *(name for name in top if name == INDEX), *shards))
    if ranks := [name for name in top if _RANK.fullmatch(name)]:
        return Needed((*companions, *(name for name in top if name == PARAMS), *ranks))
    if _ARRAYS + TREE in listed:
        return Needed((*beside, *(name for name in listed if name.startswith(_ARRAYS))))
    if ADAPTER in top:
        return Needed(tuple(name for name in top if name in (ADAPTER, ADAPTER_WEIGHTS, MANIFEST)))
    if packed := [name for name in top if name.endswith(".gguf")]:
        if len({_SPLIT.sub(r"-of-\1", name) for name in packed}) > 1:
            raise _many(packed, repo)
        return Needed((*manifests, *packed))
    within = [name for name in listed if name.startswith(f"{ORIGINAL}/")]
    if any(_RANK.fullmatch(name.rpartition("/")[2]) for name in within):
        return Needed(tuple(within), ORIGINAL)
    raise _none(listed, repo)


def refuse_two_sets(names: Collection[str], repo: HubName) -> None:
    """Refuse a repository with two sets of safetensors, as a directory with two is.

    Raises:
        CheckpointError: it has both.
    """
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if shards and SINGLE in names:
        raise CheckpointError(
            f"{repo}: holds two sets of weights: {SINGLE}, and {len(shards)} files such as "
            f"{shards[0]}; fetch one of them by `hf download` and --include, and give its directory"
        )


def _many(packed: list[str], repo: HubName) -> CheckpointError:
    shown = ", ".join(packed[:3]) + " ..." * (len(packed) > 3)
    return CheckpointError(
        f"{repo}: holds {len(packed)} GGUF files ({shown}); fetch one, such as "
        f"`{repo.fetch_command(packed[0])}`, and give the path that it prints"
    )


def _none(listed: list[str], repo: HubName) -> NothingToReadError:
    shown = ", ".join(listed[:8]) or "nothing"
    return NothingToReadError(
        f"{repo}: has no weights in a format that is read here (safetensors, Meta's "
        f"consolidated.NN.pth, Orbax under {_ARRAYS}, GGUF); it holds {shown}"
        + " ..."
        * (len(listed) > 8)
    )
