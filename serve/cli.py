"""`m3-serve up | ask | status | key | config | plan`: starts, asks, configures and sizes it.

Knows options and which errors a user can mend; everything else is imported inside the commands, so
that `--help` is quick.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from m3model.terminal import commands, described, one_command, run, say
from m3model.terminal import fail as _end
from router.registry import DEFAULT_REGISTRY
from serve.errors import ServeSetupError
from serve.plan import DEFAULT_MIX

SERVICE, CONFIGURATION, SIZE = "The service", "Its configuration", "Its size"
LOG = logging.getLogger("serve.cli")

app = commands(
    "m3-serve", "A vision-language service that spends only the visual tokens a question needs."
)

DEFAULT_URL = "http://127.0.0.1:8000"
# Flags of `up` by the setting each stands for.
FLAGS = {
    "model": "model", "router": "router", "text_encoder": "text_encoder", "registry": "registry",
    "log_dir": "log_dir", "log_images": "log_images", "log_prompts": "log_prompts",
    "log_format": "log_format", "audit_rate": "audit_rate", "label_idle": "label_idle",
    "device": "device",
    "torch_threads": "torch_threads",
    "allowed_host": "allowed_hosts", "cors_origin": "cors_origins",
    "api_keys_file": "api_keys_file",
    "encoders": "encoder.replicas", "generators": "generator.replicas",
    "gateways": "gateway.replicas",
}  # fmt: skip
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings; flags that are given win.")
]
Url = Annotated[str, typer.Option(help="Address of the service.", envvar="M3_URL")]
ApiKey = Annotated[
    str | None, typer.Option(help="API key, if it asks for one.", envvar="M3_API_KEY")
]


@app.command(rich_help_panel=SERVICE)
def up(
    context: typer.Context,
    config: ConfigFile = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    in_process: Annotated[bool, typer.Option("--in-process", help="One process, no Ray.")] = False,
    model: Annotated[Path | None, typer.Option(help="Model folder; default: m3-mini.")] = None,
    router: Annotated[
        Path | None,
        typer.Option(
            help="Router folder to start with; default: the registry's, else the shipped."
        ),
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="CLIP folder, for routers fitted on CLIP relevance.")
    ] = None,
    registry: Annotated[
        Any,
        typer.Option(
            parser=str, metavar="PLACE", help="Registry whose router in force is followed."
        ),
    ] = DEFAULT_REGISTRY,
    log_dir: Annotated[
        Any, typer.Option(parser=str, metavar="PLACE", help="Where the decision log is kept.")
    ] = Path(".m3/log"),
    log_images: Annotated[
        bool, typer.Option(help="Store pictures and questions of audited requests.")
    ] = False,
    log_prompts: Annotated[
        bool, typer.Option(help="Store questions and answers of all requests.")
    ] = False,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="Lines on stderr: for people, or JSON.")
    ] = "text",
    audit_rate: Annotated[
        float, typer.Option(help="Share of requests marked as audited.", min=0.0, max=1.0)
    ] = 1.0,
    label_idle: Annotated[
        Path | None,
        typer.Option(help="Folder to label audited requests into while idle; see --log-images."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="torch device; default: cuda if there.")
    ] = None,
    torch_threads: Annotated[int, typer.Option(help="CPU threads of each replica.", min=1)] = 1,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name to answer under; repeat for several. Without keys: loopback."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Site whose pages may ask, as https://chat.example; repeat for several."),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="YAML file of keys' SHA-256; see m3-serve key.")
    ] = None,
    encoders: Annotated[int, typer.Option(help="Encoder replicas (Ray).", min=1)] = 1,
    generators: Annotated[int, typer.Option(help="Generator replicas (Ray).", min=1)] = 1,
    gateways: Annotated[int, typer.Option(help="Gateway replicas (Ray).", min=1)] = 1,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the replicas' logs.")] = False,
) -> None:
    """Start the service and keep it running.

    It is ready when GET /health answers 200. SIGTERM drains and ends it.
    """
    from serve.configuration.settings_file import absolute, in_force
    from serve.telemetry import logs
    from serve.tenants.keys import given_keys
    from serve.web.listening import bind, check_exposure, url_of

    if config is not None:
        from serve.configuration.kinds import refuse_other_kinds

        refuse_other_kinds(config)
    flags = _given(context)  # not the arguments: a default must not override the file
    settings = in_force(config, flags)
    logs.set_up(settings.log_format)
    progress = _progress if settings.log_format == "text" else LOG.info
    has_keys = given_keys(settings.api_keys_file) is not None
    hosts = _hosts(host, has_keys=has_keys)
    if settings.allowed_hosts is None and hosts is not None:
        settings = in_force(config, {**flags, "allowed_hosts": hosts})
    settings = absolute(settings)  # replicas may work in other folders
    settings.model_path()
    check_exposure(host, has_keys=has_keys)
    if settings.router is not None and not settings.router.is_dir():
        raise ServeSetupError(f"router folder {settings.router} does not exist")
    listening = bind(host, port)
    url, port = url_of(host, listening), listening.getsockname()[1]

    def ready() -> None:
        print(f"m3-serve is ready at {url}", flush=True)

    if in_process:
        from serve import in_process as one_process

        progress("loading the model")
        one_process.run(settings, listening, ready)
    else:
        from serve.on_ray import service as ray_service

        listening.close()  # Ray's proxy opens it again
        ray_service.run(settings, host, port, progress, ready, verbose=verbose)
    # An ending interpreter gives handled signals their deadly default back: a second SIGTERM
    # must not turn a clean end into a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@app.command(rich_help_panel=SERVICE, short_help="Ask one question about a picture.")
def ask(
    picture: Annotated[Path, typer.Argument(help="Picture file.")],
    question: Annotated[str, typer.Argument(help="Question about it.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    scale: Annotated[int | None, typer.Option(help="Pin the scale.", min=1)] = None,
    max_visual_tokens: Annotated[int | None, typer.Option(help="Cap on them.", min=1)] = None,
    max_harm: Annotated[
        float | None, typer.Option(help="Share of right answers that may be lost, certified.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 64,
    explain: Annotated[bool, typer.Option("--explain", help="Say why it is read so.")] = False,
    save_picture: Annotated[
        Path | None,
        typer.Option(help="Draw what was read and where the words point: a .png or .svg file."),
    ] = None,
    second_look: Annotated[
        bool | None, typer.Option(help="Insist on, or forbid, looking finer after the answer.")
    ] = None,
    no_focus: Annotated[
        bool, typer.Option("--no-focus", help="Read the whole picture at one scale.")
    ] = False,
) -> None:
    """Ask one question about a picture; the answer on stdout, its cost on stderr."""
    from serve.client import M3Client
    from serve.client.words import cost_in_words, grid_in_words

    if not picture.is_file():
        _end(f"{picture} is not a file")
    if save_picture is not None:
        if save_picture.suffix.lower() not in (".png", ".svg"):
            _end(f"{save_picture} must end in .png or .svg")
        if not save_picture.parent.is_dir():
            _end(f"the folder {save_picture.parent} does not exist")
    with _client_errors(url), M3Client(url, api_key=api_key) as client:
        answer = client.ask(
            picture, question,
            scale=scale, max_visual_tokens=max_visual_tokens, max_harm=max_harm,
            max_tokens=max_tokens, explain=explain or save_picture is not None,
            second_look=second_look, focus=False if no_focus else None,
        )  # fmt: skip
    print(answer.text)
    print(cost_in_words(answer), file=sys.stderr)
    if any(look.cells for look in answer.looks):
        print(*grid_in_words(answer), sep="\n", file=sys.stderr)
    router = answer.router_version or "none"
    print(f"{answer.total_ms:.0f} ms, router {router}", file=sys.stderr)
    if explain:
        why = ["nothing was predicted, so there is nothing to explain"]
        print(
            *(why if answer.explain is None else answer.explain.lines()), sep="\n", file=sys.stderr
        )
    if save_picture is not None:
        from m3model.errors import BadPicture
        from serve.client.drawing import save_answer

        try:
            save_answer(save_picture, picture, question, answer)
        except (BadPicture, OSError) as error:
            _end(f"{save_picture} cannot be written: {error}")


@app.command(rich_help_panel=SERVICE)
def status(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show the state of a running service.

    The exit status is 1 where it is not well.
    """
    from serve.client import M3Client

    with _client_errors(url), M3Client(url, api_key=api_key, max_retries=0) as client:
        state = client.health()
    print(*described(state), sep="\n")
    if state.get("status") != "ok":
        raise typer.Exit(1)


