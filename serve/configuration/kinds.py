"""Which kind of file it is, and whether it is right.

Knows the three kinds that describe this service; Ray is imported only for those that are Ray's.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

from serve.configuration import settings_file
from serve.configuration.documents import read
from serve.configuration.faults import Fault
from serve.errors import ServeSetupError
from serve.settings import ServeSettings


class Kind(Enum):
    """What a file is for, with how it is put to use."""

    settings = "settings of m3-serve", "m3-serve up --config {}"
    serve_config = "a Ray Serve config", "serve deploy {}"
    ray_service = "a RayService manifest", "kubectl apply -f {}"

    @property
    def what(self) -> str:
        """Return what the file is, in words."""
        return self.value[0]

    def use(self, file: Path) -> str:
        """Return the command that takes the file."""
        return self.value[1].format(file)


def validated(file: Path) -> Kind:
    """Return the kind of a file in which everything is right.

    Raises:
        ServeSetupError: one line with the path of the first thing that is not.
    """
    documents = read(file)
    kind = _kind_of(documents, file)
    if faults := _faults(documents, kind):
        raise ServeSetupError(settings_file.complaint(faults, file))
    return kind


def refuse_other_kinds(file: Path) -> None:
    """Return if the file holds settings, right or wrong.

    Raises:
        ServeSetupError: it is of another kind, and what to do with it.
    """
    kind = _kind_of(read(file), file)
    if kind is not Kind.settings:
        raise ServeSetupError(
            f"{file} is {kind.what}: {kind.use(file)} takes it; m3-serve up takes settings alone, "
            "what stands under args: there"
        )


def _kind_of(documents: list[Any], file: Path) -> Kind:
    kinds = [each["kind"] for each in documents if isinstance(each, Mapping) and "kind" in each]
    if "RayService" in kinds:
        return Kind.ray_service
    if kinds:
        raise ServeSetupError(f"{file}: kind: {kinds[0]} found, and no RayService")
    if len(documents) > 1:
        raise ServeSetupError(f"{file}: holds {len(documents)} documents instead of one")
    document = documents[0] if documents else {}
    unknown = set(document) - set(ServeSettings.model_fields) if isinstance(document, dict) else ()
    return Kind.serve_config if unknown and _is_for_ray(unknown) else Kind.settings


def _is_for_ray(keys: set[Any]) -> bool:
    from ray.serve.schema import ServeDeploySchema

    names = [*set(ServeDeploySchema.model_fields) - set(ServeSettings.model_fields)]
    return any(get_close_matches(str(key), names, 1, 0.8) for key in keys)


def _faults(documents: list[Any], kind: Kind) -> list[Fault]:
    if kind is Kind.settings:
        return settings_file.faults_of(documents[0]) if documents else []
    from serve.configuration.ray_files import MANIFEST_KIND, config_faults, manifest_faults

    if kind is Kind.serve_config:
        return config_faults(documents[0])
    manifests = [each for each in documents if isinstance(each, Mapping)]
    services = [each for each in manifests if each.get("kind") == MANIFEST_KIND]
    return [fault for service in services for fault in manifest_faults(service)]
