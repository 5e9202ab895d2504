"""Words of messages: numbers together with the nouns that they count. Knows nothing of what is said."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: ``1 edit``, ``2 edits``, ``12,000 edges``.

    Parameters
    ----------
    noun
        The noun in the singular.
    plural
        The noun in the plural. Default: the singular with an ``s``.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
