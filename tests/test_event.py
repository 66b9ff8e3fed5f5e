from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.event import KEYS, LINE_CAP, STREAM_NAME_LIMIT, Event, EventParser, Reason, Rejection


def parsed(line: bytes, **options: object) -> Event:
    event = EventParser(**options).parse(line)  # type: ignore[arg-type]
    assert isinstance(event, Event), event
    return event


def reason(line: bytes, **options: object) -> Reason:
    rejection = EventParser(**options).parse(line)  # type: ignore[arg-type]
    assert isinstance(rejection, Rejection), rejection
    return rejection.reason


def line(**keys: object) -> bytes:
    return json.dumps({"stream": "s", "text": "t", **keys}).encode()


def test_all_keys_are_read() -> None:
    event = parsed(line(id="m1", ts="2024-05-06T07:08:09Z", role="user", meta={"a": [1, None]}))
    assert event == Event("s", "t", None, "m1", "2024-05-06T07:08:09Z", "user", {"a": [1, None]})


def test_tokens_stand_in_place_of_text() -> None:
    assert parsed(b'{"stream":"s","tokens":[0,9223372036854775807]}') == Event("s", tokens=[0, 2**63 - 1])


@pytest.mark.parametrize("blank", [b"\r", b" ", b"\t\r"])
def test_blanks_around_the_object_do_not_matter(blank: bytes) -> None:
    assert parsed(blank + line() + blank) == Event("s", "t")


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (b"", Reason.EMPTY),
        (b" \t\r", Reason.EMPTY),
        (b"\x00", Reason.NOT_JSON),
        (b"{", Reason.NOT_JSON),
        (b"{}{}", Reason.NOT_JSON),
        (b'{"stream":"s","text":"t",}', Reason.NOT_JSON),
        (b"{'stream':'s','text':'t'}", Reason.NOT_JSON),
        (b"\xef\xbb\xbf" + line(), Reason.NOT_JSON),
        (b'{"stream":"s","text":"a\x00b"}', Reason.NOT_JSON),
        (b'{"stream":"s","text":"\\ud8"}', Reason.NOT_JSON),
        (b'{"stream":"s","text":"\xff"}', Reason.BAD_UTF8),
        (b'{"stream":"s","text":"\xed\xa0\x80"}', Reason.BAD_UTF8),
        (b'{"stream":"s","text":"\xc0\x80"}', Reason.BAD_UTF8),
        (b'{"stream":"s","text":"caf\xc3', Reason.BAD_UTF8),
        (b'{"stream":"s","text":"\\ud800"}', Reason.LONE_SURROGATE),
        (b'{"stream":"s","text":"\\udc00\\ud800"}', Reason.LONE_SURROGATE),
        (b'{"stream":"s","text":"t","meta":{"\\ud83d":1}}', Reason.LONE_SURROGATE),
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b'{"stream":"s","text":"t","meta":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001, Reason.TOO_DEEP),
        (b"null", Reason.NOT_OBJECT),
        (b"true", Reason.NOT_OBJECT),
        (b"1", Reason.NOT_OBJECT),
        (b'"text"', Reason.NOT_OBJECT),
        (b"[]", Reason.NOT_OBJECT),
        (b"{}", Reason.MISSING_STREAM),
        (b'{"Stream":"s","text":"t"}', Reason.MISSING_STREAM),
        (line(stream=""), Reason.BAD_STREAM),
        (line(stream="a\0b"), Reason.BAD_STREAM),
        (line(stream="é" * (STREAM_NAME_LIMIT + 1)), Reason.BAD_STREAM),
        (line(stream=None), Reason.WRONG_TYPE),
        (line(stream=1), Reason.WRONG_TYPE),
        (b'{"stream":"s"}', Reason.MISSING_CONTENT),
        (line(tokens=[1]), Reason.BOTH_CONTENTS),
        (line(tokens=None), Reason.BOTH_CONTENTS),
        (line(text=""), Reason.EMPTY_TEXT),
        (line(text=None), Reason.WRONG_TYPE),
        (line(text=["t"]), Reason.WRONG_TYPE),
        (b'{"stream":"s","tokens":[]}', Reason.EMPTY_TOKENS),
        (b'{"stream":"s","tokens":"1 2"}', Reason.WRONG_TYPE),
        (b'{"stream":"s","tokens":{"0":1}}', Reason.WRONG_TYPE),
        (b'{"stream":"s","tokens":[1,-1]}', Reason.BAD_TOKEN),
        (b'{"stream":"s","tokens":[1,true]}', Reason.BAD_TOKEN),
        (b'{"stream":"s","tokens":[1,1.0]}', Reason.BAD_TOKEN),
        (b'{"stream":"s","tokens":[1,"2"]}', Reason.BAD_TOKEN),
        (b'{"stream":"s","tokens":[1,null]}', Reason.BAD_TOKEN),
        (b'{"stream":"s","tokens":[9223372036854775808]}', Reason.BAD_TOKEN),
        (b'{"stream":"s","tokens":[1,1e999]}', Reason.NON_FINITE),
        (line(id=5), Reason.WRONG_TYPE),
        (line(id=None), Reason.WRONG_TYPE),
        (line(role=1), Reason.WRONG_TYPE),
        (line(meta=[]), Reason.WRONG_TYPE),
        (line(meta=None), Reason.WRONG_TYPE),
        (line(ts=True), Reason.WRONG_TYPE),
        (line(ts=None), Reason.WRONG_TYPE),
        (b'{"stream":"s","text":"t","ts":NaN}', Reason.NON_FINITE),
        (b'{"stream":"s","text":"t","ts":1e400}', Reason.NON_FINITE),
        (b'{"stream":"s","text":"t","ts":1' + b"0" * 400 + b"}", Reason.NON_FINITE),
        (b'{"stream":"s","text":1e400}', Reason.NON_FINITE),
        (b'{"stream":"s","text":"t","x":-Infinity}', Reason.NON_FINITE),
        (b'{"stream":"s","text":"t","x":-1e400}', Reason.NON_FINITE),
        (b'{"stream":"s","text":"t","meta":{"a":[{"b":[1,2,1e400]}]}}', Reason.NON_FINITE),
        (b'{"stream":"s","text":"t","x":{"a":1},"meta":{"y":[1e400]}}', Reason.NON_FINITE),
        (b'{"stream":"s","text":"t","meta":{"a":' + b"1" * 5_000 + b"}}", Reason.NUMBER_TOO_LONG),
    ],
)  # fmt: skip
def test_each_bad_line_has_its_reason(bad: bytes, expected: Reason) -> None:
    assert reason(bad) is expected


