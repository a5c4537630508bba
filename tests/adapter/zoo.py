"""Tiny random models of every `model_type` that has default targets, with inputs that every tower takes part in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING

Inputs = dict[str, Any]
DRAW = torch.Generator().manual_seed(5)
PICTURES = torch.randn(2, 3, 16, 16, generator=DRAW)
IDS = torch.randint(3, 40, (2, 5), generator=DRAW)
STATES, WIDER = torch.randn(2, 3, 16, generator=DRAW), torch.randn(2, 4, 24, generator=DRAW)
IMAGE = 45  # the token that stands for a part of a picture

SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
WORDS = dict(vocab_size=50, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2)
TEXT = SIZES | WORDS
GROUPED = TEXT | dict(num_key_value_heads=2)
HEADS = GROUPED | dict(head_dim=8)  # queries wider than the hidden states
VISION = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(image_size=16, patch_size=8, num_channels=3)
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


class Case(NamedTuple):
    """A model and what it is given."""

    kind: str  # transformers' class
    fields: dict[str, Any]  # of the configuration
    inputs: Callable[[], Inputs]

    def model(self, model_type: str) -> nn.Module:
        """The frozen model with weights drawn from a seed."""
        torch.manual_seed(0)
        config = CONFIG_MAPPING[model_type](**copy.deepcopy(self.fields))
        return shaken(getattr(transformers, self.kind)(config))


class Part(NamedTuple):
    """A tower of another model."""

    whole: str  # model_type
    at: str  # its name there
    inputs: Callable[[], Inputs]

    def model(self, model_type: str) -> nn.Module:
        """The frozen tower with weights drawn from a seed."""
        return CASES[self.whole].model(self.whole).get_submodule(self.at)


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """`model` for inference, with its biases and norms off their start."""
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def run(model: nn.Module, inputs: Callable[[], Inputs]) -> list[torch.Tensor]:
    """Every tensor of the model's output that depends on its layers."""
    output = model(**inputs())
    return [value for value in output.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]


def pictures() -> Inputs:
    return {"pixel_values": PICTURES}


def words() -> Inputs:
    return {"input_ids": IDS}


def both() -> Inputs:
    return {"input_ids": IDS, "pixel_values": PICTURES}


def two_texts() -> Inputs:
    return {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}


def patches() -> Inputs:
    """Pictures for Siglip2, cut into patches that lie on a grid."""
    cut = PICTURES.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 4, 192)
    whole = torch.ones(2, 4, dtype=torch.long)
    return {"pixel_values": cut, "pixel_attention_mask": whole, "spatial_shapes": torch.tensor([[2, 2], [2, 2]])}


def words_and_patches() -> Inputs:
    return words() | patches()


def writer(tokens: int, **more: Any) -> Callable[[], Inputs]:
    """A picture of so many tokens, then words."""
    ids = torch.cat([torch.full((2, tokens), IMAGE), IDS], 1)
    return lambda: {"input_ids": ids, "pixel_values": PICTURES, "use_cache": False, **more}


def qwen(patch: int) -> Callable[[], Inputs]:
    """A picture of 4 x 4 patches in two frames, which are merged by fours, then words."""
    cut = torch.randn(32, 3 * 2 * patch * patch, generator=torch.Generator().manual_seed(5))
    ids = torch.cat([torch.full((2, 1), 46), torch.full((2, 4), IMAGE), IDS], 1)
    kinds = (ids == IMAGE).int()
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    return lambda: {
        "input_ids": ids, "pixel_values": cut, "image_grid_thw": grid, "mm_token_type_ids": kinds, "use_cache": False,
    }  # fmt: skip


def grid() -> Inputs:
    """What the picture tower of such a model is given."""
    given = qwen(4)()
    return {"hidden_states": given["pixel_values"], "grid_thw": given["image_grid_thw"]}


def positions() -> torch.Tensor:
    """(x, y) of 2 x 2 patches."""
    return torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).expand(2, 4, 2)


