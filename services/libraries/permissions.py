"""Who may do what with a library: one rule for every route. contract: libraries §5

What somebody holds is read for each question anew: grants, roles, and what a library allows
everybody. Each is a policy (a scope, what it gives, allow or deny), and casbin decides: one that
allows is needed, one that denies is enough for a no. `visible_to` says the same in SQL.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import casbin
from casbin.model import Model
from sqlalchemy import and_, func, or_, true
from sqlalchemy import select as select_columns
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import scopes
from services.libraries.models import Grant, Library, Person, RoleAssignment, TeamGroupMember
from services.libraries.settings import Settings
from services.libraries.states import (
    ALLOWED,
    GIVES,
    OF_LIBRARY,
    AccessLevel,
    Permission,
    Role,
    with_dependent,
)
from shared.callers import Caller
from shared.database import Sessions, remember
from shared.lookups import Lookup, Source
from shared.problems import Forbidden

# The name of a setting in a session: whether everybody counts as somebody who creates.
EVERYBODY_CREATES = "libraries.everybody_creates"

MODEL = """
[request_definition]
r = target, permission
[policy_definition]
p = scope, holding, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = keyMatch(r.target, p.scope) && touches(p.holding, p.eft, r.permission)
"""

HOLDINGS: dict[str, frozenset[Permission]] = {
    "administrator": frozenset(Permission),
    "creator": frozenset({Permission.CREATE}),
    "public_read": ALLOWED[AccessLevel.READ],
    "public_learning": frozenset({Permission.LEARN}),
    # In Studio whoever is active may try out what is readable. contract: §5.2 learn_from_library
    "public_read_learning": frozenset({Permission.LEARN}),
    **{f"grant:{level}": frozenset(gives) for level, gives in ALLOWED.items()},
    **{f"role:{role}": gives for role, gives in GIVES.items()},
}
DENIED = {holding: with_dependent(gives) for holding, gives in HOLDINGS.items()}
CLOSING = [role for role in Role if Permission.VIEW in DENIED[f"role:{role}"]]


@dataclass(frozen=True, slots=True)
class Policy:
    """One reason for a yes, or for a no."""

    scope: str
    holding: str
    denied: bool = False
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one person holds over some targets: library keys or scopes."""

    policies: tuple[Policy, ...]
    active: bool = True

    def allow(self, target: str, permission: Permission) -> bool:
        """The rule. What is public for learning is so for everybody, whoever they are."""
        if self._public_learning(target, permission):
            return True
        return self.active and _enforce(self.policies, target, permission)

    def reasons(self, target: str, permission: Permission) -> list[Policy]:
        """The policies that speak for or against, those that deny first."""
        found = [
            policy
            for policy in self.policies
            if _enforce([Policy(policy.scope, policy.holding)], target, permission)
            or (policy.denied and _denies(policy, target, permission))
        ]
        return sorted(found, key=lambda policy: not policy.denied)

    def _public_learning(self, target: str, permission: Permission) -> bool:
        public = Policy(target, "public_learning")
        return permission is Permission.LEARN and public in self.policies


def _touches(holding: str, effect: str, permission: str) -> bool:
    return permission in (DENIED if effect == "deny" else HOLDINGS)[holding]


def _enforcer() -> casbin.Enforcer:
    model = Model()
    model.load_model_from_text(MODEL)
    enforcer = casbin.Enforcer(model)
    enforcer.add_function("touches", _touches)
    return enforcer


# The rule is made once; policies are put in for each question and nothing of them is kept.
_RULE = _enforcer()


def _enforce(policies: Iterable[Policy], target: str, permission: Permission) -> bool:
    return _decide(tuple(policies), target, permission)


# The same question has the same answer, and casbin reads the rule anew for each.
@lru_cache(maxsize=10_000)
def _decide(policies: tuple[Policy, ...], target: str, permission: Permission) -> bool:
    rows = [[each.scope, each.holding, "deny" if each.denied else "allow"] for each in policies]
    assertion = _RULE.model.model["p"]["p"]
    assertion.policy = rows
    try:
        return bool(rows) and bool(_RULE.enforce(target, str(permission)))
    finally:
        assertion.policy = []


def _denies(policy: Policy, target: str, permission: Permission) -> bool:
    everything = Policy(scopes.EVERYTHING, "administrator")
    return not _enforce([everything, policy], target, permission)


