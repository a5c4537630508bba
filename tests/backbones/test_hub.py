"""Models of the hub from a small server that answers as the hub does, and without any."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from aurora_petl.backbones import hub, load_backbone
from aurora_petl.backbones.load import resolve
from aurora_petl.errors import AuroraError

MINI = Path(resolve("blip-mini"))
NAME, COMMIT = "somebody/blip-copy", "0" * 39 + "1"
FILES = {
    name: (MINI / name).read_bytes()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
}
FILES |= {"pytorch_model.bin": b"not wanted", "onnx/model.safetensors": b"nor this"}


class Hub(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def answer(self, body=True):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        content, headers = b"", {}
        if path == "/":
            pass
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            rows = [{"type": "file", "oid": "1" * 40, "size": len(data), "path": n} for n, data in FILES.items()]
            content = json.dumps(rows).encode()
        elif path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
            rows = [{"rfilename": name} for name in FILES]
            content = json.dumps({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": rows}).encode()
        elif (name := path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")) in FILES:
            content = FILES[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch, cache):
    made = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{made.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    Hub.asked.clear()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def nobody(monkeypatch, cache):
    """A port of this machine where nobody answers."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def refusal(name):
    started = time.monotonic()
    with pytest.raises(AuroraError) as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value) and time.monotonic() - started < 10
    return str(caught.value)


def test_a_model_is_fetched_once_and_read_from_the_cache(server, monkeypatch, recwarn, capfd):
    backbone = load_backbone(NAME)
    assert backbone.name == NAME and backbone.model.name_or_path == NAME
    plain = load_backbone("blip-mini").model.state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in backbone.model.state_dict().items())
    fetched = {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not any("onnx" in path for path in Hub.asked)
    assert not [str(warning.message) for warning in recwarn] and capfd.readouterr() == ("", "")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert load_backbone(NAME).image_size == 96
    assert time.monotonic() - started < 15 and capfd.readouterr() == ("", "")


def test_to_count_weights_the_configuration_is_enough(server):
    assert load_backbone(NAME, weights=False).model.device.type == "meta"
    assert {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path} == {"config.json"}


def test_a_model_that_the_hub_does_not_have(server):
    message = refusal("somebody/else")
    assert message.startswith("model somebody/else: it is no folder here, and the hub does not give it (")
    assert message.endswith("check the name and the network")


def test_without_network_it_ends_soon_and_in_silence(nobody, capfd, recwarn):
    found = "model somebody/else: it is no folder here, and the hub cannot be reached; check the name and the network"
    assert refusal("somebody/else") == found
    assert capfd.readouterr() == ("", "") and not [str(warning.message) for warning in recwarn]


def test_what_was_fetched_in_part_is_said_to_be_incomplete(server, monkeypatch):
    load_backbone(NAME, weights=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "incomplete" in refusal(NAME) or "model.safetensors" in refusal(NAME)


def test_offline_by_wish_asks_nothing(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the hub cannot be reached" in refusal(NAME)
    assert not Hub.asked


def test_levels_and_bars_are_as_before():
    before = (hub.transformers_logging.get_verbosity(), hub.are_progress_bars_disabled())
    with hub.quiet():
        assert hub.are_progress_bars_disabled()
    assert (hub.transformers_logging.get_verbosity(), hub.are_progress_bars_disabled()) == before
