"""Every golden delivery verifies, parses as expected, and is refused once a byte has changed."""

import pytest

from providers import PROVIDERS
from providers.errors import Unverified
from testing.corpus import CORPUS, Case, as_json, cases

CASES = cases()
FEWEST_CASES = 8

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def _proves_body(case: Case) -> bool:
    """Return whether this delivery's scheme signs the body."""
    return case.secret is not None and (case.provider.BODY_IS_SIGNED or "webhook-signature" in case.headers)


@every_case
def test_a_delivery_means_what_its_case_says(case: Case) -> None:
    """The parsed event equals expected.json."""
    assert as_json(case.parse()) == case.expected


@every_case
def test_a_delivery_is_verified_by_the_secret_that_fits(case: Case) -> None:
    """The delivery has the index of the live secret that matched."""
    assert case.verify().secret == case.secret


@every_case
def test_the_secret_may_be_any_of_the_live_ones(case: Case) -> None:
    """During a rotation the older secret is still valid, and its use is recognized."""
    newer = b"whsec_bm90IHRoaXMgb25l" if case.secrets[0].startswith(b"whsec_") else b"not this one"
    expected = None if case.secret is None else case.secret + 1
    assert case.verify(secrets=(newer, *case.secrets)).secret == expected


@pytest.mark.parametrize("case", [case for case in CASES if _proves_body(case)], ids=str)
def test_one_changed_byte_is_refused(case: Case) -> None:
    """Wherever a byte of the body changes, the signature no longer fits."""
    for position in {0, len(case.body) // 2, len(case.body) - 1}:
        changed = bytearray(case.body)
        changed[position] ^= 1
        with pytest.raises(Unverified):
            case.verify(body=bytes(changed))


@pytest.mark.parametrize("case", [case for case in CASES if case.secret is not None], ids=str)
def test_another_secret_is_refused(case: Case) -> None:
    """A sender without the secret is refused."""
    with pytest.raises(Unverified):
        case.verify(secrets=(b"another secret",))


@every_case
@pytest.mark.parametrize("secrets", [(), (b"",), (b"good", b"")], ids=["none", "empty", "one empty"])
def test_nothing_is_open_without_a_secret(case: Case, secrets: tuple[bytes, ...]) -> None:
    """A connection that has lost its secret refuses everything, also unsigned requests."""
    with pytest.raises(Unverified, match="has no secret"):
        case.verify(secrets=secrets)


@every_case
def test_no_header_that_is_kept_holds_a_secret(case: Case) -> None:
    """Only headers on the provider's list are stored: never a signature or secret."""
    kept = {name: value for name, value in case.headers.items() if name in case.provider.HEADERS}
    for name in kept:
        assert not {"signature", "token", "authorization", "secret"} & set(name.split("-"))
    assert not any(secret.decode() in value for secret in case.secrets for value in kept.values())


@pytest.mark.parametrize("case", [case for case in CASES if case.secret is not None], ids=str)
def test_the_headers_that_carry_an_id_are_declared(case: Case) -> None:
    """So that the log of a refusal can name the unparsed delivery."""
    ids = [case.headers[name] for name in case.provider.ID_HEADERS if case.headers.get(name)]
    assert case.verify().id == next(iter(ids), None)


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_has_its_golden_deliveries(name: str) -> None:
    """At least eight cases."""
    assert sum(case.provider_name == name for case in CASES) >= FEWEST_CASES


def test_every_folder_of_the_corpus_is_a_provider() -> None:
    """A misspelt folder would otherwise go unnoticed."""
    assert {folder.name for folder in CORPUS.iterdir()} <= set(PROVIDERS)
