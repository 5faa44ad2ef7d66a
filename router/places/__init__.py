"""A place: a folder or file on this machine's disks, or one in an object store.

On a disk it is a `pathlib.Path`, and all that a disk can do is used as ever. In an object store it
is a `StoredPlace`, which reads, lists and names like a path and writes as stores do: whole, and on
condition. Words of a person become places at the edge, by `as_place`. Router folders are hashed by
`content` and brought here by `copies`.
"""

from router.places.stored import NoPlace, Place, StoredPlace, as_place
from router.places.together import read_all, remove_all

__all__ = [
    "NoPlace",
    "Place",
    "StoredPlace",
    "as_place",
    "read_all",
    "remove_all",
]
