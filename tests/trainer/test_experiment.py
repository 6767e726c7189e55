"""What an experiment refuses before anything is built."""

from __future__ import annotations

import pytest

from trainer.experiment import MAY_CHANGE, Experiment


class Examples:
    """A source of so many examples, of which nothing is read."""

    element_spec = {}

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"precision": "float8"},
            'precision is "float8": choose one of float32, tf32, float64, bfloat16, float16',
        ),
        ({"best_direction": "up"}, 'best_direction is "up": choose min or max'),
        ({"global_batch": 0}, "global_batch is 0: it must be at least 1"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"log_every": 0}, "log_every is 0: it must be at least 1"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1: it must be at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0: it must be at least 1"),
        ({"max_bad_updates": 0}, "max_bad_updates is 0: it must be at least 1"),
        ({"evaluate_every": -5}, "evaluate_every is -5: it must be at least 0"),
        ({"sample_every": -1}, "sample_every is -1: it must be at least 0"),
        ({"seed": -1}, "seed is -1: it must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296: it must be from 0 to 4294967295"),
        ({"samples": -1}, "samples is -1: it must be at least 0"),
        ({"neighbours": -1}, "neighbours is -1: it must be at least 0"),
        (
            {"evaluate_every": 5},
            "evaluate_every is set but there are no validation examples: set validation",
        ),
        (
            {"baseline": lambda source, validation: {}},
            "baseline is set but there are no validation examples: set validation",
        ),
        (
            {"best_metric": "loss"},
            'best_metric is "loss" but nothing is evaluated: set evaluate_every',
        ),
        (
            {"validation": Examples(0)},
            "validation has no examples: give it some, or leave it out",
        ),
    ],
)
def test_a_wrong_field_is_one_line(fields, line):
    right = {"objective": None, "source": Examples(8), "global_batch": 4, "steps": 10}
    Experiment(**right)
    with pytest.raises(ValueError) as error:
        Experiment(**(right | fields))
    assert str(error.value) == line


def test_what_decides_the_result_may_not_change():
    """Every field is one or the other; a new one must be put here on purpose."""
    decides = {"objective", "source", "validation", "transforms", "validation_transforms"}
    decides |= {"global_batch", "seed", "precision", "max_bad_updates", "rollback"}
    decides |= {"evaluate_every", "best_metric", "best_direction"}
    assert decides | set(MAY_CHANGE) == set(Experiment.__dataclass_fields__)
    assert not decides & set(MAY_CHANGE)
