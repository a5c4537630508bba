"""Pretrain ``blip-mini``, the embedded backbone, with BLIP's objectives: ITC, ITM and LM, and answers to questions.

    python pretraining/pretrain.py --out src/aurora_petl/assets/blip-mini        (or: make pretrain)

Pictures and words come from `sources` and `icons`; 300 emoji concepts are never shown. As BLIP's text transformer
starts from BERT, this one starts from all-MiniLM-L6-v2 (Apache-2.0): its word embeddings are the principal components
of MiniLM's and stay fixed, and the text tower learns to give MiniLM's sentence vectors, reduced to the joint space, for
the training captions and for lists of random words. Half of the unseen concepts have names that no caption holds; only
so do they mean anything. Everything else starts random. The way there has four stages:

1. ``text``: the text tower learns MiniLM's vectors;
2. ``alone``: ITC alone moves the pictures into that space, the text tower frozen, each picture seen through a random
   half of its patches (as FLIP does, arXiv 2212.00794), which halves the cost;
3. ``all``: ITC, ITM and LM together, and on a fifth of every batch, which are scenes of several pictures, questions;
4. ``fusion``: ITM, LM and questions, which need longer: only cross-attention, decoder and ITM head train, ITC stays as
   it is, and no gradient passes the vision tower.

MiniLM's caption similarities soften ITC's targets, where BLIP has its momentum encoder's; negatives are the batch's.

A run can be stopped and called again: it goes on from its last state, kept in ``--cache``, to the same weights. With
``--slice`` it stops by itself after so many minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import icons
import sources
import torch
from compositions import Scenes, scenes
from corpus import LONGEST, Corpus, captions, corpus, plain, token_table
from feed import Draw, Feed, colour_tokens
from mini import BlipMini, save
from minilm import sentences, tokenizer
from safetensors.torch import load_file, save_file
from text_tower import Lesson, start_words, word_lists
from torch import Tensor, nn
from transformers import BertTokenizerFast

from aurora_petl.evaluation.recall import retrieval_metrics

TEXT_SHARE = 0.3  # of the learning rate, for the text tower, which starts from MiniLM's vectors
COMPOSED = 0.2  # share of scenes in a batch
WEIGHTS = {"itc": 1.0, "itm": 1.0, "lm": 0.5, "vqa": 0.5}
STAGES = ("text", "alone", "all", "fusion")


@torch.no_grad()
def recall(model: BlipMini, data: Corpus, tokens: BertTokenizerFast, rerank: int = 0) -> dict[str, float]:
    """R@1/5/10 both ways among ``data``, one caption a picture, by ITC or by ITM among the best ``rerank``."""
    model.eval()
    texts = [sources.caption(picture.name, picture.tags) for picture in data.pictures]
    encoded = tokens(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    device = model.words.device
    text = encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
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
    found = retrieval_metrics(matrix, matrix.T, names, names)
    return {name: percent / 100 for name, percent in found.items() if "recall" in name}


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    run = prepare(options, device)
    state = options.cache / "state.pt"
    told = {k: str(v) for k, v in vars(options).items() if k not in ("out", "cache", "picture", "slice")}
    if state.exists():
        run.restore(torch.load(state, weights_only=True, map_location=device), told)
    ends = run.train(state, told, options.slice)
    if not ends:
        print(f"stopped at step {run.steps}; the same command goes on from there")
        return
    final = {
        "hours": run.seconds / 3600,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "text_cosine": run.text_cosine,
        "pictures": len(run.feed.data),
        "scenes": len(run.feed.scenes),
        "unseen_pictures": len(run.unseen),
        "itc": recall(run.model, run.unseen, run.tokens),
        "itm_reranked_32": recall(run.model, run.unseen, run.tokens, rerank=32),
        "options": told,
    }
    print(json.dumps(final, indent=1))
    (options.out / "pretraining.json").write_text(json.dumps({**final, "curve": run.curve}, indent=1))
    draw(run.curve, options.picture)
    state.unlink(missing_ok=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/aurora_petl/assets/blip-mini"))
    parser.add_argument("--cache", type=Path, default=Path("build/pretraining"), help="downloads, renderings, state")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/pretraining.png"), help="curve to draw")
    parser.add_argument("--slice", type=float, default=math.inf, help="minutes after which to stop, to be called again")
    parser.add_argument("--text", type=float, default=4, help="million texts for the text tower")
    parser.add_argument("--alone", type=float, default=6, help="million pictures for ITC alone")
    parser.add_argument("--all", type=float, default=8, help="million pictures for all objectives")
    parser.add_argument("--fusion", type=float, default=2, help="million pictures for matching and writing alone")
    parser.add_argument("--scenes", type=int, default=100_000, help="scenes to make")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the patches seen while ITC is trained alone")
    parser.add_argument(
        "--spoken", type=float, default=0.25, help="share of a batch for LM, whose vocabulary is costly"
    )
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--fusion-lr", type=float, default=1.5e-3, help="learning rate of the last stage")
    parser.add_argument("--few", type=int, default=0, help="so many pictures only, to try the script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def pictures(cache: Path, unseen: set[str]) -> list[sources.Picture]:
    """All that is learned from: what shows none of the concepts ``unseen``, nor says so."""
    phrases, nicknames = sources.phrases(cache, unseen), sources.nicknames(cache, unseen)
    emoji = [sources.emoji(cache, style, lambda concept: concept.code not in unseen) for style in sources.EMOJI_STYLES]
    return [
        *(picture for style in emoji for picture in style),
        *sources.clipart(cache, phrases),
        *sources.game_icons(cache, phrases),
        *icons.icons(cache, phrases, nicknames),
    ]


def prepare(options: argparse.Namespace, device: torch.device) -> Run:
    """Fetch, draw and tokenise what the run needs, and make the model."""
    cache, begun = options.cache, time.time()

    def say(what: str) -> None:
        print(f"{time.time() - begun:6.0f} s  {what}", flush=True)

    sources.fetch(cache)
    icons.fetch(cache)
    out = sources.held_out(cache)
    training = pictures(cache, out)
    data = corpus(training[:: max(1, len(training) // options.few)] if options.few else training, cache / "training")
    drawn = {p.key for p in sources.emoji(cache, "fluent-flat")}
    unseen = corpus(sources.emoji(cache, "noto", lambda c: c.code in out and c.code in drawn), cache / "unseen")
    say(f"{len(data)} pictures to learn from, {len(unseen)} of unseen concepts")
    tokens = tokenizer(cache)

    listing = cache / f"words-{len(data)}-{options.scenes}-{options.seed}.safetensors"
    if not listing.exists():
        said = captions(data.pictures, tokens, options.seed)
        composed = scenes(data, options.scenes, tokens, options.seed)
        say(f"{len(composed)} scenes composed of them")
        texts = [sources.caption(picture.name, picture.tags) for picture in data.pictures]
        texts += tokens.batch_decode(composed.captions[:, 0].long(), skip_special_tokens=True)
        made = {f"scenes.{name}": value.contiguous() for name, value in vars(composed).items()}
        made |= {"said": said, "meaning": sentences(texts, cache, device).cpu()}
        save_file(made, listing.with_suffix(".part"))
        listing.with_suffix(".part").replace(listing)
    made = load_file(listing)
    said, meaning = made["said"], made["meaning"].to(device)
    composed = Scenes(**{name.removeprefix("scenes."): made[name] for name in made if name.startswith("scenes.")})
    say("words of pictures and scenes")
    model = BlipMini()
    start_words(model, cache)
    model.to(device)
    pixels = data.pixels.to(device) if device.type == "cuda" else data.pixels
    feed = Feed(data, said, composed, meaning, pixels, colour_tokens(tokens), device, options.seed)
    lists = token_table(word_lists(cache, 100_000, options.seed), tokens)
    lesson = Lesson(model, [said.flatten(0, 1), lists], meaning, cache)
    say("ready")
    options.out.mkdir(parents=True, exist_ok=True)
    return Run(model, feed, lesson, unseen, tokens, options)


@dataclass
class Run:
    """The loop of all stages, its curve and its state."""

    model: BlipMini
    feed: Feed
    lesson: Lesson
    unseen: Corpus
    tokens: BertTokenizerFast
    options: argparse.Namespace
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    text_cosine: float = 0.0

    def __post_init__(self) -> None:
        options = self.options
        counts = (options.text, options.alone, options.all, options.fusion)
        self.lengths = [round(1e6 * count / options.batch) for count in counts]
        self.optimizers: dict[str, torch.optim.AdamW] = {}
        # the next step's words and numbers are put together while the device computes
        self.worker = ThreadPoolExecutor(1)
        self.ahead: dict[tuple, Future[Draw]] = {}

    def stage(self, step: int) -> tuple[str, float]:
        """The stage of a step, and its learning rate."""
        text, alone, together, fusion = self.lengths
        if step < text:
            return "text", self.rate(step, text, 1e-3)
        step -= text
        if step < alone + together:  # one schedule for both
            stage = "alone" if step < alone else "all"
            return stage, self.rate(step, alone + together, self.options.lr)
        step -= alone + together
        return "fusion", self.rate(step, fusion, self.options.fusion_lr)

    @staticmethod
    def rate(step: int, length: int, peak: float) -> float:
        warm = min(1.0, (step + 1) / max(1, min(500, length // 10)))
        return peak * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * step / length)))

    def optimizer(self, stage: str) -> torch.optim.AdamW:
        """The stage's optimizer; ``alone`` and ``all`` share one."""
        name = {"alone": "all"}.get(stage, stage)
        if name not in self.optimizers:
            self.optimizers[name] = self.made(name)
        return self.optimizers[name]

    def made(self, stage: str) -> torch.optim.AdamW:
        model, fused = self.model, self.feed.device.type == "cuda"
        if stage == "text":
            return torch.optim.AdamW(model.text_tower(), betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
        if stage == "fusion":
            return torch.optim.AdamW(model.fusion(), betas=(0.9, 0.98), weight_decay=0.05, fused=fused)
        tower = {id(weight) for weight in model.text_tower()}
        groups = [
            {
                "params": [
                    weight
                    for weight in model.parameters()
                    if weight is not model.words and (id(weight) in tower, weight.ndim > 1) == (text, matrix)
                ],
                "weight_decay": 0.05 * matrix,
                "share": TEXT_SHARE if text else 1.0,
            }
            for text in (False, True)
            for matrix in (False, True)
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused)

    def losses(self, step: int, stage: str) -> dict[str, Tensor]:
        """The losses of a step by name."""
        options, model, feed = self.options, self.model, self.feed
        if stage == "text":
            return {"text": self.lesson.loss(step, options.batch)}
        composed = 0 if stage == "alone" else round(COMPOSED * options.batch)
        asked = step, options.batch - composed, composed, 0.0 if stage == "alone" else options.spoken
        drawn = self.ahead.pop(asked) if asked in self.ahead else self.worker.submit(feed.draw, *asked)
        self.ahead = {(step + 1, *asked[1:]): self.worker.submit(feed.draw, step + 1, *asked[1:])}
        batch = feed.batch(drawn.result())
        if stage == "alone":
            with torch.no_grad():
                text_features = model.texts(batch.texts.ids, batch.texts.mask)
            _, image_features = model.images(batch.pixels, options.keep)
            return {"itc": model.contrast(image_features, text_features, batch.same, batch.meaning)[0]}
        return model.losses(batch, towers=stage == "all")

    def step(self, stage: str, rate: float) -> dict[str, Tensor]:
        """One step of an optimizer; returns the losses, on the device."""
        torch.manual_seed(self.options.seed * 10_000_019 + self.steps)
        optimizer = self.optimizer(stage)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        with torch.autocast(self.feed.device.type, torch.bfloat16):
            losses = self.losses(self.steps, stage)
            used = {name: loss for name, loss in losses.items() if not (stage == "fusion" and name == "itc")}
            loss = sum(WEIGHTS.get(name, 1.0) * value for name, value in used.items())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def train(self, state: Path, told: dict[str, str], minutes: float) -> bool:
        """Train on from ``steps``; whether the end was reached within ``minutes``."""
        begun, saved, before = time.time(), time.time(), self.seconds
        sums: dict[str, Tensor] = {}
        count, every = 0, max(1, sum(self.lengths) // 40)
        self.model.train()
        while self.steps < sum(self.lengths):
            stage, rate = self.stage(self.steps)
            for name, value in self.step(stage, rate).items():
                sums[name] = sums.get(name, 0) + value
            self.steps, count = self.steps + 1, count + 1
            self.seconds = before + time.time() - begun
            last = self.steps == sum(self.lengths)
            over = last or self.stage(self.steps)[0] != stage
            if self.steps % every == 0 or over:
                self.show(stage, {name: float(value) / count for name, value in sums.items()}, rate)
                sums, count = {}, 0
            if stage == "text" and over:
                self.lesson.end()
            if (stop := time.time() - begun > 60 * minutes) or time.time() - saved > 300:
                self.keep(state, told)
                saved = time.time()
                if stop and not last:
                    return False
        return True

    def keep(self, state: Path, told: dict[str, str]) -> None:
        """Write all that the rest of the run depends on."""
        value = {
            "options": told,
            "steps": self.steps,
            "seconds": self.seconds,
            "text_cosine": self.text_cosine,
            "curve": self.curve,
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }
        torch.save(value, state.with_suffix(".part"))
        state.with_suffix(".part").replace(state)

    def restore(self, value: dict, told: dict[str, str]) -> None:
        """Take back what `keep` wrote."""
        if value["options"] != told:
            raise SystemExit("the cache has the state of a run with other options; delete its state.pt to start anew")
        self.model.load_state_dict(value["model"])
        for name, stored in value["optimizers"].items():
            self.optimizer(name).load_state_dict(stored)
        self.steps, self.seconds, self.curve = value["steps"], value["seconds"], value["curve"]
        self.text_cosine = value["text_cosine"]

    def show(self, stage: str, losses: dict[str, float], rate: float) -> None:
        """A row of the curve, printed, and the model as it is, saved."""
        if stage == "text":
            self.text_cosine = 1 - losses["text"]
        seen = max(0, self.steps - self.lengths[0]) * self.options.batch
        row = {"step": self.steps, "pictures": seen, "minutes": self.seconds / 60, "lr": rate, **losses}
        if stage != "text":
            row |= {f"unseen_{k}": v for k, v in recall(self.model, self.unseen, self.tokens).items()}
        self.curve.append(row)
        print(stage, json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
        save(self.model, self.tokens, self.options.out)


def draw(curve: list[dict[str, float]], path: Path) -> None:
    """Losses and held-out recall against the pictures seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve = [row for row in curve if row["pictures"]]
    seen = [row["pictures"] / 1e6 for row in curve]
    for name in ("itc", "itm", "lm", "vqa"):
        points = [(x, row[name]) for x, row in zip(seen, curve, strict=True) if name in row]
        left.plot([x for x, _ in points], [y / points[0][1] for _, y in points], label=name.upper())
    left.set(xlabel="million pictures", ylabel="loss, as a share of its start", ylim=(0, 1.05))
    for way, label in (("text", "text by picture"), ("image", "picture by text")):
        right.plot(seen, [100 * row[f"unseen_{way}_recall@10"] for row in curve], label=label)
    right.axhline(100 * 10 / 300, color="grey", linestyle=":", label="chance")
    right.set(xlabel="million pictures", ylabel="R@10 (%), ITC alone", title="300 unseen emoji", ylim=(0, None))
    left.legend()
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
