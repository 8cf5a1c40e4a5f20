"""Why did my push (not) run? The REST API's explanation of a delivery, drawn as a tree."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.tree import Tree

from gateway.cli.output import coloured, escape, ref_move, refused_connection, run_summary, short, when
from gateway.text.sentences import WAITS


def delivery_tree(delivery: Mapping[str, Any]) -> Tree:
    """Return the explanation of a delivery, for a terminal."""
    tree = Tree(f"[bold]delivery {delivery['id']}[/bold]")
    if delivery["refusal"] is not None:
        _add_refusal(tree, delivery, delivery["refusal"])
        return tree
    is_found = delivery["source"] == "reconciliation"
    source = "by reconciliation" if is_found else f"from {delivery['provider']}: {delivery['event']}"
    kind = "source" if delivery["is_of_source"] else "connection"
    event = f"{source}, for {kind} {delivery['name']}"
    tree.add(f"received {when(delivery['received_at'])} {escape(event)}")
    if delivery["secret_made_at"] is not None:
        tree.add(f"verified with the secret created {when(delivery['secret_made_at'])}")
    elif not is_found:
        tree.add("verified with a secret that is no longer stored")
    tree.add(_verdict(delivery) + _because(delivery))
    for update in delivery["updates"]:
        _add_update(tree, update, delivery["executions"])
    for status in delivery["statuses"]:
        tree.add(_status(status, delivery["provider"]))
    return tree


def _status(status: Mapping[str, Any], provider: str) -> str:
    """Return what the provider shows of a verdict on a commit."""
    verdict = f"the verdict {escape(status['context'])} on {short(status['commit'])}"
    if status["problem"] is not None:
        outcome = "could not be sent yet" if status["is_due"] else "[red]was refused[/red]"
        return f"{verdict} {outcome} by {provider}: {escape(status['problem'])}"
    if status["shown"] is None:
        return f"{verdict} is being sent to {provider}"
    return f"{provider} shows {escape(status['shown'])} as {verdict}, sent {when(status['tried_at'])}"


def _verdict(delivery: Mapping[str, Any]) -> str:
    if delivery["is_waiting"]:
        return coloured("waiting")
    if delivery["is_of_source"] and delivery["verdict"] == "ignored":
        return f"the source {escape(delivery['name'])} {coloured('ignored')} it"
    return coloured(delivery["verdict"])


def _add_refusal(tree: Tree, delivery: Mapping[str, Any], refusal: Mapping[str, Any]) -> None:
    """Add what is known of refused requests, and what to do."""
    sender = " ".join(filter(None, (delivery["provider"], refusal["client"]))) or "an unknown address"
    event = f"from {sender}: {delivery['event'] or 'no event'}, for {refused_connection(delivery)}"
    tree.add(f"received {when(delivery['received_at'])} {escape(event)}")
    if delivery["provider_delivery_id"] is not None:
        tree.add(f"the provider's id of the delivery: {escape(delivery['provider_delivery_id'])}")
    if refusal["count"] > 1:
        tree.add(f"received {refusal['count']} times on that day, last {when(refusal['last_at'])}")
    branch = tree.add(f"{coloured(delivery['verdict'])} with status {refusal['status']}{_because(delivery)}")
    if refusal["repair"] is not None:
        branch.add(escape(refusal["repair"]))


def _add_update(tree: Tree, update: Mapping[str, Any], executions: list[Any]) -> None:
    is_tag = update["peeled"] not in {None, update["after"]}
    tag = f", a tag of commit {short(update['peeled'])}" if is_tag else ""
    branch = tree.add(f"{ref_move(update)}{tag}")
    is_read = update["after"] is not None and (
        update["state"] == "planned" or (update["state"] == "failed" and update["verdicts"])
    )
    settled = f" {when(update['settled_at'])}" if update["settled_at"] is not None else ""
    why = _because(update)
    if update["state"] == "pending" and not why:
        why = ": waiting for a worker"
    branch.add(f"{'fetched, and ' if is_read else ''}{coloured(update['state'])}{settled}{why}")
    for attempt in update["attempts"]:
        outcome = f"{coloured(attempt['state'])} {when(attempt['settled_at'])}{_because(attempt)}"
        branch.add(f"before the replay {when(attempt['replayed_at'])}: {outcome}")
    requests = [execution for execution in executions if execution["ref_update"] == update["id"]]
    _add_triggers(branch, update["verdicts"], requests)


def _add_triggers(branch: Tree, verdicts: Sequence[Mapping[str, Any]], requests: Sequence[Any]) -> None:
    """Add each trigger with its request; then the requests of earlier plans of the ref update."""
    for verdict in verdicts:
        sign = "[green]✓[/green]" if verdict["matched"] else "[red]✗[/red]"
        trigger = branch.add(f"{sign} trigger {escape(verdict['trigger'])}: {escape(verdict['reason'])}")
        if verdict["failure"] is not None:
            trigger.add(f"[red]no request[/red]: {escape(verdict['failure'])}")
        for execution in requests:
            if execution["trigger"] == verdict["trigger"]:
                _add_execution(trigger, execution)
    evaluated = {verdict["trigger"] for verdict in verdicts}
    for execution in requests:
        if execution["trigger"] not in evaluated:
            # The ref update was planned again since, under other rules.
            former = branch.add(f"trigger {escape(execution['trigger'])}, under earlier rules")
            _add_execution(former, execution)


def _add_execution(tree: Tree, execution: Mapping[str, Any]) -> None:
    again = f", a re-run of {execution['rerun_of']}" if execution["rerun_of"] is not None else ""
    branch = tree.add(f"execution {execution['id']}{again}, planned {when(execution['planned_at'])}")
    # A very long explanation omits messages.
    message = execution["message"] or {"package": None}
    package = message["package"]
    if package is not None:
        modules = len(message["submodules"])
        more = f", with {modules} submodules" if modules else ""
        branch.add(f"packaged: {package['format']} of {package['size']} bytes{more}, {package['id']}")
    lane = f" in lane {execution['lane']}" if execution["lane"] is not None else ""
    state = f"{coloured(execution['state'])}{lane}"
    if execution["published_at"] is not None and execution["run"] is not None:
        branch.add(
            f"{coloured('published')}{lane}, confirmed by the broker {when(execution['published_at'])}"
        )
    if execution["run"] is not None:
        _add_run(branch, execution)
    elif execution["state"] == "published":
        branch.add(f"{state}, confirmed by the broker {when(execution['published_at'])}{_because(execution)}")
    elif execution["state"] == "pending" and execution["reason"] is None:
        branch.add(f"{state}: {WAITS}")
    else:
        branch.add(f"{state}{_because(execution)}")
    if execution["republished_at"] is not None:
        branch.add(f"redrive {execution['redrives']}, requested {when(execution['republished_at'])}")
    if execution["cancel_requested_at"] is not None:
        branch.add(f"cancel requested {when(execution['cancel_requested_at'])}")


def _add_run(branch: Tree, execution: Mapping[str, Any]) -> None:
    """Add what runners have reported: the states with their times, and the result."""
    run = execution["run"]
    runner = f" by {escape(run['runner'])}" if run["runner"] else ""
    if run["accepted_at"] is not None:
        branch.add(f"{coloured('accepted')} {when(run['accepted_at'])}{runner}")
    if run["started_at"] is not None:
        branch.add(f"{coloured('running')}, started {when(run['started_at'])}{runner}")
    if run["ended_at"] is not None:
        branch.add(f"{coloured(execution['state'])} {when(run['ended_at'])}{run_summary(run)}")
    elif execution["state"] == "lost":
        branch.add(f"{coloured('lost')} {when(run['lost_at'])}{_because(execution)}")
    elif said := run_summary(run):
        branch.add(f"reported {when(run['reported_at'])}{said}")


def _because(record: Mapping[str, Any]) -> str:
    return f": {escape(record['reason'])}" if record["reason"] else ""
