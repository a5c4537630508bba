"""Adapt CLIP in a training loop of your own, with transformers and peft alone: Aurora is one configuration of peft.

python examples/clip_with_peft.py my_photos --model openai/clip-vit-base-patch32 --out clip-adapter
"""

import argparse
from itertools import chain, repeat

import torch
from peft import PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aurora_petl import AuroraConfig, load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of pictures with captions")
    parser.add_argument("--model", default="openai/clip-vit-base-patch32")
    parser.add_argument("--out", default="clip-adapter", help="folder of the adapter")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()

    processor = CLIPImageProcessorPil.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = get_peft_model(CLIPModel.from_pretrained(arguments.model), AuroraConfig(r=64))
    model.print_trainable_parameters()

    train = load_dataset(arguments.data).split("train")
    length = model.config.text_config.max_position_embeddings

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        texts = [train[row].captions[0] for row in rows]
        words = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {**words, **processor([train.image(row) for row in rows], return_tensors="pt")}

    batch_size = min(32, len(train))
    batches = DataLoader(range(len(train)), batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    for step, batch in zip(range(arguments.steps), chain.from_iterable(repeat(batches)), strict=False):
        loss = model(**batch, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == arguments.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")

    model.save_pretrained(arguments.out)
    merged = PeftModel.from_pretrained(CLIPModel.from_pretrained(arguments.model), arguments.out).merge_and_unload()
    print(f"{arguments.out}: loaded again and merged into a plain {type(merged).__name__}")


if __name__ == "__main__":
    main()
