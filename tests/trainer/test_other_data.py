"""Data that changed since a run began: it does not go on with them, and what they mean is not taken for something else."""

from __future__ import annotations

import re

import pytest

from tests.trainer.objectives import Regression, Table, experiment, points, quiet
from trainer.exits import DataProblem
from trainer.trainer import Outcome


class Saying(Table):
    """Points that say what they are."""

    def __init__(self, count: int = 8, **said: object) -> None:
        plain = points(count)
        self.element_spec, self._table = plain.element_spec, plain._table
        vars(self).update(said)


def run(workdir, source, steps=2):
    return quiet(experiment(Regression, source, steps=steps, checkpoint_every=2), workdir=workdir)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (Saying(vocabulary="ab"), Saying(vocabulary="ba"), "vocabulary or classes"),
        (Saying(classes=["cat", "dog"]), Saying(classes=["ant", "cat"]), "vocabulary or classes"),
        (Saying(content="1"), Saying(content="2"), "training examples"),
        (Saying(8), Saying(9), "training examples"),
    ],
    ids=["vocabulary", "classes", "content", "number"],
)
def test_a_run_does_not_go_on_with_other_data(before, after, changed, tmp_path):
    assert run(tmp_path, before).train() is Outcome.DONE
    (file,) = (tmp_path / "checkpoints").iterdir()
    content = file.read_bytes()
    line = f"{file} learnt from other data: the {changed} have changed since; put the data back that the run began with"
    with pytest.raises(DataProblem, match=re.escape(line)):
        run(tmp_path, after, steps=4).train()
    assert file.read_bytes() == content
    # What it has learnt is of use with other examples, but not where they mean something else.
    if changed == "training examples":
        assert run(tmp_path, after).restore() == 2
    else:
        with pytest.raises(DataProblem, match=re.escape(line)):
            run(tmp_path, after).restore()
    assert run(tmp_path, before, steps=4).train() is Outcome.DONE


def test_checkpoints_without_such_notes_are_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("input_pipeline.batches.Batches.identity", {})
        assert run(tmp_path, Saying(vocabulary="ab")).train() is Outcome.DONE
    trainer = run(tmp_path, Saying(vocabulary="ba"), steps=4)
    assert trainer.restore() == 2
    assert trainer.train() is Outcome.DONE
