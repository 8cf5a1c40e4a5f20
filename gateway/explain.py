"""Why did my push (not) run? What the REST API knows of a delivery, a commit or a repository, as one tree."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from gateway.client import ApiError, Client, part
from gateway.printing import coloured, ref_move, short
from providers.urls import repository_key

# Deliveries have UUIDs of version 7, execution requests of version 5.
_DELIVERY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_EXECUTION = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
# The last run of hex digits in a page's address, or in what somebody has copied from a terminal.
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{7,64}(?![0-9a-f])")
_MOST = 200
# Of a commit, and of a repository.
_OF_A_COMMIT, _NEWEST = 20, 5
_LOOK = (
    "The webhook's page at the provider lists what it sent, and the answers; a 401 also stands in the"
    " gateway's log. To look at the remote now: pushgate fetch {}"
)
_WAITS = "no broker has confirmed it yet; a gateway without PUSHGATE_AMQP_URL keeps it in its store"


def found(client: Client, what: str) -> list[Any]:
    """Return the deliveries that something is about, the oldest first, each with its `executions`.

    That is a delivery's id or that of one of its requests, a commit's id or its beginning, a page about one
    of them, or the address of a repository or of a page in it, which means its newest deliveries. Raises
    `ApiError` where there are none.
    """
    asked = what.strip().lower()
    connections = client.get("/connections")["items"] if ":" in asked else []
    if delivery := _DELIVERY.search(asked):
        deliveries = [client.get(f"/deliveries/{part(delivery[0])}")]
    elif execution := _EXECUTION.search(asked):
        request = client.get(f"/executions/{part(execution[0])}")
        deliveries = [client.get(f"/deliveries/{part(request['delivery'])}")]
    elif repository := [one for one in connections if _key(one) == repository_key(asked)]:
        deliveries = _newest(client, repository)
    elif commits := _COMMIT.findall(asked):
        deliveries = _of_commit(client, commits[-1])
    elif repository := [one for one in connections if repository_key(asked).startswith(f"{_key(one)}/")]:
        deliveries = _newest(client, repository)
    else:
        raise ApiError(
            f"{what} is no id of a delivery or execution, names no commit, and is in no connected repository"
        )
    return [{**one, "executions": list(_executions(client, one["id"]))[::-1]} for one in deliveries]


def _key(connection: Mapping[str, Any]) -> str:
    return repository_key(connection["url"])


def _newest(client: Client, connections: Sequence[Mapping[str, Any]]) -> list[Any]:
    ids = [one["id"] for one in connections]
    pages = (client.get("/deliveries", connection=one, limit=_NEWEST) for one in ids)
    if deliveries := [one for page in pages for one in page["items"]]:
        return sorted(deliveries, key=lambda one: str(one["id"]))
    raise ApiError(f"no delivery has come for connection {', '.join(ids)}. {_LOOK.format(' and '.join(ids))}")


def _of_commit(client: Client, commit: str) -> list[Any]:
    if deliveries := client.get("/deliveries", commit=commit, limit=_OF_A_COMMIT)["items"][::-1]:
        return list(deliveries)
    raise ApiError(
        f"no delivery has told of {commit} as the newest commit of a push. {_LOOK.format('CONNECTION')}"
    )


def _executions(client: Client, delivery: str) -> Iterator[Any]:
    """Yield the execution requests of a delivery, the newest first."""
    cursor = None
    while True:
        page = client.get("/executions", delivery=delivery, limit=_MOST, cursor=cursor)
        yield from page["items"]
        cursor = page["next"]
        if cursor is None:
            return


def told(delivery: Mapping[str, Any]) -> Tree:
    """Return a delivery's whole way, for a terminal."""
    tree = Tree(f"[bold]delivery {delivery['id']}[/bold]")
    source = "by a look at the remote" if delivery["source"] == "sweep" else f"from {delivery['provider']}"
    told = f"{source}: {delivery['event']}, for connection {delivery['connection']}"
    tree.add(f"received {delivery['received_at']} {escape(told)}")
    if delivery["secret_made_at"] is not None:
        tree.add(f"verified with the secret that was made {delivery['secret_made_at']}")
    elif delivery["source"] != "sweep":
        tree.add("verified with a secret that is kept no more")
    tree.add(coloured(delivery["verdict"]) + _because(delivery))
    for update in delivery["updates"]:
        _add_update(tree, update, delivery["executions"])
    return tree


def _add_update(tree: Tree, update: Mapping[str, Any], executions: list[Any]) -> None:
    is_tag = update["peeled"] not in {None, update["after"]}
    tag = f", a tag of commit {short(update['peeled'])}" if is_tag else ""
    branch = tree.add(f"{ref_move(update)}{tag}")
    is_read = update["after"] is not None and (
        update["state"] == "planned" or (update["state"] == "failed" and update["verdicts"])
    )
    when = f" {update['settled_at']}" if update["settled_at"] is not None else ""
    why = _because(update)
    if update["state"] == "pending" and not why:
        why = ": no worker has come to it yet"
    branch.add(f"{'fetched, and ' if is_read else ''}{coloured(update['state'])}{when}{why}")
    mine = [one for one in executions if _is_of(one, update)]
    for verdict in update["verdicts"]:
        sign = "[green]✓[/green]" if verdict["matched"] else "[red]✗[/red]"
        trigger = branch.add(f"{sign} trigger {escape(verdict['trigger'])}: {escape(verdict['reason'])}")
        if verdict["failure"] is not None:
            trigger.add(f"[red]no request[/red]: {escape(verdict['failure'])}")
        for one in mine:
            if one["trigger"] == verdict["trigger"]:
                _add_execution(trigger, one)
    judged = {verdict["trigger"] for verdict in update["verdicts"]}
    for one in mine:
        if one["trigger"] not in judged:
            # It was planned again since, under other rules.
            _add_execution(branch.add(f"trigger {escape(one['trigger'])}, as it was before"), one)


def _is_of(execution: Mapping[str, Any], update: Mapping[str, Any]) -> bool:
    """Say which of a delivery's ref updates a request is of: no ref moves twice from one place in it."""
    message = execution["message"]
    if update["kind"] == "pull_request" or message["pull_request"] is not None:
        asked = message["pull_request"] or {}
        return update["kind"] == "pull_request" and bool(asked.get("number") == update["name"])
    told = (message["ref"]["kind"], message["ref"]["name"], message["commit"]["before"])
    return told == (update["kind"], update["name"], update["before"])


def _add_execution(tree: Tree, one: Mapping[str, Any]) -> None:
    execution = tree.add(f"execution {one['id']}, planned {one['planned_at']}")
    package = one["message"]["package"]
    if package is not None:
        modules = len(one["message"]["submodules"])
        more = f", with {modules} submodules" if modules else ""
        execution.add(f"packaged: {package['format']} of {package['size']} bytes{more}, {package['id']}")
    lane = f" in lane {one['lane']}" if one["lane"] is not None else ""
    if one["published_at"] is not None:
        told = f"{coloured(one['state'])}{lane}, and confirmed by the broker {one['published_at']}"
    elif one["state"] == "pending" and one["reason"] is None:
        told = f"{coloured('pending')}{lane}: {_WAITS}"
    else:
        told = f"{coloured(one['state'])}{lane}{_because(one)}"
    execution.add(told)


def _because(told: Mapping[str, Any]) -> str:
    return f": {escape(told['reason'])}" if told["reason"] else ""
