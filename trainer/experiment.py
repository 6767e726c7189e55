"""What is trained: all that decides the result, and nothing that does not.

gin fills an `Experiment`; flags fill a `trainer.hardware.Hardware`. Two runs of one experiment learn the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from input_pipeline.batches import Batches, ElementSpec, Source, Transform, Unindexed
from models.objective import Objective
from trainer.precision import PRECISIONS
from trainer.rollback import LossSpike

MAY_CHANGE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "sample_every",
    "samples",
    "neighbours",
    "keep_checkpoints",
    "baseline",
)
"""Fields that may differ when a run goes on: they decide when it is looked at, not what it learns."""
MAY_CHANGE_ANYWHERE = ("on_bad_record", "bad_budget", "cache_mib")
"""Parameters of sources that may: a bad record ends a run or is skipped from its beginning, so none was met before; a cache changes
no picture."""
MAY_MOVE = (
    "Packed.folder",
    "idx_images.images",
    "idx_images.labels",
    "mnist.folder",
    "numpy_images.images",
    "numpy_images.labels",
    "packed_corpus.folder",
    "text_files.path",
)
"""Places of data that may: checkpoints hold a digest of the contents that are trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training, complete but for where it runs.

    Attributes:
      objective: makes the model from the element spec of the training examples.
      source: of training examples.
      validation: held-out examples, or None.
      transforms: of training examples, in this order.
      validation_transforms: of held-out examples.
      global_batch: examples an update, over all replicas and microbatches.
      steps: of training, in all.
      seed: of everything random: order, transforms, initial weights, noise; from 0 to 2**32 - 1.
      precision: "float32", "tf32" (float32 with the fast products that hardware has: TensorFloat-32 on GPUs, bfloat16 on
        TPUs), "bfloat16" or "float16" (weights and losses in float32), "float64" for proofs.
      evaluate_every: steps between evaluations on `validation`, and one at the end; 0 for none.
      best_metric: name of the evaluation metric by which the best checkpoint is kept, or None.
      best_direction: "min" or "max".
      baseline: metrics that something simple reaches on `validation` having seen `source`, to say beside the model's:
        `baseline(source, validation)`; or None.
      rollback: when the run goes back to a checkpoint and leaves out the examples since, or None.
      max_bad_updates: consecutive updates of a phase with a loss or gradient that is not finite, after which the run ends.
      log_every: steps between rows of metrics.
      checkpoint_every: steps between checkpoints; there is one at the end in any case.
      sample_every: steps between samples; 0 for none but at the end.
      samples: how many samples are drawn.
      neighbours: beside how many of them the nearest training pictures are shown, of up to 100,000 that are read each time.
      keep_checkpoints: how many of the latest are kept, beside the best.
    """

    objective: Callable[[ElementSpec], Objective]
    source: Source | Unindexed
    validation: Source | None = None
    transforms: Sequence[Transform] = ()
    validation_transforms: Sequence[Transform] = ()
    global_batch: int
    steps: int
    seed: int = 0
    precision: str = "float32"
    evaluate_every: int = 0
    best_metric: str | None = None
    best_direction: str = "min"
    baseline: Callable[[Any, Any], Mapping[str, float]] | None = None
    rollback: LossSpike | None = None
    max_bad_updates: int = 10
    log_every: int = 100
    checkpoint_every: int = 1000
    sample_every: int = 0
    samples: int = 64
    neighbours: int = 0
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f'precision is "{self.precision}": choose one of {", ".join(PRECISIONS)}'
            )
        if self.best_direction not in ("min", "max"):
            raise ValueError(f'best_direction is "{self.best_direction}": choose min or max')
        for name in (
            "global_batch",
            "steps",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_bad_updates",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("evaluate_every", "sample_every", "samples", "neighbours"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: it must be from 0 to {2**32 - 1}")
        if self.validation is not None and len(self.validation) == 0:
            raise ValueError("validation has no examples: give it some, or leave it out")
        if self.evaluate_every and self.validation is None:
            raise ValueError(
                "evaluate_every is set but there are no validation examples: set validation"
            )
        if self.baseline and self.validation is None:
            raise ValueError("baseline is set but there are no validation examples: set validation")
        if self.best_metric and not self.evaluate_every:
            raise ValueError(
                f'best_metric is "{self.best_metric}" but nothing is evaluated: set evaluate_every'
            )

    def batches(self) -> Batches:
        """The data of the experiment."""
        return Batches(
            source=self.source,
            global_batch=self.global_batch,
            seed=self.seed,
            transforms=tuple(self.transforms),
            validation=self.validation,
            validation_transforms=tuple(self.validation_transforms),
        )
