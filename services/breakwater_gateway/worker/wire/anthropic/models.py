"""What a Claude model takes, read off its name; the deployment's quirks overrule.

Sources: the models endpoint's `capabilities` (July 2026) and the model pages of Anthropic's documentation.
"""

import re
from typing import Final, Literal

from msgspec import Struct

from breakwater_gateway.worker.wire.neutral import Target

Thinking = Literal["none", "budget", "both", "adaptive"]
Sampling = Literal["all", "one", "none"]

EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
"""`output_config.effort`, rising."""


class Model(Struct, frozen=True):
    thinking: Thinking = "budget"
    """`budget`: `thinking.budget_tokens`; `adaptive`: an effort and no budget; `both`: either."""
    efforts: tuple[str, ...] = ()
    sampling: Sampling = "all"
    """`one`: temperature or top_p, not both; `none`: neither, nor top_k."""
    structured: bool = False
    """`output_config.format` and strict tools."""
    system_turns: bool = False
    """System turns within the conversation, each after a user's turn."""
    always_thinks: bool = False
    """Thinking cannot be switched off."""


_NAME: Final = re.compile(
    r"claude-(?:(?P<family>[a-z]{1,16})-)?(?P<major>[0-9]{1,2})(?:[-.](?P<minor>[0-9]{1,2}))?(?![0-9])"
)
_ALWAYS_THINK: Final = frozenset({"fable", "mythos"})


def model(target: Target) -> Model:
    """Of the target's model. Names that are not Claude's get what every host of this API knows.

    Quirks known here and in `request`: `thinking`, `sampling`, `structured`, `system_turns`, `host`
    (`vertex` or `bedrock`), `anthropic_version`, `max_output_default`.
    """
    known = _of(target.model)
    given = target.quirks
    thinking, sampling = given.get("thinking"), given.get("sampling")
    structured, turns = given.get("structured"), given.get("system_turns")
    if thinking is None and sampling is None and structured is None and turns is None:
        return known
    return Model(
        thinking=_THINKING.get(str(thinking), known.thinking),
        efforts=known.efforts,
        sampling=_SAMPLING.get(str(sampling), known.sampling),
        structured=structured if isinstance(structured, bool) else known.structured,
        system_turns=turns if isinstance(turns, bool) else known.system_turns,
        always_thinks=known.always_thinks,
    )


_THINKING: Final[dict[str, Thinking]] = {
    "none": "none",
    "budget": "budget",
    "both": "both",
    "adaptive": "adaptive",
}
_SAMPLING: Final[dict[str, Sampling]] = {"all": "all", "one": "one", "none": "none"}


def _of(name: str) -> Model:
    found = _NAME.search(name)
    if found is None:
        old = re.search(r"claude-(?:v[12]|instant)", name) is not None
        return Model(thinking="none") if old else Model()
    version = (int(found["major"]), int(found["minor"] or 0))
    if version < (3, 7):
        return Model(thinking="none")
    if version < (4, 1):
        return Model()
    if version < (4, 6):
        return Model(sampling="one", structured=True)
    if version < (4, 7):
        efforts = ("low", "medium", "high", "max")
        return Model(thinking="both", efforts=efforts, sampling="one", structured=True)
    return Model(
        thinking="adaptive",
        efforts=EFFORTS,
        sampling="none",
        structured=True,
        system_turns=version >= (4, 8),
        always_thinks=found["family"] in _ALWAYS_THINK,
    )
