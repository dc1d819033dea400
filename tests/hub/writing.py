"""Endpoints that change what the Hub has, and those that a client asks before it does."""

import base64
import json
from fnmatch import fnmatch

from . import cards
from .calls import FILES, REPO, Answer, Call, route, to_json
from .store import MODEL, Blob, HubError

MAX_REGULAR_FILE = 10 * 2**20  # bytes; anything larger goes to the large file storage


# -- users and repositories ------------------------------------------------------------------------------------------


@route("GET /api/whoami-v2")
def whoami(call: Call) -> dict:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    token = {"displayName": "test", "role": call.user.role}
    return {
        "type": "user",
        "id": call.user.name,
        "name": call.user.name,
        "fullname": call.user.name.title(),
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": token},
    }


@route("POST /api/repos/create")
def create_repo(call: Call) -> dict:
    wanted = call.json()
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))  # 2.x or 1.x client
    kind = wanted.get("type") or MODEL
    repo = call.store.create(call.user, kind, wanted["name"], wanted.get("organization"), private)
    return {"url": call.page(repo), "name": repo.id}


@route("DELETE /api/repos/delete")
def delete_repo(call: Call) -> dict:
    wanted = call.json()
    owner = wanted.get("organization") or (call.user.name if call.user else "")
    repo = call.store.find(call.user, wanted.get("type") or MODEL, f"{owner}/{wanted['name']}")
    repo.check_writable(call.user)
    del call.store.repos[repo.kind, repo.id]
    return {}


@route(f"PUT {REPO}/settings")
def settings(call: Call) -> dict:
    repo, wanted = call.repo(), call.json()
    repo.check_writable(call.user)
    if "visibility" in wanted or "private" in wanted:
        repo.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    repo.gated = wanted.get("gated", repo.gated)
    return {"private": repo.private, "gated": repo.gated}


@route(f"GET {REPO}/auth-check(?P<write>/write)?")
def auth_check(call: Call) -> dict:
    repo = call.repo()
    (repo.check_writable if call.args["write"] else repo.check_readable)(call.user)
    return {}


@route("POST /api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    wanted = call.json()
    errors, warnings = cards.validate(wanted["content"], wanted.get("repoType", MODEL))
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return to_json(found, 400 if errors else 200)


# -- files and references --------------------------------------------------------------------------------------------


@route(f"POST {REPO}/preupload/{{revision}}")
def preupload(call: Call) -> dict:
    """For each file: in git or as a large file, and the id of what the repository already has under that name."""
    repo = call.repo()
    repo.check_writable(call.user, as_pull_request=call.flag("create_pr"))
    commit = repo.resolve(call.args["revision"])
    attributes = commit.tree.get(".gitattributes", Blob(b"")).data.decode().splitlines()
    patterns = [line.split()[0] for line in attributes if "filter=lfs" in line]

    def describe(file: dict) -> dict:
        name, binary = file["path"].split("/")[-1], b"\0" in base64.b64decode(file["sample"])
        large = binary or file["size"] > MAX_REGULAR_FILE or any(fnmatch(name, pattern) for pattern in patterns)
        known = commit.tree.get(file["path"])
        found = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return found | ({"oid": known.etag} if known else {})

    return {"files": [describe(file) for file in call.json()["files"]]}


@route(f"POST {FILES}\\.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> dict:
    """Where to put each large file; nothing to do for those that the repository has."""
    repo = call.repo()
    repo.check_writable(call.user, as_pull_request=True)
    objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in call.json()["objects"]]
    for wanted in objects:
        if wanted["oid"] not in repo.lfs:
            secret = call.store.open_upload(repo, wanted["oid"], wanted["size"])
            wanted["actions"] = {
                "upload": {"href": f"{call.endpoint}/lfs/upload/{secret}"},
                "verify": {"href": f"{call.endpoint}/lfs/verify/{secret}"},
            }
    return {"transfer": "basic", "objects": objects}


@route("PUT /lfs/upload/{secret}")
def lfs_upload(call: Call) -> dict:
    call.store.receive_upload(call.args["secret"], call.body)
    return {}


@route("POST /lfs/verify/{secret}")
def lfs_verify(call: Call) -> dict:
    repo, sha256, size = call.store.uploads[call.args["secret"]]
    if sha256 not in repo.lfs or call.json() != {"oid": sha256, "size": size}:
        raise HubError(404, "The object was not uploaded.")
    return {}


@route(f"POST {REPO}/commit/{{revision}}")
def commit(call: Call) -> dict:
    repo, as_pull_request = call.repo(), call.flag("create_pr")
    repo.check_writable(call.user, as_pull_request)
    before = repo.resolve(call.args["revision"]).tree
    header, changes = {}, {}
    for line in call.body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            header = value
        elif key == "file":
            changes[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in repo.lfs:
                raise HubError(400, f"LFS pointer of {value['path']} points to a file that was not uploaded.")
            changes[value["path"]] = Blob(repo.lfs[value["oid"]], lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            folder = value["path"].rstrip("/") + "/"
            gone = [path for path in before if path == value["path"] or path.startswith(folder)]
            if not gone or (key == "deletedFile" and value["path"] not in before):
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            changes.update(dict.fromkeys(gone if key == "deletedFolder" else [value["path"]]))
        else:
            raise HubError(400, f"Unknown operation {key}")
    made, ref = repo.add_commit(
        call.user,
        header["summary"],
        header.get("description", ""),
        changes,
        revision=call.args["revision"],
        parent=header.get("parentCommit"),
        as_pull_request=as_pull_request,
    )
    page = call.page(repo)
    pull_url = f"{page}/discussions/{ref.removeprefix('refs/pr/')}" if as_pull_request else None
    return {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{page}/commit/{made.oid}",
        "pullRequestUrl": pull_url,
    }


@route(f"(?:POST|DELETE) {REPO}/(?P<what>branch|tag)/{{name}}")
def change_ref(call: Call) -> dict:
    """Create or delete a branch or a tag (a new tag's name is in the body, its revision in the path)."""
    repo, what, name = call.repo(), call.args["what"], call.args["name"]
    repo.check_writable(call.user)
    known = repo.branches if what == "branch" else repo.tags
    if call.method == "DELETE":
        if name not in known:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        del known[name]
        return {}
    start = call.json().get("startingPoint", "main") if what == "branch" else name
    name = name if what == "branch" else call.json()["tag"]
    if name in known:
        raise HubError(409, f"Reference already exists: {name}")
    known[name] = repo.resolve(start).oid
    return {}
