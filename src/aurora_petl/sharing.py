"""A run on the Hugging Face hub: what goes up, and how. `api.load` and peft read it from there by its name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import ModelCard

from .backbones import embedded_models
from .backbones.hub import RUN, is_hub_id, is_reachable, quiet
from .baselines import CARD, PEFT_CONFIG
from .errors import AuroraError, first_line, short
from .files import read_json, read_text, write_json, write_text
from .recipe import Recipe, load_saved
from .report import ADAPTER_PLACE, RUN_PLACE, front_matter, run_card
from .training import ADAPTER, ANSWERS

METRICS = "metrics.json"
OTHERS = (METRICS, ANSWERS, "curve.png")  # gallery.png shows the user's pictures


def push(run: str | Path, name: str, *, private: bool = False, base_model: str = "") -> str:
    """Upload what `prepared` makes of a run, as one commit; a repository of that name is made if there is none.

    Returns:
        the address of the repository.

    Raises:
        AuroraError: see `prepared`; if nobody is logged in, or the hub cannot be reached or refuses.
    """
    with prepared(Path(run), name, base_model) as folder:
        if huggingface_hub.get_token() is None:
            raise AuroraError("nobody is logged in to the hub; run hf auth login, or set HF_TOKEN")
        if not is_reachable():
            raise AuroraError("the hub cannot be reached; check the network, then push again")
        try:
            with quiet():
                place = huggingface_hub.create_repo(name, private=private or None, exist_ok=True)
                huggingface_hub.upload_folder(
                    repo_id=name, folder_path=str(folder), commit_message="Adapter trained by Aurora"
                )
        except Exception as error:  # of the hub's client, of the HTTP library below it
            raise AuroraError(
                f"the hub does not take {name} ({first_line(error)}); check that the login may write there"
            ) from error
    return str(place)


@contextmanager
def prepared(run: Path, name: str, base_model: str = "") -> Iterator[Path]:
    """A folder, removed afterwards, with what goes up: the adapter, its card, the recipe without paths of this machine,
    metrics, the answers to choose from and the curve. Pictures do not.

    Args:
        name: owner and name of the repository.
        base_model: the hub id of the model that the run tuned, where it tuned a folder's.

    Raises:
        AuroraError: if ``run`` is not finished, ``name`` is none, or nobody else could tell which model was tuned.
    """
    if not is_hub_id(name):
        raise AuroraError(f"{short(name)} is no name of the hub; give owner and name, such as you/my-photos")
    if not (run / METRICS).is_file() or not (run / ADAPTER).is_dir():
        raise AuroraError(f"{run} holds no finished run; train it to its end, or name another folder")
    recipe = load_saved(run / RUN)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        shutil.copytree(run / ADAPTER, folder)
        for other in OTHERS:
            if (run / other).is_file():
                shutil.copyfile(run / other, folder / other)
        _without_places(recipe, base_model).save(folder / RUN)
        if base_model and (folder / PEFT_CONFIG).is_file():
            write_json(folder / PEFT_CONFIG, read_json(folder / PEFT_CONFIG) | {"base_model_name_or_path": base_model})
        _finish_card(run, folder / CARD, recipe, name, base_model)
        yield folder


def _without_places(recipe: Recipe, base_model: str) -> Recipe:
    """A recipe that others can read: the tuned model by a name that they know, the data by their name alone."""
    known = recipe.model in embedded_models() or (is_hub_id(recipe.model) and not Path(recipe.model).exists())
    if base_model and (known or not is_hub_id(base_model)):
        why = f"the run tuned {recipe.model}; leave it out" if known else "it must be a hub id, an owner and a name"
        raise AuroraError(f"--base-model is {short(base_model)}: {why}")
    if not known and not base_model:
        raise AuroraError(
            f"the run tuned the model in {recipe.model}, a folder that others do not have; say with --base-model which "
            "model of the hub it is"
        )
    start = recipe.train.init_from  # of the hub, others know it by its name
    train = replace(recipe.train, init_from=start if is_hub_id(start) and not Path(start).exists() else "")
    made = replace(recipe, model=base_model or recipe.model, data=Path(recipe.data).name, root="", files={})
    return replace(made, train=train)


def _finish_card(run: Path, file: Path, recipe: Recipe, name: str, base_model: str) -> None:
    """Put the repository's name, and the hub's name of the model, into a card."""
    text = read_text(file) if file.is_file() else run_card(recipe, read_json(run / METRICS))
    for place in (RUN_PLACE, ADAPTER_PLACE):
        text = text.replace(place, name)
    if base_model:
        card = ModelCard(text.replace(recipe.model, base_model))
        for key, value in front_matter(replace(recipe, model=base_model)).to_dict().items():
            card.data[key] = value
        text = str(card)
    write_text(file, text)