def test_every_reason_of_the_parser_is_tested_above() -> None:
    marks = test_each_bad_line_has_its_reason.pytestmark  # type: ignore[attr-defined]
    tested = {expected for _, expected in marks[0].args[1]}
    elsewhere = {
        Reason.TOO_LONG,
        Reason.UNKNOWN_KEY,
        Reason.BAD_TIMESTAMP,
        Reason.CORRUPT_COMPRESSION,
        Reason.DUPLICATE,
        Reason.CRASHED,
        Reason.SOURCE_GAP,
    }
    assert tested | elsewhere == set(Reason)


@pytest.mark.parametrize(
    "ts",
    [
        "2024-05-06T07:08:09Z",
        "2024-02-29t23:59:60.123456789012z",
        "2024-05-06 07:08:09+23:59",
        "2000-02-29T00:00:00-00:00",
        "0000-02-29T00:00:00Z",
        "9999-12-31T23:59:59.9Z",
        0,
        -1,
        1714979289,
        1714979289.25,
        10**300,
    ],
)
def test_a_good_time_is_kept_as_given(ts: str | float) -> None:
    kept = parsed(line(ts=ts)).ts
    assert kept == ts
    assert type(kept) is type(ts)


@pytest.mark.parametrize(
    "ts",
    [
        "",
        "now",
        "2024-05-06",
        "2024-05-06T07:08:09",
        "2024-05-06T07:08Z",
        "2024-05-06T07:08:09+0200",
        "2024-05-06T07:08:09.Z",
        "2024-5-6T07:08:09Z",
        "20240506T070809Z",
        "2024-W19-1T07:08:09Z",
        "2024-00-06T07:08:09Z",
        "2024-13-06T07:08:09Z",
        "2024-05-00T07:08:09Z",
        "2024-05-32T07:08:09Z",
        "2024-04-31T07:08:09Z",
        "2023-02-29T07:08:09Z",
        "1900-02-29T07:08:09Z",
        "2024-05-06T24:00:00Z",
        "2024-05-06T07:60:09Z",
        "2024-05-06T07:08:61Z",
        "2024-05-06T07:08:09+24:00",
        " 2024-05-06T07:08:09Z",
        "2024-05-06T07:08:09Z\n",
        "2024-05-06T07:08:0\u0669Z",  # an Arabic digit nine
        "1714979289",
    ],
)
def test_a_bad_time_is_refused(ts: str) -> None:
    assert reason(line(ts=ts)) is Reason.BAD_TIMESTAMP


