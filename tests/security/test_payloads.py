"""S2: each limit on what is published, to the byte, at both doors: where our own clients make payloads, and where anybody's arrive."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import orjson
import pytest
from msgspec import Raw

from jsonqueue.client.payload import encode_value
from jsonqueue.config import Config
from jsonqueue.core import payload
from jsonqueue.core.payload import all_sound, fault_of
from jsonqueue.core.publishing import Admission
from jsonqueue.core.taken import TakenIds
from jsonqueue.errors import BadFrame, InvalidTask, PublishRejected
from jsonqueue.event import EventOwner, decoder_for
from jsonqueue.task import TaskIn

LIMITS = Config(string_max_bytes=256 * 1024)

EDGES: dict[str, tuple[Config, Any]] = {
    "bytes": (Config(), lambda extra: ["x" * (1024 * 1024 - 4 + extra)]),
    "a few bytes": (Config(payload_max_bytes=10), lambda extra: "x" * (8 + extra)),
    "depth": (Config(), lambda extra: _nested(64 + extra)),
    "depth by objects": (Config(depth_max=3), lambda extra: _nested(3 + extra, in_objects=True)),
    "keys": (Config(), lambda extra: {str(number): 0 for number in range(10_000 + extra)}),
    "keys of many objects": (Config(keys_max=40), lambda extra: [{"a": ":", "b": 0}] * 20 + [{"c": 0}] * extra if extra > 0 else
                             [{"a": ":", "b": 0}] * (20 + extra)),
    "a string": (LIMITS, lambda extra: ["short", "x" * (256 * 1024 + extra)]),
    "a string with quotes": (LIMITS, lambda extra: {"a": '"' * (128 * 1024) + "x" * extra if extra > 0 else '"' * (128 * 1024 + extra)}),
    "a key": (Config(string_max_bytes=20), lambda extra: {"k" * (20 + extra): 0}),
}  # fmt: skip


def _nested(levels: int, *, in_objects: bool = False) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"[": value} if in_objects else [value]
    return value


def _taken(text: bytes, config: Config) -> str:
    """Empty if a broker takes it, alone, in company, and as a result; else why not."""
    verdict = Admission(TakenIds(), last_task=0, config=config).decide([[TaskIn(id="a", data=Raw(text))]])[0]
    many = Admission(TakenIds(), last_task=0, config=config).decide([[TaskIn(id=f"t{n}", data=Raw(text)) for n in range(3)]])[0]
    assert len(many.accepted) == 3 * len(verdict.accepted)
    if verdict.refused:
        assert not all_sound([Raw(text)], config)
    return verdict.refused[0].reason if verdict.refused else ""


@pytest.mark.parametrize(("extra", "fits"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("limit", EDGES)
def test_each_limit_to_the_last(limit: str, extra: int, fits: bool) -> None:
    """n - 1 and n are taken, n + 1 is not: by our own client, which raises before it sends, and by a broker."""
    config, make = EDGES[limit]
    value = make(extra)
    assert bool(_taken(orjson.dumps(value), config)) is not fits
    if "bytes" not in limit:  # the same with spaces between its parts
        assert bool(_taken(json.dumps(value).encode(), config)) is not fits
    if fits:
        assert bytes(encode_value(value, what="payload", config=config)) == orjson.dumps(value)
    else:
        with pytest.raises(InvalidTask) as caught:
            encode_value(value, what="payload", config=config)
        assert caught.value.hint


def test_a_long_text_needs_no_setting() -> None:
    """A string may be as long as the payload, unless the queue's owner says otherwise."""
    text = "x" * 300 * 1024
    assert not _taken(orjson.dumps({"text": text}), Config())
    assert encode_value({"text": text}, what="payload", config=Config())


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (b"9223372036854775807", True), (b"18446744073709551615", True), (b"18446744073709551616", False), (b"99999999999999999999", False),
        (b"-9223372036854775808", True), (b"-9223372036854775809", False), (b"-0", True), (b"1" * 19, True), (b"1" * 5000, False),
        (b'"99999999999999999999"', True), (b"1e308", True), (b"1.7976931348623157e308", True), (b"1e309", False), (b"-1e309", False),
        (b"99999999999999999999.0", True), (b"1e-400", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [b"%s", b'{"a":[%s]}', b'[1, {"b": %s}]'])
