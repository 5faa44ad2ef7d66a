"""Configuration files: flags above files, and no key, at any depth, that nobody reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app as unfold
from ray.serve.schema import ServeDeploySchema
from typer.main import get_command

from serve.cli import FLAGS, _given, app
from serve.configuration.documents import parsed
from serve.configuration.faults import unknown_keys
from serve.configuration.ray_files import DEPLOYMENTS, config_faults
from serve.configuration.settings_file import absolute, faults_of, in_force, schema, shown
from serve.errors import ServeSetupError
from serve.in_process import compose
from serve.on_ray.app import build_app
from serve.settings import ServeSettings

CONFIG = """
proxy_location: EveryNode
http_options: {host: 0.0.0.0, port: 8000, request_timeout_s: 125, keep_alive_timeout_s: 75}
logging_config: {encoding: JSON}
applications:
  - name: m3
    route_prefix: /
    import_path: serve.on_ray.app:build_app
    runtime_env: {env_vars: {M3_ANY: "1"}}
    args:
      registry: null
      pictures: {max_side_px: 5000}
      generator: {replicas: 2, num_cpus: 1}
    deployments:
      - name: encoder
        user_config: {router: /routers/b}
        max_ongoing_requests: 64
      - name: generator
        num_replicas: auto
        autoscaling_config:
          min_replicas: 1
          max_replicas: 3
          policy: {policy_function: "ray.serve.autoscaling_policy:default_autoscaling_policy"}
        ray_actor_options: {num_cpus: 1, resources: {a_resource: 1}, runtime_env: {env_vars: {}}}
        request_router_config:
          request_router_class: serve.on_ray.replica_routing:TokenRouter
          request_routing_stats_period_s: 1.0
        backpressure_config: {status_code: 429}
  - name: another
    import_path: somebody.else:app
    route_prefix: /other
    args: {whatever: 1}
    deployments: [{name: theirs, user_config: {anything: 1}}]
