"""What a saved adapter's folder says of how to load it.

In a process that has not imported this package nothing of ours runs. There peft looks `peft_type` of
`adapter_config.json` up in its table of methods and ends with a `KeyError` of that text. So the text says what is
missing, and so do the files beside the weights.
"""

from __future__ import annotations

from huggingface_hub import ModelCard, ModelCardData

PEFT_TYPE = "AURORA_PETL"  # peft's name of the method
PEFT_TYPE_IN_FILES = f"{PEFT_TYPE}: please `pip install aurora-petl` and `import aurora_petl` before peft loads this"

REQUIRES = "the package aurora-petl: `import aurora_petl` before peft loads this adapter"

LOADING = """# An adapter of Aurora

peft loads it as soon as the package `aurora-petl` is installed and imported, which makes the method known to peft.
Without the import peft ends with `KeyError: 'AURORA_PETL: please ...'`.

```python
import aurora_petl
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/of/this/folder")
```
"""

VERSIONS = "### Framework versions"  # how the section begins that peft appends to the template


def with_loading(card: str) -> str:
    """A model card with how to load the adapter on top, after its metadata, and without peft's template if all of its
    sections are blank still. Text that somebody wrote stays."""
    if LOADING in card:
        return card
    metadata, text = "", card
    if card.startswith("---\n") and "\n---\n" in card[3:]:
        end = card.index("\n---\n", 3) + len("\n---\n")
        metadata, text = card[:end] + "\n", card[end:]
    written, section, versions = text.partition(VERSIONS)
    if written.strip() == ModelCard.from_template(ModelCardData()).text.strip():
        text = section + versions
    return f"{metadata}{LOADING}\n{text.strip()}".rstrip() + "\n"
