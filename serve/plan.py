"""`m3-serve plan`: what one replica serves, as a table.

Knows the words of the command line; the computing is `m3model.capacity`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from serve.errors import ServeSetupError

if TYPE_CHECKING:
    from m3model import Focus, M3Config
    from m3model.capacity import Plan
    from m3model.cost import Hardware

# Of the shipped router's answers to its held-out scenes, the share read by each action, in percent,
# a focus with the whole cells nearest to its mean (`share_of_scale` and `actions` in
# benchmarks/results/routing_quality.json; a first look is not counted).
DEFAULT_MIX = "9:2,1+8:14,36:10,1+24:13,36+24:2,9+40:26,144:4,36+84:13,36+40:14,576:2"
Read = int | tuple[int, int]  # a scale; of a focus the coarse one, and how many fine tokens
HARDWARE = {
    "h200": "NVIDIA H200",
    "h100": "NVIDIA H100 SXM",
    "a100": "NVIDIA A100 80GB",
    "l4": "NVIDIA L4",
}


def parsed_mix(words: str) -> dict[Read, float]:
    """Return the shares in `"9:25,36+96:20,..."`, by scale, or by scale and fine tokens of a focus.

    Raises:
        ServeSetupError: anything else.
    """
    mix: dict[Read, float] = {}
    for word in words.split(","):
        try:
            name, share = word.split(":")
            scale, *fine = map(int, name.split("+", 1))
            value = float(share.removesuffix("%"))
            if min(fine, default=1) < 1:
                raise ValueError(fine)
        except ValueError:
            raise ServeSetupError(
                f"--mix wants SCALE:SHARE,SCALE:SHARE as in 1:30,9:25,36:20,144:15,576:10, of a "
                f"focus with its fine tokens as in 36+96:20; {word!r} is not SCALE:SHARE"
            ) from None
        read = (scale, fine[0]) if fine else scale
        if read in mix:
            raise ServeSetupError(f"--mix names scale {name} twice")
        mix[read] = value
    return mix


def shape_of(model: str) -> M3Config:
    """Return the shape of `7b`, `13b`, `mini` or of a model folder.

    Raises:
        ServeSetupError: neither.
    """
    from m3model import M3Config, default_model_path
    from m3model.config import VICUNA, llava_shape

    if model in VICUNA:
        return llava_shape(model)
    folder = default_model_path() if model == "mini" else Path(model)
    if not (folder / "config.json").is_file():
        raise ServeSetupError(
            f"--model {model}: no such folder with a config.json; or say {', '.join(VICUNA)}, mini"
        )
    try:
        config: M3Config = M3Config.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ServeSetupError(f"--model {model}: {error}") from error
    return config


def hardware_of(name: str) -> Hardware:
    """Return the named hardware; `cpu` is measured here and now.

    Raises:
        ServeSetupError: an unknown name.
    """
    from m3model.capacity import measured_cpu
    from m3model.cost import HARDWARE as KNOWN

    if name == "cpu":
        return measured_cpu()
    if name not in HARDWARE:
        raise ServeSetupError(f"--hardware {name} is not one of {', '.join(HARDWARE)}, cpu")
    return KNOWN[HARDWARE[name]]


def make_plan(
    model: str, hardware: str, mix: str, text_tokens: int, answer_tokens: int, max_batch: int
) -> Plan:
    """Return the plan that the command line asks for.

    Raises:
        ServeSetupError: something in it is wrong; the sentence says what.
    """
    from m3model.capacity import plan

    shares, config = parsed_mix(mix), shape_of(model)
    try:
        for read in shares:
            config.check_scale(_levels(read)[0])
        return plan(
            config, hardware_of(hardware), {_known(config, read): shares[read] for read in shares},
            text_tokens=text_tokens, answer_tokens=answer_tokens, max_batch=max_batch,
        )  # fmt: skip
    except ValueError as error:
        strange = mix == DEFAULT_MIX and not {_levels(r)[0] for r in shares} <= set(config.scales)
        hint = "; say which with --mix" if strange else ""
        raise ServeSetupError(f"{error}{hint}") from error


def _known(config: M3Config, read: Read) -> int | Focus:
    """Return what a share is of, as the model knows it.

    Raises:
        ValueError: an unknown scale, half a cell, or a focus of as many tokens as the finest scale.
    """
    if not isinstance(read, tuple):
        return read
    from m3model import Focus
    from m3model.focus import CELL_TOKENS

    scale, fine = read
    finest = max(config.scales)
    if fine % CELL_TOKENS or scale + fine >= finest:
        raise ValueError(
            f"--mix {scale}+{fine}: fine tokens come in cells of {CELL_TOKENS}, and a focus has "
            f"fewer than {finest} tokens in all"
        )
    return Focus(scale, finest, tuple(range(fine // CELL_TOKENS)))


def _levels(read: Read) -> tuple[int, ...]:
    return read if isinstance(read, tuple) else (read,)


def achieved(report: Path) -> tuple[float, float, str]:
    """Return which share of the bound was measured, for a mix and for all finest, and where.

    Args:
        report: of `python -m benchmarks.engine --gpu-slot`, or of `benchmarks/engine.py`.

    Raises:
        ServeSetupError: it holds no such measurement.
    """
    try:
        told = json.loads(report.read_text("utf-8"))
        if "parts" in told:
            found, device = told["parts"]["mix and finest"], told["parts"]["device"]
            shares = (found[each]["share_of_bound"] for each in ("mix", "finest"))
            where = str(device.get("name", device["device"]))
        else:
            shares = (told["bound_share"][each] for each in ("mixed", "all_finest"))
            where = f"{told['model']}, {told['device']}"
        mixed, finest = map(float, shares)
    except OSError as error:
        raise ServeSetupError(f"--measured {report}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ServeSetupError(
            f"--measured {report} holds no share of a bound; python -m benchmarks.engine "
            "--gpu-slot writes such a report"
        ) from None
    if not (0 < mixed <= 1 and 0 < finest <= 1):
        raise ServeSetupError(f"--measured {report}: {mixed:g} and {finest:g} are no shares")
    return mixed, finest, where


def lines(plan: Plan, mix: str, measured: Path | None = None) -> list[str]:
    """Return the plan and the mix it is for as a person reads them, with what a measurement makes
    of it where there is one.

    Raises:
        ServeSetupError: `measured` is not the report of one.
    """
    shares = parsed_mix(mix)
    total = sum(shares.values())
    parts = ", ".join(
        f"{shares[read] / total:.0%} at {'+'.join(map(str, _levels(read)))}"
        for read in sorted(shares, key=_levels)
    )
    whose = (
        " (the shipped router on held-out scenes; first looks not counted)"
        if mix == DEFAULT_MIX
        else ""
    )
    rows = [
        (f"  {name:36}", *(f"{value(load):12.{digits}f}" for load in (plan.load, plan.finest)))
        for name, digits, value in (
            ("requests/s, every picture encoded", 1, lambda load: load.with_encode),
            ("requests/s, features cached", 1, lambda load: load.features_cached),
            ("requests that share a pass", 0, lambda load: load.batch),
            ("requests that fit in memory", 0, lambda load: load.fits),
            ("ms a decode step", 2, lambda load: 1e3 * load.step_seconds),
            ("ms a prompt", 2, lambda load: 1e3 * load.prefill_seconds),
        )
    ]
    weights, workspace, cache = (
        f"{size / 1e9:.2f} GB" for size in (plan.weight_bytes, plan.workspace_bytes, plan.kv_bytes)
    )
    return [
        f"{plan.hardware.name}: one replica that encodes and answers",
        f"  mix: {parts}{whose}",
        f"  {f'{plan.mean_visual_tokens:.0f} visual tokens a request':36}"
        f"{'this mix':>12}{'all finest':>12}",
        *("".join(row) for row in rows),
        f"  {plan.ratio:.2f} x the requests of reading every picture at the finest scale",
        f"  memory: weights {weights}, workspace {workspace}, cache {cache} "
        f"({plan.load.kv_bytes / 2**20:.1f} MiB a request, {plan.finest.kv_bytes / 2**20:.1f} MiB "
        "at the finest scale)",
        "A roofline, computed and not measured: no scheduler, network or kernel launch is in it.",
        *(() if measured is None else _expected(plan, measured)),
    ]


def _expected(plan: Plan, measured: Path) -> list[str]:
    mixed, finest, where = achieved(measured)
    cached = mixed * plan.load.features_cached, finest * plan.finest.features_cached
    return [
        f"Measured on {where}: {mixed:.0%} of such a bound for a mix, {finest:.0%} all at the "
        f"finest scale; of this one, {cached[0]:.1f} and {cached[1]:.1f} requests/s with features "
        "cached.",
    ]