"""
OPEN = {"env_vars", "resources", "user_config", "args"}  # their owners know the keys


def given_to_up(*words: str) -> dict[str, Any]:
    context = get_command(app).commands["up"].make_context("up", list(words))  # type: ignore[attr-defined]
    return _given(context)


def test_flags_left_out_override_nothing(tmp_path: Path) -> None:
    file = tmp_path / "m3.yaml"
    file.write_text(
        "audit_rate: 0.5\nlog_images: true\nlog_dir: of/file\nregistry: null\n"
        "encoder: {replicas: 3, num_cpus: 0.5}\nallowed_hosts: [a.example]\n"
    )
    assert given_to_up("--config", str(file), "--port", "0") == {}
    settings = in_force(file, given_to_up())
    assert (settings.audit_rate, settings.log_images, settings.registry) == (0.5, True, None)
    assert settings.log_dir == Path("of/file")
    flags = given_to_up(
        "--audit-rate", "1.0", "--no-log-images", "--encoders", "1", "--log-dir", "of/flag",
        "--allowed-host", "B.example:80", "--registry", "r",
    )  # fmt: skip
    settings = in_force(file, flags)
    # Given is given, also where it is the default.
    assert (settings.audit_rate, settings.log_images, settings.registry) == (1.0, False, Path("r"))
    assert (settings.encoder.replicas, settings.encoder.num_cpus) == (1, 0.5)
    assert (settings.log_dir, settings.allowed_hosts) == (Path("of/flag"), ["b.example"])
    assert absolute(settings).log_dir == Path.cwd() / "of/flag"


def test_a_flag_shows_the_default_that_counts_without_it() -> None:
    parameters = {each.name: each for each in get_command(app).commands["up"].params}  # type: ignore[attr-defined]
    for flag, path in FLAGS.items():
        value: Any = ServeSettings()
        for name in path.split("."):
            value = getattr(value, name)
        assert (parameters[flag].default or None) == (value or None), flag


def test_what_is_shown_may_be_given_back(tmp_path: Path, command: Any) -> None:
    settings = ServeSettings(
        model=Path("a model"), allowed_hosts=["[::1]", "*"], detail_scales={"low": 1},
        log_dir=None, device="cuda:0", generator={"replicas": 2},
    )  # fmt: skip
    file = tmp_path / "m3.yaml"
    file.write_text(shown(settings))
    assert in_force(file) == settings
    assert command("m3-serve", "config", "show", "--config", file).stdout == file.read_text()
    assert yaml.safe_load(command("m3-serve", "config", "show").stdout)["log_dir"] == ".m3/log"
    assert max(map(len, file.read_text().splitlines())) <= 100
    # The schema, read by a validator that is not ours, agrees.
    told = json.loads(command("m3-serve", "config", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(told)
    value = yaml.safe_load(file.read_text())
    jsonschema.validate(value, told)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value | {"generator": {"replica": 2}}, json.loads(schema()))


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("audit_rat: 1", "audit_rat", "audit_rate"),
        ("encoder: {replica: 2}", "encoder.replica", "replicas"),
        ("pictures: {max_side: 2}", "pictures.max_side", "max_side_px"),
        ("encoder: {replicas: 0}", "encoder.replicas", "not 0"),
        ("cors_origins: [https://a.example, b]", "cors_origins.1", "not an origin"),
        ("pictures: [1]", "pictures", "dictionary"),
        ("audit_rate: 1\npictures: {}\naudit_rate: 0", "audit_rate", "line 3"),
        ("encoder: {replicas: 1, replicas: 2}", "encoder.replicas", "twice"),
        ("pictures: {max_side_px: .inf}", "pictures.max_side_px", "not inf"),
        ("request_timeout_s: .inf", "request_timeout_s", "finite"),
        ("encoder: {num_gpus: .nan}", "encoder.num_gpus", ""),
        ("detail_scales: {lo: 9}", "detail_scales.lo", "low, high, original"),
        ("log_dir: ''", "log_dir", "null for none"),
        ("allowed_hosts: []", "allowed_hosts", "at least 1"),
        ("- 1", "", "mapping"),
        ("a: [", "line 1", ""),
        ("a: 1\n---\nb: 2", "", "2 documents"),
        ("kind: Deployment", "kind", "no RayService"),
    ],
)
def test_a_mistake_in_a_file_of_settings_is_one_line_with_its_path(
    tmp_path: Path, command: Any, text: str, path: str, hint: str
) -> None:
    file = tmp_path / "m3.yaml"
    file.write_text(text)
    for words in (["config", "validate", file], ["up", "--in-process", "--config", file]):
        done = command("m3-serve", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
        assert f"{file}: {path}" in done.stderr
        assert hint in done.stderr


def mappings(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of every key, save those below what others know."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*place, key)
            if key not in OPEN:
                yield from mappings(inner, (*place, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from mappings(inner, (*place, number))


def renamed(config: Any, place: tuple[Any, ...], name: str) -> Any:
    changed = copy.deepcopy(config)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    inner[name] = inner.pop(place[-1])
    return changed


def test_every_key_of_a_serve_config_is_read_to_its_last_letter() -> None:
    config = yaml.safe_load(CONFIG)
    assert config_faults(config) == []
    ServeDeploySchema(**copy.deepcopy(config))
    ours = config["applications"][0]
    places = {
        *mappings(config),
        *mappings(ours["args"], ("applications", 0, "args")),
        ("applications", 0, "deployments", 0, "user_config", "router"),
    }
    assert len(places) > 40
    for place in places:
        misspelt = f"{place[-1]}x"
        (fault, *_) = config_faults(renamed(config, place, misspelt))
        assert str(fault).startswith(".".join(map(str, [*place[:-1], misspelt])) + ": unknown key")
        assert f"did you mean {place[-1]}?" in str(fault)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("name: encoder", "name: encodr", "deployments.0.name: 'encodr' is an unknown deployment"),
        ("name: generator", "name: encoder", "deployments.1.name: encoder is given twice"),
        ("registry: null", "registry: /r", "deployments.0.user_config.router: a second source"),
        ("registry: null", "drain_s: 1", "deployments.0.user_config.router: a second source"),
        ("{router: /routers/b}", "{router: 5}", "deployments.0.user_config.router: "),
        ("max_replicas: 3", "max_replicas: none", "deployments.1.autoscaling_config.max_replicas"),
        ("min_replicas: 1", "min_replicas: 4", "deployments.1.autoscaling_config: max_replicas"),
        ("ray.serve.autoscaling_policy:", "no.such:", "autoscaling_config.policy: names what"),
        ("num_replicas: auto", "num_replicas: 2", "deployments.1: Manually setting num_replicas"),
        ("replicas: 2,", "replicas: -2,", "args.generator.replicas: "),
        ("stats_period_s: 1.0", "stats_period_s: 0", "request_routing_stats_period_s: "),
        ("port: 8000", "port: many", "http_options.port: "),
        ("app:build_app", "app:build", "applications.0.import_path: no application is serve."),
        ("s: 125", "s: 120", "http_options.request_timeout_s: 120 s cuts requests off before"),
        ("registry: null", "registry: null\n      keep_alive_s: 90", "http_options.keep_alive_ti"),
        (
            "policy: {",
            "target_ongoing_requests: 1 #",
            "1.autoscaling_config: Ray would scale by req",
        ),
        (
            "- name: encoder",
            "- name: encoder\n        num_replicas: auto",
            "0.num_replicas: Ray would",
        ),
        (
            "replicas: 2, num_cpus: 1}\n    deployments:",
            "autoscaling: {max_replicas: 2, target_tokens: 1}}\n    deployments:\n"
            "      - {name: generator, num_replicas: 2}\n      - {name: gateway}\n  - import_path: "
            "a.b:c\n    name: c\n    route_prefix: /c\n    deployments:",
            "deployments.0.num_replicas: args.generator.autoscaling sets their number",
        ),
    ],
)
def test_a_wrong_value_of_a_serve_config_has_its_path(before: str, after: str, says: str) -> None:
    assert before in CONFIG
    faults = config_faults(yaml.safe_load(CONFIG.replace(before, after, 1)))
    assert says in str(faults[0])
    if after.startswith("name: encoder"):  # what it says of the encoder is said of the second too
        assert len(faults) == 1


def test_the_three_kinds_are_told_apart(tmp_path: Path, command: Any) -> None:
    manifest = {"kind": "RayService", "spec": {"serveConfigV2": CONFIG}}
    wrong = {"kind": "RayService", "spec": {"serveConfigV2": CONFIG.replace("min_rep", "mini_rep")}}
    texts = {
        "settings": "audit_rate: 0.5", "comments": "# audit_rate: 0.5\n", "serve": CONFIG,
        "manifest": "kind: NetworkPolicy\n---\n" + yaml.safe_dump(manifest),
        "wrong": yaml.safe_dump(wrong), "misspelt": CONFIG.replace("applications:", "aplications:"),
        "missing": "kind: RayService\nspec: {serveConfigV3: a}",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)

    def said(*words: object) -> str:
        done = command("m3-serve", *words)
        assert done.returncode in (0, 2)
        return str(done.stdout + done.stderr)

    place = "spec.serveConfigV2.applications.0.deployments.1.autoscaling_config.mini_replicas"
    file = tmp_path / "serve"
    for name, says in (
        ("settings", "and right: m3-serve up --config"),
        ("comments", "and right: m3-serve up --config"),
        ("serve", "and right: serve deploy"),
        ("manifest", "and right: kubectl apply"),
        ("wrong", f"{place}: unknown key; did you mean min_replicas?"),
        ("misspelt", "aplications: unknown key; did you mean applications?"),
        ("missing", "spec.serveConfigV2: missing"),
    ):
        assert says in said("config", "validate", tmp_path / name)
    assert f"serve deploy {file} takes it" in said("up", "--in-process", "--config", file)
    assert "kubectl apply -f" in said("up", "--config", tmp_path / "manifest")
    assert "No such file" in said("up", "--config", tmp_path / "nothing")


def test_the_deployments_are_those_of_the_application(tiny_model: Path) -> None:
    bound = call_user_app_builder_with_args_if_necessary(build_app, {"model": str(tiny_model)})
    assert {each.name for each in unfold(bound, name="m3").deployments} == set(DEPLOYMENTS)


def test_a_detail_has_a_scale_of_the_model(tiny_model: Path) -> None:
    settings = ServeSettings(model=tiny_model, detail_scales={"low": 7}, log_dir=None)
    for start in (build_app, compose):
        with pytest.raises(ServeSetupError, match=r"detail_scales\.low: 7 is no scale"):
            start(settings)


class Inner(BaseModel):
    depth: int = 1


class Outer(BaseModel):
    one: Optional[Inner] = None  # noqa: UP045  # as Ray writes it
    many: list[Inner | dict[str, Any]] = []
    named: Annotated[dict[str, Inner], Field(description="by name")] = {}
    other: Inner | int = 1
    free: dict[str, Any] = {}


def test_keys_are_looked_for_wherever_a_model_may_lie() -> None:
    value = {
        "one": {"depht": 1}, "many": [{"depth": 1}, {"deep": 2}], "named": {"a": {"depths": 1}},
        "other": {"dept": 1}, "free": {"anything": {"depht": 1}}, 7: 1,
    }  # fmt: skip
    places = [".".join(map(str, fault.place)) for fault in unknown_keys([Outer], value)]
    assert places == ["7", "one.depht", "many.1.deep", "named.a.depths", "other.dept"]


Plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
Names = st.sampled_from([*ServeSettings.model_fields, "replicas", "applications", "deployments"])


@how(max_examples=50, deadline=None)
@given(st.dictionaries(Names | st.text(), Plain | st.dictionaries(Names, Plain), max_size=4))
def test_whatever_a_file_holds_is_judged_without_a_traceback(value: dict[str, Any]) -> None:
    assert parsed(yaml.safe_dump(value)) == [value]
    if not faults_of(value):
        ServeSettings(**value)
    config_faults(value)
    config_faults({"applications": [value]})
    name = {"import_path": "serve.on_ray.app:build_app", "args": value}
    config_faults({"applications": [name | {"deployments": [{"name": "encoder"} | value]}]})


def test_aliases_share_values_and_are_no_repetition() -> None:
    assert parsed("a: &a {b: 1}\nc: *a\nd: {<<: *a, b: 2}") == [
        {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 2}}
    ]
    with pytest.raises(ServeSetupError, match=r"encoder\.replicas.*, not -1"):
        in_force(None, {"encoder.replicas": -1})
