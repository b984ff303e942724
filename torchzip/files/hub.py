"""Files of the Hugging Face hub: ``hf://org/model/file``, of a revision ``hf://org/model@rev/file``.

huggingface_hub finds the token of the user and says which commit a revision is; the bytes come by
ranges, as from any web server. They are those of that commit, whatever is pushed meanwhile.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from torchzip.files.location import Location
from torchzip.files.remote import Answer, errors_of, missing
from torchzip.files.web import WebObject

_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}
_COMMIT = re.compile("[0-9a-f]{40}")


class Place(NamedTuple):
    """What a URL of the hub names; ``file`` is empty for the whole repository."""

    kind: str
    repository: str
    revision: str | None
    file: str


def parse_place(url: str) -> Place:
    """Return what a URL of the hub names.

    >>> parse_place("hf://org/model@refs%2Fpr%2F1/vae/a.bin")
    Place(kind='model', repository='org/model', revision='refs/pr/1', file='vae/a.bin')
    """
    parts = url.partition("://")[2].split("/")
    kind = _KINDS.get(parts[0], "model")
    if parts[0] in _KINDS:
        parts = parts[1:]
    repository, _, revision = "/".join(parts[:2]).partition("@")
    if len(parts) < 2 or not all(repository.split("/")):
        raise ValueError(f"{url}: hf://ORGANISATION/MODEL, with @REVISION and /FILE, was expected")
    return Place(kind, repository, unquote(revision) or None, "/".join(parts[2:]))


class HubObject(WebObject):
    """A file of one commit, which never changes: so nothing else identifies its state."""

    def __init__(
        self, location: Location, kept: dict[Any, Any] | None, name: str, commit: str
    ) -> None:
        super().__init__(location, kept, name)
        self._commit = commit

    def tail(self, nbytes: int) -> Answer:
        return super().tail(nbytes)._replace(identity=self._commit)

    def range(self, start: int, stop: int, identity: str | None) -> Answer:
        return super().range(start, stop, None)._replace(identity=self._commit)


def open_object(location: Location, kept: dict[Any, Any] | None = None) -> HubObject:
    """Return a file of the hub."""
    place = parse_place(location.url)
    hub, options = _hub_of(location)
    commit = place.revision if _COMMIT.fullmatch(place.revision or "") else None
    if commit is None:
        commit = _info_of(location, place).sha
    with errors_of(location.name):
        url = hub.hf_hub_url(
            place.repository, place.file, repo_type=place.kind, revision=commit,
            endpoint=options.get("endpoint"),
        )  # fmt: skip
        headers = hub.utils.build_hf_headers(token=options.get("token"))
    return HubObject(Location(url, {"headers": headers}), kept, location.name, commit)


def list_folder(location: Location) -> tuple[Location, list[str]]:
    """Return a folder of a repository as it is now, and the names of what is in it."""
    found, paths = list_files(location)
    return found, list(dict.fromkeys(path.partition("/")[0] for path in paths))


def list_files(location: Location) -> tuple[Location, list[str]]:
    """Return a folder of a repository as it is now, and the paths of all files below it."""
    place = parse_place(location.url)
    info = _info_of(location, place)
    folder = f"{place.file.rstrip('/')}/" if place.file else ""
    names = [each.rfilename for each in info.siblings or () if each.rfilename.startswith(folder)]
    kinds = {kind: f"{prefix}/" for prefix, kind in _KINDS.items()} | {"model": ""}
    url = f"hf://{kinds[place.kind]}{place.repository}@{info.sha}/{folder}"
    below = [name.removeprefix(folder) for name in names]
    return Location(url, location.storage_options), below


def _info_of(location: Location, place: Place) -> Any:
    hub, options = _hub_of(location)
    with errors_of(location.name):
        api = hub.HfApi(endpoint=options.get("endpoint"), token=options.get("token"))
        return api.repo_info(place.repository, repo_type=place.kind, revision=place.revision)


def _hub_of(location: Location) -> tuple[Any, dict[str, Any]]:
    try:
        import huggingface_hub
    except ImportError:
        raise missing("huggingface_hub", location) from None
    return huggingface_hub, dict(location.storage_options or {})
