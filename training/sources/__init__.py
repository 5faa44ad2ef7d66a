"""Where oracle questions come from: generated scenes, LLaVA-format files, datasets, the log.

`tasks` says what a source is; `scenes`, `llava`, `hf` (over `hf_tables`) and `log` are the four;
`target_cells` is what only the generator of a scene knows about it.
"""

from training.sources.hf import hf_source
from training.sources.llava import llava_source
from training.sources.log import log_source
from training.sources.scenes import SceneSource
from training.sources.tasks import (
    Ask,
    FileSource,
    PictureTask,
    Source,
)

__all__ = [
    "Ask",
    "FileSource",
    "PictureTask",
    "SceneSource",
    "Source",
    "hf_source",
    "llava_source",
    "log_source",
]
