"""The built site read as a browser would: every link within it leads somewhere, nothing is fetched.

Links to elsewhere are only collected: whether they are alive takes a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, by element and attribute.
_FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("source", "src"),
    ("source", "srcset"),
    ("iframe", "src"),
    ("embed", "src"),
    ("video", "src"),
    ("video", "poster"),
    ("audio", "src"),
    ("object", "data"),
    ("image", "href"),
    ("use", "href"),
}
# Of `link`, by its rel.
_FETCHED_RELS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest"}
_STYLE = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_FAR = re.compile(r"^(https?:|ftp:|//)", re.IGNORECASE)
_NEITHER = re.compile(r"^(data|javascript|blob|about):", re.IGNORECASE)


@dataclass
class Page(HTMLParser):
    """What one page says: names that a link may lead to, its links, and what it fetches."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    _style: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value for name, value in attrs if value}
        self.ids |= {said[name] for name in ("id", "name") if name in said}
        if "style" in said:
            self.fetched += styled(said["style"])
        for name, value in said.items():
            if (tag, name) in _FETCHED:
                urls = [one.split()[0] for one in value.split(",")] if name == "srcset" else [value]
                self.fetched += urls
        if tag == "link" and "href" in said:
            rels = set(said.get("rel", "").lower().split())
            (self.fetched if rels & _FETCHED_RELS else self.links).append(said["href"])
        elif tag in ("a", "area") and "href" in said:
            self.links.append(said["href"])
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._style:
            self.fetched += styled(data)

    def handle_endtag(self, tag: str) -> None:
        self._style = False


def styled(text: str) -> list[str]:
    """Return what a style sheet fetches."""
    return [one or other for one, other in _STYLE.findall(text)]


@dataclass
class Check:
    """What is wrong with a built site, and where it links to.

    Attributes:
        problems: a line each.
        elsewhere: addresses of other sites, each with a page that has it.
        pages: how many there are.
    """

    problems: list[str] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)
    pages: int = 0


def check(site: Path) -> Check:
    """Read all of a built site; what themes keep of their templates in `_static` is no page."""
    read, site = {}, site.resolve()
    for file in sorted(site.rglob("*.html")):
        if file.relative_to(site).parts[0] == "_static":
            continue
        page = Page()
        page.feed(file.read_text(encoding="utf-8"))
        read[file] = page
    found = Check(pages=len(read))
    for file, page in read.items():
        name = file.relative_to(site).as_posix()
        found.problems += [f"{name}: fetches {url}" for url in page.fetched if _FAR.match(url)]
        near = [url for url in page.fetched if not _FAR.match(url)]
        for url in dict.fromkeys([*page.links, *near]):
            if _FAR.match(url) or url.lower().startswith("mailto:"):
                found.elsewhere.setdefault(url, name)
            elif not _NEITHER.match(url) and (why := _broken(url, file, site, read)):
                found.problems.append(f"{name}: {url}: {why}")
    for file in sorted(site.rglob("*.css")):
        name = file.relative_to(site).as_posix()
        urls = styled(file.read_text(encoding="utf-8"))
        found.problems += [f"{name}: fetches {url}" for url in urls if _FAR.match(url)]
    return found


def _broken(url: str, file: Path, site: Path, read: dict[Path, Page]) -> str:
    """Return why a link within the site leads nowhere; "" if it leads somewhere."""
    parts = urlsplit(url)
    aim = file if not parts.path else (file.parent / unquote(parts.path)).resolve()
    if not aim.is_relative_to(site):
        return "outside of the site"
    if aim.is_dir():
        return "a folder, which a browser lists or refuses"
    if not aim.is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and aim in read and anchor not in read[aim].ids:
        return f"no {anchor!r} on that page"
    return ""


def lines(found: Check) -> Iterator[str]:
    """Yield addresses of other sites, each with a page that has it."""
    for url, page in sorted(found.elsewhere.items()):
        yield f"{url}\t{page}"
