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
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sources
import torch
from corpus import Corpus, augment, corpus, plain, words
from mini import BlipMini, load, save
from minilm import tokenizer
from text_tower import start_text, start_words
from torch import Tensor, nn
from transformers import BertTokenizerFast

from aurora_petl.evaluation.recall import retrieval_metrics

TEXT_SHARE = 0.3  # of the learning rate, for the text tower, which starts from MiniLM's vectors
EMOJI_OFTEN = 2.5  # how many times as often an emoji is drawn as another picture; there are fewer of them


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
    found = retrieval_metrics(matrix, matrix.T, names, names)
    return {name: percent / 100 for name, percent in found.items() if "recall" in name}


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


if __name__ == "__main__":
    main()