def configure(sessions: Sessions, settings: Settings) -> None:
    """Let the sessions of this process know what its settings say of creators."""
    remember(sessions, EVERYBODY_CREATES, settings.creators == "anyone")


def everybody_creates(source: Source) -> bool:
    return bool(source.info.get(EVERYBODY_CREATES))


# Anybody who asks for it gives `username`, `groups`, `targets` and `covering`.
HELD_SQL = """
    with groups as (
      select unnest(cast(:groups as text[])) as name
      union select group_name from team_group_member where username = :username
    )
    select 'person' as kind, null as group_name, null as what, null as scope,
           not active as denied, creator
    from person where username = :username
    union all
    select 'grant', held.group_name, held.access_level, library.key, false, false
    from library join "grant" as held on held.library_id = library.id
    where library.key = any(:targets)
      and (held.username = :username or held.group_name in (select name from groups))
    union all
    select 'role', group_name, role, scope, denied, false
    from role_assignment
    where scope = any(:covering)
      and (username = :username or group_name in (select name from groups))
"""
_HELD = Lookup(HELD_SQL)


async def held(
    source: Source,
    caller: Caller,
    targets: Iterable[str],
    libraries: Iterable[Library] = (),
) -> Holdings:
    """What this caller holds over these targets and libraries, in one statement."""
    libraries = list(libraries)
    wanted = list(dict.fromkeys([*targets, *(library.key for library in libraries)]))
    rows = await _HELD.records(source, **asked(caller, wanted))
    return holdings(source, caller, rows, libraries)


def asked(caller: Caller, targets: Sequence[str]) -> dict[str, Any]:
    """The parameters of HELD_SQL."""
    covering = {scope for target in targets for scope in scopes.covering(target)}
    return {
        "username": caller.username,
        "groups": list(caller.groups),
        "targets": list(targets),
        "covering": sorted(covering),
    }


def holdings(
    source: Source, caller: Caller, rows: Iterable[Any], libraries: Iterable[Library]
) -> Holdings:
    """What the rows of HELD_SQL mean for this caller."""
    active, creator, policies = True, everybody_creates(source), []
    for kind, group, what, scope, denied, marked in rows:
        if kind == "person":
            active, creator = not denied, creator or marked
        elif f"{kind}:{what}" in HOLDINGS:
            policies.append(Policy(scope, f"{kind}:{what}", denied, group))
    policies += _for_everybody(libraries, creator=creator)
    if caller.administrator:
        # Nothing denies an administrator anything but being inactive.
        policies = [policy for policy in policies if not policy.denied]
        policies.append(Policy(scopes.EVERYTHING, "administrator"))
    elif creator:
        policies.append(Policy(scopes.EVERYTHING, "creator"))
    return Holdings(tuple(policies), active)


def _for_everybody(libraries: Iterable[Library], *, creator: bool) -> list[Policy]:
    found = []
    for library in libraries:
        if library.allow_public_learning:
            found.append(Policy(library.key, "public_learning"))
        if library.allow_public_read:
            holding = "public_read" if creator else "public_read_learning"
            found.append(Policy(library.key, holding))
    return found


async def allowed(session: AsyncSession, library: Library, caller: Caller) -> set[Permission]:
    """Everything this caller may do with this library."""
    mine = await held(session, caller, (), [library])
    return {one for one in OF_LIBRARY if mine.allow(library.key, one)}


async def may(source: Source, library: Library, caller: Caller, permission: Permission) -> bool:
    return (await held(source, caller, (), [library])).allow(library.key, permission)


async def require(
    session: AsyncSession, library: Library, caller: Caller, permission: Permission
) -> None:
    """Raises Forbidden."""
    await require_all(session, [library], caller, permission)


async def require_each(
    session: AsyncSession, library: Library, caller: Caller, needed: Iterable[Permission]
) -> None:
    """The same for several permissions at once. Raises Forbidden."""
    mine = await held(session, caller, (), [library])
    if not all(mine.allow(library.key, permission) for permission in needed):
        raise Forbidden


async def require_all(
    session: AsyncSession, libraries: Sequence[Library], caller: Caller, permission: Permission
) -> None:
    """The same for several at once. Raises Forbidden."""
    if not libraries:
        return
    mine = await held(session, caller, (), libraries)
    if not all(mine.allow(library.key, permission) for library in libraries):
        raise Forbidden