def cut() -> torch.Tensor:
    """2 x 2 patches of each picture, (2, 4, 192)."""
    return patches()["pixel_values"]


_T5 = dict(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=4)
_T5 |= dict(dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0)
_BART = dict(vocab_size=50, d_model=16, max_position_embeddings=32, encoder_layers=1, decoder_layers=1)
_BART |= dict(encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)
_BART |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2)
_SIGLIP, _CLIP = VISION | {"model_type": "siglip_vision_model"}, VISION | {"model_type": "clip_vision_model"}
_LLAMA = GROUPED | {"model_type": "llama"}
_DUAL = dict(text_config=TEXT, vision_config=VISION, projection_dim=8)
_NAFLEX = VISION | {"num_patches": 4}
_QFORMER = SIZES | dict(vocab_size=50, encoder_hidden_size=24, cross_attention_frequency=1, max_position_embeddings=16)
_OPT = SIZES | WORDS | dict(model_type="opt", ffn_dim=32, word_embed_proj_dim=16)
_BLIP_2 = dict(
    vision_config=VISION, qformer_config=_QFORMER, text_config=_OPT, num_query_tokens=3, image_text_hidden_size=8,
    image_token_index=IMAGE,
)  # fmt: skip
_LLAVA = dict(text_config=_LLAMA, vision_config=_CLIP, image_token_id=IMAGE, vision_feature_layer=-1)
_SMOL = dict(text_config=_LLAMA, vision_config=VISION, image_token_id=IMAGE, scale_factor=2, pad_token_id=0)
_PALIGEMMA = dict(
    text_config=GROUPED | {"model_type": "gemma"}, vision_config=_SIGLIP, image_token_id=IMAGE, projection_dim=16,
)  # fmt: skip
_WIDE = HEADS | dict(sliding_window=8)
_GEMMA3N = _WIDE | dict(
    vocab_size_per_layer_input=50, hidden_size_per_layer_input=4, num_kv_shared_layers=0, laurel_rank=4
)
_GEMMA4 = _WIDE | dict(vocab_size_per_layer_input=50, hidden_size_per_layer_input=4, num_kv_shared_layers=0)
_GEMMA4 |= dict(global_head_dim=8)
_GEMMA4_VISION = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
_GEMMA4_VISION |= dict(
    num_key_value_heads=2, head_dim=12, patch_size=8, position_embedding_size=8, pooling_kernel_size=2
)
_GEMMA3 = dict(text_config=_WIDE, vision_config=_SIGLIP, image_token_id=IMAGE, mm_tokens_per_image=4)
_GEMMA3 |= dict(boi_token_id=46, eoi_token_id=47)
_INTERNVL = VISION | dict(image_size=[16, 16], patch_size=[4, 4])
_QWEN_IDS = dict(image_token_id=IMAGE, vision_start_token_id=46, video_token_id=47, vision_end_token_id=48)
_QWEN_GRID = dict(depth=2, num_heads=2, patch_size=4, in_channels=3, in_chans=3)
_QWEN_GRID |= dict(spatial_merge_size=2, temporal_patch_size=2, hidden_size=16, intermediate_size=32)
_QWEN_TEXT = TEXT | dict(
    num_attention_heads=2, num_key_value_heads=1, head_dim=8, rope_scaling=ROPE, rope_parameters=ROPE
)


def _qwen(vision: dict[str, Any]) -> dict[str, Any]:
    return dict(text_config=_QWEN_TEXT, vision_config=_QWEN_GRID | vision, **_QWEN_IDS)


