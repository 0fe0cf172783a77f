"""The projector's HTTP on loopback: queries, and the few orders that other Esper processes give it."""

from __future__ import annotations

import hmac
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pyarrow as pa

from esper.core.errors import Busy, EsperError, UsageError
from esper.projection.serving._control import HOST, error_document

_log = logging.getLogger("esper.projection.server")

ARROW: Final = "application/vnd.apache.arrow.stream"
JSON: Final = "application/json"
_BODY_BYTES_MAX: Final = 1024 * 1024
#: Queries that run at the same time; each may use every core, more would only make all of them late.
_CONCURRENT_MAX: Final = 8
#: A peer that connects and says nothing is let go.
_SOCKET_SECONDS: Final = 30.0

#: Path -> what answers it: takes the request's JSON, returns an Arrow table or JSON.
Routes = Mapping[str, Callable[[dict[str, Any]], object]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, routes: Routes, token: str) -> None:
        super().__init__((HOST, 0), _Handler)
        self.routes = routes
        self.token = token
        self.slots = threading.BoundedSemaphore(_CONCURRENT_MAX)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what ended a connection; a caller that hung up is no news."""
        if isinstance(sys.exception(), ConnectionError):
            _log.debug("%s hung up", client_address)
        else:
            _log.exception("the connection of %s ended", client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SOCKET_SECONDS
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if not self._authorised():
            self._fail(HTTPStatus.UNAUTHORIZED, UsageError("the projector does not know this caller"))
            return
        answer = self.server.routes.get(self.path)
        if answer is None:
            self._fail(HTTPStatus.NOT_FOUND, UsageError(f"the projector has no {self.path}"))
            return
        if not self.server.slots.acquire(blocking=False):
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, _too_many())
            return
        try:
            status, kind, body = self._answer(answer)
        finally:  # Before the answer is sent: who has it may ask again at once.
            self.server.slots.release()
        self._send(status, kind, body)

    def _authorised(self) -> bool:
        given = self.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode())

    def _answer(self, answer: Callable[[dict[str, Any]], object]) -> tuple[HTTPStatus, str, bytes]:
        """Return what to send: status, content type, body."""
        try:
            return HTTPStatus.OK, *_encoded(answer(self._request()))
        except EsperError as error:
            return self._failure(HTTPStatus.BAD_REQUEST, error)
        except Exception as error:  # noqa: BLE001 - one request's surprise must not end the thread unanswered
            _log.exception("request %s failed", self.path)
            surprise = EsperError(f"the projector failed at {self.path}", cause=repr(error))
            return self._failure(HTTPStatus.INTERNAL_SERVER_ERROR, surprise)

    def _request(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _BODY_BYTES_MAX:
            raise UsageError(
                "the request cannot be read", cause=f"its length {length!r} is not at most {_BODY_BYTES_MAX}"
            )
        try:
            document = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise UsageError("the request cannot be read", cause="it is no JSON") from error
        if not isinstance(document, dict):
            raise UsageError("the request cannot be read", cause="it is no JSON object")
        return document

    def _fail(self, status: HTTPStatus, error: EsperError) -> None:
        self._send(*self._failure(status, error))

    def _failure(self, status: HTTPStatus, error: EsperError) -> tuple[HTTPStatus, str, bytes]:
        # What was not read of the request would be taken for the next one.
        self.close_connection = True
        return status, JSON, json.dumps(error_document(error)).encode()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        _log.debug("%s %s", self.address_string(), format % args)


def _too_many() -> Busy:
    return Busy(
        "the projector answers enough queries already",
        cause=f"{_CONCURRENT_MAX} run at the same time",
        next_step="Try again in a moment",
    )


def _encoded(answer: object) -> tuple[str, bytes]:
    if not isinstance(answer, pa.Table):
        return JSON, json.dumps(answer).encode()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.schema) as writer:
        writer.write_table(answer)
    return ARROW, sink.getvalue().to_pybytes()


@contextmanager
def serving(routes: Routes, token: str) -> Iterator[int]:
    """Answer `routes` on a free loopback port for the time of the block; gives the port."""
    server = _Server(routes, token)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="projector-http", daemon=True
    )
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
