"""Bodies that came before: what is remembered of them is what reading them again would have given."""

import json
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.pure.cache_pairs import differing, request

from breakwater_gateway.cache.key import Key
from breakwater_gateway.config.model import CachePolicy, Deployment, Model
from breakwater_gateway.router import repeats
from breakwater_gateway.router.eligible import Eligible
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.repeats import Repeats
from breakwater_gateway.router.requests import decode_request
from breakwater_protocol.chat import Asked, ChatRequest, EmbeddingsRequest, NativeRequest

SCOPED = CachePolicy(exact_s=60.0, scope="user", sampled=True)


def read(api: str, body: bytes) -> Asked:
    asked = decode_request(body, api=api, limit=1 << 20)
    assert isinstance(asked, ChatRequest | EmbeddingsRequest | NativeRequest)
    return asked


def chat(text: str) -> bytes:
    fields = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps(fields).encode()


class Seen:
    """A router's memory, or the lack of one: keys of requests as they come."""

    def __init__(self, *, remembers: bool) -> None:
        self.eligible = Eligible()
        self.repeats = Repeats()
        self.remembers = remembers

    def key(self, api: str, body: bytes, place: dict[str, Any]) -> object:
        known = self.repeats.find(api, body) if self.remembers else None
        asked = read(api, body) if known is None else known.asked
        assert asked == read(api, body)
        model = Model("m", (Deployment("a", "p", place["points_to"], "openai", "https://x"),))
        found = self.eligible.key(
            tenant=place["tenant"],
            api=api,
            model=Model("m", model.deployments, cache=SCOPED),
            asked=asked,
            body=body,
            options=Options(user=place["scope"], cache_namespace=place.get("namespace", "")),
            native={},
            repeat=known,
        )
        if self.remembers and known is None:
            self.repeats.keep(api, body, asked)
        return found


@given(seed=st.integers(0, 1 << 30), order=st.lists(st.integers(0, 5), max_size=30))
def test_what_is_remembered_is_what_reading_again_would_give(seed: int, order: list[int]) -> None:
    """Requests that differ in one thing or in none, again and again and between each other."""
    rng = random.Random(seed)
    pool = [request(rng) for _ in range(2)]
    for _ in range(2):
        one, other, _ = differing(rng)
        pool += [one, other]
    with_memory, without = Seen(remembers=True), Seen(remembers=False)
    for at in order:
        asked = pool[at]
        body = json.dumps(asked.fields).encode()
        found = with_memory.key(asked.api, body, asked.place)
        assert found == without.key(asked.api, body, asked.place)


def test_one_body_asked_by_others_or_elsewhere_is_another_question() -> None:
    seen, body = Seen(remembers=True), chat("hello")
    places = [
        {"tenant": tenant, "scope": user, "points_to": target, "namespace": space}
        for tenant in ("t", "u")
        for user in ("ann", "bob")
        for target in ("gpt-4o", "gpt-4o-mini")
        for space in ("", "v2")
    ]
    for _ in range(3):
        keys = [seen.key("chat", body, place) for place in places]
        assert all(isinstance(key, Key) for key in keys)
        assert len({key.digest for key in keys if isinstance(key, Key)}) == len(places)


def test_a_body_of_another_api_is_another_body() -> None:
    known, body = Repeats(), chat("hello")
    known.keep("chat", body, read("chat", body))
    assert known.find("messages", body) is None
    assert isinstance(known.find("chat", bytes(bytearray(body))), repeats.Repeat)


def test_memory_is_bounded_in_bytes_and_large_bodies_are_left_alone() -> None:
    known = Repeats()
    large = chat("x" * repeats.BODY_MAX)
    known.keep("chat", large, read("chat", large))
    assert len(known) == 0
    bodies = [chat(f"{number}" + "x" * 20_000) for number in range(1_000)]
    for body in bodies:
        known.keep("chat", body, read("chat", body))
        assert len(known) * 2 * 20_000 <= repeats.BYTES_MAX
    body = bodies[-1]
    assert known.find("chat", body) is not None
    known.forget()
    assert known.find("chat", body) is None
    known.keep("chat", body, read("chat", body))
    assert known.find("chat", body) is not None


def test_one_body_does_not_remember_without_bound_whose_it_was() -> None:
    seen, body = Seen(remembers=True), chat("hello")
    for number in range(3 * repeats.QUESTIONS_MAX):
        seen.key("chat", body, {"tenant": f"t{number}", "scope": "ann", "points_to": "p"})
    known = seen.repeats.find("chat", body)
    assert known is not None
    assert 0 < len(known.keys) <= repeats.QUESTIONS_MAX


def test_whose_questions_they_were_counts_among_the_bytes_that_are_bounded() -> None:
    seen = Seen(remembers=True)
    for number in range(300):
        body = chat(f"{number} " + "x" * 4_000)
        for namespace in range(repeats.QUESTIONS_MAX):
            place = {"tenant": "t", "scope": "ann", "points_to": "p", "namespace": f"n{namespace}"}
            seen.key("chat", body, place)
        held = seen.repeats._known.values()
        texts = sum(len(k.text) for each in held for k in each.keys.values() if isinstance(k, Key))
        assert texts <= repeats.BYTES_MAX
    assert len(seen.repeats) > 10
    assert seen.repeats._bytes <= repeats.BYTES_MAX
    seen.repeats.forget()
    assert seen.repeats._bytes == 0


def test_what_is_learned_of_a_body_that_was_let_go_counts_no_more() -> None:
    known, body = Repeats(), chat("hello")
    known.keep("chat", body, read("chat", body))
    gone = known.find("chat", body)
    assert gone is not None
    known.forget()
    gone.keep(("t",), Key("d", "p", 0.0, False, "hello"))
    assert known._bytes == 0
