"""Telling a secure broker who its principals are and what each may do, and waiting until it acts on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from esper.core.clock import Deadline
from esper.core.errors import NotReadyError
from esper.core.home import Home
from esper.core.principals import ADMIN, MECHANISM, Principals
from esper.oona._failures import answer_of, error_of, translate
from esper.oona._kafka_admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from esper.oona.broker._readiness import quiet, wait_for
from esper.oona.broker._settings import InternalLogin
from esper.oona.topics._acls import Grant, grants, principals
from esper.oona.topics._specs import TopicCatalog

_REQUEST_SECONDS: Final = 10.0
_LOGIN_SECONDS: Final = 2.0
#: The least that Kafka takes. Rounds make guessing a person's password slow; ours are 256 random bits, and
#: every connection of every client pays for the rounds.
_ITERATIONS: Final = 4096
_ALL_GRANTS: Final = AclBindingFilter(
    ResourceType.ANY,
    None,  # type: ignore[arg-type]  # confluent_kafka declares it as text and takes None for any
    ResourcePatternType.ANY,
    None,  # type: ignore[arg-type]  # as above
    None,  # type: ignore[arg-type]  # as above
    AclOperation.ANY,
    AclPermissionType.ANY,
)


class InternalFile:
    """Where the internal login of the running broker is kept: `broker/internal.json`, mode 0600."""

    def __init__(self, home: Home) -> None:
        self._path = home.broker / "internal.json"

    def write(self, login: InternalLogin) -> None:
        """Keep `login` for as long as the broker runs. Raises OSError."""
        self._path.unlink(missing_ok=True)
        with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"port": login.port, "password": login.password}, file)

    def read(self) -> InternalLogin:
        """Return the login of the broker that runs; raises NotReadyError when the file is gone or damaged."""
        try:
            fields = json.loads(self._path.read_text())
            return InternalLogin(port=int(fields["port"]), password=str(fields["password"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise NotReadyError(
                "the running broker cannot be told its principals",
                cause=f"{self._path}, the login that was made for it when it started, is missing or damaged",
                next_step="Run `esper down`, then `esper up`",
            ) from None  # What was wrong with the content may show the content.

    def remove(self) -> None:
        """Forget the login of a broker that ended. Raises OSError."""
        self._path.unlink(missing_ok=True)


def establish(
    home: Home,
    catalog: TopicCatalog,
    internal: InternalLogin,
    *,
    port: int,
    deadline: Deadline,
    check: Callable[[], None],
) -> bool:
    """Make the broker's principals and grants what home and topic files say; return whether it acts on them in time.

    Idempotent. Principals and grants that were made by hand stay, as long as no topic file ever named them.

    Raises:
        SettingsError: a topic file names somebody that cannot be a principal.
        EsperError: the broker refused it.
        OSError: the passwords cannot be written.
    """
    admin, files, named = AdminClient(quiet(internal.client())), Principals(home), principals(catalog)
    files.make(named)
    retired = files.names() - set(named)
    _set_passwords(admin, {name: files.password(name) for name in named})
    _delete_passwords(admin, retired)
    wanted = {binding_of(grant) for grant in grants(catalog)}
    ours = {f"User:{name}" for name in (*named, *retired)}
    _set_grants(admin, wanted, ours)
    for name in retired:
        files.remove(name)
    password = files.password(ADMIN)
    steps: list[Callable[[], bool]] = [
        lambda: _ours(_grants_now(admin), ours) == wanted,
        lambda: _logs_in(port, password),
    ]
    return wait_for(steps, deadline=deadline, check=check)


def binding_of(grant: Grant) -> AclBinding:
    """Return a grant as Kafka has it."""
    pattern = ResourcePatternType.PREFIXED if grant.prefixed else ResourcePatternType.LITERAL
    return AclBinding(
        ResourceType[grant.resource.upper()],
        grant.name,
        pattern,
        f"User:{grant.principal}",
        "*",
        AclOperation[grant.operation],
        AclPermissionType.ALLOW,
    )


def _set_passwords(admin: AdminClient, passwords: Mapping[str, str]) -> None:
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _ITERATIONS)
    asked: list[UserScramCredentialAlteration] = [
        UserScramCredentialUpsertion(name, credential, secret.encode()) for name, secret in passwords.items()
    ]
    futures = admin.alter_user_scram_credentials(asked, request_timeout=_REQUEST_SECONDS)
    for name, future in futures.items():
        answer_of(future, f"the password of principal {name} cannot be set")


def _delete_passwords(admin: AdminClient, names: Iterable[str]) -> None:
    asked: list[UserScramCredentialAlteration] = [
        UserScramCredentialDeletion(name, ScramMechanism.SCRAM_SHA_512) for name in sorted(names)
    ]
    if not asked:
        return
    for name, future in admin.alter_user_scram_credentials(asked, request_timeout=_REQUEST_SECONDS).items():
        try:
            future.result()
        except KafkaException as exception:
            if error_of(exception).code() != KafkaError.RESOURCE_NOT_FOUND:
                raise translate(error_of(exception), f"principal {name} cannot be removed") from exception


def _set_grants(admin: AdminClient, wanted: set[AclBinding], ours: set[str]) -> None:
    """Bring the grants of our principals to `wanted`; nothing that stays is ever absent in between."""
    found = _grants_now(admin)
    missing, surplus = sorted(wanted - found), sorted(_ours(found, ours) - wanted)
    if missing:
        for future in admin.create_acls(missing, request_timeout=_REQUEST_SECONDS).values():
            answer_of(future, "what the topic files grant cannot be granted")
    if surplus:
        filters = [_filter_of(binding) for binding in surplus]
        for removed in admin.delete_acls(filters, request_timeout=_REQUEST_SECONDS).values():
            answer_of(removed, "what the topic files do not grant cannot be taken back")


def _grants_now(admin: AdminClient) -> set[AclBinding]:
    future = admin.describe_acls(_ALL_GRANTS, request_timeout=_REQUEST_SECONDS)
    return set(answer_of(future, "the broker's grants cannot be read"))


def _ours(bindings: Iterable[AclBinding], principals: set[str]) -> set[AclBinding]:
    return {binding for binding in bindings if binding.principal in principals}


def _filter_of(binding: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )


def _logs_in(port: int, password: str) -> bool:
    """Whether the listener of clients takes the password of `admin`: credentials reach it a little later."""
    client: dict[str, str | int | float | bool] = {
        "bootstrap.servers": f"127.0.0.1:{port}",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": MECHANISM,
        "sasl.username": ADMIN,
        "sasl.password": password,
    }
    try:
        return bool(AdminClient(quiet(client)).list_topics(timeout=_LOGIN_SECONDS).brokers)
    except KafkaException:
        return False
