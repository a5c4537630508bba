"""What an adapter adds where texts meet pictures, beside its updates of weights (arXiv 2305.08381, section 3.3).

    gated query transformation (GQT), each text layer         informative context enhancement (ICE), once a text encoder

      self-attention --- s ----.                                f_i: fused [CLS] state of the last layer
            |                  | s * a_s + b_s, times g_s         |
     cross-attention --- m ----+ m * a_m + b_m, times g_m         | + eta * sum_j softmax_j(<f_i, t_j> / sqrt(d)) t_j
            |                  |                                  |
      feed-forward             | g = tanh(gamma)                 f_i'   to the matching head
            | + <--------------'
          h_out                                                 t_j: text-only [CLS] states of the context

gamma and eta are 0, a is 1 and b is 0 at the start, so the adapted model begins as the pretrained one. Passes of texts
alone are left as they are. `"released"` is what the released code does: constant gates of 0.1 with a and b drawn from
N(0, 2e-4), and 0.1 times the mean of the t_j added to the f_i of matching pairs, in training alone.

In training the t_j are the batch's texts. Afterwards they are a bank, the last `BANK` of these: a sample of what eta
was trained on, where averages of texts would be shorter and blunter than any text. It is saved with the adapter, and a
score does not depend on who shares the batch.

Neither part stands for a layer that peft could replace, and a wrapped text layer would hide its attention layers from
peft and rename their weights. So both are children that work by forward hooks. These are bound methods, which copying
and pickling carry along; those of the gates sit on parts of the text layer, so they run again when gradient
checkpointing computes the layer again. What one hook leaves for a later one lies in `PASS`, by thread, so that several
threads may run one model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.models.blip.modeling_blip_text import BlipTextEncoder, BlipTextLayer, BlipTextLMHeadModel

from .config import AuroraConfig
from .factors import no_autocast
from .layer import AuroraLayer, check_mixed_batch

BANK = 128  # texts; 400 KB at a width of 768, as much as the rest of BLIP-base's adapter
RELEASED = 0.1  # the constant of the released code's gates and context
RELEASED_STD = 2e-4


class Pass(threading.local):
    """What hooks know of the forward pass of their own thread. Layers run one after the other, so one place for the
    states of a layer is enough, and a pass that broke off leaves nothing that the next one could take for its own."""

    gate: AuroraGate | None = None  # whose layer is between its cross-attention and its output
    states: tuple[Tensor, ...] = ()  # that layer's s and m on their way to the output
    done: int = 0  # tokens that passed the output: the feed-forward part may take them in chunks
    mixed: tuple[nn.ModuleDict, list[str]] | None = None  # a tuner model's factors, the adapter of each item of a batch


PASS = Pass()


class AuroraAddition(nn.Module, AuroraLayer):
    """Weights of adapters that act by hooks on the modules around them.

    Args:
        factors: the tuner model's shared factors; their names are those of all adapters.
    """

    about = ""
    other_param_names: tuple[str, ...] = ("aurora_form", "aurora_factors")
    handles: list[RemovableHandle]

    def __init__(self, factors: nn.ModuleDict) -> None:
        super().__init__()
        self.aurora_form: dict[str, str] = {}  # adapter name -> the configuration's choice
        self.merged_adapters = []
        object.__setattr__(self, "aurora_factors", factors)  # past nn.Module, which would register it

    def applied(self, batch: int, device: torch.device) -> Iterator[tuple[str, Tensor | None]]:
        """Adapters that act now, each with the items of the batch that it acts on, (batch,) of bool; None: on all.

        Raises:
            ValueError: if `adapter_names` has another length than the batch, or adapters are merged.
        """
        if self.disable_adapters:
            self.merged_adapters = []  # as the adapted layers do
        elif PASS.mixed is None or PASS.mixed[0] is not self.aurora_factors:
            names = self.merged_adapters or self.active_adapters
            yield from ((name, None) for name in names if name in self.aurora_form)
        else:
            names = PASS.mixed[1]
            check_mixed_batch(batch, names, self.merged)
            for adapter in sorted(set(names) & set(self.aurora_form)):
                yield adapter, torch.tensor([name == adapter for name in names], device=device)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing here folds into weights: what is merged goes on being applied as it was."""
        self.merged_adapters += [n for n in check_adapters_to_merge(self, adapter_names) if n in self.aurora_form]

    def unmerge(self) -> None:
        self.merged_adapters = []

    def leave(self, parent: nn.Module, name: str) -> None:
        """The tuner model lets go of `parent`, whose child `name` this is: stay, frozen, with what is merged, or go."""
        for adapter in set(self.aurora_form) - set(self.merged_adapters):
            self.delete_adapter(adapter)
        object.__setattr__(self, "aurora_factors", nn.ModuleDict())
        self.requires_grad_(False)
        if not self.merged:
            for handle in self.handles:
                handle.remove()
            delattr(parent, name)

    def _get_available_adapters(self) -> set[str]:
        return set(self.aurora_form)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if adapter_name in self.aurora_form:  # there is no base layer; the factors have been moved already
            self.to(device or next(self.aurora_factors[adapter_name].parameters()).device)


