"""From messages to rows of ids: chat templates, a tokenizer for models of our own, image tokens.

`templates` render messages, `vocabulary` builds the tokenizer of models trained from nothing,
`visual_tokens` reads the pictures of a call at the scales or foci it names, `expansion` puts them
where image tokens stood.
"""
