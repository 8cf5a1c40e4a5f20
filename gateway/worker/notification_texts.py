"""What notifications say, and how each kind of channel takes it. Pure.

A notification is a JSON object: `happening`, `is_over`, `at`, a `title` of one line, a `text`, the `url` of a
page of the dashboard, and, if it is about one, the `connection` with its name and project, and the commit.
Names of branches and the words of runners are not trusted: no channel takes them for markup or mentions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, TypeAlias

from gateway.provider_apis.statuses import shortened
from gateway.store.connections import Connection
from gateway.store.notification_states import Result
from gateway.text.escape import printable
from gateway.worker.connection_health import Finding

Body: TypeAlias = Mapping[str, Any]

MAX_SHOWN = 20
_MAX_TITLE = 200
_MAX_TEXT = 500
# Teams shows no message that is larger than 28 KB.
# https://learn.microsoft.com/en-us/connectors/teams/#general-known-issues-and-limitations
_MAX_CARD_BYTES = 24 * 1024
_SHORT_COMMIT = 12
_ENDS: Mapping[str, str] = {
    "failed": "failed",
    "rejected": "was rejected by its runner",
    "lost": "was lost: its runner has gone silent",
    "succeeded": "succeeds again",
}
_CONDITIONS: Mapping[str, tuple[str, str]] = {
    "webhook-silent": ("No webhooks arrive from {name}", "Webhooks arrive from {name} again"),
    "remote-refuses": ("Pushgate cannot read {name}", "Pushgate can read {name} again"),
}


def of_result(result: Result, *, base_url: str, now: datetime) -> Body:
    """Return the notification that something has failed, or that it succeeds again."""
    what, where = result.trigger or "The push", f"{result.name} of {result.connection_name}"
    if result.execution is None:
        end = f"could not be {'fetched or ' if result.trigger is None else ''}executed"
    else:
        end = _ENDS[result.state]
    commit = f"Commit {result.commit[:_SHORT_COMMIT]}" if result.commit else "No commit"
    reason = f": {result.reason}" if result.reason else "."
    return {
        "happening": "run-recovered" if result.is_success else "run-failed",
        "is_over": result.is_success,
        "at": now.isoformat(),
        "title": _line(f"{what} {end} on {where}", _MAX_TITLE),
        "text": _line(f"{commit}{reason}", _MAX_TEXT),
        "url": f"{base_url}/deliveries/{result.delivery}",
        "connection": {
            "id": result.connection,
            "name": result.connection_name,
            "project": result.project,
        },
        "trigger": result.trigger,
        "ref": result.ref,
        "commit": result.commit,
        "delivery": result.delivery,
        "execution": result.execution,
        "state": result.state,
    }


def of_condition(
    what: str, connection: Connection, finding: Finding | None, *, base_url: str, now: datetime
) -> Body:
    """Return the notification of a condition of a connection; without a finding, that it is over."""
    title = _CONDITIONS[what][finding is None].format(name=connection.name)
    return {
        "happening": what,
        "is_over": finding is None,
        "at": now.isoformat(),
        "title": _line(title, _MAX_TITLE),
        "text": "" if finding is None else _line(f"{finding.reason} {finding.repair}", _MAX_TEXT),
        "url": f"{base_url}/connections/{connection.id}",
        "connection": {"id": connection.id, "name": connection.name, "project": connection.project},
    }


def of_dead_letters(count: int, queue: str, *, base_url: str, now: datetime) -> Body:
    """Return the notification that dead letters have arrived."""
    noun = "dead letter" if count == 1 else "dead letters"
    return {
        "happening": "dead-letters",
        "is_over": False,
        "at": now.isoformat(),
        "title": f"{count} {noun} in the queue {queue}",
        "text": "Runners have rejected these messages, or returned them too often. The header x-death has"
        " the reason; `pushgate republish EXECUTION` publishes a request again.",
        "url": f"{base_url}/",
        "count": count,
    }


def of_test(name: str, *, base_url: str, now: datetime) -> Body:
    """Return the notification that tests a channel."""
    return {
        "happening": "test",
        "is_over": False,
        "at": now.isoformat(),
        "title": _line(f"A test of the notification channel {name}", _MAX_TITLE),
        "text": "If you can read this, notifications arrive here.",
        "url": f"{base_url}/",
    }


def as_slack(bodies: Sequence[Body]) -> bytes:
    """Return a message for Slack, and for servers that take the same, such as Mattermost.

    https://docs.slack.dev/messaging/formatting-message-text/#escaping
    """
    texts = [f"*<{body['url']}|{_slack(body['title'])}>*\n{_slack(body['text'])}".rstrip() for body in bodies]
    shown = [*texts[:MAX_SHOWN], *_more(texts)]
    return json.dumps({"text": "\n\n".join(shown)}, ensure_ascii=False).encode()


def as_teams(bodies: Sequence[Body]) -> bytes:
    """Return a message for a workflow of Power Automate, as an Adaptive Card.

    The texts are runs of plain text: a text block would take them for Markdown.
    https://learn.microsoft.com/en-us/connectors/teams/#microsoft-teams-webhook
    https://adaptivecards.io/explorer/TextRun.html
    """
    count = min(len(bodies), MAX_SHOWN)
    while True:
        shown = [_container(body) for body in bodies[:count]]
        if more := _more(bodies, count):
            shown.append(_rich(more[0]))
        card = {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "msteams": {"width": "Full"},
            "body": shown,
        }
        attachment = {
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": None,
            "content": card,
        }
        message = json.dumps({"type": "message", "attachments": [attachment]}, ensure_ascii=False).encode()
        if len(message) <= _MAX_CARD_BYTES or count == 1:
            return message
        count -= 1


def as_webhook(bodies: Sequence[Body]) -> bytes:
    """Return the body of a signed webhook, in the form that Standard Webhooks recommends."""
    last = max(body["at"] for body in bodies)
    message = {"type": "pushgate.notifications", "timestamp": last, "data": {"notifications": list(bodies)}}
    return json.dumps(message, ensure_ascii=False).encode()


def as_mail(
    bodies: Sequence[Body], *, sender: str, recipients: Sequence[str], message_id: str, now: datetime
) -> EmailMessage:
    """Return a mail in plain text. Its id stays the same when it is sent again."""
    mail = EmailMessage()
    mail["From"], mail["To"] = sender, ", ".join(recipients)
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = f"<{message_id}@{sender.rpartition('@')[2]}>"
    # https://www.rfc-editor.org/rfc/rfc3834#section-5
    mail["Auto-Submitted"] = "auto-generated"
    others = f" (and {len(bodies) - 1} more)" if len(bodies) > 1 else ""
    mail["Subject"] = f"[Pushgate] {bodies[0]['title']}{others}"
    texts = [
        "\n".join(part for part in (body["title"], body["text"], body["url"]) if part) for body in bodies
    ]
    mail.set_content("\n\n".join([*texts[:MAX_SHOWN], *_more(texts)]) + "\n")
    return mail


AS_JSON: Mapping[str, Callable[[Sequence[Body]], bytes]] = {
    "slack": as_slack,
    "teams": as_teams,
    "webhook": as_webhook,
}
"""The body of a request, by the kind of the channel."""


def _more(items: Sequence[Any], shown: int = MAX_SHOWN) -> list[str]:
    return [f"… and {len(items) - shown} more."] if len(items) > shown else []


def _line(text: str, most: int) -> str:
    return shortened(printable(" ".join(text.split())), most)


def _slack(text: str) -> str:
    """Escape a text: what is between < and > would be a link or a mention.

    A space without width keeps servers that read Markdown, such as Mattermost, from mentions and links.
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("@", "@\N{ZERO WIDTH SPACE}").replace("](", "]\N{ZERO WIDTH SPACE}(")


def _container(body: Body) -> dict[str, Any]:
    link = {"type": "Action.OpenUrl", "url": body["url"]}
    title = _rich(body["title"], weight="Bolder", selectAction=link)
    return {
        "type": "Container",
        "separator": True,
        "items": [title, *([_rich(body["text"])] if body["text"] else [])],
    }


def _rich(text: str, **how: Any) -> dict[str, Any]:
    return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text, **how}]}
