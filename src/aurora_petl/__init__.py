"""Aurora: adapt a frozen vision-language model by training about 0.05% of its weights (arXiv 2305.08381).

Importing the package registers the method with peft, so that ``PeftModel.from_pretrained`` reads its adapters.
"""

from .stopping import at_once

with at_once():
    from .adapter import AuroraConfig, AuroraModel
    from .backbones import load_backbone
    from .data import load_dataset
    from .errors import AuroraError
    from .tasks.retrieval import Retrieval
    from .tasks.vqa import VQA

__version__ = "0.1.0"
__all__ = ["AuroraConfig", "AuroraError", "AuroraModel", "Retrieval", "VQA", "load_backbone", "load_dataset"]
