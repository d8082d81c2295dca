"""A run folder watched: the report as a page on this machine that renews itself while the run goes on.

Three addresses: `/` the page, `/stamp` a short JSON that changes when the folder did, `/facts` what the page draws.
Only this machine can ask (127.0.0.1), and only under its own name: a web page elsewhere that points a name of its own
at 127.0.0.1 (DNS rebinding) is refused by the Host header.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from evocluster.errors import ConfigError, EvoclusterError, RunDamaged
from evocluster.report import page
from evocluster.report.found import Found
from evocluster.report.story import facts

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names under which the server answers; the port may be another one (a forwarded port)."""
FILES = ("run.json", "front.json", "genomes.jsonl", "examples.jsonl", "config.yaml")
REST = 4.0
"""After reading a folder for so many times as long it is not read again: watching must not slow the run down."""


class Live:
    """The facts of a folder, read again when it changed. Threads may share it.

    Raises at the start: errors.RunDamaged when there is no run.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._reading = threading.Lock()
        self._seen = ""
        self._facts: dict[str, Any] | None = None
        self._due = clock()
        self._error: str | None = None
        self.status = Found(folder).status
        """As run.json said when it was last looked at."""

    def stamp(self) -> str:
        """Sizes and times of the folder's files, in one word."""
        parts = []
        for path in (*(self.folder / name for name in FILES), *sorted((self.folder / "trials").glob("[pt]a*"))):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            parts.append(f"{path.name[:1]}{found.st_size:x}.{found.st_mtime_ns:x}")
        return "-".join(parts)

    def news(self) -> dict[str, Any]:
        """{stamp, status, age_s, error}; the stamp is a new one when the facts should be asked for again."""
        self._look()
        now = self.stamp()
        over = self.status != "running"
        due = now != self._seen and (over or self._clock() >= self._due)
        stamp = now if due or self._facts is None else self._seen
        return {"stamp": stamp, "status": self.status, "age_s": self._age(), "error": self._error}

    def _look(self) -> None:
        try:
            self.status, self._error = Found(self.folder).status, None
        except RunDamaged as failure:
            self._error = str(failure)

    def _age(self) -> float:
        """Seconds since the run last wrote its table or its status."""
        paths = [self.folder / "run.json", *(self.folder / "trials").glob("[pt]a*")]
        times = [path.stat().st_mtime for path in paths if path.exists()]
        return round(max(0.0, time.time() - max(times, default=time.time())), 1)

    def facts(self) -> tuple[str, dict[str, Any]]:
        """The stamp and the facts, read again if the folder changed. Raises: errors.RunDamaged."""
        with self._reading:
            now = self.stamp()
            if self._facts is None or now != self._seen:
                began = self._clock()
                self._facts, self._seen = self._read(), now
                self._due = self._clock() + REST * (self._clock() - began)
            return self._seen, self._facts

    def _read(self) -> dict[str, Any]:
        try:
            return facts(self.folder)
        except RunDamaged:
            time.sleep(0.2)  # a file may have been sealed or replaced between two looks
            return facts(self.folder)


class Server(ThreadingHTTPServer):
    """Serves one folder on 127.0.0.1.

    Call order: construct, `serve_forever` in a thread, `shutdown`, `server_close`.
    """

    daemon_threads = True

    def __init__(self, live: Live, port: int) -> None:
        """`port` 0: any free one. Raises: errors.ConfigError when the port cannot be had."""
        self.live = live
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as failure:
            raise ConfigError(
                f"--port {port!r} cannot be used: {failure}; allowed: a free port from 1024 to 65535, or 0 for any"
            ) from failure

    def server_bind(self) -> None:
        """Without asking a name server what this machine is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """Answers GET for the three addresses, to this machine's own names."""

    server: Server
    server_version = "evocluster"
    sys_version = ""

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in HOSTS:
            self._send(403, "text/plain", f"this server answers only as 127.0.0.1 or localhost, not as {host[:80]!r}")
            return
        answers = {"/": self._page, "/stamp": self._stamp, "/facts": self._facts}
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self._send(404, "text/plain", "there is /, /stamp and /facts")
            return
        try:
            answer()
        except EvoclusterError as failure:
            self._send(503, "text/plain", str(failure))

    def _page(self) -> None:
        stamp, found = self.server.live.facts()
        self._send(200, "text/html", page.html(found, watch=stamp))

    def _stamp(self) -> None:
        self._send(200, "application/json", json.dumps(self.server.live.news()))

    def _facts(self) -> None:
        self._send(200, "application/json", page.embedded(self.server.live.facts()[1]))

    def _send(self, code: int, kind: str, text: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: what the browser asks is no news."""

    def handle(self) -> None:
        """One connection; a browser that went away is no error."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True
