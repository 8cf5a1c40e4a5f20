"""The pages of one record: a delivery with its request and its response, and an execution."""

import json
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.deliveries import Deliveries
from gateway.api.endpoints import Answering, Endpoint
from gateway.api.executions import Executions
from gateway.api.received_requests import ReceivedRequests, RequestView
from gateway.api.registrations import Registrations, RegistrationView
from gateway.api.views import DeliveryView, ExplainedView
from gateway.dashboard.delivery_record import DeliveryRecord, read_facts
from gateway.dashboard.execution_record import ExecutionRecord
from gateway.dashboard.rendering import Renderer
from gateway.errors import NotFound
from gateway.threads import API
from providers.errors import Undecodable
from providers.payload import form_payload, is_form

# How much of a body a page shows; the download has all of it.
_MAX_SHOWN = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPages:
    """The handlers."""

    deliveries: Deliveries
    received: ReceivedRequests
    executions: Executions
    registrations: Registrations
    renderer: Renderer

    def table(self) -> list[tuple[str, str, Endpoint]]:
        """Return the paths with their methods and handlers, for users who have signed in."""
        executions, done = self.executions, self._done
        return [
            ("/deliveries/{id}", "GET", self.show_delivery),
            ("/deliveries/{id}/request", "GET", self.show_request),
            ("/deliveries/{id}/response", "GET", self.show_response),
            ("/deliveries/{id}/body", "GET", self.download_body),
            (
                "/deliveries/{id}/replay",
                "POST",
                done(self.deliveries.replay_delivery, "Replayed: a worker fetches and plans it again."),
            ),
            ("/deliveries/{id}/redeliver", "POST", self.redeliver),
            ("/executions/{id}", "GET", self.show_execution),
            ("/executions/{id}/drop", "POST", done(executions.drop_execution, "Dropped.")),
            ("/executions/{id}/cancel", "POST", done(executions.cancel_execution, "Cancel requested.")),
            ("/executions/{id}/rerun", "POST", self.rerun),
            (
                "/executions/{id}/republish",
                "POST",
                done(executions.republish_execution, "Put back: it is published again."),
            ),
        ]

    async def show_delivery(self, request: Request) -> Response:
        """`GET /deliveries/{id}`: show a delivery and what became of it."""
        delivery_id = request.path_params["id"]
        explained = await self._explained(delivery_id)
        facts = await self.deliveries.database.read(read_facts, delivery=delivery_id)
        can_redeliver = explained.refusal is not None and await self._can_redeliver(explained)
        # In a thread, because even a part of a large delivery takes long to render.
        return await API.run(
            lambda: self.renderer.page(
                "delivery.html",
                record=DeliveryRecord.of(explained, facts),
                delivery=explained,
                can_redeliver=can_redeliver,
            )
        )

    async def _explained(self, delivery_id: str) -> ExplainedView:
        """Return one delivery. Raise `NotFound`, also for a text that refers to others."""
        for found in await self.deliveries.explained(delivery_id):
            if found.id == delivery_id:
                return found
        raise NotFound(f"no delivery has the id {delivery_id}")

    async def show_request(self, request: Request) -> Response:
        """`GET /deliveries/{id}/request`: show the headers and the body that were received."""
        return await self._exchange(request, "delivery-request.html")

    async def show_response(self, request: Request) -> Response:
        """`GET /deliveries/{id}/response`: show what Pushgate answered."""
        return await self._exchange(request, "delivery-response.html")

    async def _exchange(self, request: Request, template: str) -> Response:
        delivery = await self.deliveries.get_delivery(request)
        try:
            found, why_not = await self.received.get_delivery_request(request), None
        except NotFound as error:
            found, why_not = None, str(error)
        body = "" if found is None else await API.run(pretty, found)
        return self.renderer.page(
            template,
            delivery=delivery,
            received=found,
            why_not=why_not,
            body=body[:_MAX_SHOWN],
            is_cut=len(body) > _MAX_SHOWN,
        )

    async def download_body(self, request: Request) -> Response:
        """`GET /deliveries/{id}/body`: download the body that was received."""
        return await self.received.get_delivery_body(request)

    async def redeliver(self, request: Request) -> Response:
        """`POST /deliveries/{id}/redeliver`: let the provider send again what failed at its connection."""
        delivery = await self.deliveries.get_delivery(request)
        path = f"/deliveries/{request.path_params['id']}"
        request.path_params["id"] = delivery.connection
        registrations = self.registrations
        endpoint = registrations.redeliver_to_source if delivery.is_of_source else registrations.redeliver
        found = await endpoint(request)
        if found.reason is not None:
            return self.renderer.redirect(path, flash=f"Nothing was requested: {found.reason}", kind="bad")
        return self.renderer.redirect(
            path, flash="Requested: the provider sends the deliveries that failed again."
        )

    async def show_execution(self, request: Request) -> Response:
        """`GET /executions/{id}`: show the life of an execution request, and its message."""
        execution = await self.executions.get_execution(request)
        delivery = await self._explained(execution.delivery)
        return self.renderer.page(
            "execution.html",
            execution=execution,
            record=ExecutionRecord.of(execution, delivery),
            has_broker=self.executions.has_broker,
        )

    async def rerun(self, request: Request) -> Response:
        """`POST /executions/{id}/rerun?key=`: run an execution again, and redirect to the new one."""
        again = await self.executions.rerun_execution(request)
        return self.renderer.redirect(
            f"/executions/{again.id}", flash="Re-run requested: this is the new one."
        )

    def _done(self, endpoint: Answering, flash: str) -> Endpoint:
        """Return the handler that calls an endpoint of the API, and redirects to the page of its record."""
        return partial(self._act, endpoint, flash)

    async def _act(self, endpoint: Answering, flash: str, request: Request) -> Response:
        await endpoint(request)
        return self.renderer.redirect(request.url.path.rpartition("/")[0], flash=flash)

    async def _can_redeliver(self, delivery: DeliveryView) -> bool:
        """Return whether the provider has a log of deliveries from which it can send again."""
        if delivery.is_orphan:
            return False
        asked = Request({"type": "http", "path_params": {"id": delivery.connection}})
        registrations = self.registrations
        endpoint = registrations.get_source_webhook if delivery.is_of_source else registrations.get_webhook
        try:
            webhook: RegistrationView = await endpoint(asked)
        except NotFound:
            return False
        return webhook.redeliveries is not None


def pretty(received: RequestView) -> str:
    """Return a body for people: JSON with line breaks, also that in a form; otherwise as it is."""
    content = received.body.content or ""
    if received.body.encoding != "text":
        return content
    try:
        text = form_payload(content.encode()).decode() if is_form(received.headers) else content
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError, Undecodable):
        return content
