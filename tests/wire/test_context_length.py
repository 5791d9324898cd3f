"""How many tokens a prompt takes and how many there are, from what providers say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.wire import anthropic, cohere, openai_chat
from breakwater_gateway.worker.wire.context_length import figures
from breakwater_protocol import failures as f


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            (
                "This model's maximum context length is 1048565 tokens. However, you requested 1250025"
                " tokens (1250025 in the messages, 0 in the completion). Please reduce the length of the"
                " messages or completion."
            ),
            *(1250025, 1048565),
        ),
        (
            (
                "This endpoint's maximum context length is 200000 tokens. However, you requested about"
                " 2500021 tokens (2500021 of text input)."
            ),
            *(2500021, 200000),
        ),
        (
            (
                "This model's maximum context length is 8192 tokens. However, your messages resulted in"
                " 9001 tokens. Please reduce the length of the messages."
            ),
            *(9001, 8192),
        ),
        ("prompt is too long: 208310 tokens > 200000 maximum", 208310, 200000),
        (
            (
                "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease"
                " input length or `max_tokens` and try again"
            ),
            *(209573, 200000),
        ),
        (
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            *(1200000, 1048576),
        ),
        (
            "The input token count (1200000) exceeds the maximum number of tokens allowed 1048576.",
            *(1200000, 1048576),
        ),
        (
            (
                "You passed 1015 input tokens and requested 10 output tokens. However, the model's context"
                " length is only 1024 tokens, resulting in a maximum input length of 1014 tokens."
            ),
            *(1015, 1014),
        ),
        (
            (
                "too many tokens: size limit exceeded by 25836 tokens. Try using shorter or fewer inputs."
                " The limit for this model is 288000 tokens."
            ),
            *(313836, 288000),
        ),
        (
            "This model's maximum prompt length is 131072 but the request contains 150000 tokens.",
            *(150000, 131072),
        ),
        (
            (
                "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum"
                " context length"
            ),
            *(40000, 32768),
        ),
        (
            (
                "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 20"
                " `max_new_tokens`"
            ),
            *(5020, 4096),
        ),
        # Without figures, or with some that contradict themselves.
        ("Your input exceeds the context window of this model.", None, None),
        ("prompt too long; exceeded max context length by 1119046 tokens", None, None),
        ("prompt is too long: 5 tokens > 200000 maximum", None, None),
        ("prompt is too long: 99999999999999999999 tokens > 2 maximum", None, None),
        ("", None, None),
    ],
)
def test_what_providers_say(message: str, needed: int | None, limit: int | None) -> None:
    assert figures(message) == (needed, limit)


@given(st.text(max_size=300))
def test_any_text_is_read(message: str) -> None:
    needed, limit = figures(message)
    assert (needed is None) == (limit is None)


@pytest.mark.parametrize(
    ("failure", "needed"),
    [
        (
            openai_chat.classify(
                400,
                {},
                json.dumps(
                    {
                        "error": {
                            "message": "This model's maximum context length is 8 tokens. However,"
                            " your messages resulted in 9 tokens.",
                            "code": "context_length_exceeded",
                        }
                    }
                ).encode(),
                now=0,
            ),
            9,
        ),
        (
            anthropic.classify(
                400,
                {},
                b'{"type":"error","error":{"type":"invalid_request_error",'
                b'"message":"prompt is too long: 9 tokens > 8 maximum"}}',
                now=0,
            ),
            9,
        ),
        (
            cohere.classify(
                400,
                {},
                b'{"error_type":"TOO_MANY_TOKENS","message":"too many tokens: size limit exceeded by'
                b' 1 tokens. The limit for this model is 8 tokens."}',
                now=0,
            ),
            9,
        ),
    ],
)
def test_a_failure_carries_them(failure: f.Failure, needed: int) -> None:
    assert isinstance(failure, f.ContextLength)
    assert (failure.needed, failure.limit) == (needed, 8)
