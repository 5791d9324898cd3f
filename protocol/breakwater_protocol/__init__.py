"""The contract of Breakwater: what a client, a subscriber or another language needs.

`Client` asks, `Subjects` names every subject with the type it carries, and the modules `chat`,
`commands`, `events` and `failures` hold those types. Importing this needs msgspec alone; connecting
a client needs nats-py.
"""

from breakwater_protocol.answers import (
    AnswerInfo,
    AnswerTimeout,
    BreakwaterError,
    BudgetSpent,
    Completion,
    ConnectionLost,
    Embeddings,
    GatewayError,
    GatewayFailed,
    MalformedReply,
    ModelUnknown,
    NoGateway,
    NotAuthenticated,
    NotPermitted,
    ReaderTooSlow,
    RequestRefused,
    StreamBroken,
    StreamGap,
    StreamStalled,
    Throttled,
    TooLarge,
    Unreachable,
)
from breakwater_protocol.chat import Chunk, ModelEntry, Usage
from breakwater_protocol.client import ChatStream, Client
from breakwater_protocol.connection import Reply, ServerInfo
from breakwater_protocol.inboxes import Heard
from breakwater_protocol.options import CallOptions, ChatOptions, EmbedOptions
from breakwater_protocol.subjects import (
    BadToken,
    Subject,
    Subjects,
    decode_token,
    encode_token,
)

__all__ = [
    "AnswerInfo",
    "AnswerTimeout",
    "BadToken",
    "BreakwaterError",
    "BudgetSpent",
    "CallOptions",
    "ChatOptions",
    "ChatStream",
    "Chunk",
    "Client",
    "Completion",
    "ConnectionLost",
    "EmbedOptions",
    "Embeddings",
    "GatewayError",
    "GatewayFailed",
    "Heard",
    "MalformedReply",
    "ModelEntry",
    "ModelUnknown",
    "NoGateway",
    "NotAuthenticated",
    "NotPermitted",
    "ReaderTooSlow",
    "Reply",
    "RequestRefused",
    "ServerInfo",
    "StreamBroken",
    "StreamGap",
    "StreamStalled",
    "Subject",
    "Subjects",
    "Throttled",
    "TooLarge",
    "Unreachable",
    "Usage",
    "decode_token",
    "encode_token",
]
