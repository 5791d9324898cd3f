"""The turns of another dialect as `system` and messages that this API takes.

System prompts stand apart, user and assistant alternate, tool results lead the user's message that follows
the call, and no text is blank. Source: Anthropic API reference, "Create a Message".
"""

import base64
import re
from typing import Final

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic import models
from breakwater_gateway.worker.wire.anthropic.native import Body

CACHE: Final = "cache_control"
"""A native field of blocks and tools that callers of OpenAI's dialect use too (OpenRouter, LiteLLM)."""


class Dropped:
    """Names of what was asked for and cannot be said, each once, in the order they were met."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self.names[name] = None

    def fields(self, extra: n.Extra, where: str = "") -> None:
        for name, value in extra.items():
            if bytes(value) != b.NULL and not (where and name == CACHE):
                self.names[f"{where}{name}"] = None


class Conversation:
    """Turns of any order in; `system` and messages of alternating roles out."""

    def __init__(self, model: models.Model, dropped: Dropped) -> None:
        self._model = model
        self._dropped = dropped
        self._system: list[Body] = []
        self._messages: list[tuple[str, list[object]]] = []
        self._results = 0
        """Tool results that lead the last message."""
        self._waiting: list[Body] = []
        """Text of system turns that may yet stand in their place: after the user, before the assistant."""
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()
        self.owes_thinking = False
        """The turn under way has called tools; with a budget the API wants its thinking before the calls."""

    def add(self, turn: n.Turn) -> None:
        dropped = self._dropped
        dropped.fields(turn.extra, "messages.")
        if turn.name:
            dropped.add("messages.name")
        if turn.role in {"system", "developer"}:
            self._add_system(turn)
            return
        blocks, results = self._blocks(turn)
        if CACHE in turn.extra and (blocks or results):
            cached((blocks or results)[-1], turn.extra)
        if turn.role == "assistant":
            if self._waiting and self._messages and self._messages[-1][0] == "user":
                self._messages.append(("system", list(self._waiting)))
                self._waiting.clear()
            self.owes_thinking = self.owes_thinking or any(
                isinstance(part, n.ToolCall) for part in turn.parts
            )
            self._say("assistant", blocks)
            return
        self._settle()
        if blocks:
            self.owes_thinking = False
        self._say("user", results, leading=True)
        self._say("user", blocks)

    def _add_system(self, turn: n.Turn) -> None:
        texts = [p for p in turn.parts if isinstance(p, n.Text | n.Refusal) and p.text.strip()]
        for part in turn.parts:
            self._dropped.fields(part.extra, "messages.")
            if not isinstance(part, n.Text | n.Refusal):
                self._dropped.add(f"messages.{_kind(part)}")
        written: list[Body] = [{"type": "text", "text": part.text} for part in texts]
        for block, part in zip(written, texts, strict=True):
            cached(block, part.extra)
        if written:
            cached(written[-1], turn.extra)
        if self._messages and self._model.system_turns:
            self._waiting.extend(written)
        else:
            self._system.extend(written)

    def _settle(self) -> None:
        """System text that has no place of its own within the conversation goes to the top."""
        self._system.extend(self._waiting)
        self._waiting.clear()

    def _say(self, role: str, blocks: list[object], *, leading: bool = False) -> None:
        if not blocks:
            return
        if not self._messages or self._messages[-1][0] != role:
            self._messages.append((role, []))
            self._results = 0
        content = self._messages[-1][1]
        if leading:
            content[self._results : self._results] = blocks
            self._results += len(blocks)
        else:
            content.extend(blocks)

    def _blocks(self, turn: n.Turn) -> tuple[list[object], list[object]]:
        """Blocks of what is said, and of tool results."""
        said: list[object] = []
        results: list[object] = []
        for part in turn.parts:
            if isinstance(part, n.ToolResult):
                results.append(self._result(part))
                continue
            written = self._block(part)
            if written is not None:
                said.append(cached(written, part.extra))
        return said, results

    def _result(self, part: n.ToolResult) -> Body:
        self._dropped.fields(part.extra, "messages.")
        written: Body = {"type": "tool_result", "tool_use_id": self._id(part.call_id)}
        blocks = [made for one in part.content if (made := self._block(one)) is not None]
        if len(blocks) == 1 and isinstance(part.content[0], n.Text):
            written["content"] = part.content[0].text
        elif blocks:
            written["content"] = blocks
        if part.is_error:
            written["is_error"] = True
        cached(written, part.extra)
        return written

    def _block(self, part: n.Part) -> object:
        dropped = self._dropped
        dropped.fields(part.extra, "messages.")
        match part:
            case n.Text(text=text) | n.Refusal(text=text):
                # Blank text is refused; it says nothing either.
                return b.block(part) if text.strip() else None
            case n.ToolCall():
                return {
                    "type": "tool_use",
                    "id": self._id(part.id),
                    "name": part.name,
                    "input": b.as_input(part.arguments),
                }
            case n.Image():
                written = _image(part)
                if part.detail not in {"", "auto"}:
                    dropped.add("messages.image.detail")
            case n.Document():
                written = _document(part)
            case _:
                # Thinking of another provider has no signature that Claude would accept.
                written = None
        if written is None:
            dropped.add(f"messages.{_kind(part)}")
        return written

    def _id(self, call_id: str) -> str:
        """The API's ids are of letters, digits, `_` and `-`; others are changed, the same one alike."""
        known = self._ids.get(call_id)
        if known is None:
            known = _NOT_IN_IDS.sub("_", call_id) or "call"
            if known in self._taken:
                known = f"{known}_{len(self._taken)}"
            self._ids[call_id] = known
            self._taken.add(known)
        return known

    def body(self) -> Body:
        if self._waiting and self._messages and self._messages[-1][0] == "user":
            self._messages.append(("system", list(self._waiting)))
            self._waiting.clear()
        self._settle()
        if not self._messages and self._system:
            # OpenAI answers a system prompt alone; here somebody has to ask.
            self._messages.append(("user", [self._system.pop()]))
        if not self._messages or self._messages[0][0] == "assistant":
            self._messages.insert(0, ("user", [{"type": "text", "text": OPENING}]))
        if self._messages and self._messages[-1][0] == "assistant":
            _trim(self._messages[-1][1])
        body: Body = {}
        if self._system:
            body["system"] = self._system
        body["messages"] = [{"role": role, "content": blocks} for role, blocks in self._messages]
        return body