class AuroraGate(AuroraAddition):
    """Gated query transformation of one text layer:

    h_out += g_s (s * a_s + b_s) + g_m (m * a_m + b_m)    if the layer cross-attends

    with s the output of self-attention and m that of cross-attention, (batch, tokens, width) both.
    """

    about = "the gates of the text layers (`gate`)"
    adapter_layer_names: tuple[str, ...] = ("aurora_a", "aurora_b", "aurora_gamma")

    def __init__(self, layer: BlipTextLayer, factors: nn.ModuleDict) -> None:
        super().__init__(factors)
        self.aurora_a = nn.ParameterDict()  # adapter name -> (2, width), of s and of m
        self.aurora_b = nn.ParameterDict()
        self.aurora_gamma = nn.ParameterDict()  # (2,); none in the released form
        self.handles = [
            layer.attention.register_forward_hook(self._begin),
            layer.crossattention.register_forward_hook(self._take),
            layer.output.register_forward_hook(self._add),
        ]

    def add_adapter(self, name: str, config: AuroraConfig, like: Tensor) -> None:
        """Give the layer its weights of the adapter `name`, on the device and in the dtype of `like`, (width,)."""
        self.aurora_form[name] = str(config.gate)
        a, b = like.new_ones(2, len(like)), like.new_zeros(2, len(like))
        if config.gate == "released":
            a, b = a.normal_(0.0, RELEASED_STD), b.normal_(0.0, RELEASED_STD)
        else:
            gamma = like.new_zeros(2)
            self.aurora_gamma[name] = nn.Parameter(gamma if config.init_weights else gamma.normal_())
        self.aurora_a[name], self.aurora_b[name] = nn.Parameter(a), nn.Parameter(b)

    def _begin(self, attention: nn.Module, args: tuple, output: tuple) -> None:
        PASS.gate, PASS.states = None, ()  # recomputation under gradient checkpointing may stop half-way

    def _take(self, crossattention: nn.Module, args: tuple, output: tuple) -> None:
        PASS.gate, PASS.states, PASS.done = self, (args[0], output[0]), 0

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if PASS.gate is not self:
            return output
        first, done = PASS.done, PASS.done + output.shape[1]
        s, m = (state[:, first:done] for state in PASS.states)
        PASS.done = done
        if done >= PASS.states[0].shape[1]:
            PASS.gate, PASS.states = None, ()
        for name, items in self.applied(len(output), output.device):
            a, b = self.aurora_a[name].to(output.device), self.aurora_b[name].to(output.device)
            if self.aurora_form[name] == "released":
                a, b = RELEASED * a, RELEASED * b
            else:
                gate = self.aurora_gamma[name].to(output.device).tanh()[:, None]
                a, b = gate * a, gate * b
            added = s * a[0] + m * a[1] + b.sum(0)
            output = output + _of(items, added).to(output.dtype)
        return output


