"""From messages to rows of ids: chat templates, a tokenizer for models of our own, image tokens.

`templates` render messages, `vocabulary` builds the tokenizer of models trained from nothing,
`expansion` puts `scale` visual tokens where one image token stood.
"""
