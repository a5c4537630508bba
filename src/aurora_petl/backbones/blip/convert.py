"""Original checkpoints of BLIP (``model_base.pth`` and its kin, github.com/salesforce/BLIP) to model folders.

    model_base.pth                                   models/blip-base/
      visual_encoder.blocks.0.attn.qkv.weight  ->      model.safetensors     under transformers' names, with temperature
      text_encoder.*  text_decoder.*  itm_head.* ->      config.json, tokenizer*.json, preprocessor_config.json
      visual_encoder_m.*  image_queue  ...     ->      momentum.safetensors  the state that BLIP's training goes on from

The folder serves every BLIP class of transformers for which the checkpoint has the parts. Every key of the checkpoint
is used, kept, or dropped for a reason that the report gives; an unknown one is an error.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from ...errors import AuroraError, short
from ...files import as_os_error, open_tensors, read_bytes, whole_folder
from ..base import resolve
from .model import ENC, ORIGINAL_EPSILON
from .positions import patches_per_side, resize_positions

WEIGHTS, MOMENTUM = "model.safetensors", "momentum.safetensors"
HEAD_WIDTH = 64  # of BLIP's attention heads, in base and large: 12 heads of 768, 16 of 1024
VOCABULARY = ENC + 1  # bert-base-uncased with [DEC] and [ENC]
POSITIONS = "vision_model.embeddings.position_embedding"
PATCHES = "vision_model.embeddings.patch_embedding.weight"

# beginnings of the original's names -> transformers'; what follows stays, names without a rule are the same in both
_BLOCK = r"visual_encoder\.blocks\.(\d+)\."
_LAYER = r"vision_model.encoder.layers.\1."
RULES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
        (r"visual_encoder\.pos_embed$", POSITIONS),
        (r"visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
        (r"visual_encoder\.norm\.", "vision_model.post_layernorm."),
        (_BLOCK + r"norm([12])\.", _LAYER + r"layer_norm\2."),
        (_BLOCK + r"attn\.qkv\.", _LAYER + "self_attn.qkv."),
        (_BLOCK + r"attn\.proj\.", _LAYER + "self_attn.projection."),
        (_BLOCK + r"mlp\.(fc[12])\.", _LAYER + r"mlp.\2."),
    )
]
TIED = {  # one weight under two names; transformers ties them again when it loads
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
QUEUES = ("image_queue", "text_queue")
PLACES = ("queue_ptr", "ptr_queue", "idx_queue")
TASKS = {  # transformers' class and the parts that it needs beside the vision tower
    "retrieval": ("BlipForImageTextRetrieval", ("text_encoder", "vision_proj", "text_proj", "itm_head")),
    "VQA": ("BlipForQuestionAnswering", ("text_encoder", "text_decoder")),
    "captioning": ("BlipForConditionalGeneration", ("text_decoder",)),
}


@dataclass
class Conversion:
    """What became of a checkpoint: its keys by what was done with them, and the tasks that lack parts."""

    folder: Path
    config: Any  # BlipConfig
    used: list[str] = field(default_factory=list)
    momentum: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)  # key -> why
    lacking: dict[str, list[str]] = field(default_factory=dict)  # task -> parts that are not there


class Momentum(NamedTuple):
    """The momentum encoder's state in a converted folder."""

    weights: dict[str, Tensor]  # exponential averages, under transformers' names
    image_queue: Tensor  # (Q, P) unit features of earlier pictures; row i of both queues was a pair
    text_queue: Tensor  # (Q, P)


def convert(checkpoint: str | Path, folder: str | Path, *, image_size: int | None = None) -> Conversion:
    """Write an original checkpoint as a model folder, which appears whole or not at all.

    Nothing in the file is executed: it is read with ``weights_only=True``.

    Args:
        checkpoint: ``.pth`` of BLIP's pretraining, retrieval, VQA or captioning, base or large.
        folder: must not exist.
        image_size: interpolate the position embeddings to pictures of this many pixels a side; None: as they are.

    Raises:
        AuroraError: if the file is no such checkpoint, has keys that are not known, or ``folder`` exists.
    """
    path, folder = Path(checkpoint), Path(folder)
    if folder.exists():
        raise AuroraError(f"{folder} exists already; name another folder")
    state = _read(path)
    config = _config(state, path)
    side = None if image_size is None else patches_per_side(image_size, config.vision_config.patch_size)
    report = Conversion(folder, config)
    weights, averages = _sort(state, path, report)
    if side is not None:
        config.vision_config.image_size = image_size
        for tensors in (weights, averages):
            if POSITIONS in tensors:
                tensors[POSITIONS] = resize_positions(tensors[POSITIONS].float(), side)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as partial, as_os_error(folder):
        _save(weights, partial / WEIGHTS)
        if averages:
            _save(averages, partial / MOMENTUM)
        config.architectures = [kind for task, (kind, _) in TASKS.items() if task not in report.lacking][:1]
        config.save_pretrained(partial)
        _save_preprocessing(partial, config)
    return report


