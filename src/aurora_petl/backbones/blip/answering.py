"""BLIP for questions (arXiv 2201.12086, section 4.3).

    picture or frames --> vision tower --.
                                         v
    [ENC] question ---------> fused text encoder --.
                                                   v
    [DEC] answer ----------------------------> decoder --> the answer's tokens, one place on, and its end

A question's keys and values are projected once for all its answers, in training and in inference by rank, and a
picture's once for all its questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...adapter.additions import additions
from ...distributed import gather
from ..answers import Written, up_to, written
from ..base import Texts, asked
from ..frames import media_states
from ..masks import ready
from .config import DEC
from .towers import LONGEST, Blip, begin

DROPPED = str.maketrans("", "", '.!"()*#:;~')  # out of questions: BLIP never saw these marks in them
PAIRS = 512  # of question and candidate that rank scores at a time; at 4 tokens and 30,524 words 250 MB of logits


class BlipAnswering(Blip):
    """BLIP with its answer decoder; a `base.Ranker`. Q questions have S tokens, A answers T tokens.

    The first token of a question or an answer, [CLS] as it comes from the tokenizer, is replaced by the one that the
    model wants there. Without ``which`` answer i is of question i, or all are of the only one, and likewise for the
    pictures of questions.
    """

    defaults: Mapping[str, Any] = {
        "inference": "rank",
        "prompt": "{question}",
        "label_smoothing": 0.1,
        "max_question_tokens": LONGEST,
    }

    def collate(
        self,
        pixels: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str] = (),
        of: Sequence[int] = (),
        which: Sequence[int] | None = None,
        *,
        prompt: str,
        longest: int,
        multiple: int = 1,
    ) -> dict[str, Any]:
        """See `base.Writer`: ``pixel_values`` (M, 3, H, W), of clips (M, frames, 3, H, W); ``question_ids`` and
        ``question_mask`` (Q, S), with the picture of each in ``media``, a list, if it is given; ``answer_ids`` and
        ``answer_mask`` (A, T), with the question of each in ``which`` (A,) and
        ``answer_places`` and ``answer_seats``, see `answers.Written`."""
        texts = self.texts([text.translate(DROPPED) for text in asked(questions, prompt)], longest)
        texts = texts.padded(up_to(texts.ids.shape[1], multiple))
        batch = {"pixel_values": torch.stack(list(pixels)), "question_ids": texts.ids, "question_mask": texts.mask}
        more: dict[str, Any] = {} if which is None else {"media": list(which)}
        if answers:
            texts = self.texts(answers, self.longest)
            texts = texts.padded(up_to(texts.ids.shape[1], multiple))
            places, seats = _written(texts.lengths().tolist(), texts.ids.shape[1], multiple)
            more |= {"answer_ids": texts.ids, "answer_mask": texts.mask, "which": torch.tensor(list(of))}
            more |= {"answer_places": places, "answer_seats": seats}
        return batch | more

    def losses(self, batch: Mapping[str, Any], label_smoothing: float = 0.0) -> Tensor:
        return self.answer_loss(
            Texts(batch["answer_ids"], batch["answer_mask"]),
            self._read(batch),
            batch["question_mask"],
            batch["which"],
            certain=1,
            tokens=Written(batch["answer_places"], batch["answer_seats"]),
            label_smoothing=label_smoothing,
        )

    def write(self, batch: Mapping[str, Any], *, beams: int, longest: int) -> list[str]:
        states = self._read(batch)
        return self.generate_answers(states, batch["question_mask"], num_beams=beams, max_tokens=longest)

    def rank(
        self, batch: Mapping[str, Any], candidates: Texts, *, k_test: int, label_smoothing: float = 0.0
    ) -> list[int]:
        return self.rank_candidates(
            self._read(batch), batch["question_mask"], candidates, k_test=k_test, label_smoothing=label_smoothing
        ).tolist()

    def _read(self, batch: Mapping[str, Any]) -> Tensor:
        """Fused states (Q, S, D) of a batch's questions."""
        questions = Texts(batch["question_ids"], batch["question_mask"])
        media = media_states(self, batch["pixel_values"])
        context = None
        if self.module.training and any(part.field == "context" for _, _, part in additions(self.module)):
            context = gather(self.question_context(questions))
        return self.encode_question(questions, media, batch.get("media"), context=context)

    def rank_candidates(
        self,
        question_states: Tensor,
        question_mask: Tensor,
        candidates: Texts,
        *,
        k_test: int,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The likeliest of C candidates for each of Q questions, (Q,) on the CPU.

        The ``k_test`` candidates whose first token is likeliest are scored in full, by the loss of training. Among
        candidates of one first token those that come first are taken.

        Args:
            question_states: (Q, S, D), as `encode_question` gives them, with their mask (Q, S).
            candidates: C of them on the CPU: which are scored, and how, is known there.
        """
        k, device = min(k_test, len(candidates)), question_states.device
        start = candidates.ids[:1, :1].expand(len(question_states), 1).to(device)
        words = self.answer_logits(Texts(start, torch.ones_like(start)), question_states, question_mask)[:, 0]
        first, of = candidates.ids[:, 1].unique(return_inverse=True)
        likely = words[:, first.to(device)][:, of.to(device)]
        chosen = likely.argsort(dim=1, descending=True, stable=True)[:, :k].cpu()  # (Q, k)
        which = torch.arange(len(chosen)).repeat_interleave(k)
        flat = chosen.flatten()
        lengths = candidates.lengths()[flat]
        losses = torch.empty(len(flat), device=device)
        for part in lengths.argsort(stable=True).split(PAIRS):  # alike lengths: little padding
            losses[part.to(device)] = self.answer_loss(
                candidates.rows(flat[part]).trimmed().to(device),
                question_states,
                question_mask,
                which[part],
                tokens=_written(lengths[part].tolist(), int(lengths[part].max())),
                label_smoothing=label_smoothing,
            )
        best = losses.view(-1, k).argmin(1).cpu()
        return chosen.gather(1, best[:, None])[:, 0]

    def question_context(self, questions: Texts) -> Tensor:
        """What adapters enhance fused states by: one text-only state of each question, (Q, D)."""
        return self.text_states(questions)[:, 0]

    def encode_question(
        self,
        questions: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Fused states (Q, S, D) of questions.

        Args:
            image_states: (M, N, D), a picture's keys and values being computed once for all its questions.
            which: (Q,), the picture of each question.
            context: (C, D), `question_context` of a training batch, for adapters that enhance fused states by it.
        """
        more: dict[str, Any] = {} if context is None else {"context": context}
        return self._fuse(questions, image_states, which, **more)

    def answer_logits(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """A answers, (Q, S, D), (Q, S) -> logits (A, T, words), at each place of the token that follows."""
        states = self._decode(answers, question_states, question_mask, which)
        return self.model.text_decoder.cls(states).float()

    def answer_loss(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        certain: int = 0,
        tokens: Written | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy of each answer, summed over its tokens and its end, (A,); arguments as `answer_logits`.

        Args:
            which: (A,), the question of each answer, whose keys and values are computed once for all its answers.
            certain: see `base.Matcher.match`.
            tokens: which of the rows of ``answers`` are written, (A, T - 1) of each token but the first; None asks the
                mask, which waits for the device.
            label_smoothing: share of the target that is spread over all words.
        """
        states = self._decode(answers, question_states, question_mask, which, certain)
        tokens = _written(answers.lengths().tolist(), answers.ids.shape[1]) if tokens is None else tokens
        tokens = Written(*(part.to(states.device) for part in tokens))
        read = states[:, :-1].flatten(0, 1).index_select(0, tokens.places)  # the decoder reads one and writes the next
        logits = self.model.text_decoder.cls(read).float()  # (tokens, words)
        labels = answers.ids[:, 1:].flatten().index_select(0, tokens.places)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return tokens.sums(losses)

    def generate_answers(
        self, question_states: Tensor, question_mask: Tensor, *, num_beams: int, max_tokens: int
    ) -> list[str]:
        """The likeliest answers, greedily or by beams, of at most ``max_tokens`` tokens with the first."""
        text = self.model.config.text_config
        found = self.model.text_decoder.generate(
            input_ids=torch.full_like(question_mask[:, :1], DEC),
            encoder_hidden_states=question_states,
            encoder_attention_mask=question_mask,
            bos_token_id=DEC,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            do_sample=False,
            num_beams=num_beams,
            max_length=max_tokens,
        )
        return self.tokenizer.batch_decode(found[:, 1:], skip_special_tokens=True)

    def _decode(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None,
        certain: int = 0,
    ) -> Tensor:
        """States (A, T, D) of answers that have read their questions."""
        decoder = self.model.text_decoder.bert
        return decoder(
            input_ids=begin(answers.ids, DEC),
            attention_mask=ready(answers.mask, decoder, causal=True),
            is_decoder=True,  # each token sees those before it only
            use_cache=False,
            **self._shared(
                which,
                answers.ids.shape[1],
                certain=certain,
                encoder_hidden_states=question_states,
                encoder_attention_mask=ready(question_mask, decoder),
            ),
        ).last_hidden_state


def _written(lengths: Sequence[int], width: int, multiple: int = 1) -> Written:
    """The tokens that answers of such lengths write, each at the place of the one before, in rows of ``width`` - 1."""
    return written([0] * len(lengths), [length - 1 for length in lengths], width - 1, multiple)
