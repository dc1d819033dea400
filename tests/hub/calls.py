"""A request, its response, and the table of endpoints between them; no sockets.

Spoken (`reading.py`, `writing.py`): what `huggingface_hub`, `transformers` and `datasets` ask for to create, describe,
push and read model and dataset repositories. Not spoken: Xet, multipart uploads, discussions, pagination, redirects to
a file server (a large file is answered directly, with the `X-Linked-*` headers of the redirect).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .store import DATASET, MODEL, HubError, Repo, Store, User


@dataclass
class Answer:
    """An HTTP response."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """An HTTP request by `user`; `url` is the path with its query, headers are looked up without regard to case."""

    store: Store
    method: str
    url: str
    headers: Any
    body: bytes
    user: User | None = None
    args: dict[str, str] = field(default_factory=dict)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.url).query)

    @property
    def endpoint(self) -> str:
        return f"http://{self.headers['Host']}"

    def page(self, repo: Repo) -> str:
        """The address of a repository's page."""
        return f"{self.endpoint}/{'datasets/' if repo.kind == DATASET else ''}{repo.id}"

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def repo(self) -> Repo:
        """The repository that the path names, if the user can see it."""
        kind = DATASET if self.args["kind"] == "datasets" else MODEL
        return self.store.find(self.user, kind, self.args["repo"])


Endpoint = Callable[[Call], Any]
ROUTES: list[tuple[re.Pattern[str], Endpoint]] = []
REPO = "/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
FILES = "/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)"


def route(pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint for `METHOD /path`; `{name}` stands for one (quoted) part of the path."""
    expanded = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", pattern)

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((re.compile(expanded), endpoint))
        return endpoint

    return register


def answer(call: Call) -> Answer:
    """Answer a call: an endpoint returns an `Answer` or what becomes a JSON body; a `HubError` is answered too."""
    try:
        call.user = call.store.authenticate(call.headers.get("Authorization"))
        line = f"{call.method} {urlsplit(call.url).path}"
        for pattern, endpoint in ROUTES:
            if found := pattern.fullmatch(line):
                call.args = {name: unquote(value or "") for name, value in found.groupdict().items()}
                result = endpoint(call)
                return result if isinstance(result, Answer) else to_json(result)
        raise HubError(404, f"Sorry, we can't find the page you are looking for: {line}")
    except HubError as error:
        headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
        where = {"url": call.page(error.repo)} if error.repo else {}
        return to_json({"error": error.message, **where}, error.status, headers)


def to_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    body = json.dumps(value, default=str).encode()  # metadata may hold a date
    return Answer(body, status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})
