"""The forms that people's pictures with captions come in; a table that needs none of what reads them.

A form is one module beside this file and a row here. The module has ``look(source)``, which says by a `common.Look`
whether a source is of the form, and ``read(source, look)``, which gives its `ImageTextDataset`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """What a form is called, where it is read, and how it is recognised."""

    title: str
    module: str  # beside this file
    shown_by: str  # what it is recognised by
    beside: bool = False  # whether its pictures are files of the folder that `aurora index` is given


FORMS: dict[str, Form] = {  # in the order that they are looked for; the first that fits is taken
    "own": Form("aurora's own captions or questions", "own", "captions.jsonl, captions.csv or questions.jsonl"),
    "imagefolder": Form(
        "a Hugging Face imagefolder",
        "imagefolder",
        "metadata.jsonl, metadata.csv or metadata.parquet, in the folder or in train, validation and test",
        beside=True,
    ),
    "coco": Form(
        "COCO captions", "coco_captions", "a .json with images and annotations, which have a caption", beside=True
    ),
    "table": Form(
        "a table of files and texts, as open_clip's CSV",
        "text_table",
        "a .csv or .tsv with a column of files (filepath, image) and one of texts (title, caption)",
        beside=True,
    ),
    "webdataset": Form(
        "webdataset shards, as img2dataset writes them", "webdataset", "tars with 0001.jpg and 0001.txt or 0001.json"
    ),
    "saved": Form("a folder that datasets saved", "saved", "dataset_dict.json or state.json"),
    "parquet": Form("parquet with pictures in it", "parquet", ".parquet files with a column of pictures"),
    "pairs": Form(
        "pictures with their captions beside them", "pairs", "a.jpg and a.txt or a.caption side by side", beside=True
    ),
    "classes": Form("pictures by class", "classes", "two or more folders of pictures, named after what they show"),
    "hub": Form("a dataset of the Hugging Face hub", "hub", "an id such as nlphuji/flickr30k that is no folder here"),
}
