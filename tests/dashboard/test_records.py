"""The pages of one record and of dead letters, in a real browser, on the real gateway with a broker."""

import asyncio
import http.client
import json
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode, urlsplit

import aio_pika
import pytest
from playwright.sync_api import Page, expect

from testing.broker import Broker
from testing.browser import running_browser, visit
from testing.git_host import GitHost
from testing.service import Project, Service, run_pushgate, wait_for
from tests.dashboard.getting import got, signed_in
from tests.publish.runner import Runner

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Return a repository with one commit on main."""
    folder = tmp_path_factory.mktemp("git")
    with GitHost(folder / "host") as host:
        yield Project(host, folder)


@pytest.fixture(scope="module")
def queue() -> str:
    """Return the name of the service's queue, at a broker that all tests share."""
    return f"records-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def service(broker: Broker, queue: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a gateway that publishes."""
    folder = tmp_path_factory.mktemp("records")
    with Service(folder / "data", AMQP_URL=broker.url, AMQP_EXCHANGE=queue, AMQP_QUEUE=queue) as service:
        yield service


def at_broker(broker: Broker, act: Callable[[Runner], Coroutine[Any, Any, Any]]) -> Any:
    """Do something as a runner. In a thread, because the browser's event loop is running in this one."""

    async def acted() -> Any:
        async with Runner(broker.url) as runner:
            return await act(runner)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, acted()).result()


def rejected(broker: Broker, queue: str) -> None:
    """Reject the next message, as a runner that cannot read it, and wait until it is a dead letter."""

    async def reject(runner: Runner) -> None:
        await runner.take(queue, 1, reject=True)
        await runner.until_holds(f"{queue}.dead", 1)

    at_broker(broker, reject)


def pushed(service: Service, project: Project, connection: Any, message: str) -> str:
    """Push a commit, deliver it, and return the id of the settled delivery."""
    before = project.tree.git("rev-parse", "HEAD").strip()
    after = project.push(message, {"train.py": f"print({message!r})\n"})
    payload = json.loads(project.payload(before, after))
    payload["repository"]["html_url"] = "https://github.example/acme/digits"
    _, answer = service.deliver(connection, json.dumps(payload).encode())
    service.settled(answer["delivery"])
    return str(answer["delivery"])


def test_a_failed_delivery_is_followed_to_its_dead_letter_and_back(
    broker: Broker, service: Service, project: Project, queue: str
) -> None:
    """By links and buttons alone: the request, a replay, the execution, its dead letter, a re-run."""
    connection = service.connect(project.url, "other@main")
    delivery = pushed(service, project, connection, "Read sevens\n\nThey looked like ones.")
    with running_browser() as browser, visit(browser, service) as page:
        page.goto(f"/deliveries/{delivery}")
        main = page.get_by_role("main")
        expect(main.get_by_role("heading", level=1)).to_have_text("Read sevens")
        for expected in (
            "failed",
            "Ada Byron",
            "no request: valohai.yaml has no step other",
            "main: fetched",
        ):
            expect(main).to_contain_text(expected)
        page_of_branch = "https://github.example/acme/digits/tree/main"
        expect(main.get_by_role("link", name="main", exact=True)).to_have_attribute("href", page_of_branch)
        page.get_by_role("link", name="Request", exact=True).click()
        expect(main).to_contain_text("x-hub-signature-256•••• (71 characters)", use_inner_text=False)
        expect(page.get_by_role("group", name="Content of the body")).to_contain_text(
            '"ref": "refs/heads/main"'
        )
        page.get_by_role("link", name="Response", exact=True).click()
        expect(page.get_by_role("group", name="Content of the body")).to_contain_text('"verdict": "accepted"')
        page.get_by_role("link", name="Overview", exact=True).last.click()
        mended = [{"name": "mended", "branches": ["main"], "run": {"step": "train"}}]
        service.api.send("PATCH", f"/connections/{connection['id']}", {"triggers": mended})
        page.get_by_role("button", name="Replay").click()
        expect(page.get_by_role("status").first).to_contain_text("Replayed")
        page.get_by_role("link", name="execution train").click()
        dead_letter_put_back(page, broker, queue)
        expect(main).to_contain_text("Put back1 time", use_inner_text=False)
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("status").first).to_have_text("Cancel requested.")
        first = page.url
        page.get_by_role("button", name="Re-run").click()
        expect(page).not_to_have_url(first)
        main.get_by_role("link", name=first.rpartition("/")[2]).click()
        expect(main).to_contain_text("Re-run by")


