"""The addresses of providers' pages, which people click on."""

import pytest

from providers import PROVIDERS
from providers.pages import commit_page, comparison_page, ref_page, repository_page

A, B = "a" * 40, "b" * 40
URL = "https://git.example/acme/digits"


@pytest.mark.parametrize(
    ("provider", "branch", "comparison"),
    [
        ("github", "tree/fix/%C3%BC%231", f"compare/{A}...{B}"),
        ("gitlab", "-/tree/fix/%C3%BC%231", f"-/compare/{A}...{B}"),
        ("bitbucket", "branch/fix/%C3%BC%231", f"branches/compare/{B}..{A}"),
        (
            "bitbucket-server",
            "browse?at=refs/heads/fix/%C3%BC%231",
            f"compare/diff?targetBranch={A}&sourceBranch={B}",
        ),
        (
            "azure-devops",
            "?version=GBfix/%C3%BC%231",
            f"branchCompare?baseVersion=GC{A}&targetVersion=GC{B}",
        ),
        ("gitea", "src/branch/fix/%C3%BC%231", f"compare/{A}...{B}"),
        ("gogs", "src/fix/%C3%BC%231", f"compare/{A}...{B}"),
    ],
)
def test_a_page_is_below_that_of_the_repository(provider: str, branch: str, comparison: str) -> None:
    """A name with characters that have a meaning in an address is quoted."""
    assert ref_page(provider, f"{URL}/", kind="branch", name="fix/ü#1") == f"{URL}/{branch}"
    assert comparison_page(provider, URL, before=A, after=B) == f"{URL}/{comparison}"


def test_only_branches_and_pull_requests_have_pages() -> None:
    """Each provider's for the number of a pull request; none for a self-hosted hook."""
    assert ref_page("gitlab", URL, kind="pull_request", name="7") == f"{URL}/-/merge_requests/7"
    assert ref_page("github", URL, kind="tag", name="v1") is None
    assert ref_page("generic", URL, kind="branch", name="main") is None
    assert comparison_page("generic", URL, before=A, after=B) is None


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("url", [None, "", "javascript:alert(1)", "ssh://git@git.example/acme"])
def test_what_is_no_web_page_leads_nowhere(provider: str, url: str | None) -> None:
    """The address is from a payload."""
    assert repository_page(url) is None
    assert commit_page(provider, url, A) is None
    assert ref_page(provider, url, kind="branch", name="main") is None
    assert comparison_page(provider, url, before=A, after=B) is None
