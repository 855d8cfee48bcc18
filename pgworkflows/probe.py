"""An HTTP probe for a worker's process: whether it is alive, and whether it is ready. Needs nothing but Python."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from pgworkflows.supervised import Asked

DEFAULT_PORT = 8081


class Probe:
    """Answers GET /live and GET /ready with 200 or 503, and the health of a worker or a supervisor as JSON, for the
    length of a with statement around `run_forever`.

    Live is a worker whose threads run, also while the database is away: to restart it would not help. Ready is one that
    is registered, has beaten within its lease, and is not stopping. `host` "" is every address of the machine, port 0
    any free one; `port` is then the one it has.
    """

    def __init__(self, worker: Asked, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> None:
        class Handler(_Handler):
            asked = worker

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="pgworkflows-probe", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    asked: Asked
    timeout = 5  # seconds for a request to be sent whole

    def do_GET(self) -> None:
        """One question."""
        health = self.asked.health()
        answers = {"/live": health.alive, "/ready": health.ready}
        path = self.path.partition("?")[0]
        if path not in answers:
            self.send_error(HTTPStatus.NOT_FOUND, "ask for /live or /ready")
            return
        body = json.dumps(health.as_json()).encode()
        self.send_response(HTTPStatus.OK if answers[path] else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: nothing to say."""
