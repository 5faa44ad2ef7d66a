"""HTTP: who calls (`callers`), paths (`answers`, `api`), bodies in, event streams out, the port."""

from serve.web.api import create_api

__all__ = ["create_api"]
