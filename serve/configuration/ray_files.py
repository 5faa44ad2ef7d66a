"""What is wrong with a Ray Serve config or a RayService manifest of this service.

Ray ignores a misspelt key of a deployment or of its autoscaling without a word; here the known
keys are the fields of Ray's own schemas, walked to every depth. Starts no Ray.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

from serve.configuration import settings_file
from serve.configuration.documents import parsed
from serve.configuration.faults import (
    Fault,
    Place,
    sub_models,
    unknown,
    unknown_keys,
    wrong_values,
)
from serve.settings import LABEL_BESIDE, DeploymentSettings, RouterChoice, ServeSettings

BUILDER = "serve.on_ray.app:build_app"
MANIFEST_KIND = "RayService"
DEPLOYMENTS = [
    name
    for name, field in ServeSettings.model_fields.items()
    if field.annotation is DeploymentSettings
]
BY_TOKENS = ("encoder", "generator")
# Mappings that Ray's schemas leave open although their keys are known.
RUNTIME_ENV_KEYS = sorted(key for key in RuntimeEnv.known_fields if not key.startswith("_"))


def config_faults(config: Any) -> list[Fault]:
    """Return what is wrong with a Ray Serve config, unknown keys first."""
    if not isinstance(config, Mapping):
        return [Fault((), "a Ray Serve config is a mapping with applications")]
    if faults := [*unknown_keys([ServeDeploySchema], config), *_unknown_in_open(config)]:
        return faults
    return list(_wrong_for_ray(config)) or list(_wrong_for_us(config))


def manifest_faults(manifest: Mapping[str, Any]) -> list[Fault]:
    """Return what is wrong with the Ray Serve config within a RayService manifest.

    The manifest around it is the API server's to check: `kubectl apply` refuses unknown fields.
    """
    spec = manifest.get("spec")
    if not isinstance(spec, Mapping):
        return [Fault(("spec",), "missing")]
    text = spec.get("serveConfigV2")
    if not isinstance(text, str):
        close = unknown(("spec", "serveConfigV2"), [key for key in spec if isinstance(key, str)])
        hint = close.sentence.partition("did you")[1:]
        return [Fault(close.place, f"missing: the text of a Ray Serve config{''.join(hint)}")]
    place: Place = ("spec", "serveConfigV2")
    try:
        documents = parsed(text)
    except ValueError as error:
        return [Fault(place, str(error))]
    if len(documents) != 1:
        return [Fault(place, f"holds {len(documents)} documents instead of one")]
    return [fault.below(place) for fault in config_faults(documents[0])]


def _unknown_in_open(config: Mapping[str, Any]) -> Iterator[Fault]:
    for _, mapping, place in sub_models([ServeDeploySchema], config):
        if isinstance(environment := mapping.get("runtime_env"), Mapping):
            for key in environment:
                if key not in RUNTIME_ENV_KEYS:
                    yield unknown((*place, "runtime_env", key), RUNTIME_ENV_KEYS)
        if isinstance(policy := mapping.get("autoscaling_policy"), Mapping):
            yield from unknown_keys([AutoscalingPolicy], policy, (*place, "autoscaling_policy"))


def _wrong_for_ray(config: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield values that Ray refuses, the innermost first: it leaves some to the deployment."""
    found = sub_models([ServeDeploySchema], config)
    for models, mapping, place in sorted(found, key=lambda each: -len(each[2])):
        try:
            models[0].model_validate(copy.deepcopy(dict(mapping)))  # some validators write into it
        except ValidationError as error:
            yield from (fault.below(place) for fault in wrong_values(error, mapping))
            return
        except (ImportError, AttributeError) as error:  # a policy or router class named by its path
            yield Fault(place, f"names what cannot be imported here: {error}")
            return
        except (TypeError, NotImplementedError) as error:
            yield Fault(place, str(error))
            return


def _wrong_for_us(config: Mapping[str, Any]) -> Iterator[Fault]:
    paths = [application["import_path"] for application in config["applications"]]
    if BUILDER not in paths:
        place: Place = ("applications", 0, "import_path") if paths else ("applications",)
        yield Fault(place, f"no application is {BUILDER}")
    for number, application in enumerate(config["applications"]):
        if application["import_path"] == BUILDER:  # others may run beside it
            faults = list(_application_faults(application))
            yield from (fault.below(("applications", number)) for fault in faults)
            if not faults:
                settings = ServeSettings(**application.get("args") or {})
                yield from _listening_faults(config.get("http_options") or {}, settings)


