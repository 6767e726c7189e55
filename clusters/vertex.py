"""Vertex AI: a custom job of a chief and a pool of workers, which it tells each other by TF_CONFIG."""

from __future__ import annotations

import re
from typing import Any

from clusters.job import Job, Plan, manifest
from clusters.shell import RESTARTING
from trainer.exits import UsageError


def plan(job: Job) -> Plan:
    """A CustomJobSpec, and the command that submits it."""
    file = f"{job.name}.json"
    command = ["gcloud", "ai", "custom-jobs", "create", f"--display-name={job.name}"]
    command += [f"--region={job.region}", f"--config={file}"]
    if job.project:
        command.append(f"--project={job.project}")
    return Plan({file: manifest(_spec(job))}, (tuple(command),))


def _spec(job: Job) -> dict[str, Any]:
    bucket = re.fullmatch(r"/gcs/([^/]+/.*)", job.workdir)
    if bucket is None:
        raise UsageError(
            f"--workdir={job.workdir} is lost with the machine: write /gcs/BUCKET/FOLDER"
        )
    pools = [_pool(job, 1)]
    if job.nodes > 1:
        pools.append(_pool(job, job.nodes - 1))
    scheduling: dict[str, Any] = {"restartJobOnWorkerRestart": True}
    if job.minutes:
        scheduling["timeout"] = f"{60 * job.minutes}s"
    if job.spot:
        scheduling["strategy"] = "SPOT"
    spec: dict[str, Any] = {
        "workerPoolSpecs": pools,
        "scheduling": scheduling,
        "baseOutputDirectory": {"outputUriPrefix": f"gs://{bucket[1]}"},
    }
    if job.service_account:
        spec["serviceAccount"] = job.service_account
    if job.tensorboard:
        if not job.service_account:
            raise UsageError("--tensorboard needs --service_account: who may write to it")
        spec["tensorboard"] = job.tensorboard
    return spec


def _pool(job: Job, count: int) -> dict[str, Any]:
    machine: dict[str, Any] = {"machineType": job.machine}
    if job.devices:
        if not job.accelerator:
            raise UsageError(
                f"--devices={job.devices} needs --accelerator, such as NVIDIA_TESLA_A100"
            )
        machine |= {"acceleratorType": job.accelerator, "acceleratorCount": job.devices}
    # The job would fail with the first exit that is not 0, so that the container starts again what has saved.
    script = RESTARTING.format(restarts=job.restarts) + 'exit "$code"\n'
    container: dict[str, Any] = {
        "imageUri": job.image,
        "command": ["bash", "-c", script, "lockstep"],
        "args": ["lockstep", "train", *job.train()],
        "env": [{"name": name, "value": value} for name, value in job.env],
    }
    return {"machineSpec": machine, "replicaCount": count, "containerSpec": container}
