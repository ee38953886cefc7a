"""What is shown of a guest that died."""

from __future__ import annotations

from pytest_xenkvm.lab.last_words import LastWords


def words(text: str) -> tuple[str, ...]:
    """The last words of a text that comes in pieces."""
    last = LastWords()
    data = text.encode()
    for start in range(0, len(data), 7):
        last.add(data[start : start + 7])
    return last.lines()


def test_a_complaint_is_shown_from_its_start() -> None:
    """From the kernel's first complaint on, all lines are shown, and none before."""
    text = "".join(f"[{n}] line\n" for n in range(100)) + "[100] BUG: bad\r\n[101] RIP\n[102] Kernel panic\n"
    assert words(text) == ("[100] BUG: bad", "[101] RIP", "[102] Kernel panic")


def test_without_a_complaint_the_last_lines_are_shown() -> None:
    """Where nothing complained, the last few lines are shown."""
    assert words("".join(f"{n}\n" for n in range(100))) == tuple(str(n) for n in range(85, 100))


def test_what_is_always_said_isnt_shown() -> None:
    """What QEMU and the kernel say at every start and end is left out."""
    text = "qemu: warning: TCG doesn't support requested feature: x2apic\n[5] reboot: Restarting system\n"
    assert words(text) == ()


def test_a_flood_is_bounded() -> None:
    """A console that says the same for ever takes no more memory and no more lines than a short one."""
    last = LastWords()
    for _ in range(1000):
        last.add(b"BUG: again\n" * 100)
    assert len(last._kept) <= 32 << 10
    assert len(last.lines()) == 60