def read_momentum(name_or_path: str | Path, names: Iterable[str], image_size: int) -> Momentum:
    """The averages called ``names`` (transformers' names; those that exist) and the queue of a converted model.

    Args:
        image_size: pixels a side that position embeddings, if among them, are interpolated to.

    Raises:
        AuroraError: if the model's folder holds none, or a broken one.
    """
    path = Path(resolve(name_or_path)) / MOMENTUM
    if not path.is_file():
        raise AuroraError(
            f"model {name_or_path} has no {MOMENTUM}, which task.momentum_init=checkpoint starts from; use a folder "
            "made by aurora convert from a pretraining or retrieval checkpoint, or task.momentum_init=copy"
        )
    with open_tensors(path, mend="convert the checkpoint again") as file:
        present = set(file.keys())
        if lacking := [queue for queue in QUEUES if queue not in present]:
            raise AuroraError(f"{path} has no {lacking[0]}; convert the checkpoint again")
        weights = {name: file.get_tensor(name).float() for name in names if name in present}
        if POSITIONS in weights:
            patch_size = file.get_slice(PATCHES).get_shape()[-1]
            weights[POSITIONS] = resize_positions(weights[POSITIONS], patches_per_side(image_size, patch_size))
        image_queue, text_queue = (file.get_tensor(queue).float() for queue in QUEUES)
    for key, value in {**weights, QUEUES[0]: image_queue, QUEUES[1]: text_queue}.items():
        if not value.isfinite().all():
            raise AuroraError(f"{path}: {key} holds NaN or infinity; convert the checkpoint again")
    return Momentum(weights, image_queue, text_queue)


def rename(key: str) -> str:
    """transformers' name of an original weight."""
    for pattern, name in RULES:
        if found := pattern.match(key):
            return found.expand(name) + key[found.end() :]
    return key


def _read(path: Path) -> dict[str, Tensor]:
    """The weights of a ``.pth``, in the file's memory map where its format allows."""
    try:
        head = read_bytes(path, 40)
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise AuroraError(f"{path}: {what}; name a checkpoint like model_base.pth") from error
    if head.startswith(b"version https://git-lfs"):
        raise AuroraError(f"{path} is a pointer of git-lfs, not the checkpoint; fetch it with git lfs pull")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that torch.save did not write can raise anything
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise AuroraError(
                f"{path} holds {found[1] if found else 'objects'} beside its weights, and reading such objects can run "
                "code: it is refused; save its weights alone, as torch.save({'model': weights}, ...)"
            ) from error
        raise AuroraError(f"{path} is no file of torch.save, or not all of one; download it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        keys = f"it has {_some(content)}" if isinstance(content, dict) else f"it holds a {type(content).__name__}"
        raise AuroraError(f"{path} has no 'model', under which BLIP's checkpoints keep their weights; {keys}")
    state = content["model"]
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise AuroraError(f"{path}: {_some([key])} among its weights is no tensor")
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise AuroraError(f"{path}: {_some([key])} is no plain tensor; save the weights as float32 or float16")
        if value.is_floating_point() and not value.isfinite().all():
            raise AuroraError(f"{path}: {_some([key])} holds NaN or infinity; download it again")
    return state


def _config(state: dict[str, Tensor], path: Path) -> Any:
    """The `BlipConfig` that the weights' shapes imply."""

    def shape(key: str, dimensions: int) -> torch.Size:
        if key not in state:
            raise AuroraError(f"{path} is no BLIP checkpoint: it has no {key}, but {_some(state)}")
        if state[key].ndim != dimensions:
            raise AuroraError(f"{path}: {key} of shape {tuple(state[key].shape)} is of no known BLIP")
        return state[key].shape

    def layers(prefix: str) -> int:
        found = (re.match(rf"{re.escape(prefix)}(\d{{1,9}})\.", key) for key in state)
        numbers = {int(number[1]) for number in found if number}
        if numbers != set(range(len(numbers))):
            raise AuroraError(f"{path} is not whole: of the layers {prefix}N some before {max(numbers)} are missing")
        return len(numbers)

    text = "text_encoder." if any(key.startswith("text_encoder.") for key in state) else "text_decoder.bert."
    _, tokens, vision_width = shape("visual_encoder.pos_embed", 3)
    patch = shape("visual_encoder.patch_embed.proj.weight", 4)[-1]
    vision_inner, _ = shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)
    vocabulary, text_width = shape(f"{text}embeddings.word_embeddings.weight", 2)
    longest, _ = shape(f"{text}embeddings.position_embeddings.weight", 2)
    text_inner, _ = shape(f"{text}encoder.layer.0.intermediate.dense.weight", 2)
    projection = shape("vision_proj.weight", 2)[0] if "vision_proj.weight" in state else 256
    side = round((tokens - 1) ** 0.5)
    for wrong, what in (
        (not min(patch, vision_width, text_width, vision_inner, text_inner, longest, projection), "weights of no size"),
        (side * side != tokens - 1, f"{tokens - 1} picture positions, which make no square"),
        (vision_width % HEAD_WIDTH, f"a vision width of {vision_width}, no multiple of {HEAD_WIDTH}"),
        (text_width % HEAD_WIDTH, f"a text width of {text_width}, no multiple of {HEAD_WIDTH}"),
        (vocabulary != VOCABULARY, f"{vocabulary} words, not bert-base-uncased's with [DEC] and [ENC], {VOCABULARY}"),
    ):
        if wrong:
            raise AuroraError(f"{path} fits no known size of BLIP: it has {what}")
    return BlipConfig(
        text_config=dict(
            vocab_size=vocabulary,
            hidden_size=text_width,
            encoder_hidden_size=vision_width,
            intermediate_size=text_inner,
            projection_dim=projection,
            num_hidden_layers=layers(f"{text}encoder.layer."),
            num_attention_heads=text_width // HEAD_WIDTH,
            max_position_embeddings=longest,
            layer_norm_eps=1e-12,
            bos_token_id=30522,
            sep_token_id=102,
            eos_token_id=102,
            pad_token_id=0,
            label_smoothing=0.1,
        ),
        vision_config=dict(
            hidden_size=vision_width,
            intermediate_size=vision_inner,
            projection_dim=projection,
            num_hidden_layers=layers("visual_encoder.blocks."),
            num_attention_heads=vision_width // HEAD_WIDTH,
            image_size=side * patch,
            patch_size=patch,
            layer_norm_eps=ORIGINAL_EPSILON,
            initializer_range=0.02,
        ),
        projection_dim=projection,
        image_text_hidden_size=projection,
    )


