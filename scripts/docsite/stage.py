"""The repository's Markdown laid out as one tree for Sphinx, its links made to lead within it.

Pages are written to be read where they stand, on a code host: a link is a path from the page's own
place. Here that path becomes one within the site; a source file becomes a page that shows it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from os.path import relpath
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
SITE = "docs/site"
# Code is no place for links, and a link's text may hold code: whichever begins first.
_CODE_OR_LINK = re.compile(
    r"(?P<code>^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)\s*?$)"
    r"|(?P<before>!?\[(?:[^\[\]`]|`[^`\n]+`|\[[^\]]*\])*\]\()(?P<target>[^)\s]+)\)"
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_ELSEWHERE = re.compile(r"^([a-z][a-z+.-]*:|#)", re.IGNORECASE)
_LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".toml": "toml", ".txt": "text"}
_SHOWN = (*_LANGUAGES, "")


class BrokenLinks(Exception):
    """Links of pages that lead nowhere; the message has each with its page."""


def pages(root: Path = ROOT) -> dict[str, str]:
    """Return every Markdown page of the repository with its place in the site."""
    found = {}
    for folder in ("docs", "jaxllama", "parity"):
        for file in sorted((root / folder).rglob("*.md")):
            path = file.relative_to(root).as_posix()
            found[path] = _place(path)
    for file in sorted(root.glob("*.md")):
        found[file.name] = f"project/{file.name}"  # no index: the packages have theirs below
    return found


# Pages that `docsite.reference` splits: a section each becomes one.
FOLDERS = {"docs/exit-codes.md": "exit-codes/index.md", "docs/metrics.md": "metrics/index.md"}


def _place(path: str) -> str:
    if path in FOLDERS:
        return FOLDERS[path]
    for start in (f"{SITE}/", "docs/"):
        if path.startswith(start):
            place = path.removeprefix(start)
            break
    else:
        place = f"project/{path}"
    return re.sub(r"(^|/)README\.md$", r"\1index.md", place)


class Stage:
    """A tree in the making.

    Args:
        out: where it is made; what was there is removed.
        root: of the repository.

    Attributes:
        places: of pages, by their paths in the repository.
    """

    def __init__(self, out: Path, root: Path = ROOT) -> None:
        self.out, self.root = out, root
        self.places = pages(root)
        self._shown: set[str] = set()
        self._broken: list[str] = []
        shutil.rmtree(out, ignore_errors=True)

    def lay_out(self) -> None:
        """Write every page of the repository, and what they link to.

        Raises:
            BrokenLinks: some lead nowhere.
        """
        for path, place in self.places.items():
            text = (self.root / path).read_text(encoding="utf-8")
            self.write(place, self.relinked(text, path))
        if self._broken:
            raise BrokenLinks("\n".join(["links lead nowhere:", *self._broken]))

    def write(self, place: str, text: str) -> None:
        """Write a page at its place in the site."""
        file = self.out / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def append(self, place: str, text: str) -> None:
        """Add to the end of a page that was laid out."""
        file = self.out / place
        file.write_text(
            f"{file.read_text(encoding='utf-8').rstrip()}\n\n{text}\n", encoding="utf-8"
        )

    def relinked(self, text: str, path: str) -> str:
        """Return a page's text with links that lead within the site.

        Args:
            text: Markdown.
            path: the page's, in the repository.
        """

        def led(found: re.Match[str]) -> str:
            if found["target"] is None:
                return found[0]
            return f"{found['before']}{self._target(found['target'], path)})"

        return _CODE_OR_LINK.sub(led, text)

    def _target(self, target: str, path: str) -> str:
        if _ELSEWHERE.match(target):
            return target
        aim, hash_, anchor = target.partition("#")
        # Without a look at the file system, whatever links it has: `..` is that of the page.
        parts: list[str] = []
        for part in (*PurePosixPath(path).parent.parts, *PurePosixPath(aim).parts):
            if part == "..":
                if not parts:
                    return self._nowhere(target, path)
                parts.pop()
            elif part != ".":
                parts.append(part)
        place = self._place_of("/".join(parts))
        if place is None:
            return self._nowhere(target, path)
        here = PurePosixPath(self._page(path)).parent
        return relpath(place, here) + hash_ + anchor

    def _nowhere(self, target: str, path: str) -> str:
        self._broken.append(f"{path}: {target}")
        return target

    def _page(self, path: str) -> str:
        return self.places.get(path) or _place(path)

    def _place_of(self, path: str) -> str | None:
        """Return where something of the repository is in the site; it is brought there."""
        for name in (path, f"{path}/README.md"):
            if name in self.places:
                return self.places[name]
        file = self.root / path
        if file.is_dir():
            return self._folder(path)
        if not file.is_file():
            return None
        return self._source(path) if file.suffix in _SHOWN else self._asset(path)

    def _asset(self, path: str) -> str:
        place = f"files/{path}"
        (self.out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / path, self.out / place)
        return place

    def _source(self, path: str) -> str:
        """Make a page that shows a file."""
        place = f"source/{path.replace('.', '-')}.md"
        if place not in self._shown:
            self._shown.add(place)
            text = (self.root / path).read_text(encoding="utf-8")
            fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
            language = _LANGUAGES.get(Path(path).suffix, "text")
            self.write(
                place, f"---\norphan: true\n---\n\n# {path}\n\n{fence}{language}\n{text}{fence}\n"
            )
        return place

    def _folder(self, path: str) -> str:
        """Make a page of a folder's files, each a link to a page that shows it."""
        place = f"source/{path}/index.md"
        if place not in self._shown:
            self._shown.add(place)
            lines = [
                f"- [{file.name}]({relpath(self._source(name), f'source/{path}')})"
                for file, name in self._files(path)
            ]
            self.write(
                place, "\n".join(["---", "orphan: true", "---", "", f"# {path}", "", *lines, ""])
            )
        return place

    def _files(self, path: str) -> Iterator[tuple[Path, str]]:
        for file in sorted((self.root / path).iterdir()):
            if file.is_file() and file.suffix in _LANGUAGES and file.name != "__init__.py":
                yield file, file.relative_to(self.root).as_posix()
