"""A JSON Schema of the JobSets that are submitted, written for the fields that they use: of JobSet v1alpha2, batch/v1 and v1.

It is strict: a field that is not here is an error, and so is a value that Kubernetes would refuse.
"""

from __future__ import annotations

from typing import Any


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object of these fields, of which some must be there."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(items: dict[str, Any], least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


def mapping(values: dict[str, Any], names: str = ".") -> dict[str, Any]:
    """An object of any names that match."""
    return {
        "type": "object",
        "patternProperties": {names: values},
        "additionalProperties": False,
        "minProperties": 1,
    }


def choice(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def count(least: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least}


TEXT = {"type": "string"}
SWITCH = {"type": "boolean"}
LABEL = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
LABEL_VALUE = {"type": "string", "pattern": r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"}
QUALIFIED = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"}
PATH = {"type": "string", "pattern": "^/"}
VARIABLE = {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_]*$"}
REQUEST = mapping(QUANTITY, QUALIFIED)

CONTAINER = fields(
    "name image command args env volumeMounts",
    name=LABEL,
    image=TEXT | {"minLength": 1},
    command=several(TEXT),
    args=several(TEXT),
    env=several(
        {
            "oneOf": [
                fields("name value", name=VARIABLE, value=TEXT),
                fields(
                    "name valueFrom",
                    name=VARIABLE,
                    valueFrom=fields(
                        "secretKeyRef", secretKeyRef=fields("name key", name=LABEL, key=TEXT)
                    ),
                ),
            ]
        }
    ),
    resources=fields(requests=REQUEST, limits=REQUEST),
    volumeMounts=several(fields("name mountPath", name=LABEL, mountPath=PATH), least=0),
)

CLAIM = fields("claimName", claimName=TEXT | {"minLength": 1})
VOLUME = fields(
    "name",
    name=LABEL,
    emptyDir=fields(medium=choice("Memory")),
    hostPath=fields("path", path=PATH, type=choice("Directory")),
    persistentVolumeClaim=CLAIM,
    csi=fields("driver", driver=TEXT, volumeAttributes=mapping(TEXT)),
) | {"minProperties": 2, "maxProperties": 2}

POD = fields(
    "restartPolicy terminationGracePeriodSeconds containers",
    restartPolicy=choice("Never"),  # Which a podFailurePolicy needs.
    terminationGracePeriodSeconds=count(0),
    nodeSelector=mapping(LABEL_VALUE, QUALIFIED),
    tolerations=several(
        {
            "oneOf": [
                fields("key operator", key=TEXT, operator=choice("Exists")),
                fields("key operator value", key=TEXT, operator=choice("Equal"), value=TEXT),
            ]
        }
    ),
    containers=several(CONTAINER),
    volumes=several(VOLUME),
)

EXIT_CODES = fields(
    "containerName operator values",
    containerName=LABEL,
    operator=choice("In", "NotIn"),
    values=several(count(0) | {"maximum": 255}) | {"uniqueItems": True},
)
POD_FAILURE = {
    "oneOf": [
        fields(
            "action onPodConditions",
            action=choice("Ignore", "FailJob", "Count"),
            onPodConditions=several(
                fields("type status", type=TEXT, status=choice("True", "False", "Unknown"))
            ),
        ),
        fields(
            "action onExitCodes",
            action=choice("Ignore", "FailJob", "Count"),
            onExitCodes=EXIT_CODES,
        ),
    ]
}

JOB = fields(
    "completionMode completions parallelism backoffLimit podFailurePolicy template",
    completionMode=choice("Indexed"),
    completions=count(1),
    parallelism=count(1),
    backoffLimit=count(0),
    activeDeadlineSeconds=count(1),
    podFailurePolicy=fields("rules", rules=several(POD_FAILURE)),
    template=fields(
        "spec", metadata=fields("annotations", annotations=mapping(TEXT, QUALIFIED)), spec=POD
    ),
)

FAILURE = fields(
    "name action onJobFailureReasons",
    name={"type": "string", "pattern": r"^[A-Za-z]([A-Za-z0-9_,:-]*[A-Za-z0-9_])?$"},
    action=choice("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    onJobFailureReasons=several(
        choice("BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy")
    ),
)

JOBSET = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | fields(
    "apiVersion kind metadata spec",
    apiVersion=choice("jobset.x-k8s.io/v1alpha2"),
    kind=choice("JobSet"),
    metadata=fields("name", name=LABEL, namespace=LABEL, labels=mapping(LABEL_VALUE, QUALIFIED)),
    spec=fields(
        "network failurePolicy replicatedJobs",
        network=fields(enableDNSHostnames=SWITCH, publishNotReadyAddresses=SWITCH),
        failurePolicy=fields("maxRestarts rules", maxRestarts=count(0), rules=several(FAILURE)),
        replicatedJobs=several(
            fields(
                "name replicas template",
                name=LABEL,
                replicas=count(1),
                template=fields("spec", spec=JOB),
            )
        ),
    ),
)
