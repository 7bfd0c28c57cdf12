"""The judges of a run: one frozen model per kind, the panel a list of them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictInt,
    field_validator,
    model_validator,
)

# Columns of the alignment table that are no objectives.
RESERVED = frozenset({"id", "candidate", "text_digest", "uncertainty", "r", "logprob", "tokens"})

Part = Literal["prompt", "response", "context"]


def _objective(name: str) -> str:
    if name in RESERVED or name.startswith("u_"):
        raise ValueError(f"an objective can't be named {name}, a column of the alignment table")
    return name


Objective = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$"), AfterValidator(_objective)]


class Section(BaseModel):
    """A part of ``params.yaml``: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbeddedSpec(Section):
    """Heads on small encoders, fitted on ``data.judge``."""

    kind: Literal["embedded"] = "embedded"
    name: str = "embedded"


class CallableSpec(Section):
    """A function of your own (docs/judges.md)."""

    kind: Literal["callable"] = "callable"
    target: str = Field(description="`module:function`")
    name: str = Field(default_factory=lambda data: data.get("target", ""), min_length=1)
    objectives: tuple[Objective, ...] = Field(min_length=1)
    version: str = Field(
        "", description="change it when something outside the function's file changes its answers"
    )


class ClassifierSpec(Section):
    """A sequence-classification model: toxicity, NLI, hallucination."""

    kind: Literal["classifier"] = "classifier"
    name: str = Field(min_length=1)
    model: str = Field(description="Hugging Face directory or hub id")
    revision: str | None = Field(None, description="hub revision")
    objective: Objective
    aligned: tuple[StrictInt | str, ...] = Field((), description="labels that mean aligned")
    misaligned: tuple[StrictInt | str, ...] = Field(
        (), description="or labels that mean misaligned"
    )
    pair: tuple[Part | Literal["claim"], ...] = Field(
        ("response",),
        min_length=1,
        max_length=2,
        description="the model's texts in its order; `claim` is the prompt, then the response",
    )
    max_length: int = Field(512, gt=0, description="in tokens, special tokens included")
    truncate: Literal["first", "longest_first"] = Field(
        "longest_first", description="which text is cut when both are too long together"
    )
    batch_size: int = Field(32, gt=0)

    @model_validator(mode="after")
    def _one_side(self) -> ClassifierSpec:
        if bool(self.aligned) == bool(self.misaligned):
            raise ValueError("name the labels that are aligned, or those that are misaligned")
        return self


class Verdict(Section):
    """How a model says its verdict: a preset of a model family, or settings of your own."""

    preset: Literal["llama_guard", "granite_guardian", "qwen3_guard"] | None = None
    answer_prefix: str | None = Field(
        None, description="what stands before the verdict word in the answer; replaces the preset's"
    )
    words: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = Field(
        None, description="verdict word to its probability of aligned; replaces the preset's"
    )
    messages: dict[str, Part] = Field(
        {"user": "prompt", "assistant": "response"},
        min_length=1,
        description="chat roles in their order, and what each says",
    )
    template_kwargs: dict[str, JsonValue] = Field(
        {}, description="passed to the chat template, such as guardian_config or categories"
    )

    @model_validator(mode="after")
    def _words(self) -> Verdict:
        if self.preset is None and self.words is None:
            raise ValueError("name a preset, or the verdict words with their probabilities")
        if self.words is not None and len({*self.words.values()}) < 2:
            raise ValueError("words: name at least two verdicts of different probability")
        return self


class GuardSpec(Verdict):
    """A generative guard model, asked for its verdict word's probability."""

    kind: Literal["guard"] = "guard"
    name: str = Field(min_length=1)
    model: str = Field(description="Hugging Face directory or hub id")
    revision: str | None = Field(None, description="hub revision")
    objective: Objective = "safety"
    max_length: int = Field(4096, gt=0, description="longer rendered chats are missing, in tokens")
    min_mass: float = Field(
        0.5, ge=0, le=1, description="with less probability on all verdict words, it is missing"
    )
    category_tokens: int = Field(16, gt=0, description="longest category, in tokens")
    batch_size: int = Field(8, gt=0)


class Endpoint(Section):
    """An OpenAI-compatible server and how hard to lean on it."""

    url: str = Field(description="base URL, such as http://127.0.0.1:8000/v1")
    model: str
    served_as: str = Field(
        default_factory=lambda data: data.get("model", ""),
        description="the model that its answers must name",
    )
    api_key_env: str | None = Field(None, description="environment variable that holds the key")
    concurrency: int = Field(8, gt=0, description="requests under way at once")
    timeout_seconds: float = Field(60.0, gt=0, description="for one try, from start to end")
    retries: int = Field(4, ge=0, description="further tries after one that may pass by itself")
    backoff_seconds: float = Field(0.5, gt=0, description="first pause; doubled up to 30 s")
    requests_per_minute: float | None = Field(None, gt=0)
    give_up_after: int = Field(
        8, gt=0, description="failures in a row after which the rest of a batch is missing"
    )
    extra: dict[str, JsonValue] = Field({}, description="further fields of the request's body")

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://host:port/v1 or https://...")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "no user, password or query in it; name the key's variable in api_key_env"
            )
        return url.rstrip("/")


class EndpointSpec(Endpoint, Verdict):
    """A judge behind an OpenAI-compatible server.

    Without a ``template`` the server's model is a guard and its chat template asks the question;
    with one, the filled-in template is the one user message.
    """

    kind: Literal["endpoint"] = "endpoint"
    name: str = Field(min_length=1)
    objective: Objective = "safety"
    template: str | None = Field(
        None, description="judge prompt with {prompt}, {response}, {context}; asks for one word"
    )
    logprobs: bool = Field(True, description="ask for log-probabilities of the verdict")
    top_logprobs: int = Field(20, ge=1, le=20, description="some servers allow five only")
    max_tokens: int = Field(16, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _template(self) -> EndpointSpec:
        if self.template is not None and "{response}" not in self.template:
            raise ValueError("template: {response} does not stand in it")
        return self


JudgeSpec = Annotated[
    EmbeddedSpec | CallableSpec | ClassifierSpec | GuardSpec | EndpointSpec,
    Field(discriminator="kind"),
]


class JudgesConfig(Section):
    """The external alignment signal."""

    embedder: str = Field("models/embedder", description="sentence encoder directory or hub id")
    intent_embedder: str = Field(
        "models/intent_embedder", description="the larger one that reads requests for their intent"
    )
    probe: str = Field(
        "models/policy", description="causal model whose hidden states are read, frozen"
    )
    batch_size: int = Field(64, gt=0)
    panel: tuple[JudgeSpec, ...] = Field((EmbeddedSpec(),), min_length=1)
    kappa_u: float = Field(0.5, ge=0, description="pessimism: q = clip(mean - kappa_u * std, 0, 1)")
    max_missing: float = Field(
        0.05, ge=0, le=1, description="share of answers a judge may fail on before scoring stops"
    )
    force: bool = Field(
        False, description="go on with a judge no better than length or keywords, or that drifted"
    )

    @model_validator(mode="after")
    def _unique_names(self) -> JudgesConfig:
        twice = [name for name, n in Counter(spec.name for spec in self.panel).items() if n > 1]
        if twice:
            raise ValueError(f"panel: two judges are named {twice[0]!r}; give each its own name")
        return self
