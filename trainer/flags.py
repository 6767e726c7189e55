"""The command line: flags and what contradicts what, answered before TensorFlow is imported."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from trainer.exits import UsageError, nearest
from trainer.hardware import STRATEGIES, XLA, Hardware, workers

MODES = {
    "train": "train a model; goes on by itself if the workdir holds a run",
    "evaluate": "metrics of a run on its held-out examples, and of its samples in the eyes of a network",
    "sample": "draw from the model of a run",
    "report": "goodput of a run: the productive share of its time, and where the rest went",
    "verify": "whether the files of a run are whole: checkpoints by their checksums, and the others",
    "doctor": "what is here: workers, devices, TensorFlow, storage; whether a training could start",
}

USAGE = """\
usage: lockstep MODE [CONFIG …] --workdir=FOLDER [flags]

  lockstep train vae/digits --workdir=runs/vae
  lockstep train vae/digits --gin_param=STEPS=500 --dry_run
  lockstep evaluate --workdir=runs/vae
  lockstep sample --workdir=runs/vae --count=16
  lockstep sample --workdir=runs/lstm --prompt="The " --temperature=0.7 --top_p=0.9 --count=1
  lockstep evaluate --workdir=runs/vae --features=runs/classifier
  lockstep report --workdir=runs/vae
  lockstep verify --workdir=runs/vae
  lockstep doctor --workdir=runs/vae
"""

EXIT_CODES = """\
exit codes: 0 done, 64 wrong command line, 65 bad data, 69 a package is missing, 70 diverged, bad hardware or internal error,
            73 and 77 the workdir cannot be written, or is another run's, 75 preempted and saved, or a worker is missing (start again), 78 wrong configuration,
            130 interrupted by Ctrl-C (what was saved before stays; SIGTERM saves first)
"""

OF_ONE_MODE: dict[str, tuple[str, ...]] = {
    "dry_run": ("train",),
    "checkpoint": ("evaluate", "sample"),
    "allow_imports": ("train", "evaluate", "sample"),
}
OF_ONE_MODE |= dict.fromkeys(("count", "seed"), ("evaluate", "sample"))
OF_ONE_MODE["features"] = ("evaluate", "train")
OF_ONE_MODE["gin_param"] = ("train", "evaluate", "sample")
OF_ONE_MODE |= {
    field.name: ("train", "evaluate", "sample", "doctor") for field in dataclasses.fields(Hardware)
}

CONFIGURED = {
    name: f"--gin_param={parameter}=…, since the configuration decides what is learnt"
    for parameter, names in {
        "Experiment.steps": ("steps", "max_steps", "train_steps", "epochs"),
        "Experiment.seed": ("seed",),
        "Experiment.global_batch": ("batch", "batch_size", "global_batch"),
        "Experiment.precision": ("precision", "dtype", "mixed_precision"),
        "Experiment.log_every": ("log_every",),
        "Experiment.evaluate_every": ("evaluate_every", "eval_every"),
        "Experiment.samples": ("samples",),
        "LEARNING_RATE": ("learning_rate", "lr"),
        "DATA": ("data", "data_dir", "dataset"),
    }.items()
    for name in names
}
"""Flags that others have -> what to write."""
CONFIGURED |= dict.fromkeys(
    ("gpus", "num_gpus", "devices"), "--replicas=N, or leave it out for all that are there"
)

LEAST, MOST = 1e-6, 1e6
"""As those of models.decoding."""
DRAWING = {"temperature": 1.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
"""Flags that change how tokens are drawn -> the value of Decoding that does not."""
DECODING = ("length", *DRAWING, "beams")
"""Flags that bind the parameter of Decoding with their name."""
OF_ONE_MODE |= dict.fromkeys(("array", "class", "prompt", *DECODING), ("sample",))


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What was asked for.

    Attributes:
      configs: names and paths of gin files, then those of `--gin_file`.
      hardware: checked; whether its devices are there is not known yet.
      allow_imports: whether configurations may import modules.
      array: whether pictures are written as an array too.
      label: the class of the samples.
      decoding: parameters of Decoding and their values.
    """

    mode: str
    configs: tuple[str, ...]
    gin_params: tuple[str, ...]
    workdir: str | None
    hardware: Hardware
    allow_imports: bool = False
    dry_run: bool = False
    checkpoint: str = "last"
    count: int | None = None
    seed: int | None = None
    features: str | None = None
    array: bool = False
    prompt: str | None = None
    label: int | None = None
    decoding: Mapping[str, float | int | None] = dataclasses.field(default_factory=dict)


class Answer(Exception):
    """A text to print instead of running: help or version."""


