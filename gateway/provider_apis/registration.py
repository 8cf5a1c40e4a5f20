"""Brings the webhook of a place in order: creates, changes and removes only what is ours."""

from collections.abc import Collection
from dataclasses import dataclass

from gateway.provider_apis.operation import Operation
from gateway.provider_apis.webhooks import (
    Difference,
    Place,
    RegisteredWebhook,
    Repair,
    Webhook,
    WebhookApi,
    compare,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found at the provider, and the webhook that is registered now, if any.

    `differences` are those of that webhook. If it `is_tested`, the provider was requested to send a test
    delivery.
    """

    repair: Repair
    webhook: RegisteredWebhook | None
    differences: tuple[Difference, ...]
    is_tested: bool = False


def inspect(
    api: WebhookApi, place: Place, wanted: Webhook, *, earlier_urls: Collection[str] = ()
) -> Operation[Inspection]:
    """Compare the provider's webhooks with the wanted one, and change nothing."""
    registered = yield from api.webhooks(place)
    repair = compare(registered, wanted, earlier_urls=earlier_urls)
    return Inspection(repair=repair, webhook=repair.keep, differences=repair.differences)


def register(
    api: WebhookApi, place: Place, wanted: Webhook, *, earlier_urls: Collection[str] = ()
) -> Operation[Inspection]:
    """Create the wanted webhook, or set all of it where it exists, its secret as well; then remove doubles.

    The order matters: no push may fall between two webhooks. The provider is then requested to send a test
    delivery, where it has one; a new webhook of some providers sends one by itself.
    """
    found = yield from inspect(api, place, wanted, earlier_urls=earlier_urls)
    keep = found.repair.keep
    if keep is None:
        keep = yield from api.create(place, wanted)
    else:
        keep = yield from api.change(place, keep.id, wanted)
    for other in found.repair.remove:
        yield from api.delete(place, other.id)
    is_tested = yield from api.test(place, keep.id)
    left = compare([keep], wanted).differences if keep.advice else ()
    return Inspection(repair=found.repair, webhook=keep, differences=left, is_tested=is_tested)


def unregister(
    api: WebhookApi, place: Place, wanted: Webhook, *, earlier_urls: Collection[str] = ()
) -> Operation[int]:
    """Delete all webhooks of ours; return how many there were."""
    registered = yield from api.webhooks(place)
    repair = compare(registered, wanted, earlier_urls=earlier_urls)
    ours = [hook for hook in (repair.keep, *repair.remove) if hook is not None]
    for hook in ours:
        yield from api.delete(place, hook.id)
    return len(ours)
