"""What an earlier prunekit wrote, to be read by this one; `python -m scripts.golden files` made it.

The runs were made in the folder FILES, by `--config-dir=configs experiment=tiny`. Tests copy what
they work on.
"""

from pathlib import Path

FILES = Path(__file__).parent / "files"
CONFIGS = FILES / "configs"  # holds experiment/tiny.yaml
MODELS = FILES / "models"  # files of `save_model`, by the edits they hold
RUNS = FILES / "runs"
FINISHED = RUNS / "finished"  # pretrain to measure, with sensitivity and features
INTERRUPTED = RUNS / "interrupted"  # killed in sparsify, which left last.pt
SWEEP = RUNS / "sweep"  # two strengths, which took pretrain from RUNS / ".shared"
