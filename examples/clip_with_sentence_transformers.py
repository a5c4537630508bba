"""Adapt a CLIP of sentence-transformers by its own trainer: Aurora's configuration goes into `add_adapter`.

pip install sentence-transformers datasets
python examples/clip_with_sentence_transformers.py my_photos --model clip-ViT-B-32 --out clip-tuned
"""

import argparse

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from aurora_petl import AuroraConfig, load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of pictures with captions")
    parser.add_argument("--model", default="clip-ViT-B-32", help="a CLIP, by its folder or hub id")
    parser.add_argument("--out", default="clip-tuned", help="folder of the adapter")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()

    train = load_dataset(arguments.data).split("train")
    pairs = Dataset.from_dict(
        {"image": [train.image(row) for row in range(len(train))], "text": [item.captions[0] for item in train]}
    )
    model = SentenceTransformer(arguments.model)
    model.add_adapter(AuroraConfig(r=64))
    settings = SentenceTransformerTrainingArguments(
        arguments.out,
        max_steps=arguments.steps,
        per_device_train_batch_size=min(32, len(train)),
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
    )
    SentenceTransformerTrainer(model, settings, pairs, loss=MultipleNegativesRankingLoss(model)).train()

    model.save(arguments.out)  # the adapter and what the library needs to load it again
    again = SentenceTransformer(arguments.out)
    found = again.similarity(again.encode(["a red circle"]), again.encode(pairs[: len(pairs)]["image"]))
    best = int(found.argmax())
    print(f"'a red circle' finds: {pairs[best]['text']}")


if __name__ == "__main__":
    main()
