"""The forms that people's pictures with captions come in; a table that needs none of what reads them.

A form is one module beside this file and a row here. The module has ``look(source)``, which says by a `common.Look`
whether a source is of the form, and ``read(source, look)``, which gives its dataset of
captions or questions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """What a form is called, where it is read, and how it is recognised."""

    title: str
    module: str  # beside this file
    shown_by: str  # what it is recognised by
    names_files: bool = False  # whether it has a table that names the files of pictures, which may lie elsewhere
    beside: bool = False  # whether its pictures are files of a folder, as `aurora index` wants them


OPTIONS = (  # the keys of a recipe's ``files``, which say how own data are read; docs/data.md explains them
    *("rows", "form", "image_column", "caption_column", "question_column", "answer_column", "split_column"),
    *("id_column", "train", "validation", "test", "templates", "config"),
)
FORMS: dict[str, Form] = {  # in the order that they are looked for; the first that fits is taken
    "own": Form("own rows", "own", "captions.jsonl, captions.csv or questions.jsonl", names_files=True),
    "imagefolder": Form(
        "a Hugging Face imagefolder",
        "imagefolder",
        "metadata.jsonl, metadata.csv or metadata.parquet with file_name",
        names_files=True,
        beside=True,
    ),
    "coco": Form(
        "COCO captions",
        "coco_captions",
        "JSON with images and annotations that have a caption",
        names_files=True,
        beside=True,
    ),
    "conversations": Form(
        "conversations about pictures",
        "conversations",
        "JSON or JSONL whose rows have conversations, as LLaVA's, or messages",
        names_files=True,
    ),
    "table": Form(
        "a table of files and texts",
        "text_table",
        "CSV, TSV, JSON or JSONL with a column of files and one of texts, such as open_clip's filepath and title",
        names_files=True,
        beside=True,
    ),
    "webdataset": Form("webdataset shards", "webdataset", "tars with 0001.jpg and 0001.txt or 0001.json"),
    "saved": Form("a folder that datasets saved", "saved", "dataset_dict.json or state.json"),
    "parquet": Form("parquet with pictures in it", "parquet", ".parquet files with a column of pictures"),
    "pairs": Form(
        "pictures with texts beside them", "pairs", "a.jpg and a.txt, a.caption or a.json side by side", beside=True
    ),
    "classes": Form("pictures by class", "classes", "two or more folders of pictures, named after what they show"),
    "hub": Form("a dataset of the Hugging Face hub", "hub", "an id such as nlphuji/flickr30k that is no folder here"),
}
