"""The files by which sentence-transformers reads a folder that transformers reads as well.

The library has a module `Transformer`, which calls the model's ``get_image_features`` and ``get_text_features``, and
one that makes vectors of length 1 of what they give. BLIP and BLIP-2 have no such methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .backbones import find_family
from .errors import AuroraError
from .files import write_json
from .recipe import Recipe
from .tasks.settings import RetrievalSettings

OLDEST = "6.2.0"  # release of sentence-transformers that the files are for; an older one warns
FAMILIES = ("dual", "naflex")  # modules of `backbones` whose models have both methods
_MODULES = "sentence_transformers.base.modules"
_METHODS = {
    kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("text", "image")
}


def check(recipe: Recipe) -> None:
    """Make sure that sentence-transformers has a class for what a recipe tuned.

    Raises:
        AuroraError: if it has none.
    """
    family = find_family(recipe.model)
    if family.module not in FAMILIES or not isinstance(recipe.task, RetrievalSettings):
        raise AuroraError(
            f"sentence-transformers has no class for {family.title} ({recipe.task.name}); it reads CLIP, MetaCLIP 2, "
            "SigLIP and SigLIP 2; leave out --format"
        )


def write(folder: Path, recipe: Recipe, backbone: Any) -> list[str]:
    """Add the files to a folder that transformers reads. Returns what the library does otherwise than the run."""
    longest = recipe.task.longest_text or backbone.longest
    padded = backbone.texts(["a"]).fixed  # SigLIP reads texts with their padding
    words: dict[str, Any] = {"truncation": True, "max_length": backbone.longest if padded else longest}
    processing: dict[str, Any] = {"text": words | {"padding": "max_length" if padded else True}}
    if hasattr(backbone, "patches"):  # else transformers takes its own numbers at every call
        processing["image"] = {"max_num_patches": backbone.patches, "patch_size": backbone.patch_size}
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": _METHODS,
            "module_output_name": "sentence_embedding",
            "processing_kwargs": processing,
        },
    )
    parts = {"": "transformer.Transformer", "1_Normalize": "normalize.Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{name}"}
        for number, (path, name) in enumerate(parts.items())
    ]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": OLDEST},
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    (folder / "1_Normalize").mkdir()
    names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    write_json(folder / "1_Normalize" / "config.json", names)
    if padded and longest < backbone.longest:
        return [f"max_tokens: sentence-transformers cuts texts at {backbone.longest} tokens, the run at {longest}"]
    return []