def _define() -> flags.FlagValues:
    # Values of our own: absl's global ones are full of the flags of every module that was imported.
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        "a configuration, by name in configs/ or path; repeatable",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "gin_param", [], "Name.parameter=value, wins over files; repeatable", flag_values=values
    )
    flags.DEFINE_boolean(
        "allow_imports",
        False,
        "let configurations import modules, which runs their code",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "print configuration, sizes and a first step's seconds",
        flag_values=values,
    )
    flags.DEFINE_string("checkpoint", "last", "last, best or a step", flag_values=values)
    flags.DEFINE_integer("count", None, "how many samples", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", None, "of the samples; the run's if not given", flag_values=values)
    flags.DEFINE_string(
        "features",
        None,
        "folder of a classifier's run, or file of InceptionV3's weights, in whose eyes samples are compared with data",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "class",
        None,
        "number of the only class to draw, of a conditional model; all in turn if not given",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string("prompt", None, "text that samples go on from", flag_values=values)
    flags.DEFINE_boolean(
        "array",
        False,
        "write pictures as file.npy too, uint8 [samples, height, width, channels]",
        flag_values=values,
    )
    flags.DEFINE_integer("length", None, "tokens of a text", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "temperature",
        None,
        "of the drawing; below 1 likely tokens become likelier",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k", None, "draw from so many likeliest tokens", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float(
        "top_p",
        None,
        "draw from the fewest likeliest tokens with this probability together",
        flag_values=values,
    )
    flags.DEFINE_float(
        "repetition_penalty",
        None,
        "above 1, tokens that were there before become less likely",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "beams",
        None,
        "search the likeliest texts with so many beams; draw nothing",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_enum("strategy", "auto", STRATEGIES, "how devices are used", flag_values=values)
    flags.DEFINE_integer(
        "replicas", None, "devices of this machine to use; all if not given", flag_values=values
    )
    flags.DEFINE_integer(
        "virtual_devices", 0, "split the CPU in so many devices", flag_values=values
    )
    flags.DEFINE_list(
        "hosts", [], "host:port of every worker; else the environment", flag_values=values
    )
    flags.DEFINE_integer("worker", None, "which of the hosts this is, from 0", flag_values=values)
    flags.DEFINE_string("tpu", None, 'name of a TPU, or "local"', flag_values=values)
    flags.DEFINE_enum("xla", "auto", XLA, "auto is on for GPU and TPU", flag_values=values)
    flags.DEFINE_integer(
        "microbatch", None, "examples a replica computes at a time", flag_values=values
    )
    flags.DEFINE_integer(
        "intra_op_threads",
        None,
        "of one operation on CPU; all cores if not given",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "steps_per_loop",
        20,
        "most steps between two looks of the host; fewer if they take seconds",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "start_seconds", 600, "how long workers wait for each other", flag_values=values
    )
    flags.DEFINE_integer(
        "heartbeat_seconds",
        60,
        "after how long without a sign of life a worker is missing",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "check_replicas_every",
        0,
        "steps between looks whether replicas are alike; 0: at saves",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_rollbacks",
        3,
        "how often to go back to a checkpoint because they are not",
        flag_values=values,
    )
    return values


def help_text() -> str:
    """What `--help` prints."""
    values = _define()
    lines = [USAGE, "modes:"]
    lines += [f"  {mode:<23}{text}" for mode, text in MODES.items()]
    lines += ["", "flags:"]
    for name in values:
        flag = values[name]
        choices = getattr(flag.parser, "enum_values", None)
        text = flag.help.split("\n")[0].rstrip(";").split(">: ")[-1]
        text = f"{', '.join(choices)}: {text}" if choices else text
        modes = f" ({', '.join(OF_ONE_MODE[name])})" if name in OF_ONE_MODE else ""
        lines.append(f"  --{name:<21}{text}{modes}")
    return "\n".join([*lines, "", EXIT_CODES])


def parse(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> CommandLine:
    """Reads and checks a command line.

    Args:
      arguments: without the program's name.
      environ: environment variables, which may name workers.

    Raises:
      UsageError: in one line, what is wrong with it.
      Answer: if it asks for help or the version.
    """
    before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if {"--help", "-h", "-help", "-?", "--helpshort", "--helpfull"}.intersection(before_dashes):
        raise Answer(help_text().rstrip())
    if "--version" in before_dashes:
        raise Answer(_version())
    values = _define()
    try:
        words = values(["lockstep", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        if name in CONFIGURED:
            raise UsageError(f"unknown flag --{name}: write {CONFIGURED[name]}") from None
        near = nearest(name.removeprefix("no"), values).replace("mean ", "mean --")
        raise UsageError(f"unknown flag --{name}{near or '; lockstep --help lists them'}") from None
    except UnicodeDecodeError:
        raise UsageError(
            "the file of --flagfile is not UTF-8: it has a flag in each line"
        ) from None
    except flags.Error as error:
        message = " ".join(str(error).removeprefix("flag ").split())
        message = re.sub(r"invalid literal for int\(\).*", "it must be a whole number", message)
        raise UsageError(message) from None
    if not words:
        raise UsageError(
            f"no mode: begin with one of {', '.join(MODES)}; lockstep --help tells more"
        )
    mode, *configs = words
    if mode not in MODES:
        raise UsageError(
            f"unknown mode {mode}{nearest(mode, MODES) or ': use ' + ', '.join(MODES)}"
        )
    for name, modes in OF_ONE_MODE.items():
        if values[name].present and mode not in modes:
            *others, last = modes
            known = f"{', '.join(others)} and {last}" if others else last
            instead = f"write {CONFIGURED[name]}" if name in CONFIGURED else "remove it"
            raise UsageError(f"--{name} is for {known}, not for {mode}: {instead}")
    value: dict[str, Any] = {name: values[name].value for name in values}
    for name in ("workdir", "features"):  # No shell has done it behind a "=".
        value[name] = value[name] and os.path.expanduser(value[name])
    hardware = Hardware(
        **{field.name: value[field.name] for field in dataclasses.fields(Hardware)}
        | {"hosts": tuple(value["hosts"])}
    )
    hosts = () if mode in ("report", "verify", "doctor") else workers(hardware, environ).hosts
    if value["features"] is not None and value["dry_run"]:
        raise UsageError("--features compares what --dry_run does not train: drop one")
    if value["features"] is not None and len(hosts) > 1:
        raise UsageError("--features compares on one machine: evaluate the run afterwards on one")
    configs += value["gin_file"]
    _check_files(mode, configs, value)
    return CommandLine(
        mode,
        tuple(configs),
        tuple(value["gin_param"]),
        value["workdir"],
        hardware,
        value["allow_imports"],
        value["dry_run"],
        value["checkpoint"],
        value["count"],
        value["seed"],
        value["features"],
        value["array"],
        value["prompt"],
        value["class"],
        _decoding({name: value[name] for name in DECODING if value[name] is not None}),
    )


def _decoding(given: Mapping[str, float | int]) -> Mapping[str, float | int | None]:
    """With what undoes the other way of decoding, which the configuration may have."""
    for name, most in (("temperature", MOST), ("top_p", 1), ("repetition_penalty", MOST)):
        if name in given and not LEAST <= given[name] <= most:
            raise UsageError(f"--{name}={given[name]:g}: it must be from {LEAST:g} to {most:g}")
    drawing = [name for name in DRAWING if name in given]
    if "beams" in given:
        if drawing:
            raise UsageError(
                f"--beams searches the likeliest texts and --{drawing[0]} is for drawn ones: drop one"
            )
        return {**DRAWING, **given}
    return {"beams": None, **given} if drawing else given


def _check_files(mode: str, configs: Sequence[str], value: Mapping[str, Any]) -> None:
    workdir = value["workdir"]
    if workdir is not None and (not workdir or "://" in workdir):
        raise UsageError(f'--workdir="{workdir}" is not a folder: give a local or mounted one')
    if mode == "doctor":
        if configs:
            raise UsageError(f"doctor needs no configuration: remove {configs[0]}")
        return
    if workdir is None and not value["dry_run"]:
        name = configs[0].replace("/", "-").removesuffix(".gin") if configs else "NAME"
        raise UsageError(f"no --workdir: say where the run is kept, such as --workdir=runs/{name}")
    if mode != "train" and configs:
        raise UsageError(f"{mode} reads the configuration of the workdir: remove {configs[0]}")
    prompt = value["prompt"]
    if prompt == "":
        raise UsageError("--prompt is empty: give a text, or leave it out")
    if prompt and prompt.encode(errors="replace").decode() != prompt:
        raise UsageError(f"--prompt={prompt!a} is not in UTF-8: give it so")
    checkpoint = value["checkpoint"]
    if checkpoint not in ("last", "best") and not checkpoint.isdecimal():
        raise UsageError(f"--checkpoint={checkpoint}: choose last, best or the number of a step")
    if mode == "evaluate" and value["features"] is None:
        for name in ("count", "seed"):
            if value[name] is not None:
                raise UsageError(
                    f"--{name} is for the samples that --features compares: give both, or none"
                )


def _version() -> str:
    from importlib import metadata

    try:
        return f"lockstep {metadata.version('lockstep-training')}"
    except metadata.PackageNotFoundError:
        return "lockstep (not installed)"
