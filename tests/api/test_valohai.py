"""Notifications of Valohai at the URL of a connection."""

from typing import Any

from testing.service import Project, Service, run_pushgate
from tests.api.test_reports import execution_of, post
from tests.dashboard.getting import got, signed_in
from tests.messages.test_valohai import PAGE, notification


def test_valohai_reports_to_the_url_of_the_connection(service: Service, project: Project) -> None:
    """Which needs no token, and never answers that something is wrong with what Valohai cannot correct."""
    execution = execution_of(service, project)
    connection = service.api.get(f"/connections/{execution['connection']}")
    url = connection["valohai_url"]
    commit = {"valohai.commit-identifier": execution["message"]["commit"]["id"]}

    def notify(**data: Any) -> tuple[int, Any]:
        return post(url, notification(data={**commit, **data}))

    reported = {"execution": execution["id"], "state": "succeeded", "reason": None}
    assert notify() == (202, reported)
    assert notify(**{"valohai.execution-status": "error"}) == (202, reported)
    assert service.api.get(f"/executions/{execution['id']}")["run"]["url"] == PAGE
    status, kept = notify(**{"valohai.execution-step": "other"})
    assert (status, kept["execution"], kept["state"]) == (202, None, None)
    assert kept["reason"] in run_pushgate("explain", PAGE, service=service).stderr
    for wrong in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.replace("expires=", "expires=9")):
        assert post(wrong, notification())[0] == 403
    assert post(url.partition("?")[0], notification())[0] == 401
    assert post(url, b"{}")[0] == 422
    _, page, _ = got(f"{service.url}/connections/{connection['id']}", signed_in(service))
    assert url.replace("&", "&amp;") in page


def test_the_url_of_one_connection_is_of_no_use_for_another(service: Service, project: Project) -> None:
    """Nor for one that was deleted."""
    execution = execution_of(service, project)
    path = f"/connections/{execution['connection']}"
    url = service.api.get(path)["valohai_url"]
    other = service.api.get(path)["id"][:-1] + "0"
    assert post(url.replace(execution["connection"], other), notification())[0] == 403
    service.api.send("DELETE", path)
    assert post(url, notification())[0] == 404
