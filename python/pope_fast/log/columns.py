"""What each column of a log is taken for: the roles, their types, and how they are found in a schema."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import pyarrow as pa

from pope_fast.errors import SchemaError
from pope_fast.log.arrow_types import DataType

__all__ = ["ColumnMap", "Fault", "PolicySpec", "Resolution", "preferred_type", "resolve", "type_fault"]

PolicySpec = Mapping[str, str] | Sequence[str] | Sequence[tuple[str, str]]

#: Role -> the kind of value that it holds.
ROLE_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "prompt_id": "key",
        "prompt": "text",
        "prompt_ids": "ids",
        "completion": "text",
        "completion_ids": "ids",
        "reward": "reward",
        "behavior_logprob": "number",
        "behavior_token_logprobs": "tokens",
        "cluster": "key",
        "group": "key",
        "annotator": "any",
        "count": "number",
        "num_tokens": "number",
        "baseline": "number",
        "embedding": "vectors",
        "logger": "any",
        "sampling": "any",
        "finish_reason": "any",
    }
)

#: Roles that exist once per target policy, written ``role/NAME``; without a name the policy is "target".
POLICY_ROLE_KINDS: Mapping[str, str] = MappingProxyType(
    {"target_logprob": "number", "target_token_logprobs": "tokens", "baseline_mean": "number"}
)

#: Names that stand for the reward when there is no column of that name and exactly one of these.
REWARD_ALIASES = ("label", "score", "rating", "upvotes")

DEFAULT_POLICY = "target"

_KIND_WORDS = {
    "key": "integers or strings",
    "ids": "lists of integers",
    "reward": "numbers or booleans",
    "number": "numbers",
    "tokens": "lists of floating-point numbers",
    "vectors": "lists of numbers, all of one length",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a log.

    Attributes
    ----------
    column : str or None
        The column at fault, under the name that it has in the log.
    row : int or None
        The first row at fault, counted from 0 in reading order; None if the fault is not one of a row.
    message, remedy : str
        What is wrong, and what to do about it.
    count : int
        Number of rows with this fault.
    rows : tuple of int
        The first few of them.
    """

    column: str | None
    row: int | None
    message: str
    remedy: str
    count: int = 1
    rows: tuple[int, ...] = ()

    def to_error(self) -> SchemaError:
        """Return the fault as the error that reading the log raises for it."""
        return SchemaError(self.message, column=self.column, row=self.row, remedy=self.remedy)

    def to_dict(self) -> dict[str, object]:
        """Return the fault as plain values for JSON."""
        return {
            "column": self.column,
            "row": self.row,
            "message": self.message,
            "remedy": self.remedy,
            "count": self.count,
            "rows": list(self.rows),
        }


@dataclass(frozen=True, slots=True)
class ColumnMap(Mapping[str, str]):
    """Role -> actual column name; the roles of a policy are written ``target_logprob/NAME``.

    Attributes
    ----------
    roles : mapping of str to str
        The map itself, read only.
    """

    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", MappingProxyType(dict(self.roles)))

    def __getitem__(self, role: str) -> str:
        return self.roles[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.roles)

    def __len__(self) -> int:
        return len(self.roles)

    def role_of(self, column: str) -> str | None:
        """Return the first role that an actual column plays, None if it plays none."""
        return next((role for role, actual in self.roles.items() if actual == column), None)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What :func:`resolve` found: the map, the policies, and everything wrong with the schema."""

    columns: ColumnMap
    policies: tuple[str, ...]
    faults: tuple[Fault, ...]


def split_role(role: str) -> tuple[str, str | None]:
    """Split ``target_logprob/NAME`` into its stem and its policy; the policy is None for other roles."""
    stem, slash, name = role.partition("/")
    if stem in POLICY_ROLE_KINDS:
        return stem, name if slash else DEFAULT_POLICY
    return role, None


def kind_of(role: str) -> str | None:
    """Return the kind of value that a role holds, None for an unknown role."""
    stem, policy = split_role(role)
    return ROLE_KINDS.get(role) if policy is None else POLICY_ROLE_KINDS[stem]


def resolve(
    schema: pa.Schema,
    columns: Mapping[str, str] | None = None,
    policies: PolicySpec | None = None,
) -> Resolution:
    """Find the roles of a schema's columns.

    Parameters
    ----------
    schema : pyarrow.Schema
        The log's columns.
    columns : mapping of str to str, optional
        Role -> actual column; these win over columns that carry a role's own name.
    policies : mapping of str to str, or sequence of str, or sequence of (str, str), optional
        The target policies: NAME -> column, or the names of those in the log to keep.  Without it every
        ``target_logprob/NAME`` and ``target_token_logprobs/NAME`` is a policy.

    Returns
    -------
    Resolution
        Faults are collected, not raised: a validation reports them all.
    """
    faults: list[Fault] = []
    names = list(schema.names)
    roles = _explicit(names, columns or {}, faults)
    explicit = frozenset(roles)
    for name in names:
        role = implied_role(name)
        # Naming one representation (sequence or tokens) by hand means: not the other one that is there too.
        if role is not None and role not in roles and _sibling(role) not in explicit:
            roles[role] = name
    _alias_reward(names, roles, faults)
    found = _policies(names, roles, policies, columns or {}, faults)
    roles = _settle_kinds(schema, roles)
    for name, times in Counter(names).items():
        if times > 1 and (name in roles.values() or implied_role(name) is not None):
            what = "two policies of one name" if split_role(name)[1] is not None else "duplicate column"
            faults.append(
                Fault(name, None, f"{what}: the log has {times} columns {name!r}", "rename or drop all but one")
            )
    for role, actual in roles.items():
        fault = None if names.count(actual) != 1 else type_fault(role, actual, schema.field(actual).type)
        if fault is not None:
            faults.append(fault)
    return Resolution(ColumnMap(roles), found, tuple(faults))


def implied_role(name: str) -> str | None:
    """Return the role that a column's own name implies."""
    if name in ROLE_KINDS:
        return name
    stem, policy = split_role(name)
    if policy is None or policy == "":
        return None
    return f"{stem}/{policy}"


