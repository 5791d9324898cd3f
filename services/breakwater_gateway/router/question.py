"""What a caller asks in the end: the text of the last turn, whatever dialect its body is in."""

import msgspec

from breakwater_gateway.worker.wire import neutral
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.dialects import caller_dialect


def question_of(body: bytes, api: str) -> str:
    """Empty when the last turn is not the user's own words: then nothing is asked that words could answer."""
    try:
        request = caller_dialect(api).decode_request(body)
    except (BadRequest, msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    if not request.turns or request.turns[-1].role != "user":
        return ""
    parts = request.turns[-1].parts
    return "\n".join(part.text for part in parts if isinstance(part, neutral.Text))
