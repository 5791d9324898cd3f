"""JSON that a model wrote almost right, made right where there is only one way to read it.

Read are: code fences around it, an object written as a JSON string, Python's quotes and literals, names without
quotes, commas before a closing bracket, line ends inside strings, brackets that are missing or too many at the
very end. Everything else has more than one reading, and is left to whoever wrote it. What is valid already is
not touched. Bounded in size and depth.
"""

import re
from typing import Final

import msgspec

SIZE_MAX: Final = 256 * 1024
DEPTH_MAX: Final = 64
_ENCODINGS_MAX: Final = 2
"""How many times an object may be wrapped into a string."""

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)

_FENCE: Final = re.compile(r"\s*```(?:json|JSON)?[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\s*", re.DOTALL)
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_PLAIN: Final = {
    '"': re.compile(r'[^"\\\x00-\x1f]*'),
    "'": re.compile(r"[^'\\\x00-\x1f]*"),
}
_LITERALS: Final = {
    **{word: word for word in ("true", "false", "null")},
    "True": "true",
    "False": "false",
    "None": "null",
}
_ESCAPES: Final = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    "'": "'",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}
_HEX: Final = re.compile(r"[0-9a-fA-F]{4}")
_TOO_MANY: Final = re.compile(r"[\]} \t\r\n]*")


def repaired(text: str) -> str | None:
    """The JSON object that `text` stands for: itself where it is one, None where that is not certain."""
    if len(text) > SIZE_MAX:
        return None
    for _ in range(_ENCODINGS_MAX + 1):
        if is_object(text):
            return text
        fenced = _FENCE.fullmatch(text)
        if fenced is not None:
            text = fenced[1]
            continue
        inner = _unwrapped(text)
        if inner is None:
            break
        text = inner
    if is_object(text):
        return text
    try:
        found = _Reader(text.strip(" \t\r\n\ufeff")).read()
    except _Unclear:
        return None
    return found if is_object(found) else None


def is_object(text: str) -> bool:
    try:
        _object.decode(text)
    except _UNREADABLE:
        return False
    return True


def fault(text: str) -> str:
    """What a strict parser says of it; empty when it is a JSON object."""
    try:
        _object.decode(text)
    except _UNREADABLE as error:
        return str(error)[:200]
    return ""


def _unwrapped(text: str) -> str | None:
    """The text inside a JSON string."""
    if not text.lstrip().startswith('"'):
        return None
    try:
        return _string.decode(text)
    except _UNREADABLE:
        return None


class _Unclear(Exception):
    """There is more than one reading, or none."""


class _Reader:
    """Writes what it reads as JSON: strings anew, numbers as they are, nothing reordered."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._out: list[str] = []

    def read(self) -> str:
        if self._peek() != "{":
            raise _Unclear
        self._value(0)
        # A bracket too many at the very end closes nothing.
        rest = _TOO_MANY.match(self._text, self._at)
        if rest is None or rest.end() != len(self._text):
            raise _Unclear
        return "".join(self._out)

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        space = _SPACE.match(self._text, self._at)
        if space is not None:
            self._at = space.end()
        return self._text[self._at : self._at + 1]

    def _value(self, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise _Unclear
        match self._peek():
            case "{":
                self._items("}", depth)
            case "[":
                self._items("]", depth)
            case '"' | "'" as quote:
                self._quoted(quote)
            case _:
                self._literal()

    def _items(self, end: str, depth: int) -> None:
        self._out.append(self._text[self._at])
        self._at += 1
        first = True
        while True:
            if self._peek() == end:
                self._at += 1
                break
            if not first:
                self._out.append(",")
            if end == "}":
                self._name()
            self._value(depth + 1)
            first = False
            after = self._peek()
            if after == ",":
                self._at += 1
                if not self._peek():
                    raise _Unclear  # something more was to come
            elif after != end:
                if after:
                    raise _Unclear
                break  # the text is over after a whole value: only the bracket is missing
        self._out.append(end)

    def _name(self) -> None:
        found = self._peek()
        if found in {'"', "'"} and found:
            self._quoted(found)
        else:
            word = _WORD.match(self._text, self._at)
            if word is None:
                raise _Unclear
            self._at = word.end()
            self._out.append(_json(word[0]))
        if self._peek() != ":":
            raise _Unclear
        self._at += 1
        self._out.append(":")

    def _literal(self) -> None:
        word = _WORD.match(self._text, self._at)
        if word is not None and word[0] in _LITERALS:
            self._at = word.end()
            self._out.append(_LITERALS[word[0]])
            return
        number = _NUMBER.match(self._text, self._at)
        # A number that ends the text may have been cut in its middle.
        if number is None or number.end() == len(self._text):
            raise _Unclear
        self._at = number.end()
        self._out.append(number[0])

    def _quoted(self, quote: str) -> None:
        self._at += 1
        pieces: list[str] = []
        while True:
            plain = _PLAIN[quote].match(self._text, self._at)
            if plain is not None:
                pieces.append(plain[0])
                self._at = plain.end()
            found = self._text[self._at : self._at + 1]
            if not found:
                raise _Unclear
            self._at += 1
            if found == quote:
                break
            pieces.append(self._escaped() if found == "\\" else found)
        self._out.append(_json("".join(pieces)))

    def _escaped(self) -> str:
        found = self._text[self._at : self._at + 1]
        self._at += 1
        if found == "u":
            code = _HEX.match(self._text, self._at)
            if code is None:
                raise _Unclear
            self._at = code.end()
            first = int(code[0], 16)
            if 0xD800 <= first < 0xDC00 and self._text[self._at : self._at + 2] == "\\u":
                low = _HEX.match(self._text, self._at + 2)
                if low is not None and 0xDC00 <= int(low[0], 16) < 0xE000:
                    self._at = low.end()
                    return chr(0x10000 + ((first - 0xD800) << 10) + int(low[0], 16) - 0xDC00)
            return chr(first)
        if found not in _ESCAPES or not found:
            raise _Unclear
        return _ESCAPES[found]


def _json(text: str) -> str:
    try:
        return msgspec.json.encode(text).decode()
    except UnicodeEncodeError:
        raise _Unclear from None
