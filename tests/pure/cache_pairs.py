"""Pairs of requests that look alike: one difference each, or none but the spelling."""

import json
import random
from collections.abc import Callable
from typing import Any, Final

from breakwater_gateway.cache.key import Key, NotCached, head_of, key_of

Fields = dict[str, Any]

_WORDS: Final = ("ship", "tide", "Öl", "é", "e\u0301", "0", "no", "not", "price", "42", " ", "…")
_APIS: Final = ("chat", "messages", "responses", "generate", "embeddings")


class Asked:
    """One request, as a router sees it."""

    def __init__(self, api: str, fields: Fields, **place: str) -> None:
        self.api = api
        self.fields = fields
        self.place: dict[str, Any] = {
            "tenant": "t",
            "scope": "tenant",
            "model": "m",
            "points_to": "p",
            **place,
        }

    def key(self, body: bytes | None = None) -> Key | NotCached:
        data = json.dumps(self.fields).encode() if body is None else body
        return key_of(head_of(api=self.api, **self.place), data, api=self.api)

    def copy(self) -> "Asked":
        return Asked(self.api, json.loads(json.dumps(self.fields)), **self.place)


def text(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 6)))


def request(rng: random.Random) -> Asked:
    api = rng.choice(_APIS)
    fields: Fields = {"model": "m"}
    if api == "embeddings":
        fields["input"] = [text(rng) for _ in range(rng.randint(1, 3))]
        return Asked(api, fields)
    turns = [text(rng) for _ in range(rng.choice((1, 1, 3, 5)))]
    roles = ("user", "model" if api == "generate" else "assistant")
    if api == "generate":
        fields["contents"] = [
            {"role": roles[i % 2], "parts": [{"text": said}]} for i, said in enumerate(turns)
        ]
        fields["systemInstruction"] = {"parts": [{"text": text(rng)}]}
        fields["generationConfig"] = {"temperature": 0, "topP": 0.5, "maxOutputTokens": 100}
        fields["tools"] = [{"functionDeclarations": [{"name": "f", "description": text(rng)}]}]
        return Asked(api, fields)
    messages = [{"role": roles[i % 2], "content": said} for i, said in enumerate(turns)]
    if api == "chat":
        messages.insert(0, {"role": "system", "content": text(rng)})
    else:
        fields["system" if api == "messages" else "instructions"] = text(rng)
    fields["input" if api == "responses" else "messages"] = messages
    fields |= {"temperature": 0, "top_p": 0.5, "max_tokens": 100}
    if rng.random() < 0.5:
        fields["tools"] = [{"type": "function", "name": "f", "description": text(rng)}]
    return Asked(api, fields)


# ---- one difference each


def _turns(asked: Asked) -> list[Fields]:
    names = {"generate": "contents", "responses": "input"}
    found: list[Fields] = asked.fields[names.get(asked.api, "messages")]
    return found


def _say(turn: Fields, said: str) -> None:
    if "parts" in turn:
        turn["parts"] = [{"text": said}]
    else:
        turn["content"] = said


def _other_place(name: str) -> Callable[[Asked, random.Random], bool]:
    def change(asked: Asked, rng: random.Random) -> bool:
        if name == "scope":
            asked.place[name] = rng.choice(("user:a", "user:b", "key:a"))
        elif name == "namespace":
            asked.place[name] = f"n{rng.randrange(9)}"
        else:
            asked.place[name] += rng.choice((".", "x", '"', "\u0301"))
        return True

    return change


def _other_system(asked: Asked, rng: random.Random) -> bool:
    for name in ("system", "instructions"):
        if name in asked.fields:
            asked.fields[name] += rng.choice((" ", ".", "\n"))
            return True
    if asked.api == "generate":
        asked.fields["systemInstruction"]["parts"][0]["text"] += "."
        return True
    if asked.api == "chat":
        asked.fields["messages"][0]["content"] += " "
        return True
    return False


