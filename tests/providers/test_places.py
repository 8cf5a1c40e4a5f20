"""An owner is recognized by the address of any of its pages, and its repositories by their clone URLs."""

import pytest

from providers.places import Owner, owner_of, path_below


@pytest.mark.parametrize(
    ("provider", "owner", "urls"),
    [
        (
            "github",
            Owner("https://github.com", "acme"),
            [
                "https://github.com/acme",
                "https://github.com/acme/digits",
                "https://github.com/orgs/acme/repositories?type=all",
                "https://github.com/organizations/acme/settings/hooks",
                "git@github.com:acme",
            ],
        ),
        (
            "gitlab",
            Owner("https://git.acme.example:8443", "group/sub"),
            [
                "https://git.acme.example:8443/group/sub/",
                "https://git.acme.example:8443/groups/group/sub",
                "https://git.acme.example:8443/groups/group/sub/-/hooks",
            ],
        ),
        (
            "bitbucket",
            Owner("https://bitbucket.org", "acme"),
            ["https://bitbucket.org/acme", "https://bitbucket.org/acme/workspace/projects/ML"],
        ),
        (
            "bitbucket-server",
            Owner("https://git.acme.example/bitbucket", "ML"),
            [
                "https://git.acme.example/bitbucket/projects/ML",
                "https://git.acme.example/bitbucket/projects/ML/repos/digits/browse",
                "https://git.acme.example/bitbucket/scm/ML",
            ],
        ),
        (
            "bitbucket-server",
            Owner("https://git.acme.example", "~ada"),
            ["https://git.acme.example/users/ada/repos", "https://git.acme.example/projects/~ada"],
        ),
        (
            "azure-devops",
            Owner("https://dev.azure.com/acme", "My ML"),
            [
                "https://dev.azure.com/acme/My%20ML",
                "https://ada@dev.azure.com/acme/My%20ML/_git/digits?path=/a",
                "https://acme.visualstudio.com/My%20ML/_settings",
                "https://acme.visualstudio.com/DefaultCollection/My%20ML",
            ],
        ),
        (
            "azure-devops",
            Owner("http://git.acme.example:8080/tfs/Main", "ML"),
            ["http://git.acme.example:8080/tfs/Main/ML/_settings/serviceHooks"],
        ),
        (
            "gitea",
            Owner("https://acme.example/git", "ml"),
            [
                "https://acme.example/git/ml",
                "https://acme.example/git/ml/-/projects",
                "https://acme.example/git/org/ml/settings/hooks",
            ],
        ),
        ("forgejo", Owner("https://codeberg.org", "acme"), ["https://codeberg.org/acme"]),
        (
            "gogs",
            Owner("http://git.acme.example:3000", "acme"),
            ["http://git.acme.example:3000/org/acme/teams"],
        ),
    ],
)
def test_an_owner_is_recognized_by_any_of_its_pages(provider: str, owner: Owner, urls: list[str]) -> None:
    """As people copy the address from a browser."""
    assert {url: owner_of(url, provider) for url in urls} == dict.fromkeys(urls, owner)


@pytest.mark.parametrize(
    ("provider", "url", "form"),
    [
        ("azure-devops", "https://dev.azure.com/acme", "project: it has the form https://dev.azure.com/org"),
        (
            "bitbucket-server",
            "https://git.acme.example/ML",
            "project: it has the form https://host/projects/KEY",
        ),
        ("gitea", "https://git.acme.example/", "organisation: it has the form https://host/organisation"),
        (
            "github",
            "https://github.com/orgs/",
            "organisation: it has the form https://github.com/organisation",
        ),
        ("gitlab", "https://gitlab.com/-/profile", "group: it has the form https://host/group or"),
        ("bitbucket", "acme", "workspace: it has the form https://bitbucket.org/workspace"),
    ],
)
def test_a_url_of_no_owner_is_refused(provider: str, url: str, form: str) -> None:
    """The error says what the URL should look like."""
    with pytest.raises(ValueError, match=f"^the URL names no {form}"):
        owner_of(url, provider)


_GITLAB = "https://git.acme.example/groups/group/sub"
_AZURE = "https://dev.azure.com/acme/My%20ML"
_SERVER = "https://git.acme.example/tfs/Main/ML"
_DATA_CENTER = "https://git.acme.example/bitbucket/projects/ML"
_GITEA = "https://acme.example/git/ml"


