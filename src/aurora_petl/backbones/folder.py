"""Model folders: what of their files can be checked before a library reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from ..errors import AuroraError, first_line, install, short
from ..files import open_tensors, read_json
from .hub import CONFIG, quiet

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class Stored:
    """A tensor in a model's files."""

    file: Path
    shape: tuple[int, ...]
    kind: str  # safetensors' name of its dtype


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's configuration, an object with a ``model_type``.

    Raises:
        AuroraError: if it is not that.
    """
    path = folder / CONFIG
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise AuroraError(f"{folder} holds an adapter, not a model; name the model that the adapter was trained on")
        if (folder / "recipe.yaml").is_file():
            raise AuroraError(
                f"{folder} is a run, not a model; name the model that it tuned, with train.init_from={folder} to begin "
                f"where the run ended, or make a model of both: aurora export {folder} OUT"
            )
        raise AuroraError(f"model folder {folder} has no config.json; name a folder saved by save_pretrained")
    content = read_json(path)
    if not isinstance(content, dict):
        raise AuroraError(f"{path} holds {short(content)}, not the configuration of a model; save the model again")
    if not isinstance(content.get("model_type"), str):
        raise AuroraError(f"{path}: model_type is {short(content.get('model_type'))}, not a name; save the model again")
    return content


def make_config(content: dict[str, Any], path: Path, towers: tuple[str, str], size: str = "image_size") -> Any:
    """transformers' configuration of a ``config.json``, of the type that it names.

    Args:
        towers: fields of the parts that are towers of layers; the first is that of pictures.
        size: field of the first with the size of what it reads.

    Raises:
        AuroraError: if transformers cannot make one of it, patches are no whole numbers or heads do not fit.
    """
    try:
        config = AutoConfig.for_model(content["model_type"], **{k: v for k, v in content.items() if k != "model_type"})
        pictures = getattr(config, towers[0])
        with_patches = (getattr(pictures, size), pictures.patch_size)
        if not all(isinstance(value, int) and 0 < value <= 16_384 for value in with_patches):
            raise ValueError(f"{size} and patch_size are {with_patches}, which must be whole numbers above 0")
        for tower in (getattr(config, name) for name in towers):
            if tower.hidden_size % tower.num_attention_heads:
                raise ValueError(f"{tower.num_attention_heads} heads do not divide {tower.hidden_size}")
    except Exception as error:  # odd values can raise anything in the library
        raise AuroraError(
            f"{path} is no configuration of its type: {first_line(error)}; copy the model again"
        ) from error
    return config


def read_index(folder: Path) -> dict[str, Stored]:
    """The tensors in a folder's weights, one safetensors file or several with an index, without their values.

    Raises:
        AuroraError: if a file is missing or broken, or the weights are in another format.
    """
    if (folder / WEIGHTS).exists():
        return _tensors_in(folder / WEIGHTS)
    index = folder / INDEX
    if not index.exists():
        others = sorted(
            path.name for path in folder.glob("*") if path.suffix in (".bin", ".pth", ".pt", ".ckpt", ".h5")
        )
        if others:
            raise AuroraError(
                f"model folder {folder} has its weights as {others[0]} only, and weights are read from safetensors "
                "alone; save the model again with save_pretrained of a recent transformers"
            )
        raise AuroraError(f"model folder {folder} has no {WEIGHTS}; copy the model again")
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise AuroraError(f"{index} has no weight_map of names to files; copy the model again")
    stored: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise AuroraError(f"{index} names the file {short(name)}, no safetensors file of its folder")
        stored |= _tensors_in(folder / name)
    if missing := sorted(name for name in places if name not in stored):
        raise AuroraError(f"{index} promises {short(missing[0])}, which no file has; copy the model again")
    return stored


def _tensors_in(file: Path) -> dict[str, Stored]:
    with open_tensors(file, mend="copy the model again") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (safe_open is no mapping)
        return {name: Stored(file, tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


def check_shapes(skeleton: nn.Module, stored: dict[str, Stored], name: str) -> None:
    """Compare what is stored with a model on the meta device, so that nothing is allocated for files that do not fit.

    Raises:
        AuroraError: if a weight has another shape than the configuration says, or is no floating-point tensor.
    """
    wanted = {
        key: value for key, value in skeleton.state_dict(keep_vars=True).items() if isinstance(value, nn.Parameter)
    }
    for key, value in wanted.items():
        if key not in stored:
            continue
        file, shape, kind = stored[key].file, stored[key].shape, stored[key].kind
        if shape != tuple(value.shape):
            raise AuroraError(
                f"{file}: {key} is {shape}, but {CONFIG} beside it makes it {tuple(value.shape)}; "
                "the two are of different models"
            )
        if kind not in FLOATS:
            raise AuroraError(f"{file}: {key} is of type {kind}; weights are read in {', '.join(FLOATS)} alone")
    if not wanted.keys() & stored.keys():
        raise AuroraError(
            f"model {name}: its weights are of another model; the first is called {short(min(stored, default=''))}"
        )


def read_model(
    kind: Any,
    config: Any,
    folder: Path,
    name: str,
    task: str,
    fitting: str,
    put: Callable[[Any, set[str]], set[str]] | None = None,
    *,
    widen: bool = True,
) -> tuple[Any, dict[str, Stored]]:
    """A transformers model and what its files hold; its shapes are compared before memory is taken.

    Args:
        kind: the model's class.
        task: what the model is for, for messages.
        fitting: what to take where parts are missing, for messages.
        put: gives some of the missing weights a value, and returns which.
        widen: to float32; else weights are as they are stored, and may be called as other releases of transformers
            called them.

    Raises:
        AuroraError: if the files hold another model, weights are missing, or a weight is not finite.
    """
    stored = read_index(folder)
    with torch.device("meta"):
        skeleton = kind(config)
    if not widen:
        stored = _renamed(stored, skeleton)
    check_shapes(skeleton, stored, name)
    _check_parts(skeleton, set(stored), name, task, fitting)
    with quiet():
        try:
            loaded, report = kind.from_pretrained(
                str(folder), config=config, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise AuroraError(f"model {name} cannot be read: {first_line(error)}; copy it again") from error
    missing = set(report["missing_keys"])
    if put is not None:
        missing -= put(loaded, missing)
    if missing:
        raise AuroraError(f"model {name}: {len(missing)} weights are missing, {min(missing)} among them; {fitting}")
    model = loaded.float() if widen else loaded
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise AuroraError(
                f"model {name}: {key} holds NaN or infinity; copy the model again, or take an earlier one"
            )
    model.name_or_path = model.config._name_or_path = name  # what peft writes into an adapter's configuration
    return model, stored


def _renamed(stored: dict[str, Stored], skeleton: Any) -> dict[str, Stored]:
    """What is stored under the names that transformers loads it to."""
    from transformers.conversion_mapping import get_model_conversion_mapping  # not in every release that reads BLIP
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    own, prefix = skeleton.state_dict(), skeleton.base_model_prefix
    renamings = [part for part in get_model_conversion_mapping(skeleton) if isinstance(part, WeightRenaming)]
    return {rename_source_key(key, renamings, [], prefix, own)[0]: value for key, value in stored.items()}


def _check_parts(skeleton: nn.Module, stored: set[str], name: str, task: str, fitting: str) -> None:
    """Refuse files that lack whole parts, or most of the weights, before memory is taken for these."""
    weights = {key: weight.numel() for key, weight in skeleton.named_parameters()}
    lacking = {key: size for key, size in weights.items() if key not in stored}
    if parts := [part for part, module in skeleton.named_children() if set() < _all_of(part, module) <= set(lacking)]:
        raise AuroraError(f"model {name} has no {', '.join(parts)}, which {task} needs; {fitting}")
    if 2 * sum(lacking.values()) > sum(weights.values()):
        raise AuroraError(f"model {name}: {len(lacking)} weights are missing, {min(lacking)} among them; {fitting}")


def _all_of(part: str, module: nn.Module) -> set[str]:
    """Names of a part's weights in the model."""
    return {f"{part}.{name}" for name, _ in module.named_parameters()}


def read_tokenizer(folder: Path, config: Any, name: str) -> Any:
    """A folder's tokenizer, without code of its own.

    Raises:
        AuroraError: if there is none, or it cannot be read.
    """
    check_tokenizer_files(folder, name)
    try:
        with quiet():
            # without the configuration, the library would read the file anew, odd fields included
            return AutoTokenizer.from_pretrained(
                str(folder), config=config, local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        raise AuroraError(f"model {name}: its tokenizer needs sentencepiece: {install('siglip')}") from error
    except Exception as error:  # odd files can raise anything in the library and in its Rust core
        raise AuroraError(
            f"model {name}: its tokenizer cannot be read ({type(error).__name__}: {first_line(error)}); copy "
            f"tokenizer.json and tokenizer_config.json in {folder} again"
        ) from error


def check_tokenizer_files(folder: Path, name: str) -> None:
    """Make sure that a folder has a vocabulary: without one, transformers hands out a tokenizer that knows no word.

    Raises:
        AuroraError: if it has none.
    """
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise AuroraError(
            f"model {name} has no tokenizer: put tokenizer.json and tokenizer_config.json into its folder, as "
            "tokenizer.save_pretrained writes them"
        )
