"""The addresses of a provider's pages about a repository, for people to click on."""

from urllib.parse import quote

from providers import PROVIDERS


def repository_page(web_url: str | None) -> str | None:
    """Return the page of a repository, without a slash at its end; None if the address is no web page.

    A payload's value may be anything, such as javascript:.
    """
    if web_url is None or not web_url.startswith(("https://", "http://")):
        return None
    return web_url.rstrip("/")


def commit_page(provider: str, web_url: str | None, commit: str) -> str | None:
    """Return the page of a commit; None if the provider or the repository has no pages."""
    return _below(web_url, PROVIDERS[provider].COMMIT_PAGE, f"/{commit}")


def ref_page(provider: str, web_url: str | None, *, kind: str, name: str) -> str | None:
    """Return the page of a branch or a pull request; None for other kinds of refs, and without pages."""
    pages = PROVIDERS[provider].REF_PAGES
    if pages is None or kind not in {"branch", "pull_request"}:
        return None
    path = pages.branch if kind == "branch" else pages.pull_request
    return _below(web_url, path.format(name=quote(name)))


def comparison_page(provider: str, web_url: str | None, *, before: str, after: str) -> str | None:
    """Return the page of what a push has changed; None if the provider or the repository has no pages."""
    pages = PROVIDERS[provider].REF_PAGES
    return None if pages is None else _below(web_url, pages.compare.format(before=before, after=after))


def _below(web_url: str | None, path: str | None, more: str = "") -> str | None:
    page = repository_page(web_url)
    if page is None or path is None:
        return None
    # In Bitbucket Data Center, a repository's page ends in /browse, which other pages do not contain.
    return f"{page.removesuffix('/browse')}/{path}{more}"
