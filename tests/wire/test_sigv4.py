"""Signature Version 4 against AWS's published test suite and documentation."""

import pytest

from breakwater_gateway.worker.wire.bedrock import sigv4

KEYS = sigv4.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
NOW = 1440938160.0  # 2015-08-30 12:36:00 UTC


def signature(
    method: str = "GET",
    path: str = "/",
    *,
    query: str = "",
    headers: tuple[tuple[str, str], ...] = (),
    body: bytes = b"",
) -> str:
    added = sigv4.sign(
        KEYS,
        method=method,
        path=path,
        query=query,
        headers=(("Host", "example.amazonaws.com"), *headers),
        body_sha256=sigv4.body_hash(body),
        region="us-east-1",
        service="service",
        now=NOW,
    )
    return dict(added)["authorization"].rpartition("=")[2]


@pytest.mark.parametrize(
    ("made", "published"),
    [
        # get-vanilla
        (signature(), "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        # get-vanilla-query-order-key-case
        (
            signature(query="Param2=value2&Param1=value1"),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        # get-vanilla-empty-query-key
        (
            signature(query="Param1=value1"),
            "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
        ),
        # get-header-key-duplicate
        (
            signature(
                headers=(
                    ("My-Header1", "value2"),
                    ("My-Header1", "value2"),
                    ("My-Header1", "value1"),
                )
            ),
            "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
        ),
        # get-header-value-trim
        (
            signature(headers=(("My-Header1", " value1"), ("My-Header2", ' "a   b   c"'))),
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        # get-utf8
        (
            signature(path="/\u1234"),
            "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
        ),
        # get-space
        (
            signature(path="/example space/"),
            "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
        ),
        # get-slashes
        (
            signature(path="//example//"),
            "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
        ),
        # get-relative
        (
            signature(path="/example/.."),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        # post-vanilla
        (signature("POST"), "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        # post-x-www-form-urlencoded
        (
            signature(
                "POST",
                headers=(("Content-Type", "application/x-www-form-urlencoded"),),
                body=b"Param1=value1",
            ),
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)
def test_the_published_requests_have_the_published_signatures(made: str, published: str) -> None:
    assert made == published


def test_the_signing_key_is_the_documented_one() -> None:
    key = sigv4.signing_key(KEYS.secret_key, day="20150830", region="us-east-1", service="iam")
    assert key.hex() == "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"


def test_the_documented_list_users_request_is_signed_as_documented() -> None:
    added = sigv4.sign(
        KEYS,
        method="GET",
        path="/",
        query="Action=ListUsers&Version=2010-05-08",
        headers=(
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("host", "iam.amazonaws.com"),
        ),
        body_sha256=sigv4.body_hash(b""),
        region="us-east-1",
        service="iam",
        now=NOW,
    )
    assert added == (
        ("x-amz-date", "20150830T123600Z"),
        (
            "authorization",
            (
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
                "SignedHeaders=content-type;host;x-amz-date, "
                "Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
            ),
        ),
    )


def test_an_escaped_path_is_escaped_once_more() -> None:
    """Else a model's id with a colon is refused: `%3A` as sent is `%253A` as signed."""
    assert signature(path="/model/a%3Ab/converse") != signature(path="/model/a:b/converse")
    assert sigv4._canonical_path("/model/a%3Ab/converse") == "/model/a%253Ab/converse"


def test_a_session_token_is_sent_and_signed() -> None:
    added = dict(
        sigv4.sign(
            sigv4.Credentials("A", "B", "token"),
            method="POST",
            path="/",
            headers=(("host", "h"),),
            body_sha256=sigv4.body_hash(b"{}"),
            region="eu-central-1",
            now=NOW,
        )
    )
    assert added["x-amz-security-token"] == "token"
    assert "SignedHeaders=host;x-amz-date;x-amz-security-token," in added["authorization"]
    assert "/eu-central-1/bedrock/aws4_request" in added["authorization"]


def test_credentials_do_not_show_their_secrets() -> None:
    assert "wJalr" not in repr(KEYS)
    assert "tok" not in repr(sigv4.Credentials("A", "B", "tok"))


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("BEDROCK-RUNTIME.AP-NORTHEAST-2.AMAZONAWS.COM", "ap-northeast-2"),
        ("bedrock-runtime.amazonaws.com", ""),
        ("localhost", ""),
    ],
)
def test_the_region_is_read_off_the_host(host: str, region: str) -> None:
    assert sigv4.region_of(host) == region
