"""Decoder models as a `base.Writer`.

    pictures --> vision tower --> features, one set a picture --.
                                                                v
    chat template: question with the pictures' marks ----> language model --> the answer's tokens and the turn's end

A picture goes through the vision tower once for all its questions, in training and in inference. The language model
reads a question, the picture's features among it, anew for each of its answers and each beam.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, GenerationConfig
from transformers import __version__ as transformers_version
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # at the top it may want torchvision

from ...data.media import PictureFormat, TrainTransform
from ...errors import AuroraError, first_line, short
from ...files import read_json
from ..answers import Written, up_to, written
from ..base import Texts, View, asked
from ..folder import read_model, read_tokenizer
from ..hub import quiet
from ..wrapper import Backbone
from . import ahead
from .chat import Chat, read_template
from .pictures import Grids, Patches, Pictures, Read, Squares, Tiles, places, spread

BRIEF = "{question} Answer the question with a word or a short phrase."
LONGEST = 512  # tokens of a text of ours; a prompt with its pictures may be longer
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Kind:
    """What differs between the types of models."""

    pictures: type[Pictures]
    prompt: str = BRIEF
    chats: bool = True  # whether it has a chat template
    # the argument that tells tokens apart: of pictures from those of texts, or of answers from those of prompts
    types: str = ""


KINDS: dict[str, Kind] = {
    "idefics3": Kind(Tiles),
    "internvl": Kind(Patches),
    "llava": Kind(Squares),
    "paligemma": Kind(Squares, "answer en {question}", chats=False, types="token_type_ids"),
    "qwen2_5_vl": Kind(Grids, types="mm_token_type_ids"),
    "qwen2_vl": Kind(Grids, types="mm_token_type_ids"),
    "qwen3_vl": Kind(Grids, types="mm_token_type_ids"),
    "smolvlm": Kind(Tiles),
}


class Plain:
    """A picture as it is, or changed at random: its size is the image processor's affair."""

    least = 0

    def __init__(self, varied: TrainTransform | None) -> None:
        self.varied = varied

    def __call__(self, image: Image.Image, rng: Any = None) -> Tensor:
        """RGB picture -> (3, H, W) of bytes"""
        shown = image if self.varied is None else self.varied.varied(image, rng)
        return torch.from_numpy(np.array(shown)).permute(2, 0, 1).contiguous()


