"""A Hub on the loopback, which answers as the real one where checkpoints are concerned."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from hub_cache import COMMIT

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/(.+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class HubServer:
    """What the server has, how it misbehaves, and what it was asked.

    Attributes:
        models: files by repository.
        gated: repositories whose files are given to no one (`None`: without a token) or to some.
        status: that every request is answered with, if not 0.
        cut: bytes of a file's body after which a connection is closed, by file; each time once.
        dead: whether connections are closed without an answer after the first cut, which comes
            once another file has been given in full.
        given: set then.
        stalled: what the contents of a file wait for.
        asked: method and path of each request, and its range.
    """

    models: dict[str, Mapping[str, bytes]]
    gated: dict[str, str] = field(default_factory=dict)
    status: int = 0
    cut: dict[str, int] = field(default_factory=dict)
    dead: bool = False
    stalled: dict[str, threading.Event] = field(default_factory=dict)
    given: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> list[str]:
        """Return the files whose contents were asked for, in order of their names."""
        found = [_FILE.fullmatch(path) for method, path, _ in self.asked if method == "GET"]
        return sorted({match.group(3) for match in found if match})


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    """Serve for the length of a `with`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            if hub.status:
                return self.refuse(hub.status, "", "as it was told to")
            if hub.dead and not hub.cut:
                self.close_connection = True
                return None
            for pattern, give in ((_TREE, self.tree), (_INFO, self.info), (_FILE, self.file)):
                if match := pattern.fullmatch(path):
                    repo, revision = match.group(1), match.group(2) or "main"
                    if repo not in hub.models:
                        # As for private ones: without a token these look alike.
                        return self.refuse(401, "RepoNotFound", "Invalid username or password.")
                    if revision not in ("main", "v1", COMMIT):
                        return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                    return give(repo, match.groups()[-1], body)
            return self.refuse(404, "", "no such page")

        def info(self, repo: str, _: str | None, body: bool) -> None:
            siblings = [{"rfilename": name} for name in hub.models[repo]]
            self.give_json({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})

        def tree(self, repo: str, _: str, body: bool) -> None:
            self.give_json(
                [
                    {"type": "file", "oid": _oid(content), "size": len(content), "path": name}
                    for name, content in hub.models[repo].items()
                ]
            )

        def file(self, repo: str, name: str, body: bool) -> None:
            if repo in hub.gated and self.headers.get("Authorization") != hub.gated[repo]:
                status = 403 if self.headers.get("Authorization") else 401
                return self.refuse(status, "GatedRepo", f"Access to model {repo} is restricted.")
            if name not in hub.models[repo]:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            content, start = hub.models[repo][name], 0
            if stated := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(stated.group(1))
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{_oid(content)}"')
            if start:
                rest = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", rest)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if body:
                if name in hub.stalled:
                    hub.stalled[name].wait()
                if hub.dead and name in hub.cut:  # however busy the machine: some file is whole
                    hub.given.wait(20)
                at = hub.cut.pop(name, None)
                self.wfile.write(content[start:at])
                if at is None:
                    hub.given.set()
                self.close_connection = self.close_connection or at is not None
            return None

        def give_json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
