"""Models of the Hugging Face hub: fetched into its cache once, and read from there like any folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import (
    HFValidationError,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    validate_repo_id,
)
from transformers.utils import logging as transformers_logging

from ..errors import AuroraError, first_line

CONFIG = "config.json"
FILES = (  # what a model is read from; fnmatch patterns
    CONFIG,
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
COMPANY = tuple(file for file in FILES if file != CONFIG and not file.startswith("model"))
RUN = "recipe.yaml"  # marks the folder of a run
RUN_FILES = (  # what a run is read from
    RUN,
    "metrics.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "parameters.safetensors",
    "trained.safetensors",
)
REACH_SECONDS = 10.0  # the hub's client alone would try for half a minute where the network is down


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can be that of a model of the hub: an owner, a slash, a model."""
    if name.count("/") != 1 or name.startswith(("~", ".")) or not name.isascii():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def fetch(name: str, weights: bool = True, company: bool = True) -> Path:
    """The folder in the hub's cache that holds a model, downloaded as far as it is not there.

    Args:
        weights: False fetches no weights.
        company: False fetches no tokenizer and the like.

    Raises:
        AuroraError: if the model is neither there nor to be had.
    """
    heavy = [file for file in FILES if file.startswith("model")]
    return _fetched(name, [[CONFIG], *([heavy] if weights else []), *([COMPANY] if company else [])])


def fetch_run(name: str) -> Path | None:
    """The folder in the hub's cache that holds a run that was pushed; None if the hub has a model under that name.

    Raises:
        AuroraError: if there is neither.
    """
    folder = fetch_adapter(name)
    return folder if (folder / RUN).is_file() else None


def fetch_adapter(name: str) -> Path:
    """The folder in the hub's cache that holds an adapter, of a run that was pushed or of peft alone.

    Raises:
        AuroraError: if there is nothing of that name.
    """
    return _fetched(name, [RUN_FILES])


def _fetched(name: str, groups: Sequence[Sequence[str]]) -> Path:
    """The folder in the hub's cache, with at least one file of each group of patterns."""
    wanted = [pattern for group in groups for pattern in group]
    reachable = is_reachable()
    why = "the hub cannot be reached; check the name and the network"
    with quiet():
        for local in (False, True) if reachable else (True,):
            try:
                folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local))
                # older clients give one that was fetched in part
                if not local or all(any(list(folder.glob(pattern)) for pattern in group) for group in groups):
                    return folder
            except Exception as error:  # of the hub's client, of the HTTP library below it, of the file system
                if not local:
                    why = f"the hub does not give it ({first_line(error)}); check the name and the network"
    cached = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}").is_dir()
    here = "its files on this machine are incomplete" if cached else "it is no folder here"
    raise AuroraError(f"model {name}: {here}, and {why}")


def is_reachable() -> bool:
    """Whether the hub answers, whatever it says. Nothing is asked where ``HF_HUB_OFFLINE`` forbids it."""
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
    except Exception:  # of the HTTP library, which differs between releases of the hub's client
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Keep bars, log lines and warnings of transformers and the hub's client off the screen: what matters of them
    becomes an error here, and weights of other tasks in a file are no cause for a warning."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level, no_hub_bars = hub.level, are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        hub.setLevel(logging.ERROR)
        disable_progress_bars()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            hub.setLevel(hub_level)
            if bars:
                transformers_logging.enable_progress_bar()
            if not no_hub_bars:
                enable_progress_bars()
