"""A provider that fails again and again is left alone for a while, then asked by one call."""

from __future__ import annotations

from backend.domain.circuit import COOL_SECONDS, FAILURES, LONGEST_SECONDS, Circuit


def opened(now: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(FAILURES):
        circuit = circuit.failed(now)
    return circuit


def test_failures_in_a_row_open_the_circuit_and_an_answer_between_does_not() -> None:
    circuit = Circuit()
    for _ in range(FAILURES - 1):
        circuit = circuit.failed(0)
    assert circuit.state(0) == "closed"
    assert circuit.answered().failed(0).state(0) == "closed"
    assert circuit.failed(0).state(0) == "open"


def test_after_it_cooled_one_probe_goes_out_and_the_others_wait() -> None:
    circuit = opened()
    assert circuit.wait(1) == COOL_SECONDS - 1
    assert (circuit.state(COOL_SECONDS), circuit.wait(COOL_SECONDS)) == ("half_open", 0)
    probing = circuit.asked(COOL_SECONDS, patience=5)
    assert probing.wait(COOL_SECONDS + 1) == 4
    assert probing.wait(COOL_SECONDS + 5) == 0
    assert probing.answered() == Circuit()


def test_a_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    circuit, now = opened(), 0.0
    for _ in range(10):
        now += circuit.wait(now)
        circuit = circuit.asked(now, patience=5).failed(now)
    assert circuit.wait(now) == LONGEST_SECONDS


def test_calls_that_were_sent_before_it_opened_change_nothing_when_they_fail() -> None:
    assert opened().failed(1) == opened()


def test_a_closed_circuit_is_not_changed_by_asking() -> None:
    assert Circuit().asked(3, patience=5) == Circuit()
