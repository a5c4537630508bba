"""``blip-mini``: its layout, the three objectives of BLIP on it, and its files."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizerFast, BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from aurora_petl.data.media import PictureFormat

SIZE = 96
WIDTH = 192
DROPOUT = 0.1  # of the text layers while pretraining, as in BLIP; the saved configuration has none
PATCH = 12
DEC, ENC = 30522, 30523  # first word piece of a text to be written, and of one that meets a picture
SOFT, SOFTNESS = 0.3, 0.1  # share and temperature of ITC's soft targets


def config() -> BlipConfig:
    """BLIP's layout at 192 wide: 6 vision layers on 12 px patches, 4 text layers, 128-d projections."""
    text = dict(
        vocab_size=30524,
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=3,
        max_position_embeddings=64,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-12,
        bos_token_id=DEC,
        sep_token_id=102,
        eos_token_id=102,
        pad_token_id=0,
        label_smoothing=0.1,
    )
    vision = dict(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=128,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        attention_dropout=0.0,
        initializer_range=0.02,
    )
    return BlipConfig(text_config=text, vision_config=vision, projection_dim=128, image_text_hidden_size=128)


@dataclass
class Text:
    """Token numbers and their mask, both (texts, T)."""

    ids: Tensor
    mask: Tensor


@dataclass
class Written(Text):
    """Texts to be written, about the pictures or questions ``rows``; ``places`` are the flat numbers, in
    (texts, T - 1), of the tokens before the last of each text, after which there is a token to predict."""

    rows: Tensor
    places: Tensor


@dataclass
class Batch:
    """Pictures with their texts; the last ones are scenes, for each of which there is a caption that is nearly true."""

    pixels: Tensor  # (n, 3, SIZE, SIZE)
    texts: Text
    same: Tensor  # (n, n) bool: pairs of one concept
    meaning: Tensor  # (n, 384): unit sentence vectors of the texts
    twins: Text  # of the scenes
    spoken: Written  # texts to be written about pictures
    questions: Text
    asked: Tensor  # the picture of each question
    answers: Written


