"""Any request gives a Delivery or Unverified, an Event or Malformed, and never another exception."""

import json
from urllib.parse import parse_qs, quote_plus, unquote_to_bytes, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import PROVIDERS, github
from providers.errors import Malformed, ProviderError, Undecodable, Unverified
from providers.model import Event, Provider, VerifiedRequest
from providers.payload import form_payload
from testing.corpus import NOW, SECRET, cases

EVENTS = {
    name: sorted({case.event for case in cases() if case.provider_name == name} | {"", "nonsense"})
    for name in PROVIDERS
}
HEADER_NAMES = sorted({header for case in cases() for header in case.headers} | {"x-forgejo-signature"})

every_provider = pytest.mark.parametrize("name", PROVIDERS)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["a" * 40, "0" * 40, "refs/heads/main", "branch", "tag", "opened", "git.push"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["ref", "repository", "id", "push"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)


def parses(provider: Provider, delivery: VerifiedRequest) -> Event | None:
    """Return the event, or None where the delivery is malformed."""
    try:
        event = provider.parse(delivery)
    except Malformed:
        return None
    assert isinstance(event, Event)
    return event


@every_provider
@given(
    headers=st.dictionaries(st.sampled_from(HEADER_NAMES), st.text()),
    body=st.binary(),
    secrets=st.lists(st.binary(), max_size=3),
    auth=st.dictionaries(st.sampled_from(["user", "header"]), st.text()),
)
def test_any_headers_and_any_bytes(
    name: str, headers: dict[str, str], body: bytes, secrets: list[bytes], auth: dict[str, str]
) -> None:
    """Any request gives a Delivery or a ProviderError."""
    provider = PROVIDERS[name]
    try:
        delivery = provider.verify(headers=headers, body=body, secrets=secrets, auth=auth, now=NOW)
    except Unverified:
        return
    parses(provider, delivery)


@every_provider
@given(data=st.data(), body=st.binary() | json_values.map(json.dumps).map(str.encode))
def test_any_bytes_from_a_proven_sender(name: str, data: st.DataObject, body: bytes) -> None:
    """A proven sender's bytes, JSON or not, give an Event or Malformed."""
    provider, event = PROVIDERS[name], data.draw(st.sampled_from(EVENTS[name]))
    headers = provider.sign(event=event, body=body, secret=SECRET, delivery="d1", now=NOW)
    try:
        delivery = provider.verify(headers=headers, body=body, secrets=[SECRET], auth={}, now=NOW)
    except Unverified:
        assert event == "diagnostics:ping"  # too large for one
        return
    parses(provider, delivery)


@given(
    document=st.text(st.characters(exclude_categories=["Cs"])),
    others=st.dictionaries(st.from_regex(r"[a-z&= é]{0,6}", fullmatch=True), st.just("%7B&="), max_size=3),
)
def test_a_form_is_read_as_urllib_reads_it(document: str, others: dict[str, str]) -> None:
    """Our percent decoder, many times faster, gives the same result as the standard library's."""
    form = urlencode(others | {"payload": document})
    assert form_payload(form.encode()).decode() == parse_qs(form, keep_blank_values=True)["payload"][0]


@given(quoted=st.from_regex(rb"([a-zA-Z0-9._=+;/-]|%[0-9A-Fa-f]{2}){0,40}", fullmatch=True))
def test_any_well_formed_value_of_a_form_is_read_as_urllib_reads_it(quoted: bytes) -> None:
    """Also if more or less is encoded than by browsers."""
    expected = parse_qs("payload=" + quoted.decode(), keep_blank_values=True, encoding="latin-1")["payload"][
        0
    ]
    assert form_payload(b"payload=" + quoted) == expected.encode("latin-1")


@pytest.mark.parametrize(
    "form",
    [
        b"payload={}&payload={}",
        b"payload={}&%70ayload={}",
        b"other={}",
        b"",
        b"payload=%",
        b"payload=%4",
        b"payload=%u2028",
        b"a=1;payload={}",
        b"&" * 100_000,
    ],
)
def test_a_form_that_can_be_read_in_two_ways_is_undecodable(form: bytes) -> None:
    """Two payloads, none, half an escape, a semicolon as separator, too many fields."""
    with pytest.raises(Undecodable):
        form_payload(form)


def test_a_semicolon_separates_nothing() -> None:
    """It is an ordinary character: old parsers took it for an ampersand."""
    assert form_payload(b"payload=a;payload=b") == b"a;payload=b"


def test_25_mb_of_percent_signs_are_read_at_once() -> None:
    """The standard library takes seconds and gigabytes for it."""
    assert form_payload(b"payload=" + b"%41" * 8_000_000) == b"A" * 8_000_000


@pytest.mark.parametrize("piece", range(3, 12))
def test_no_escape_is_cut_in_two(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Wherever a long form is split into pieces for decoding."""
    monkeypatch.setattr("providers.payload._PIECE", piece)
    quoted = b"%41b%C3%A9+=c%25%253D%0A" * 20
    assert form_payload(b"payload=" + quoted) == unquote_to_bytes(quoted.replace(b"+", b" "))
    for broken in (b"a%", b"a%4", b"%%41", b"%4%41"):
        with pytest.raises(Undecodable):
            form_payload(b"payload=" + quoted + broken)


@pytest.mark.parametrize(("name", "header"), [("gitea", "x-gitea-signature"), ("gogs", "x-gogs-signature")])
def test_a_form_is_decoded_before_it_is_verified_only_within_limits(name: str, header: str) -> None:
    """The signature is over the document inside: without one, or in a large form, it stays encoded."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    large = b"payload=" + b"%41" * (5 * 1024 * 1024 // 3)

    def refusal(headers: dict[str, str], body: bytes) -> str:
        with pytest.raises(Unverified) as refused:
            PROVIDERS[name].verify(headers={**form, **headers}, body=body, secrets=[SECRET], auth={}, now=NOW)
        return str(refused.value)

    assert "choose application/json" in refusal({header: "0" * 64}, large)
    assert "header: is the secret set" in refusal({}, large)
    assert "header: is the secret set" in refusal({}, b"payload=%")
    assert "there is nothing to verify" in refusal({header: "0" * 64}, b"payload=%")


PUSH = next(case for case in cases() if str(case) == "github/push")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b" ",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"x":' + b"9" * 10_000 + b"}",
        b'{"x":"\xff"}',
        b"\xef\xbb\xbf" + PUSH.body,
        PUSH.body.decode().encode("utf-16"),
        PUSH.body.decode().encode("utf-32"),
        PUSH.body + b"{}",
        b'"text"'[:-1],
    ],
    ids=lambda document: repr(document[:12]),
)
@every_provider
def test_what_is_no_json_is_undecodable(name: str, document: bytes) -> None:
    """Cut, too deep, numbers too long, bytes that are not UTF-8, byte order marks: one documented error."""
    provider = PROVIDERS[name]
    for event in set(EVENTS[name]) - {"diagnostics:ping"}:  # whose body is never read
        with pytest.raises(Undecodable):
            provider.parse(VerifiedRequest(event=event, id=None, secret=0, content=document))


