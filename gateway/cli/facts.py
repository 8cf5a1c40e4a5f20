"""Records in full, as names and values for people."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.cli.api_client import Client, Missing
from gateway.cli.output import names_of, out, print_facts, times, trigger_line, value_text, when
from gateway.cli.source_app import app_line

_OF_RUN = ("runner", "summary", "url", "log_url", "metrics", "outputs")


def connection_facts(shown: Any) -> dict[str, str]:
    """Return what is known of a connection."""
    source, platform, other = shown["source"], shown["platform"], shown["other_repository"]
    statuses = "at the status webhook" if shown["has_status_webhook"] else "at the provider"
    facts = {
        "connection": f"{shown['name']} ({shown['id']})",
        "health": _health(shown["health"]),
        "provider": shown["provider"],
        "URL": shown["url"],
        "project": shown["project"],
        "webhook URL": shown["hook_url"],
        "source": f"{source['name']} ({source['id']})" if source else "",
        "triggers": "\n".join(map(trigger_line, shown["triggers"])) or "none: pushes are fetched only",
        "valohai.yaml": shown["yaml_path"],
        "branches": ", ".join(shown["follows"]) or "all",
        "networks": ", ".join(shown["networks"]) or "all",
        "access": shown["access"],
        "identity": shown["identity"] or "",
        "deploy key": shown["deploy_key"] or "",
        "remote": _remote(shown["remote"]),
        "reconciled": _reconciled(shown["reconciliation"]),
        "other repository": f"delivery {other['delivery']} is of {other['name'] or other['id']}"
        if other
        else "",
        "statuses": statuses if shown["statuses"] or shown["has_status_webhook"] else "off",
        "platform": _platform(platform) if platform else "",
        "packages": shown["package_format"],
        "secrets": _secrets(shown["secrets"]),
        **_times(shown),
    }
    return _known(facts)


def source_facts(source: Any) -> dict[str, str]:
    """Return what is known of a source."""
    listed = when(source["listed_at"]) if source["listed_at"] else "not yet"
    if source["identity"] is None:
        listed = "never, without an identity: each repository is found by its first delivery"
    rules = {f"rule {number}": _rule(rule) for number, rule in enumerate(source["rules"], start=1)}
    if not rules:
        rules = {"rules": "none: no repository is connected, until `pushgate source rules` sets some"}
    facts = {
        "source": f"{source['name']} ({source['id']})",
        "URL": source["url"],
        "webhook URL": source["hook_url"],
        "identity": source["identity"] or "none",
        "GitHub App": app_line(source) if source["app"] else "",
        "networks": ", ".join(source["networks"]),
        "listed": listed,
        "not listed": source["reason"] or "",
        "repositories": repository_counts(source["repositories"]),
        **rules,
        "secrets": _secrets(source["secrets"]),
        **_times(source),
    }
    return _known(facts)


def identity_facts(identity: Any) -> dict[str, str]:
    """Return what is known of an identity."""
    rights = identity["rights"]
    facts = {
        "identity": f"{identity['name']} ({identity['id']})",
        "provider": f"{identity['provider']} at {identity['host']}",
        "kind": identity["kind"],
        **{name.replace("_", " "): str(value) for name, value in identity["settings"].items()},
        "user": identity["user"] or "",
        "API": identity["api_url"] or "",
        "expires": when(identity["expires_at"]) if identity["expires_at"] else "never, or unknown",
        "rotated": "by Pushgate" if identity["rotates"] else "",
        "rights": ", ".join(rights) or "none" if rights is not None else "unknown",
        "checked": when(identity["checked_at"]) if identity["checked_at"] else "not yet",
        "refused": identity["reason"] or "",
        "used by": f"{identity['connections']} connections",
        **_times(identity),
    }
    return _known(facts)


def channel_facts(channel: Any) -> dict[str, str]:
    """Return what is known of a notification channel; its URL and its password are never shown."""
    mail = channel["mail"] or {}
    facts = {
        "channel": f"{channel['name']} ({channel['id']})",
        "kind": channel["kind"],
        "to": ", ".join(mail.get("recipients", [channel["host"]])),
        "server": f"{mail['host']}:{mail['port']} ({mail['security']})" if mail else "",
        "from": mail.get("sender", ""),
        "user": mail.get("user") or "",
        "on": ", ".join(channel["happenings"]),
        "connections": ", ".join(channel["connections"]) or "all",
        "projects": ", ".join(channel["projects"]) or "all",
        "last sent": when(channel["sent_at"]) if channel["sent_at"] else "never",
        "problem": channel["problem"] or "",
        **_times(channel),
    }
    return _known(facts)


def execution_facts(execution: Any) -> dict[str, str]:
    """Return what is known of an execution: what runs, where it comes from, and what became of it."""
    message, run = execution["message"], execution["run"] or {}
    commit, package = message["commit"], message["package"]
    because = f": {execution['reason']}" if execution["reason"] else ""
    facts = {
        "execution": execution["id"],
        "state": f"{execution['state']}{because}",
        "project": execution["project"],
        "trigger": execution["trigger"],
        "delivery": execution["delivery"],
        "connection": execution["connection"],
        "ref": f"{message['ref']['kind']} {message['ref']['name']}",
        "commit": commit["id"],
        "message": commit["message"].strip(),
        "author": commit["author"],
        "page": commit["url"] or "",
        **{
            name.replace("_", " "): value_text(value)
            for name, value in message["execution"].items()
            if name != "definition"
        },
        "package": f"{package['format']} of {package['size']} bytes, {package['url']}" if package else "",
        "lane": execution["lane"] or "",
        "re-run of": execution["rerun_of"] or "",
        "re-run by": ", ".join(execution["rerun_by"]),
        "superseded by": execution["superseded_by"] or "",
        **_instants(execution, ("planned_at", "published_at", "republished_at", "cancel_requested_at")),
        **_instants(run, ("accepted_at", "started_at", "ended_at", "lost_at")),
        **{name.replace("_", " "): value_text(run.get(name)) for name in _OF_RUN},
    }
    return _known(facts)


def show_delivery(client: Client, delivery: Any) -> None:
    """Print a delivery with everything that is stored about it, and its explanation."""
    from gateway.cli.explain import delivery_tree  # noqa: PLC0415 - the lists start without it

    print_facts(_delivery_facts(delivery) | _summary_of_request(client, delivery["id"]))
    for explained in client.get("/explain", what=delivery["id"])["items"]:
        out.print(delivery_tree(explained))


def _delivery_facts(delivery: Any) -> dict[str, str]:
    repository = delivery["repository"] or {}
    is_orphan = ", deleted" if delivery["is_orphan"] else ""
    what = "source" if delivery["is_of_source"] else "connection"
    facts = {
        what: f"{delivery['name']} ({delivery['connection']}{is_orphan})",
        "outcome": delivery["outcome"],
        "provider": delivery["provider"] or "",
        "event": delivery["event"],
        "id at the provider": delivery["provider_delivery_id"] or "",
        "pushed by": delivery["pusher"] or "",
        **{f"repository {name}": value_text(value) for name, value in repository.items()},
        "refused": _refused(delivery["refusal"]) if delivery["refusal"] else "",
        "detail": value_text(delivery["detail"]),
    }
    for update in delivery["updates"]:
        commits = f", {len(update['commits'])} commits listed" if update["commits"] else ""
        forced = ", forced" if update["forced"] else ""
        ids = f"{update['before'] or '∅'} → {update['after'] or '∅'}"
        facts[update["ref"]] = f"{update['action']} {ids}{forced}{commits}"
    return _known(facts)


def _refused(refusal: Any) -> str:
    where = refusal["client"] or "an unknown address"
    return f"{refusal['status']} to {where}, {times(refusal['count'])}, last {when(refusal['last_at'])}"


def _summary_of_request(client: Client, delivery: str) -> dict[str, str]:
    try:
        shown = client.get(f"/deliveries/{delivery}/request")
    except Missing:
        return {}
    size, media_type = shown["body"]["size"], shown["body"]["media_type"]
    body = f"{size} bytes{f' of {media_type}' if media_type else ''}: `pushgate request {delivery}`"
    return {"request": body, "answer": _answer(shown["response"])} if shown["response"] else {"request": body}


def request_facts(shown: Any) -> dict[str, str]:
    """Return the webhook request of a delivery, without its body."""
    headers = shown["headers"] | shown["masked_headers"]
    facts = {
        "request": f"{shown['method']} {shown['path']}",
        "from": shown["client"] or "",
        "received": when(shown["received_at"]),
        "headers": "\n".join(f"{name}: {value}" for name, value in headers.items()),
        "answer": _answer(shown["response"]) if shown["response"] else "",
        "body": f"{shown['body']['size']} bytes",
    }
    return _known(facts)


def _answer(response: Any) -> str:
    return f"{response['status']} {json.dumps(response['body'], ensure_ascii=False)}"


def _known(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if value}


def _instants(record: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    return {
        name.removesuffix("_at").replace("_", " "): when(record[name]) if record.get(name) else ""
        for name in names
    }


def _times(record: Any) -> dict[str, str]:
    return {"created": when(record["created_at"]), "changed": when(record["updated_at"])}


def _health(health: Any) -> str:
    lines = (f"{one['reason']} {one['repair']}" for one in health["findings"])
    return "\n".join([health["state"], *lines])


def _remote(remote: Any) -> str:
    checked = f", checked {when(remote['checked_at'])}" if remote["checked_at"] else ""
    if remote["readable"]:
        return f"readable, its default branch is {remote['default_branch'] or 'unknown'}{checked}"
    repair = f". What to do: {remote['repair']}" if remote["repair"] else ""
    return f"{remote['reason'] or 'not read yet'}{repair}{checked}"


def _reconciled(reconciliation: Any) -> str:
    done = reconciliation["reconciled_at"]
    failure = f"; the last attempt failed: {reconciliation['reason']}" if reconciliation["reason"] else ""
    return f"{when(done) if done else 'not yet'}, next {when(reconciliation['due_at'])}{failure}"


def _platform(platform: Any) -> str:
    fetched = f", fetched {when(platform['fetched_at'])}" if platform["fetched_at"] else ""
    failure = f": {platform['reason']}" if platform["reason"] else ""
    return f"project {platform['project']} at {platform['url']}{fetched}{failure}"


def _secrets(secrets: Any) -> str:
    return "\n".join(
        f"created {when(one['created_at'])}, "
        + (f"last used {when(one['last_used_at'])}" if one["last_used_at"] else "never used")
        for one in secrets
    )


def _rule(rule: Any) -> str:
    """Return a rule of a source on one line."""
    parts = [
        ", ".join(rule["match"]) or "all repositories",
        f"with {rule['yaml_path']}" if rule["manifest"] else "",
        f"→ project {rule['project']}:",
        names_of(rule["triggers"]) or "no triggers, nothing is executed",
    ]
    return " ".join(filter(None, parts))


def repository_counts(repositories: Mapping[str, int]) -> str:
    """Return how many repositories of a source are in each state."""
    return ", ".join(f"{number} {state}" for state, number in repositories.items()) or "none yet"
