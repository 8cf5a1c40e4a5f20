"""What to do at each provider once a connection is made: the short form of docs/providers/."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """`where` to click, where to `put` the secret, which `events` to tick, and which limit `bites`."""

    where: str
    put: str
    events: str
    bites: str

    def lines(self) -> list[str]:
        """Return the steps, for a terminal."""
        return [
            f"1. {self.where}.",
            f"2. {self.put}",
            f"3. Events: {self.events}",
            "4. Push, and watch: pushgate deliveries",
            f"Mind: {self.bites}",
        ]


_GITEA = Guide(
    where="Settings → Webhooks → Add webhook → Gitea or Forgejo: the webhook URL, content type"
    " application/json",
    put="The secret goes into “Secret”.",
    events="Push and Delete; for pull requests also Pull request and Pull request synchronized.",
    bites="a delivery that fails is not tried again; the reconciler finds its push.",
)

GUIDES: Mapping[str, Guide] = {
    "github": Guide(
        where="Settings → Webhooks → Add webhook: the webhook URL, content type application/json",
        put="The secret goes into “Secret”.",
        events="Pushes; for pull requests also Pull requests, for a merge queue Merge groups, for renames"
        " Repositories.",
        bites="a push of over 3 tags or 5,000 branches sends no webhook; the reconciler finds it.",
    ),
    "gitlab": Guide(
        where="Settings → Webhooks → Add new webhook: the webhook URL",
        put="A secret that begins with whsec_ goes into “Signing token”, any other into “Secret token”."
        " Before GitLab 19.0 there is only the latter: connect with --secret and one of your own.",
        events="Push events and Tag push events; for merge requests also Merge request events.",
        bites="a push of over 3 refs sends no webhook; the reconciler finds it. Four failures"
        " switch the hook off.",
    ),
    "bitbucket": Guide(
        where="Repository settings → Webhooks → Add webhook: the webhook URL",
        put="The secret goes into “Secret”.",
        events="Repository push; for pull requests also Created, Updated, Merged, Declined.",
        bites="payloads over 256 KB are dropped in silence; the reconciler finds their pushes.",
    ),
    "bitbucket-server": Guide(
        where="Repository settings → Webhooks → Create webhook: the webhook URL",
        put="The secret goes into “Secret”; authentication is None.",
        events="Repository: Push; for pull requests also Opened, Source branch updated, Merged,"
        " Declined, Deleted.",
        bites="“Test connection” is not signed: it proves the URL, not the secret. Push something.",
    ),
    "azure-devops": Guide(
        where="Project settings → Service hooks → + → Web Hooks, “Code pushed”: the repository, the"
        " webhook URL",
        put="The secret is the password of the Basic authentication; resource details to send: All.",
        events="Code pushed; for pull requests subscriptions of their own: created, updated, merge"
        " attempted.",
        bites="after a 401 or 404 Azure puts the subscription on probation and loses events: look"
        " at its status.",
    ),
    "gitea": _GITEA,
    "forgejo": _GITEA,
    "gogs": Guide(
        where="Settings → Webhooks → Add a new webhook → Gogs: the webhook URL, content type"
        " application/json",
        put="The secret goes into “Secret”.",
        events="Let me choose: Create, Delete and Push; for pull requests also Pull request.",
        bites="tags come by Create and Delete alone, so all three have to be ticked.",
    ),
    "generic": Guide(
        where="On the git server: pushgate hook-script --url URL --secret-file FILE >"
        " REPOSITORY/hooks/post-receive",
        put="The secret goes into that FILE on the git server, mode 0600; make the hook executable.",
        events="every push tells all its refs.",
        bites="the hook needs curl and openssl; what it can't tell, the reconciler finds.",
    ),
}
"""By provider, as in the registry."""
