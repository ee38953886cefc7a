"""When a replay is over: its VM is migrated to a fresh one of the same shape on the same host.

No trace holds a live migration, but every host must survive one, and it is where an unset Xen ID shows. The
replay itself knows nothing of this: it gets a host that remembers which VM it made.
"""

from __future__ import annotations

from attrs import Factory, define, field, frozen

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.hosts.attribute_codec import attribute_type
from pytest_xenkvm.hosts.protocol import Host, HostVm
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.trace.events import Ioctl, VmShape
from pytest_xenkvm.vmm.files import IoctlMade
from pytest_xenkvm.vmm.handles import Vm
from pytest_xenkvm.vmm.ioctl_bytes import Names, as_event
from pytest_xenkvm.vmm.snapshot import Attribute, Refused, XenSnapshot, restore_snapshot, take_snapshot

_Key = tuple[int, int | None, int]
"""Request, vCPU index and attribute type."""


@define
class _IoctlLog:
    """The last ioctl of each kind on each attribute of a VM; as events only for those that ask."""

    names: Names
    made: dict[_Key, IoctlMade] = Factory(dict)

    def watch(self, made: IoctlMade) -> None:
        if isinstance(made.before, bytearray):
            self.made[made.request, made.vcpu, attribute_type(made.before)] = made

    def event(self, request: int, vcpu: int | None, attribute: Attribute) -> Ioctl:
        return as_event(self.made[request, vcpu, attribute], self.names)


@frozen(kw_only=True)
class Migration:
    """A live migration of the replay's VM, in which Xen IDs that read as unset were written, too."""

    place: Place
    """Behind the last event that was replayed."""
    before: XenSnapshot
    refused: tuple[Refused, ...]
    """What the fresh VM didn't take over."""
    after: XenSnapshot
    """What the fresh VM reads then."""
    _log: _IoctlLog

    def written(self, vcpu: int | None, attribute: Attribute) -> Observation:
        """The SET of an attribute on the fresh VM (`vcpu` None: the VM's own)."""
        vcpu_request, vm_request = ioctls.KVM_XEN_VCPU_SET_ATTR, ioctls.KVM_XEN_HVM_SET_ATTR
        return self._observation(vm_request if vcpu is None else vcpu_request, vcpu, attribute)

    def read_back(self, vcpu: int | None, attribute: Attribute) -> Observation:
        """The GET of an attribute on the fresh VM, after all was written."""
        vcpu_request, vm_request = ioctls.KVM_XEN_VCPU_GET_ATTR, ioctls.KVM_XEN_HVM_GET_ATTR
        return self._observation(vm_request if vcpu is None else vcpu_request, vcpu, attribute)

    def _observation(self, request: int, vcpu: int | None, attribute: Attribute) -> Observation:
        return Observation(place=self.place, event=self._log.event(request, vcpu, attribute))


@define
class Migrator:
    """A host for one replay, which can migrate the replay's VM to a second one on the same host."""

    host: Host
    _vm: HostVm | None = field(default=None, init=False)
    _shape: VmShape = field(init=False)
    _cpu_vendor: str = field(init=False)

    @property
    def name(self) -> str:
        """The host's."""
        return self.host.name

    def create_vm(self, shape: VmShape, *, cpu_vendor: str) -> HostVm:
        """The replay's VM, if it is the first; then those that a VMM behaviour migrates it to."""
        made = self.host.create_vm(shape, cpu_vendor=cpu_vendor)
        if self._vm is None:
            self._vm, self._shape, self._cpu_vendor = made, shape, cpu_vendor
        return made

    def migrate(self, place: Place) -> Migration:
        """Move the VM that was created, at that point of the replay.

        Guest memory isn't copied: no attribute depends on what it holds. Raises HostError if the second VM
        can't be had.
        """
        assert self._vm is not None  # the replay has begun  # noqa: S101 - for mypy
        before = take_snapshot(Vm.on(self._vm, self._shape))
        fresh = self.host.create_vm(self._shape, cpu_vendor=self._cpu_vendor)
        log = _IoctlLog(Names(fresh))
        target = Vm.on(fresh, self._shape, log.watch)
        refused = restore_snapshot(before, target, write_unset_ids=True)
        return Migration(place=place, before=before, refused=refused, after=take_snapshot(target), log=log)
