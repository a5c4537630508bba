"""The search over learning rates and numbers of steps that `aurora compare` gives every method.

The search widens itself: methods differ by more than a factor of ten in the rate that suits them, and a best rate at
the edge of what was tried says that the search was too short.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HIGHEST = 10.0  # rate that a recipe may have


@dataclass
class Search:
    """What a method's search tried, and how good each was on the validation split."""

    scores: dict[tuple[int, float], float] = field(default_factory=dict)  # by steps and rate; -inf if a run diverged

    def best(self) -> tuple[int, float]:
        """Steps and rate with the best score, of equals the first."""
        return max(self.scores, key=lambda tried: self.scores[tried])

    def _rates(self, steps: int) -> list[float]:
        return sorted(rate for tried, rate in self.scores if tried == steps)

    def beyond(self) -> tuple[int, float] | None:
        """Where the search goes on: as far beyond the best rate as its neighbour is within; None unless the best rate,
        or one that is as good, is at the edge."""
        steps, _ = self.best()
        rates = self._rates(steps)
        if len(rates) < 2:
            return None
        top = max(self.scores.values())
        for edge, neighbour in ((rates[0], rates[1]), (rates[-1], rates[-2])):
            if self.scores[steps, edge] < top:
                continue
            further = edge * edge / neighbour
            rounded = float(f"{further:.1g}")
            if not rates[0] <= rounded <= rates[-1]:
                further = rounded  # else rounding leads back among those that were tried
            if further <= HIGHEST:
                return steps, further
        return None

    @property
    def at_edge(self) -> bool:
        """Whether a rate beyond those that were tried may be better."""
        return bool(self.scores) and self.beyond() is not None


def told(steps: int, rate: float) -> str:
    """A rate and a number of steps, 0 being the recipe's, in words."""
    return f"rate {rate:g}" + (f", {steps} steps" if steps else "")