class WriterBackbone(Backbone):
    """A decoder model; see `base.Writer`.

    Args:
        model: of one of `KINDS`.
        tokenizer: the model's own; None for a model without weights.
        pictures: how it reads pictures.
        chat: how it is talked to; None for a model without weights.
        name: what messages call it.
    """

    longest = LONGEST

    def __init__(self, model: Any, tokenizer: Any, pictures: Pictures | None, chat: Chat | None, name: str) -> None:
        super().__init__(model, tokenizer, PictureFormat(0 if pictures is None else pictures.size), name)
        self.pictures, self.chat = pictures, chat
        self.kind = KINDS[model.config.model_type]
        self.defaults: Mapping[str, Any] = {
            "inference": "generate",
            "prompt": self.kind.prompt,
            "label_smoothing": 0.0,
            "max_question_tokens": LONGEST,
        }

    def view(self, training: bool = False, *, flip: bool = True) -> View:
        """What gives the bytes of a picture, (3, H, W): the image processor works on whole batches, in `collate`."""
        return Plain(TrainTransform(self.picture, flip=flip) if training else None)

    def view_key(self) -> str:
        return f"{self.model.config.model_type} {self.image_size}"

    def texts(self, words: Sequence[str], longest: int = 0) -> Texts:
        tokens = self.tokenizer(
            list(words),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=min(longest or LONGEST, LONGEST),
            add_special_tokens=False,
            return_tensors="pt",
        )
        return Texts(tokens["input_ids"], tokens["attention_mask"])

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
        """See `base.Writer`: ``input_ids`` and ``attention_mask`` (A, T) of prompts with their answers behind them, the
        padding last, and ``answer_places`` and ``answer_seats``, see `answers.Written`; without answers (Q, T) of
        prompts, the padding first. ``order`` has the places of the vision tower's features that each row reads, as
        numbers where pictures have different numbers of features. What the vision tower reads are the image
        processor's tensors, under its own names, and what `ahead` makes of them."""
        assert self.pictures is not None and self.chat is not None
        read = self.pictures.read([_frames(picture) for picture in pixels])
        which = list(range(len(questions))) if which is None else list(which)
        texts = asked([self._cut(question, longest) for question in questions], prompt)
        prompts = [self.chat.prompt(text, read.marks[place]) for text, place in zip(texts, which, strict=True)]
        pictures = read.tensors
        if self.pictures.gridded:
            pictures = pictures | ahead.of_tower(self.model, pictures["image_grid_thw"])
        if not answers:
            return pictures | self._order(read, which) | self._padded(prompts, [[]] * len(prompts))
        asking, answering = [prompts[question] for question in of], [self.chat.answer(answer) for answer in answers]
        batch = self._padded(asking, answering, multiple)
        tokens = written([*map(len, asking)], [*map(len, answering)], batch["input_ids"].shape[1], multiple)
        batch |= self._order(read, [which[question] for question in of])
        if self.pictures.gridded:
            batch["position_ids"] = self._positions(pictures["image_grid_thw"], batch)
        return pictures | batch | {"answer_places": tokens.places, "answer_seats": tokens.seats}

    def _order(self, read: Read, which: Sequence[int]) -> dict[str, Any]:
        assert self.pictures is not None
        order = places(read.parts, which)
        return {"order": order if self.pictures.decides_by_values else torch.tensor(order)}

    def _positions(self, grids: Sequence[ahead.Grid], batch: Mapping[str, Any]) -> Tensor:
        """(3, A, T): of Qwen-VL, the place of each token in the text, and in rows and columns of its picture."""
        grid = torch.tensor([grids[place] for place in batch["order"]])
        tokens = {name: batch[name] for name in ("attention_mask", self.kind.types)}
        positions: Tensor
        positions, _ = self.model.base_model.get_rope_index(batch["input_ids"], image_grid_thw=grid, **tokens)
        return positions

    def losses(self, batch: Mapping[str, Any], label_smoothing: float = 0.0) -> Tensor:
        """See `base.Writer`; logits are computed at the answers' tokens alone."""
        arguments = batch["arguments"] if "arguments" in batch else self._arguments(batch)
        states = self.model.base_model(**arguments, use_cache=False)[0]  # (A, T, D)
        tokens = Written(batch["answer_places"], batch["answer_seats"])
        before = (tokens.places - 1).clamp(min=0)
        logits = self.model.get_output_embeddings()(states.flatten(0, 1).index_select(0, before)).float()
        labels = batch["input_ids"].flatten().index_select(0, tokens.places)
        return tokens.sums(F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing))

    def before_graph(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch for a graph of torch.compile. Some vision towers decide by the values of tensors, which no graph can
        follow: for these it has ``arguments``, of the language model, in place of the pictures. They are as wide as the
        texts, however many features the pictures have, so that few shapes come about."""
        assert self.pictures is not None
        if not self.pictures.decides_by_values:
            return batch
        arguments = self._arguments(batch)
        features = arguments["mm_encoder_outputs"]["image"]
        if getattr(features, "deepstack_features", None) is None:  # else later layers read features too
            del arguments["mm_encoder_outputs"]
            ids = arguments.pop("input_ids")
            words = self.model.get_input_embeddings()(ids)
            rows = torch.cat([*features.pooler_output]).to(words.dtype)
            seats = (ids == self.model.config.image_token_id)[..., None].expand_as(words)
            arguments["inputs_embeds"] = words.masked_scatter(seats, rows)
        taken = {"order", "attention_mask", "position_ids", self.kind.types}
        rest = {name: part for name, part in batch.items() if not (name in taken or name.startswith(ahead.PREFIXES))}
        return rest | {"arguments": arguments}

    def write(self, batch: Mapping[str, Any], *, beams: int, longest: int) -> list[str]:
        """See `base.Writer`. Nothing that the model's own configuration says about sampling or repeated words is used:
        such rules are made for long texts."""
        assert self.chat is not None
        ends = self.model.generation_config.eos_token_id
        ends = {self.chat.around.end, *(ends if isinstance(ends, list) else [ends])} - {None}
        config = GenerationConfig(
            max_new_tokens=longest,
            max_length=None,
            do_sample=False,
            num_beams=beams,
            eos_token_id=sorted(ends),
            pad_token_id=_padding(self.tokenizer),
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            length_penalty=1.0,
            suppress_tokens=[self.model.config.image_token_id],  # the mark of a picture is no word
        )
        with quiet():
            found = self.model.generate(**self._arguments(batch), generation_config=config)
        written = found[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def _arguments(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of the model: tokens, and the features of the pictures that they are about."""
        assert self.pictures is not None
        features = self.model.get_image_features(**ahead.arguments_of(batch, self.model.config), return_dict=True)
        arguments = {name: batch[name] for name in ("input_ids", "attention_mask")}
        arguments["mm_encoder_outputs"] = {"image": spread(features, batch["order"])}
        if "position_ids" in batch:
            return arguments | {"position_ids": batch["position_ids"]}
        if self.pictures.gridded:
            grids = [batch["image_grid_thw"][place] for place in batch["order"]]
            arguments["image_grid_thw"] = torch.tensor(grids, device=batch["input_ids"].device)
        return arguments | ({self.kind.types: batch[self.kind.types]} if self.kind.types else {})

    def _cut(self, question: str, longest: int) -> str:
        tokens = self.tokenizer(question, add_special_tokens=False).input_ids
        if len(tokens) <= longest:
            return question
        shorter: str = self.tokenizer.decode(tokens[:longest])
        return shorter

    def _padded(self, prompts: list[list[int]], answers: list[list[int]], multiple: int = 1) -> dict[str, Tensor]:
        """Tokens, mask and, where the model tells them apart, types of tokens. Prompts alone end together, since
        what is written comes behind them."""
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        width, alone = up_to(max(map(len, rows)), multiple), not any(answers)
        ids = torch.full((len(rows), width), _padding(self.tokenizer))
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            start = width - len(row) if alone else 0
            ids[number, start : start + len(row)] = torch.tensor(row)
            mask[number, start : start + len(row)] = 1
            if self.kind.types == "token_type_ids":
                types[number, start + len(prompt) :] = 1
        if self.kind.types == "mm_token_type_ids":
            types = (ids == self.model.config.image_token_id).long()
        named = {self.kind.types: types} if self.kind.types else {}
        return {"input_ids": ids, "attention_mask": mask, **named}


def _frames(pixels: Tensor) -> list[Image.Image]:
    """(3, H, W), or (frames, 3, H, W), of bytes -> pictures"""
    frames = pixels[None] if pixels.dim() == 3 else pixels
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]


