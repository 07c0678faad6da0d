"""REST, fuzzed by its own OpenAPI document: whatever is asked, no 5xx, and only what the document says."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway import Gateway, running

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 10
SOCKET = "/api/kernels/{kernel_id}/channels"
# a request has an answer within this
BOUND_S = 15.0
ENV = {
    "CELLBLOCK_KERNELS__MAX_KERNELS_PER_OWNER": "3",
    "CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "2",
    "CELLBLOCK_QUOTAS__STARTS_PER_MINUTE": "20",
    "CELLBLOCK_QUOTAS__STORAGE_BYTES": str(32 << 20),
}


class Front:
    """A gateway's REST API as schemathesis drives it, with a kernel to do it to."""

    def __init__(self, gateway: Gateway) -> None:
        self.session = requests.Session()
        key = gateway.key("fuzz", "kernels,execute,files,admin")
        self.session.headers["Authorization"] = f"Bearer {key}"
        self.url = gateway.url
        document = self.session.get(f"{gateway.url}/api/openapi.json", timeout=BOUND_S).json()
        self.schema = schemathesis.openapi.from_dict(document)

    def kernel(self) -> str:
        """Return a live kernel's id; most of what is fuzzed is about one."""
        models = self.session.get(f"{self.url}/api/kernels", timeout=BOUND_S).json()
        for model in models:
            if model["execution_state"] in {"idle", "busy"}:
                return str(model["id"])
        for model in models:
            self.session.delete(f"{self.url}/api/kernels/{model['id']}", timeout=BOUND_S)
        answer = self.session.post(f"{self.url}/api/kernels", json={}, timeout=BOUND_S)
        return str(answer.json().get("id", "no-kernel"))


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """A gateway of one's own, of few kernels."""
    with running("--no-keep", env=ENV) as gateway:
        front = Front(gateway)
        yield front
        front.session.close()
        assert gateway.process is not None
        assert gateway.process.poll() is None
        crashed = [line for line in gateway.log() if line["event"] == "request_crashed"]
        assert crashed == []


def fuzz(operation: Any, front: Front, mode: GenerationMode) -> None:
    """Send some examples of an operation's requests, good or bad ones, and check every answer."""

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(
        case=operation.as_strategy(generation_mode=mode),
        live=strategies.sampled_from((True, True, True, False)),
    )
    def send(case: Any, live: bool) -> None:
        if live and "kernel_id" in (case.path_parameters or {}):
            case.path_parameters["kernel_id"] = front.kernel()
        case.call_and_validate(
            base_url=front.url, session=front.session, checks=CHECKS, timeout=BOUND_S, allow_redirects=False
        )

    with warnings.catch_warnings():
        # of the generators, about schemas that allow nothing else
        warnings.simplefilter("ignore")
        send()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
def test_every_operation_of_the_document(front: Front, mode: GenerationMode) -> None:
    """No request is answered 5xx, with another type or shape than documented, or not at all."""
    failures, done = {}, 0
    for result in front.schema.get_all_operations():
        operation = result.ok()
        if operation.path == SOCKET:
            continue
        done += 1
        try:
            fuzz(operation, front, mode)
        except (hypothesis.errors.Unsatisfiable, hypothesis.errors.InvalidArgument):
            # nothing about it can be wrong
            assert mode is GenerationMode.NEGATIVE
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - all are shown together
            failures[operation.label] = "\n".join(map(str, getattr(error, "exceptions", [error])))

    assert done > 30
    assert failures == {}, json.dumps(failures, indent=1)
