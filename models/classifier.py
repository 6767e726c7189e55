"""A small classifier of images, whose features are a space in which samples and data are compared."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from models.grid_networks import refuse_grids
from models.image_networks import ConvolutionalEncoder, NetworkFactory, image_shape
from models.labels import count_classes
from models.layers import dense
from models.objective import Batch, Feature, Metrics, Noise, Optimizer, Phase

ADAM = Optimizer()


class Classifier:
    """Predicts the label of an image. Implements `objective.Objective` and `Recognising`, and draws no samples.

    Args:
      element_spec: of the data, with "image" `[height, width, channels]` and "label", an integer of known cardinality.
      encoder: makes the network up to the features: `encoder(image_shape, features, noise=…, name=…)`.
      features: length of the vector before the last layer.
      optimizer: moves both networks.
    """

    sample = None

    def __init__(
        self,
        element_spec: Mapping[str, Feature],
        *,
        encoder: NetworkFactory = ConvolutionalEncoder,
        features: int = 64,
        optimizer: Optimizer = ADAM,
    ):
        if features < 1:
            raise ValueError(f"Classifier.features is {features}: it must be at least 1")
        self.shape = image_shape(element_spec)
        self.classes = count_classes(element_spec, "a Classifier predicts labels")
        self.encoder_factory = encoder
        self.features = features
        self.optimizer = optimizer

    def build(self, noise: Noise) -> None:
        self.encoder = self.encoder_factory(
            self.shape, self.features, noise=noise("encoder"), name="encoder"
        )
        refuse_grids(self.encoder, "Classifier.encoder")
        self.head = dense(self.classes, noise, "head")
        self.head.build((None, self.features))
        self.networks = {"encoder": self.encoder, "head": self.head}
        variables = [v for network in self.networks.values() for v in network.trainable_variables]
        self.phases = [
            Phase(name="classifier", variables=variables, loss=self.loss, optimizer=self.optimizer)
        ]

    def loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        """Cross-entropy of the label in nats, `[b]`, and whether it is the likeliest, "accuracy"."""
        return self._judge(batch, noise, training=True)

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """The cross-entropy in nats and the accuracy, `[b]` each."""
        cross_entropy, metrics = self._judge(batch, noise, training=False)
        return {"cross_entropy": cross_entropy, **metrics}

    def recognise(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What the classifier sees in images.

        Args:
          images: `[b, height, width, channels]`, as those that it was trained on.

        Returns:
          Features `[b, features]`, none below 0, and the probabilities of the classes `[b, classes]`; float32 at least.
        """
        features, logits = self._forward(images, None, training=False)
        wide = tf.float64 if features.dtype == tf.float64 else tf.float32
        return tf.cast(features, wide), tf.nn.softmax(tf.cast(logits, wide))

    def _judge(
        self, batch: Batch, noise: Noise, training: bool
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        _, logits = self._forward(batch["image"], noise("encoder"), training)
        logits, labels = tf.cast(logits, noise.dtype), tf.cast(batch["label"], tf.int32)
        one_hot = tf.one_hot(labels, self.classes, dtype=noise.dtype)
        right = tf.argmax(logits, 1, output_type=tf.int32) == labels
        cross_entropy = tf.reduce_logsumexp(logits, 1) - tf.reduce_sum(one_hot * logits, 1)
        return cross_entropy, {"accuracy": tf.cast(right, noise.dtype)}

    def _forward(
        self, images: tf.Tensor, noise: Noise | None, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        features = tf.nn.relu(self.encoder(images, noise=noise, training=training))
        return features, self.head(features)