def _padding(tokenizer: Any) -> int:
    number: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return number


def configure(content: dict[str, Any], path: Path) -> Any:
    """A decoder model's configuration from that of a model folder.

    Raises:
        AuroraError: if transformers cannot make one of it.
    """
    try:
        config = AutoConfig.for_model(content["model_type"], **{k: v for k, v in content.items() if k != "model_type"})
        for part in (config.vision_config, config.get_text_config()):
            heads = getattr(part, "num_attention_heads", None) or getattr(part, "num_heads", 1)
            width = getattr(part, "embed_dim", None) or part.hidden_size
            if not getattr(part, "head_dim", None) and width % heads:
                raise ValueError(f"{heads} heads do not divide {width}")
    except Exception as error:  # odd values can raise anything in the library
        raise AuroraError(
            f"{path} is no configuration of its type: {first_line(error)}; copy the model again"
        ) from error
    return config


def empty(config: Any, name: str, task: str = "vqa", image_size: int | None = None) -> WriterBackbone:
    """The model without weights, tokenizer or image processor, on the current default device."""
    return WriterBackbone(_class_of(config)(config), None, None, None, name)


def _class_of(config: Any) -> Any:
    """The class that ``AutoModelForImageTextToText`` makes of a configuration.

    Raises:
        AuroraError: if the installed transformers cannot hand it pictures that went through the vision tower before.
    """
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if "mm_encoder_outputs" not in inspect.signature(kind.forward).parameters:
        raise AuroraError(
            f"models of type {config.model_type} need a newer transformers than {transformers_version}; install it "
            "with python -m pip install --upgrade transformers"
        )
    return kind


