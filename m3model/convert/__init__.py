"""Official M3 and LLaVA-1.5 checkpoints into ours: `python -m m3model.convert --src DIR --dst DIR`.

`official` knows their names and numbers, `tokenizer` theirs, `checkpoint` does it, strictly.
"""

from m3model.convert.checkpoint import convert

__all__ = ["convert"]
