"""The worker's HTTP client: the one module to import for calling providers.

client = FastClient()
prepared = client.prepare("POST", f"{base_url}/chat/completions", headers)
answer = await client.send(prepared, body)
try:
    while (chunk := await answer.chunk()) is not None: ...
finally:
    answer.close()
"""

from breakwater_gateway.worker.http.answer import Answer
from breakwater_gateway.worker.http.client import FastClient, HttpClient
from breakwater_gateway.worker.http.dial import Proxies
from breakwater_gateway.worker.http.errors import (
    AnswerTooLarge,
    ConnectFailed,
    ConnectKind,
    CutAnswer,
    HttpFailure,
    MalformedHttp,
    PoolTimeout,
    ReadFailed,
)
from breakwater_gateway.worker.http.httpx_adapter import HttpxClient, Transport
from breakwater_gateway.worker.http.pool import Limits, OriginStats
from breakwater_gateway.worker.http.prepared import Headers, Prepared

__all__ = [
    "Answer",
    "AnswerTooLarge",
    "ConnectFailed",
    "ConnectKind",
    "CutAnswer",
    "FastClient",
    "Headers",
    "HttpClient",
    "HttpFailure",
    "HttpxClient",
    "Limits",
    "MalformedHttp",
    "OriginStats",
    "PoolTimeout",
    "Prepared",
    "Proxies",
    "ReadFailed",
    "Transport",
]
