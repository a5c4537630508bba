"""Tune a model on a folder of captioned pictures and say whether it was worth it.

    python examples/train_on_own_pictures.py my_photos --model blip-mini --out runs/mine

The folder holds a captions.jsonl, or the captions in another form that docs/data.md names.
"""

import argparse

import aurora_petl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of pictures with captions")
    parser.add_argument("--model", default="blip-mini", help="blip-mini, a model folder or a hub id")
    parser.add_argument("--out", default="runs/mine", help="folder of the run")
    parser.add_argument("--steps", type=int, default=0, help="steps of training; 0: as many as the recipe has")
    arguments = parser.parse_args()

    try:
        run = aurora_petl.train(
            arguments.data,
            arguments.model,
            out=arguments.out,
            train={"max_steps": arguments.steps},
            show_progress_bar=True,
        )
    except aurora_petl.AuroraError as error:  # its one line says what is wrong, and where
        raise SystemExit(str(error)) from None

    before, after = run.metrics["zero_shot_test"]["mean_recall"], run.metrics["test"]["mean_recall"]
    gain = run.metrics["gain"]["test"]["mean_recall"]
    print(f"mean recall on the test split: {before:.1f} before, {after:.1f} after")
    print(f"gain {gain['value']:+.1f}, between {gain['low']:+.1f} and {gain['high']:+.1f} with 95% confidence")


if __name__ == "__main__":
    main()
