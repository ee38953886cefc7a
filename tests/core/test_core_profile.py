"""Profiles and host limits."""

from __future__ import annotations

import pytest
from attrs import fields

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID
from pytest_xenkvm.core.profile import (
    LINUX_6_12,
    LINUX_7_2,
    LINUX_7_3,
    PROFILES,
    HostLimits,
    Profile,
    profile_for_release,
)
from pytest_xenkvm.core.switches import SWITCHES


@pytest.mark.parametrize(
    ("release", "profile"),
    [
        (None, LINUX_7_3),
        ("", LINUX_7_3),
        ("a kernel", LINUX_7_3),
        ("2.6.39", LINUX_6_12),
        ("5.10.0-30-amd64", LINUX_6_12),
        ("6.12.117+deb12-cloud-amd64", LINUX_6_12),
        ("6.18.44", LINUX_6_12),
        ("7.1.9", LINUX_6_12),
        ("7.2", LINUX_7_2),
        ("7.2.13+deb14-cloud-amd64", LINUX_7_2),
        ("7.3.0-rc7-gcov", LINUX_7_3),
        ("7.3-cloud-amd64", LINUX_7_3),
        ("7.10.1", LINUX_7_3),
        ("8.0-rc1", LINUX_7_3),
        ("10.0", LINUX_7_3),
    ],
)
def test_a_release_gets_the_newest_profile_that_is_not_newer(release: str | None, profile: Profile) -> None:
    """Releases older than all profiles get the oldest; without a version it is the ABI that rules demand."""
    assert profile_for_release(release) is profile


def test_profiles_are_found_by_name_oldest_first() -> None:
    """Every bundled profile stands under its own name."""
    assert list(PROFILES) == ["linux-6.12", "linux-7.2", "linux-7.3"]
    assert all(profile.name == name for name, profile in PROFILES.items())


@pytest.mark.parametrize("count", [0, -1, XEN_VCPU_ID_INVALID + 1])
def test_the_sentinel_can_never_be_a_valid_id(count: int) -> None:
    """A host whose KVM_MAX_VCPUS lies above XEN_VCPU_ID_INVALID can't be described, as it can't be built."""
    with pytest.raises(ValueError, match=r"KVM_MAX_VCPUS must be 1 \.\.\. 0xffffffff"):
        HostLimits(max_vcpus=count)


@pytest.mark.parametrize("count", [1, 1024, 4096, XEN_VCPU_ID_INVALID])
def test_any_smaller_kvm_max_vcpus_is_fine(count: int) -> None:
    """KVM_MAX_VCPUS may be anything that leaves the sentinel out, up to the sentinel itself."""
    assert HostLimits(max_vcpus=count).max_vcpus == count


def test_every_difference_is_explained() -> None:
    """Each field in which profiles can differ has one row of explanation."""
    differing = [field.name for field in fields(Profile) if field.name not in ("name", "summary")]
    assert [switch.field for switch in SWITCHES] == differing


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (LINUX_6_12, ["0", "no", "4 bytes, else -ENXIO", "any", "yes", "yes", "yes", "no"]),
        (LINUX_7_2, ["0", "no", "any", "0x40000000 ... 0x4fffffff, else -EINVAL", "no", "no", "yes", "no"]),
        (
            LINUX_7_3,
            [
                "XEN_VCPU_ID_INVALID (0xffffffff)",
                "yes",
                "any",
                "0x40000000 ... 0x4fffffff, else -EINVAL",
                "no",
                "no",
                "no",
                "yes",
            ],
        ),
    ],
)
def test_a_profile_in_words(profile: Profile, words: list[str]) -> None:
    """What a profile does about each difference can be read."""
    assert [switch.value(profile) for switch in SWITCHES] == words