@pytest.mark.parametrize(
    ("provider", "place", "clone_url", "expected"),
    [
        ("github", "https://github.com/Acme", "https://ada@github.com/acme/digits.git", True),
        ("github", "https://github.com/acme", "ssh://git@ssh.github.com:443/ACME/digits.git", True),
        ("github", "https://github.com/acme", "https://github.com/acme-labs/digits", False),
        ("github", "https://github.com/acme", "https://github.example/acme/digits", False),
        ("github", "https://github.com/acme", "https://github.com/acme", False),
        ("gitlab", _GITLAB, "git@git.acme.example:Group/Sub/deep/digits.git", True),
        ("gitlab", _GITLAB, "https://git.acme.example:8443/group/sub/digits", True),
        ("gitlab", _GITLAB, "https://git.acme.example/group/subs/digits", False),
        ("gitlab", _GITLAB, "https://git.acme.example/group/sub", False),
        ("gitlab", _GITLAB, "https://git.acme.example/group/sub/../../other/digits", False),
        ("gitlab", _GITLAB, "https://git.acme.example/group/sub/%2e%2e/%2E%2E/other/digits", False),
        ("gitlab", _GITLAB, "https://git.acme.example/group/sub/x%2F..%2F..%2F..%2Fother/digits", False),
        ("gitlab", _GITLAB, "git@git.acme.example:group/sub/../../other/digits.git", False),
        ("gitlab", _GITLAB, "https://git.acme.example/group/sub/x%0a", False),
        ("bitbucket", "https://bitbucket.org/acme", "git@bitbucket.org:acme/digits.git", True),
        ("bitbucket", "https://bitbucket.org/acme", "git@bitbucket.org:other/acme.git", False),
        ("bitbucket-server", _DATA_CENTER, "https://git.acme.example/bitbucket/scm/ml/digits.git", True),
        ("bitbucket-server", _DATA_CENTER, "ssh://git@git.acme.example:7999/ml/digits.git", True),
        ("bitbucket-server", _DATA_CENTER, "https://git.acme.example/other/scm/ml/digits.git", False),
        ("bitbucket-server", _DATA_CENTER, "ssh://git@git.acme.example:7999/~ml/digits.git", False),
        ("azure-devops", _AZURE, "https://acme@dev.azure.com/acme/My%20ML/_git/digits", True),
        ("azure-devops", _AZURE, "git@ssh.dev.azure.com:v3/acme/my%20ml/digits", True),
        ("azure-devops", _AZURE, "https://acme.visualstudio.com/DefaultCollection/My%20ML/_git/digits", True),
        ("azure-devops", _AZURE, "https://acme.visualstudio.com/_git/My%20ML", True),
        ("azure-devops", _AZURE, "https://dev.azure.com/other/My%20ML/_git/digits", False),
        ("azure-devops", _AZURE, "https://dev.azure.com/acme", False),
        ("azure-devops", _SERVER, "ssh://git.acme.example:22/tfs/Main/ML/_ssh/digits", True),
        ("azure-devops", _SERVER, "https://git.acme.example/tfs/Main/_git/ml", True),
        ("azure-devops", _SERVER, "https://git.acme.example/tfs/Other/ML/_git/digits", False),
        ("gitea", _GITEA, "https://acme.example/git/ML/digits.git", True),
        ("gitea", _GITEA, "ssh://git@acme.example:2222/ml/digits.git", True),
        ("gitea", _GITEA, "https://acme.example/ml/digits.git", False),
    ],
)
def test_the_repositories_of_an_owner_are_recognized(
    provider: str, place: str, clone_url: str, expected: bool
) -> None:
    """By every form of their clone URLs."""
    assert (path_below(place, "owner", provider, clone_url) is not None) == expected


@pytest.mark.parametrize(
    ("place", "clone_url", "expected"),
    [
        ("https://acme.example/git/", "https://Acme.example/git/ml/digits.git", True),
        ("https://acme.example/git", "git@acme.example:ml/digits.git", True),
        ("https://acme.example/git", "https://acme.example/ml/digits.git", False),
        ("https://acme.example", "https://other.example/ml/digits.git", False),
        ("https://acme.example", "https://acme.example/digits", False),
    ],
)
def test_the_repositories_of_a_server_are_recognized(place: str, clone_url: str, expected: bool) -> None:
    """By the host, and by the folder where the clone URL shows it."""
    assert (path_below(place, "server", "gitea", clone_url) is not None) == expected
