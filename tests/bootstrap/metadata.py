"""A stand-in for EC2's instance metadata service on loopback: IMDSv2, and nothing for who comes without a token."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "a-token-of-tests=="


class Metadata:
    """Serves ``answers`` by path; ``asked`` lists method, path and the token's name of every question."""

    def __init__(self, answers: dict[str, bytes] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[tuple[str, str]] = []
        self.without_token: list[str] = []
        self.busy = 0
        """How many tokens are refused with 503 before one is given."""
        self.disabled = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                outer.asked.append(("PUT", self.path))
                seconds = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0"))
                if outer.disabled:
                    self.reply(403, b"")
                elif outer.busy > 0:
                    outer.busy -= 1
                    self.reply(503, b"")
                elif self.path == "/latest/api/token" and 1 <= seconds <= 21600:
                    self.reply(200, TOKEN.encode())
                else:
                    self.reply(400, b"")

            def do_GET(self) -> None:
                outer.asked.append(("GET", self.path))
                if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
                    outer.without_token.append(self.path)
                    self.reply(401, b"")
                elif self.path in outer.answers:
                    self.reply(200, outer.answers[self.path])
                else:
                    self.reply(404, b"not found")

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
