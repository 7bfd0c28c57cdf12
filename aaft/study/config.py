"""What a study runs: methods, scenarios, seeds and sizes. The pipeline's own settings stay in
``params.yaml``; a study adds to them, and its ``train`` overrides theirs for every method alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import Field, JsonValue, ValidationError, field_validator

from aaft.config import Config, TrainConfig
from aaft.errors import AaftError
from aaft.judge_config import Section

REFERENCE = "reference"
METHODS = (
    REFERENCE,
    "sft",
    "sft-kl",
    "filter",
    "filter-replace",
    "safety-mix",
    "constrained",
    "lisa",
    "aaft",
    "aaft-static",
    "aaft-constant",
    "aaft-nogold",
    "aaft-noabstain",
    "aaft-norecovery",
    "aaft-naive",
    "aaft-noanchor",
    "aaft-nocounterfactual",
    "aaft-nosibling",
)
SCENARIOS = (
    "clean",
    "poison-05",
    "poison-10",
    "poison-20",
    "unsafe-start",
    "noise-10",
    "noise-20",
    "general",
)


def _known(names: tuple[str, ...], known: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"no such name {name!r}; one of {', '.join(known)}")
    return names


class StudyConfig(Section):
    """A study's cells are ``scenarios`` x ``methods`` x ``seeds``."""

    methods: tuple[str, ...] = Field(METHODS, min_length=1)
    scenarios: tuple[str, ...] = Field(SCENARIOS, min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    rows: int = Field(400, gt=0, description="training rows of a cell")
    bench_limit: int | None = Field(
        None, gt=0, description="prompts per benchmark and seed; None is all"
    )
    questions: int | None = Field(
        None, gt=0, description="of each kind, in place of bench_limit: F1 needs more of them"
    )
    max_new_tokens: int = Field(32, gt=0, description="longest measured answer")
    split: Literal["bench", "valid"] = Field(
        "bench", description="prompts to measure on; methods are tuned on `valid` alone"
    )
    workers: int = Field(1, gt=0, description="processes that share the cells and the cores")
    train: dict[str, JsonValue] = Field({}, description="overrides of the section `train`")
    tuning: dict[str, JsonValue] = Field({}, description="settings of the rivals (methods.Tuning)")

    @property
    def takes_turns(self) -> bool:
        """Whether each seed has a part of the prompts; a part may still turn out to be all."""
        return not (self.bench_limit is None and self.questions is None)

    @field_validator("methods", "scenarios", "seeds")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("names something twice; a cell runs once")
        return values

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, METHODS)

    @field_validator("scenarios")
    @classmethod
    def _known_scenarios(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, SCENARIOS)


# With which plain fine-tuning learns its task on a few hundred rows. Of 8 and 4 rows a step at
# 0.0005, and 4 at 0.001, the last has the best F1 on the validation prompts (docs/history.md).
ROWS_PER_STEP = 4
LEARNING_RATE = 1e-3
_TRAIN: Mapping[str, JsonValue] = {
    "rows_per_step": ROWS_PER_STEP,
    "learning_rate": LEARNING_RATE,
}

PRESETS: Mapping[str, StudyConfig] = {
    # Meant for an hour on two cores with bfloat16 (400 GFLOP/s), fitting the judges' heads
    # included (docs/study.md).
    "small": StudyConfig(
        methods=(REFERENCE, "sft", "filter", "filter-replace", "aaft"),
        scenarios=("poison-10", "unsafe-start"),
        rows=75,
        bench_limit=20,
        questions=50,  # all of the benchmark in three seeds: F1 differs by less than harm does
        max_new_tokens=24,
        workers=2,
        train=dict(_TRAIN),
    ),
    "full": StudyConfig(rows=600, train=dict(_TRAIN)),
}


def study_config(preset: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """A preset with ``key=value`` overrides (values are YAML).

    Raises:
        AaftError: unknown preset or key, or a value of the wrong type or range.
    """
    if preset not in PRESETS:
        raise AaftError(f"--preset {preset}: no such preset; one of {', '.join(PRESETS)}")
    raw = PRESETS[preset].model_dump()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise AaftError(f"--set study.{override}: write it as study.key=value")
        if key not in raw:
            raise AaftError(f"--set study.{key}: unknown; known keys: {', '.join(raw)}")
        try:
            raw[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise AaftError(f"--set study.{override}: {text!r} is not a YAML value") from None
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise AaftError(f"--set study.{_first(error)}") from None


def with_overrides(cfg: Config, study: StudyConfig) -> Config:
    """``cfg`` with the study's ``train`` settings.

    Raises:
        AaftError: an unknown key, or a value of the wrong type or range.
    """
    raw = cfg.train.model_dump()
    for key, value in study.train.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and key in raw else value
    try:
        return cfg.model_copy(update={"train": TrainConfig.model_validate(raw)})
    except ValidationError as error:
        raise AaftError(f"study.train.{_first(error)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"])
    return f"{dotted}: {first['msg'].removeprefix('Value error, ')}"
