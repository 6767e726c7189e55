"""Of how many inputs keras-hub's layers are sums, whichever axis of their kernels these are."""

import keras
import pytest

from models.keras_hub_network import inputs_of

LAYERS = {
    "dense": (keras.layers.Dense(3), [None, 7], 7),
    # GPT-2's and Llama's queries, Gemma's, and what follows attention in both.
    "query": (keras.layers.EinsumDense("bqm,muh->bquh", (None, 2, 4)), [None, 5, 7], 7),
    "gemma": (keras.layers.EinsumDense("btd,ndh->btnh", (None, 2, 4)), [None, 5, 7], 7),
    "output": (keras.layers.EinsumDense("buqh,uhm->bqm", (None, 7)), [None, 2, 5, 4], 8),
    "any": (keras.layers.EinsumDense("...x,xy->...y", (3,)), [None, 5, 7], 7),
}


@pytest.mark.parametrize("name", LAYERS)
def test_inputs(name):
    layer, shape, expected = LAYERS[name]
    layer.build(shape)
    assert inputs_of(layer) == expected
