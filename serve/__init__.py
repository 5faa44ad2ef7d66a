"""The online service: HTTP in, tokens out.

Write ``from serve.client import M3Client``; never ``import serve`` (Ray's submodule of that name).
This file stays empty, so that the client loads without torch, Ray or transformers.
"""
