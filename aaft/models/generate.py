"""Batched generation that computes every prompt once, however many samples it gets.

A row's tokens and log-probabilities depend on that row alone, to the bit on CPU (but where
`prefill` is given a start or `complete` told that they needn't): its padded widths come from its
own lengths, and only rows of equal widths share a batch (`aaft.models.batching`).
One thing more is needed: a matrix product of one or two rows rounds differently from the same
rows among others, so a decoding step of few rows computes some of them again. (Of models whose
attention is transformers' ``sdpa``, as `aaft.models.policy` loads all that have it.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from aaft.models import runtime
from aaft.models.attention import decoding
from aaft.models.batching import width, width_batches

DECODING = 2
"""Raised when the same prompts and seeds come to give other tokens: caches are keyed by it."""
MULTIPLE = 16
# Differences were seen for one and two rows, none from three on; a step of eight costs the same.
_FEWEST_ROWS = 8


@dataclass(frozen=True)
class Completion:
    """Generated ids without the end token. ``logprob`` sums over ``ids`` and the end token.

    ``logprob`` is under the untempered model and NaN for greedy decoding; ``ended`` is whether
    the end token was reached before the limit; ``tokens`` counts what ``logprob`` sums over.
    """

    ids: list[int]
    ended: bool
    logprob: float
    tokens: int


class _Sample(LogitsProcessor):
    """Sample by inverse CDF from one random stream a row, keeping the log-probabilities.

    A stream of its own for each row makes a sample independent of its batch's other rows. The
    processor forces its choice, so that greedy search carries it out.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._device = device
        self.logprobs: list[torch.Tensor] = []

    def __call__(
        self,
        input_ids: torch.Tensor,  # noqa: ARG002 - the processor's signature
        scores: torch.Tensor,
    ) -> torch.Tensor:
        scores = scores.float()
        cdf = (scores / self._temperature).softmax(-1).cumsum(-1)
        draws = torch.stack([torch.rand(1, generator=g) for g in self._streams]).to(self._device)
        # Scaling by the last value keeps a draw near 1 inside the vocabulary despite rounding.
        chosen = torch.searchsorted(cdf, draws * cdf[:, -1:]).clamp(max=scores.shape[-1] - 1)
        logprobs = scores.gather(1, chosen)[:, 0] - scores.logsumexp(-1)
        self.logprobs.append(logprobs.cpu())
        return scores.fill_(float("-inf")).scatter_(1, chosen, 0.0)


