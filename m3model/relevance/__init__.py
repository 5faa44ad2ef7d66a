"""Which patches of a picture a question points to: one number a patch.

`source` says what every way offers; `readout` is the trained one, `untrained` needs only the model,
`clip` its original text tower; `choice` finds out what a model folder can give.
"""

from m3model.relevance.readout import RelevanceReadout

__all__ = ["RelevanceReadout"]
