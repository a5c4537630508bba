"""Scoring candidates with ITM: the usual loop against `evaluation/rerank.py`, at BLIP-base size unless told otherwise.

    OMP_NUM_THREADS=2 python benchmarks/rerank.py --json rerank.json

The loop is that of BLIP's released evaluation: one query at a time, its candidates as one batch, the picture's states
repeated for each, texts padded to 35 word pieces, transformers' own attention. Both score the same pairs, all pictures
with all texts, in both directions; the two take turns, and it stops if their scores differ by more than 1e-4 in float32
or rank differently. Random weights. ``--kind clip`` is 8 frames at 224 px, ``--kind picture`` one at 384 px.
``--processor`` counts the seconds that the processor works for this process, in the place of those on the clock: a
machine that others use as well gives steadier ratios so, with one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Peak, seconds
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from aurora_petl.backbones.base import Texts
from aurora_petl.backbones.blip.model import ENC, BlipBackbone
from aurora_petl.evaluation.features import Features, PictureStates
from aurora_petl.evaluation.rerank import match_pairs
from aurora_petl.files import write_json

PADDED = 35
PICTURE_TOKENS = {"picture": 577, "clip": 8 * 197}
COCO_5K = (5_000 + 25_010) * 256  # pairs that both directions ask for
A100, A100_SHARE = 312e12, 0.4  # bfloat16 operations a second of NVIDIA's data sheet, and what a model reaches


def made(options: argparse.Namespace) -> BlipForImageTextRetrieval:
    """BLIP's text encoder with random weights; of the vision tower, which takes no part, one layer."""
    width = options.width
    shape = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 64)
    text = dict(shape, encoder_hidden_size=width, num_hidden_layers=options.layers, vocab_size=ENC + 1)
    vision = dict(shape, num_hidden_layers=1, initializer_range=0.02)
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(
        BlipConfig(text_config=dict(text, initializer_range=0.02), vision_config=vision, image_text_hidden_size=64)
    )
    torch.nn.init.normal_(model.itm_head.weight, std=0.05)
    return model.eval().to(options.device)


def split(options: argparse.Namespace) -> Features:
    """Random pictures and texts; lengths as COCO's captions have them, 12 word pieces in the mean."""
    torch.manual_seed(1)
    lengths = (9 + 3.5 * torch.randn(options.texts).abs()).round().clamp(7, PADDED).long()
    ids = torch.randint(1000, ENC, (options.texts, PADDED))
    ids[:, 0] = ENC
    mask = (torch.arange(PADDED) < lengths[:, None]).long()
    states = torch.randn(options.pictures, PICTURE_TOKENS[options.kind], options.width, device=options.device)
    pictures, texts = [f"{n}" for n in range(options.pictures)], [f"{n}" for n in range(options.texts)]
    none, own = torch.zeros(1, device=options.device), range(options.pictures)
    held = PictureStates(lambda first, last: states[first:last], own, states)
    return Features(none, none, Texts(ids * mask, mask), pictures, texts, texts, none, own, held)


@torch.no_grad()
def usual_loop(model: BlipForImageTextRetrieval, features: Features) -> Tensor:
    """(2, pictures, texts): match logits as asked for by pictures and as asked for by texts."""
    pictures, texts, tokens, states_of = len(features.image_ids), len(features.texts), features.tokens, features.states
    assert states_of is not None
    device = features.image.device
    found = torch.zeros(2, pictures, texts, device=device)

    def score(ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        ids, mask = ids.to(device), mask.to(device)
        fused = model.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states).last_hidden_state
        return model.itm_head(fused[:, 0]).float()[:, 1]

    for picture in range(pictures):
        found[0, picture] = score(tokens.ids, tokens.mask, states_of(picture, picture + 1).repeat(texts, 1, 1))
    for text in range(texts):
        ids, mask = (value[text, None].repeat(pictures, 1) for value in (tokens.ids, tokens.mask))
        found[1, :, text] = score(ids, mask, states_of(0, pictures))
    return found


@torch.no_grad()
def engine(backbone: BlipBackbone, features: Features) -> Tensor:
    """The same by `match_pairs`, each pair once."""
    pictures, texts = len(features.image_ids), len(features.texts)
    assert features.states is not None
    pairs = torch.cartesian_prod(torch.arange(pictures), torch.arange(texts))
    matcher: Any = backbone  # its class has as instances' variables what the protocol has as the class's
    logits = match_pairs(matcher, features, pairs, features.states, frame_attention=False).view(pictures, texts)
    return torch.stack([logits, logits])


