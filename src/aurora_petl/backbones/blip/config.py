"""What BLIP needs of a configuration and of a tokenizer, checked before either is used.

Fields that change nothing here (of generation, of other tasks, of other releases of transformers) are left out, so that
odd values in them do no harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import BlipConfig
from transformers.activations import ACT2FN

from ...errors import AuroraError, short

DEC, ENC = 30522, 30523  # [DEC] and [ENC] of the original; hub tokenizers do not carry them, so numbers it is
MOST_LAYERS, MOST_WIDTH, MOST_WORDS, MOST_PIXELS = 200, 65_536, 10_000_000, 16_384
BERT_WORDS = {"the": 1996, "dog": 3899, "red": 2417, "photo": 6302}  # in bert-base-uncased
COMMON_WORDS = (
    *("a", "the", "of", "and", "in", "on", "with", "man", "woman", "dog", "cat", "red", "blue", "green", "white"),
    *("black", "photo", "picture", "street", "water", "house", "tree", "car", "table", "people", "small", "large"),
)

Check = tuple[Callable[[Any], bool], str]


def _whole(most: int, least: int = 1) -> Check:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return fits, f"a whole number from {least:,} to {most:,}"


def _share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


WIDTH, TOKEN = _whole(MOST_WIDTH), _whole(MOST_WORDS, 0)
DROPOUT: Check = _share, "a number from 0 to below 1"
POSITIVE: Check = _positive, "a positive number"
ACTIVATION: Check = (lambda value: isinstance(value, str) and value in ACT2FN), "a function that transformers knows"
FLAG: Check = (lambda value: isinstance(value, bool)), "true or false"
TOWER: dict[str, Check] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "projection_dim": WIDTH,
    "num_hidden_layers": _whole(MOST_LAYERS),
    "num_attention_heads": WIDTH,
    "hidden_act": ACTIVATION,
    "layer_norm_eps": POSITIVE,
    "initializer_range": POSITIVE,
}
FIELDS: dict[str, dict[str, Check]] = {  # by part; "" is the whole
    "text_config": TOWER
    | {
        "encoder_hidden_size": WIDTH,
        "max_position_embeddings": _whole(MOST_WIDTH, 2),
        "vocab_size": _whole(MOST_WORDS),
        "hidden_dropout_prob": DROPOUT,
        "attention_probs_dropout_prob": DROPOUT,
        "label_smoothing": DROPOUT,
        "bos_token_id": TOKEN,
        "pad_token_id": TOKEN,
        "sep_token_id": TOKEN,
        "tie_word_embeddings": FLAG,
    },
    "vision_config": TOWER
    | {"image_size": _whole(MOST_PIXELS), "patch_size": _whole(MOST_PIXELS), "attention_dropout": DROPOUT},
    "": {
        "projection_dim": WIDTH,
        "image_text_hidden_size": WIDTH,
        "label_smoothing": DROPOUT,
        "tie_word_embeddings": FLAG,
    },
}


def configure(content: dict[str, Any], path: Path) -> BlipConfig:
    """BLIP's configuration from that of a model folder.

    Args:
        content: of ``config.json``, which is at ``path``; fields that it lacks are transformers' defaults.

    Raises:
        AuroraError: if a value cannot be that of a BLIP.
    """
    kept: dict[str, Any] = {}
    for part, fields in FIELDS.items():
        values = content if not part else {} if content.get(part) is None else content[part]
        if not isinstance(values, dict):
            raise AuroraError(f"{path}: {part} is {short(values)}, not an object; save the model again")
        chosen = {}
        for field, (fits, wanted) in fields.items():
            value = values.get(field)
            if value is None:  # transformers 4 wrote null for what a model leaves to the default
                continue
            if not fits(value):
                where = f"{part}.{field}" if part else field
                raise AuroraError(f"{path}: {where} is {short(value)}, not {wanted}; save the model again")
            chosen[field] = value
        kept |= {part: chosen} if part else chosen
    config: Any = BlipConfig(**kept)
    for part in ("text_config", "vision_config"):
        tower = getattr(config, part)
        if tower.hidden_size % tower.num_attention_heads:
            raise AuroraError(
                f"{path}: {part}.num_attention_heads is {tower.num_attention_heads}, which does not divide its "
                f"hidden_size of {tower.hidden_size}"
            )
    image, patch = config.vision_config.image_size, config.vision_config.patch_size
    if image % patch:
        raise AuroraError(
            f"{path}: vision_config.patch_size is {patch}, which does not divide its image_size of {image}"
        )
    if config.text_config.vocab_size <= ENC:
        words = config.text_config.vocab_size
        raise AuroraError(f"{path}: text_config.vocab_size is {words}, which has no [ENC] token ({ENC})")
    return config


def check_tokenizer(tokenizer: Any, config: Any, name: str) -> None:
    """Make sure that a tokenizer is the text tower's.

    Raises:
        AuroraError: if it lacks a token that BLIP needs, gives numbers beyond the text tower's words, knows next to no
            word, or is that of another model.
    """
    text = config.text_config
    words, mend = tokenizer.get_vocab(), "take the tokenizer that the model was trained with"
    for token, known in (("cls", None), ("sep", text.sep_token_id), ("pad", text.pad_token_id)):
        number = getattr(tokenizer, f"{token}_token_id")
        if number is None:
            raise AuroraError(f"model {name}: its tokenizer has no [{token.upper()}] token, which BLIP needs; {mend}")
        if known is not None and number != known:
            raise AuroraError(
                f"model {name}: its tokenizer has [{token.upper()}] at {number}, its configuration at {known}; {mend}"
            )
    if (largest := max(words.values(), default=-1)) >= text.vocab_size:
        raise AuroraError(
            f"model {name}: its tokenizer has numbers up to {largest}, its text tower {text.vocab_size} words; {mend}"
        )
    by_number = {number: word for word, number in words.items() if number in (DEC, ENC)}
    if odd := [word for word in by_number.values() if word not in ("[DEC]", "[ENC]")]:
        raise AuroraError(
            f"model {name}: its tokenizer has {short(odd[0])} where BLIP has [DEC] and [ENC] ({DEC}, {ENC}); {mend}"
        )
    unknown = [word for word in COMMON_WORDS if _is_unknown(tokenizer, word)]
    if len(unknown) > len(COMMON_WORDS) / 2:
        raise AuroraError(
            f"model {name}: its tokenizer knows {len(words)} words, and not {short(unknown[0])} nor {len(unknown) - 1} "
            f"other of {len(COMMON_WORDS)} common ones; {mend}"
        )
    if text.vocab_size == ENC + 1:  # the original's vocabulary
        for word, number in BERT_WORDS.items():
            if words.get(word) != number:
                raise AuroraError(
                    f"model {name}: its tokenizer is not that of bert-base-uncased, which BLIP's {text.vocab_size} "
                    f"words are of: {word!r} is {words.get(word, 'missing')}, not {number}; {mend}"
                )
    made = tokenizer("a dog").input_ids
    if made[:1] != [tokenizer.cls_token_id] or made[-1:] != [tokenizer.sep_token_id]:
        raise AuroraError(f"model {name}: its tokenizer does not put [CLS] before a text and [SEP] after it; {mend}")


def _is_unknown(tokenizer: Any, word: str) -> bool:
    pieces = tokenizer.tokenize(word)
    return not pieces or tokenizer.unk_token in pieces
