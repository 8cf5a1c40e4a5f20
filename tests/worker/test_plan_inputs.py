"""The facts that a ref update was planned from survive packing."""

import hashlib
import json
from dataclasses import replace

import pytest
import zstandard

from gateway.plan.triggers import PullRequestFacts
from gateway.store.work_queue import PendingUpdate
from gateway.worker.plan_inputs import PlanInputs, base_branch, connection_facts, pack, unpack, update_facts
from testing.records import NOW, made
from tests.plan.facts import COMMIT


def test_facts_come_back_as_they_were() -> None:
    """Including a path and a manifest that are not UTF-8, and a manifest that is missing or too large."""
    odd = b"na\xefve.py".decode("utf-8", "surrogateescape")
    for commit in (
        COMMIT,
        replace(COMMIT, paths=(odd, "日本.py"), manifest=b"- \xff\n", manifest_size=4, signature="valid"),
        replace(COMMIT, paths=(), paths_complete=False, manifest=None, manifest_size=None),
        replace(COMMIT, manifest=None, manifest_size=300_000),
        replace(COMMIT, paths=None, paths_complete=False),
    ):
        facts = PlanInputs(yaml_path="deep/valohai.yaml", commit=commit)
        packed = pack(facts)
        assert packed is not None
        assert unpack(packed) == facts


def test_more_than_can_be_kept_is_not_kept() -> None:
    """A long list of file names must not fill the store."""
    paths = tuple(hashlib.sha256(bytes(str(number), "ascii")).hexdigest() for number in range(5_000))
    assert pack(PlanInputs(yaml_path="valohai.yaml", commit=replace(COMMIT, paths=paths))) is None


def test_facts_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed and unpacked: facts exactly at the limit are stored, a byte more is not."""
    facts = PlanInputs(yaml_path="valohai.yaml", commit=COMMIT)
    packed = pack(facts)
    assert packed is not None
    unpacked = len(zstandard.decompress(packed))
    for name, size in (("_MAX_PACKED_BYTES", len(packed)), ("_MAX_UNPACKED_BYTES", unpacked)):
        with monkeypatch.context() as patch:
            patch.setattr(f"gateway.worker.plan_inputs.{name}", size)
            assert pack(facts) == packed
            patch.setattr(f"gateway.worker.plan_inputs.{name}", size - 1)
            assert pack(facts) is None


def test_what_unpacks_to_megabytes_is_not_kept() -> None:
    """However well they compress: a dry run would have to unpack them."""
    for size, is_kept in ((3_000_000, True), (5_000_000, False)):
        facts = PlanInputs(yaml_path="valohai.yaml", commit=replace(COMMIT, message="x" * size))
        assert (pack(facts) is not None) == is_kept


def test_what_an_earlier_version_has_kept_is_read() -> None:
    """It did not record whether paths were read: they were."""
    packed = pack(PlanInputs(yaml_path="valohai.yaml", commit=replace(COMMIT, paths=("a.py",))))
    assert packed is not None
    fields = json.loads(zstandard.decompress(packed))
    del fields["paths_read"]
    assert unpack(zstandard.compress(json.dumps(fields).encode())).commit.paths == ("a.py",)


def test_an_earlier_version_reads_what_is_kept() -> None:
    """It reads unread paths as too many, and so as incomplete."""
    packed = pack(
        PlanInputs(yaml_path="valohai.yaml", commit=replace(COMMIT, paths=None, paths_complete=True))
    )
    assert packed is not None
    fields = json.loads(zstandard.decompress(packed))
    assert (fields["paths"], fields["paths_complete"]) == ([], False)


PUSH = PendingUpdate(
    seq=1,
    connection="c1",
    delivery="d1",
    ref="refs/heads/topic",
    kind="branch",
    name="topic",
    before=None,
    after="b" * 40,
    action="create",
    generation=1,
    pusher="ada",
    repository={"id": "7", "full_name": "acme/digits", "default_branch": "main"},
    pull_request=None,
    tries=0,
    received_at=NOW,
)
PULL_REQUEST = {"number": "5", "source": "topic", "target": "release", "from_fork": True, "title": "More"}


def test_what_a_ref_is_compared_with() -> None:
    """A new branch with the default branch, a pull request and a merge group with their target."""
    assert base_branch(PUSH) == "main"
    assert base_branch(replace(PUSH, repository={})) is None
    assert base_branch(replace(PUSH, pull_request=PULL_REQUEST)) == "release"
    queued = "gh-readonly-queue/release/1.0/pr-5-" + "a" * 40
    assert base_branch(replace(PUSH, kind="merge_group", name=queued)) == "release/1.0"
    assert base_branch(replace(PUSH, kind="tag", name=queued)) == "main"
    assert base_branch(replace(PUSH, kind="pull_request", name=queued)) == "main"


def test_the_repository_id_is_the_one_that_was_learned() -> None:
    """The payload's id is used only if none was learned."""
    assert connection_facts(made(repository_id="9"), PUSH).repository_id == "9"
    assert connection_facts(made(repository_id=None), PUSH).repository_id == "7"


def test_a_pull_request_is_planned_with_its_facts() -> None:
    """And with no other field of its payload; a push has none."""
    assert update_facts(PUSH).pull_request is None
    assert update_facts(replace(PUSH, pull_request=PULL_REQUEST)).pull_request == PullRequestFacts(
        number="5", source="topic", target="release", from_fork=True
    )
