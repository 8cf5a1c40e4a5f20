"""The delivery that GitHub would send for a push, with the fields that it documents.

https://docs.github.com/en/webhooks/webhook-events-and-payloads#push
"""

import json

ZERO = "0" * 40
REPOSITORY_ID = 186853002


def push_payload(
    *,
    url: str,
    full_name: str,
    ref: str,
    before: str | None,
    after: str | None,
    message: str = "",
    forced: bool = False,
) -> bytes:
    """Return the body of a push event; `before` or `after` is None where the ref did not exist."""
    zero = "0" * len(before or after or ZERO)
    old, new = before or zero, after or zero
    owner, _, name = full_name.partition("/")
    head = None
    if after is not None:
        head = {
            "id": after,
            "message": message,
            "timestamp": "2026-11-23T09:00:00+02:00",
            "url": f"https://github.example/{full_name}/commit/{after}",
            "author": {"name": "Ada Byron", "email": "ada@example.org", "username": "ada"},
            "committer": {"name": "Ada Byron", "email": "ada@example.org", "username": "ada"},
            "added": [],
            "removed": [],
            "modified": ["train.py"],
        }
    payload = {
        "ref": ref,
        "before": old,
        "after": new,
        "created": before is None,
        "deleted": after is None,
        "forced": forced,
        "base_ref": None,
        "compare": f"https://github.example/{full_name}/compare/{old[:12]}...{new[:12]}",
        "commits": [head] if head else [],
        "head_commit": head,
        "pusher": {"name": "ada", "email": "ada@example.org"},
        "sender": {"login": "ada", "id": 1815, "type": "User"},
        "repository": {
            "id": REPOSITORY_ID,
            "name": name,
            "full_name": full_name,
            "private": True,
            "owner": {"name": owner, "login": owner, "id": 21031067},
            "html_url": f"https://github.example/{full_name}",
            "clone_url": url,
            "ssh_url": f"git@github.example:{full_name}.git",
            "default_branch": "main",
        },
    }
    return json.dumps(payload).encode()
