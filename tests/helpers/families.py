"""Tiny random models of every family with real tokenizers and image processors, as ``save_pretrained`` writes them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    GemmaTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTokenizer,
    XLMRobertaTokenizer,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

SIZE, WIDTH, LONGEST = 32, 32, 16
VISION_WIDTH, QUERIES = 24, 3  # of BLIP-2
CORPUS = [
    f"a {kind} of {what} {colour} {shape} on the ground, two cats, a dog, water, a house, a man and a woman by a car"
    for kind in ("photo", "picture", "drawing")
    for what in ("a", "one", "the", "some")
    for colour in ("red", "green", "blue", "yellow", "black", "white")
    for shape in ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "heart")
]
_TOWER = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TOWER, "image_size": SIZE, "patch_size": 8}


def _bpe(end: str = "", **special: int) -> tuple[dict[str, int], list]:
    """Words and merges of byte pairs learned from the corpus; ``special`` tokens come first."""
    suffix = {"end_of_word_suffix": end} if end else {}
    tokenizer = Tokenizer(models.BPE(**suffix))
    tokenizer.normalizer = normalizers.Lowercase()
    if end:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, **suffix)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = list(special) + [word for word in model["vocab"] if word not in special]
    return {word: number for number, word in enumerate(words)}, [tuple(merge) for merge in model["merges"]]


def _pieces() -> bytes:
    """A sentencepiece model learned from the corpus."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=90,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
    )
    return model.getvalue()


def clip(folder: Path) -> None:
    words, merges = _bpe("</w>")
    words |= {"<|startoftext|>": len(words), "<|endoftext|>": len(words) + 1}
    tokenizer = CLIPTokenizer(words, merges, model_max_length=LONGEST)
    text = {"vocab_size": len(words), "max_position_embeddings": LONGEST, "bos_token_id": len(words) - 2}
    text |= {"eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPConfig(text_config=_TOWER | text, vision_config=_VISION, projection_dim=16)
    _save(folder, CLIPModel(config), tokenizer, CLIPImageProcessorPil(size=SIZE, crop_size=SIZE))


def metaclip_2(folder: Path) -> None:
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    unigram.train_from_iterator(CORPUS, trainer)
    words = [tuple(pair) for pair in json.loads(unigram.to_str())["model"]["vocab"]]
    tokenizer = XLMRobertaTokenizer(vocab=words, model_max_length=LONGEST)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, "eos_token_id": 2}
    text |= {"bos_token_id": 0, "pad_token_id": 1}
    config = MetaClip2Config(text_config=_TOWER | text, vision_config=_VISION, projection_dim=16)
    _save(folder, MetaClip2Model(config), tokenizer, CLIPImageProcessorPil(size=SIZE, crop_size=SIZE))


def siglip(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(_pieces())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=LONGEST, model_input_names=["input_ids"])
    _siglip(folder, tokenizer)


def siglip2(folder: Path) -> None:
    """SigLIP 2 of fixed size: SigLIP's classes with Gemma's tokenizer."""
    _siglip(folder, _gemma())


def naflex(folder: Path) -> None:
    """SigLIP 2 for pictures of any shape."""
    tokenizer = _gemma()
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, "projection_size": WIDTH}
    vision = {**_TOWER, "num_patches": (SIZE // 8) ** 2, "patch_size": 8}
    model = Siglip2Model(Siglip2Config(text_config=_TOWER | text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    _save(folder, model, tokenizer, Siglip2ImageProcessorPil(patch_size=8, max_num_patches=(SIZE // 8) ** 2))


def _gemma():
    words, merges = _bpe("", **{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4})
    return GemmaTokenizer(
        words,
        merges,
        model_max_length=LONGEST,
        model_input_names=["input_ids"],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
    )


def _siglip(folder: Path, tokenizer) -> None:
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, "projection_size": WIDTH}
    config = SiglipConfig(text_config=_TOWER | text, vision_config=_VISION)
    size = {"height": SIZE, "width": SIZE}
    model = SiglipModel(config)
    with torch.no_grad():  # where SigLIP's training starts, section 3.2; transformers leaves both at 0
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    _save(folder, model, tokenizer, SiglipImageProcessorPil(size=size, do_convert_rgb=True))


def blip2(folder: Path) -> None:
    """BLIP-2 for retrieval with the files of its processor, which adds <image> beyond the Q-Former's words."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(CORPUS, trainer)
    words = [*special, *sorted(pieces.get_vocab().keys() - set(special))]
    tokenizer = BertTokenizer(
        {word: number for number, word in enumerate(words)}, model_max_length=LONGEST, bos_token="[DEC]"
    )
    size = len(tokenizer)
    qformer = {**_TOWER, "vocab_size": size, "max_position_embeddings": LONGEST, "use_qformer_text_input": True}
    qformer |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = Blip2Config(
        vision_config=_VISION | {"hidden_size": VISION_WIDTH, "initializer_range": 0.02},
        qformer_config=qformer,
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
        image_token_index=size,
    )
    model = Blip2ForImageTextRetrieval(config)
    with torch.no_grad():
        model.query_tokens.normal_()  # transformers leaves them at 0, where all vectors of a picture are the same
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    processor = Blip2Processor(BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}), tokenizer, QUERIES)
    processor.save_pretrained(folder)


def _save(folder: Path, model, tokenizer, processor) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)


DUAL: dict[str, Callable[[Path], None]] = {
    "clip": clip,
    "metaclip_2": metaclip_2,
    "siglip": siglip,
    "siglip2": siglip2,
    "naflex": naflex,
}


MATCHERS: dict[str, Callable[[Path], None]] = {"blip-2": blip2}


def make(kind: str, folder: Path) -> Path:
    """A model folder of a family, the same at every call."""
    torch.manual_seed(0)
    (DUAL | MATCHERS)[kind](folder)
    return folder
