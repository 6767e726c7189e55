"""What configurations may name: the one module that knows every model and data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer import backend, config

OPTIMIZERS = "Adadelta Adafactor Adagrad Adam Adamax AdamW Ftrl Lamb Lion RMSprop SGD".split()
SCHEDULES = (
    "CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay "
    "PiecewiseConstantDecay PolynomialDecay"
).split()

NAMELESS = {"name": "names decide nothing, remove it"}
LISTS = ("boundaries", "values")
"""Parameters of Keras' schedules that are lists of numbers."""


def registry() -> config.Registry:
    """Everything that a configuration may name. Imports TensorFlow; starts no device."""
    backend.start()
    import keras

    from input_pipeline.corpus import pydoc_topics
    from input_pipeline.digits import Digits
    from input_pipeline.hugging_face import HuggingFaceFolder
    from input_pipeline.image_folder import ImageFolder
    from input_pipeline.images import idx_images, mnist, numpy_images
    from input_pipeline.keras_hub_preset import KerasHubPreset
    from input_pipeline.packed import Packed
    from input_pipeline.packed_corpus import packed_corpus
    from input_pipeline.split import Split
    from input_pipeline.streamed import StreamedTFRecords
    from input_pipeline.tensorflow_dataset import TensorFlowDataset
    from input_pipeline.text import TextStreams, TextWindows
    from input_pipeline.text_files import text_files
    from input_pipeline.tfrecords import TFRecords
    from input_pipeline.transforms import (
        Binarize,
        CentreCrop,
        Dequantize,
        Flip,
        Normalize,
        RandomCrop,
        Resize,
        Shift,
    )
    from models.bounds import ELBO, IWAE
    from models.classifier import Classifier
    from models.decoding import Decoding
    from models.epoch_decay import EpochDecay
    from models.gan import GAN
    from models.gpt2 import gpt2
    from models.grid_networks import ResidualDecoder, ResidualEncoder
    from models.image_networks import ConvolutionalDecoder, ConvolutionalEncoder
    from models.keras_hub_network import KerasHubNetwork
    from models.language_model import LanguageModel
    from models.latents import StandardNormal, StochasticLayer
    from models.likelihoods import Bernoulli, Gaussian
    from models.logistic_mixture import LogisticMixture
    from models.lora import LoRA
    from models.lstm_network import LSTMNetwork
    from models.mlp import MLPDecoder, MLPEncoder
    from models.ngrams import NGrams
    from models.objective import Optimizer
    from models.resnet_networks import ResNetDiscriminator, ResNetGenerator
    from models.transformer_network import TransformerNetwork
    from models.vae import VAE
    from models.vq_vae import VQVAE
    from trainer.experiment import Experiment
    from trainer.rollback import LossSpike
    from trainer.update import HIDDEN_OPTIONS

    instead = {option: f"use {what}" for option, what in HIDDEN_OPTIONS.items()}
    of_average = ("ema_momentum", "ema_overwrite_frequency")
    of_optimizers = {
        **NAMELESS,
        **instead,
        **dict.fromkeys(of_average, instead["use_ema"]),
        "learning_rate": "set Optimizer.learning_rate",
    }

    names = config.Registry()
    transforms = (Binarize, CentreCrop, Dequantize, Flip, Normalize, RandomCrop, Resize, Shift)
    sources = (
        Digits,
        ImageFolder,
        idx_images,
        mnist,
        numpy_images,
        Packed,
        packed_corpus,
        pydoc_topics,
        Split,
        StreamedTFRecords,
        TensorFlowDataset,
        text_files,
        TextStreams,
        TextWindows,
        TFRecords,
    )
    plains = (Experiment, LossSpike, Optimizer, EpochDecay, ELBO, IWAE, Decoding, NGrams)
    pretrained = (HuggingFaceFolder, KerasHubPreset, LoRA)
    for plain in (*plains, *pretrained, *sources, *transforms):
        names.register(plain)
    for objective in (Classifier, GAN, LanguageModel, VAE, VQVAE):
        names.register(objective, given={"element_spec"})
    encoders = (ConvolutionalEncoder, MLPEncoder, ResidualEncoder, ResNetDiscriminator)
    decoders = (ConvolutionalDecoder, MLPDecoder, ResidualDecoder, ResNetGenerator)
    for network in (*encoders, *decoders):
        names.register(network, given={"shape", "inputs", "outputs", "noise", "name", "classes"})
    for of_tokens in (gpt2, KerasHubNetwork, LSTMNetwork, TransformerNetwork):
        names.register(of_tokens, given={"vocabulary", "noise", "name"})
    for part in (StandardNormal, StochasticLayer, Bernoulli, Gaussian, LogisticMixture):
        names.register(part, given={"units", "shape", "noise", "name"})
    for rule in OPTIMIZERS:
        target = getattr(keras.optimizers, rule)
        names.register(target, elsewhere=of_optimizers, hints=_hints(target))
    for schedule in SCHEDULES:
        target = getattr(keras.optimizers.schedules, schedule)
        names.register(target, elsewhere=NAMELESS, hints=_hints(target))
    return names


def _hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Types of the parameters of Keras' rules and schedules, which do not say them: switches, lists of numbers, and numbers."""

    def of(parameter: inspect.Parameter) -> Any:
        if parameter.name in LISTS:
            return Sequence[float]
        if isinstance(parameter.default, bool):
            return bool
        return float | None if parameter.default is None else float

    return {p.name: of(p) for p in inspect.signature(target).parameters.values()}
