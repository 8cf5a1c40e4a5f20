"""Why did my push (not) run? A delivery's whole way, as the REST API explains it, drawn as a tree."""

from collections.abc import Mapping
from typing import Any

from rich.tree import Tree

from gateway.cli.output import coloured, escape, ref_move, short
from gateway.text.sentences import WAITS


def told(delivery: Mapping[str, Any]) -> Tree:
    """Return a delivery's whole way, for a terminal."""
    tree = Tree(f"[bold]delivery {delivery['id']}[/bold]")
    source = (
        "by a look at the remote"
        if delivery["source"] == "reconciliation"
        else f"from {delivery['provider']}"
    )
    told = f"{source}: {delivery['event']}, for connection {delivery['connection']}"
    tree.add(f"received {delivery['received_at']} {escape(told)}")
    if delivery["secret_made_at"] is not None:
        tree.add(f"verified with the secret that was made {delivery['secret_made_at']}")
    elif delivery["source"] != "reconciliation":
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
    for attempt in update["attempts"]:
        told = f"{coloured(attempt['state'])} {attempt['settled_at']}{_because(attempt)}"
        branch.add(f"before it was replayed {attempt['replayed_at']}: {told}")
    mine = [one for one in executions if one["ref_update"] == update["id"]]
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
        told = f"{coloured('pending')}{lane}: {WAITS}"
    else:
        told = f"{coloured(one['state'])}{lane}{_because(one)}"
    execution.add(told)


def _because(told: Mapping[str, Any]) -> str:
    return f": {escape(told['reason'])}" if told["reason"] else ""
