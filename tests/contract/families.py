"""A small experiment of each family, with everything in it that could depend on the layout."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.corpus import Corpus, pydoc_topics
from input_pipeline.digits import Digits
from input_pipeline.split import Split
from input_pipeline.text import TextStreams, TextWindows
from input_pipeline.transforms import Binarize, Dequantize, Shift
from models.bounds import ELBO, IWAE
from models.decoding import Decoding
from models.gan import GAN
from models.gpt2 import gpt2
from models.grid_networks import ResidualDecoder, ResidualEncoder
from models.image_networks import ConvolutionalDecoder, ConvolutionalEncoder
from models.language_model import LanguageModel
from models.latents import StochasticLayer
from models.likelihoods import Gaussian
from models.lora import PROJECTIONS, LoRA
from models.lstm_network import LSTMNetwork
from models.mlp import MLPDecoder, MLPEncoder
from models.objective import Optimizer, Phase
from models.resnet_networks import ResNetDiscriminator, ResNetGenerator
from models.transformer_network import TransformerNetwork
from models.vae import VAE
from models.vq_vae import VQVAE
from tests.models.tiny_gpt2 import TinyGPT2
from tests.trainer.objectives import Regression, Table, experiment, points
from trainer.experiment import Experiment

GLOBAL_BATCH = 16
GROUP = 4


def _experiment(objective: Callable, best: str | None, **fields: object) -> Experiment:
    values = {
        "source": Split(Digits(), share=0.03, by="tail"),
        "validation": Split(Digits(), part="validation", share=0.03, by="tail"),
        "global_batch": GLOBAL_BATCH,
        "steps": 50,
        "seed": 7,
        "precision": "float64",
        "log_every": 1,
        "evaluate_every": 25,
        "checkpoint_every": 50,
        "best_metric": best,
        "samples": 0,
    } | fields
    return Experiment(objective=objective, **values)


def gan(**fields: object) -> Experiment:
    """WGAN-GP (second order), 2 critic updates a step, ghost batch norm, dropout, averaged weights, clipping."""
    objective = functools.partial(
        GAN,
        generator=functools.partial(ConvolutionalDecoder, width=8, group=GROUP),
        discriminator=functools.partial(ConvolutionalEncoder, width=8, dropout=0.1),
        latent=8,
        loss="wasserstein",
        penalty="wgan_gp",
        critic_updates=2,
        average_decay=0.9,
        discriminator_optimizer=Optimizer(learning_rate=1e-3, clip_norm=5.0),
        generator_optimizer=Optimizer(learning_rate=1e-3),
    )
    transforms = {"transforms": (Dequantize(levels=17),)}
    return _experiment(objective, "generator_loss", **(transforms | fields))


def dcgan(**fields: object) -> Experiment:
    """The default kind of GAN: non-saturating loss, ghost batch norm in both networks."""
    objective = functools.partial(
        GAN,
        generator=functools.partial(ConvolutionalDecoder, width=8, stages=2, group=GROUP),
        discriminator=functools.partial(ConvolutionalEncoder, width=8, stages=2, group=GROUP),
        latent=8,
    )
    return _experiment(objective, "generator_loss", **({"evaluate_every": 10} | fields))


def class_gan(**fields: object) -> Experiment:
    """Hinge SN-ResNets of classes with self-attention: lazy R1, differentiable augmentation, minibatch deviation; never evaluated."""
    objective = functools.partial(
        GAN,
        generator=functools.partial(ResNetGenerator, width=8, group=GROUP, spectral=True),
        discriminator=functools.partial(
            ResNetDiscriminator, width=8, attention=4, stddev_group=GROUP
        ),
        latent=8,
        loss="hinge",
        conditional=True,
        penalty="r1",
        penalty_every=4,
        augmentation=("colour", "translation", "cutout"),
        average_decay=0.9,
    )
    return _experiment(objective, None, **({"evaluate_every": 0} | fields))


def vae(**fields: object) -> Experiment:
    """Convolutional VAE with ghost batch norm, KL warm-up, AdamW on a warmed-up cosine, clipping, shifts, binarisation."""
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, 40, alpha=0.1, warmup_target=3e-3, warmup_steps=10
    )
    objective = functools.partial(
        VAE,
        encoder=functools.partial(ConvolutionalEncoder, width=8, group=GROUP, dropout=0.1),
        decoder=functools.partial(ConvolutionalDecoder, width=8, group=GROUP),
        latent=4,
        bound=ELBO(kl_warmup_steps=30),
        optimizer=Optimizer(
            rule=functools.partial(keras.optimizers.AdamW, weight_decay=0.01),
            learning_rate=rate,
            clip_norm=10.0,
        ),
    )
    transforms = {"transforms": (Shift(1), Binarize())}
    return _experiment(objective, "negative_elbo", **(transforms | fields))


def iwae(**fields: object) -> Experiment:
    """Conditional MLPs relative to the mean picture, on the doubly reparameterised importance-weighted bound, and by many samples in evaluation."""
    objective = functools.partial(
        VAE,
        encoder=functools.partial(MLPEncoder, widths=(12,)),
        decoder=functools.partial(MLPDecoder, widths=(12,)),
        latent=4,
        conditional=True,
        centred=True,
        bound=IWAE(samples=3, doubly_reparameterised=True),
        evaluation_samples=20,
        evaluation_chunk=10,
    )
    fields = {"transforms": (Binarize(),), "evaluate_every": 10} | fields
    return _experiment(objective, "negative_log_likelihood", **fields)


def two_layers(**fields: object) -> Experiment:
    """Two stochastic layers on the ELBO, free bits averaged over groups of examples, a learnt scale of the pixels."""
    objective = functools.partial(
        VAE,
        encoder=functools.partial(MLPEncoder, widths=(12,)),
        decoder=functools.partial(MLPDecoder, widths=(12,)),
        latent=4,
        prior=functools.partial(StochasticLayer, latent=3),
        likelihood=Gaussian,
        bound=ELBO(free_bits=0.05, free_bits_examples=GROUP),
        evaluation_samples=20,
        evaluation_chunk=10,
    )
    fields = {"transforms": (Dequantize(levels=17),), "evaluate_every": 10} | fields
    return _experiment(objective, "negative_log_likelihood", **fields)


def vq_vae(**fields: object) -> Experiment:
    """A VQ-VAE, whose codebook is made of moving averages."""
    objective = functools.partial(
        VQVAE,
        encoder=functools.partial(ResidualEncoder, width=8, stages=1, blocks=1),
        decoder=functools.partial(ResidualDecoder, width=8, stages=1, blocks=1),
        codes=8,
        width=4,
        decay=0.9,
    )
    return _experiment(objective, "reconstruction", **({"evaluate_every": 10} | fields))


def lstm(**fields: object) -> Experiment:
    """Two LSTM layers with every dropout and clipping, whose state is carried along streams of text.

    A pass ends after 21 windows, in which not all streams have as many tokens; 6 held-out streams are no multiple of 4 replicas.
    """
    topics = pydoc_topics()
    tokens = {"train": topics.parts["train"][:3_900], "held out": topics.parts["validation"][:700]}
    corpus = Corpus(tokens, topics.tokenizer)
    objective = functools.partial(
        LanguageModel,
        network=functools.partial(
            LSTMNetwork, embedding=8, widths=(12, 12), dropout=0.2, recurrent_dropout=0.1
        ),
        optimizer=Optimizer(learning_rate=3e-3, clip_norm=0.3),
    )
    values = {
        "source": TextStreams(corpus, window=12, streams=GLOBAL_BATCH),
        "validation": TextStreams(corpus, "held out", window=30, streams=6),
    }
    return _experiment(objective, best="loss", **(values | fields))


def transformer(**fields: object) -> Experiment:
    """A block with dropout everywhere, AdamW that leaves vectors alone, clipping, windows in shuffled order."""
    objective = functools.partial(
        LanguageModel,
        network=functools.partial(
            TransformerNetwork, layers=1, heads=2, width=8, context=12, dropout=0.2
        ),
        decoding=Decoding(length=11),
        optimizer=Optimizer(
            rule=functools.partial(keras.optimizers.AdamW, weight_decay=0.1),
            learning_rate=3e-3,
            clip_norm=0.3,
            decay_vectors=False,
        ),
    )
    values = {
        "source": TextWindows(pydoc_topics(), window=12),
        "validation": TextWindows(pydoc_topics(), "validation", window=12, stride=500),
        "evaluate_every": 10,
    }
    return _experiment(objective, "loss", **(values | fields))


def gpt2_lora(weights: int = 0, **fields: object) -> Experiment:
    """A pretrained GPT-2 of one block, of whose products adaptations are learnt, with dropout everywhere.

    Args:
      weights: seed of the pretrained ones.
    """
    lora = LoRA(rank=2, projections=PROJECTIONS, dropout=0.1)
    network = functools.partial(gpt2, weights=TinyGPT2(weights, n_layer=1), dropout=0.2, lora=lora)
    return pretrained_text(network, **fields)


def gpt2_full(**fields: object) -> Experiment:
    """A pretrained GPT-2 of one block, of which all weights are learnt, with dropout everywhere."""
    network = functools.partial(gpt2, weights=TinyGPT2(n_layer=1), dropout=0.2)
    return pretrained_text(network, **fields)


def pretrained_text(network: Callable, **fields: object) -> Experiment:
    """A pretrained network of at least 120 tokens, trained further on windows in shuffled order."""
    objective = functools.partial(
        LanguageModel,
        network=network,
        decoding=Decoding(length=11),
        optimizer=Optimizer(learning_rate=1e-2, clip_norm=0.3),
    )
    values = {
        "source": TextWindows(pydoc_topics(), window=12),
        "validation": TextWindows(pydoc_topics(), "validation", window=12, stride=500),
        "evaluate_every": 10,
    }
    return _experiment(objective, "loss", **(values | fields))


FAMILIES = {"gan": gan, "vae": vae, "lstm": lstm}
OTHERS = {
    "class_gan": class_gan,
    "iwae": iwae,
    "two_layers": two_layers,
    "vq_vae": vq_vae,
    "transformer": transformer,
    "gpt2_lora": gpt2_lora,
    "gpt2_full": gpt2_full,
}


class Fingerprint:
    """An objective whose metrics are whole numbers: which example and which noise each row of the global batch got.

    Sums of whole numbers below 2^53 are exact in float64 in any order, so they must be equal to the bit on every layout.
    """

    def __init__(self, element_spec: object):
        pass

    def build(self, noise: object) -> None:
        self.weight = keras.layers.Dense(
            1, use_bias=False, kernel_initializer="ones", name="weight"
        )
        self.weight.build((None, 1))
        self.networks = {"weight": self.weight}
        variables, still = self.weight.trainable_variables, Optimizer(learning_rate=0.0)
        self.phases = [
            Phase(name="first", variables=variables, loss=self.loss, optimizer=still, updates=2),
            Phase(
                name="second",
                variables=variables,
                loss=self.loss,
                optimizer=still,
                reads=False,
            ),
        ]

    def loss(self, batch: dict, noise: object, step: tf.Tensor) -> tuple[tf.Tensor, dict]:
        ids = tf.cast(batch["id"], tf.float64)
        # 5 numbers a row is no multiple of a Philox block of 4, so an unaligned counter shows.
        bits = tf.cast(noise("bits").bits([5]), tf.float64)
        metrics = {
            "ids": ids,
            "ids_squared": ids * ids,
            "bits": tf.reduce_sum(bits, 1),
            "augmentation": batch["moved"],
        }
        metrics["bits_of_id"] = bits[:, 4] * ids
        return tf.reduce_sum(self.weight.kernel) * tf.ones_like(ids), metrics

    def evaluate(self, batch: dict, noise: object, step: tf.Tensor) -> dict:
        ids = tf.cast(batch["id"], tf.float64)
        return {"ids_squared": ids * ids, "bits": tf.cast(noise("bits").bits(), tf.float64)}


class Numbered:
    """A source whose examples are their ids."""

    def __init__(self, length: int):
        from input_pipeline.batches import Feature

        self.length = length
        self.element_spec = {"id": Feature((), "int64")}

    def __len__(self) -> int:
        return self.length

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"id": ids}


class Move:
    """A transform that draws: adds the feature "moved", whole random numbers."""

    def element_spec(self, spec: dict) -> dict:
        from input_pipeline.batches import Feature

        return {**spec, "moved": Feature((), "float64")}

    def __call__(self, batch: dict, noise: object) -> dict:
        return {**batch, "moved": tf.cast(noise.bits(), tf.float64)}


def fingerprint(**fields: object) -> Experiment:
    """Two reading updates and one that reuses; 37 examples, so that epochs end within batches."""
    values = {
        "source": Numbered(37),
        "validation": Numbered(23),
        "transforms": (Move(),),
        "global_batch": GLOBAL_BATCH,
        "steps": 12,
        "precision": "float64",
        "log_every": 1,
        "evaluate_every": 6,
        "samples": 0,
    } | fields
    return Experiment(objective=Fingerprint, **values)


def spoilt(**fields: object) -> Experiment:
    """A regression on 21 points of which one has no number to fit: each update that reads it is bad."""
    table = points(21)
    y = table._table["y"].copy()
    y[5] = np.nan
    source = Table({"x": table._table["x"], "y": y})
    return experiment(Regression, source, **({"steps": 24, "log_every": 4, "seed": 5} | fields))


EXPERIMENTS = {
    **FAMILIES,
    **OTHERS,
    "fingerprint": fingerprint,
    "spoilt": spoilt,
}
SHORT = {"precision": "float32", "steps": 5}
# What two workers train, and one process to compare: name -> (experiment, fields). The first also draws samples.
RUNS = {family: (family, {"samples": 2} if family == "gan" else {}) for family in FAMILIES}
RUNS |= {"vae_float32": ("vae", SHORT)}
RUNS |= {"fingerprint": ("fingerprint", {})}
UNEVALUATED = {"steps": 10, "evaluate_every": 0, "best_metric": None}
RUNS |= {family: (family, UNEVALUATED) for family in OTHERS}
RUNS |= {"iwae": ("iwae", {"steps": 10})}
FAULTS = {"vae_flipped": ("vae", {"checkpoint_every": 20}), "spoilt": ("spoilt", {})}
"""More runs of two workers. In those called flipped a bit flips in a weight of worker 1 after `FLIP_STEP` steps."""
FLIP_STEP = 30
LOST_STEP = 130
"""Whose examples cannot be read, between two checkpoints."""