def _listening_faults(options: Mapping[str, Any], settings: ServeSettings) -> Iterator[Fault]:
    """Yield where Ray's proxy, which reads none of our settings, would act against them."""
    limit_s, idle_s = options.get("request_timeout_s"), options.get("keep_alive_timeout_s")
    place: Place = ("http_options",)
    if limit_s is not None and limit_s <= settings.request_timeout_s:
        yield Fault(
            (*place, "request_timeout_s"),
            f"{limit_s:g} s cuts requests off before request_timeout_s of args, "
            f"{settings.request_timeout_s:g} s, lets them end with a sentence; say more",
        )
    if "keep_alive_s" in settings.model_fields_set and idle_s != settings.keep_alive_s:
        yield Fault(
            (*place, "keep_alive_timeout_s"),
            f"Ray's proxy reads this, not keep_alive_s of args: say {settings.keep_alive_s} here",
        )


def _application_faults(application: Mapping[str, Any]) -> Iterator[Fault]:
    arguments = application.get("args") or {}
    wrong = settings_file.faults_of(arguments)
    yield from (fault.below(("args",)) for fault in wrong)
    settings = None if wrong else ServeSettings(**arguments)
    if settings is not None and settings.label_idle is not None:
        yield Fault(("args", "label_idle"), LABEL_BESIDE)
    names: set[str] = set()
    for number, deployment in enumerate(application.get("deployments") or []):
        name, place = deployment["name"], ("deployments", number)
        if name not in DEPLOYMENTS:
            # The name is a value, so the place stays its key.
            sentence = unknown((name,), DEPLOYMENTS, "deployment").sentence
            yield Fault((*place, "name"), f"{name!r} is an {sentence}")
        elif name in names:
            yield Fault((*place, "name"), f"{name} is given twice; Ray takes the last")
        names.add(name)
        if (told := deployment.get("user_config")) is not None:
            here = (*place, "user_config")
            follows_registry = settings is not None and settings.registry is not None
            yield from _user_config_faults(name, told, here, follows_registry)
        yield from (fault.below(place) for fault in _override_faults(deployment, settings))


def _override_faults(
    deployment: Mapping[str, Any], settings: ServeSettings | None
) -> Iterator[Fault]:
    """Yield what would put Ray's ways in the place of ours: a mapping that Ray finds here takes
    that of the code away as a whole, and a number where autoscaling sets one is ignored.
    """
    name, number = deployment["name"], deployment.get("num_replicas")
    part = getattr(settings, name, None)
    scaled = part.autoscaling if isinstance(part, DeploymentSettings) else None
    if isinstance(number, int) and scaled is not None:
        yield Fault(
            ("num_replicas",),
            f"args.{name}.autoscaling sets their number, Ray ignores this one; leave one out",
        )
    if name not in BY_TOKENS:
        return
    scaling, routing = (
        deployment.get(f"{each}_config") for each in ("autoscaling", "request_router")
    )
    if "policy" not in scaling if scaling else number == "auto" and scaled is None:
        yield Fault(
            ("autoscaling_config" if scaling else "num_replicas",),
            f"Ray would scale by requests: give args.{name}.autoscaling instead, which counts "
            "tokens, or name a policy here",
        )
    if routing and "request_router_class" not in routing:
        yield Fault(
            ("request_router_config",),
            "Ray's router would choose replicas by queue instead of by tokens: leave this out, or "
            "name a request_router_class",
        )


def _user_config_faults(
    name: str, told: Mapping[str, Any], place: Place, follows_registry: bool
) -> Iterator[Fault]:
    if name != "encoder":
        yield Fault(place, "only the encoder takes one")
    elif unknown_ones := list(unknown_keys([RouterChoice], told, place)):
        yield from unknown_ones
    elif told:
        try:
            RouterChoice(**told)
        except ValidationError as error:
            yield from (fault.below(place) for fault in wrong_values(error, told))
            return
        if follows_registry:
            yield Fault(
                (*place, "router"),
                "a second source of the router beside the registry, which would win: say "
                "registry: null in args, or promote into the registry and leave user_config out",
            )
