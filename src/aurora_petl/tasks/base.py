"""What training and report ask of every task, and what all tasks have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..backbones import Tunable
from ..data.rows import Dataset, ImageTextDataset, QuestionDataset, need_frames
from ..errors import AuroraError, first_line
from ..evaluation.outcome import Outcome
from ..notes import note
from .settings import TASKS, TaskSettings

MULTIPLE = 8  # of tokens, in batches of a compiled loss: 8, 16, 24, ... are few shapes, and little is padding
SHAPES = 64  # of batches that a loss is compiled for
TEXTS: dict[type[Dataset[Any]], str] = {ImageTextDataset: "captions", QuestionDataset: "questions"}  # what messages say


class Task(nn.Module):
    """A module that makes a dict of a batch, ``loss`` and, detached, the parts that are logged beside it.

    Args:
        backbone: with its adapter injected and its trainable weights marked.
        settings: numbers of the objective and of evaluation.
    """

    data: ClassVar[type[Dataset[Any]]]  # rows that it trains on and scores
    example: ClassVar[str]  # what messages call one training example
    main_metric: ClassVar[str]  # of `evaluate`; picks the best checkpoint

    def __init__(self, backbone: Any, settings: TaskSettings) -> None:
        super().__init__()
        self.backbone: Tunable = backbone
        self.settings = settings
        self.model = backbone.module  # registered, so that the Trainer sees its weights
        self.warmup_steps = 0  # of one epoch; the Trainer's driver sets it, for objectives that ramp up
        self._compiled: Any = None
        self._shapes: set[Hashable] = set()  # of batches that have a graph
        self._told = False  # that there are more
        self._not_followed: tuple[type[BaseException], ...] = ()  # what torch.compile raises at code beyond it

    @classmethod
    def check(cls, settings: TaskSettings, dataset: Dataset[Any]) -> None:
        """Look for what would stop a run on ``dataset``, all splits together, but for files that do not decode.

        Raises:
            AuroraError: at the first such thing.
        """
        if not isinstance(dataset, cls.data):
            others = [f"task.name={name}" for name, (own, _) in TASKS.items() if own.texts == TEXTS[type(dataset)]]
            raise AuroraError(
                f"{dataset.name} holds {TEXTS[type(dataset)]}, but task {settings.name} is about {TEXTS[cls.data]}; "
                f"{' or '.join(others)} is for these, or name other --data"
            )
        need_frames(dataset, settings.frames)

    @classmethod
    @abstractmethod
    def examples(cls, dataset: Any) -> Sequence[tuple[int, dict[str, Any]]]:
        """Training examples of a split: a row of ``dataset``, and what `collate` needs beside its ``pixels``."""

    @classmethod
    def fitted(cls, settings: Any, backbone: Any, batch_size: int = 0, examples: int = 0) -> Any:
        """Settings with what they leave to the model taken from it, and, where a batch is given, fitted to so many
        training examples.

        Raises:
            AuroraError: if they ask for what the model has not.
        """
        return settings

    @abstractmethod
    def loss(self, *args: Any, **batch: Any) -> dict[str, Tensor]:
        """What the module makes of a batch of `collate`: ``loss`` and its parts. Nothing in it may read tensors."""

    def forward(self, *args: Any, **batch: Any) -> dict[str, Tensor]:
        """`loss` of a batch, compiled in training after `compile_loss`, unless `SHAPES` other shapes were.

        Raises:
            AuroraError: if the model does something that torch.compile does not follow.
        """
        if self._compiled is None or not self.training:
            return self.loss(*args, **batch)
        batch = self.backbone.before_graph(batch)
        if not self._has_graph(_shape([*args, batch])):
            return self.loss(*args, **batch)
        try:
            made: dict[str, Tensor] = self._compiled(*args, **batch)
        except self._not_followed as error:
            raise AuroraError(
                f"train.compile: {self.backbone.name} cannot be compiled whole ({first_line(error)}); leave it out"
            ) from error
        return made

    def compile_loss(self, backend: str = "inductor") -> None:
        """Let torch.compile capture the loss of training, with what it changes, as one graph for each shape of batch;
        `collate` then pads to few shapes.

        Args:
            backend: of torch.compile.
        """
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # and sympy

        self._not_followed = torch._dynamo.exc.TorchDynamoException, GuardOnDataDependentSymNode
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * SHAPES)  # graphs may depend on more than shapes
        self._compiled = torch.compile(self.loss, fullgraph=True, dynamic=False, backend=backend)

    def _has_graph(self, shape: Hashable) -> bool:
        """Whether a batch of such a shape is one of those that are compiled."""
        if shape in self._shapes:
            return True
        if len(self._shapes) == SHAPES:
            if not self._told:
                note(
                    f"train.compile: {SHAPES} shapes of batches are compiled, steps of others are not; pictures of one "
                    "size give fewer shapes"
                )
                self._told = True
            return False
        self._shapes.add(shape)
        return True

    @property
    def multiple(self) -> int:
        """Of which `collate` makes numbers of tokens by padding."""
        return 1 if self._compiled is None else MULTIPLE

    @abstractmethod
    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Examples with ``pixels`` (3, H, W), of clips (frames, 3, H, W), to the batch that `forward` takes."""

    @abstractmethod
    def evaluate(self, dataset: Any, *, cache: Path | None = None, rescore: int = 0, progress: bool = False) -> Outcome:
        """What becomes of a split: its metrics, and every query's part in them.

        Args:
            cache: a folder for what a second evaluation can use again.
            rescore: under autocast, how many of the best of every ranked list are scored once more in float32.

        Raises:
            AuroraError: for ``rescore`` where there are no such lists.
        """

    @property
    @abstractmethod
    def objective(self) -> str:
        """What the loss is, for the curve's legend."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """What tables call the metrics."""

    def check_upload(self, dataset: Any) -> None:
        """Make sure that `upload` can be made of a split.

        Raises:
            AuroraError: if the task has no server, or its server could not tell the rows.
        """
        raise AuroraError(f"task {self.settings.name} has no file for a server; leave out --upload")

    def upload(self, dataset: Any, outcome: Any) -> list[dict[str, Any]]:
        """What the benchmark's server takes, from what `evaluate` gave."""
        raise NotImplementedError

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights that training changes, in model order."""
        return ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)

    def training_state(self) -> dict[str, Tensor]:
        """All that a resumed training needs of this module: trained weights, its own buffers and averages, and the
        model's buffers, such as an adapter's bank of texts."""
        kept = {f"model.{name}" for name, _ in self.trained()}  # tied weights under one of their names
        every = {f"model.{name}" for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in self.state_dict().items() if name not in every - kept}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Put `training_state` back.

        Raises:
            AuroraError: if it is of another set of trained weights.
        """
        expected = self.training_state()
        if odd := sorted(set(expected) ^ set(state)):
            raise AuroraError(f"the checkpoint is of another method or queue: {odd[0]} is in only one of the two")
        self.load_state_dict(state, strict=False)


def _shape(part: Any) -> Hashable:
    """What of a batch, or of a part of it, a graph depends on."""
    if isinstance(part, Tensor):
        return tuple(part.shape)
    if isinstance(part, Mapping):
        return tuple((name, _shape(value)) for name, value in part.items())
    return tuple(_shape(each) for each in part) if isinstance(part, list | tuple) else part
