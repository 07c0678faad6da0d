"""A profile's code policy at the one place that every execution passes, whatever its door."""

from __future__ import annotations

import hashlib
from typing import Literal

from gateway.kernels.answers import code_of
from gateway.models import AuditAction, AuditEvent, AuditOutcome, Message, Origin
from gateway.policy import CodePolicy, review
from gateway.ports import Audit

Verdict = Literal["pass", "warn", "reject"]

REFUSED = "PolicyRefused"


class Advice:
    """Looks at one kernel's executions before the kernel does; what it finds is in the audit trail."""

    def __init__(self, policy: CodePolicy, audit: Audit, kernel_id: str) -> None:
        self._policy = policy
        self._audit = audit
        self._kernel_id = kernel_id

    def on(self, request: Message, origin: Origin | None) -> tuple[Verdict, str]:
        """Return what is to become of an execute_request, and the sentence that says why."""
        if self._policy.action == "off":
            return "pass", ""
        code = code_of(request)
        findings = review(code, self._policy)
        if not findings:
            return "pass", ""
        said = "; ".join(map(str, findings))
        rejects = self._policy.action == "reject"
        self._audit.record(
            AuditEvent(
                action=AuditAction.POLICY_REFUSED if rejects else AuditAction.POLICY_NOTED,
                outcome=AuditOutcome.REFUSED if rejects else AuditOutcome.OK,
                who=origin and origin.principal,
                key_id=origin and origin.key_id,
                door=origin.door if origin else "gateway",
                address=origin and origin.address,
                request_id=origin and origin.request_id,
                kernel_id=self._kernel_id,
                target=request.msg_id,
                reason=findings[0].rule,
                code_sha256=hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest(),
                extra={"findings": said},
            )
        )
        if rejects:
            return "reject", f"The code policy of this kernel's profile refuses: {said}."
        if self._policy.action == "log":
            return "pass", ""
        return "warn", f"The code policy of this kernel's profile advises against: {said}."
