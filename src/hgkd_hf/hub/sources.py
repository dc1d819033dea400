"""Where a student comes from, its teacher, data and first weights, and what licence follows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.utils import HFValidationError, validate_repo_id

from . import readme
from .privacy import last_part

# Licences that ask for no more than their notice and the authors' names, so that a student may have another one.
PERMISSIVE = """
afl-3.0 apache-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 isc mit ms-pl ncsa odc-by pddl unlicense wtfpl zlib
"""


@dataclass
class License:
    """A licence as a card's metadata writes it: `id` of the Hub's list; name and link for `other`."""

    id: str
    name: str | None = None
    link: str | None = None

    def metadata(self) -> dict[str, str]:
        """The keys of a card."""
        keys = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in keys.items() if value}

    @classmethod
    def from_metadata(cls, data: dict[str, Any]) -> License | None:
        """The licence of a card; None if it names none or several, or one that says nothing."""
        name = data.get("license")
        if not isinstance(name, str) or name in ("unknown", ""):
            return None
        return cls(name, data.get("license_name"), data.get("license_link"))

    def __str__(self) -> str:
        return self.name or self.id


def license_of(text: str | None) -> License | None:
    """The licence that a README names; None if it names none, or its metadata cannot be read."""
    with suppress(ValueError):
        return License.from_metadata(readme.split(text or "")[0])
    return None


@dataclass
class Source:
    """A teacher, a dataset or the weights that a student started from.

    Attributes:
        name: Hub id, or last part of a local path.
        on_hub: whether the name is a Hub id.
        revision: the commit, where the Hub told it.
        license: its licence, where its card told it.
    """

    name: str
    on_hub: bool = False
    revision: str | None = None
    license: License | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Source:
        """Read what `asdict` gave."""
        return cls(**{**data, "license": data.get("license") and License(**data["license"])})


def find_source(
    name: str, kind: Literal["model", "dataset"], revision: str | None = None, token: str | bool | None = None
) -> Source:
    """What a folder's README or the Hub tells of a source; what neither tells stays None.

    Asks the Hub once, waits for at most ten seconds, and never fails.

    Args:
        name: path or Hub id.
        kind: of the repository.
        revision: branch, tag or commit that was used.
        token: of the Hub.
    """
    if os.path.exists(name) or not is_repo_id(name):
        source = Source(last_part(os.path.abspath(name)))
        with suppress(OSError, ValueError):  # a README that cannot be read tells nothing
            source.license = license_of(readme.read_local(name))
        return source
    source = Source(name, on_hub=True, revision=revision)
    if not constants.HF_HUB_OFFLINE:
        with suppress(Exception):  # no network, no such repository, no access: the run itself says it better
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, token=token, timeout=10)
            source.revision = info.sha
            source.license = License.from_metadata(info.card_data.to_dict() if info.card_data else {})
    return source


def pinned_revision(dataset: Any) -> str | None:
    """The commit that the files of a `datasets.Dataset` were read from; None for local files and streams."""
    files = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    commits = {found[1] for name in files if (found := re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", str(name)))}
    return commits.pop() if len(commits) == 1 else None


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return True
    return False


def derive_license(weights: Sequence[Source], data: Source | None) -> tuple[License | None, str]:
    """A student's licence from those of what it was made of, and the reason; (None, why not) where none follows.

    A restriction is inherited. Without one, the student is published as its teacher, or else as the weights that it
    started from. Nothing is guessed: an unknown licence, two different restrictions, or permissive data alone decide
    nothing.

    Args:
        weights: teachers, and the weights that the student started from.
        data: the dataset.
    """
    sources = [*weights, *([data] if data else [])]
    if not sources:
        return None, "nothing is known of what the student was made of"
    unknown = [source.name for source in sources if source.license is None]
    if unknown:
        return None, f"the licence of {', '.join(unknown)} is not known"
    restricting = [source for source in sources if source.license.id not in PERMISSIVE.split()]
    if len({str(source.license) for source in restricting}) > 1:
        terms = ", ".join(f"{source.name} ({source.license})" for source in restricting)
        return None, f"several licences restrict the student: {terms}"
    if restricting:
        return restricting[0].license, f"inherited from {restricting[0].name}, whose terms hold for what is made of it"
    if weights:
        return weights[0].license, f"that of {weights[0].name}; nothing it was made of restricts it further"
    return None, "there is no teacher or checkpoint to inherit a licence from, and the data allow any"
