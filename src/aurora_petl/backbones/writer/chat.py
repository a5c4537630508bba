"""How a decoder model is talked to: the prompt about a picture, and where an answer begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import AuroraError, first_line, short
from ...files import read_json

ANSWER = "zebra"  # stands in for an answer, to see what a template puts around it
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")


def read_template(folder: Path, tokenizer: Any, name: str) -> str:
    """The chat template of a model folder.

    Raises:
        AuroraError: if it has none.
    """
    for file in ("chat_template.json", "processor_config.json"):  # those of the processor come before the tokenizer's
        content = read_json(folder / file) if (folder / file).is_file() else None
        if isinstance(content, dict) and isinstance(content.get("chat_template"), str):
            template: str = content["chat_template"]
            return template
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if not isinstance(own, str) or not own.strip():
        raise AuroraError(
            f"model {name} has no chat template, which says how it is asked; put {TEMPLATE_FILES[0]} into {folder}, as "
            "the processor's save_pretrained writes it, or take the model's version for instructions or chat"
        )
    return own


@dataclass(frozen=True)
class Around:
    """What stands before and behind an answer."""

    before: str
    end: int  # the token that ends the turn


class Chat:
    """Prompts of one model.

    Args:
        tokenizer: the model's own.
        template: in Jinja, as `read_template` gives it; empty for a model whose prompt is the pictures' marks, the
            first token, the question and a line's end, as PaliGemma's.
        mark: the token that stands for a picture in what the template makes.
        name: what messages call the model.
    """

    def __init__(self, tokenizer: Any, template: str, mark: str, name: str) -> None:
        self.tokenizer, self.template, self.mark, self.name = tokenizer, template, mark, name

    def prompt(self, text: str, marks: Sequence[str]) -> list[int]:
        """Tokens of a question about the frames with these marks. What looks like a mark in the question is left out.

        Raises:
            AuroraError: if the template does not show the pictures to the model.
        """
        text = text.replace(self.mark, "")
        if not self.template:
            return self._ids("".join(marks) + (self.tokenizer.bos_token or "") + text + "\n", False)
        parts = self._rendered(text, len(marks)).split(self.mark)
        if len(parts) != len(marks) + 1:
            raise AuroraError(
                f"model {self.name}: its chat template shows {len(parts) - 1} pictures where {len(marks)} were given; "
                "copy the model again"
            )
        woven = parts[0] + "".join(mark + part for mark, part in zip(marks, parts[1:], strict=True))
        first = self.tokenizer.bos_token
        return self._ids(woven, not (first and woven.startswith(first)))

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer and of its end."""
        return [*self._ids(self.around.before + text.replace(self.mark, ""), False), self.around.end]

    @cached_property
    def around(self) -> Around:
        """What the template puts around an answer."""
        end: int = self.tokenizer.eos_token_id
        if not self.template:
            return Around("", end)
        asked = self._rendered("?", 1)
        full = self._rendered("?", 1, ANSWER)
        if not full.startswith(asked) or ANSWER not in full[len(asked) :]:
            return Around("", end)  # the template tells the turns of the past otherwise than the one that is written
        before, _, behind = full[len(asked) :].partition(ANSWER)
        special = set(self.tokenizer.all_special_ids)
        return Around(before, next((token for token in self._ids(behind, False) if token in special), end))

    def _rendered(self, text: str, pictures: int, answer: str = "") -> str:
        content: list[dict[str, str]] = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        try:
            shown: str = self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, add_generation_prompt=not answer
            )
        except Exception as error:  # a template may raise anything
            raise AuroraError(
                f"model {self.name}: its chat template does not take a picture with a question "
                f"({short(first_line(error))}); copy the model again"
            ) from error
        return shown

    def _ids(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special).input_ids
        return ids