CASES: dict[str, Case | Part] = {
    "blip": Case("BlipForImageTextRetrieval", _DUAL | dict(text_config=TEXT | {"encoder_hidden_size": 24}), both),
    "blip_vision_model": Case("BlipVisionModel", VISION, pictures),
    "blip_text_model": Case(
        "BlipTextModel",
        TEXT | {"encoder_hidden_size": 24},
        lambda: words() | {"encoder_hidden_states": WIDER, "is_decoder": True, "use_cache": False},
    ),
    "blip-2": Case("Blip2ForConditionalGeneration", _BLIP_2, writer(3)),
    "blip_2_vision_model": Case("Blip2VisionModel", VISION, pictures),
    "blip_2_qformer": Case(
        "Blip2QFormerModel", _QFORMER, lambda: {"query_embeds": STATES, "encoder_hidden_states": WIDER}
    ),
    "clip": Case("CLIPModel", _DUAL, both),
    "clip_vision_model": Case("CLIPVisionModel", VISION, pictures),
    "clip_text_model": Case("CLIPTextModel", TEXT, words),
    "metaclip_2": Case("MetaClip2Model", _DUAL, both),
    "metaclip_2_vision_model": Case("MetaClip2VisionModel", VISION, pictures),
    "metaclip_2_text_model": Case("MetaClip2TextModel", TEXT, words),
    "siglip": Case("SiglipModel", dict(text_config=TEXT | dict(hidden_size=24), vision_config=VISION), both),
    "siglip_vision_model": Case("SiglipVisionModel", VISION, pictures),
    "siglip_text_model": Case("SiglipTextModel", TEXT, words),
    "siglip2": Case(
        "Siglip2Model",
        dict(text_config=TEXT | dict(hidden_size=24), vision_config=_NAFLEX),
        lambda: words() | patches(),
    ),
    "siglip2_vision_model": Case("Siglip2VisionModel", _NAFLEX, patches),
    "siglip2_text_model": Case("Siglip2TextModel", TEXT, words),
    "gemma3": Case("Gemma3ForConditionalGeneration", _GEMMA3, writer(4)),
    "gemma4": Case(
        "Gemma4ForConditionalGeneration",
        dict(text_config=_GEMMA4, vision_config=_GEMMA4_VISION, image_token_id=IMAGE),
        lambda: writer(1)() | {"pixel_values": cut(), "image_position_ids": positions()},
    ),
    "gemma4_vision": Part(
        "gemma4", "model.vision_tower", lambda: {"pixel_values": cut(), "pixel_position_ids": positions()}
    ),
    "idefics3": Case("Idefics3ForConditionalGeneration", _SMOL, writer(1, pixel_values=PICTURES[:, None])),
    "idefics3_vision": Part("idefics3", "model.vision_model", pictures),
    "internvl": Case(
        "InternVLForConditionalGeneration",
        dict(text_config=_LLAMA | {"model_type": "qwen2"}, vision_config=_INTERNVL, image_token_id=IMAGE),
        writer(4),
    ),
    "internvl_vision": Case("InternVLVisionModel", _INTERNVL, pictures),
    "llava": Case("LlavaForConditionalGeneration", _LLAVA, writer(4)),
    "llava_next": Case(
        "LlavaNextForConditionalGeneration",
        _LLAVA | dict(image_grid_pinpoints=[[16, 16]]),
        writer(10, pixel_values=PICTURES[:, None].expand(-1, 2, -1, -1, -1), image_sizes=torch.tensor([[16, 16]] * 2)),
    ),
    "llava_onevision": Case(
        "LlavaOnevisionForConditionalGeneration",
        _LLAVA | dict(vision_config=_SIGLIP, image_grid_pinpoints=[[16, 16]]),
        writer(10, pixel_values=PICTURES[:, None].expand(-1, 2, -1, -1, -1), image_sizes=torch.tensor([[16, 16]] * 2)),
    ),
    "paligemma": Case("PaliGemmaForConditionalGeneration", _PALIGEMMA, writer(4)),
    "qwen2_vl": Case(
        "Qwen2VLForConditionalGeneration", _qwen(dict(embed_dim=16, hidden_size=16, mlp_ratio=2)), qwen(4)
    ),
    "qwen2_vl_vision": Part("qwen2_vl", "model.visual", grid),
    "qwen2_vl_text": Part("qwen2_vl", "model.language_model", words),
    "qwen2_5_vl": Case(
        "Qwen2_5_VLForConditionalGeneration",
        _qwen(dict(out_hidden_size=16, window_size=8, fullatt_block_indexes=[1])),
        qwen(4),
    ),
    "qwen2_5_vl_vision": Part("qwen2_5_vl", "model.visual", grid),
    "qwen2_5_vl_text": Part("qwen2_5_vl", "model.language_model", words),
    "qwen3_vl": Case(
        "Qwen3VLForConditionalGeneration",
        _qwen(dict(out_hidden_size=16, deepstack_visual_indexes=[0], num_position_embeddings=16)),
        qwen(4),
    ),
    "qwen3_vl_vision": Part("qwen3_vl", "model.visual", grid),
    "qwen3_vl_text": Part("qwen3_vl", "model.language_model", words),
    "smolvlm": Case("SmolVLMForConditionalGeneration", _SMOL, writer(1, pixel_values=PICTURES[:, None])),
    "smolvlm_vision": Part("smolvlm", "model.vision_model", pictures),
    "beit": Case("BeitModel", VISION, pictures),
    "deit": Case("DeiTModel", VISION, pictures),
    "dinov2": Case("Dinov2Model", VISION, pictures),
    "dinov2_with_registers": Case("Dinov2WithRegistersModel", VISION, pictures),
    "dinov3_vit": Case("DINOv3ViTModel", VISION | {"num_attention_heads": 2}, pictures),
    "vit": Case("ViTModel", VISION, pictures),
    "bart": Case("BartModel", _BART, two_texts),
    "bert": Case("BertModel", TEXT, words),
    "deberta-v2": Case("DebertaV2Model", TEXT, words),
    "distilbert": Case("DistilBertModel", WORDS | dict(dim=16, hidden_dim=32, n_layers=2, n_heads=2), words),
    "electra": Case("ElectraModel", TEXT | dict(embedding_size=8), words),
    "layoutlm": Case("LayoutLMModel", TEXT | {"max_2d_position_embeddings": 8}, words),
    "mt5": Case("MT5Model", _T5, two_texts),
    "roberta": Case("RobertaModel", TEXT, words),
    "t5": Case("T5Model", _T5, two_texts),
    "xlm-roberta": Case("XLMRobertaModel", TEXT, words),
    "gemma": Case("GemmaForCausalLM", HEADS, words),
    "gemma2": Case("Gemma2ForCausalLM", _WIDE, words),
    "gemma3_text": Case("Gemma3ForCausalLM", _WIDE, words),
    "gemma3n_text": Case("Gemma3nForCausalLM", _GEMMA3N, words),
    "gemma4_text": Case("Gemma4ForCausalLM", _GEMMA4, words),
    "gpt2": Case(
        "GPT2LMHeadModel",
        WORDS | dict(n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        words,
    ),
    "gptj": Case("GPTJModel", WORDS | dict(n_embd=16, n_layer=2, n_head=2, n_positions=32, rotary_dim=4), words),
    "gpt_neo": Case(
        "GPTNeoModel",
        SIZES | WORDS | dict(num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
        words,
    ),
    "llama": Case("LlamaForCausalLM", GROUPED, words),
    "mistral": Case("MistralForCausalLM", HEADS, words),
    "mixtral": Case("MixtralForCausalLM", GROUPED | dict(num_local_experts=2), words),
    "opt": Case("OPTForCausalLM", _OPT, words),
    "phi": Case("PhiForCausalLM", TEXT, words),
    "phi3": Case("Phi3ForCausalLM", GROUPED, words),
    "qwen2": Case("Qwen2ForCausalLM", GROUPED, words),
    "qwen3": Case("Qwen3ForCausalLM", HEADS, words),
    "smollm3": Case("SmolLM3ForCausalLM", GROUPED, words),
    "stablelm": Case("StableLmForCausalLM", GROUPED, words),
}