def changed_orders(one: Tensor, other: Tensor) -> float:
    """Share of the pairs of candidates in a list whose order differs, over the lists of both directions."""
    changed, of = 0, 0
    for a, b in ((one[0], other[0]), (one[1].T, other[1].T)):
        upper = torch.triu(torch.ones(a.shape[1], a.shape[1], dtype=torch.bool, device=a.device), 1)
        signs = [(x[:, :, None] - x[:, None, :]).sign()[:, upper] for x in (a, b)]
        changed, of = changed + int((signs[0] != signs[1]).sum()), of + signs[0].numel()
    return changed / of


def operations(width: int, layers: int, text: float, picture: int) -> float:
    """Floating point operations of the loop's forward pass for one pair of ``text`` and ``picture`` tokens."""
    linear = 14 * text * width**2 + 2 * picture * width**2
    return 2 * layers * (linear + 2 * text**2 * width + 2 * text * picture * width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(width=768, layers=12, pictures=4, texts=32, repeats=3).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--kind", choices=PICTURE_TOKENS, default="picture")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processor", action="store_true", help="count the processor's seconds")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    features, stock = split(options), made(options)
    backbone = BlipBackbone(made(options), None, "random")
    asked = 2 * options.pictures * options.texts  # in both directions

    def run(name: str) -> tuple[Tensor, float, int]:
        half = torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=name.endswith("bfloat16"))
        found: list[Tensor] = []

        def step() -> None:
            found.append(usual_loop(stock, features) if name.startswith("loop") else engine(backbone, features))

        with half, Peak(options.device) as memory:
            used = time.process_time()
            taken = seconds(step, options.device)
            used = time.process_time() - used
        taken = used if options.processor else taken
        return found[0], taken, memory.bytes

    names = ("loop", "engine", "loop bfloat16", "engine bfloat16")
    runs = {name: [run(name)] for name in names}  # the first of each warms up
    for _ in range(options.repeats):
        for name in names:
            runs[name].append(run(name))
    exact = runs["loop"][0][0]
    rows = {}
    for name, found in runs.items():
        taken, scores = median(row[1] for row in found[1:]), found[0][0]
        rows[name] = {
            "seconds": taken,
            "pairs_per_second": asked / taken,
            "all_seconds": [row[1] for row in found[1:]],
            "peak_bytes": max(row[2] for row in found[1:]),
            "largest_difference": float((scores - exact).abs().max()),
            "changed_orders": changed_orders(scores, exact),
        }
    threads = torch.get_num_threads()
    print(f"{options.pictures} {options.kind}s x {options.texts} texts in both directions, {threads} threads")
    heads = ("seconds", "pairs/s", "ratio", "peak MiB", "difference", "orders changed")
    print(f"{'':16} {heads[0]:>8} {heads[1]:>8} {heads[2]:>6} {heads[3]:>9} {heads[4]:>11} {heads[5]:>15}")
    for name, row in rows.items():
        row["ratio"] = rows["loop"]["seconds"] / row["seconds"]
        print(
            f"{name:16} {row['seconds']:8.2f} {row['pairs_per_second']:8.1f} {row['ratio']:6.1f} "
            f"{row['peak_bytes'] / 2**20:9.0f} {row['largest_difference']:11.1e} {row['changed_orders']:15.2%}"
        )
    if options.kind == "picture":
        # no pair of COCO is taken to be asked for twice, as all are here: the engine then has as many to score
        per_pair = operations(options.width, options.layers, PADDED, PICTURE_TOKENS["picture"])
        speed = per_pair * rows["loop"]["pairs_per_second"]
        for name, once in (("loop", 1), ("engine", 2)):
            here = once * COCO_5K / rows[name]["pairs_per_second"] / 3600
            rows[name] |= {"coco_5k_hours": here, "coco_5k_hours_a100": here * speed / (A100_SHARE * A100)}
            print(f"COCO 5K, k_test 256, {name}: {here:.1f} h here", end="; ")
            print(f"{rows[name]['coco_5k_hours_a100']:.2f} h on an A100 at {A100_SHARE:.0%} of its peak, estimated")
    if rows["engine"]["largest_difference"] > 1e-4 or rows["engine"]["changed_orders"]:
        raise SystemExit("the engine's scores or rankings differ from the loop's")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        write_json(options.json, {**settings, "threads": threads, "torch": torch.__version__, **rows})


if __name__ == "__main__":
    main()
