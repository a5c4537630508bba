"""Mode approximation as a peft tuner: `get_peft_model(model, AuroraConfig(r=64))` works as with `LoraConfig`.

Importing this package registers the method with peft (in memory), so `PeftModel.from_pretrained` and the
`AutoPeftModel` classes find saved adapters. The method is drawn in `factors.py`. Families of models are known here by
name alone (`targets.py`); they register what `context` and `gate` add to them (`additions.py`).
"""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from .card import PEFT_TYPE, PEFT_TYPE_IN_FILES
from .config import BIASES, CONTEXTS, CORES, GATES, AuroraConfig
from .factors import AuroraFactors, adapter_size
from .layer import AuroraLinear
from .model import AuroraModel

__all__ = [
    "BIASES",
    "CONTEXTS",
    "CORES",
    "GATES",
    "AuroraConfig",
    "AuroraFactors",
    "AuroraLinear",
    "AuroraModel",
    "adapter_size",
]

if PeftType(PEFT_TYPE) not in PEFT_TYPE_TO_TUNER_MAPPING:  # a module reload must not register twice
    register_peft_method(name="aurora_petl", config_cls=AuroraConfig, model_cls=AuroraModel, prefix=AuroraModel.prefix)
    by_name: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    by_name[PEFT_TYPE_IN_FILES] = AuroraConfig