def _other_parameter(asked: Asked, rng: random.Random) -> bool:
    if asked.api == "embeddings":
        asked.fields["dimensions"] = rng.randint(1, 999)
        return True
    config = asked.fields.get("generationConfig", asked.fields)
    name, value = rng.choice(
        (
            ("temperature", 0.1),
            ("top_p", 0.25),
            ("max_tokens", 101),
            ("seed", 7),
            ("stop", ["x"]),
            ("reasoning_effort", "low"),
            ("frequency_penalty", 0.5),
            ("logit_bias", {"5": 1}),
            ("something_new", True),
        )
    )
    config[name] = value
    return True


def _other_tool(asked: Asked, rng: random.Random) -> bool:
    if asked.api == "embeddings":
        return False
    if asked.api == "generate":
        asked.fields["tools"][0]["functionDeclarations"][0]["description"] += "!"
    elif asked.fields.get("tools"):
        asked.fields["tools"][0]["description"] += rng.choice((" ", "!"))
    else:
        asked.fields["tools"] = [{"type": "function", "name": "g"}]
    return True


def _other_earlier_turn(asked: Asked, rng: random.Random) -> bool:
    if asked.api == "embeddings" or len(turns := _turns(asked)) < 3:
        return False
    turn = turns[-2]
    said = turn["parts"][0]["text"] if "parts" in turn else turn["content"]
    match rng.randrange(3):
        case 0:
            _say(turn, said + " ")
        case 1:
            turns[-2], turns[-3] = turns[-3], turns[-2]
        case _:
            del turns[-3:-1]
    return True


DIFFERENCES: Final[dict[str, Callable[[Asked, random.Random], bool]]] = {
    "tenant": _other_place("tenant"),
    "scope": _other_place("scope"),
    "namespace": _other_place("namespace"),
    "model": _other_place("model"),
    "what the model points to": _other_place("points_to"),
    "system prompt": _other_system,
    "parameter": _other_parameter,
    "tool": _other_tool,
    "earlier turn": _other_earlier_turn,
}


def differing(rng: random.Random) -> tuple[Asked, Asked, str]:
    """Two requests that no answer may cross between, and what sets them apart."""
    while True:
        asked = request(rng)
        what = rng.choice(tuple(DIFFERENCES))
        other = asked.copy()
        if DIFFERENCES[what](other, rng) and (asked.fields, asked.place) != (
            other.fields,
            other.place,
        ):
            return asked, other, what


# ---- the same, spelled otherwise


def respelled(asked: Asked, rng: random.Random) -> bytes:
    """The body with its keys in another order, numbers and text spelled otherwise, and a stream wished."""
    fields = {**asked.fields, "user": text(rng), "metadata": {"k": text(rng)}}
    if asked.api in {"messages", "generate", "embeddings"}:
        del fields["user"]
    if asked.api in {"generate", "embeddings"}:
        del fields["metadata"]
    if asked.api != "embeddings":
        fields["stream"] = rng.random() < 0.5
    return _write(fields, rng).encode()


def _write(value: object, rng: random.Random) -> str:
    space = rng.choice(("", " ", "\n\t"))
    match value:
        case dict():
            names = list(value)
            rng.shuffle(names)
            inside = (f"{_write(n, rng)}{space}:{space}{_write(value[n], rng)}" for n in names)
            return "{" + f",{space}".join(inside) + "}"
        case list():
            return "[" + f",{space}".join(_write(each, rng) for each in value) + "]"
        case bool() | None:
            return json.dumps(value)
        case int():
            return rng.choice((str(value), f"{value}.0", f"{value}e0", f"{value}.00E+0"))
        case float():
            return rng.choice((repr(value), f"{value:.6f}", f"{value:.3e}"))
        case str():
            if rng.random() < 0.5 and "e\u0301" in value:
                value = value.replace("e\u0301", "é")
            return json.dumps(value, ensure_ascii=rng.random() < 0.5)
        case _:
            raise TypeError(type(value))