OPENING: Final = "."
"""What a user says where a conversation is blank or begins with the assistant: the API wants the user first."""

_NOT_IN_IDS: Final = re.compile(r"[^a-zA-Z0-9_-]")


def cached(block: object, extra: n.Extra) -> object:
    """The block, marked where the caller marked it to be cached up to there."""
    if isinstance(block, dict) and CACHE in extra and bytes(extra[CACHE]) != b.NULL:
        block[CACHE] = extra[CACHE]
    return block


def _kind(part: n.Part) -> str:
    return str(type(part).__struct_config__.tag)


def _trim(content: list[object]) -> None:
    """White space at the end of a text to be continued is refused."""
    last = content[-1]
    if isinstance(last, dict) and isinstance(text := last.get("text"), str):
        last["text"] = text.rstrip()


_DATA_URL: Final = re.compile(
    r"data:(?P<type>[^;,]{0,128})(?:;[^,]{0,256})?;base64,", re.IGNORECASE
)


def _from_data_url(url: str) -> tuple[str, str] | None:
    found = _DATA_URL.match(url)
    return (found["type"].lower(), url[found.end() :]) if found else None


def _image(part: n.Image) -> object:
    if part.url:
        inline = _from_data_url(part.url)
        if inline is not None:
            return b.block(n.Image(media_type=inline[0], data=inline[1]))
        return b.block(n.Image(url=part.url))
    # A file of another provider's store is out of reach.
    return b.block(n.Image(media_type=part.media_type, data=part.data)) if part.data else None


def _document(part: n.Document) -> object:
    media_type, data = part.media_type, part.data
    if part.url:
        inline = _from_data_url(part.url)
        if inline is None:
            return b.block(n.Document(url=part.url, name=part.name))
        media_type, data = inline
    if data and (inline := _from_data_url(data)) is not None:
        media_type, data = inline
    if data and media_type in {"", "application/pdf"}:
        return b.block(n.Document(media_type="application/pdf", data=data, name=part.name))
    text = part.text
    if data and media_type.startswith("text/"):
        text = _decoded(data) or ""
    if not text:
        return None
    return b.block(n.Document(media_type="text/plain", text=text, name=part.name))


def _decoded(data: str) -> str | None:
    try:
        return base64.b64decode(data, validate=True).decode()
    except ValueError:
        return None
