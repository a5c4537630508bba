"""Tiny random decoder models of every family with tokenizers, chat templates and image processors, as
``save_pretrained`` writes them; no torchvision is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from .families import CORPUS

WIDTH = 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.25,
}
QUESTIONS = [
    "what colour is it?",
    "is it a circle?",
    "what shape is it? yes no purple",
    "Answer with a word or a short",
]

# What a template makes of the parts of a message, by the picture's mark.
_PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + _PARTS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPEAKERS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == "
    "'image' %}:{% else %}: {% endif %}" + _PARTS + "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
USER = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: " + _PARTS + "{% else %} ASSISTANT: "
    "{{ message['content'][0]['text'] }} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def skip_if_old() -> None:
    """Older releases of transformers, which other families go by, cannot run decoder models here."""
    if "mm_encoder_outputs" not in inspect.signature(SmolVLMForConditionalGeneration.forward).parameters:
        pytest.skip("decoder models need a newer transformers")


def tokenizer(special: list[str], end: str, template: str = "", **more) -> PreTrainedTokenizerFast:
    """Byte pairs learned from the corpus, with special tokens in front."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS + QUESTIONS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=end,
        pad_token=special[0],
        chat_template=template or None,
        extra_special_tokens=[token for token in special if token not in (end, special[0])],
        **more,
    )


def _save(folder: Path, kind, config, words, processor, ends: list[str]) -> None:
    numbers = [words.convert_tokens_to_ids(end) for end in ends]
    model = kind(config)
    model.generation_config = GenerationConfig(eos_token_id=numbers, pad_token_id=words.pad_token_id)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    processor.save_pretrained(folder)


def _qwen(folder: Path, config, kind, vision: dict, text: dict, patch: int = 14) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    special += ["<|video_pad|>"]
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    words = tokenizer(special, "<|im_end|>", CHATML.replace("MARK", mark))
    ids = {"vision_start_token_id": 3, "vision_end_token_id": 4, "image_token_id": 5, "video_token_id": 6}
    text = TEXT | {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 2} | text
    made = config(text_config=text, vision_config=vision, **ids)
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (6 * patch) ** 2}
    processor = Qwen2VLImageProcessorPil(size=size, patch_size=patch)
    _save(folder, kind, made, words, processor, ["<|im_end|>", "<|endoftext|>"])


_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}


def qwen2_vl(folder: Path) -> None:
    vision = {"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}
    _qwen(folder, Qwen2VLConfig, Qwen2VLForConditionalGeneration, vision, _MROPE)


def qwen2_5_vl(folder: Path) -> None:
    vision = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    _qwen(folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, vision, _MROPE)


def qwen3_vl(folder: Path) -> None:
    vision = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH}
    vision |= {"num_position_embeddings": 36, "deepstack_visual_indexes": [0], "patch_size": 16}
    text = _MROPE | {"head_dim": 8}
    _qwen(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, vision, text, 16)


def internvl(folder: Path) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    named["video_token"] = "<video>"
    words = tokenizer(special, "<|im_end|>", CHATML.replace("MARK", "<IMG_CONTEXT>\n"), **named)
    text = TEXT | {"model_type": "qwen2", "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 2}
    vision = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": [28, 28], "patch_size": [7, 7]}
    config = InternVLConfig(text_config=text, vision_config=vision, image_token_id=5, image_seq_length=4)
    processor = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    _save(folder, InternVLForConditionalGeneration, config, words, processor, ["<|im_end|>"])


def _idefics(folder: Path, config, kind, processor) -> None:
    special = ["<|im_end|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
    special += ["<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))]
    words = tokenizer(special, "<end_of_utterance>", SPEAKERS.replace("MARK", "<image>"), bos_token="<|im_start|>")
    text = TEXT | {"model_type": "llama", "vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2}
    text |= {"pad_token_id": 0}
    vision = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 7}
    made = config(text_config=text, vision_config=vision, image_token_id=4, scale_factor=2, pad_token_id=0)
    _save(folder, kind, made, words, processor, ["<end_of_utterance>"])


def idefics3(folder: Path) -> None:
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    _idefics(folder, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil(**sizes))


def smolvlm(folder: Path) -> None:
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    _idefics(folder, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil(**sizes))


def paligemma(folder: Path) -> None:
    words = tokenizer(["<pad>", "<eos>", "<bos>", "<image>"], "<eos>", bos_token="<bos>")
    text = TEXT | {"model_type": "gemma", "vocab_size": len(words), "head_dim": 8, "num_image_tokens": 16}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 7, "vision_use_head": False, "model_type": "siglip_vision_model"}
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=3, projection_dim=WIDTH, hidden_size=WIDTH
    )
    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    processor.image_seq_length = 16
    _save(folder, PaliGemmaForConditionalGeneration, config, words, processor, ["<eos>"])


def llava(folder: Path) -> None:
    words = tokenizer(["<pad>", "</s>", "<s>", "<image>"], "</s>", USER.replace("MARK", "<image>\n"), bos_token="<s>")
    text = TEXT | {"model_type": "llama", "vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 1}
    vision = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 7, "model_type": "clip_vision_model", "projection_dim": 16}
    config = LlavaConfig(text_config=text | {"bos_token_id": 2}, vision_config=vision, image_token_index=3)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    _save(folder, LlavaForConditionalGeneration, config, words, processor, ["</s>"])


WRITERS: dict[str, Callable[[Path], None]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "paligemma": paligemma,
    "llava": llava,
}


def make(kind: str, folder: Path) -> Path:
    """A model folder of a family, the same at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    WRITERS[kind](folder)
    return folder
