"""VMMs in processes of their own, in any language: the protocol of docs/reference/adapter-protocol.md."""

from pytest_xenkvm.vmm.adapter.behaviour import AdapterVmm
from pytest_xenkvm.vmm.adapter.conversation import AdapterError
from pytest_xenkvm.vmm.adapter.messages import PROTOCOL

__all__ = ["PROTOCOL", "AdapterError", "AdapterVmm"]
