"""All forms of a repository's clone URL have the same key."""

import pytest

from providers.clone_urls import is_about, repository_key, same_repository
from providers.model import Repository


@pytest.mark.parametrize(
    ("key", "urls"),
    [
        (
            "github.com/acme/digits",
            [
                "https://github.com/acme/digits.git",
                "https://GitHub.com/Acme/Digits/",
                "https://ada:t0ken@github.com:443/acme/digits.git",
                "git@github.com:acme/digits.git",
                "github.com:acme/digits",
                "ssh://git@github.com:22/acme/digits.git/",
                "ssh://git@ssh.github.com:443/acme/digits.git",
                "  git@ssh.github.com:/acme/digits.git\n",
            ],
        ),
        (
            "gitlab.com/acme/sub/digits",
            ["git@gitlab.com:acme/sub/digits.git", "ssh://git@altssh.gitlab.com:443/acme/sub/digits.git"],
        ),
        (
            "bitbucket.org/acme/digits",
            ["https://ada@bitbucket.org/acme/digits", "ssh://git@altssh.bitbucket.org:443/acme/digits.git"],
        ),
        (
            "git.example/proj/digits",
            ["https://git.example/scm/PROJ/digits.git", "ssh://git@git.example:7999/proj/digits.git"],
        ),
        (
            "dev.azure.com/org/my project/digits",
            [
                "https://org@dev.azure.com/org/My%20Project/_git/digits",
                "git@ssh.dev.azure.com:v3/org/My%20Project/digits",
                "ssh://git@ssh.dev.azure.com:22/v3/org/My%20Project/digits",
                "org@vs-ssh.visualstudio.com:v3/org/My%20Project/digits",
                "ssh://org@vs-ssh.visualstudio.com:22/My%20Project/_ssh/digits",
                "ssh://org@vs-ssh.visualstudio.com:22/DefaultCollection/My%20Project/_ssh/digits",
                "ssh://org@org.visualstudio.com:22/DefaultCollection/My%20Project/_git/digits",
                "https://org.visualstudio.com/My%20Project/_git/digits",
                "https://org.visualstudio.com/DefaultCollection/My%20Project/_git/digits",
                "https://dev.azure.com/org/My%20Project/_git/_full/digits",
                "https://org.visualstudio.com/My%20Project/_git/_optimized/digits",
                "git@ssh.dev.azure.com:v3/org/My%20Project/_full/digits",
            ],
        ),
        (
            "dev.azure.com/org/digits/digits",
            [
                "https://dev.azure.com/org/_git/digits",
                "https://dev.azure.com/org/digits",
                "https://org.visualstudio.com/_git/digits",
                "https://org.visualstudio.com/_git/_full/digits",
                "https://dev.azure.com/org/digits/_git/_optimized/Digits",
                "ssh://org@vs-ssh.visualstudio.com:22/_ssh/digits",
                "git@ssh.dev.azure.com:v3/org/digits/digits",
            ],
        ),
        ("dev.azure.com/org/v3/digits", ["https://dev.azure.com/org/v3/_git/digits"]),
        ("dev.azure.com/v3/vision/digits", ["https://dev.azure.com/v3/Vision/_git/digits"]),
        ("dev.azure.com/my-ssh/v3/digits", ["https://my-ssh.visualstudio.com/v3/_git/digits"]),
        (
            "dev.azure.com/org/digits/digits/commit/abc",
            ["https://dev.azure.com/org/_git/digits/commit/abc"],
        ),
        (
            "tfs.example/tfs/defaultcollection/my project/_git/digits",
            [
                "https://tfs.example/tfs/DefaultCollection/My%20Project/_git/digits",
                "https://TFS.example:8443/tfs/DefaultCollection/My%20Project/_git/_full/digits",
                "https://tfs.example/tfs/DefaultCollection/My%20Project/_git/_optimized/digits/",
                "ssh://git@tfs.example:22/tfs/DefaultCollection/My%20Project/_ssh/digits",
                "ssh://git@tfs.example:22/tfs/DefaultCollection/My%20Project/_git/digits",
            ],
        ),
        (
            "tfs.example/tfs/defaultcollection/_git/digits",
            [
                "https://tfs.example/tfs/DefaultCollection/_git/digits",
                "https://tfs.example/tfs/DefaultCollection/digits/_git/Digits",
                "https://tfs.example/tfs/DefaultCollection/_git/_full/digits",
                "ssh://tfs.example:22/tfs/DefaultCollection/Digits/_ssh/digits",
            ],
        ),
        ("gitlab.example/scm/digits", ["https://gitlab.example/scm/digits.git"]),
        ("::1/acme/digits", ["git@[::1]:acme/digits.git", "ssh://git@[::1]:2222/acme/digits"]),
    ],
)
def test_all_forms_have_one_key(key: str, urls: list[str]) -> None:
    """Whether a person pasted the URL or a payload contains it."""
    assert [repository_key(url) for url in urls] == [key] * len(urls)