def prompt_batches(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield lists of indices into ``prompts``, of equal padded width, widest first."""
    lengths = [len(prompt) for prompt in prompts]
    # The widest need the most memory: if it is short, that shows at once.
    for _, batch in reversed(list(width_batches(lengths, batch_size, MULTIPLE))):
        yield batch


def decoded_by() -> str:
    """What tokens depend on beside model, prompt and seed: this code, and what it multiplies in."""
    return f"decoding {DECODING} in {runtime.compute_dtype(runtime.device())}"


@torch.inference_mode()
def prefill(
    model: Any, prompts: Sequence[Sequence[int]], start: Any = None
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Run all but the last token of each prompt.

    Args:
        model: causal language model.
        prompts: ``B`` lists of token ids, of one batch of ``prompt_batches`` or of equal width.
        start: `read_start` of the first tokens that all prompts have in common, fewer than the
            shortest has; left as it is. The padding stands behind them.

    Returns:
        ``(ids, mask, cache)``: padded ids and mask ``[B, T]``, every row's last token in the last
        column, and the key-value cache of their first ``T - 1`` positions.
    """
    shared = 0 if start is None else start.get_seq_length()
    padded = shared + width(max(map(len, prompts)) - shared, MULTIPLE)
    ids = torch.zeros(len(prompts), padded, dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[:, :shared] = torch.tensor(prompts[0][:shared])
    mask[:, :shared] = 1
    for row, prompt in enumerate(prompts):
        own = padded - (len(prompt) - shared)
        ids[row, own:] = torch.tensor(prompt[shared:])
        mask[row, own:] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = copy.deepcopy(start)
    if cache is not None:
        cache.batch_repeat_interleave(len(prompts))
    out = model.base_model(
        input_ids=ids[:, shared:-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, shared:-1],
        past_key_values=cache,
        use_cache=True,
    )
    return ids, mask, out.past_key_values


@torch.inference_mode()
def read_start(model: Any, ids: Sequence[int]) -> Any:
    """The key-value cache of the first tokens of a prompt, as one row."""
    row = torch.tensor([ids], device=model.device)
    return model.base_model(input_ids=row, use_cache=True).past_key_values


@torch.inference_mode()
def response_logprobs(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any, responses: Sequence[list[int]]
) -> list[float]:
    """Sum of log-probabilities of one response for each prefilled prompt.

    Args:
        model: causal language model.
        ids: left-padded prompts ``[B, T]``.
        mask: their attention mask ``[B, T]``.
        cache: key-value cache of the first ``T - 1`` positions; left as it is.
        responses: ``B`` lists of token ids, the end token included.
    """
    sums = [0.0] * len(responses)
    lengths = [len(response) for response in responses]
    for padded, rows in width_batches(lengths, len(responses), MULTIPLE):
        part = copy.deepcopy(cache)
        if len(rows) < len(responses):
            part.batch_select_indices(torch.tensor(rows, device=ids.device))
        found = _tail_logprobs(
            model, ids[rows], mask[rows], part, [responses[i] for i in rows], padded
        )
        for row, total in zip(rows, found, strict=True):
            sums[row] = total
    return sums


def _tail_logprobs(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: Any,
    responses: Sequence[list[int]],
    padded: int,
) -> list[float]:
    """``response_logprobs`` for responses padded to one width; consumes ``cache``."""
    tail = torch.zeros(len(responses), padded, dtype=torch.long)
    valid = torch.zeros(len(responses), padded, dtype=torch.bool)
    for row, response in enumerate(responses):
        tail[row, : len(response)] = torch.tensor(response)
        valid[row, : len(response)] = True
    tail, valid = tail.to(model.device), valid.to(model.device)
    full_mask = torch.cat([mask, valid[:, :-1].long()], dim=1)
    positions = (full_mask.cumsum(-1) - 1)[:, ids.shape[1] - 1 :]
    hidden = model.base_model(
        input_ids=torch.cat([ids[:, -1:], tail[:, :-1]], dim=1),
        attention_mask=full_mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    wanted = hidden[valid]
    enough = wanted.repeat(_times(len(wanted)), 1)
    logits = model.get_output_embeddings()(enough)[: len(wanted)].float()
    logprobs = torch.zeros(tail.shape, dtype=torch.float32, device=tail.device)
    logprobs[valid] = -torch.nn.functional.cross_entropy(logits, tail[valid], reduction="none")
    total: list[float] = logprobs.double().sum(1).tolist()
    return total


@torch.inference_mode()
def complete(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: Any,
    *,
    end_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[Sequence[int]] = (),
    independent: bool = True,
) -> list[list[Completion]]:
    """Continue prefilled prompts.

    Args:
        model: causal language model.
        ids: left-padded prompts ``[B, T]``.
        mask: their attention mask ``[B, T]``.
        cache: key-value cache of the first ``T - 1`` positions; consumed.
        end_id: the token that ends a response.
        max_new_tokens: limit of new tokens, the end token included.
        temperature: 0 is greedy.
        seeds: for sampling, ``B`` lists of ``K`` seeds, one a sample.
        independent: whether a row's tokens are to depend on that row alone, to the bit; few rows
            cost more then.

    Returns:
        ``B`` lists of one completion (greedy) or ``K`` (sampled).
    """
    copies = len(seeds[0]) if temperature > 0 else 1
    times = _times(len(ids) * copies) if independent else 1
    if copies * times > 1:
        cache.batch_repeat_interleave(copies * times)
        ids = ids.repeat_interleave(copies * times, 0)
        mask = mask.repeat_interleave(copies * times, 0)
    sampler = None
    if temperature > 0:
        streams = [seed for row in seeds for seed in [*row] * times]
        sampler = _Sample(streams, temperature, model.device)
    # What this leaves open, transformers would fill in from the model's own settings: a repetition
    # penalty there would make the log-probabilities those of another distribution.
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_id, pad_token_id=end_id
    )
    model.generation_config = settings
    with decoding():
        sequences = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            logits_processor=LogitsProcessorList([sampler] if sampler else []),
            generation_config=settings,
        )[:, ids.shape[1] :].tolist()
    completions = []
    for row, generated in enumerate(sequences):
        ended = end_id in generated
        kept = generated[: generated.index(end_id)] if ended else generated
        tokens = len(kept) + ended
        logprob = float("nan")
        if sampler:
            logprob = float(sum(step[row].double() for step in sampler.logprobs[:tokens]))
        completions.append(Completion(kept, ended, logprob, tokens))
    step = copies * times
    return [completions[i : i + copies] for i in range(0, len(completions), step)]


def _times(rows: int) -> int:
    """How often to compute ``rows`` rows so that they are enough."""
    return -(-_FEWEST_ROWS // rows)
