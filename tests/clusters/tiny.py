"""A training of seconds that several workers can share."""


def tiny(steps: int, checkpoint_every: int) -> list[str]:
    """Arguments that make `vae/digits_mlp` so."""
    return [
        f"--gin_param={binding}"
        for binding in (
            "MLPEncoder.widths=(8,)",
            "MLPDecoder.widths=(8,)",
            "VAE.latent=2",
            "Experiment.samples=0",
            f"STEPS={steps}",
            f"Experiment.checkpoint_every={checkpoint_every}",
        )
    ]
