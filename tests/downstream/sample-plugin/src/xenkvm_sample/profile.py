"""A kernel that is none of the bundled ones."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from pytest_xenkvm.core.profile import LINUX_7_2, Profile

PROFILES: Final[tuple[Profile, ...]] = (
    evolve(
        LINUX_7_2,
        name="sample-7.2",
        summary="Linux 7.2 with the unset Xen IDs of 7.3 backported",
        unset_vcpu_id=0xFFFF_FFFF,
        forwards_singleshot_while_id_unset=True,
    ),
)
