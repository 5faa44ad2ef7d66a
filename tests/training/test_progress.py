"""Steps told as they begin: each once, in order, the end at the total."""

from training.progress import Steps


def test_steps_are_told_as_they_begin_and_end_at_the_total() -> None:
    seen: list[tuple[int, int, str]] = []
    steps = Steps(lambda *call: seen.append(call), 4)
    steps.begin("a")
    steps.skip(2)
    steps.begin("b")
    steps.finish()
    assert seen == [(0, 4, "a"), (3, 4, "b"), (4, 4, "")]