@pytest.mark.parametrize("document", [b"[]", b'"text"', b"1", b"null", b"NaN", b"-Infinity", b"true"])
@every_provider
def test_json_that_is_no_object_is_malformed(name: str, document: bytes) -> None:
    """The sender is proven and the body is JSON, but it has no fields."""
    with pytest.raises(Malformed):
        PROVIDERS[name].parse(VerifiedRequest(event="nonsense", id=None, secret=0, content=document))


@pytest.mark.parametrize(
    "half",
    [
        r"\ud83d",
        r"cut \uD83D",
        r"\udc00\ud83d",
        r"\\\ud83d",
        r"\ud83d\\udc4d",
        r"\ud83d\ude00\ud83d",
        r"\ud83d\n",
    ],
)
def test_an_emoji_that_was_cut_in_half_costs_no_push(half: str) -> None:
    """Providers that cut texts by UTF-16 units write half a pair; in a ref it is refused."""
    odd = PUSH.body.replace(b'{"ref":', b'{"title":"' + half.encode() + b'","ref":', 1)
    assert PUSH.parse(odd) == PUSH.parse()
    with pytest.raises(Malformed, match=r"^ref: "):
        PUSH.parse(PUSH.body.replace(b"refs/heads/main", b"refs/heads/" + half.encode()))


def test_a_whole_emoji_is_read_beside_half_of_one() -> None:
    """Only the field with the half is invalid."""
    body = PUSH.body.replace(b'{"ref":', rb'{"x":"\ud83d","ref":', 1)
    event = PUSH.parse(body.replace(b"refs/heads/main", rb"refs/heads/\ud83d\ude00"))
    assert [update.name for update in event.updates] == ["\N{GRINNING FACE}"]


def test_the_last_of_two_equal_keys_counts() -> None:
    """A signed body has a single meaning, even if its first lines suggest another."""
    body = PUSH.body.replace(b'{"ref":', b'{"ref":"refs/heads/other","ref":', 1)
    assert [update.ref for update in PUSH.parse(body).updates] == ["refs/heads/main"]


def test_a_form_of_github_is_unpacked_after_it_was_verified() -> None:
    """A form that cannot be read is the proven sender's mistake, not a forgery."""
    with pytest.raises(Undecodable):
        github.parse(VerifiedRequest(event="push", id=None, secret=0, content=b"payload=%zz", form=True))
    form = ("payload=" + quote_plus(PUSH.body.decode())).encode()
    assert (
        github.parse(VerifiedRequest(event="push", id=None, secret=0, content=form, form=True))
        == PUSH.parse()
    )


def test_errors_are_sentences_that_name_the_field() -> None:
    """People read them on the delivery."""
    case = next(case for case in cases() if str(case) == "bitbucket/push")
    with pytest.raises(ProviderError, match=r"^push\.changes\.0\.old\.target\.hash: "):
        case.parse(case.body.replace(b'"hash":"', b'"hash":[],"x":"'))
