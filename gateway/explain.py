"""Why did my push (not) run? What the REST API knows of a delivery or a commit, told as one tree."""

import re
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from gateway.client import ApiError, Client, part
from gateway.printing import short

_DELIVERY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The last run of hex digits in a page's address, or in what somebody has copied from a terminal.
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{7,64}(?![0-9a-f])")
_MOST = 20


def found(client: Client, what: str) -> list[Any]:
    """Return the deliveries that something is about, the oldest first, each with its `executions`.

    Raises `ApiError` where there are none.
    """
    asked = what.strip().lower()
    if _DELIVERY.fullmatch(asked):
        deliveries = [client.get(f"/deliveries/{part(asked)}")]
    else:
        commits = _COMMIT.findall(asked)
        if not commits:
            raise ApiError(f"{what} is no delivery's id, and names no commit")
        deliveries = client.get("/deliveries", commit=commits[-1], limit=_MOST)["items"][::-1]
        if not deliveries:
            raise ApiError(
                f"no delivery has told of {commits[-1]}. The webhook's page at the provider lists what it"
                " sent, and the answers; a 401 also stands in the gateway's log. To look at the remote now:"
                " pushgate fetch CONNECTION"
            )
    return [
        {**one, "executions": client.get("/executions", delivery=one["id"], limit=_MOST)["items"][::-1]}
        for one in deliveries
    ]


def told(delivery: Mapping[str, Any]) -> Tree:
    """Return a delivery's whole way, for a terminal."""
    tree = Tree(f"[bold]delivery {delivery['id']}[/bold]")
    source = "by a look at the remote" if delivery["source"] == "sweep" else f"from {delivery['provider']}"
    tree.add(f"received {delivery['received_at']} {escape(source)}: {escape(delivery['event'])}")
    if delivery["secret_made_at"] is not None:
        tree.add(f"verified with the secret that was made {delivery['secret_made_at']}")
    reason = f": {escape(delivery['reason'])}" if delivery["reason"] else ""
    tree.add(f"{delivery['verdict']}{reason}")
    for update in delivery["updates"]:
        _add_update(tree, update, delivery["executions"])
    return tree


def _add_update(tree: Tree, update: Mapping[str, Any], executions: list[Any]) -> None:
    moved = f"{short(update['before'])} → {short(update['after'])}"
    kind = escape(update["kind"].replace("_", " "))
    branch = tree.add(f"[bold]{kind} {escape(update['name'])}[/bold] {moved}")
    branch.add(f"{update['state']}" + (f": {escape(update['reason'])}" if update["reason"] else ""))
    for verdict in update["verdicts"]:
        sign = "[green]✓[/green]" if verdict["matched"] else "[red]✗[/red]"
        trigger = branch.add(f"{sign} trigger {escape(verdict['trigger'])}: {escape(verdict['reason'])}")
        for one in executions:
            if verdict["matched"] and _is_of(one, update, verdict):
                trigger.add(_execution(one))


def _is_of(execution: Mapping[str, Any], update: Mapping[str, Any], verdict: Mapping[str, Any]) -> bool:
    commit = execution["message"]["commit"]
    ids = {update["after"], update["peeled"]}
    same = commit["before"] == update["before"] and (commit["id"] in ids or update["kind"] == "tag")
    return bool(execution["trigger"] == verdict["trigger"] and same)


def _execution(one: Mapping[str, Any]) -> str:
    done = f" and confirmed by the broker {one['published_at']}" if one["published_at"] else ""
    reason = f": {escape(one['reason'])}" if one["reason"] else ""
    return f"execution {one['id']}: {one['state']}{done}{reason}"