def _explicit(names: Sequence[str], columns: Mapping[str, str], faults: list[Fault]) -> dict[str, str]:
    roles: dict[str, str] = {}
    known = [*ROLE_KINDS, *(f"{stem}/NAME" for stem in POLICY_ROLE_KINDS)]
    for role, actual in columns.items():
        stem, policy = split_role(role)
        canonical = role if policy is None else f"{stem}/{policy}"
        if policy == "" or kind_of(role) is None:
            close = difflib.get_close_matches(role, [*ROLE_KINDS, *POLICY_ROLE_KINDS], n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            faults.append(Fault(actual, None, f"unknown role {role!r}", f"{hint}the roles are {', '.join(known)}"))
        elif canonical in roles:
            faults.append(
                Fault(actual, None, f"two policies of one name: {policy!r}", "give every policy its own name")
            )
        elif actual not in names:
            faults.append(_no_column(actual, names, stem, f"the column map takes it for {role!r}"))
        else:
            roles[canonical] = actual
    return roles


def _no_column(actual: str, names: Sequence[str], stem: str, why: str) -> Fault:
    # A column whose own name says that it is something else is not what was meant.
    meant = [name for name in names if split_role(implied_role(name) or stem)[0] == stem]
    close = difflib.get_close_matches(actual, meant, n=1, cutoff=0.5)
    remedy = f"did you mean {close[0]!r}?" if close else f"the columns are {', '.join(names) or 'none'}"
    return Fault(actual, None, f"no such column in the log ({why})", remedy)


def _alias_reward(names: Sequence[str], roles: dict[str, str], faults: list[Fault]) -> None:
    if "reward" in roles:
        return
    aliases = [name for name in REWARD_ALIASES if name in names and name not in roles.values()]
    if len(aliases) == 1:
        roles["reward"] = aliases[0]
    elif aliases:
        listed = ", ".join(map(repr, aliases))
        remedy = f"say which with columns={{'reward': {aliases[0]!r}}} (--column reward={aliases[0]})"
        faults.append(Fault("reward", None, f"several columns could be the reward: {listed}", remedy))


def _policies(
    names: Sequence[str],
    roles: dict[str, str],
    policies: PolicySpec | None,
    columns: Mapping[str, str],
    faults: list[Fault],
) -> tuple[str, ...]:
    """Settle the target policies; writes their roles into ``roles`` and drops those not asked for."""
    mapped = {split_role(role)[1] for role in columns}
    if DEFAULT_POLICY not in mapped:
        for stem in ("target_logprob", "target_token_logprobs"):
            if stem in names and f"{stem}/{DEFAULT_POLICY}" in names:
                message = f"two policies of one name: {stem!r} and '{stem}/{DEFAULT_POLICY}' are both 'target'"
                faults.append(Fault(stem, None, message, "rename one of the columns"))
    available = dict.fromkeys(
        policy
        for role in roles
        for stem, policy in [split_role(role)]
        if policy is not None and stem != "baseline_mean"
    )
    if policies is None:
        return tuple(available)
    if isinstance(policies, str):
        policies = [policies]
    chosen: dict[str, str | None] = {}
    pairs: list[tuple[str, str | None]] = (
        list(policies.items())
        if isinstance(policies, Mapping)
        else [(item, None) if isinstance(item, str) else (item[0], item[1]) for item in policies]
    )
    for name, actual in pairs:
        if name in chosen:
            fault = Fault(actual, None, f"two policies of one name: {name!r}", "give every policy its own name")
            faults.append(fault)
            continue
        if not name:
            faults.append(Fault(actual, None, "a policy without a name", "write NAME=COLUMN"))
            continue
        if actual is None and name not in available:
            listed = ", ".join(map(repr, available)) or "none"
            message = f"no policy {name!r} in the log; it has {listed}"
            remedy = f"map it to a column with policies={{{name!r}: 'YOUR_COLUMN'}} (--policy {name}=COLUMN)"
            faults.append(Fault(f"target_logprob/{name}", None, message, remedy))
            continue
        if actual is not None and actual not in names:
            faults.append(_no_column(actual, names, "target_logprob", f"it was named for policy {name!r}"))
            continue
        chosen[name] = actual
    for role in [role for role in roles if split_role(role)[1] is not None]:
        stem, policy = split_role(role)
        if policy not in chosen or (chosen[policy] is not None and stem != "baseline_mean"):
            del roles[role]
    for name, actual in chosen.items():
        if actual is not None:
            roles[f"target_logprob/{name}"] = actual
    return tuple(chosen)


def _sibling(role: str) -> str | None:
    """Return the role that holds the same log-probs in the other representation."""
    stem, policy = split_role(role)
    siblings = {
        "behavior_logprob": "behavior_token_logprobs",
        "behavior_token_logprobs": "behavior_logprob",
        "target_logprob": f"target_token_logprobs/{policy}",
        "target_token_logprobs": f"target_logprob/{policy}",
    }
    return siblings.get(stem)


def _settle_kinds(schema: pa.Schema, roles: Mapping[str, str]) -> dict[str, str]:
    """Take a list column that was mapped as a sequence log-prob for what it is: token log-probs."""
    settled: dict[str, str] = {}
    for role, actual in roles.items():
        sibling = _sibling(role)
        once = schema.names.count(actual) == 1
        if (
            sibling is not None
            and role.startswith(("behavior_logprob", "target_logprob"))
            and actual != role
            and once
            and is_list_type(schema.field(actual).type)
        ):
            settled[sibling] = actual
        else:
            settled.setdefault(role, actual)
    return settled


def bare_type(type_: DataType) -> DataType:
    """Strip extension, dictionary and run-end encodings off a type."""
    while True:
        if isinstance(type_, pa.BaseExtensionType):
            type_ = type_.storage_type
        elif isinstance(type_, (pa.DictionaryType, pa.RunEndEncodedType)):
            type_ = type_.value_type
        else:
            return type_


def is_list_type(type_: DataType) -> bool:
    """Tell whether a type is one of Arrow's list layouts."""
    type_ = bare_type(type_)
    return (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    )


def is_text_type(type_: DataType) -> bool:
    """Tell whether a type holds strings or bytes."""
    type_ = bare_type(type_)
    return (
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_fixed_size_binary(type_)
        or pa.types.is_binary_view(type_)
    )


def is_number_type(type_: DataType) -> bool:
    """Tell whether a type is an integer, a floating-point or a decimal number."""
    type_ = bare_type(type_)
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)


