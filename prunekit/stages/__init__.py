"""The stages of the pipeline, each a module with a class for everything that the stage reads."""

from prunekit.build import Settings
from prunekit.runs.layout import STAGES
from prunekit.stages.pipeline import Request, StageResult, execute, find_stage_class
from prunekit.stages.settings import Runtime
from prunekit.stages.stage import Stage

__all__ = [
    "STAGES",
    "Request",
    "Runtime",
    "Settings",
    "Stage",
    "StageResult",
    "execute",
    "find_stage_class",
]
