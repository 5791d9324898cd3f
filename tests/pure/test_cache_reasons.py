"""Every reason code of the cache has its words."""

from typing import get_args

import pytest

from breakwater_gateway.cache.decision import Ineligible
from breakwater_gateway.cache.entry import Poison
from breakwater_gateway.cache.key import NoKey
from breakwater_gateway.cli.cache_reasons import REASONS, means, mend
from breakwater_gateway.router.money import TOO_DEAR, UNPRICED
from breakwater_protocol.cache import MissReason

CODES = {
    *(code for kind in (NoKey, Ineligible, MissReason, Poison) for code in get_args(kind)),
    *("miss", "past_its_time", "refresh", "gone", "foreign", TOO_DEAR, UNPRICED),
}


def test_each_code_is_explained_and_none_that_is_no_code() -> None:
    assert set(REASONS) == CODES


@pytest.mark.parametrize("code", sorted(CODES))
def test_words_are_a_sentence_s_part(code: str) -> None:
    said = means(code)
    assert said.startswith(f"{code}: ")
    assert not said.endswith(".")
    assert not mend(code).endswith(".")


def test_a_code_of_a_newer_router_is_shown_as_it_is() -> None:
    assert (means("new_one"), mend("new_one")) == ("new_one", "")
