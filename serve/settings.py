"""Every setting of the service, each with its default and one sentence.

Knows names, types and bounds; knows nothing of Ray, models or files' contents. The same object
comes from the command line, from a YAML file (`serve.configuration`) and from `args:` in a Ray
Serve YAML; a misspelt key is an error everywhere. Secrets are not settings: API keys come from the
environment variable M3_API_KEYS, or as digests from a file that a setting names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from router.registry import DEFAULT_REGISTRY
from serve.errors import ServeSetupError
from serve.setting_values import (
    FolderPath,
    FolderPlace,
    HostName,
    ImageDetail,
    Origin,
    PictureHostName,
)

API_KEYS_VARIABLE = "M3_API_KEYS"
LABEL_BESIDE = (
    "only m3-serve up starts a process for it: leave it out and run m3-train collect --from-log "
    "LOG --out DIR --follow --idle-of URL beside the service"
)
# No infinity either: times become buckets and Ray's limits, which end.
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class PictureLimits(BaseModel):
    """What a picture may be before it is decoded."""

    model_config = STRICT

    max_pixels: int = Field(
        50_000_000,
        ge=1,
        description="Width times height, read from the header; of a WebP half as many.",
    )
    max_side_px: int = Field(10_000, ge=1, description="Longer side.")


class RemotePictureSettings(BaseModel):
    """Pictures that requests name by address; none are fetched while no host is named."""

    model_config = STRICT

    hosts: list[PictureHostName] = Field(
        [], description="Hosts they are fetched from, by https: img.example, or *.img.example."
    )
    timeout_s: float = Field(5.0, gt=0, description="For one picture, redirects included.")
    max_bytes: int = Field(10_000_000, ge=1024, description="Largest file.")


class OverloadSettings(BaseModel):
    """What gives way when there is more to do than can be done; see docs/operations.md."""

    model_config = STRICT

    max_harm: float | None = Field(
        0.1,
        gt=0,
        lt=1,
        description="While overloaded, second looks go and the price rises, as far as the router's "
        "certificate bounds the answers lost by this share; None, or no such certificate: never.",
    )
    max_wait_s: float = Field(
        30.0,
        gt=0,
        description="Expected time to an answer's first token above which requests are refused: "
        "429. The price begins to rise at half of it, or of max_inflight_requests.",
    )


class AutoscalingSettings(BaseModel):
    """Between which numbers of replicas Ray moves, by the tokens that they have to do.

    A generator's tokens are visual ones and those to expect as answers (``default_max_tokens`` at
    most); an encoder's are those of every picture at the finest scale.
    """

    model_config = STRICT

    min_replicas: int = Field(1, ge=1, description="Replicas that are always there.")
    max_replicas: int = Field(ge=1, description="Replicas at most.")
    target_tokens: float = Field(
        gt=0, description="Tokens that a replica should have to do, running and waiting."
    )
    upscale_delay_s: float = Field(
        10.0, ge=0, description="More are started after more was wanted for this long."
    )
    downscale_delay_s: float = Field(
        300.0, ge=0, description="Some are ended after fewer was enough for this long."
    )

    @model_validator(mode="after")
    def _in_order(self) -> AutoscalingSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})"
            )
        return self


class DeploymentSettings(BaseModel):
    """How one of the three parts is spread over Ray; unused in one process."""

    model_config = STRICT

    replicas: int = Field(1, ge=1, description="Replicas of this part.")
    autoscaling: AutoscalingSettings | None = Field(
        None, description="Instead of ``replicas``: as many as there is work for."
    )
    num_cpus: float = Field(0, ge=0, description="CPU cores that Ray reserves for a replica.")
    num_gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for a replica.")
    # Generous, because queues are bounded by the gateway and the engine keeps its own: a request
    # for the replica's state must not wait behind answers.
    max_ongoing_requests: int = Field(256, ge=1, description="Requests a replica works on at once.")
    max_queued_requests: int = Field(
        256, ge=1, description="Requests that wait for a replica, per caller; beyond them: 429."
    )

    @model_validator(mode="after")
    def _one_number_of_replicas(self) -> DeploymentSettings:
        if self.autoscaling is not None and "replicas" in self.model_fields_set:
            raise ValueError(
                "replicas and autoscaling exclude each other: give autoscaling.min_replicas and "
                "autoscaling.max_replicas instead of replicas"
            )
        return self


class RouterChoice(BaseModel):
    """What `user_config` of the encoder may hold on Ray, where no registry is followed."""

    model_config = STRICT

    router: FolderPath = Field(description="Router folder; exchanged without a restart.")


class ServeSettings(BaseModel):
    """One running service."""

    model_config = ConfigDict(**STRICT, protected_namespaces=())

    model: FolderPath | None = Field(None, description="Model folder; None: the embedded m3-mini.")
    router: FolderPath | None = Field(
        None,
        description="Router folder to start with; None: the registry's, else the one that belongs "
        "to the embedded model, else none (every picture is read at the finest scale).",
    )
    registry: FolderPlace | None = Field(
        DEFAULT_REGISTRY,
        description="Registry that is followed while running: a folder, or s3://bucket/folder.",
    )
    registry_poll_s: float = Field(1.0, gt=0, description="Seconds between looks at the registry.")
    text_encoder: FolderPath | None = Field(
        None, description="CLIP folder for routers that were fitted on CLIP relevance."
    )
    device: str | None = Field(None, description="torch device; None: cuda if there is one.")
    torch_threads: int = Field(1, ge=1, description="CPU threads of torch in each replica.")

    log_dir: FolderPlace | None = Field(
        Path(".m3/log"),
        description="Where the decision log is kept: a folder, or s3://bucket/folder; None: "
        "nothing is logged.",
    )
    log_images: bool = Field(
        False, description="Store picture, question and answer of audited requests."
    )
    log_prompts: bool = Field(False, description="Store question and answer of every request.")
    log_flush_s: float = Field(
        0.2,
        gt=0,
        le=60,
        description="Longest wait of a record before it is on disk: what a crash may cost.",
    )
    log_retention_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Days of records kept in the decision log beside today's, with their "
        "pictures; None: all.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines of the service's own log: for people, or one JSON object each."
    )
    audit_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests, drawn uniformly, marked as audited; m3-train log audit "
        "changes it while services run.",
    )
    audit_seed: int | None = Field(
        None, description="Seed of that draw, in each gateway; None: nobody can foretell it."
    )

    label_idle: FolderPath | None = Field(
        None,
        description="Folder of oracle data that audited requests are labelled into, by a process "
        "of the lowest priority, while there is nothing else to do; needs log_images; None: none.",
    )

    api_keys_file: FolderPath | None = Field(
        None,
        description="YAML file of API keys' SHA-256 with names and budgets, followed while running "
        "(docs/tenants.md); None: the keys of M3_API_KEYS, else none is asked for.",
    )
    allowed_hosts: list[HostName] | None = Field(
        None,
        min_length=1,
        description="Names in the Host header that are answered, ['*'] for all; None: all where "
        "API keys are set, else those of this machine's loopback.",
    )
    cors_origins: list[Origin] = Field(
        [], description="Other sites whose pages may use the service, as https://chat.example."
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="What becomes of request fields unknown here: refuse names them; ignore is for "
        "proxies and front ends that send fields of other services, such as top_k.",
    )
    max_body_bytes: int = Field(25_000_000, ge=1024, description="Largest request body.")
    body_timeout_s: float = Field(60.0, gt=0, description="Time for a request's body to arrive.")
    max_pictures: int = Field(8, ge=1, description="Pictures in one request.")
    pictures: PictureLimits = Field(
        default_factory=PictureLimits, description="Limits of a picture."
    )
    remote_pictures: RemotePictureSettings = Field(
        default_factory=RemotePictureSettings, description="Pictures fetched by address."
    )
    max_decoding_pixels: int = Field(
        75_000_000,
        ge=1,
        description="Pixels of large pictures that an encoder decodes at once, those of a WebP "
        "counted twice; others wait for their turn.",
    )
    max_inflight_requests: int = Field(
        128, ge=1, description="Requests a gateway admits at once; beyond them: 429."
    )
    max_inflight_bytes: int = Field(
        512_000_000, ge=1024, description="Body bytes a gateway holds at once; beyond them: 429."
    )
    overload: OverloadSettings = Field(
        default_factory=OverloadSettings, description="Prices and waits when there is too much."
    )
    default_max_tokens: int = Field(
        64, ge=1, description="Answer tokens when the request is silent."
    )
    detail_scales: dict[ImageDetail, int] | None = Field(
        None, description="Scale of image details low, high, original; None: 9, 144, the finest."
    )

    engine: Literal["own", "vllm"] = Field(
        "own",
        description="What generates: own, in the replica, or vllm, in a process beside it "
        "(docs/operations.md).",
    )
    vllm_python: FolderPath | None = Field(
        None, description="Python of an environment that has vLLM, for engine: vllm."
    )
    vllm_options: dict[str, bool | int | float | str] = Field(
        {}, description="More of vLLM's AsyncEngineArgs, such as tensor_parallel_size."
    )
    kv_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens that an engine's key-value cache holds, all requests together; None: "
        "four fifths of the GPU memory that is free when it starts, or on a CPU an eighth of what "
        "the machine has available, at most 64 of the longest requests.",
    )
    encoder_batch: int = Field(8, ge=1, description="Pictures in one pass of the vision tower.")
    encoder_cache_bytes: int = Field(
        512_000_000, ge=0, description="Encoded pictures kept for further questions."
    )
    tokens_per_part: int = Field(
        6, ge=1, description="Answer tokens sent from generator to gateway at once when streaming."
    )
    max_part_ms: float = Field(
        40.0, ge=0, description="A streamed part is sent at the first token after this long."
    )
    retries: int = Field(
        3,
        ge=0,
        description="Further tries when a replica cannot take a request; one at most when it dies.",
    )
    request_timeout_s: float = Field(120.0, gt=0, description="End-to-end limit of one request.")
    heartbeat_limit_s: float = Field(
        5.0,
        gt=0,
        description="A worker that is silent for longer while it has work is unhealthy, and on Ray "
        "replaced about 3 s later; it gives a sign of life before each layer of a pass, so this is "
        "above what one layer may take: milliseconds, but seconds for a 7B model on a CPU.",
    )
    drain_s: float = Field(20.0, ge=0, description="Time for requests in flight when stopping.")
    keep_alive_s: int = Field(
        75,
        ge=1,
        description="Idle connections stay open; set it above what pools in front keep theirs.",
    )

    gateway: DeploymentSettings = Field(
        default_factory=DeploymentSettings, description="Ray deployment of the gateway."
    )
    encoder: DeploymentSettings = Field(
        default_factory=DeploymentSettings, description="Ray deployment of the encoder."
    )
    generator: DeploymentSettings = Field(
        default_factory=DeploymentSettings, description="Ray deployment of the generator."
    )

    @model_validator(mode="after")
    def _vllm_has_a_python(self) -> ServeSettings:
        if self.engine == "vllm" and self.vllm_python is None:
            raise ValueError(
                "engine: vllm needs vllm_python, the python of an environment that has vLLM"
            )
        if self.engine != "vllm" and (self.vllm_python is not None or self.vllm_options):
            raise ValueError("vllm_python and vllm_options are for engine: vllm")
        return self

    @model_validator(mode="after")
    def _gateways_are_fixed(self) -> ServeSettings:
        if self.gateway.autoscaling is not None:
            raise ValueError(
                "gateway.autoscaling: a gateway's work is not counted in tokens; give "
                "gateway.replicas"
            )
        return self

    @model_validator(mode="after")
    def _labels_what_is_logged(self) -> ServeSettings:
        if self.label_idle is not None and (self.log_dir is None or not self.log_images):
            raise ValueError(
                "label_idle: needs a log_dir and log_images: true, which keep what is labelled"
            )
        return self

    def model_path(self) -> Path:
        """Return the model folder.

        Raises:
            ServeSetupError: it is missing, or holds no model.
        """
        if self.model is not None:
            folder, advice = self.model, "give the folder of a checkpoint with --model"
        else:
            from m3model import default_model_path

            folder = default_model_path()
            advice = "the embedded model is not in this checkout; give one with --model DIR"
        if not folder.is_dir():
            raise ServeSetupError(f"model folder {folder} does not exist; {advice}")
        if not (folder / "config.json").is_file():
            raise ServeSetupError(f"model folder {folder} has no config.json; {advice}")
        return folder

    def check_details(self, scales: Sequence[int]) -> None:
        """Return if every image detail has a scale of the model.

        Raises:
            ServeSetupError: one has another.
        """
        for detail, scale in (self.detail_scales or {}).items():
            if scale not in scales:
                raise ServeSetupError(
                    f"detail_scales.{detail}: {scale} is no scale of the model, which has "
                    f"{', '.join(map(str, scales))}"
                )

    def is_embedded_model(self) -> bool:
        """Return whether the model is the one the shipped router was fitted for."""
        from m3model import default_model_path

        return self.model is None or self.model.resolve() == default_model_path().resolve()
