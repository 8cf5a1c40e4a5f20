"""An operator drops an execution that the broker refuses: by command, and in the dashboard."""

import json

from testing.service import Project, Service, run_pushgate


def test_an_execution_is_dropped_by_a_command_and_comes_back_by_a_replay(
    service: Service, project: Project
) -> None:
    """It is not published; a second drop fails with the reason; a replay of its delivery renews it."""
    connection = service.connect(project.url, "train@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions", state="pending")["items"]

    done = run_pushgate("drop", execution["id"], service=service)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"dropped {execution['id']}; to publish it after all, replay its delivery\n"
    dropped = service.api.get(f"/executions/{execution['id']}")
    assert (dropped["state"], dropped["reason"]) == ("dropped", "an operator has dropped it")
    assert service.api.get("/executions", state="pending")["items"] == []
    # The time is not stored, and that of the command is not it.
    last = run_pushgate("logs", execution["id"], service=service).stdout.splitlines()[-1]
    assert last.startswith("time unknown  ")
    assert "  dropped  " in last
    again = run_pushgate("drop", execution["id"], service=service)
    assert again.returncode == 1
    assert "only a pending or undeliverable execution can be dropped, and this one is dropped" in again.stderr

    service.api.send("POST", f"/deliveries/{answer['delivery']}/replay", {})
    service.settled(answer["delivery"])
    [back] = service.api.get("/executions", state="pending")["items"]
    assert back["id"] == execution["id"]
    cancelled = service.api.send("POST", f"/executions/{back['id']}/cancel", {})
    logged = run_pushgate("logs", back["id"], "--json", service=service).stdout.splitlines()
    [end] = [line for line in map(json.loads, logged) if line["state"] == "cancelled"]
    assert end["at"] == cancelled["cancel_requested_at"]
