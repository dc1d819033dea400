"""The small Hub on 127.0.0.1: threads, a record of every request, faults on demand, stop and start on one port."""

import itertools
import os
import re
import socket
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from . import reading, writing  # noqa: F401 (they register their endpoints)
from .calls import Answer, Call, answer
from .store import MODEL, WRITER, Repo, Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CHUNK = 2**16


@dataclass
class Hit:
    """One request as the server saw it. `status` is 0 while it is under way and if its connection was cut."""

    method: str
    url: str
    received: int = 0  # bytes of body
    status: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.url}"


@dataclass
class Fault:
    """What shall go wrong with the next `times` requests whose `METHOD /path` matches `pattern`.

    In this order: read `after` bytes of the body, set `fired`, wait `hang` seconds, then cut the connection (`drop`)
    or answer `status` or, with neither, go on as if nothing had been. A GET has no body: there, `drop` cuts the answer
    after its first `after` bytes.
    """

    pattern: str
    times: int = 1
    after: int = 0
    hang: float = 0.0
    drop: bool = False
    status: int | None = None
    fired: threading.Event = field(default_factory=threading.Event)


class Dropped(Exception):
    """The connection is cut, by a fault or by the client."""


class HubServer:
    """A Hub for tests: `with HubServer(folder) as hub: ...`; `folder` gets the caches of its clients.

    Users and tokens stand in `store.TOKENS`: alice's WRITER and READER, bob's OTHER.

    Attributes:
        url: what HF_ENDPOINT has to be.
        store: the repositories.
        requests: every request so far, oldest first; `clear()` it at will.
        bugs: tracebacks of the server's own mistakes, which it answers with 501.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store()
        self.requests: list[Hit] = []
        self.bugs: list[str] = []
        self._faults: list[Fault] = []
        self._wake = threading.Event()  # ends every hang
        self._lock = threading.RLock()
        self._homes = itertools.count()
        self._port = 0
        self._http: _Listener | None = None

    # -- for tests ---------------------------------------------------------------------------------------------------

    def repo(self, repo_id: str, kind: str = MODEL) -> Repo:
        """A repository as it is on the server: `log()`, `resolve(revision).tree`, `branches`, `tags`, `pulls`..."""
        return self.store.repos[kind, repo_id]

    def api(self, token: str | None = WRITER) -> "HfApi":
        """A client in this process; anonymous with None."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.url, token=token or False)

    def env(self, token: str | None = WRITER, home: Path | None = None) -> dict[str, str]:
        """The environment of a client in another process; its cache is empty unless `home` has been used before."""
        foreign = re.compile(r"(HF|HUGGINGFACE|HUGGING_FACE|TRANSFORMERS|DATASETS)_.*|.*_PROXY", re.IGNORECASE)
        env = {key: value for key, value in os.environ.items() if not foreign.fullmatch(key)}
        return env | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home or self.folder / f"home{next(self._homes)}"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }

    def count(self, pattern: str) -> int:
        """How many requests had a `METHOD /path?query` in which the regular expression is found."""
        return sum(bool(re.search(pattern, str(hit))) for hit in self.requests)

    def fault(
        self,
        pattern: str,
        *,
        times: int = 1,
        after: int = 0,
        hang: float = 0.0,
        drop: bool = False,
        status: int | None = None,
    ) -> Fault:
        """Let the next requests that match go wrong; see `Fault`."""
        fault = Fault(pattern, times, after, hang, drop, status)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Forget all faults and end those that hang."""
        with self._lock:
            self._faults.clear()
        self._wake_hanging()

    def _wake_hanging(self) -> None:
        waiting, self._wake = self._wake, threading.Event()
        waiting.set()

    # -- up and down -------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen: at first on any free port, later on the same."""
        self._http = _Listener(("127.0.0.1", self._port), _Handler)
        self._http.hub = self
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Cut every connection and refuse new ones; repositories, faults and the record of requests stay."""
        if self._http is not None:
            http, self._http = self._http, None
            http.shutdown()
            http.server_close()
            http.cut_all()
            self._wake_hanging()

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self.stop()

    # -- for the handler ---------------------------------------------------------------------------------------------

    def record(self, method: str, url: str) -> tuple[Hit, Fault | None]:
        """Note a request; its fault, if one is due."""
        hit = Hit(method, url)
        with self._lock:
            self.requests.append(hit)
            for fault in self._faults:
                if fault.times > 0 and re.search(fault.pattern, str(hit)):
                    fault.times -= 1
                    return hit, fault
        return hit, None

    def strike(self, fault: Fault) -> Answer | None:
        """Let the fault happen. Returns the answer that it gives in place of the true one."""
        wake = self._wake
        fault.fired.set()
        if fault.hang:
            wake.wait(fault.hang)
        return Answer(b'{"error": "injected"}', fault.status) if fault.status else None

    def answer(self, listener: "_Listener", method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        with self._lock:
            if listener is not self._http:  # stopped meanwhile
                raise Dropped
            try:
                return answer(Call(self.store, method, url, headers, body))
            except Exception:
                self.bugs.append(traceback.format_exc())
                return Answer(b"{}", 501)


class _Listener(ThreadingHTTPServer):
    """The listening socket and the connections that came through it."""

    daemon_threads = True
    hub: HubServer

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.connections: set[socket.socket] = set()

    def process_request(self, request, client_address) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed by the client meanwhile
                continue

    def handle_error(self, request, client_address) -> None:
        """A connection that breaks is what these tests are about: no traceback for it."""


class _Handler(BaseHTTPRequestHandler):
    """Read a request, let its fault happen, answer."""

    protocol_version = "HTTP/1.1"  # connections are kept open, as by the Hub
    disable_nagle_algorithm = True
    server: _Listener

    def handle_request(self) -> None:
        hub = self.server.hub
        hit, fault = hub.record(self.command, self.path)
        cut_download = fault is not None and fault.drop and self.command == "GET"
        try:
            result, body = None, b""
            if fault is not None:
                body = self.read_body(hit, fault.after)
                result = hub.strike(fault)
                if fault.drop and not cut_download:
                    raise Dropped
            body += self.read_body(hit)
            result = result or hub.answer(self.server, self.command, self.path, self.headers, body)
        except Dropped:
            self.close_connection = True
            return
        hit.status = result.status
        self.send_response(result.status)
        for name, value in {**result.headers, "Content-Length": str(len(result.body))}.items():
            self.send_header(name, value.replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(result.body[: fault.after] if cut_download else result.body)
        self.close_connection |= cut_download

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_body(self, hit: Hit, limit: int | None = None) -> bytes:
        """The rest of the body, or its next `limit` bytes."""
        missing = int(self.headers.get("Content-Length", 0)) - hit.received
        missing = missing if limit is None else min(missing, limit)
        parts = []
        while missing > 0:
            part = self.rfile.read(min(missing, CHUNK))
            if not part:
                raise Dropped
            parts.append(part)
            missing -= len(part)
            hit.received += len(part)
        return b"".join(parts)

    def log_message(self, *args) -> None:
        """Keep quiet."""
