"""The budget of an identity at a host: of all its requests, and of those that write."""

import itertools
from bisect import bisect_left

import pytest

from gateway.provider_apis import github, github_app, gitlab
from gateway.provider_apis.budget import Budget, WriteLimit
from gateway.provider_apis.operation import ApiLimited, ApiRequest


def can_take(budget: Budget, *, is_write: bool = True) -> bool:
    """Take a request, and return whether it may pass."""
    try:
        budget.take(is_write=is_write)
    except ApiLimited:
        return False
    return True


def test_a_budget_refills_evenly() -> None:
    """An hour's requests may come at once, and then one in each part of an hour."""
    now = 0.0
    budget = Budget(60, clock=lambda: now)
    for _ in range(60):
        budget.take()
    with pytest.raises(ApiLimited) as limited:
        budget.take()
    assert limited.value.seconds == pytest.approx(60)
    now = 61.0
    budget.take()
    with pytest.raises(ApiLimited):
        budget.take()


def test_a_part_of_a_budget_counts_for_the_whole() -> None:
    """It is used up before the whole, and a limit of the provider holds for both."""
    whole = Budget(4, clock=lambda: 0.0)
    part = Budget(1, whole=whole, clock=lambda: 0.0)
    part.take()
    with pytest.raises(ApiLimited):
        part.take()
    whole.take()
    part.wait(5)
    with pytest.raises(ApiLimited, match="go on in 5 s"):
        whole.take()
    whole = Budget(4, clock=lambda: 0.0)
    part = Budget(2, whole=whole, clock=lambda: 0.0)
    for _ in range(4):
        whole.take()
    with pytest.raises(ApiLimited):
        part.take()


def test_requests_that_write_never_exceed_a_limit_of_the_provider() -> None:
    """Neither in any minute nor in any hour, however fast they come; some may pass at every time."""
    now = 0.0
    budget = Budget(5000, write_limits=github.WRITE_LIMITS, clock=lambda: now)
    sent: list[float] = []
    for second in range(3 * 3600):
        now = float(second)
        while can_take(budget):
            sent.append(now)
    for limit, seconds in ((80, 60), (500, 3600)):
        most = max(index + 1 - bisect_left(sent, at - seconds) for index, at in enumerate(sent))
        assert 0.9 * limit < most <= limit
    assert max(later - earlier for earlier, later in itertools.pairwise(sent)) <= 15


def test_requests_that_only_read_pass_when_no_more_may_be_written() -> None:
    """As do those of a provider without a limit of writes."""
    limit = WriteLimit(requests=2, seconds=60.0, at_once=1)
    budget = Budget(10, write_limits=[limit], clock=lambda: 0.0)
    assert [can_take(budget), can_take(budget)] == [True, False]
    assert can_take(budget, is_write=False)
    budget = Budget(10, write_limits=gitlab.WRITE_LIMITS, clock=lambda: 0.0)
    assert [can_take(budget) for _ in range(11)] == [True] * 10 + [False]


def test_a_part_leaves_the_rest_of_an_hours_writes_to_others() -> None:
    """And has none if others have written all; of a minute's, it may use all."""
    now = 0.0
    limits = [
        WriteLimit(requests=30, seconds=60.0, at_once=20),
        WriteLimit(requests=100, seconds=3600.0, at_once=40),
    ]
    whole = Budget(1000, write_limits=limits, clock=lambda: now)
    part = Budget(1000, write_limits=limits, share=0.5, whole=whole, clock=lambda: now)
    assert [can_take(part) for _ in range(21)] == [True] * 20 + [False]
    assert not can_take(whole)
    now = 120.0
    assert [can_take(part) for _ in range(2)] == [True, False]
    assert [can_take(whole) for _ in range(20)] == [True] * 19 + [False]
    now = 240.0
    assert [can_take(whole) for _ in range(5)] == [True] * 4 + [False]
    assert not can_take(part)
    assert can_take(part, is_write=False)
    whole.wait(5)
    assert not can_take(part, is_write=False)


@pytest.mark.parametrize(
    ("request_", "is_write"),
    [
        (ApiRequest(method="GET", path="/", right="read"), False),
        (ApiRequest(method="HEAD", path="/", right="read"), False),
        (ApiRequest(method="PATCH", path="/", right="write"), True),
        (next(github_app.access_token(1, permissions={}, repository=None)), False),
    ],
)
def test_what_creates_or_changes_something_is_a_write(request_: ApiRequest, is_write: bool) -> None:
    """A token is no content: an App obtains one for each repository in an hour."""
    assert request_.is_write is is_write
