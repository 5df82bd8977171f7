"""The second hand: in order, bounded, and what fails in it is raised in the first."""

import threading

import pytest

from merge.hand import DEPTH, Hand, Slots


def test_tasks_are_done_in_order_in_another_thread():
    done = []
    with Hand() as hand:
        for number in range(5 * DEPTH):
            hand.do(lambda n=number: done.append((n, threading.get_ident())))
    assert [number for number, _ in done] == list(range(5 * DEPTH))
    assert {thread for _, thread in done} != {threading.get_ident()}


def test_a_failure_is_raised_and_the_rest_left_undone():
    done = []

    def fails():
        raise OSError("disk")

    hand = Hand()
    with pytest.raises(OSError, match="disk"), hand:
        hand.do(fails)
        hand.do(lambda: done.append(1))
        hand.wait(hand.given)
    hand.settle()
    assert not done


def test_a_failure_of_the_first_hand_wins():
    with pytest.raises(KeyError), Hand() as hand:
        hand.do(lambda: None)
        raise KeyError("first")


def test_a_slot_is_not_given_out_before_its_task_is_done():
    free, taken = threading.Event(), []
    with Hand() as hand:
        slots = Slots(hand, 2)
        first = slots.take()
        hand.do(free.wait)
        slots.given(first)
        second = slots.take()
        assert second != first
        timer = threading.Timer(0.2, lambda: (taken.append("freed"), free.set()))
        timer.start()
        assert slots.take() == first and taken == ["freed"]
        timer.join()