class BlipMini(nn.Module):
    """The retrieval model and a decoder that shares all but its self-attention with the text encoder, as in BLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.config = config()
        self.blip = BlipForImageTextRetrieval(self.config)
        self.decoder = BlipTextLMHeadModel(self.config.text_config)
        self.decoder.cls.predictions.decoder.weight = self.decoder.bert.embeddings.word_embeddings.weight
        self.decoder.bert.embeddings = self.blip.text_encoder.embeddings
        self.decoder.cls.predictions.decoder.weight = self.blip.text_encoder.embeddings.word_embeddings.weight
        for mine, theirs in zip(self.decoder.bert.encoder.layer, self.blip.text_encoder.encoder.layer, strict=True):
            for part in ("crossattention", "intermediate", "output"):
                setattr(mine, part, getattr(theirs, part))
        self.words.requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))

    @property
    def words(self) -> nn.Parameter:
        """Word embeddings, (vocabulary, WIDTH)."""
        return self.blip.text_encoder.embeddings.word_embeddings.weight

    def text_tower(self) -> list[nn.Parameter]:
        """What text-only features depend on, less the word embeddings."""
        return [
            weight
            for name, weight in self.blip.named_parameters()
            if name.startswith("text_") and "crossattention" not in name and weight is not self.words
        ]

    def fusion(self) -> list[nn.Parameter]:
        """What only ITM and LM depend on: cross-attention, ITM head, and the decoder's own weights."""
        own = [*self.blip.itm_head.parameters(), *self.decoder.cls.predictions.transform.parameters()]
        own.append(self.decoder.cls.predictions.bias)
        for mine, theirs in zip(self.decoder.bert.encoder.layer, self.blip.text_encoder.encoder.layer, strict=True):
            own += [*mine.attention.parameters(), *theirs.crossattention.parameters()]
        return own

    def state(self) -> dict[str, Tensor]:
        """Weights under transformers' names (one file serves every BLIP task class), shared ones once a name."""
        named = dict(self.blip.state_dict())
        for name, value in self.decoder.state_dict().items():
            if "embeddings" not in name and "predictions.decoder" not in name:
                named[f"text_decoder.{name}"] = value
        return named

    def images(self, pixels: Tensor, keep: float = 1.0) -> tuple[Tensor, Tensor]:
        """Picture states and features; with ``keep`` below 1, of a random share of each picture's patches."""
        vision = self.blip.vision_model
        tokens = vision.embeddings(pixels)  # (batch, 1 + patches, WIDTH)
        if keep < 1:
            patches = tokens.shape[1] - 1
            chosen = torch.rand(len(tokens), patches, device=tokens.device).argsort(1)[:, : round(keep * patches)] + 1
            chosen = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], 1)
            tokens = tokens.gather(1, chosen.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        states = vision.post_layernorm(vision.encoder(inputs_embeds=tokens).last_hidden_state)
        return states, F.normalize(self.blip.vision_proj(states[:, 0]).float(), dim=-1)

    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.blip.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(self.blip.text_proj(states[:, 0]).float(), dim=-1)

    def match(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """ITM logits (batch, 2)."""
        return self.blip.itm_head(self.fused(ids, mask, image_states)[:, 0]).float()

    def fused(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """States (batch, T, WIDTH) of texts that meet pictures; token 0 becomes [ENC]."""
        ids = torch.cat([ids.new_full((len(ids), 1), ENC), ids[:, 1:]], 1)
        return self.blip.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image_states
        ).last_hidden_state

    def contrast(
        self, image_features: Tensor, text_features: Tensor, same: Tensor, meaning: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ITC's loss, and the similarities (batch, batch) by temperature; ``same`` (batch, batch) marks pairs of one
        concept, ``meaning`` (batch, 384) are unit sentence vectors of the captions."""
        similarity = image_features @ text_features.T / self.log_temperature.exp().clamp(0.01, 0.5)
        target = same.float() / same.sum(1, keepdim=True)
        target = (1 - SOFT) * target + SOFT * F.softmax(meaning @ meaning.T / SOFTNESS, 1)
        itc = -0.5 * (
            (target * F.log_softmax(similarity, 1)).sum(1).mean()
            + (target * F.log_softmax(similarity.T, 1)).sum(1).mean()
        )
        return itc, similarity

    def losses(self, batch: Batch, towers: bool = True) -> dict[str, Tensor]:
        """The losses of a batch by name: ``itc``, ``itm``, ``lm`` and ``vqa``. Without ``towers`` no gradient reaches
        what ITC depends on."""
        ids, mask = batch.texts.ids, batch.texts.mask
        with torch.set_grad_enabled(towers and torch.is_grad_enabled()):
            image_states, image_features = self.images(batch.pixels)
            text_features = self.texts(ids, mask)
            itc, similarity = self.contrast(image_features, text_features, batch.same, batch.meaning)
        with torch.no_grad():  # never the same concept; half of them hard by similarity, half of them any:
            # with hard ones alone matching does not start to be learned (loss at 0.637, the labels' entropy)
            easy = (torch.arange(len(ids), device=ids.device) % 2 == 0).unsqueeze(1)
            similarity = similarity.detach().float()
            weights = similarity.masked_fill(easy, 0.0).masked_fill(batch.same, -torch.inf)
            negative_text = torch.multinomial(F.softmax(weights, 1), 1)[:, 0]
            weights = similarity.T.masked_fill(easy, 0.0).masked_fill(batch.same, -torch.inf)
            negative_image = torch.multinomial(F.softmax(weights, 1), 1)[:, 0]
            wrong = Text(ids[negative_text], mask[negative_text])
            if (scenes := len(batch.twins.ids)) > 0:  # a scene's nearly true caption instead
                singles = len(ids) - scenes
                wrong = Text(
                    torch.cat([wrong.ids[:singles], batch.twins.ids]),
                    torch.cat([wrong.mask[:singles], batch.twins.mask]),
                )
        logits = self.match(
            torch.cat([ids, wrong.ids, ids]),
            torch.cat([mask, wrong.mask, mask]),
            torch.cat([image_states, image_states, image_states[negative_image]]),
        )
        itm = F.cross_entropy(logits, (torch.arange(len(logits), device=ids.device) < len(ids)).long())
        losses = {"itc": itc, "itm": itm}
        if len(batch.spoken.rows):
            losses["lm"] = self.written(batch.spoken, image_states[batch.spoken.rows], None)
        if len(batch.questions.ids):
            states = self.fused(batch.questions.ids, batch.questions.mask, image_states[batch.asked])
            losses["vqa"] = self.written(batch.answers, states[batch.answers.rows], batch.questions.mask)
        return losses

    def written(self, texts: Written, states: Tensor, states_mask: Tensor | None) -> Tensor:
        """Cross-entropy of texts, one token on, given the states (texts, S, WIDTH) that they are about."""
        ids = torch.cat([texts.ids.new_full((len(texts.ids), 1), DEC), texts.ids[:, 1:]], 1)
        decoded = self.decoder.bert(
            input_ids=ids,
            attention_mask=texts.mask,
            encoder_hidden_states=states,
            encoder_attention_mask=states_mask,
            is_decoder=True,
        ).last_hidden_state[:, :-1]
        logits = self.decoder.cls(decoded.flatten(0, 1)[texts.places]).float()
        return F.cross_entropy(logits, ids[:, 1:].flatten()[texts.places], label_smoothing=0.1)


def save(model: BlipMini, tokens: BertTokenizerFast, folder: Path) -> None:
    """Config, float16 weights and tokenizer in transformers' layout."""
    state = {k: v.detach().half().cpu().clone().contiguous() for k, v in model.state().items() if v.is_floating_point()}
    state["temperature"] = model.log_temperature.detach().exp().reshape(1).cpu()
    save_file(state, folder / "model.safetensors.part", metadata={"format": "pt"})
    (folder / "model.safetensors.part").replace(folder / "model.safetensors")
    saved = copy.deepcopy(model.config)
    saved.text_config.hidden_dropout_prob = 0.0
    saved.architectures = ["BlipForImageTextRetrieval"]
    saved.save_pretrained(folder)
    tokens.save_pretrained(folder)
    picture = PictureFormat(SIZE)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "BlipImageProcessor",
                "do_resize": True,
                "size": {"height": SIZE, "width": SIZE},
                "resample": 3,
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": list(picture.mean),
                "image_std": list(picture.deviation),
                "do_convert_rgb": True,
            },
            indent=2,
        )
    )