def _matches(kind: str, type_: DataType) -> bool:
    type_ = bare_type(type_)
    if kind in ("any", "text") or pa.types.is_null(type_):
        return True  # any text can be hashed; a column of nulls alone is reported by row, not by type
    if kind == "key":
        return pa.types.is_integer(type_) or pa.types.is_boolean(type_) or is_text_type(type_)
    if kind == "number":
        return is_number_type(type_)
    if kind == "reward":
        return is_number_type(type_) or pa.types.is_boolean(type_)
    if not is_list_type(type_):
        return False
    value = bare_type(type_.value_type)
    if pa.types.is_null(value):
        return True
    return pa.types.is_integer(value) if kind == "ids" else is_number_type(value)


def type_fault(role: str, actual: str, type_: DataType) -> Fault | None:
    """Return the fault of a column whose type cannot hold its role, None if it can."""
    kind = kind_of(role)
    if kind is None or _matches(kind, type_):
        return None
    as_role = "" if actual == role else f" for {role!r}"
    remedy = f"cast the column to {_KIND_WORDS[kind]}"
    bare = bare_type(type_)
    if kind == "key" and pa.types.is_floating(bare):
        remedy += " (integers that became floats on the way, as in pandas, have missing values: fill them first)"
    return Fault(actual, None, f"wrong type {type_}{as_role}: {_KIND_WORDS[kind]} are needed", remedy)


def preferred_type(role: str | None, type_: DataType) -> DataType:
    """Return the type to which a text format's column is read.

    Types of JSON lines and CSV are inferred from the head of the file, where a reward may look like an
    integer and a column may be empty; what the role needs decides instead.
    """
    kind = kind_of(role) if role is not None else None
    bare = bare_type(type_)
    if kind in ("number", "reward") and (pa.types.is_integer(bare) or pa.types.is_null(bare)):
        return pa.float64()
    if kind in ("key", "text") and pa.types.is_null(bare):
        return pa.string()
    if kind in ("tokens", "vectors") and (pa.types.is_null(bare) or is_list_type(bare)):
        numeric = pa.types.is_null(bare) or is_number_type(bare.value_type) or pa.types.is_null(bare.value_type)
        return pa.list_(pa.float64()) if numeric else type_
    if kind == "ids" and (pa.types.is_null(bare) or (is_list_type(bare) and pa.types.is_null(bare.value_type))):
        return pa.list_(pa.int64())
    if role == "sampling" and pa.types.is_struct(bare):
        return pa.struct(
            [f.with_type(pa.float64()) if is_number_type(f.type) or pa.types.is_null(f.type) else f for f in bare]
        )
    return type_
