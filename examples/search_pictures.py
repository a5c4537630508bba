"""Find pictures of a folder in words, with a tuned run or any model.

    python examples/search_pictures.py my_photos "a red circle" --model runs/mine

The index lies beside the folder and is brought up to date at each call: only new pictures are encoded.
"""

import argparse
from pathlib import Path

import aurora_petl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of pictures")
    parser.add_argument("query", help="what to look for: a text, or the path of a picture")
    parser.add_argument("--model", default="blip-mini", help="a run's folder, blip-mini, a model folder or a hub id")
    parser.add_argument("-k", type=int, default=5, help="how many to show")
    arguments = parser.parse_args()

    index = aurora_petl.Index.build(arguments.folder, model=arguments.model, show_progress_bar=True)
    print(f"{len(index)} pictures")
    for name, reason in index.skipped.items():
        print(f"left out: {name}: {reason}")

    picture = Path(arguments.query)
    query = picture if picture.is_file() else arguments.query  # str is a text, Path is a picture
    for number, hit in enumerate(index.search(query, k=arguments.k), 1):
        print(f"{number:3}  {hit.score:.3f}  {hit.path}")


if __name__ == "__main__":
    main()
