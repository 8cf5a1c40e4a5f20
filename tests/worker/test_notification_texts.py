"""What notifications say in each channel, and that nobody's names are taken for markup."""

import json
from typing import Any

import pytest

from gateway.store.notification_states import Result
from gateway.worker.connection_health import Finding
from gateway.worker.notification_texts import (
    MAX_SHOWN,
    as_mail,
    as_slack,
    as_teams,
    as_webhook,
    of_condition,
    of_dead_letters,
    of_result,
)
from testing.records import NOW, A, made

BASE = "https://pushgate.example"
EVIL = "x<!channel>@all*[a](https://evil.example)&"


def result(**changes: Any) -> Result:
    """Return a failed run."""
    values: dict[str, Any] = {
        "connection": "c1",
        "connection_name": "acme/digits",
        "project": "digits",
        "trigger": "train",
        "ref": "refs/heads/main",
        "name": "main",
        "commit": A,
        "delivery": "d1",
        "position": 1,
        "state": "failed",
        "reason": "loss is nan",
        "execution": "e1",
        **changes,
    }
    return Result(**values)


def told(**changes: Any) -> Any:
    """Return the notification of a result."""
    return of_result(result(**changes), base_url=BASE, now=NOW)


@pytest.mark.parametrize(
    ("changes", "title", "text"),
    [
        ({}, "train failed on main of acme/digits", "Commit aaaaaaaaaaaa: loss is nan"),
        ({"state": "succeeded", "reason": None}, "train succeeds again on main of acme/digits", "Commit"),
        ({"state": "rejected"}, "train was rejected by its runner on main of acme/digits", "Commit"),
        ({"state": "lost"}, "train was lost: its runner has gone silent on main of acme/digits", "Commit"),
        ({"execution": None}, "train could not be executed on main of acme/digits", "Commit"),
        (
            {"execution": None, "trigger": None, "commit": None},
            "The push could not be fetched or executed on main of acme/digits",
            "No commit: loss is nan",
        ),
    ],
)
def test_a_result_names_what_where_and_why(changes: dict[str, Any], title: str, text: str) -> None:
    """The link is that of the delivery's page."""
    body = told(**changes)
    assert body["title"] == title
    assert body["text"].startswith(text)
    assert body["url"] == f"{BASE}/deliveries/d1"
    assert body["happening"] == ("run-recovered" if changes.get("state") == "succeeded" else "run-failed")


def test_a_condition_says_what_to_do_and_when_it_is_over() -> None:
    """The link is that of the connection's page."""
    finding = Finding(what="silence", state="failing", reason="Nothing has arrived.", repair="Look there.")
    begun = of_condition("webhook-silent", made(), finding, base_url=BASE, now=NOW)
    assert begun["title"] == "No webhooks arrive from acme/digits"
    assert begun["text"] == "Nothing has arrived. Look there."
    assert begun["url"] == f"{BASE}/connections/c1"
    over = of_condition("remote-refuses", made(), None, base_url=BASE, now=NOW)
    assert (over["title"], over["text"], over["is_over"]) == ("Pushgate can read acme/digits again", "", True)
    letters = of_dead_letters(1, "pushgate.executions.dead", base_url=BASE, now=NOW)
    assert letters["title"] == "1 dead letter in the queue pushgate.executions.dead"


def test_slack_gets_links_and_no_mentions() -> None:
    """Neither in Slack's markup nor in the Markdown of servers that take the same messages."""
    message = json.loads(as_slack([told(name=EVIL, reason=f"{EVIL}\nand more")]))
    assert list(message) == ["text"]
    title, text = message["text"].split("\n")
    assert title.startswith(f"*<{BASE}/deliveries/d1|train failed on x&lt;!channel&gt;")
    assert text.endswith("&amp; and more")
    assert message["text"].count("<") == 1
    assert "@all" not in message["text"]
    assert "](" not in message["text"]


def test_teams_gets_a_card_of_plain_text() -> None:
    """Text runs have no Markdown; the title is the link."""
    message = json.loads(as_teams([told(name=EVIL)]))
    [attachment] = message["attachments"]
    assert (message["type"], attachment["contentType"]) == (
        "message",
        "application/vnd.microsoft.card.adaptive",
    )
    [container] = attachment["content"]["body"]
    runs = [run for block in container["items"] for run in block["inlines"]]
    assert {block["type"] for block in container["items"]} == {"RichTextBlock"}
    assert runs[0]["text"] == f"train failed on {EVIL} of acme/digits"
    assert runs[0]["selectAction"]["url"] == f"{BASE}/deliveries/d1"


def test_a_mail_has_one_subject_and_all_links() -> None:
    """What a name contains never becomes another header."""
    mail = as_mail(
        [told(name="x\r\nBcc: all@example.org"), told()],
        sender="pushgate@example.org",
        recipients=["ops@example.org"],
        message_id="n1-1",
        now=NOW,
    )
    assert mail["Subject"] == "[Pushgate] train failed on x Bcc: all@example.org of acme/digits (and 1 more)"
    assert mail["Bcc"] is None
    assert mail.get_content().count(f"{BASE}/deliveries/d1") == 2


def test_many_notifications_are_one_short_message() -> None:
    """People see the first; machines get all. A card for Teams has at most 28 KB."""
    long = told(reason="💥" * 1000)
    assert len(long["text"]) == 500
    bodies = [long] * (MAX_SHOWN + 30)
    assert json.loads(as_slack(bodies))["text"].endswith("… and 30 more.")
    card = as_teams(bodies)
    assert len(card) < 28 * 1024
    shown = json.loads(card)["attachments"][0]["content"]["body"]
    assert shown[-1]["inlines"][0]["text"] == f"… and {len(bodies) - (len(shown) - 1)} more."
    webhook = json.loads(as_webhook(bodies))
    assert (webhook["type"], webhook["timestamp"]) == ("pushgate.notifications", NOW.isoformat())
    assert len(webhook["data"]["notifications"]) == len(bodies)
    mail = as_mail(bodies, sender="a@b.c", recipients=["d@e.f"], message_id="n1-1", now=NOW)
    assert mail.get_content().rstrip().endswith("… and 30 more.")