@app.command(rich_help_panel=SERVICE, short_help="Make an API key.")
def key(
    name: Annotated[str, typer.Argument(help="Whose it is, as metrics and logs name it.")],
    visual_tokens_per_minute: Annotated[
        int | None, typer.Option(help="What may be read with it, and with others of the name.")
    ] = None,
) -> None:
    """Make an API key: its entry for the file on stdout, the key itself, once, on stderr.

    `m3-serve key alice >> keys.yaml` adds it to the file of --api-keys-file.
    """
    from serve.tenants.keys import new_key

    secret, entry = new_key(name, visual_tokens_per_minute)
    print(entry)
    print(f"The key, which is stored nowhere: {secret}", file=sys.stderr)


config_app = one_command(
    "config", help="Show, check and describe configuration files.", no_args_is_help=True
)
app.add_typer(config_app, rich_help_panel=CONFIGURATION)


@config_app.command()
def show(config: ConfigFile = None) -> None:
    """Print the settings in force as YAML.

    Those of the file, the default where it is silent, each below its sentence.
    """
    from serve.configuration.settings_file import in_force, shown

    print(shown(in_force(config)), end="")


@config_app.command()
def validate(
    file: Annotated[
        Path, typer.Argument(help="Settings, a Ray Serve config or a RayService manifest.")
    ],
) -> None:
    """Check a configuration file to its last key.

    An unknown key or a wrong value, at any depth, is one line with its path. Nothing is started.
    """
    from serve.configuration.kinds import validated

    kind = validated(file)
    print(f"{file} is {kind.what}, and right: {kind.use(file)}")