def check(folder: Path, config: Any, name: str, image_size: int | None = None) -> None:
    """Look for what would stop `load` beside the weights.

    Raises:
        AuroraError: if the folder lacks a tokenizer, chat template or image processor, or they are another model's.
    """
    _class_of(config)
    _company(folder, config, name, image_size)


def load(folder: Path, config: Any, name: str, task: str = "vqa", image_size: int | None = None) -> WriterBackbone:
    """Read a decoder model from a folder, its weights as they are stored.

    Raises:
        AuroraError: if its files do not hold one with its tokenizer, chat template and image processor, or it cannot
            read pictures of ``image_size``.
    """
    kind = _class_of(config)
    tokenizer, pictures, chat = _company(folder, config, name, image_size)
    model, _ = read_model(kind, config, folder, name, task, "copy the model again", widen=False)
    return WriterBackbone(model.eval(), tokenizer, pictures, chat, name)


def _company(folder: Path, config: Any, name: str, image_size: int | None) -> tuple[Any, Pictures, Chat]:
    """What a model has beside its weights."""
    kind = KINDS[config.model_type]
    tokenizer = read_tokenizer(folder, config, name)
    words = config.get_text_config().vocab_size
    if (largest := max(tokenizer.get_vocab().values(), default=-1)) >= words and kind.chats:
        raise AuroraError(
            f"model {name}: its tokenizer has numbers up to {largest}, its language model {words} words; take the "
            "tokenizer that the model was trained with"
        )
    mark = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if mark is None or tokenizer.eos_token_id is None:
        what = "token for the end of a text" if mark else f"token {config.image_token_id}, which stands for a picture"
        raise AuroraError(
            f"model {name}: its tokenizer has no {what}; take the tokenizer that the model was trained with"
        )
    pictures = kind.pictures(_processor(folder, name, kind.pictures.names), config, mark)
    if image_size is not None and image_size != pictures.size:
        pictures.resize(image_size)
    template = read_template(folder, tokenizer, name) if kind.chats else ""
    chat = Chat(tokenizer, template, mark, name)
    chat.prompt("what?", [mark])
    return tokenizer, pictures, chat


def _processor(folder: Path, name: str, names: Sequence[str]) -> Any:
    """A folder's image processor, by Pillow and NumPy.

    Raises:
        AuroraError: if there is none, it is of another model, or it cannot be read.
    """
    contents = ((folder / file, read_json(folder / file)) for file in PROCESSOR_FILES if (folder / file).is_file())
    settings = ((path, _settings(content)) for path, content in contents)
    path, kind = next(((path, kind) for path, kind in settings if kind), (None, ""))
    if path is None:
        raise AuroraError(
            f"model {name} has no {PROCESSOR_FILES[0]}, which says how it reads pictures; put it into {folder}, as the "
            "image processor's save_pretrained writes it"
        )
    if kind.removesuffix("Pil").removesuffix("Fast") not in names:
        raise AuroraError(f"{path} is of a {short(kind)}, the model wants {' or '.join(names)}; copy it again")
    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(str(folder), backend="pil", local_files_only=True)
    except Exception as error:  # odd values can raise anything in the library
        raise AuroraError(f"{path} cannot be read: {first_line(error)}; copy it again") from error


def _settings(content: Any) -> str:
    """The kind of image processor that a file is about; empty if it is about none."""
    part = content.get("image_processor", content) if isinstance(content, dict) else {}
    kind = part.get("image_processor_type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""
