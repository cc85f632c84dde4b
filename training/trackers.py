"""Where a run reports its figures beside metrics.jsonl: TensorBoard, and what else transformers knows.

In the pipeline the names are checked before any work.
TensorBoard's event files go to OUTPUT/tensorboard/STAGE.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from training.errors import ConfigError

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.runtime import Worker

# Names of transformers' report_to: the module that each needs, and the package that holds it.
TRACKERS = {
    "azure_ml": ("azureml.core", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "kubeflow": ("kubeflow", "kubeflow"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "pit-serve[tracking]"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}


def check_trackers(config: RunConfig) -> None:
    """Raises `ConfigError`: a name is unknown, or its package is not installed."""
    for name in config.trackers:
        if name not in TRACKERS:
            raise ConfigError(f"trackers: {name!r} is unknown; choose from {', '.join(TRACKERS)}")
        module, package = TRACKERS[name]
        if not _installed(module):
            raise ConfigError(
                f"trackers: {name} is not installed: pip install '{package}', or leave it out of trackers"
            )


def start_trackers(worker: Worker) -> list[str]:
    """The value for `report_to`; tells TensorBoard where this stage's events go."""
    if "tensorboard" in worker.config.trackers:
        # transformers takes the directory from the environment alone.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(worker.config.output / "tensorboard" / worker.stage)
    return list(worker.config.trackers)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False