def _sort(state: dict[str, Tensor], path: Path, report: Conversion) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the two files by their names there; ``report`` learns what became of every key."""
    shapes = _shapes(report.config)
    weights: dict[str, Tensor] = {}
    averages: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        stem, _, rest = key.partition(".")
        name = rename(f"{stem.removesuffix('_m')}.{rest}")
        if key.endswith("embeddings.position_ids"):
            report.dropped[key] = "position_ids, which transformers counts anew"
        elif key in PLACES:
            report.dropped[key] = "places and ids of the queue, which mean nothing to other data"
        elif key in QUEUES and value.ndim == 2 and len(value) == report.config.image_text_hidden_size:
            averages[key] = value.T
            report.momentum.append(key)
        elif key == "temp" and value.numel() == 1:
            weights["temperature"] = value.reshape(1)
            report.used.append(key)
        elif shapes.get(name) != value.shape:
            unknown.append(f"{key} {tuple(value.shape)}")
        elif name in TIED and TIED[name] in state and torch.equal(value, state[TIED[name]]):
            report.dropped[key] = f"second name of {TIED[name].split('.', 1)[1]}"
        elif stem.endswith("_m"):
            averages[name] = value
            report.momentum.append(key)
        else:
            weights[name] = value
            report.used.append(key)
    if unknown:
        raise AuroraError(f"{path}: {len(unknown)} keys have no place in BLIP of this size: {_some(unknown)}")
    parts = {name.split(".")[0] for name in weights}
    if missing := sorted(n for n in shapes if n.split(".")[0] in parts and n not in weights and n not in TIED):
        raise AuroraError(f"{path} is not whole: it lacks {len(missing)} weights, {_some(missing)}")
    if averages and not set(QUEUES) <= set(averages):
        raise AuroraError(f"{path} is not whole: it has momentum weights without both of {' and '.join(QUEUES)}")
    for task, (_, needed) in TASKS.items():
        if lacks := [part for part in needed if part not in parts]:
            report.lacking[task] = lacks
    return weights, averages


def _shapes(config: Any) -> dict[str, torch.Size]:
    """Names and shapes of all weights that BLIP's tasks have in transformers."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in BlipForImageTextRetrieval(config).state_dict().items()}
        decoder = BlipTextLMHeadModel(config.text_config).state_dict()
    return shapes | {f"text_decoder.{name}": value.shape for name, value in decoder.items()}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write safetensors, which take no two tensors in the same memory; encoder and decoder share some of theirs."""
    seen: set[int] = set()
    own = {}
    for name, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        own[name] = value.clone(memory_format=torch.contiguous_format) if memory in seen else value.contiguous()
        seen.add(memory)
    save_file(own, path, metadata={"format": "pt"})


def _save_preprocessing(folder: Path, config: Any) -> None:
    """Tokenizer and picture processor: blip-mini's, which are BLIP's but for the sizes."""
    ours = Path(resolve("blip-mini"))
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    changes: dict[str, dict[str, Any]] = {
        "tokenizer.json": {"truncation": None, "padding": None},
        "tokenizer_config.json": {"model_max_length": config.text_config.max_position_embeddings},
        "preprocessor_config.json": {"size": size},
    }
    for name, changed in changes.items():
        content = json.loads((ours / name).read_text(encoding="utf-8")) | changed
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _some(names: Iterable[Any]) -> str:
    """The first few of some names."""
    shown = list(names)
    first = [name if name.isprintable() and 0 < len(name) <= 100 else short(name) for name in map(str, shown[:3])]
    return ", ".join(first) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "") or "nothing"