@pytest.mark.parametrize("text", ["", "nothing", "https://[broken/a", "::", "https://host:port/a/b"])
def test_what_is_no_url_has_a_key_of_its_own(text: str) -> None:
    """Payloads may contain anything; nothing fails, and nothing matches a repository."""
    assert repository_key(text) != repository_key("https://github.com/acme/digits.git")


def test_a_full_name_is_compared_by_whole_words() -> None:
    """`x/acme/digits` ends with it, `notacme/digits` does not, and an empty name matches nothing."""
    key = repository_key("https://git.example/x/acme/digits.git")
    assert same_repository(key, full_name="Acme/Digits")
    assert not same_repository("git.example/notacme/digits", full_name="acme/digits")
    assert not same_repository(key, full_name="")


SERVER = "https://devops.example.com/tfs/Main/Vision/_git/digits"
SHORT = "https://devops.example.com/tfs/Main/_git/digits"


@pytest.mark.parametrize(
    ("url", "full_name", "remote", "expected"),
    [
        (SERVER, "Vision/digits", "http://tfs:8080/tfs/Main/Vision/_git/digits", True),
        (SERVER, "Vision/digits", None, True),
        (SERVER, None, "http://tfs:8080/tfs/Main/Vision/_git/_full/digits", True),
        (SERVER, None, "http://tfs:8080/Main/Vision/_git/digits", True),
        (SERVER, None, "http://tfs:8080/tfs/Other/Vision/_git/digits", False),
        (SERVER, "Vision/letters", "http://tfs:8080/tfs/Main/Vision/_git/letters", False),
        (SERVER, "Sound/digits", "http://tfs:8080/tfs/Main/Sound/_git/digits", False),
        (SERVER, "digits/digits", "http://tfs:8080/tfs/Main/_git/digits", False),
        (SHORT, "digits/digits", "http://tfs:8080/tfs/Main/digits/_git/digits", True),
        (SHORT, "digits/digits", "http://tfs:8080/tfs/Main/_git/digits", True),
        (SHORT, "digits/digits", None, True),
        (SHORT.replace("_git", "digits/_git"), "digits/digits", "http://tfs:8080/tfs/Main/_git/digits", True),
        (SHORT, "Vision/digits", "http://tfs:8080/tfs/Main/Vision/_git/digits", False),
        ("https://dev.azure.com/org/_git/digits", "digits/digits", None, True),
        ("https://org.visualstudio.com/_git/_full/digits", "digits/digits", None, True),
        ("https://dev.azure.com/org/_git/digits", "Vision/digits", None, False),
        ("https://gitlab.example/scm/ml/digits.git", "scm/ml/digits", None, True),
        ("https://git.example/scm/PROJ/digits.git", "PROJ/digits", None, True),
        ("https://gitlab.example/scm/digits.git", "scm/digits", None, True),
        (
            "https://gitlab.example/x/acme/digits",
            "acme/digits",
            "git@gitlab.internal:acme/digits",
            True,
        ),
        ("https://github.com/acme/digits", "acme/letters", "https://github.com/acme/letters.git", False),
        ("https://github.com/acme/digits", None, None, True),
    ],
)
def test_a_payloads_repository_is_recognized(
    url: str, full_name: str | None, remote: str | None, expected: bool
) -> None:
    """By whichever host name and in whichever form the server writes the URL."""
    named = Repository(full_name=full_name, urls=(remote,) if remote else ())
    assert is_about(repository_key(url), named) is expected
