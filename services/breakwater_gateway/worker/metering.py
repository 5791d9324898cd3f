"""What a stream that was cut has used, by our own count: its provider bills it and will not tell us.

The input is what the provider said when it began (Anthropic does), else estimated from the body. The
output is the larger of what the provider said so far, the number of pieces (a token at least in each) and
the characters at the pace of English prose. Pure.
"""

from breakwater_gateway.pricing.tokens import BYTES_PRIOR, Estimator, measure
from breakwater_protocol.chat import Usage

_plain = Estimator()


def of_cut(body: bytes, known: Usage | None, *, said: int, pieces: int) -> Usage:
    """`body`: the caller's; `said`: characters of the answer so far, in so many `pieces`."""
    known = known or Usage()
    return Usage(
        input=known.input or _plain.estimate("", measure(body)),
        output=max(known.output, pieces, -int(-said * BYTES_PRIOR // 1)),
        cache_read=known.cache_read,
        cache_write=known.cache_write,
        reasoning=known.reasoning,
    )
