"""Endpoints that describe and hand out what the Hub has."""

import re
from urllib.parse import parse_qs

from . import cards
from .calls import FILES, REPO, Answer, Call, route
from .store import Blob, Commit, HubError, Repo


@route(f"GET {REPO}(?:/revision/{{revision}})?")
def info(call: Call) -> dict:
    repo = call.repo()
    commit = repo.resolve(call.args["revision"] or "main")
    siblings = [{"rfilename": path} for path in commit.files]
    if call.flag("blobs"):
        for sibling in siblings:
            blob = commit.tree[sibling["rfilename"]]
            sibling |= {"size": len(blob.data), "blobId": blob.oid} | ({"lfs": _lfs(blob)} if blob.lfs else {})
    card = cards.readable_metadata(commit.tree.get("README.md", Blob(b"")).data.decode(errors="replace"))
    log = repo.log(commit.oid)
    return {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "createdAt": log[0].date,
        "lastModified": log[-1].date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": card,
        "siblings": siblings,
        **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
    }


def _lfs(blob: Blob) -> dict:
    return {
        "oid": blob.sha256,
        "sha256": blob.sha256,
        "size": len(blob.data),
        "pointerSize": len(blob.pointer),
    }


def _entry(repo: Repo, commit: Commit, path: str, expand: bool) -> dict | None:
    """The description of a file or folder; None if there is none at `path`."""
    if blob := commit.tree.get(path):
        found = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.data)}
        found |= {"lfs": _lfs(blob)} if blob.lfs else {}
    elif any(name.startswith(f"{path}/") for name in commit.tree):
        found = {"type": "directory", "path": path, "oid": Blob(path.encode()).oid, "size": 0}
    else:
        return None
    if expand:
        touched = [
            c for c in repo.log(commit.oid) if any(name == path or name.startswith(f"{path}/") for name in c.changed)
        ]
        found["lastCommit"] = {"id": touched[-1].oid, "title": touched[-1].title, "date": touched[-1].date}
    return found


@route(f"GET {REPO}/tree/{{revision}}(?:/(?P<path>.+))?")
def tree(call: Call) -> list[dict]:
    repo = call.repo()
    commit = repo.resolve(call.args["revision"])
    prefix = f"{call.args['path']}/" if call.args["path"] else ""
    below = [path.removeprefix(prefix).split("/") for path in commit.files if path.startswith(prefix)]
    if prefix and not below:
        raise HubError(404, f'{call.args["path"]} does not exist on "{call.args["revision"]}"', "EntryNotFound")
    depth = None if call.flag("recursive") else 1
    names = {"/".join(parts[:n]) for parts in below for n in range(1, len(parts[:depth]) + 1)}
    return [_entry(repo, commit, prefix + name, call.flag("expand")) for name in sorted(names)]


@route(f"POST {REPO}/paths-info/{{revision}}")
def paths_info(call: Call) -> list[dict]:
    repo, form = call.repo(), parse_qs(call.body.decode())
    commit = repo.resolve(call.args["revision"])
    expand = form.get("expand", ["false"])[0].lower() == "true"
    found = [_entry(repo, commit, path.strip("/"), expand) for path in form.get("paths", [])]
    return [entry for entry in found if entry is not None]


@route(f"GET {REPO}/refs")
def refs(call: Call) -> dict:
    repo = call.repo()

    def describe(refs: dict[str, str], prefix: str) -> list[dict]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in refs.items()]

    return {
        "branches": describe(repo.branches, "refs/heads/"),
        "tags": describe(repo.tags, "refs/tags/"),
        "pullRequests": describe(repo.pulls, ""),
        "converts": [],
    }


@route(f"GET {REPO}/commits/{{revision}}")
def commits(call: Call) -> list[dict]:
    return [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.description,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in reversed(call.repo().log(call.args["revision"]))
    ]


@route(f"(?:GET|HEAD) {FILES}/(?:resolve|raw)/{{revision}}/(?P<path>.+)")
def resolve(call: Call) -> Answer:
    """A file, whole or (`Range: bytes=a-b`, `a-`, `-n`) in part."""
    repo = call.repo()
    repo.check_readable(call.user)
    commit = repo.resolve(call.args["revision"])
    blob = commit.tree.get(call.args["path"])
    if blob is None:
        raise HubError(404, "Entry not found", "EntryNotFound")
    headers = {
        "ETag": f'"{blob.etag}"',
        "X-Repo-Commit": commit.oid,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if blob.lfs:
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range") or "")
    if not wanted or wanted[0] == "bytes=-":
        return Answer(blob.data, 200, headers)
    size = len(blob.data)
    first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
    last = min(size - 1, int(wanted[2])) if wanted[1] and wanted[2] else size - 1
    if first > last:
        return Answer(b"", 416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(blob.data[first : last + 1], 206, headers)