def test_figures_to_the_last(text: bytes, fits: bool, form: bytes) -> None:
    """Integers of 64 bit and finite numbers, wherever they stand and however the text is spaced."""
    assert bool(_taken(form % text, Config())) is not fits


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, float("nan"), float("inf"), "\ud800", {"\udfff": 1}])
def test_a_value_that_json_cannot_say_is_named_by_the_client(value: Any) -> None:
    with pytest.raises(InvalidTask, match="payload") as caught:
        encode_value([value], what="payload", config=Config())
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [b'{"a":1,"a":1}', b'[{"x":{"b":1,"c":2,"b":3}}]', b'{ "a" : 1 , "a" : 2 }', rb'{"a":1,"\u0061":2}', b'{"":1,"":2}'],
)
def test_a_key_twice_in_one_object_is_refused(text: bytes) -> None:
    """Whichever of the two counts, some reader takes the other: also where it is written in two ways."""
    assert "twice in one object" in _taken(text, Config())


@pytest.mark.parametrize("text", [b'[{"a":1},{"a":1}]', b'{"a":{"a":"a"}}', b'{"a":1,"A":2}', b' {"a": [1,\n\t2]} ', b"1.50", rb'"\u0041"'])
def test_what_is_only_written_otherwise_is_taken(text: bytes) -> None:
    assert not _taken(text, Config())


@pytest.mark.parametrize(
    "text",
    [
        b"NaN", b"Infinity", b"-Infinity", rb'"\ud800"', rb'"\udc00\ud800"', rb'{"\ud800":1}', b"01", b"[1,]", b'"\x00"',
        b'"\x1f"', b"1 2", b"", b"{1:2}",
    ],
)  # fmt: skip
def test_what_is_no_json_is_no_frame(text: bytes) -> None:
    """Found while its frame is taken apart; and a judge who sees it all the same refuses it."""
    with pytest.raises(BadFrame):
        decoder_for(EventOwner.PUBLISHER)(b'{"type":"write","request":1,"tasks":[{"id":"a","data":' + text + b"}]}")
    if text:
        assert fault_of(Raw(text), Config())


@pytest.mark.parametrize("text", [b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf5\x80\x80\x80"', b'{"\x80":1}', b'"\xe2\x28\xa1"'])
def test_what_is_no_text_is_refused(text: bytes) -> None:
    """Stray bytes, over-long forms, halves of characters, characters beyond the last: the frame passes, the payload does not."""
    (task,) = decoder_for(EventOwner.PUBLISHER)(b'{"type":"write","request":1,"tasks":[{"id":"a","data":' + text + b"}]}").tasks
    assert "not valid UTF-8" in _taken(bytes(task.data), Config())


def test_nothing_that_is_too_deep_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The brackets are counted on the bytes, before any parser that goes down with them: whatever the text is."""
    deepest = 0

    def watched(text: bytes, real: Any = orjson.loads) -> Any:
        nonlocal deepest
        deepest = max(deepest, text.count(b"[") - 1)
        return real(text)

    monkeypatch.setattr(payload.orjson, "loads", watched)
    for levels in (64, 65, 200, 50_000):
        assert bool(_taken(b"[" * levels + b"]" * levels, Config())) is (levels > 64)
        assert bool(_taken(b"[" * levels + b" ]" * levels, Config())) is (levels > 64)
    assert deepest <= 3 * 64


def test_one_look_for_all_and_a_look_at_each_agree() -> None:
    """What passes the quick look has no fault; what has none is read alike by three readers."""
    chance = Random(5)
    values = [b'"a"', b"1", b"-1", b"1e9", b"9" * 19, b"9" * 20, b"1e400", b"null", rb'"\n"']
    pieces = [*values, b"[", b"]", b"{", b"}", b":", b",", b" ", b"\n"]
    is_json = msgspec.json.Decoder(Raw).decode
    sound = odd = 0
    for _ in range(60_000):
        text = b"".join(chance.choices(pieces, k=chance.randrange(1, 8)))
        try:
            is_json(text)
        except msgspec.DecodeError:
            continue  # no frame could bring it
        fault = fault_of(Raw(text), Config())
        if all_sound([Raw(text), Raw(b"1")], Config()):
            assert fault is None, text
        try:
            alike = json.loads(text) == orjson.loads(text)
        except ValueError:
            alike = False
        assert (fault is None) <= alike, text
        sound, odd = sound + (fault is None), odd + (fault is not None)
    assert sound > 2_000
    assert odd > 500


def test_of_nothing_all_is_sound() -> None:
    assert all_sound([], Config())


def test_a_refusal_names_the_task_the_limit_and_the_way_out() -> None:
    (refusal,) = (
        Admission(TakenIds(), last_task=0, config=Config(keys_max=1)).decide([[TaskIn(id="a", data=Raw(b'{"a":1,"b":2}'))]])[0].refused
    )
    said = str(PublishRejected("thumbnail-7", reason=refusal.reason))
    assert "thumbnail-7" in said
    assert "2 keys" in said
    assert "raise keys_max in jsonqueue.toml" in said
