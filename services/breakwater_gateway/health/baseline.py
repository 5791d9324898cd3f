"""What is usual for a target: a learned 95th percentile of its first tokens, in constant space."""

from typing import Final


class Baseline:
    """A running estimate of the 95th percentile, in constant space.

    Each sample moves the estimate by a factor: up by 0.95 of a step, down by 0.05 of it, which balances
    where 5 % lie above (Ma, Muthukrishnan and Sandler, "Frugal streaming for estimating quantiles",
    2013, in ratios). A burst of ten slow calls moves it by a fifth, so it cannot hide itself; a target
    that is slower for good is accepted after some seventy calls.
    """

    QUANTILE: Final = 0.95
    STEP: Final = 0.02
    WARM: Final = 20
    """Samples before it is believed; until then it is their maximum."""

    __slots__ = ("_samples", "_value")

    def __init__(self) -> None:
        self._samples = 0
        self._value = 0.0

    def add(self, sample: float) -> None:
        if self._samples < self.WARM:
            self._samples += 1
            self._value = max(self._value, sample)
        elif sample > self._value:
            self._value *= 1 + self.STEP * self.QUANTILE
        else:
            self._value *= 1 - self.STEP * (1 - self.QUANTILE)

    def p95(self) -> float | None:
        return self._value if self._samples >= self.WARM else None
