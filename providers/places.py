"""The pages of owners of repositories, such as organisations and groups, and the servers that they are on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from providers.clone_urls import azure_place, host_and_path, server_url

_OLD_AZURE = ".visualstudio.com"


@dataclass(frozen=True, slots=True)
class Owner:
    """An owner of repositories.

    `server` is the URL that the paths of its owners begin at: that of the web server, with a folder where one
    is known, or of an organisation or collection of Azure DevOps. `name` is the owner's path there.
    """

    server: str
    name: str


_Parted = tuple[Sequence[str], Sequence[str]]
"""The words of a path before an owner, and those of the owner."""


def _above(words: Sequence[str], mark: str) -> Sequence[str]:
    """Return the words before those of a page below an owner's, which begin with a mark."""
    pages = (index for index, word in enumerate(words) if word.startswith(mark))
    return words[: next(pages, len(words))]


def _github(words: Sequence[str]) -> _Parted:
    """Return the first word. Of an organisation, some pages are in `orgs` or `organizations`."""
    return (), (words[1:2] if words[0].lower() in {"orgs", "organizations"} else words[:1])


def _gitlab(words: Sequence[str]) -> _Parted:
    """Return all words, without the `groups` before them."""
    return (), _above(words[1:] if words[0].lower() == "groups" else words, "-")


def _bitbucket(words: Sequence[str]) -> _Parted:
    """Return the first word, which is the workspace."""
    return (), words[:1]


def _bitbucket_server(words: Sequence[str]) -> _Parted:
    """Return the key of a project, after the server's context path. That of a person begins with `~`."""
    for index, word in enumerate(words):
        if word.lower() in {"projects", "users", "scm"}:
            mark = "~" if word.lower() == "users" else ""
            return words[:index], [mark + key for key in words[index + 1 : index + 2]]
    return words, ()


def _gitea(words: Sequence[str]) -> _Parted:
    """Return the last word, or the one after `org`, which some pages of an organisation have."""
    words = _above(words, "-")
    lower = [word.lower() for word in words]
    if "org" in lower[:-1]:
        index = lower.index("org")
        return words[:index], words[index + 1 : index + 2]
    return words[:-1], words[-1:]


def _azure_devops(words: Sequence[str]) -> _Parted:
    """Return the project after the organisation, or after the directory and the collection of a server."""
    words = _above(words, "_")
    return (words[:-1], words[-1:]) if len(words) > 1 else (words, ())


_OWNERS: Mapping[str, tuple[Callable[[Sequence[str]], _Parted], str]] = {
    "azure-devops": (_azure_devops, "project: it has the form https://dev.azure.com/organisation/project"),
    "bitbucket": (_bitbucket, "workspace: it has the form https://bitbucket.org/workspace"),
    "bitbucket-server": (_bitbucket_server, "project: it has the form https://host/projects/KEY"),
    "forgejo": (_gitea, "organisation: it has the form https://host/organisation"),
    "gitea": (_gitea, "organisation: it has the form https://host/organisation"),
    "github": (_github, "organisation: it has the form https://github.com/organisation"),
    "gitlab": (_gitlab, "group: it has the form https://host/group or https://host/group/subgroup"),
    "gogs": (_gitea, "organisation: it has the form https://host/organisation"),
}
"""How each provider's URLs name an owner, and what they look like."""


def owner_of(url: str, provider: str) -> Owner:
    """Return the owner that a URL names: the address of any of its pages, as a browser shows it.

    Raise `ValueError`, with a sentence for people, for a URL that names none.
    """
    parted, form = _OWNERS[provider]
    host, path = host_and_path(url)
    server, words = server_url(url), path.split("/")
    if provider == "azure-devops" and host.endswith(_OLD_AZURE):
        server = "https://dev.azure.com"
        words = [
            host.removesuffix(_OLD_AZURE),
            *(word for word in words if word.lower() != "defaultcollection"),
        ]
    before, names = parted(words)
    if not host or not any(names):
        raise ValueError(f"the URL names no {form}")
    return Owner("/".join([server, *map(quote, before)]), "/".join(names))


def path_below(
    place_url: str, scope: Literal["owner", "server"], provider: str, clone_url: str
) -> str | None:
    """Return the path of a repository below its owner or server; None if it is not below it.

    Case, scheme, port and user do not matter, nor does the folder of a server if the clone URL is one of SSH,
    which does not have it. A GitLab group has the repositories of its subgroups as well. A clone URL whose
    path programs may read in different ways is below nothing. Raise `ValueError` for a URL that names no
    owner.
    """
    owner = owner_of(place_url, provider) if scope == "owner" else Owner(place_url, "")
    host, above = _host_and_words(owner.server)
    clone_host, words = _repository(clone_url, provider)
    # An SSH clone URL does not show the folder.
    if provider != "azure-devops" and not _is_web(clone_url):
        above = []
    above += [word for word in owner.name.split("/") if word]
    below = words[len(above) :]
    is_below = _lower(words[: len(above)]) == _lower(above)
    has_form = (
        len(below) > 1 if scope == "server" else len(below) == 1 or (bool(below) and provider == "gitlab")
    )
    is_plain = "%2f" not in clone_url.lower() and all(map(_is_plain, words))
    return "/".join(below) if host == clone_host and is_below and has_form and is_plain else None


def _is_plain(word: str) -> bool:
    """Return whether a word is the name of a folder, so that curl, git and a server do not leave it out."""
    return word not in {".", ".."} and word.isprintable() and "\\" not in word


def _repository(clone_url: str, provider: str) -> tuple[str, list[str]]:
    """Return host and path of a repository, without the words that do not name an owner."""
    if provider == "azure-devops":
        try:
            server, project, name = azure_place(clone_url)
        except ValueError:
            return "", []
        host, words = _host_and_words(server)
        return host, [*words, project, name]
    host, words = _host_and_words(clone_url)
    if provider == "bitbucket-server" and _is_web(clone_url) and _lower(words[-3:-2]) == ["scm"]:
        del words[-3]
    return host, words


def _host_and_words(url: str) -> tuple[str, list[str]]:
    host, path = host_and_path(url)
    return host, [word for word in path.split("/") if word]


def _lower(words: Sequence[str]) -> list[str]:
    return [word.lower() for word in words]


def _is_web(url: str) -> bool:
    return urlsplit(url.strip()).scheme.lower() in {"https", "http"}