class AuroraContext(AuroraAddition):
    """Informative context enhancement of the fused [CLS] states of one text encoder:

    f_i' = f_i + eta * sum_j softmax_j(<f_i, t_j> / sqrt(d)) t_j

    In training the encoder's call brings the context, `context=` (C, width), text-only [CLS] states that gradients flow
    into and that the bank remembers, and for the released form `positive=` (batch,), which pairs match. Without it, and
    in evaluation always, the bank is the context.
    """

    about = "the context of the fused [CLS] states (`context`)"
    adapter_layer_names: tuple[str, ...] = ("aurora_eta",)
    other_param_names: tuple[str, ...] = (*AuroraAddition.other_param_names, "aurora_bank")

    def __init__(self, encoder: BlipTextEncoder, factors: nn.ModuleDict) -> None:
        super().__init__(factors)
        self.aurora_eta = nn.ParameterDict()  # adapter name -> (1,); none in the released form
        self.aurora_bank = BufferDict(persistent=True)  # adapter name -> (BANK, width), newest last, first all zero
        self.handles = [encoder.register_forward_hook(self._enhance, with_kwargs=True)]

    def add_adapter(self, name: str, config: AuroraConfig, like: Tensor) -> None:
        """Give the encoder eta and the bank of the adapter `name`, like `like`, (width,)."""
        self.aurora_form[name] = str(config.context)
        if config.context != "released":
            eta = like.new_zeros(1)
            self.aurora_eta[name] = nn.Parameter(eta if config.init_weights else eta.normal_())
            self.aurora_bank[name] = like.new_zeros(BANK, len(like))

    def _enhance(self, encoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if kwargs.get("encoder_hidden_states") is None:
            return output
        states = output.last_hidden_state
        fused = enhanced = states[:, 0]
        context, positive = (kwargs.get(name) if self.training else None for name in ("context", "positive"))
        for name, items in self.applied(len(fused), fused.device):
            if self.aurora_form[name] != "released":
                added = self.aurora_eta[name].to(fused.device) * attend(fused, self._texts(name, context))
            elif context is not None and positive is not None:
                added = RELEASED * context.mean(0) * positive[:, None]
            else:
                continue
            enhanced = enhanced + _of(items, added).to(fused.dtype)
        if enhanced is not fused:
            output.last_hidden_state = torch.cat([enhanced[:, None], states[:, 1:]], 1)
        return output

    def _texts(self, name: str, context: Tensor | None) -> Tensor:
        """The context of this pass; one that was brought enters the bank."""
        bank = self.aurora_bank[name]
        if context is None:
            return bank.clone()  # training overwrites the bank, autograd may want what it was
        bank.copy_(torch.cat([bank, context.detach().to(bank)])[-len(bank) :])
        return context


def attend(fused: Tensor, texts: Tensor) -> Tensor:
    """sum_j softmax_j(<f_i, t_j> / sqrt(d)) t_j of (batch, d) and (C, d) -> (batch, d), in float32 or wider.

    Texts of nothing but zeros are places that are not filled yet: where all are, the sum is 0.
    """
    with no_autocast(fused.device):
        wide = torch.promote_types(fused.dtype, torch.float32)
        fused, texts = fused.to(wide), texts.to(fused.device, wide)
        scores = fused @ texts.mT / math.sqrt(texts.shape[1])
        return scores.masked_fill(~texts.any(1), torch.finfo(wide).min).softmax(1) @ texts


def add_fusion(model: nn.Module, name: str, config: AuroraConfig, factors: nn.ModuleDict) -> None:
    """Put what `config` asks for into the text encoders of `model`, for the adapter `name`."""

    def add(parent: Any, child: str, kind: Callable[..., Any], layer: Any) -> None:
        if not hasattr(parent, child):
            setattr(parent, child, kind(parent, factors))
        getattr(parent, child).add_adapter(name, config, layer.output.LayerNorm.weight.detach())

    for encoder in fusion_encoders(model):
        if config.context:
            add(encoder, "context", AuroraContext, encoder.layer[-1])
        for layer in encoder.layer if config.gate else ():
            add(layer, "gate", AuroraGate, layer)


def fusion_encoders(model: nn.Module) -> list[BlipTextEncoder]:
    """The text encoders whose layers can cross-attend, without those that write text (VQA's answers, captions)."""
    heads = (module for module in model.modules() if isinstance(module, BlipTextLMHeadModel))
    writers = {part for head in heads for part in head.modules()}
    return [
        module
        for module in model.modules()
        if isinstance(module, BlipTextEncoder) and module not in writers and hasattr(module.layer[0], "crossattention")
    ]


def additions(model: nn.Module) -> list[tuple[nn.Module, str, AuroraAddition]]:
    """Every addition in `model`, with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, AuroraAddition)
    ]


def fusion_size(layers: int, width: int, context: str | None = None, gate: str | None = None) -> int:
    """Number of weights that `context` and `gate` add to an adapter, for a text encoder of so many layers.

    Example:
        >>> fusion_size(12, 768, context="batch", gate="scale_shift")  # BLIP-base
        36889
    """
    gates = 2 if gate == "scale_shift" else 0
    return (layers * (4 * width + gates) if gate else 0) + (context == "batch")


def _of(items: Tensor | None, added: Tensor) -> Tensor:
    """`added`, (batch, ...), with zeros in place of all but the given items."""
    return added if items is None else torch.where(items.view(-1, *[1] * (added.dim() - 1)), added, 0.0)