def dead_letter_put_back(page: Page, broker: Broker, queue: str) -> None:
    """Reject the message of the execution that is shown, put it back, and return to its page."""
    execution = page.url
    expect(page.get_by_role("main")).to_contain_text("Confirmed by the broker")
    rejected(broker, queue)
    page.get_by_role("link", name="Overview", exact=True).first.click()
    page.get_by_role("region", name="Needs attention").get_by_role("link", name="1 dead letter").click()
    row = page.get_by_role("row").nth(1)
    expect(row).to_contain_text(f"A runner rejected it ({queue})")
    page.get_by_role("button", name="Put back").click()
    expect(page.get_by_role("status").first).to_have_text("Select at least one dead letter.")
    row.get_by_role("checkbox").check()
    page.get_by_role("button", name="Put back").click()
    expect(page.get_by_role("status").first).to_have_text("1 dead letter put back.")
    expect(page.get_by_role("main")).to_contain_text("No dead letters")
    page.goto(execution)


def posted(service: Service, path: str, fields: list[tuple[str, str]]) -> str:
    """Post a form without a browser, and return the page to which it leads."""
    cookie = signed_in(service)
    form = http.client.HTTPConnection(urlsplit(service.url).netloc)
    form.request("POST", path, urlencode(fields), {"cookie": cookie, "origin": service.url})
    answer = form.getresponse()
    assert answer.status == 303
    flash = str(answer.headers["set-cookie"]).partition(";")[0]
    form.close()
    return got(f"{service.url}{answer.headers['location']}", f"{cookie}; {flash}", accept="text/html")[1]


def test_all_dead_letters_that_are_shown_are_dropped_at_once(
    broker: Broker, service: Service, queue: str
) -> None:
    """Without a script. A message that is no execution request cannot be put back, which is said."""

    async def leave(runner: Runner) -> None:
        for name in ("garbage-1", "garbage-2"):
            message = aio_pika.Message(b"{", message_id=name)
            await runner.channel.default_exchange.publish(message, routing_key=f"{queue}.dead")

    wait_for(lambda: service.api.get("/dead-letters")["problem"] is None, "the relay declares the queue")
    at_broker(broker, leave)
    page = service.api.get("/dead-letters")
    assert (page["at_broker"], page["problem"]) == (2, None)
    assert [(one["id"], one["is_at_broker"], one["execution"]) for one in page["items"]] == [
        ("garbage-1", True, None),
        ("garbage-2", True, None),
    ]
    failed = service.api.send("POST", "/dead-letters/put-back", {"ids": ["garbage-1"]})
    assert failed["done"] == []
    assert "it can only be dropped" in failed["failed"][0]["reason"]
    listed = run_pushgate("dead-letters", service=service)
    assert "garbage-1" in listed.stdout
    again = run_pushgate("dead-letters", "--put-back", "--all", service=service)
    assert (again.returncode, again.stdout) == (1, "")
    assert "garbage-2: it is no execution request that is still stored" in again.stderr
    text = posted(service, "/dead-letters/put-back", [("id", "garbage-1"), ("id", "garbage-2")])
    assert "0 dead letters put back. Not put back: garbage-1, and 1 more: it is no execution request" in text
    text = posted(service, "/dead-letters/drop", [("all", "1"), ("shown", "garbage-1 garbage-2")])
    assert "2 dead letters dropped." in text
    assert "No dead letters" in text
    gone = service.api.send("POST", "/dead-letters/drop", {"ids": ["garbage-1"]})
    assert gone["failed"] == [{"id": "garbage-1", "reason": "no dead letter has this id"}]


def test_a_large_body_is_shown_in_part_and_downloaded_whole(service: Service, project: Project) -> None:
    """The page has its beginning, and a link."""
    connection = service.connect(f"{project.url}/large")
    body = json.dumps({"zen": "x" * 200_000}).encode()
    _, answer = service.deliver(connection, body, event="ping")
    path = f"{service.url}/deliveries/{answer['delivery']}"
    cookie = signed_in(service)
    _, text, _ = got(f"{path}/request", cookie)
    assert len(text) < 100_000
    assert "Download the whole body" in text
    _, whole, headers = got(f"{path}/body", cookie)
    assert whole.encode() == body
    assert headers["content-disposition"].startswith("attachment;")


def test_what_was_refused_has_no_request_and_says_so(service: Service, project: Project) -> None:
    """With the answer that the provider got, and what to do."""
    connection = service.connect(f"{project.url}/refused")
    service.deliver({**connection, "secret": "another secret"}, b"{}")

    def refused() -> Any:
        return service.api.get("/deliveries", verdict="refused", connection=connection["id"])["items"]

    [refusal] = wait_for(refused, "the refusal is recorded")
    path = f"{service.url}/deliveries/{refusal['id']}"
    cookie = signed_in(service)
    assert "Nothing of a refused request is stored" in got(f"{path}/request", cookie)[1]
    assert "<code>401</code>" in got(f"{path}/response", cookie)[1]
    assert got(f"{path}/body", cookie)[0] == 404
    _, text, _ = got(path, cookie)
    assert "Enter this connection&#39;s secret" in text
    assert got(f"{service.url}/deliveries/main", cookie)[0] == 404
