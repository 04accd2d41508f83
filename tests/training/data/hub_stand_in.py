"""A stand-in for the Hugging Face hub: a server on this machine that has one dataset, and denies another."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

NAME, GATED, SCRIPTED = "owls/fables", "owls/secrets", "owls/scripted"


class Hub:
    """The content of the hub: the files of each commit of the dataset, the newest last."""

    def __init__(self, commits: dict[str, dict[str, bytes]]) -> None:
        self.commits = {name: dict(files) for name, files in commits.items()}
        self.requests: list[str] = []
        self.url = ""

    @property
    def newest(self) -> str:
        """The newest commit."""
        return list(self.commits)[-1]

    def downloads(self) -> list[str]:
        """The files of which content was sent."""
        return [line.removeprefix("SENT ") for line in self.requests if line.startswith("SENT ")]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if GATED in path:
                self.reply(401, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
            elif path.startswith(f"/api/datasets/{NAME}"):
                self.api(path.removeprefix(f"/api/datasets/{NAME}").strip("/").split("/"), sent)
            elif path.startswith(f"/datasets/{NAME}/resolve/"):
                commit, _, name = path.removeprefix(f"/datasets/{NAME}/resolve/").partition("/")
                self.file(commit, name)
            else:
                self.reply(401, b"{}", X_Error_Code="RepoNotFound")

        do_GET = do_HEAD = do_POST = answer

        def api(self, parts: list[str], sent: bytes) -> None:
            kind, revision = [*parts, "", ""][:2] if parts[0] else ("revision", "main")
            commit = hub.newest if revision == "main" else revision
            if commit not in hub.commits:
                self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
                return
            files = hub.commits[commit]
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            entries += [
                {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
                for folder in {name.rpartition("/")[0] for name in files} - {""}
            ]
            if kind == "revision":
                found = {"id": NAME, "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []}
                self.reply(200, json.dumps({**found, "private": False, "gated": False}).encode())
            elif kind == "paths-info":
                wanted = json.loads(sent)["paths"] if sent.startswith(b"{") else unquote(sent.decode()).split("=")[1:]
                self.reply(200, json.dumps([entry for entry in entries if entry["path"] in wanted]).encode())
            else:
                below = "/".join(parts[2:])
                self.reply(200, json.dumps([entry for entry in entries if entry["path"].startswith(below)]).encode())

        def file(self, commit: str, name: str) -> None:
            commit = hub.newest if commit == "main" else commit
            if commit not in hub.commits:
                self.reply(404, X_Error_Code="RevisionNotFound")
                return
            data = hub.commits[commit].get(name)
            if data is None:
                self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            facts = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept_Ranges": "bytes"}
            if self.command == "GET":
                hub.requests.append(f"SENT {name}")
            if span := self.headers.get("Range"):
                first, _, last = span.removeprefix("bytes=").partition("-")
                part = data[int(first) : int(last) + 1 if last else None]
                facts["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
                self.reply(206, part, **facts)
            else:
                self.reply(200, data, **facts)

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
