"""Whether a tokenizer fits a text tower."""

from __future__ import annotations

from typing import Any

from ..errors import AuroraError, short

COMMON_WORDS = ("a", "the", "dog", "cat", "man", "woman", "red", "blue", "photo", "water", "house", "car")
MEND = "take the tokenizer that the model was trained with"


def check_words(tokenizer: Any, size: int, name: str, besides: tuple[str, ...] = ()) -> None:
    """Make sure that a tokenizer's words are those of a text tower.

    Args:
        size: words of the text tower.
        name: of the model, for messages.
        besides: words that may have larger numbers, since no text has them.

    Raises:
        AuroraError: if it gives numbers beyond the tower's words, lacks a token for padding, or knows next to no word.
    """
    words = tokenizer.get_vocab()
    if (largest := max((number for word, number in words.items() if word not in besides), default=-1)) >= size:
        raise AuroraError(
            f"model {name}: its tokenizer has numbers up to {largest}, its text tower {size} words; {MEND}"
        )
    if tokenizer.pad_token_id is None:
        raise AuroraError(f"model {name}: its tokenizer has no token for padding; {MEND}")
    unknown = [word for word in COMMON_WORDS if tokenizer.unk_token_id in tokenizer(word).input_ids[:-1]]
    if len(unknown) > len(COMMON_WORDS) / 2:
        raise AuroraError(
            f"model {name}: its tokenizer knows {len(words)} words, and not {short(unknown[0])} nor "
            f"{len(unknown) - 1} other of {len(COMMON_WORDS)} common ones; {MEND}"
        )
