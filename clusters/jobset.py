"""Kubernetes: a JobSet of one Indexed Job with a pod for each worker, found by the names of a headless service.

The controller makes that service. A worker knows itself by JOB_COMPLETION_INDEX, which Kubernetes sets, and its gang by
LOCKSTEP_WORKERS, JOBSET_NAME and REPLICATED_JOB_NAME: pod i is `$JOBSET_NAME-$REPLICATED_JOB_NAME-0-i.$JOBSET_NAME`.
"""

from __future__ import annotations

from typing import Any

from clusters.job import Job, Plan, manifest
from trainer.exits import UsageError

WORKER = "worker"
"""Name of the replicated job and of its container."""

RESTARTED = (75, 134, 135, 137, 139, 143)
"""Exit codes after which the gang is started again: it has saved, or SIGABRT, BUS, KILL, SEGV or TERM ended a worker."""


def plan(job: Job) -> Plan:
    """A JobSet, and the commands that replace an earlier one of its name: its run is saved first, and goes on."""
    file, closed = f"{job.name}.json", f"{job.name}-network.json"
    kubectl: tuple[str, ...] = ("kubectl",)
    if job.namespace:
        kubectl += (f"--namespace={job.namespace}",)
    return Plan(
        {closed: manifest(_network_policy(job)), file: manifest(_jobset(job))},
        (
            (*kubectl, "apply", f"--filename={closed}"),
            (*kubectl, "delete", "jobset", job.name, "--ignore-not-found", "--cascade=foreground"),
            (*kubectl, "create", f"--filename={file}"),
        ),
    )


def _metadata(job: Job) -> dict[str, Any]:
    return {"name": job.name} | ({"namespace": job.namespace} if job.namespace else {})


def _network_policy(job: Job) -> dict[str, Any]:
    """Only the pods of the gang reach each other: TensorFlow's server asks nobody for a password, and listens to all."""
    gang = {"podSelector": {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": job.name}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job),
        "spec": gang | {"policyTypes": ["Ingress"], "ingress": [{"from": [gang]}]},
    }


def _jobset(job: Job) -> dict[str, Any]:
    metadata = _metadata(job)
    if job.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [
                    {
                        "name": "failed-for-good",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
                    }
                ],
            },
            "replicatedJobs": [{"name": WORKER, "replicas": 1, "template": {"spec": _job(job)}}],
        },
    }


def _job(job: Job) -> dict[str, Any]:
    """A pod that fails is the failure of the Job and with it of the gang."""
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                # A pod that was evicted is made again, and its gang is started again by those that lost it.
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": WORKER,
                        "operator": "NotIn",
                        "values": list(RESTARTED),
                    },
                },
            ]
        },
        "template": _pod(job),
    }
    if job.minutes:
        spec["activeDeadlineSeconds"] = 60 * job.minutes
    return spec


def _pod(job: Job) -> dict[str, Any]:
    volumes = [_volume(index, source) for index, (source, _) in enumerate(job.mounts)]
    mounts = [
        {"name": volume["name"], "mountPath": path}
        for volume, (_, path) in zip(volumes, job.mounts, strict=True)
    ]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "containers": [_container(job, mounts)],
    }
    selector = _selector(job)
    if selector:
        spec["nodeSelector"] = selector
    if job.devices and not _on_tpu(job):
        # NCCL's buffers; a container has 64 MiB of shared memory else.
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    if job.spot:
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        spec.setdefault("tolerations", []).append(spot)
    if volumes:
        spec["volumes"] = volumes
    pod: dict[str, Any] = {"spec": spec}
    if any(source.startswith("gs://") for source, _ in job.mounts):
        pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    return pod


def _on_tpu(job: Job) -> bool:
    return job.accelerator is not None and job.accelerator.startswith("tpu-")


def _selector(job: Job) -> dict[str, str]:
    selector = {}
    if _on_tpu(job):
        if job.topology is None:
            raise UsageError(f"--accelerator={job.accelerator} needs --topology, such as 2x4")
        if job.nodes > 1:
            raise UsageError(
                f"--nodes={job.nodes}: TensorFlow trains on the TPUs of one node of Kubernetes; "
                "use --nodes=1, or the target tpu for more"
            )
        selector["cloud.google.com/gke-tpu-accelerator"] = str(job.accelerator)
        selector["cloud.google.com/gke-tpu-topology"] = job.topology
    elif job.topology is not None:
        raise UsageError(
            f"--topology={job.topology} is of TPUs: name one with --accelerator=tpu-…, or remove it"
        )
    elif job.accelerator:
        selector["cloud.google.com/gke-accelerator"] = job.accelerator
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return selector


def _container(job: Job, mounts: list[dict[str, str]]) -> dict[str, Any]:
    more = ("--tpu=local",) if _on_tpu(job) else ()
    container: dict[str, Any] = {
        "name": WORKER,
        "image": job.image,
        "command": ["lockstep", "train"],
        # Kubernetes reads $(NAME) in arguments, and $$ as $.
        "args": [argument.replace("$", "$$") for argument in job.train(more)],
        "env": [
            {"name": "LOCKSTEP_WORKERS", "value": str(job.nodes)},
            {"name": "JOBSET_NAME", "value": job.name},
            {"name": "REPLICATED_JOB_NAME", "value": WORKER},
            *({"name": name, "value": value.replace("$", "$$")} for name, value in job.env),
            *(
                {
                    "name": variable,
                    "valueFrom": {"secretKeyRef": {"name": secret, "key": key}},
                }
                for variable, secret, key in job.secrets
            ),
        ],
    }
    resources = _resources(job)
    if resources:
        container["resources"] = resources
    container["volumeMounts"] = mounts
    return container


def _resources(job: Job) -> dict[str, Any]:
    requests, limits = {}, {}
    if job.cpus:
        requests["cpu"] = str(job.cpus)
    if job.memory:
        requests["memory"] = limits["memory"] = f"{job.memory}Gi"
    if job.devices:
        kind = "google.com/tpu" if _on_tpu(job) else "nvidia.com/gpu"
        requests[kind] = limits[kind] = str(job.devices)
    return {
        name: amounts for name, amounts in (("requests", requests), ("limits", limits)) if amounts
    }


def _volume(index: int, source: str) -> dict[str, Any]:
    name = f"mount-{index}"
    if source.startswith("gs://"):
        attributes = {"bucketName": source.removeprefix("gs://"), "mountOptions": "implicit-dirs"}
        csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        return {"name": name, "csi": csi}
    if source.startswith("/"):
        return {"name": name, "hostPath": {"path": source, "type": "Directory"}}
    return {"name": name, "persistentVolumeClaim": {"claimName": source}}
