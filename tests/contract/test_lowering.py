"""Promise 4 rests on this: a family's whole step, forward to update, is one XLA program on one device."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.contract.families import (
    FAMILIES,
    class_gan,
    gpt2_lora,
    iwae,
    transformer,
    two_layers,
    vq_vae,
)
from tests.contract.runs import ONE
from trainer.trainer import Trainer

OTHERS = [class_gan, iwae, two_layers, vq_vae, transformer, gpt2_lora]


@pytest.mark.parametrize("make", [*FAMILIES.values(), *OTHERS])
def test_the_whole_step_is_one_program_that_does_what_the_trainer_does(make):
    experiment = make(steps=2, log_every=2, evaluate_every=0, best_metric=None)
    ordinary = Trainer(experiment, ONE, note=lambda line: None)
    data = ordinary.data(0)
    for _ in range(2):
        ordinary.strategy.run(ordinary.step, args=(next(data),))

    compiled = Trainer(experiment, ONE, note=lambda line: None)
    step = tf.function(
        lambda batch: compiled.strategy.run(compiled.step, args=(batch,)),
        jit_compile=True,
        autograph=False,
    )
    data = compiled.data(0)
    for _ in range(2):
        batch = next(data)
        step(batch)
    assert int(compiled.step.number) == 2
    expected = ordinary.snapshot().arrays
    for name, value in compiled.snapshot().arrays.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-7, atol=1e-7, err_msg=name)

    program = step.experimental_get_compiler_ir(batch)(stage="stablehlo")
    assert "custom_call" not in program, "a call that leaves the program"
    # A TPU would multiply float32 as bfloat16.
    assert "precision HIGHEST" in program or "precision = [HIGHEST" in program
    assert "DEFAULT" not in program