@config_app.command()
def schema() -> None:
    """Print the JSON schema of a file of settings, for editors."""
    from serve.configuration.settings_file import schema as of_settings

    print(of_settings())


@app.command(rich_help_panel=SIZE)
def plan(
    mix: Annotated[
        str,
        typer.Option(
            help="Shares of the requests by scale; of a focus by its coarse scale and fine tokens, "
            "as in 36+96:20. The default is what the shipped router read "
            "held-out generated scenes at, first looks not counted "
            "(benchmarks/results/routing_quality.json)."
        ),
    ] = DEFAULT_MIX,
    model: Annotated[str, typer.Option(help="7b, 13b, mini, or a model folder.")] = "7b",
    hardware: Annotated[
        str, typer.Option(help="h200, h100, a100, l4, or cpu: this machine, measured.")
    ] = "h200",
    text_tokens: Annotated[int, typer.Option(help="Prompt tokens besides.", min=1)] = 40,
    answer_tokens: Annotated[int, typer.Option(help="Answer tokens.", min=1)] = 16,
    max_batch: Annotated[int, typer.Option(help="Requests that share a pass.", min=1)] = 256,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="Report of python -m benchmarks.engine --gpu-slot on such a device: tells which "
            "share of the computed figures to expect."
        ),
    ] = None,
) -> None:
    """Compute what one replica serves: requests a second, memory.

    Beside the same replica with every picture read at the finest scale.
    """
    from serve.plan import lines, make_plan

    print(
        *lines(
            make_plan(model, hardware, mix, text_tokens, answer_tokens, max_batch), mix, measured
        ),
        sep="\n",
    )


@contextmanager
def _client_errors(url: str) -> Iterator[None]:
    from serve.client import APIConnectionError, APIError

    try:
        yield
    except APIConnectionError as error:
        if error.proxy is not None:
            _end(f"{url} is not reached: {error}")
        _end(f"{url} does not answer ({error}); start the service with m3-serve up")
    except (APIError, ValueError) as error:  # a key that cannot be sent is a ValueError
        _end(str(error))


def _given(context: typer.Context) -> dict[str, Any]:
    """Return the settings whose flags were given, by path; a default is the settings' affair."""
    return {
        setting: context.params[flag]
        for flag, setting in FLAGS.items()
        if getattr(context.get_parameter_source(flag), "name", "DEFAULT") != "DEFAULT"
    }


def _hosts(host: str, *, has_keys: bool) -> list[str] | None:
    """Return the host names to answer under where none are set; the one listened on is of them."""
    from serve.web.front import LOOPBACK_NAMES, host_name

    own = f"[{host}]" if ":" in host else host_name(host)
    if has_keys or own in LOOPBACK_NAMES:
        return None
    return [*sorted(LOOPBACK_NAMES), own]


def _progress(what: str) -> None:
    say(f"m3-serve: {what}")


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 2."""
    run(app, ServeSetupError)


if __name__ == "__main__":
    main()