def test_unknown_keys_go_under_meta_and_meta_wins() -> None:
    event = parsed(b'{"stream":"s","text":"t","lang":"en","n":1,"meta":{"n":2,"z":3}}')
    assert event.meta == {"lang": "en", "n": 2, "z": 3}


def test_a_strict_parser_refuses_unknown_keys_but_not_those_in_meta() -> None:
    rejection = EventParser(strict=True).parse(b'{"stream":"s","text":"t","rol":"user"}')
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.UNKNOWN_KEY
    assert "did you mean 'role'?" in rejection.detail
    assert parsed(line(meta={"rol": 1}), strict=True).meta == {"rol": 1}


def test_the_last_of_two_equal_keys_counts() -> None:
    assert parsed(b'{"stream":"a","text":"t","stream":"b"}').stream == "b"


def test_the_vocabulary_bounds_the_tokens() -> None:
    assert parsed(b'{"stream":"s","tokens":[0,99]}', vocabulary=100).tokens == [0, 99]
    assert reason(b'{"stream":"s","tokens":[0,100]}', vocabulary=100) is Reason.BAD_TOKEN


def test_a_line_is_too_long_by_bytes_not_characters() -> None:
    bad = line(text="é" * 10).decode().encode()
    assert isinstance(EventParser(max_line_bytes=len(bad)).parse(bad), Event)
    assert reason(bad, max_line_bytes=len(bad) - 1) is Reason.TOO_LONG


def test_a_long_number_in_meta_is_kept() -> None:
    digits = "7" * 4_000
    assert parsed(b'{"stream":"s","text":"t","n":' + digits.encode() + b"}").meta == {"n": int(digits)}


def test_whatever_a_key_name_is_the_detail_stays_short() -> None:
    rejection = EventParser(strict=True).parse(line(**{"k" * 100_000: 1}))
    assert isinstance(rejection, Rejection)
    assert len(rejection.detail) < 300


@pytest.mark.parametrize("options", [{"max_line_bytes": 0}, {"max_line_bytes": LINE_CAP}, {"vocabulary": 0}])
def test_settings_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        EventParser(**options)  # type: ignore[arg-type]


SECRET = "the swan flies at midnight"


