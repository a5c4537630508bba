"""Runs as folders that sentence-transformers reads alone."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import aurora_petl
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.export import SENTENCES, export
from aurora_petl.files import read_json
from tests.helpers.families import make
from tests.helpers.pictures import draw
from tests.test_sharing import tuned

TEXTS = ["a red circle", "a photo of some blue square on the ground, and of very much else that is cut off by far"]
ALONE = """
import sys
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer
folder, *names = sys.argv[1:]
model = SentenceTransformer(folder, device="cpu")
vectors = model.encode([Image.open(name) for name in names])
texts = model.encode({texts!r})
assert "aurora_petl" not in sys.modules
np.savez(folder + "/vectors.npz", images=vectors, texts=texts)
"""

needs_library = pytest.mark.skipif(not find_spec("sentence_transformers"), reason="needs sentence-transformers")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw("circle", "red", 50).save(folder / "0.png")
    draw("square", "blue", 70).crop((0, 0, 70, 40)).save(folder / "1.png")
    return [str(path) for path in sorted(folder.iterdir())]


CASES = [
    ("clip", []),
    ("clip", ["image_size=64"]),
    ("clip", ["task.max_tokens=8"]),
    ("metaclip_2", ["method=lora"]),
    ("siglip", ["image_size=64"]),
    ("siglip2", ["method=full", "method_options={}"]),
    ("naflex", []),
]


@needs_library
@pytest.mark.parametrize(
    ("family", "fields"), CASES, ids=lambda part: "-".join(part) if isinstance(part, list) else part
)
def test_sentence_transformers_alone_gives_the_run_s_vectors(family, fields, files, tmp_path):
    run = tuned(tmp_path / "run", f"model={make(family, tmp_path / 'model')}", *fields)
    made = export(run, tmp_path / "out", SENTENCES)
    code = ALONE.format(texts=TEXTS)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(made.folder), *files], check=True)
    found = np.load(made.folder / "vectors.npz")
    ours = aurora_petl.load(run)
    assert np.abs(found["images"] - ours.encode_images(files)).max() <= 1e-5
    assert np.abs(found["texts"] - ours.encode_texts(TEXTS)).max() <= 1e-5
    if not fields:
        untuned = aurora_petl.load(tmp_path / "model").encode_texts(TEXTS)
        assert np.abs(found["texts"] - untuned).max() > 1e-2  # the tuning is in it


def test_the_command_says_how_to_load_the_folder(tmp_path, capsys):
    run = tuned(tmp_path / "run", f"model={make('siglip', tmp_path / 'model')}", "task.max_tokens=8")
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--format", "sentence-transformers"]) == 0
    note, loading = capsys.readouterr().out.splitlines()
    assert note == "max_tokens: sentence-transformers cuts texts at 16 tokens, the run at 8"
    assert loading == f"sentence_transformers.SentenceTransformer({str(out)!r})"
    assert [module["path"] for module in read_json(out / "modules.json")] == ["", "1_Normalize"]


@pytest.mark.parametrize(
    ("fields", "title"),
    [([], "BLIP (retrieval)"), (["task.name=vqa"], "BLIP (vqa)"), (["model=BLIP-2"], "BLIP-2 (retrieval)")],
)
def test_a_model_that_the_library_has_no_class_for_is_one_line(fields, title, tmp_path):
    fields = [field.replace("BLIP-2", str(tmp_path / "model")) for field in fields]
    if any("model=" in field for field in fields):
        make("blip-2", tmp_path / "model")
    run = tuned(tmp_path / "run", *fields) if "task.name=vqa" not in fields else asked(tmp_path / "run", *fields)
    with pytest.raises(AuroraError) as caught:
        export(run, tmp_path / "out", SENTENCES)
    assert str(caught.value).startswith(f"sentence-transformers has no class for {title}; it reads CLIP, ")
    assert not (tmp_path / "out").exists()


def asked(out, *fields):
    """A run's folder of question answering, of which the recipe alone is read."""
    out.mkdir()
    aurora_petl.recipe.load_recipe(None, list(fields)).save(out / "recipe.yaml")
    return out