async def require_over(
    session: AsyncSession, caller: Caller, scope: str, permission: Permission
) -> None:
    """The same for a scope: what is held over it or over one that covers it. Raises Forbidden."""
    if not (await held(session, caller, [scope])).allow(scope, permission):
        raise Forbidden


async def require_create(session: AsyncSession, caller: Caller, settings: Settings) -> None:
    """Raises Forbidden for those who may not create libraries. contract: libraries §5.2

    With `creators`, somebody may who is marked as one, or who is one over some org; with
    `staff`, only who is one over everything.
    """
    mine = await held(session, caller, [scopes.EVERYTHING])
    policies = mine.policies
    if settings.creators == "staff":
        policies = tuple(each for each in policies if each.holding != "creator")
    if Holdings(policies, mine.active).allow(scopes.EVERYTHING, Permission.CREATE):
        return
    if mine.active and settings.creators == "creators" and await creator_orgs(session, caller):
        return
    raise Forbidden


async def creator_orgs(session: AsyncSession, caller: Caller) -> set[str]:
    """The orgs over which this caller is a creator."""
    found = await session.exec(
        select(RoleAssignment.scope, RoleAssignment.denied).where(
            _is_holder(RoleAssignment, caller),
            col(RoleAssignment.role) == Role.CREATOR,
            col(RoleAssignment.scope).like("lib:%:*"),
        )
    )
    rows = [(scopes.org_of(scope), denied) for scope, denied in found]
    no = {org for org, denied in rows if denied}
    return {org for org, denied in rows if org is not None and not denied and org not in no}


async def may_create_in(
    session: AsyncSession, caller: Caller, org: str, settings: Settings
) -> bool:
    """Whether somebody who may create libraries may do it in this org. contract: §3.2 step 4

    Where orgs have no creators of their own, in any that is not denied.
    """
    if caller.administrator:
        return True
    scope = scopes.of_org(org)
    mine = await held(session, caller, [scope])
    policies = mine.policies
    if settings.creators != "creators":
        policies += (Policy(scopes.EVERYTHING, "creator"),)
    return Holdings(policies, mine.active).allow(scope, Permission.CREATE)


def _is_holder(table: Any, caller: Caller) -> Any:
    """Whether a grant or a role is this caller's own, or of a group of theirs."""
    groups = select(TeamGroupMember.group_name).where(
        col(TeamGroupMember.username) == caller.username
    )
    conditions = [table.username == caller.username, table.group_name.in_(groups)]
    if caller.groups:
        conditions.append(table.group_name.in_(caller.groups))
    return or_(*conditions)


def visible_to(caller: Caller, *, everybody_creates: bool = False) -> list[Any]:
    """The same rule for VIEW as conditions on libraries; staged packages are none."""
    live = col(Library.staged_at).is_(None)
    person = select_columns(col(Person.username)).where(col(Person.username) == caller.username)
    active = ~person.where(~col(Person.active)).exists()
    if caller.administrator:
        return [live, active]
    granted = select(Grant.library_id).where(
        _is_holder(Grant, caller), col(Grant.access_level).in_(list(AccessLevel))
    )
    creator: Any = true() if everybody_creates else person.where(col(Person.creator)).exists()
    readable = and_(col(Library.allow_public_read), creator)
    open_to = or_(col(Library.id).in_(granted), readable, _role(caller, denied=False))
    return [live, active, open_to, ~_role(caller, denied=True)]


def _role(caller: Caller, *, denied: bool) -> Any:
    """Whether a role that gives VIEW, or one whose denial takes it, covers the library.

    Looked at from the library: its key and the three scopes around it are in the caller's.
    """
    roles = CLOSING if denied else [role for role in Role if Permission.VIEW in GIVES[role]]
    mine = select_columns(col(RoleAssignment.scope)).where(
        _is_holder(RoleAssignment, caller),
        col(RoleAssignment.role).in_(roles),
        col(RoleAssignment.denied).is_(denied),
    )
    wide = mine.where(col(RoleAssignment.scope).in_([scopes.EVERYTHING, scopes.ALL_LIBRARIES]))
    org = func.concat("lib:", col(Library.org), ":*")
    return or_(wide.exists(), org.in_(mine), col(Library.key).in_(mine))
