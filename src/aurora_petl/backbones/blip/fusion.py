"""What an adapter adds where BLIP's texts meet pictures: `context` and `gate` (arXiv 2305.08381, section 3.3).

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

Both parts are additions (`adapter/additions.py`) to BLIP's text encoder, with transformers' attention or with ours.
The hooks of the gates sit on parts of the text layer, so they run again when gradient checkpointing computes the layer
again. What one hook leaves for a later one lies in `PASS`.
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn
from transformers.models.blip.modeling_blip_text import BlipTextEncoder, BlipTextLayer, BlipTextLMHeadModel

from ...adapter.additions import Adder, AuroraAddition, on_items, register
from ...adapter.config import AuroraConfig
from ...adapter.factors import at_hand, no_autocast
from ...adapter.frozen import apply, first_order, plain_operations

BANK = 128  # texts; 400 KB at a width of 768, as much as the rest of BLIP-base's adapter
RELEASED = 0.1  # the constant of the released code's gates and context
RELEASED_STD = 2e-4


class Pass(threading.local):
    """What a gate's hooks leave for a later one, by thread. Layers run one after the other, so one place for the states
    of a layer is enough, and a pass that broke off leaves nothing that the next one could take for its own."""

    gate: AuroraGate | None = None  # whose layer is between its cross-attention and its output
    states: tuple[Tensor, ...] = ()  # that layer's s and m on their way to the output
    done: int = 0  # tokens that passed the output: the feed-forward part may take them in chunks

    def __init__(self) -> None:
        # the context that an adapter's bank took last, by adapter and its place
        self.entered: dict[tuple[int, str], weakref.ref[Tensor]] = {}


PASS = Pass()


class AuroraGate(AuroraAddition):
    """Gated query transformation of one text layer:

    h_out += g_s (s * a_s + b_s) + g_m (m * a_m + b_m)    if the layer cross-attends

    with s the output of self-attention and m that of cross-attention, (batch, tokens, width) both.
    """

    field = "gate"
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

    def _begin(self, attention: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        PASS.gate, PASS.states = None, ()  # recomputation under gradient checkpointing may stop half-way

    def _take(self, crossattention: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        PASS.gate, PASS.states, PASS.done = self, (args[0], output[0]), 0

    def _add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if PASS.gate is not self:
            return output
        first, done = PASS.done, PASS.done + output.shape[1]
        s, m = (state[:, first:done] for state in PASS.states)
        PASS.done = done
        if done >= PASS.states[0].shape[1]:
            PASS.gate, PASS.states = None, ()
        for name, items in self.applied(len(output), output.device):
            a, b = (at_hand(own, name).to(output.device) for own in (self.aurora_a, self.aurora_b))
            released = self.aurora_form[name] == "released"
            gamma = None if released else at_hand(self.aurora_gamma, name).to(output.device)
            if gamma is not None and items is None and not (torch.compiler.is_compiling() or plain_operations()):
                output = apply(_Gated, output, s, m, a, b, gamma)
                continue
            gate = RELEASED if gamma is None else gamma.tanh()[:, None]
            added = s * (gate * a)[0] + m * (gate * a)[1] + (gate * b).sum(0)
            output = output + on_items(items, added).to(output.dtype)
        return output


class _Gated(torch.autograd.Function):
    """h + g_s (s * a_s + b_s) + g_m (m * a_m + b_m), g = tanh(gamma), in few kernels, both branches at once."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, s: Tensor, m: Tensor, a: Tensor, b: Tensor, gamma: Tensor) -> Tensor:
        with no_autocast(h.device):
            gate = gamma.tanh()
            scale = gate[:, None] * a
            added = torch.addcmul(gate @ b, s, scale[0]).addcmul_(m, scale[1])
            ctx.save_for_backward(s, m, a, b, gate, scale)
            return added.add_(h).to(h.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        s, m, a, b, gate, scale = ctx.saved_tensors
        with no_autocast(dh.device):
            ds, dm = (dh * scale[:, None, None].to(dh.dtype)).unbind()
            shift = dh.sum((0, 1), dtype=b.dtype)
            of_scale = (torch.stack([s, m]) * dh).sum((1, 2), dtype=a.dtype)
            of_gate = torch.addcmul(of_scale * a, shift, b).sum(1)
            da, db = of_scale * gate[:, None], gate[:, None] * shift
            dgamma = torch.ops.aten.tanh_backward(of_gate, gate)
        return dh, ds, dm, da, db, dgamma


class AuroraContext(AuroraAddition):
    """Informative context enhancement of the fused [CLS] states of one text encoder:

    f_i' = f_i + eta * sum_j softmax_j(<f_i, t_j> / sqrt(d)) t_j

    In training the encoder's call brings the context, `context=` (C, width), text-only [CLS] states that gradients flow
    into and that the bank remembers, and for the released form `positive=` (batch,), which pairs match. Without it, and
    in evaluation always, the bank is the context.
    """

    field = "context"
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

    def _enhance(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if kwargs.get("encoder_hidden_states") is None:
            return output
        states = output.last_hidden_state
        fused = enhanced = states[:, 0]
        context, positive = (kwargs.get(name) if self.training else None for name in ("context", "positive"))
        for name, items in self.applied(len(fused), fused.device):
            if self.aurora_form[name] != "released":
                added = at_hand(self.aurora_eta, name).to(fused.device) * attend(fused, self._texts(name, context))
            elif context is not None and positive is not None:
                added = RELEASED * context.mean(0) * positive[:, None]
            else:
                continue
            enhanced = enhanced + on_items(items, added).to(fused.dtype)
        if enhanced is not fused:
            output.last_hidden_state = torch.cat([enhanced[:, None], states[:, 1:]], 1)
        return output

    def _enters(self, name: str, context: Tensor) -> bool:
        """Whether this is the first pass that brings these texts, of several for one batch; no pass that checkpointing
        computes again is."""
        if torch._C._current_graph_task_id() != -1:
            return False
        known = PASS.entered.get((id(self), name))
        PASS.entered[id(self), name] = weakref.ref(context)
        return known is None or known() is not context

    def _texts(self, name: str, context: Tensor | None) -> Tensor:
        """The context of this pass; one that was brought enters the bank."""
        bank: Tensor = self.aurora_bank[name]
        if context is None:
            return bank.clone()  # training overwrites the bank, autograd may want what it was
        if not torch.compiler.is_compiling() and not self._enters(name, context):
            return context
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


def add_context(encoder: BlipTextEncoder, name: str, config: AuroraConfig, factors: nn.ModuleDict) -> None:
    """Put context enhancement into a text encoder, for the adapter `name`."""
    if not hasattr(encoder, "context"):
        encoder.context = AuroraContext(encoder, factors)
    context: Any = encoder.context
    context.add_adapter(name, config, _like(encoder.layer[-1]))


def add_gates(encoder: BlipTextEncoder, name: str, config: AuroraConfig, factors: nn.ModuleDict) -> None:
    """Put gates into the layers of a text encoder, for the adapter `name`."""
    layers: list[Any] = list(encoder.layer)
    for layer in layers:
        if not hasattr(layer, "gate"):
            layer.gate = AuroraGate(layer, factors)
        layer.gate.add_adapter(name, config, _like(layer))


def _like(layer: Any) -> Tensor:
    weight: Tensor = layer.output.LayerNorm.weight
    return weight.detach()


def fusion_encoders(model: nn.Module) -> list[BlipTextEncoder]:
    """The text encoders whose layers can cross-attend, without those that write text (VQA's answers, captions)."""
    heads = (module for module in model.modules() if isinstance(module, BlipTextLMHeadModel))
    writers = {part for head in heads for part in head.modules()}
    return [
        module
        for module in model.modules()
        if isinstance(module, BlipTextEncoder) and module not in writers and hasattr(module.layer[0], "crossattention")
    ]


def fusion_size(layers: int, width: int, context: str | None = None, gate: str | None = None) -> int:
    """Number of weights that `context` and `gate` add to an adapter, for a text encoder of so many layers.

    Examples:
        >>> fusion_size(12, 768, context="batch", gate="scale_shift")  # BLIP-base
        36889
    """
    gates = 2 if gate == "scale_shift" else 0
    return (layers * (4 * width + gates) if gate else 0) + (context == "batch")


PLACE = "a text encoder of BLIP that attends to pictures"
register("context", "blip", Adder(PLACE, fusion_encoders, add_context))
register("gate", "blip", Adder(PLACE, fusion_encoders, add_gates))
