"""What a ref update was planned from comes back as it was."""

import hashlib
from dataclasses import replace

from gateway.planning import KeptFacts, pack, unpack
from tests.plan.facts import COMMIT


def test_facts_come_back_as_they_were() -> None:
    """Also a path and a manifest that are no UTF-8, and a manifest that is not there or too large."""
    odd = b"na\xefve.py".decode("utf-8", "surrogateescape")
    for commit in (
        COMMIT,
        replace(COMMIT, paths=(odd, "日本.py"), manifest=b"- \xff\n", manifest_size=4, signature="valid"),
        replace(COMMIT, paths=(), paths_complete=False, manifest=None, manifest_size=None),
        replace(COMMIT, manifest=None, manifest_size=300_000),
        replace(COMMIT, paths=None, paths_complete=False),
    ):
        facts = KeptFacts(yaml_path="deep/valohai.yaml", commit=commit)
        packed = pack(facts)
        assert packed is not None
        assert unpack(packed) == facts


def test_more_than_can_be_kept_is_not_kept() -> None:
    """A store of pushes is not filled with the names of all files."""
    paths = tuple(hashlib.sha256(bytes(str(number), "ascii")).hexdigest() for number in range(5_000))
    assert pack(KeptFacts(yaml_path="valohai.yaml", commit=replace(COMMIT, paths=paths))) is None
