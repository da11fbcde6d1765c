"""The board's server: its page, the runs that changed, and their reports, to this machine alone."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cli.board import Board
from cli.recipes.setting import refusal
from pipeline import files

HOSTS = ("127.0.0.1", "localhost")
"""Names of this machine. A page from elsewhere whose name leads here, by DNS, sends its own."""
INLINE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Server(ThreadingHTTPServer):
    """A server of a board. Raises ConfigError if the port is taken."""

    daemon_threads = True

    def __init__(self, board: Board, port: int) -> None:
        self.board = board
        try:
            super().__init__((HOSTS[0], port), Handler)
        except OSError as e:
            raise refusal(f"can't serve on port {port}: {e.strerror}; --port 0 takes a free one") from None

    @property
    def url(self) -> str:
        return f"http://{HOSTS[0]}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a page that was closed
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    server: Server
    timeout = 60  # seconds; a browser opens connections that it may not use

    def do_GET(self) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in HOSTS:
            return self._send(403, "text/plain", f"open {self.server.url}")
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        after = query.get("after", "0")
        if url.path == "/":
            more = "script-src 'unsafe-inline'; connect-src 'self'; frame-src 'self'"
            return self._send(200, "text/html", self.server.board.page(), f"{INLINE}; {more}")
        if url.path == "/runs.json" and after.isdecimal() and len(after) < 20:
            return self._send(200, "application/json", json.dumps(self.server.board.data(int(after))))
        path = self.server.board.report(query.get("run", "")) if url.path == "/report" else None
        try:
            content = None if path is None else files.read(path, links=False)
        except OSError:
            content = None
        if content is None:
            return self._send(404, "text/plain", "there is no such page")
        return self._send(200, "text/html", content.decode("utf-8", "replace"), f"sandbox; {INLINE}")

    def _send(self, code: int, kind: str, text: str, policy: str = "default-src 'none'") -> None:
        content = text.encode()
        self.send_response(code)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(content))),
            ("Content-Security-Policy", policy), ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing of each request."""
