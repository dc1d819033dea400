"""The state of a small Hub and its rules, without HTTP: users, repositories, commits, references, large files."""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

MODEL, DATASET = "model", "dataset"

LARGE = "7z arrow bin bz2 ckpt gz h5 joblib npy npz onnx parquet pt pth safetensors tar zip zst"
GITATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE.split()).encode()


class HubError(Exception):
    """An error as the Hub answers it: HTTP status, message, the X-Error-Code that the client looks for.

    `repo` is the repository in the way of a new one: the answer gives its address.
    """

    def __init__(self, status: int, message: str, code: str | None = None, repo: "Repo | None" = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.repo = status, message, code, repo


@dataclass(frozen=True)
class User:
    """Whom a token stands for, and what the token may do (`read` or `write`)."""

    name: str
    role: str = "write"


WRITER, READER, OTHER = "hf_alice_write", "hf_alice_read", "hf_bob_write"
TOKENS = {WRITER: User("alice"), READER: User("alice", role="read"), OTHER: User("bob")}


@dataclass(frozen=True)
class Blob:
    """One file's content, kept in git or in the large file storage."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
        )

    @cached_property
    def oid(self) -> str:
        """The git object id: of the content, or of the pointer that git keeps in place of a large file."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One commit: who, what, onto which parent, the whole tree after it and the paths that it touched."""

    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    tree: dict[str, Blob] = field(repr=False)
    changed: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        return sorted(self.tree)


@dataclass
class Repo:
    """A model or dataset repository. `granted` are the users who were let into it while it is gated."""

    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    # -- who may do what ---------------------------------------------------------------------------------------------

    def check_visible(self, user: User | None) -> None:
        """A private repository does not exist for anyone but its owner."""
        if self.private and (user is None or user.name != self.owner):
            raise repo_not_found(user)

    def check_readable(self, user: User | None) -> None:
        """The files of a gated repository are for its owner and for those who were granted access."""
        self.check_visible(user)
        if self.gated and (user is None or user.name not in {self.owner, *self.granted}):
            raise HubError(
                401 if user is None else 403, f"Access to {self.kind} {self.id} is restricted.", "GatedRepo"
            )

    def check_writable(self, user: User | None, as_pull_request: bool = False) -> None:
        self.check_visible(user)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if user.name != self.owner and not as_pull_request:
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request.")

    # -- history -----------------------------------------------------------------------------------------------------

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request (`refs/pr/1`) or (shortened) commit id."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for refs in (self.branches, self.tags, self.pulls):
            if name in refs:
                return self.commits[refs[name]]
        found = [commit for oid, commit in self.commits.items() if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def log(self, revision: str = "main") -> list[Commit]:
        """The commits that lead to a revision, oldest first."""
        commit: Commit | None = self.resolve(revision)
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found[::-1]

    def add_commit(
        self,
        user: User,
        title: str,
        description: str,
        changes: dict[str, Blob | None],
        *,
        revision: str = "main",
        parent: str | None = None,
        as_pull_request: bool = False,
    ) -> tuple[Commit, str]:
        """Put `changes` (None deletes) onto a branch or, `as_pull_request`, onto a new `refs/pr/N`.

        Returns the commit and the name of the reference that now points at it. Raises 412 if `parent` is given and
        the branch has moved on.
        """
        head = self.resolve(revision) if self.commits else None
        if parent and head and not head.oid.startswith(parent):
            if not as_pull_request:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            head = self.resolve(parent)
        if as_pull_request:
            revision = f"refs/pr/{len(self.pulls) + 1}"
        elif head and revision not in self.branches and revision not in self.pulls:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")  # a tag or a bare commit

        before = head.tree if head else {}
        tree = {path: blob for path, blob in {**before, **changes}.items() if blob is not None}
        content = [self.id, revision, title, len(self.commits), [(path, blob.oid) for path, blob in tree.items()]]
        commit = Commit(
            oid=hashlib.sha1(repr(content).encode()).hexdigest(),
            parent=head.oid if head else None,
            title=title,
            description=description,
            author=user.name,
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            tree=tree,
            changed=tuple(sorted(changes)),
        )
        self.commits[commit.oid] = commit
        (self.pulls if revision.startswith("refs/pr/") else self.branches)[revision] = commit.oid
        return commit, revision


@dataclass
class Store:
    """Every repository of the Hub, and the uploads under way (`secret -> (repository, sha256, size)`)."""

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    uploads: dict[str, tuple[Repo, str, int]] = field(default_factory=dict)
    _serial: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    def authenticate(self, authorization: str | None) -> User | None:
        """The user of an `Authorization` header; None without one; an error if the token is unknown."""
        if authorization is None:
            return None
        user = TOKENS.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def create(self, user: User | None, kind: str, name: str, owner: str | None, private: bool) -> Repo:
        """A new repository with its first commit (`.gitattributes`), as the Hub makes it."""
        if user is None:
            raise HubError(401, "Invalid username or password.")
        owner = owner or user.name
        if user.role != "write" or user.name != owner:
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        key = kind, f"{owner}/{name}"
        if key in self.repos:
            raise HubError(409, f"You already created this {kind} repo", repo=self.repos[key])
        repo = self.repos[key] = Repo(kind, f"{owner}/{name}", private)
        repo.add_commit(user, "initial commit", "", {".gitattributes": Blob(GITATTRIBUTES)})
        return repo

    def find(self, user: User | None, kind: str, repo_id: str) -> Repo:
        """A repository that `user` can see."""
        repo = self.repos.get((kind, repo_id))
        if repo is None:
            raise repo_not_found(user)
        repo.check_visible(user)
        return repo

    def open_upload(self, repo: Repo, sha256: str, size: int) -> str:
        """A secret that lets its holder put one large file, like the signed address of an object store."""
        secret = f"{next(self._serial)}-{sha256[:12]}"
        self.uploads[secret] = repo, sha256, size
        return secret

    def receive_upload(self, secret: str, data: bytes) -> None:
        """Keep an uploaded file if it is what was announced."""
        if secret not in self.uploads:
            raise HubError(403, "Request has expired")
        repo, sha256, size = self.uploads[secret]
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, "The content does not match the announced size and SHA256.")
        repo.lfs[sha256] = data


def repo_not_found(user: User | None) -> HubError:
    """404, or 401 for an anonymous client, who cannot know whether the repository is missing or private.

    The Hub's 401 has no error code: over https the client works it out from the address. It does not do so over http,
    hence the code here, which leads to the same `RepositoryNotFoundError`.
    """
    if user is None:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")
