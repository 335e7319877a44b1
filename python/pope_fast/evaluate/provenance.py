"""Were the log-probs of a target policy and of the behavior policy made alike? What the log's schema says of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from pope_fast.evaluate.findings import Finding
from pope_fast.log import ColumnMap
from pope_fast.score.metadata import Provenance, read_provenance

__all__ = ["provenance_findings"]


_BEHAVIOR = ("behavior_logprob", "behavior_token_logprobs")


def provenance_findings(
    schemas: Sequence[pa.Schema], columns: ColumnMap, policies: Iterable[str]
) -> dict[str, list[Finding]]:
    """Compare where the log-probs of each target policy and of the behavior policy come from.

    Parameters
    ----------
    schemas
        Those of the log's files, with the metadata that scoring left in them; policies are compared by the first.
    columns
        Role -> column.
    policies
        Target policies.

    Returns
    -------
    dict of str to list of Finding
        By policy. Other tokens (tokenizer, chat template, or text that was tokenized again) are a caution, for weights
        then compare different responses; another engine, precision, attention or version is information: it makes
        weights noisy. Files of one log that were scored differently are a caution.
    """
    by_file = [read_provenance(schema) for schema in schemas]
    known = by_file[0]
    behavior = _of(known, columns, *_BEHAVIOR)
    found: dict[str, list[Finding]] = {}
    for policy in policies:
        roles = (f"target_logprob/{policy}", f"target_token_logprobs/{policy}")
        target = _of(known, columns, *roles)
        found[policy] = [
            finding
            for whose, of_whom in (("this policy", roles), ("the behavior policy", _BEHAVIOR))
            for finding in _mixed(whose, [_of(made, columns, *of_whom) for made in by_file])
        ]
        if target is None and behavior is None:
            continue
        if target is None or behavior is None:
            found[policy] += _one_sided(target, behavior)
            continue
        grave, mild = _other_tokens(target, behavior), _other_numerics(target, behavior)
        if grave:
            message = (
                f"this policy and the behavior policy were scored on different tokens: {'; '.join(grave)}. Their "
                "log-probs may not be of the same response"
            )
            found[policy].append(Finding("different_tokens", "caution", message))
        if mild:
            message = (
                f"this policy and the behavior policy were scored differently: {'; '.join(mild)}. That makes weights "
                "noisy; an A/A column (aa_policy=) or fresh draws (fresh=) tell by how much"
            )
            found[policy].append(Finding("different_scorers", "info", message))
    return found


def _of(known: Mapping[str, Provenance], columns: ColumnMap, *roles: str) -> Provenance | None:
    """Return what is known of the first of these roles that the log has."""
    column = next((columns[role] for role in roles if role in columns), None)
    return None if column is None else known.get(column)


def _mixed(whose: str, by_file: Sequence[Provenance | None]) -> list[Finding]:
    """Say whether the files of a log were scored by different models or in different ways."""
    # How many rows a file has, and what happened to them, is the file's own.
    ways = [None if made is None else replace(made, rows=None, errors=None, boundary_mismatches=0) for made in by_file]
    others = sum(way != ways[0] for way in ways)
    if not others:
        return []
    message = (
        f"the log-probs of {whose} were not made alike in all files of the log: {others} of {len(ways)} differ from "
        "the first in model, tokenizer, precision or version, or it is not noted how they were made"
    )
    return [Finding("mixed_origins", "caution", message)]


def _one_sided(target: Provenance | None, behavior: Provenance | None) -> list[Finding]:
    """One of the two was scored by us; of the other nothing is known, as of log-probs that a server logged."""
    scored, other = ("target", "behavior") if behavior is None else ("behavior", "target")
    made = target if behavior is None else behavior
    if made is None or made.engine == "column":
        return []
    message = (
        f"the {scored} log-probs were made with {_engine(made)}, and nothing is noted of how the {other} ones were: if "
        "by another engine or precision, weights are noisy; an A/A column (aa_policy=) or fresh draws (fresh=) tell"
    )
    return [Finding("different_scorers", "info", message)]


def _other_tokens(target: Provenance, behavior: Provenance) -> list[str]:
    """Say what may make the two policies' tokens differ."""
    found = []
    if _differ(target.tokenizer_fingerprint, behavior.tokenizer_fingerprint):
        found.append("another tokenizer")
    # A policy that was given stored prompt tokens has no template of its own.
    if _differ(target.template_hash, behavior.template_hash):
        found.append("another chat template")
    again = {target.tokens, behavior.tokens} & {"retokenized"}
    if again and target.tokens != behavior.tokens:
        which = "this policy's" if target.tokens == "retokenized" else "the behavior policy's"
        found.append(f"{which} are those of the text, the other's those that were sampled")
    if _differ(target.eos, behavior.eos) and not {"as stored", "sampled"} & {target.eos, behavior.eos}:
        found.append(f"the end of a response counted {target.eos} and {behavior.eos}")
    return found


def _other_numerics(target: Provenance, behavior: Provenance) -> list[str]:
    """Say what makes two computations of one log-prob differ."""
    found = [
        f"{what} {ours} and {theirs}"
        for what, ours, theirs in (
            ("engine", target.engine, behavior.engine),
            ("dtype", target.dtype, behavior.dtype),
            ("attention", target.attention, behavior.attention),
        )
        if _differ(ours, theirs)
    ]
    libraries = sorted(set(target.versions) & set(behavior.versions) - {"pope_fast"})
    found += [
        f"{library} {target.versions[library]} and {behavior.versions[library]}"
        for library in libraries
        if target.versions[library] != behavior.versions[library]
    ]
    return found


def _differ(ours: str | None, theirs: str | None) -> bool:
    """Whether both are known and differ."""
    return ours is not None and theirs is not None and ours != theirs


def _engine(made: Provenance) -> str:
    return " ".join(part for part in (made.engine, made.versions.get(made.engine), made.dtype) if part)
