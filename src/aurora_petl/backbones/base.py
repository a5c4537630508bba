"""The interface that tasks and evaluation use, and the registry of model families."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import AuroraError, short
from .folder import read_config
from .hub import CONFIG, fetch, is_hub_id

# model_type of a transformers config -> module here with `configure(content, name, path)`, `load(folder, config, name,
# task, image_size)`, and `empty` without the folder
FAMILIES = {"blip": "blip"}


class Tunable(Protocol):
    """A pretrained vision-language model, whatever its task: what methods, training and all tasks ask of it.

    ``model`` is the transformers model that peft adapts in place; every method reads it at call time, so an
    injected adapter takes part. Shapes: B pictures or texts, N picture tokens, T text tokens, D widths. Tensors are on
    the model's device, but for ``which``, places that decide on shapes: a list, or a tensor on the CPU.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_size: int
    heads: tuple[str, ...]  # modules that `train_heads` trains beside the adapter
    adapter: PeftModel | None  # peft's wrapper of ``model`` once a method is applied

    @property
    def module(self) -> nn.Module:
        """The outermost module, which owns every weight: ``adapter`` if there is one, else ``model``."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) -> picture states (B, N, D)"""
        ...

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T), (B, T) -> text-only states (B, T, D)"""
        ...


class Backbone(Tunable, Protocol):
    """A `Tunable` for retrieval; P is the width of the joint space."""

    joint_width: int  # P

    def project_image(self, image_states: Tensor) -> Tensor:
        """(B, N, D) -> unit vectors (B, P)"""
        ...

    def project_text(self, text_states: Tensor) -> Tensor:
        """(B, T, D) -> unit vectors (B, P)"""
        ...

    def begin_match(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
        """(B, T), (B, T) -> (B, T, D), what `match` computes of texts before they meet a picture, for its ``begun``;
        None if there is no such part."""
        ...

    def match(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        positive: Tensor | None = None,
        begun: Tensor | None = None,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
        frames: Tensor | None = None,
    ) -> Tensor:
        """ITM logits (B, 2) of text-picture pairs, column 1 for a match.

        Args:
            image_states: (M, N, D), a picture's keys and values being computed once for all the texts it meets.
            which: (B,), the picture that each text meets. None: text i meets picture i, or all meet the only one.
            context: (C, D), text-only [CLS] states of a training batch, for adapters that enhance fused states by it.
            positive: (B,), which pairs match, for the released form of that.
            begun: what `begin_match` gave for these texts.
            kept: an empty dict, in which a call keeps the pictures' keys and values for later calls with the same
                ``image_states``, without gradient to them.
            frames: (B, F), frame-aware attention: by how much each text weighs the keys of each frame's patches, where
                ``image_states`` are those of clips, (M, F * N, D).
        """
        ...

    def temperature(self) -> Tensor:
        """The ITC temperature, a learned scalar clamped to [0.001, 0.5]."""
        ...


class AnsweringBackbone(Tunable, Protocol):
    """A `Tunable` that answers questions about pictures: Q questions of S tokens, A answers of T tokens.

    The first token of a question or an answer, [CLS] as it comes from the tokenizer, is replaced by the one that the
    model wants there. Without ``which`` answer i is of question i, or all are of the only one, and likewise for the
    pictures of questions.
    """

    longest: int  # tokens that a question or an answer may have

    def encode_question(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Fused states (Q, S, D) of questions (Q, S).

        Args:
            image_states: (M, N, D), a picture's keys and values being computed once for all its questions.
            which: (Q,), the picture of each question.
            context: (C, D), text-only [CLS] states of a training batch, for adapters that enhance fused states by it.
        """
        ...

    def answer_logits(
        self,
        answer_ids: Tensor,
        answer_mask: Tensor,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """(A, T), (A, T), (Q, S, D), (Q, S) -> logits (A, T, words), at each place of the token that follows."""
        ...

    def answer_loss(
        self,
        answer_ids: Tensor,
        answer_mask: Tensor,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy of each answer, summed over its tokens and its end, (A,); arguments as `answer_logits`.

        Args:
            which: (A,), the question of each answer, whose keys and values are computed once for all its answers.
            lengths: tokens of each answer, if they are known; else the mask is asked, which waits for the device.
            label_smoothing: share of the target that is spread over all words.
        """
        ...

    def generate_answers(
        self, question_states: Tensor, question_mask: Tensor, *, num_beams: int, max_tokens: int
    ) -> list[str]:
        """The likeliest answers, greedily or by beams, of at most ``max_tokens`` tokens with the first."""
        ...


def embedded_models() -> list[str]:
    """Names of the backbones that ship with the package."""
    return sorted(path.parent.name for path in (_assets()).glob("*/model.safetensors"))


def _assets() -> Path:
    return Path(str(files("aurora_petl"))) / "assets"


def load_backbone(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    image_size: int | None = None,
    weights: bool = True,
    task: str = "retrieval",
) -> Any:
    """Load a backbone: an embedded one (``blip-mini``), a local folder, or a model of the Hugging Face hub.

    Weights are read from safetensors only.

    Args:
        image_size: pixels a side of the pictures that it will see; its position embeddings are interpolated to that,
            once. None: the model's own.
        weights: False reads the configuration alone and puts the model on the meta device, to count weights with.
        task: retrieval gives a `Backbone`, vqa an `AnsweringBackbone`.

    Raises:
        AuroraError: if there is no such model, it is of no known family, it lacks weights that the task needs, its
            files cannot be read, or its patches do not fill ``image_size``.
    """
    path, name = resolve(name_or_path), str(name_or_path)
    folder = Path(path) if Path(path).is_dir() else fetch(path, weights)
    content = read_config(folder)
    family = FAMILIES.get(content["model_type"])
    if family is None:
        raise AuroraError(
            f"model {name} is of type {short(content['model_type'])}, which has no backbone here; "
            f"choose one of type {', '.join(sorted(FAMILIES))}"
        )
    module = import_module(f".{family}", __package__)
    config = module.configure(content, folder / CONFIG)
    if not weights:
        with torch.device("meta"):
            return module.empty(config, name, task, image_size)
    backbone: Tunable = module.load(folder, config, name, task, image_size)
    cast(nn.Module, backbone.model).to(device=device, dtype=dtype)
    return backbone


def resolve(name_or_path: str | Path) -> str:
    """The folder or hub id behind a name.

    Raises:
        AuroraError: if it is none of an embedded name, a model folder and a hub id.
    """
    name = str(name_or_path)
    if name in embedded_models():
        return str(_assets() / name)
    try:
        place = Path(name)
        if place.is_dir():
            return name
        if place.is_file():
            make = "; aurora convert makes one of a .pth file" if place.suffix == ".pth" else ""
            raise AuroraError(f"model {short(name)} is a file, not a model folder{make}")
    except (OSError, ValueError):  # too long a name, or one that no file system takes
        pass
    if is_hub_id(name):
        return name
    raise AuroraError(
        f"no model {short(name)}: it is neither embedded ({', '.join(embedded_models())}), nor a folder on this "
        "machine, nor a hub id like Salesforce/blip-itm-base-coco"
    )


def checkpoint_layers(model: Any, reentrant: bool = False) -> None:
    """Switch on gradient checkpointing of a transformers model, under whichever of its two names it has there."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
