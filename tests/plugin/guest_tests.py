"""What test files about guest programs begin with."""

from __future__ import annotations

from typing import Final

ANSWERING: Final = """
import pytest
from pytest_xenkvm.hosts.guest_program import Ended
from pytest_xenkvm.vmm import Vmm

CALL = bytes.fromhex("b863000000 bf2a000000 0f01d9 f4")  # mov eax, 99; mov edi, 42; vmmcall; hlt

class Answering(Vmm):
    def __init__(self, answer=7):
        self.answer = answer
    def configure(self, vm):
        vm.xen_hvm_config()
    def on_hypercall(self, vcpu, xen_exit):
        return self.answer
"""
"""A VMM with an answer, and a program that makes a hypercall."""
