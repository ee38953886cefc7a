"""The bundled rules, in the order in which they are reported."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.rules import (
    forwarded_timers,
    id_bounds,
    migration,
    moved_vms,
    ports,
    served_timers,
    timer_answers,
    vcpu_id,
    vcpu_ops,
    vmm_answers,
    vmm_duties,
)
from pytest_xenkvm.rules.model import Rule

BUNDLED: Final[tuple[Rule, ...]] = (
    vcpu_id.NEW_IS_UNSET,
    vcpu_id.REFUSED_SET_LEAVES_UNSET,
    vcpu_id.SENTINEL_IS_REFUSED,
    forwarded_timers.UNSET_FORWARDS,
    vcpu_id.IDS_ARE_SET,
    vcpu_id.IDS_ARE_UNIQUE,
    vcpu_id.UNSET_IS_NOT_RESTORED,
    id_bounds.VALID_IS_ACCEPTED,
    id_bounds.INVALID_IS_REFUSED,
    id_bounds.SET_READS_BACK,
    id_bounds.REFUSED_CHANGES_NOTHING,
    id_bounds.SENTINEL_IS_NO_ID,
    forwarded_timers.EXIT_IS_INTACT,
    forwarded_timers.ANSWER_REACHES_GUEST,
    forwarded_timers.OWN_ID_IN_KERNEL,
    forwarded_timers.OTHER_ID_IS_REFUSED,
    forwarded_timers.NUMBERS_ARE_32_BIT,
    forwarded_timers.NO_PORT_FORWARDS,
    forwarded_timers.SET_TIMER_IGNORES_ID,
    forwarded_timers.ABOVE_CPL0_FORWARDS,
    *migration.RULES,
    *moved_vms.RULES,
    *vmm_duties.RULES,
    *timer_answers.RULES,
    *served_timers.RULES,
    *vmm_answers.RULES,
    *vcpu_ops.RULES,
    *ports.RULES,
)
