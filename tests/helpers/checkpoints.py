"""Random checkpoints in BLIP's original layout, small, and a forward pass that reads them directly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VISION, TEXT, LAYERS, JOINT, PATCH, WORDS = 192, 128, 3, 32, 16, 30524  # 3 and 2 heads of 64
QUEUE = 24
ENC = 30523


def _linear(state: dict[str, Tensor], name: str, rows: int, columns: int) -> None:
    state[f"{name}.weight"] = torch.randn(rows, columns) / columns**0.5
    state[f"{name}.bias"] = 0.1 * torch.randn(rows)


def _norm(state: dict[str, Tensor], name: str, width: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)


def _vision(state: dict[str, Tensor], image_size: int) -> None:
    tower = "visual_encoder"
    state[f"{tower}.cls_token"] = torch.randn(1, 1, VISION)
    state[f"{tower}.pos_embed"] = torch.randn(1, 1 + (image_size // PATCH) ** 2, VISION)
    state[f"{tower}.patch_embed.proj.weight"] = torch.randn(VISION, 3, PATCH, PATCH) / (3 * PATCH**2) ** 0.5
    state[f"{tower}.patch_embed.proj.bias"] = 0.1 * torch.randn(VISION)
    for n in range(LAYERS):
        block = f"{tower}.blocks.{n}"
        _norm(state, f"{block}.norm1", VISION)
        _norm(state, f"{block}.norm2", VISION)
        _linear(state, f"{block}.attn.qkv", 3 * VISION, VISION)
        _linear(state, f"{block}.attn.proj", VISION, VISION)
        _linear(state, f"{block}.mlp.fc1", 4 * VISION, VISION)
        _linear(state, f"{block}.mlp.fc2", VISION, 4 * VISION)
    _norm(state, f"{tower}.norm", VISION)


def _bert(state: dict[str, Tensor], tower: str) -> None:
    state[f"{tower}.embeddings.position_ids"] = torch.arange(40)[None]
    state[f"{tower}.embeddings.word_embeddings.weight"] = torch.randn(WORDS, TEXT)
    state[f"{tower}.embeddings.position_embeddings.weight"] = torch.randn(40, TEXT)
    _norm(state, f"{tower}.embeddings.LayerNorm", TEXT)
    for n in range(LAYERS):
        layer = f"{tower}.encoder.layer.{n}"
        for kind, seen in (("attention", TEXT), ("crossattention", VISION)):
            _linear(state, f"{layer}.{kind}.self.query", TEXT, TEXT)
            _linear(state, f"{layer}.{kind}.self.key", TEXT, seen)
            _linear(state, f"{layer}.{kind}.self.value", TEXT, seen)
            _linear(state, f"{layer}.{kind}.output.dense", TEXT, TEXT)
            _norm(state, f"{layer}.{kind}.output.LayerNorm", TEXT)
        _linear(state, f"{layer}.intermediate.dense", 4 * TEXT, TEXT)
        _linear(state, f"{layer}.output.dense", TEXT, 4 * TEXT)
        _norm(state, f"{layer}.output.LayerNorm", TEXT)


def _decoder(state: dict[str, Tensor]) -> None:
    _bert(state, "text_decoder.bert")
    head = "text_decoder.cls.predictions"
    state[f"{head}.bias"] = state[f"{head}.decoder.bias"] = 0.1 * torch.randn(WORDS)
    state[f"{head}.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    _linear(state, f"{head}.transform.dense", TEXT, TEXT)
    _norm(state, f"{head}.transform.LayerNorm", TEXT)


def retrieval(image_size: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Weights as BLIP_Retrieval has them: towers, projections, ITM head, their averages, a queue."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = {}
    _vision(state, image_size)
    _bert(state, "text_encoder")
    _linear(state, "vision_proj", JOINT, VISION)
    _linear(state, "text_proj", JOINT, TEXT)
    for key, value in list(state.items()):
        stem, rest = key.split(".", 1)
        near = value + 0.01 * torch.randn_like(value) if value.is_floating_point() else value
        state[f"{stem}_m.{rest}"] = near
    _linear(state, "itm_head", 2, TEXT)
    state["temp"] = torch.tensor(0.043)
    for kind in ("image", "text"):
        state[f"{kind}_queue"] = F.normalize(torch.randn(JOINT, QUEUE), dim=0)
    state["idx_queue"], state["ptr_queue"] = torch.arange(QUEUE)[None], torch.tensor([5])
    return state


def pretraining(image_size: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """As BLIP_Pretrain: besides, a decoder that shares all but its self-attention with the text encoder."""
    state = retrieval(image_size, seed)
    del state["idx_queue"]
    state["queue_ptr"] = state.pop("ptr_queue")
    _decoder(state)
    for key in [key for key in state if key.startswith("text_decoder.bert.")]:
        if ".attention." not in key:
            state[key] = state[key.replace("text_decoder.bert.", "text_encoder.")]
    state["text_decoder.cls.predictions.decoder.weight"] = state["text_encoder.embeddings.word_embeddings.weight"]
    return state


def vqa(image_size: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """As BLIP_VQA: towers and an answer decoder of its own."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = {}
    _vision(state, image_size)
    _bert(state, "text_encoder")
    _decoder(state)
    return state


