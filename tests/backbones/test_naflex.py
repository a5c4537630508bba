"""SigLIP 2 for pictures of any shape: their grids, their number of patches, and files that do not fit."""

import json
import random

import pytest
import torch
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.naflex import grid_of, interpolated
from aurora_petl.errors import AuroraError
from tests.helpers.families import make


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make("naflex", tmp_path_factory.mktemp("models") / "naflex")


def test_grids_are_those_of_the_image_processor():
    draw = random.Random(0)
    for _ in range(300):
        height, width = draw.randint(1, 4000), draw.randint(1, 4000)
        patch, most = draw.choice((8, 14, 16)), draw.choice((1, 16, 256, 1024))
        high, wide = get_image_size_for_max_num_patches(height, width, patch, most)
        assert grid_of(height, width, patch, most) == (high // patch, wide // patch)


def test_another_number_of_patches(path):
    backbone = load_backbone(path, image_size=64)
    pixels = backbone.view()(Image.new("RGB", (90, 30)))
    assert pixels.shape == (1, 65, 192) and pixels[0, 0, :2].prod() <= 64
    assert backbone.encode_image(pixels[None]).feature.shape == (1, 32)
    with pytest.raises(AuroraError, match="image_size is 30, which patches of 8 pixels do not fill"):
        load_backbone(path, image_size=30)


@pytest.mark.parametrize("side", [4, 16])
def test_positions_are_interpolated_as_by_transformers(side):
    """Grids of one column apart, of which PyTorch makes something else on a CPU where channels lie last, as here."""
    torch.manual_seed(0)
    positions = torch.randn(side, side, 8, requires_grad=True)
    shapes = torch.tensor([(1, 1), (1, 256), (128, 2), (16, 16), (4, 4), (3, 7), (12, 21), (20, 5), (2, 100)])
    theirs = Siglip2VisionEmbeddings.resize_positional_embeddings(positions, shapes, 256)
    ours = interpolated(positions, shapes, 256)
    assert torch.allclose(ours, theirs, atol=1e-5)
    seen = torch.randn_like(theirs)
    gradients = [torch.autograd.grad(made, positions, seen)[0] for made in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_a_training_view_keeps_to_the_number_and_is_drawn_from_the_seed(path):
    view = load_backbone(path).view(training=True)
    shown = [view(Image.effect_noise((70, 50), 60).convert("RGB"), random.Random(seed)) for seed in (1, 1, 2)]
    assert shown[0].shape == (1, 17, 192) and not torch.equal(shown[0][0, 0], torch.zeros(192))
    picture = Image.effect_noise((70, 50), 60).convert("RGB")
    assert torch.equal(view(picture, random.Random(3)), view(picture, random.Random(3)))
    assert not torch.equal(view(picture, random.Random(3)), view(picture, random.Random(4)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_num_patches": 15}, "max_num_patches is 15, no square; give image_size"),
        ({"max_num_patches": 0}, "max_num_patches is 0, not 1 to 16,384"),
        ({"patch_size": 16}, "patch_size is 16, and config.json has 8"),
        ({"do_resize": False}, "do_resize is False, which is not done here"),
        ({"image_processor_type": "SiglipImageProcessor"}, "the model wants Siglip2ImageProcessor"),
    ],
)
def test_files_that_do_not_fit_are_told(fields, told, path, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(AuroraError) as error:
        load_backbone(copy)
    assert told in str(error.value) and "\n" not in str(error.value)
