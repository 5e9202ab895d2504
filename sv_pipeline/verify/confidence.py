"""What a random sample says about everything: upper bounds on the share of damaged things."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEVEL", "Confidence"]

LEVEL = 0.95
"""Probability with which a bound holds, over all random choices of the sample."""


@dataclass(frozen=True)
class Confidence:
    """An upper bound on the number of damaged things."""

    level: float
    """Probability with which the bound holds."""
    population: int
    """Number of things in all."""
    most: int
    """Largest number of damaged things among all that is compatible with the sample."""

    @classmethod
    def of(cls, population: int, sample: int, damaged: int, level: float = LEVEL) -> Confidence:
        """Bound the number of damaged things, from a sample without replacement (hypergeometric, one-sided, exact).

        Parameters
        ----------
        population, sample
            Number of things in all, and of those that were looked at.
        damaged
            Number of things looked at that are damaged.
        level
            Probability with which the bound must hold.
        """
        from scipy.stats import hypergeom  # it takes a second to import

        low, high = damaged, population - sample + damaged
        while low < high:  # the largest number with which so few damaged things in the sample are not too unlikely
            middle = (low + high + 1) // 2
            if hypergeom.cdf(damaged, population, middle, sample) > 1 - level:
                low = middle
            else:
                high = middle - 1
        return cls(level, population, low)

    @property
    def fraction(self) -> float:
        """The bound as a fraction of all things."""
        return self.most / self.population

    def text(self, unit: str) -> str:
        """Return the bound as a phrase."""
        return f"with {self.level:.0%} confidence at most {100 * self.fraction:.2g} % of all {unit} are damaged"