class Original:
    """BLIP's forward pass on the original names, from its description: a pre-norm ViT, a post-norm BERT whose layers
    attend to the picture between self-attention and MLP."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def _norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, T, D), (B, N, D), (B, N, D), keys (B, N) that count -> (B, T, D), head by head."""
        parts = []
        for q, k, v in zip(query.split(64, -1), key.split(64, -1), value.split(64, -1), strict=True):
            scores = q @ k.transpose(1, 2) / 8
            if kept is not None:
                scores = scores.masked_fill(kept[:, None] == 0, -torch.inf)
            parts.append(scores.softmax(-1) @ v)
        return torch.cat(parts, -1)

    def image(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> picture states (B, N, VISION)"""
        batch, _, size, _ = pixels.shape
        cells = pixels.reshape(batch, 3, size // PATCH, PATCH, size // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
        kernel = self.state["visual_encoder.patch_embed.proj.weight"].flatten(1)
        x = cells.reshape(batch, -1, 3 * PATCH**2) @ kernel.T + self.state["visual_encoder.patch_embed.proj.bias"]
        x = torch.cat([self.state["visual_encoder.cls_token"].expand(batch, -1, -1), x], 1)
        x = x + self.state["visual_encoder.pos_embed"]
        for n in range(LAYERS):
            block = f"visual_encoder.blocks.{n}"
            fused = self._linear(self._norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv")
            x = x + self._linear(self._attend(*fused.split(VISION, -1)), f"{block}.attn.proj")
            inner = F.gelu(self._linear(self._norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self._linear(inner, f"{block}.mlp.fc2")
        return self._norm(x, "visual_encoder.norm", 1e-6)

    def text(self, ids: Tensor, mask: Tensor, image_states: Tensor | None = None) -> Tensor:
        """(B, T), (B, T), (B, N, VISION) -> (B, T, TEXT); [ENC] takes the first place where pictures are met."""
        if image_states is not None:
            ids = ids.clone()
            ids[:, 0] = ENC
        tower = "text_encoder"
        x = self.state[f"{tower}.embeddings.word_embeddings.weight"][ids]
        x = x + self.state[f"{tower}.embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x, f"{tower}.embeddings.LayerNorm", 1e-12)
        for n in range(LAYERS):
            layer = f"{tower}.encoder.layer.{n}"
            x = self._attention(x, x, f"{layer}.attention", mask)
            if image_states is not None:
                x = self._attention(x, image_states, f"{layer}.crossattention", None)
            inner = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", 1e-12)
        return x

    def _attention(self, x: Tensor, seen: Tensor, name: str, kept: Tensor | None) -> Tensor:
        query = self._linear(x, f"{name}.self.query")
        key, value = self._linear(seen, f"{name}.self.key"), self._linear(seen, f"{name}.self.value")
        made = self._linear(self._attend(query, key, value, kept), f"{name}.output.dense")
        return self._norm(x + made, f"{name}.output.LayerNorm", 1e-12)

    def itc(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Cosines (pictures, texts)."""
        image = F.normalize(self._linear(self.image(pixels)[:, 0], "vision_proj"), dim=-1)
        return image @ F.normalize(self._linear(self.text(ids, mask)[:, 0], "text_proj"), dim=-1).T

    def itm(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Matching logits (B, 2)."""
        return self._linear(self.text(ids, mask, self.image(pixels))[:, 0], "itm_head")


MAKERS = {
    "pretraining": pretraining,
    "retrieval": retrieval,
    "vqa": vqa,
}
TEXTS = ["a red apple", "a dog in the rain, beside two other dogs", "keys"]
