"""The stages of the pipeline: a module each, with a class that holds all that a stage is asked."""

import importlib

from prunekit.runs.rundir import STAGES
from prunekit.stages.base import Made, Request, execute
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Settings, Stage


def stage_named(name: str) -> type[Stage]:
    """The class of a stage; imported late, so that the command line starts fast."""
    module = importlib.import_module(f"prunekit.stages.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    (found,) = [k for k in kinds if issubclass(k, Stage) and vars(k).get("name") == name]
    return found


__all__ = ["STAGES", "Made", "Request", "Runtime", "Settings", "Stage", "execute", "stage_named"]
