"""Names of models on the Hub: `ORGANISATION/MODEL`, or `ORGANISATION/MODEL@REVISION`."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

MAIN = "main"
_PART = re.compile(r"(?=.{1,96}$)[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
# A branch, a tag, a commit, or a reference such as refs/pr/3.
_REVISION = re.compile(r"[\w][\w.+-]*(?:/[\w][\w.+-]*)*", re.ASCII)
# Files that people name: what looks like one is a path.
_FILES = (".gguf", ".safetensors", ".pth", ".bin", ".json", ".git", ".pt")


@dataclass(frozen=True)
class HubName:
    """A model on the Hub.

    Attributes:
        repo: `ORGANISATION/MODEL`.
        revision: branch, tag or commit; None where none is stated, which means `main`.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return it as it is written."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def folder(self) -> str:
        """Return the name of its folder in the cache."""
        return "models--" + self.repo.replace("/", "--")

    def fetch_command(self, file: str = "") -> str:
        """Return the command that fetches all of it, or one file, into the cache."""
        words = ["hf", "download", self.repo, *([file] if file else [])]
        words += [] if self.revision is None else ["--revision", self.revision]
        # The same weights once more, in Meta's format.
        words += [] if file else ["--exclude", "original/*"]
        return shlex.join(words)


def parse_name(text: str) -> HubName | None:
    """Return the model that a text names, None where it cannot be but a path."""
    repo, at, revision = text.partition("@")
    parts = repo.split("/")
    if len(parts) != 2 or not all(map(_is_part, parts)) or repo.endswith(_FILES):
        return None
    if at and (".." in revision or not _REVISION.fullmatch(revision)):
        return None
    return HubName(repo, revision if at else None)


def _is_part(text: str) -> bool:
    return bool(_PART.fullmatch(text)) and "--" not in text and ".." not in text
