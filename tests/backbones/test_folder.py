"""Model folders and names that cannot be loaded: one line each, at once, without asking the network."""

import json
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.load import resolve
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError

MINI = Path(resolve("blip-mini"))
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any try to reach another machine fails the test, whoever would catch its error."""
    tries = []

    def blocked(*args, **_):
        tries.append(args)
        raise OSError("blocked")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    yield
    assert not tries


@pytest.fixture
def model(tmp_path):
    """A folder of links to blip-mini's files, which tests take away or replace."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in NAMES:
        (folder / name).symlink_to(MINI / name)
    return folder


def replace(folder, name, content):
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content) if isinstance(content, bytes) else (folder / name).write_text(content)


def refusal(folder, **options):
    started = time.monotonic()
    with pytest.raises(AuroraError) as caught:
        load_backbone(folder, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700 and time.monotonic() - started < 10
    return message


def test_a_whole_folder_asks_the_network_nothing(model, recwarn, capfd):
    assert load_backbone(model).model.temperature().item() == load_backbone("blip-mini").model.temperature().item()
    assert load_backbone(model, weights=False).model.device.type == "meta"
    assert not [str(warning.message) for warning in recwarn] and capfd.readouterr() == ("", "")


# Weights


def test_sharded_weights_are_read_with_their_temperature(model):
    state = load_file(MINI / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(state)
    places = {name: f"model-0000{1 + (name > names[len(names) // 2])}-of-00002.safetensors" for name in names}
    state["temperature"] = torch.tensor([0.31])
    for file in set(places.values()):
        save_file({n: state[n] for n in names if places[n] == file}, model / file, metadata={"format": "pt"})
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    backbone, plain = load_backbone(model), load_backbone("blip-mini")
    assert backbone.model.temperature().item() == pytest.approx(0.31)
    for name, weight in plain.model.state_dict().items():
        if name != "temperature.weight":
            assert torch.equal(backbone.model.state_dict()[name], weight), name
    first, second = sorted(set(places.values()))
    (model / second).rename(model / "away")
    assert f"{model / second} cannot be read" in refusal(model)
    replace(model, second, (model / "away").read_bytes()[:1000])
    assert f"{model / second} is broken" in refusal(model)
    save_file({"itm_head.weight": torch.zeros(2, 192)}, model / second)
    assert "promises" in refusal(model) and "which no file has" in refusal(model)
    for content, message in (
        ("", "not JSON"),
        ("[]", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "no weight_map"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "no safetensors file of its folder"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "no safetensors file of its folder"),
    ):
        index.write_text(content)
        assert message in refusal(model), content


def cut(share):
    content = (MINI / "model.safetensors").read_bytes()
    return content[: int(share * len(content))]


BYTES = {
    "a pointer": (LFS, "is a pointer of git-lfs, not the weights; fetch them with git lfs pull"),
    "empty": (b"", "is empty; copy the model again"),
    "cut in its header": (cut(0.0003), "is broken"),
    "cut in its data": (cut(0.7), "is broken"),
    "of another format": (b"\x80\x02}q\x00." * 50, "is broken"),
}


@pytest.mark.parametrize("case", BYTES)
def test_weights_that_are_not_whole(case, model):
    content, message = BYTES[case]
    replace(model, "model.safetensors", content)
    found = refusal(model)
    assert str(model / "model.safetensors") in found and message in found


def other_tensors(state):
    return {"bert.encoder.weight": torch.zeros(3)}


def a_wide_head(state):
    return state | {"itm_head.weight": torch.zeros(3, 192)}


def integers(state):
    return state | {"itm_head.weight": torch.zeros(2, 192, dtype=torch.int8)}


def not_a_number(state):
    return state | {"itm_head.bias": torch.tensor([0.0, torch.nan])}


def two_temperatures(state):
    return state | {"temperature": torch.ones(2)}


def without_most(state):
    return {name: value for name, value in state.items() if "layer.0" in name or "layers.0" in name or "head" in name}


TENSORS = {
    "another model": (other_tensors, "its weights are of another model; the first is called 'bert.encoder.weight'"),
    "another shape": (a_wide_head, r"itm_head.weight is (3, 192), but config.json beside it makes it (2, 192)"),
    "integers": (integers, "itm_head.weight is of type I8"),
    "NaN": (not_a_number, "itm_head.bias holds NaN or infinity"),
    "temperatures": (two_temperatures, "temperature is not one finite number"),
    "a few": (without_most, "has no vision_proj, text_proj, which retrieval needs"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_are_others(case, model):
    change, message = TENSORS[case]
    state = change(load_file(MINI / "model.safetensors"))
    (model / "model.safetensors").unlink()
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    assert message in refusal(model)


def test_only_safetensors_are_read(model):
    (model / "model.safetensors").unlink()
    assert "has no model.safetensors; copy the model again" in refusal(model)
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    assert "weights as pytorch_model.bin only, and weights are read from safetensors alone" in refusal(model)


# Configuration


def config_with(part=None, **values):
    content = json.loads((MINI / "config.json").read_text())
    (content if part is None else content[part]).update(values)
    return json.dumps(content)


CONFIGS = {
    "empty": ("", "not JSON"),
    "cut": (config_with()[:70], "not JSON"),
    "a list": ("[1, 2]", "holds a list of 2, not the configuration of a model"),
    "a word": ('"blip"', "holds 'blip', not the configuration"),
    "no type": ("{}", "model_type is None, not a name"),
    "an odd type": (config_with(model_type=["blip"]), "model_type is a list of 1, not a name"),
    "another type": (config_with(model_type="bert"), "is of type 'bert', which has no backbone here"),
    "a long type": (config_with(model_type="x" * 10_000), "is of type 'xxxx"),
    "a million layers": (
        config_with("text_config", num_hidden_layers=10**6),
        "text_config.num_hidden_layers is 1000000, not a whole number from 1 to 200",
    ),
    "many layers": (config_with("vision_config", num_hidden_layers=150), "weights are missing"),
    "a float": (config_with("text_config", num_hidden_layers=1e6), "num_hidden_layers is 1000000.0, not a whole"),
    "no width": (config_with("text_config", hidden_size=0), "text_config.hidden_size is 0, not a whole number"),
    "a negative width": (config_with("vision_config", hidden_size=-192), "vision_config.hidden_size is -192"),
    "a word for a width": (config_with("text_config", hidden_size="192"), "text_config.hidden_size is '192'"),
    "a huge number": (config_with("text_config", vocab_size=10**4000), "vocab_size is a number of 13,288 bits"),
    "heads": (config_with("text_config", num_attention_heads=5), "num_attention_heads is 5, which does not divide"),
    "patches": (config_with("vision_config", patch_size=17), "patch_size is 17, which does not divide"),
    "few words": (config_with("text_config", vocab_size=100), "vocab_size is 100, which has no [ENC] token (30523)"),
    "nested": (config_with("text_config", hidden_act={"a": [1] * 99}), "hidden_act is a dict of 1, not a function"),
    "an unknown function": (config_with("vision_config", hidden_act="gelo"), "hidden_act is 'gelo', not a function"),
    "a part of text": (config_with(text_config="none"), "text_config is 'none', not an object"),
    "an epsilon": (config_with("vision_config", layer_norm_eps=0), "layer_norm_eps is 0, not a positive number"),
    "a dropout": (config_with("text_config", hidden_dropout_prob=1.5), "hidden_dropout_prob is 1.5, not a number from"),
    "a part that is missing": (config_with(text_config=None), "config.json beside it makes it"),
    "another width": (config_with("text_config", intermediate_size=65_536), "makes it (65536, 192)"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_odd_configurations(case, model):
    content, message = CONFIGS[case]
    replace(model, "config.json", content)
    assert message in refusal(model)


def test_odd_configurations_do_not_hold_up_params(model, capsys):
    for values in ({"num_hidden_layers": 10**6}, {"num_hidden_layers": 10**30}, {"hidden_size": 10**12}):
        replace(model, "config.json", config_with("vision_config", **values))
        assert next(iter(values)) in refusal(model, weights=False)
        assert main(["params", str(model)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_fields_that_change_nothing_do_no_harm(model):
    odd = dict(num_labels=10**9, quantization_config={"a": 1}, auto_map={"AutoConfig": "evil.Config"}, dtype="int7")
    replace(model, "config.json", config_with(architectures=3, **odd))
    replace(model, "preprocessor_config.json", "{")
    assert load_backbone(model).image_size == 96


# Tokenizer


def test_a_folder_without_tokenizer_is_refused(model, tmp_path, folder, capsys):
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (model / name).unlink()
    assert f"model {model} has no tokenizer: put tokenizer.json" in refusal(model)
    (model / "tokenizer_config.json").symlink_to(MINI / "tokenizer_config.json")
    for command in (
        ["train", "--data", str(folder), "--model", str(model), "--out", str(tmp_path / "run")],
        ["index", str(folder), "--model", str(model), "--out", str(tmp_path / "made.index")],
    ):
        assert main(command) == 1
        assert "has no tokenizer" in capsys.readouterr().err


def vocabulary(**changes):
    content = json.loads((MINI / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    for word, number in changes.items():
        words[word] = number
    return content, words


def of_five_words():
    content, words = vocabulary()
    content["model"]["vocab"] = {word: words[word] for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    return content


def too_many_words():
    return vocabulary(zzz=40_000)[0]


def shifted():
    """As bert-base-cased: the same special tokens, other words."""
    content, words = vocabulary()
    content["model"]["vocab"] = {w: n if n < 1000 or n > 30521 else 1000 + (n - 993) % 29522 for w, n in words.items()}
    return content


TOKENIZERS = {
    "five words": (of_five_words, "its tokenizer knows"),
    "too many words": (too_many_words, "its tokenizer has numbers up to 40000, its text tower 30524 words"),
    "another vocabulary": (shifted, "its tokenizer is not that of bert-base-uncased"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers_of_other_models(case, model):
    make, message = TOKENIZERS[case]
    replace(model, "tokenizer.json", json.dumps(make()))
    assert message in refusal(model)


@pytest.mark.parametrize(
    "token, message", [("cls", "has no [CLS] token, which BLIP needs"), ("sep", "has no [SEP] token")]
)
def test_tokenizers_without_special_tokens(token, message, model):
    settings = json.loads((MINI / "tokenizer_config.json").read_text())
    settings.pop(f"{token}_token")
    replace(model, "tokenizer_config.json", json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert message in refusal(model)


def test_a_tokenizer_whose_separator_is_elsewhere(model):
    replace(model, "config.json", config_with("text_config", sep_token_id=3))
    assert "its tokenizer has [SEP] at 102, its configuration at 3" in refusal(model)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model": 3}', LFS, "\x00" * 40])
def test_broken_tokenizers(content, model):
    replace(model, "tokenizer.json", content)
    assert "its tokenizer" in refusal(model)


def test_broken_tokenizer_settings(model):
    for content in ("{", "[]", '{"tokenizer_class": "NoSuchTokenizer"}', '{"tokenizer_class": 5}', '{"pad_token": 7}'):
        replace(model, "tokenizer_config.json", content)
        try:
            load_backbone(model)  # what the file does not say is in tokenizer.json
        except AuroraError as error:
            assert "\n" not in str(error) and "tokenizer" in str(error)


def test_the_vocabulary_of_the_hub_has_no_dec_and_enc(model):
    """As Salesforce's models have it: bert-base-uncased, 30522 words."""
    content, words = vocabulary()
    content["model"]["vocab"] = {word: number for word, number in words.items() if number < 30522}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 30522]
    replace(model, "tokenizer.json", json.dumps(content))
    settings = json.loads((MINI / "tokenizer_config.json").read_text())
    del settings["bos_token"], settings["extra_special_tokens"]
    replace(model, "tokenizer_config.json", json.dumps(settings))
    tokenizer = load_backbone(model).tokenizer
    assert len(tokenizer) == 30522 and tokenizer("a dog").input_ids == [101, 1037, 3899, 102]
    (model / "tokenizer.json").unlink()  # older folders have the words as text
    ordered = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    (model / "vocab.txt").write_text("\n".join(ordered) + "\n")
    assert load_backbone(model).tokenizer("a dog").input_ids == [101, 1037, 3899, 102]


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "/", "~", "gone", "./gone", "../a/b", "~/models/x", "a/b/", "a/b/c", "a/b/../c", "a/b?c", "a/b c"),
        *("a/b\nc", "ä/b", "a/模型", "http://huggingface.co/a/b", "https://a/b", "a/b" * 1700, "x" * 5000, "a\x00/b"),
        *("\ud83d/b", "a--b/c", "a/..", "-a/b", "a/b.", "C:\\models\\x", "a/" + "b" * 5000),
    ],
)
def test_names_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(name)
    assert message.startswith(("no model ", "model folder "))


def test_files_and_folders_of_another_kind(tmp_path):
    (tmp_path / "model_base.pth").write_bytes(b"")
    assert "is a file, not a model folder; aurora convert makes one" in refusal(tmp_path / "model_base.pth")
    assert "has no config.json" in refusal(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    assert "is a run, not a model; name the model that it tuned, with train.init_from=" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter, not a model" in refusal(tmp_path)