@pytest.mark.parametrize(
    "bad",
    [
        line(text=SECRET, id=5),
        line(text=SECRET, ts=SECRET),
        line(text=[SECRET]),
        line(text=SECRET, tokens=[1]),
        line(text=SECRET, stream=""),
        line(text=SECRET)[:-1],
        line(text=SECRET) + b"x",
        b'{"stream":"s","tokens":["' + SECRET.encode() + b'"]}',
        b'{"stream":"s","text":"' + SECRET.encode() + b'\xff"}',
        b'{"stream":"s","text":"' + SECRET.encode() + b'\\ud800"}',
        b'{"stream":"s","text":"' + SECRET.encode() + b'","x":NaN}',
    ],
)
def test_what_was_said_is_not_in_the_detail(bad: bytes) -> None:
    rejection = EventParser(strict=True).parse(bad)
    assert isinstance(rejection, Rejection)
    assert not set(SECRET.split()) & set(rejection.detail.replace("'", " ").replace('"', " ").split()) - {"at", "the"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def all_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    return all(map(all_finite, value)) if isinstance(value, list) else True


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*KEYS, "x", "meta2"]), JSON | st.just("t"), max_size=8), st.booleans())
def test_any_object_is_read_as_the_contract_says_or_refused(found: dict[str, object], strict: bool) -> None:
    """A model of the contract, written as plainly as can be, agrees with the parser on what is an event."""
    raw = json.dumps(found).encode()
    event = EventParser(strict=strict, vocabulary=1000).parse(raw)
    stream, tokens, ts = found.get("stream"), found.get("tokens"), found.get("ts", 0)
    good = (
        isinstance(stream, str)
        and 0 < len(stream) <= STREAM_NAME_LIMIT
        and "\0" not in stream
        and ("text" in found) != ("tokens" in found)
        and ("text" not in found or (isinstance(found["text"], str) and found["text"] != ""))
        and (
            "tokens" not in found
            or (isinstance(tokens, list) and bool(tokens) and all(type(t) is int and 0 <= t < 1000 for t in tokens))
        )
        and isinstance(found.get("id", ""), str)
        and isinstance(found.get("role", ""), str)
        and isinstance(found.get("meta", {}), dict)
        and type(ts) in (int, float)  # no text that is drawn here is a time
        and all_finite(found)
        and not (strict and set(found) - set(KEYS))
    )
    assert isinstance(event, Event) == good
    if isinstance(event, Event):
        unknown = {key: value for key, value in found.items() if key not in KEYS}
        meta = found.get("meta", {})
        assert isinstance(meta, dict)
        assert event.meta == unknown | meta
        assert (event.stream, event.text, event.tokens) == (stream, found.get("text"), tokens)
        assert (event.id, event.role, event.ts) == (found.get("id"), found.get("role"), found.get("ts"))
        json.dumps(event.meta, allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(raw: bytes) -> None:
    assert isinstance(EventParser().parse(raw), Event | Rejection)


def test_no_mangled_line_makes_the_parser_raise() -> None:
    """Bytes flipped, cut, doubled and moved in a good line: an event or a rejection, and always the same one."""
    rng = random.Random(7)
    good = line(id="m1", ts="2024-05-06T07:08:09.5Z", role="ü", meta={"a": [1.5e3, -2, "\ud83d\ude00"], "b": None})
    parser, seen = EventParser(), set()
    for _ in range(20_000):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at, to = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
            match rng.randrange(4):
                case 0 if at < len(raw):
                    raw[at] = rng.randrange(256)
                case 1:
                    del raw[at : at + rng.randint(1, 4)]
                case 2:
                    raw[at:at] = raw[at:to]
                case 3:
                    raw[at:at] = rng.choice(
                        [b"1e999", b"NaN", b"\\ud800", b"null", b'"', b"{", b"[", b"\xc3", b"9" * 50]
                    )
        found = parser.parse(bytes(raw))
        if isinstance(found, Rejection):
            seen.add(found.reason)
        else:
            assert found.stream
            assert found.text
            json.dumps(found.meta, allow_nan=False).encode()
    assert {Reason.NOT_JSON, Reason.BAD_UTF8, Reason.NON_FINITE, Reason.LONE_SURROGATE, Reason.BAD_TIMESTAMP} <= seen


def test_two_parses_share_nothing_that_can_change() -> None:
    raw = line(meta={"a": {"b": 1}})
    first, second = parsed(raw), parsed(raw)
    first.meta["a"]["b"] = 2
    assert second.meta == {"a": {"b": 1}}
